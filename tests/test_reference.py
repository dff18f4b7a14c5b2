"""The reference is made from the code, and links between pages lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
GENERATOR = ROOT / "docs/reference.py"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("reference", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    "name", re.findall(r'^    "([\w./-]+\.md)":', GENERATOR.read_text(), re.MULTILINE)
)
def test_reference_page_is_as_the_code_says(reference: ModuleType, name: str) -> None:
    made = reference.page(name)
    assert reference.MARK in made
    assert (reference.FOLDER / name).read_text() == made, "run: make reference"


def test_reference_describes_everything(reference: ModuleType) -> None:
    empty = {
        name: re.findall(r"(?m)^\| .* \|  \|$", reference.page(name)) for name in reference.PAGES
    }
    del empty["task-states.md"]  # no event leaves the last states
    assert not any(empty.values()), empty


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    titles = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"(?ms)^ *```.*?^ *```$|`[^`\n]+`", "", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_every_page_of_the_documentation_is_linked() -> None:
    index = ROOT / "docs/README.md"
    for page in PAGES[3:]:
        if page.name != "README.md":
            listing = page.parent / "README.md"
            nearest = listing if listing.exists() else index
            link = page.relative_to(nearest.parent).as_posix()
            assert f"]({link})" in nearest.read_text(), link


def test_architecture_names_functions_where_they_are() -> None:
    page = ROOT / "docs/explanation/architecture.md"
    named = re.findall(r"\]\(([^)]+\.py)\), `(\w+)` \|", page.read_text())
    assert len(named) > 10
    for path, name in named:
        code = (page.parent / path).resolve().read_text()
        assert re.search(rf"(?m)^\s*(def |class )?{name}\b[(:\s]", code), f"{path}: {name}"
