# Built in two steps, so that nothing that only builds is in the result.

FROM python:3.11-slim AS build
WORKDIR /srv
COPY requirements/run.txt requirements/run.txt
RUN python -m venv /srv/.venv
RUN /srv/.venv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/run.txt
COPY pyproject.toml README.md LICENSE alembic.ini ./
COPY app app
COPY alembic alembic
RUN /srv/.venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable .
RUN /srv/.venv/bin/pip uninstall --yes flit_core pip

FROM python:3.11-slim
RUN useradd --uid 10001 --home-dir /srv --shell /usr/sbin/nologin tokens && install -d -o tokens -g tokens -m 0700 /srv/var
WORKDIR /srv
COPY --from=build /srv /srv
ENV PATH=/srv/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    APP_ENV=production \
    HOST=0.0.0.0 \
    PORT=8000
USER tokens
VOLUME /srv/var
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/readyz', timeout=2)"]
# The only one that may migrate is the one that is about to serve.
CMD ["sh", "-c", "realtime-tokens migrate --quiet && exec realtime-tokens serve"]
