"""Defines the bill of materials of a system, in no format.

`fabric.sbom.collect` makes it of a build graph and lorries; `fabric.sbom.spdx2`, `spdx3` and
`cyclonedx` write it.  Everything in it is sorted, and nothing depends on the time of day.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Container
from functools import cached_property
from typing import Literal

import msgspec

from fabric.trove.sources.lorry_vex import Statement

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class Party(msgspec.Struct, frozen=True):
    """A person or an organization.  ``contact`` is an email address or a URL."""

    name: str
    contact: str = ""

    @classmethod
    def parse(cls, text: str) -> Party | None:
        """The party of ``NAME <CONTACT>``; None for ""."""
        name, _, contact = text.partition(" <")
        return cls(name, contact.removesuffix(">")) if text else None

    @property
    def is_email(self) -> bool:
        return "@" in self.contact and "://" not in self.contact


DEBIAN = Party("Debian", "https://www.debian.org/")
UBUNTU = Party("Ubuntu", "https://ubuntu.com/")


class Download(msgspec.Struct, frozen=True):
    """A file that the component was made from.  ``url`` may be "": the place is not known."""

    name: str
    url: str
    sha256: str
    sha512: str = ""


class Patch(msgspec.Struct, frozen=True):
    """A patch that was applied, by its path in the definitions."""

    path: str
    sha256: str


class Archive(msgspec.Struct, frozen=True):
    """An artifact as it is stored and delivered: a tar.zst.  ``sha512``: "" if unknown."""

    name: str
    sha256: str
    sha512: str
    size: int  # bytes


class ImageFile(msgspec.Struct, frozen=True):
    """A file of the image."""

    path: str  # "usr/bin/zlib"; bytes that are not UTF-8 are written as \\xff
    ref: str  # 32 hex digits, different for each path
    sha256: str
    sha1: str  # SPDX 2.3 requires it
    chunk: str  # ref of the chunk that it comes from; "": the system made or changed it


Kind = Literal["chunk", "package", "part"]


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk, a package that a chunk brings, or a source that is a part of a chunk's."""

    ref: str  # unique in the bill: "zlib", "toolchain/libc6"
    kind: Kind
    name: str
    version: str  # "": not known
    in_image: bool  # else it took part in building only
    within: str = ""  # of a package or part: the chunk that has it
    purl: str = ""
    cpe: str = ""
    supplier: Party | None = None
    license: str = ""  # an SPDX expression that the definitions give
    found_license: str = ""  # the same, as the source has it
    license_files: tuple[str, ...] = ()  # files of the source that speak of licenses
    downloads: tuple[Download, ...] = ()
    repository: str = ""  # URL of a git repository
    commit: str = ""
    patches: tuple[Patch, ...] = ()
    archives: tuple[Archive, ...] = ()
    origin: str = ""  # package URL of the source package that Debian built it from
    needs: tuple[str, ...] = ()  # refs of chunks that it was built with, without what these need
    remarks: tuple[str, ...] = ()
    vex: tuple[Statement, ...] = ()  # about vulnerabilities of it, and of what is inside

    @property
    def declared_license(self) -> str:
        """What the source says, else the definitions."""
        return self.found_license or self.license

    @property
    def concluded_license(self) -> str:
        """What the definitions say, else the source."""
        return self.license or self.found_license


class Bill(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What is in a system, and what built it."""

    system: str
    arch: str
    description: str
    version: str
    key: str  # cache key of the system; "" if it is not built
    created: int  # Unix time
    tool: str  # version of distbuild
    author: Party | None
    archive: Archive | None  # of the system
    license: str  # of all components in the image together; "" if one is not known
    components: tuple[Component, ...]  # by ref
    complete: bool = True  # whether all that is known of built files is there
    files: tuple[ImageFile, ...] = ()  # of the image, by path, if they are wanted

    @cached_property
    def by_ref(self) -> dict[str, Component]:
        return {one.ref: one for one in self.components}

    @cached_property
    def digest(self) -> str:
        """64 hex digits that change with anything in the bill."""
        return hashlib.sha256(_encode(self)).hexdigest()

    @property
    def namespace(self) -> str:
        """A URI that names this bill, and no other."""
        return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'distbuild:sbom:{self.digest}')}"

    def inside(self, ref: str) -> tuple[Component, ...]:
        """The packages and parts of a chunk."""
        return self._inside.get(ref, ())

    def statement(self, one: Component, names: Container[str]) -> Statement | None:
        """What the definitions say of a vulnerability with these names, which are upper case.

        The statement about a chunk goes before that about a part of it: it knows how that is used.
        """
        chunk = self.by_ref[one.within] if one.within else one
        found = (each for each in (*chunk.vex, *one.vex) if each.vulnerability.upper() in names)
        return next(found, None)

    def files_of(self, chunk: str) -> tuple[ImageFile, ...]:
        """The files that come from a chunk, by its ref; for "", those that come from none."""
        return tuple(self._files.get(chunk, ()))

    @cached_property
    def _files(self) -> dict[str, list[ImageFile]]:
        found: dict[str, list[ImageFile]] = {}
        for one in self.files:
            found.setdefault(one.chunk, []).append(one)
        return found

    @cached_property
    def _inside(self) -> dict[str, tuple[Component, ...]]:
        found: dict[str, tuple[Component, ...]] = {}
        for one in self.components:
            if one.within:
                found[one.within] = (*found.get(one.within, ()), one)
        return found
