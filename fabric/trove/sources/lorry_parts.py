"""The components and patches of a lorry."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fabric import bounds
from fabric.definitions.located_yaml import Map
from fabric.digest import Digest
from fabric.errors import SourceError
from fabric.host.files import read_regular, real
from fabric.trove.sources import lorry_vex


class Component(msgspec.Struct, frozen=True):
    """An archive (``url``), or the content of a lorry, in a folder of another lorry's tree."""

    where: str  # "sources/gcc.lorry:8", for messages
    url: str = ""
    sha256: Digest | None = None
    inner: str = ""
    lorry: str = ""
    version: str = ""  # this and the next five are for SBOMs
    license: str = ""
    purl: str = ""
    cpe: str = ""
    supplier: str = ""
    vex: tuple[lorry_vex.Statement, ...] = ()


class Patch(msgspec.Struct, frozen=True):
    """A file of a lorry's patches.  ``path`` is relative to the folder of the lorry's file."""

    path: str
    where: str


def component(entry: Map, where: str) -> Component:
    """The component of a valid entry."""
    sha256 = {"sha256": Digest(entry["sha256"])} if "sha256" in entry else {}
    return Component(where, **{**entry, **sha256, "vex": lorry_vex.statements(entry)})


def read_patches(folder: Path, name: str, patches: Iterable[Patch]) -> list[tuple[Patch, bytes]]:
    """The patches of the lorry ``name`` with their contents.

    SourceError if one is no plain file of the lorry's folder, or they exceed a bound.
    """
    found, size = [], 0
    for patch in patches:
        wrong = f"{patch.where}: {name}: the patch {folder.name}/{patch.path}"
        file = folder / patch.path
        if not real(file.parent).is_relative_to(real(folder)):
            raise SourceError(f"{wrong} is behind a symbolic link that leads out of {folder.name}")
        try:
            content = read_regular(file, bounds.PATCH, follow=False)
        except OSError as error:
            why = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise SourceError(f"{wrong} cannot be read: {why}") from None
        size += len(content)
        if size > bounds.LORRIES_SIZE:
            most = f"{bounds.LORRIES_SIZE:,} bytes"
            raise SourceError(f"{patch.where}: {name}: its patches have more than {most}")
        found.append((patch, content))
    return found
