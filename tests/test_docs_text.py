"""The documentation is read like code: what it names is there, and it tells of nowhere else."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
PAGES = [ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("alembic", "app", "docs", "examples", "requirements", "tests")
HEADINGS = ["Context", "Decision", "Consequences", "Alternatives", "References"]

CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```\n", re.DOTALL | re.MULTILINE)
PATH = re.compile(rf"((?:{'|'.join(FOLDERS)})/[\w./-]*)(?::([\w.]+))?")
TEST = re.compile(r"tests/test_\w+\.py:test_\w+")
MEMBER = re.compile(r"[A-Z]\w*\.[a-z_]\w*")
LINK = re.compile(r"\]\((?!https?://)([^)\s]*)\)")

# Where and on whose word a text was written means nothing to those who read it elsewhere.
ELSEWHERE = re.compile(
    r"""
      / (?: home | Users | root ) / \w                      # somebody's own folder
    | \b [A-Z]: \\+ Users \\
    | https?:// [^\s"'<>]+ /simple \b                      # a package index, or how to name one
    | -- (?: (?:extra-)? index-url | find-links | trusted-host )
    | (?i: \b (?: design [ ] section | work [ ] order ) )   # papers that are not in the repository
    """,
    re.VERBOSE,
)


def names_in(file: Path) -> set[str]:
    """Return what the module *file* defines, with the members of its classes as Class.member."""
    return {name for node in ast.parse(file.read_text()).body for name in _names(node)}


def _names(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name
        case ast.ClassDef(name=name, body=body):
            yield name
            yield from (f"{name}.{inner}" for member in body for inner in _names(member))
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


NAMES = {
    str(file.relative_to(ROOT)): names_in(file)
    for file in chain.from_iterable((ROOT / folder).rglob("*.py") for folder in FOLDERS)
}
MEMBERS = {name for names in NAMES.values() for name in names if "." in name}


def named(page: Path) -> set[str]:
    """Return what *page* names in code: paths and ``path:name`` anywhere, ``Class.member`` too."""
    text = page.read_text()
    spans = CODE.findall(FENCE.sub("", text))
    drawn = MEMBER.findall("".join(FENCE.findall(text)))
    return {span for span in [*spans, *drawn] if PATH.fullmatch(span) or MEMBER.fullmatch(span)}


def exists(name: str) -> bool:
    if place := PATH.fullmatch(name):
        path, member = place.groups()
        return (ROOT / path).exists() if member is None else member in NAMES.get(path, ())
    return name in MEMBERS or (ROOT / name).exists()  # README.md looks like a member


def anchors(page: Path) -> set[str]:
    """Return the fragments that lead to the headings of *page*."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def texts(folder: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Give each text file below *folder* that the repository holds, with what is in it."""
    ignored = [".git", *(ROOT / ".gitignore").read_text().replace("/", "").split()]
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in ignored):
            continue
        if path.is_dir():
            yield from texts(path)
            continue
        try:
            yield str(path.relative_to(ROOT)), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # not a text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    assert {name for name in named(page) if not exists(name)} == set()


def test_the_architecture_names_every_step_of_a_mint() -> None:
    steps = {
        "app/web/shortcut.py",
        "app/web/callers.py:admit",
        "Callers.authenticate",
        "Minter.mint",
        "Profiles.session_for",
        "MintLimits.take",
        "Log.record",
        "app/identity/callers.py:still_allowed",
        "OpenAI.create_client_secret",
        "TokenResponse.of",
    }

    assert steps <= named(ROOT / "docs" / "architecture.md")


def test_every_threat_names_a_control_and_a_test_that_shows_it() -> None:
    threats = (ROOT / "docs" / "security.md").read_text().split("\n## Threats\n")[1]
    lines = [line for line in threats.split("\n## ")[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [row for row in rows if row[0] not in {"Threat", "---"}]

    named = [[TEST.fullmatch(name) for name in CODE.findall(row[-1])] for row in rows]

    assert len(rows) > 40
    assert [row for row, tests in zip(rows, named, strict=True) if len(row) != 3 or not tests] == []
    assert all(chain.from_iterable(named))
    assert all(row[1] for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


def test_decisions_are_numbered_in_a_row_and_the_index_has_each_by_its_title() -> None:
    index = re.sub(r"\s+", " ", (ROOT / "docs" / "README.md").read_text()).lower()

    assert [page.name[:4] for page in DECISIONS] == [f"{n + 1:04}" for n in range(len(DECISIONS))]
    for page in DECISIONS:
        number, _, title = page.read_text().partition("\n")[0].removeprefix("# ").partition(": ")
        assert page.name.startswith(f"{number}-")
        assert f"[{number}](decisions/{page.name}): {title.lower()}" in index


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name)
def test_a_decision_says_why_and_what_else_there_was(page: Path) -> None:
    assert re.findall(r"^## (.+)$", page.read_text(), flags=re.MULTILINE) == HEADINGS


def test_every_decision_that_a_text_refers_to_is_there() -> None:
    numbers = {page.name[:4] for page in DECISIONS}
    found = {name: set(re.findall(r"decisions/(\d{4})", text)) for name, text in texts()}

    assert found["app/minting/openai.py"] == {"0001"}  # the search finds what is there
    assert {name: left for name, cited in found.items() if (left := cited - numbers)} == {}


def test_no_text_tells_where_it_was_written() -> None:
    own = [str(path) for path in (ROOT, Path.home()) if len(path.parts) > 2]  # not / or /srv
    here = re.compile("|".join(rf"{re.escape(path)}\b" for path in own) or "(?!)")
    found: defaultdict[str, set[str]] = defaultdict(set)

    for name, text in texts():
        for pattern in (ELSEWHERE, here):
            found[name] |= {match[0] for match in pattern.finditer(text)}

    assert {name: matches for name, matches in found.items() if matches} == {}
