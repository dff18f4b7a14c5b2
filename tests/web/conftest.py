"""A farm with its web page, and a browser whose errors fail the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from web_kit import Pages, Site, launched


@pytest.fixture
def site(directory: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(directory, stack)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a module; Playwright's loop would hinder asyncio in others."""
    with launched() as browser:
        yield browser


@pytest.fixture
def pages(browser: Browser) -> Iterator[Pages]:
    """Opens pages; an error in the console of one fails the test."""
    pages = Pages(browser)
    yield pages
    pages.close()
    assert pages.unexpected == []
