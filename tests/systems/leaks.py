"""Finds files of a toolchain that name what it was built with, which they would then need.

    .venv/bin/python tests/systems/leaks.py FOLDER

FOLDER is a tree of files, as `fabric-initiator checkout` makes it.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LEAKS = {
    "the folder of stages 1 and 2": rb"(?<![\w./-])/tools(?![\w-])",
    "the target of stage 1": rb"-bootstrap-linux-gnu",
    "a folder of the seed": rb"/(?:lib|libexec|include)/(?:gcc/)?\w+-linux-gnu(?![\w-])",
    "a build directory": rb"(?<![\w./-])/[a-z0-9][a-z0-9+.-]*\.(?:build|inst)(?![\w-])",
}
_PATTERN = re.compile(b"|".join(b"(%s)" % pattern for pattern in LEAKS.values()))


class Leak(NamedTuple):
    """A text in a file, in its name or in the target of a link."""

    path: str  # from the top of the tree
    what: str  # a key of LEAKS
    text: str


def leaks(top: Path) -> Iterator[Leak]:
    """The first leak of each kind in each file, in the order of names."""
    for folder, names, files in os.walk(top):
        names.sort()
        for name in sorted(names + files):
            file = Path(folder, name)
            path = f"/{file.relative_to(top)}"
            found = _kinds(os.fsencode(path))
            if file.is_symlink():
                found = _kinds(os.fsencode(file.readlink())) | found
            elif file.is_file() and file.stat().st_size:
                with file.open("rb") as opened:
                    data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
                    with data:
                        found = _kinds(data) | found
            for what, text in found.items():
                yield Leak(path, what, text)


def _kinds(data: bytes | mmap.mmap) -> dict[str, str]:
    """The first text of each kind."""
    found: dict[str, str] = {}
    for match in _PATTERN.finditer(data):
        what = list(LEAKS)[(match.lastindex or 1) - 1]
        found.setdefault(what, match[0].decode("utf-8", "replace"))
    return found


if __name__ == "__main__":
    every = list(leaks(Path(sys.argv[1])))
    for leak in every:
        print(f"{leak.path}: {leak.what}: {leak.text}")
    sys.exit(bool(every))
