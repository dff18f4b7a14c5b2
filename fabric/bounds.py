"""Every bound of the project, by name: what it limits, and what happens past it.

The numbers stand here and nowhere else.  ``python -m fabric.bounds`` prints the table of
docs/reference/bounds.md, and each bound has a test marked ``@pytest.mark.bound("NAME")``.
"""

from __future__ import annotations

from typing import NamedTuple

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Bound(NamedTuple):
    """One row of the table; ``unit`` is "bytes", "seconds", or the plural of what is counted."""

    name: str
    limit: int
    unit: str
    what: str
    past: str


TABLE: list[Bound] = []


def _bound(name: str, limit: int, unit: str, what: str, past: str) -> int:
    TABLE.append(Bound(name, limit, unit, what, past))
    return limit


# -- messages ------------------------------------------------------------------------------

FRAME = _bound(
    "FRAME", 64 * MIB, "bytes", "a message between two machines", "the receiver drops it"
)

# -- git repositories ----------------------------------------------------------------------

TREE_ENTRIES = _bound(
    "TREE_ENTRIES",
    1_000_000,
    "files and folders",
    "the tree of a commit",
    "the source is refused",
)
TREE_DEPTH = _bound(
    "TREE_DEPTH", 200, "folders", "how deep a commit's tree nests", "the source is refused"
)
SOURCE_SIZE = _bound(
    "SOURCE_SIZE", 64 * GIB, "bytes", "the files of a commit", "the source is refused"
)
LINK_TARGET = _bound(
    "LINK_TARGET", 4096, "bytes", "a symbolic link in a commit", "the source is refused"
)
LORRY_FILES = _bound(
    "LORRY_FILES", 10_000, "files", "the folder `sources` of a commit", "the order is refused"
)
LORRIES_SIZE = _bound(
    "LORRIES_SIZE", 64 * MIB, "bytes", "all files in that folder", "the order is refused"
)
DEFINITIONS_FILE = _bound(
    "DEFINITIONS_FILE", 8 * MIB, "bytes", "a file of definitions", "the definitions are refused"
)
GIT_OUTPUT = _bound(
    "GIT_OUTPUT",
    64 * MIB,
    "bytes",
    "what git prints of a commit, or of its `.gitmodules`",
    "git is ended, and the source is refused",
)


def _in_words(bound: Bound) -> str:
    if bound.unit == "bytes":
        for size, word in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if bound.limit % size == 0:
                return f"{bound.limit // size:,} {word}"
    return f"{bound.limit:,} {bound.unit}"


def table() -> str:
    """The bounds as a Markdown table, in the order of this file."""
    rows = ["| name | bound | what it limits | what happens past it |", "|---|---|---|---|"]
    rows += [f"| `{b.name}` | {_in_words(b)} | {b.what} | {b.past} |" for b in TABLE]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
