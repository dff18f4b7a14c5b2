"""The table of bounds in the documentation is current, and each bound has a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric import bounds

PAGE = Path(__file__).parents[1] / "docs/reference/bounds.md"


def test_bounds_page_is_made_from_the_code() -> None:
    head, _, _ = PAGE.read_text().partition("| name |")
    assert PAGE.read_text() == head + bounds.table(), "run: python -m fabric.bounds"


def test_bounds_have_tests(request: pytest.FixtureRequest) -> None:
    if request.config.args != request.config.getini("testpaths"):
        pytest.skip("needs all tests: only some were named")
    marked = {mark.args[0] for item in request.session.items for mark in item.iter_markers("bound")}
    assert {bound.name for bound in bounds.TABLE} == marked
