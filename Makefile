# make run    start the service on http://127.0.0.1:8000 (needs Python 3.11 and make, nothing else)
# make check  format, lint, types, import rule and the fast tests, in a minute or two
# make test   everything
# make bench  what a mint costs, beside the servers that people write; takes a quarter of an hour
# make chaos  kill, crash and freeze everything under load, up to 100 times each; takes an hour
# make screenshots  take those of the README anew
# make lock   write the hash-locked requirements anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Two at a time, for many wait; the tests of one file together, for they share what they started.
TESTS := $(BIN)/pytest -n 2 --dist loadfile

.PHONY: run check test bench chaos screenshots lock clean
.DEFAULT_GOAL := run

run: $(VENV)/.run-installed
	@$(BIN)/realtime-tokens migrate --quiet
	@exec $(BIN)/realtime-tokens serve

check: $(VENV)/.test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TESTS) -q -m "not outside and not slow"

test: check
	$(BIN)/python -m tests.chromium
	$(BIN)/python -m tests.clients.installed
	$(TESTS) -m "outside or slow"

bench: $(VENV)/.test-installed
	$(BIN)/python -m benchmarks.bench

chaos: $(VENV)/.test-installed
	$(BIN)/python -m tests.chaos 100

screenshots: $(VENV)/.test-installed
	$(BIN)/python -m tests.screenshots

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: requirements/run.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) …"
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/run.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test-installed: requirements/test.txt $(VENV)/.run-installed
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/test.txt
	@touch $@

LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --quiet --custom-compile-command "make lock"

lock: $(VENV)/bin/python
	$(PIP) install uv
	$(LOCK) pyproject.toml requirements/build.in --output-file requirements/run.txt
	$(LOCK) pyproject.toml requirements/build.in --group test --constraint requirements/run.txt --output-file requirements/test.txt
	$(LOCK) tests/clients/requirements.in --output-file tests/clients/requirements.txt

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
