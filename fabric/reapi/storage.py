"""Stores blobs at a server, and reads them: content-addressable storage."""

from __future__ import annotations

import hashlib
import io
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, Protocol, cast

import grpc
import zstandard

from fabric import bounds
from fabric.host.cancel import TICK
from fabric.reapi.blobs import Content, Digest, open_file
from fabric.reapi.connection import (
    Connection,
    ServerFault,
    replies,
    result,
    status_code,
    wait,
)
from fabric.reapi.protocol import bytestream_pb2 as stream
from fabric.reapi.protocol import remote_execution_pb2 as pb

_PIECE = 1 << 20
#: Bytes of a message besides the contents of a blob in it.
_OVERHEAD = 128
_LEVEL = 1
#: A file below this size is not worth compressing.
_COMPRESSED = 512


class Tree(Protocol):
    """Blobs that are there as a whole, or not."""

    @property
    def root(self) -> Digest: ...

    def blobs(self) -> Iterator[tuple[Digest, bytes, bytes]]:
        """The digest of each blob, and its `Content`."""


class Storage:
    """The blobs of a server.  Any thread may use it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._changed = threading.Condition()  # guards the sets
        self._trees: set[Digest] = set()  # those that were there lately, as a whole
        self._blobs: set[Digest] = set()  # the same of single blobs
        self._sending: set[Digest] = set()  # by any thread, at present
        self._batch = bounds.ENGINE_BATCH
        self._zstd_batch = self._zstd_stream = False

    def adjust(self, capabilities: pb.CacheCapabilities, *, compress: bool = True) -> None:
        """Keep to the server's limits, and use what it offers.  ServerFault without SHA-256.

        Unless ``compress``, blobs are packed already.
        """
        if pb.DigestFunction.SHA256 not in capabilities.digest_functions:
            raise ServerFault(f"{self._connection.who} does not name blobs by SHA-256", away=True)
        most = capabilities.max_batch_total_size_bytes
        self._batch = min(most, bounds.ENGINE_BATCH) if most > 0 else bounds.ENGINE_BATCH
        if not compress:
            return
        self._zstd_stream = pb.Compressor.ZSTD in capabilities.supported_compressors
        self._zstd_batch = pb.Compressor.ZSTD in capabilities.supported_batch_update_compressors

    def forget(self) -> None:
        """Forget what is there: the engine has lost some of it."""
        with self._changed:
            self._trees.clear()
            self._blobs.clear()

    # -- sending -----------------------------------------------------------------------------

    def send(
        self,
        trees: Iterable[Tree],
        blobs: Mapping[Digest, bytes],
        check: Callable[[], None],
        *,
        ask: bool = True,
    ) -> int:
        """As `store` for what the server did not have lately; returns how many it was sent."""
        with self._changed:
            absent = [tree for tree in trees if tree.root not in self._trees]
            wanted = {
                digest: (data, b"") for digest, data in blobs.items() if digest not in self._blobs
            }
        for tree in absent:
            for digest, data, path in tree.blobs():
                wanted[digest] = (data, path)
        sent = self.store(wanted, check, ask=ask)
        with self._changed:
            if len(self._trees) + len(self._blobs) > bounds.ENGINE_KNOWN:
                self._trees.clear()
                self._blobs.clear()
            self._trees.update(tree.root for tree in absent)
            self._blobs |= blobs.keys()
        return sent

    def store(
        self, blobs: Mapping[Digest, Content], check: Callable[[], None], *, ask: bool = True
    ) -> int:
        """Have the server store blobs; returns how many it was sent.

        It is asked for what it has; unless ``ask``, its answers are known to be wrong.  What
        another thread is sending is waited for.
        """
        wanted = dict(blobs)
        sent = 0
        while wanted:
            taken = self._take(wanted, check)
            held = set(taken)
            try:
                missing = self.missing(list(taken), check) if ask else list(taken)
                self._release(held, held.difference(missing))
                for done in self._uploaded({one: taken[one] for one in missing}, check):
                    self._release(held, done)
            finally:
                self._release(held, held)
            sent += len(missing)
            for digest in taken:
                del wanted[digest]
        return sent

    def _take(
        self, wanted: Mapping[Digest, Content], check: Callable[[], None]
    ) -> dict[Digest, Content]:
        """Those that no other thread is sending; waits until there is one.  `_release` them."""
        with self._changed:
            while not (free := {k: v for k, v in wanted.items() if k not in self._sending}):
                self._changed.wait(TICK)
                check()
            self._sending |= free.keys()
        return free

    def _release(self, held: set[Digest], digests: Iterable[Digest]) -> None:
        """Let other threads ask for some blobs of ``held``, and send them."""
        gone = set(digests)
        with self._changed:
            held -= gone
            self._sending -= gone
            self._changed.notify_all()

    def missing(self, digests: Sequence[Digest], check: Callable[[], None]) -> list[Digest]:
        """Those that the server does not have.  It keeps the others for some time, then."""
        missing = []
        for start in range(0, len(digests), bounds.ENGINE_DIGESTS):
            asked = digests[start : start + bounds.ENGINE_DIGESTS]
            request = pb.FindMissingBlobsRequest(
                instance_name=self._connection.access.instance,
                blob_digests=[digest.message() for digest in asked],
            )
            reply = self._connection.call(self._connection.find_missing, request, check)
            found = {Digest.taken(each) for each in reply.missing_blob_digests}
            missing += [digest for digest in asked if digest in found]
        return missing

    def _uploaded(
        self, blobs: Mapping[Digest, Content], check: Callable[[], None]
    ) -> Iterator[list[Digest]]:
        """Send blobs, and yield those that are there; large ones last, since others may wait."""
        large = []
        batch, size = self._new_batch(), 0
        for digest, (data, path) in blobs.items():
            if digest.size + _OVERHEAD > self._batch:
                large.append(digest)
                continue
            if path:
                with open_file(path) as file:
                    data = file.read(digest.size + 1)
            if size + digest.size + _OVERHEAD > self._batch:
                yield self._updated(batch, check)
                batch, size = self._new_batch(), 0
            size += digest.size + _OVERHEAD
            item = batch.requests.add(digest=digest.message(), data=data)
            if self._zstd_batch and digest.size > _COMPRESSED:
                item.data = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
                item.compressor = pb.Compressor.ZSTD
        if batch.requests:
            yield self._updated(batch, check)
        for digest in sorted(large, key=lambda one: one.size):
            self._write(digest, *blobs[digest], check)
            yield [digest]

    def _new_batch(self) -> pb.BatchUpdateBlobsRequest:
        return pb.BatchUpdateBlobsRequest(instance_name=self._connection.access.instance)

    def _updated(
        self, batch: pb.BatchUpdateBlobsRequest, check: Callable[[], None]
    ) -> list[Digest]:
        """Send a batch; returns its blobs."""
        left = {each.digest.hash for each in batch.requests}
        reply = self._connection.call(self._connection.update, batch, check)
        for each in reply.responses:
            if each.status.code:
                raise self._connection.refused(status_code(each.status.code), each.status.message)
            left.discard(each.digest.hash)
        if left:
            raise ServerFault(
                f"{self._connection.who} does not say whether it stored {len(left)} blobs"
            )
        return [Digest.taken(each.digest) for each in batch.requests]

    def _write(self, digest: Digest, data: bytes, path: bytes, check: Callable[[], None]) -> None:
        """Send a large blob."""
        kind = "compressed-blobs/zstd" if self._zstd_stream else "blobs"
        name = self._named(f"uploads/{uuid.uuid4()}/{kind}/{digest.sha256}/{digest.size}")
        connection = self._connection
        for pause in connection.pauses():
            future = connection.write.future(
                self._requests(name, data, path),
                timeout=connection.deadline(digest.size),
                metadata=connection.metadata(),
            )
            try:
                result(future, check)
            except grpc.RpcError as error:
                connection.passing(error, pause)
            else:
                return
            wait(pause, check)

    def _requests(self, name: str, data: bytes, path: bytes) -> Iterator[stream.WriteRequest]:
        offset = 0
        for piece in self._packed(data, path):
            yield stream.WriteRequest(resource_name=name, write_offset=offset, data=piece)
            offset += len(piece)
        yield stream.WriteRequest(resource_name=name, write_offset=offset, finish_write=True)

    def _packed(self, data: bytes, path: bytes) -> Iterator[bytes]:
        pieces = _pieces(data, path)
        if not self._zstd_stream:
            yield from pieces
            return
        compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        for piece in pieces:
            if packed := compressor.compress(piece):
                yield packed
        yield compressor.flush()

    def _named(self, name: str) -> str:
        instance = self._connection.access.instance
        return f"{instance}/{name}" if instance else name

    # -- reading -----------------------------------------------------------------------------

    def read(self, digest: Digest, check: Callable[[], None]) -> Iterator[bytes]:
        """The contents of a blob.  ServerFault if they are not of that digest.

        That is known at the end only: the caller must read all, and believe nothing before.
        """
        sha256, size = hashlib.sha256(), 0
        for piece in self.received(digest, check):
            check()
            size += len(piece)
            if size > digest.size:
                break
            sha256.update(piece)
            yield piece
        if (sha256.hexdigest(), size) != digest:
            raise ServerFault(
                f"{self._connection.who} sent {min(size, digest.size + 1)} bytes that"
                f" are not those of {digest.sha256[:12]} with {digest.size}"
            )

    def received(
        self, digest: Digest, check: Callable[[], None], offset: int = 0, length: int = 0
    ) -> Iterator[bytes]:
        """The contents as the server sends them, not verified; after a broken connection, the rest.

        From ``offset`` on; with ``length``, which cannot be compressed, so many bytes.
        """
        connection = self._connection
        end = offset + length
        kind = "compressed-blobs/zstd" if self._zstd_stream else "blobs"
        name = self._named(f"{kind}/{digest.sha256}/{digest.size}")
        for pause in connection.pauses():
            request = stream.ReadRequest(
                resource_name=name, read_offset=offset, read_limit=length and end - offset
            )
            call = connection.read(
                request,
                timeout=connection.deadline(digest.size - offset),
                metadata=connection.metadata(),
            )
            try:
                for piece in self._unpacked(replies(call, check)):
                    offset += len(piece)
                    yield piece
            except grpc.RpcError as error:
                connection.passing(error, pause)
            except zstandard.ZstdError as error:
                raise ServerFault(f"{connection.who} sent damaged data: {error}") from (error)
            else:
                return
            wait(pause, check)

    def _unpacked(self, received: Iterator[stream.ReadResponse]) -> Iterator[bytes]:
        if not self._zstd_stream:
            for reply in received:
                yield reply.data
            return
        reader = zstandard.ZstdDecompressor().stream_reader(cast(BinaryIO, _Received(received)))
        while piece := reader.read(_PIECE):  # a few bytes may unpack to any size
            yield piece


class _Received(io.RawIOBase):
    """The data of replies as a file."""

    def __init__(self, replies: Iterator[stream.ReadResponse]) -> None:
        self._replies = replies
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            reply = next(self._replies, None)
            if reply is None:
                return b""
            self._rest = reply.data
        size = len(self._rest) if size < 0 else size
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def _pieces(data: bytes, path: bytes) -> Iterator[bytes]:
    """The contents of a blob, in pieces of at most a megabyte."""
    if not path:
        for start in range(0, len(data), _PIECE):
            yield data[start : start + _PIECE]
        return
    with open_file(path) as file:
        while piece := file.read(_PIECE):
            yield piece
