"""Parses lock files: the packages that a lorry of type debian-packages or pypi-wheels pins.

A lock file is beside the lorry's file.  Each line is checked by a pattern, since its fields become
arguments of apt and pip, names of files, and paths::

    # The packages of the lorry toolchain: name, version, architecture, SHA-256, size in bytes.
    tree 34ee91d8e28ae1f9a27e17ac7b5ff5b0d8a1c3e4
    gcc-14-base 14.2.0-19 amd64 5b6825de...f6 49432

``tree`` is the git tree that an import of these packages makes.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path

from fabric import bounds
from fabric.digest import Digest
from fabric.errors import SourceError, command, in_line
from fabric.host.files import read_regular

#: Debian policy 5.6.
DEBIAN_NAME = r"[a-z0-9][a-z0-9+.-]+"
DEBIAN_VERSION = r"(?:[0-9]+:)?[0-9][A-Za-z0-9.+~-]*"
DEBIAN_ARCHITECTURE = r"[a-z0-9][a-z0-9-]*"
#: As in the file names of wheels.
WHEEL_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._]*[A-Za-z0-9])?"
WHEEL_VERSION = r"[0-9][A-Za-z0-9.!+_]*"
WHEEL_TAG = r"(?:[0-9][A-Za-z0-9_]*-)?[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+"
#: The id of a git tree.
TREE = r"[0-9a-f]{40}"

_PIN = r"([0-9a-f]{64}) ([0-9]{1,15})"
_LINES = {
    "debian-packages": re.compile(
        rf"({DEBIAN_NAME}) ({DEBIAN_VERSION}) ({DEBIAN_ARCHITECTURE}) {_PIN}"
    ),
    "pypi-wheels": re.compile(rf"({WHEEL_NAME}) ({WHEEL_VERSION}) ({WHEEL_TAG}) {_PIN}"),
}
_TREE_LINE = re.compile(f"tree ({TREE})")
_HEAD = """\
# The packages of the lorry {0}: name, version, architecture, SHA-256, size in bytes.
# Made by `fabric-initiator lorry update {0}`.
"""


@dataclass(frozen=True, slots=True)
class Locked:
    """A pinned Debian binary package, or wheel (``architecture`` is then its tag).

    ``size`` is that of the file in bytes.
    """

    name: str
    version: str
    architecture: str
    sha256: Digest
    size: int

    def __str__(self) -> str:
        return f"{self.name} {self.version} {self.architecture} {self.sha256} {self.size}"

    @property
    def file_name(self) -> str:
        """The .deb's name as Debian gives it, with the epoch's colon escaped."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


@dataclass(frozen=True, slots=True)
class Lock:
    """The content of a lock file.  ``tree``: "" if it is not recorded."""

    packages: tuple[Locked, ...] = ()
    tree: str = ""

    def text(self, name: str) -> str:
        """The lock file of the lorry ``name``."""
        tree = f"tree {self.tree}\n" if self.tree else ""
        return _HEAD.format(name) + tree + "".join(f"{one}\n" for one in self.packages)


def read_plain(file: Path) -> bytes | None:
    """A file of the definitions' folder of sources; None if there is none.

    SourceError if it exceeds the bound, or is a link, a device or a pipe, with which its author
    could choose what this machine reads.
    """
    try:
        return read_regular(file, bounds.DEFINITIONS_FILE, follow=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SourceError(
                f"{in_line(file)}: a symbolic link, and only files are read"
            ) from None
        raise SourceError(f"{in_line(file)}: cannot be read: {error.strerror}") from None


def is_line(type: str, locked: Locked) -> bool:
    """Whether an offered package is valid in a lock file of a lorry of that type."""
    return _LINES[type].fullmatch(str(locked)) is not None


def read_lock(file: Path, type: str, name: str) -> Lock:
    """The lock of the lorry ``name``; an empty one if there is no file.

    SourceError names the line if one is wrong.
    """
    data = read_plain(file)
    if data is None:
        return Lock()
    packages: list[Locked] = []
    tree = ""
    pattern = _LINES[type]
    for number, line in enumerate(data.decode(errors="replace").split("\n"), 1):
        if not line or line.startswith("#"):
            continue
        if found := pattern.fullmatch(line):
            name_, version, architecture, sha256, size = found.groups()
            packages.append(Locked(name_, version, architecture, Digest(sha256), int(size)))
        elif (found := _TREE_LINE.fullmatch(line)) and not tree:
            tree = found[1]
        else:
            raise SourceError(
                f"{file}:{number}: not a line of a lock file, which is NAME VERSION ARCHITECTURE"
                f" SHA-256 SIZE; make it again with `{command('lorry', 'update', name)}`"
            )
    return Lock(tuple(packages), tree)
