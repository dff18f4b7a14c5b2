"""Lists the files of an image, with their digests and the chunks that they come from.

A file comes from a chunk if that put these bytes there.  Others are the system's own: those that
its integration commands made or changed, and its metadata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from fabric import bounds
from fabric.building import archive
from fabric.errors import FabricError
from fabric.jobs import Blob
from fabric.sbom.bill import ImageFile
from fabric.sbom.packages import merged
from fabric.trove.artifacts.store import Store


class _Digests(NamedTuple):
    sha256: str
    sha1: str


def files_of(
    store: Store, system: tuple[str, Blob], chunks: Iterable[tuple[str, str, Blob]]
) -> tuple[ImageFile, ...]:
    """The files in a system's archive (key, blob), by path.

    ``chunks``: the artifacts in it, in the order of unpacking: id and key of a chunk, and the blob.
    FabricError past a bound, StoreError.
    """
    key, blob = system
    with store.open(blob, key) as file:
        image = dict(_regular(file))
    origin: dict[bytes, tuple[str, str]] = {}  # path -> chunk, SHA-256: the last one covers others
    for chunk, chunk_key, part in chunks:
        with store.open(part, chunk_key) as file:
            for path, digests in _regular(file):
                origin[merged(path)] = (chunk, digests.sha256)
    found = []
    for path, digests in sorted(image.items()):
        chunk, sha256 = origin.get(merged(path), ("", ""))
        found.append(
            ImageFile(
                path.decode("utf-8", "backslashreplace"),
                hashlib.sha256(path).hexdigest()[:32],
                digests.sha256,
                digests.sha1,
                chunk if sha256 == digests.sha256 else "",
            )
        )
    return tuple(found)


def _regular(file: BinaryIO) -> Iterator[tuple[bytes, _Digests]]:
    """Path and digests of the regular files in an archive.  A hard link is one of them."""
    known: dict[bytes, _Digests] = {}
    for entry, contents in archive.read(file):
        if entry.type == archive.FILE:
            sha256, sha1 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
            for piece in contents.pieces():
                sha256.update(piece)
                sha1.update(piece)
            known[entry.name] = _Digests(sha256.hexdigest(), sha1.hexdigest())
        elif entry.type == archive.HARD_LINK and entry.link in known:
            known[entry.name] = known[entry.link]
        else:
            continue
        if len(known) > bounds.SBOM_FILES:
            most = f"{bounds.SBOM_FILES:,} files"
            raise FabricError(f"the system has more than {most}, the limit of an SBOM with --files")
        yield entry.name, known[entry.name]
