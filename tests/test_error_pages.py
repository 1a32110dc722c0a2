import re
from html import unescape
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.base.errors import Problem, every_problem
from app.web.error_pages import error_pages
from app.web.problems import install_problem_handlers


def client_for(public_url: str) -> TestClient:
    app = FastAPI()
    install_problem_handlers(app, public_url=public_url)
    app.include_router(error_pages(public_url=public_url))
    return TestClient(app)


@pytest.fixture(scope="module")
def client() -> TestClient:
    return client_for("https://tokens.example.com")


class Page(HTMLParser):
    """What a browser would fetch, run or follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"href", "src"}]
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("kind", list(every_problem()), ids=lambda kind: kind.code)
def test_every_code_has_a_page_that_says_what_it_means_and_what_to_do(
    client: TestClient, kind: type[Problem]
) -> None:
    answer = client.get(f"/errors/{kind.code}")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    text = unescape(re.sub(r"<[^>]*>", "", answer.text))
    assert kind.title in text
    assert kind.advice in text
    assert (kind.__doc__ or "").splitlines()[0] in text
    assert f"HTTP/1.1 {kind.status.value} {kind.status.phrase}" in text
    assert f'"code": "{kind.code}"' in text
    assert f'"type": "https://tokens.example.com/errors/{kind.code}"' in text


def test_the_index_leads_to_every_page(client: TestClient) -> None:
    page = Page(client.get("/errors").text)

    assert {f"/errors/{kind.code}" for kind in every_problem()} <= set(page.addresses)


def test_a_code_that_does_not_exist_is_a_problem_itself(client: TestClient) -> None:
    answer = client.get("/errors/nonsense")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_found"


@pytest.mark.parametrize("path", ["/errors", "/errors/rate_limited"])
def test_a_page_runs_nothing_and_loads_only_our_own_files(client: TestClient, path: str) -> None:
    answer = client.get(path)
    page = Page(answer.text)

    assert "default-src 'none'; style-src 'self'" in answer.headers["content-security-policy"]
    assert "script" not in page.tags
    assert "style" not in page.tags
    assert "/static/site.css" in page.addresses
    assert all(address.startswith(("/", "#")) for address in page.addresses)


def test_links_stay_below_the_path_of_the_public_url() -> None:
    page = Page(client_for("https://example.com/tokens").get("/errors").text)

    assert "/tokens/static/site.css" in page.addresses
    assert "/tokens/errors/rate_limited" in page.addresses


def test_the_example_shows_the_headers_that_go_with_the_problem(client: TestClient) -> None:
    assert "Retry-After:</i> 12" in client.get("/errors/rate_limited").text
    assert "error=&#34;invalid_token&#34;" in client.get("/errors/invalid_token").text
