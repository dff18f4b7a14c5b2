"""Makes Debian packages, also wrong ones, without dpkg."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

import zstandard

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **fields: Any) -> Member:
    """A member of a package's files: a regular file, unless ``fields`` of TarInfo say otherwise."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def directory(name: str, mode: int = 0o755) -> Member:
    return member(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Member:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Member:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*members: Member) -> bytes:
    """An archive in GNU's format, as dpkg makes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def ar(*members: tuple[str, bytes]) -> bytes:
    """An ar archive of (name, content)."""
    found = b"!<arch>\n"
    for name, content in members:
        numbers = f"{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}"
        found += f"{name:<16}{numbers}`\n".encode() + content + b"\n" * (len(content) % 2)
    return found


def deb(*members: Member, suffix: str = ".xz") -> bytes:
    """A package with these files."""
    return packed(tar(directory("./"), *members), suffix)


def packed(files: bytes, suffix: str = ".xz") -> bytes:
    """A package with this archive of files."""
    control = tar(member("./control", b"Package: x\n"))
    return ar(
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", lzma.compress(control)),
        (f"data.tar{suffix}", PACKERS[suffix](files)),
    )


def lines(*files: str) -> str:
    """``packages.tsv`` for these file names."""
    return "".join(f"x\t1\tall\t{'0' * 64}\t1\t{file}\n" for file in files)


def lorry(packages: Mapping[str, bytes]) -> dict[str, str | bytes]:
    """The files of a source as a lorry of type debian-packages makes it."""
    return {**packages, "packages.tsv": lines(*packages)}
