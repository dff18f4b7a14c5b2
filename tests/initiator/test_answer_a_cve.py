"""The how-to "Answer a CVE in an hour" prints what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_definitions import remember_host_tools
from transcripts import assert_shows, environment, sessions, typed

PAGE = Path(__file__).parents[2] / "docs/how-to/answer-a-cve.md"


def test_the_how_to_prints_what_it_shows(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    remember_host_tools(cache)
    environ = environment(FABRIC_CACHE=str(cache), FABRIC_CONFIG="/dev/null")
    here, shown = tmp_path, 0
    for script, lines in sessions(PAGE):
        assert_shows(typed(script, here, environ), lines)
        here, shown = tmp_path / "shop", shown + len(lines)
    assert shown > 15
    image = typed("fabric-initiator checkout systems/hello-system.morph --to out", here, environ)
    greet = here / "out/usr/bin/greet"
    assert greet.read_text().endswith('echo "Hello $*"\n'), image


def test_a_page_that_shows_something_else_fails() -> None:
    assert_shows("a in 0.1 s\nb  since 2026-01-01\n", ["a in 7 s", "b since 2025-09-09"])
    for wrong in (["b since 2026-01-01", "a in 0.1 s"], ["a"], ["c"]):
        with pytest.raises(AssertionError, match="is missing in"):
            assert_shows("a in 0.1 s\nb  since 2026-01-01\n", wrong)
