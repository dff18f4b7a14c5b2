"""Reads what Debian packages and wheels say of themselves: license, source, files."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import msgspec

from fabric import bounds
from fabric.building import debs
from fabric.sbom import licenses
from fabric.sbom.collect import PackageFact
from fabric.trove.importers import archive

_COPYRIGHT = re.compile(r"usr/share/doc/([^/]+)/copyright")
_DOC = re.compile(r"usr/share/doc/([^/]+)")
_ROOT = re.compile(rb"(?:bin|sbin|lib|lib32|lib64)/")
_PIECE = 1 << 20
_SOURCE = re.compile(r"(\S+)(?: \((\S+)\))?")


class Read(msgspec.Struct):
    """What a package file says.  ``shares``: the package that has its copyright file."""

    fact: PackageFact
    shares: str = ""


def debian(name: str, version: str, file: BinaryIO, taken: frozenset[bytes] | None) -> Read:
    """Read a Debian package.

    ``taken``: the `merged` paths in the image of the chunk that brings it; None if the chunk is in
    the image as a whole.  A package that cannot be read has no license and no source, and counts as
    inside.
    """
    sha512 = hashed(iter(lambda: file.read(_PIECE), b""))
    unread = Read(PackageFact(sha512=sha512))
    try:
        file.seek(0)
        source = _source(file, name, version)
        file.seek(0)
        return _debian(name, file, taken, sha512, source)
    except debs.ERRORS:
        return unread


def _source(file: BinaryIO, name: str, version: str) -> tuple[str, str]:
    """Name and version of the source package, as ``control`` has them."""
    members = debs.members_of(file, b"control.tar")
    for info in members:
        if info.name.removeprefix("./") == "control" and info.size <= bounds.SBOM_TEXT:
            text = b"".join(members.contents(info)).decode(errors="replace")
            found = re.search(r"^Source: (.*)$", text, re.MULTILINE)
            match = _SOURCE.fullmatch(found[1].strip()) if found else None
            return (match[1], match[2] or version) if match else (name, version)
    return name, version


def _debian(
    name: str,
    file: BinaryIO,
    taken: frozenset[bytes] | None,
    sha512: str,
    source: tuple[str, str],
) -> Read:
    inside = taken is None
    license, named, shares = "", "", ""
    members = debs.members_of(file)
    for info in _bounded(members):
        path = info.name.removeprefix("./")
        if not inside and taken is not None and not info.isdir():
            inside = merged(path.encode(errors="surrogateescape")) in taken
        if (match := _DOC.fullmatch(path)) and info.issym() and match[1] == name:
            shares = info.linkname.rpartition("/")[2]
        elif (match := _COPYRIGHT.fullmatch(path)) and match[1] == name:
            named = path
            if info.isreg() and info.size <= bounds.SBOM_TEXT:
                text = b"".join(members.contents(info)).decode(errors="replace")
                license = licenses.of_debian_copyright(text)
    fact = PackageFact(
        inside=inside,
        sha512=sha512,
        license=license,
        license_files=(named,) if named else (),
        source=source,
    )
    return Read(fact, "" if named else shares)


def _bounded(members: Iterable[tarfile.TarInfo]) -> Iterator[tarfile.TarInfo]:
    """The members.  ValueError past the bounds of an artifact."""
    size = 0
    for number, info in enumerate(members, 1):
        size += info.size
        if number > bounds.ARTIFACT_FILES or size > bounds.ARTIFACT_BYTES:
            raise ValueError("it has more than an artifact may")
        yield info


def merged(path: bytes) -> bytes:
    """A path as it is where /bin, /sbin and /lib are links to those in /usr."""
    return b"usr/" + path if _ROOT.match(path) else path


def shared(read: Mapping[str, Read]) -> dict[str, PackageFact]:
    """Facts by package name; the license of a package that shares a copyright file is there."""
    facts = {}
    for name, one in read.items():
        other = read.get(one.shares)
        facts[name] = one.fact
        if other is not None:
            facts[name] = msgspec.structs.replace(
                one.fact, license=other.fact.license, license_files=other.fact.license_files
            )
    return facts


def wheel(file: BinaryIO) -> Read:
    """Read a wheel.  One that cannot be read has no license."""
    sha512 = hashed(iter(lambda: file.read(_PIECE), b""))
    license, named = "", []
    try:
        with zipfile.ZipFile(file) as members:
            for info in members.infolist():
                folder, _, name = info.filename.partition("/")
                if not folder.endswith(".dist-info"):
                    continue
                if name == "METADATA":
                    with members.open(info) as content:
                        text = content.read(bounds.SBOM_TEXT + 1)
                    if len(text) <= bounds.SBOM_TEXT:
                        license = licenses.of_metadata(text.decode(errors="replace"))
                elif name.startswith("licenses/"):
                    named.append(info.filename)
    except archive.ERRORS:
        pass  # it says no more
    few = tuple(sorted(named)[: bounds.SBOM_TEXTS])
    return Read(PackageFact(sha512=sha512, license=license, license_files=few))


def as_file(pieces: Iterable[bytes], file: BinaryIO) -> BinaryIO:
    """The pieces in a file that is read from its beginning."""
    for piece in pieces:
        file.write(piece)
    file.seek(0)
    return file


def hashed(pieces: Iterable[bytes]) -> str:
    """The SHA-512 of the pieces."""
    digest = hashlib.sha512()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
