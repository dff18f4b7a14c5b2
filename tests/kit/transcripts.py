"""Pages of the documentation whose commands are typed, and whose output is compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each block; commands have no language, and what they print has `text`."""
    yield from re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", page.read_text())


def sessions(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands, and the lines that the page shows of what they print."""
    script, shown = "", list[str]()
    for language, block in blocks(page):
        if language == "text":
            shown += block.splitlines()
        elif not language:
            if script:
                yield script, shown
            script, shown = block, []
    yield script, shown


def environment(**more: str) -> dict[str, str]:
    """The environment of a user who has activated this one, and is known to git."""
    me = {
        f"GIT_{who}_{what}": "ann" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **me, "PATH": path, **more}


def typed(script: str, here: Path, environ: Mapping[str, str]) -> str:
    """What commands print, typed into bash."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=here,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def comparable(line: str) -> str:
    """A printed line without times and dates, and with single blanks."""
    line = re.sub(r"\b\d{4}-\d\d-\d\d\b", "DATE", line)
    return " ".join(re.sub(r"\b(\d+ min )?\d+(\.\d+)? s\b", "N s", line).split())


def assert_shows(said: str, shown: list[str]) -> None:
    """Each line that a page shows is printed, in that order."""
    left = iter([comparable(line) for line in said.splitlines()])
    for line in shown:
        assert comparable(line) in left, f"{line!r} is missing in:\n{said}"
