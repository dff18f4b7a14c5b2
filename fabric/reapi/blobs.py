"""Names blobs by their digests, and opens their files."""

# Paths here are bytes, which pathlib does not take.
# ruff: noqa: PTH101
from __future__ import annotations

import hashlib
import os
import stat
from typing import BinaryIO, NamedTuple

from fabric.reapi.protocol import remote_execution_pb2 as pb

#: A blob's contents, or b"" and the path of its file.
Content = tuple[bytes, bytes]


class Digest(NamedTuple):
    """The name of a blob."""

    sha256: str
    size: int

    @classmethod
    def of(cls, data: bytes) -> Digest:
        return cls(hashlib.sha256(data).hexdigest(), len(data))

    @classmethod
    def taken(cls, message: pb.Digest) -> Digest:
        return cls(message.hash, message.size_bytes)

    def message(self) -> pb.Digest:
        return pb.Digest(hash=self.sha256, size_bytes=self.size)


def open_file(path: bytes) -> BinaryIO:
    """Open a file of a layer, whatever its mode."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags), "rb", buffering=0)
    except PermissionError:  # of mode 4111, for example
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        os.chmod(path, mode | 0o400)
        try:
            return os.fdopen(os.open(path, flags), "rb", buffering=0)
        finally:
            os.chmod(path, mode)
