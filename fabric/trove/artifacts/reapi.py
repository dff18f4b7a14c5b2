"""Keeps an artifact store at a server of the Remote Execution API: its CAS and its action cache.

A blob is one of the CAS, and its path is its name there.  Any other object has an entry in the
action cache, by the digest of an action that nobody runs, `distbuild PATH`: the first file of its
result is the object, and the others are the blobs that a manifest names.  So a manifest counts as
absent if one of its blobs is gone, for us, and for a server that checks the entries that it gives
out.  An entry without files is a removed object.

The server decides what it forgets, and when.  It cannot be asked what it has, so there is no
listing, no gc and no reservation.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

from grpc import StatusCode

from fabric.config import host_and_port, is_loopback
from fabric.host.cancel import no_check
from fabric.host.pool import Pool
from fabric.jobs import Blob
from fabric.reapi.access import Access
from fabric.reapi.blobs import Content, Digest
from fabric.reapi.connection import Connection, ServerFault
from fabric.reapi.protocol import remote_execution_pb2 as pb
from fabric.reapi.storage import Storage
from fabric.trove.artifacts.backend import Entry, Haste, TooLarge, basic

T = TypeVar("T")
R = TypeVar("R")

#: The port of a server whose URL has none.
_PORTS = {"reapi": 8980, "reapis": 443}
#: Number of parallel requests.
_PARALLEL = 16
#: The path of the object itself among the files of an entry.
_SELF = "object"


class Cas:
    """Objects at ``reapi[s]://HOST[:PORT][/INSTANCE]``.

    ``ca`` is a PEM file of a certificate to be trusted in place of the system's.  ``login`` is
    USER:PASSWORD, or a bearer token, which has no colon.
    """

    errors: tuple[type[Exception], ...] = (ServerFault, OSError)
    grace = 0.0
    use_every = 3600.0

    def __init__(
        self, url: str, ca: Path | None = None, login: str = "", haste: Haste | None = None
    ) -> None:
        """ValueError or ConfigError if there can be no such server."""
        self._connection = Connection(_access(url, ca, login, haste))
        self._opened: Storage | None = None

    @property
    def _storage(self) -> Storage:
        if self._opened is None:
            connection = self._connection
            request = pb.GetCapabilitiesRequest(instance_name=connection.access.instance)
            found = connection.call(connection.capabilities, request, no_check)
            storage = Storage(connection)
            storage.adjust(found.cache_capabilities, compress=False)  # archives are
            self._opened = storage
        return self._opened

    @cached_property
    def _pool(self) -> Pool:
        return Pool(_PARALLEL, "store")

    @cached_property
    def _outer(self) -> Pool:
        """The threads of `map`: its functions wait for requests of the other pool."""
        return Pool(_PARALLEL, "store-map")

    def blob_path(self, blob: Blob) -> str:
        return f"blobs/{blob.sha256}/{blob.size}"

    def exist(self, paths: Iterable[str]) -> set[str]:
        wanted = list(paths)
        needs = dict(zip(wanted, self._pool.map(self._needs, wanted), strict=True))
        digests = list({digest for some in needs.values() for digest in some})
        missing = set(self._storage.missing(digests, no_check)) if digests else set()
        return {path for path, some in needs.items() if some and missing.isdisjoint(some)}

    def _needs(self, path: str) -> list[Digest]:
        """The blobs that an object consists of; none if it is missing or empty."""
        if digest := _digest(path):
            return [digest] if digest.size else []
        entry = self._entry(path)
        return [Digest.taken(file.digest) for file in entry.output_files] if entry else []

    def _entry(self, path: str) -> pb.ActionResult | None:
        connection = self._connection
        request = pb.GetActionResultRequest(
            instance_name=connection.access.instance,
            action_digest=_action(path)[0].message(),
            inline_output_files=[_SELF],
        )
        try:
            found: pb.ActionResult = connection.call(connection.result, request, no_check)
        except ServerFault as error:
            if error.code == StatusCode.NOT_FOUND:
                return None
            raise
        return found

    def get(self, path: str, most: int) -> bytes:
        digest, content = self._found(path)
        if digest.size > most:
            raise TooLarge(f"it has {digest.size} bytes")
        if content:
            return content
        return b"".join(self._pieces(path, digest))

    def _found(self, path: str) -> tuple[Digest, bytes]:
        """The digest of an object, and its content if that came with it."""
        if digest := _digest(path):
            return digest, b""
        entry = self._entry(path)
        if entry is None or not entry.output_files:
            raise FileNotFoundError(path)
        file = entry.output_files[0]
        digest = Digest.taken(file.digest)
        return digest, file.contents if Digest.of(file.contents) == digest else b""

    def range(self, path: str, offset: int, length: int) -> bytes:
        digest, _ = self._found(path)
        length = min(length, digest.size - offset)
        return b"".join(self._pieces(path, digest, offset, length)) if length > 0 else b""

    def stream(self, path: str) -> Iterator[bytes]:
        digest, _ = self._found(path)
        yield from self._pieces(path, digest)

    def _pieces(
        self, path: str, digest: Digest, offset: int = 0, length: int = 0
    ) -> Iterator[bytes]:
        """The content as the server sends it, at most one piece too much."""
        left = length or digest.size
        try:
            for piece in self._storage.received(digest, no_check, offset, length):
                yield piece
                left -= len(piece)
                if left < 0:
                    return
        except ServerFault as error:
            if error.code == StatusCode.NOT_FOUND:
                raise FileNotFoundError(path) from error
            raise

    def put(self, blobs: Mapping[str, bytes | Path], last: str, content: bytes) -> bool:
        wanted = {_named(path): _content(data) for path, data in blobs.items()}
        self._storage.store(wanted, no_check)
        return self._create(last, content, wanted)

    def put_equal(self, sizes: Mapping[str, int], last: str, content: bytes) -> None:
        wanted = [_named(path) for path in sizes]
        if missing := self._storage.missing(wanted, no_check):
            raise FileNotFoundError(missing[0].sha256)
        self._create(last, content, wanted)

    def _create(self, path: str, content: bytes, blobs: Iterable[Digest]) -> bool:
        fresh = not self.exist([path])
        if fresh:
            self._write(path, content, blobs)
        return fresh

    def write(self, path: str, content: bytes) -> None:
        self._write(path, content, ())

    def _write(self, path: str, content: bytes, blobs: Iterable[Digest]) -> None:
        self._storage.store({Digest.of(content): (content, b"")}, no_check)
        files = [pb.OutputFile(path=_SELF, digest=Digest.of(content).message())]
        files += [pb.OutputFile(path=one.sha256, digest=one.message()) for one in blobs]
        self._update(path, pb.ActionResult(output_files=files))

    def _update(self, path: str, entry: pb.ActionResult) -> None:
        """Write an entry, and first the action that it is of."""
        connection = self._connection
        digest, action = _action(path)
        self._storage.store({one: (data, b"") for one, data in action.items()}, no_check)
        request = pb.UpdateActionResultRequest(
            instance_name=connection.access.instance,
            action_digest=digest.message(),
            action_result=entry,
        )
        connection.call(connection.update_result, request, no_check)

    def delete(self, paths: Iterable[str]) -> None:
        """Remove objects, but no blobs, which only the server can."""

        def delete(path: str) -> None:
            if self._needs(path):
                self._update(path, pb.ActionResult(stdout_raw=b"removed\n"))

        list(self._pool.map(delete, [path for path in paths if not _digest(path)]))

    def delete_unused(self, entries: Iterable[Entry]) -> NoReturn:  # noqa: ARG002
        _unlisted()

    def list(self, prefix: str) -> NoReturn:  # noqa: ARG002
        _unlisted()

    def place(self, path: str) -> Path | None:  # noqa: ARG002
        return None

    def use(self, paths: Collection[str]) -> None:
        """Nothing: to be asked for a manifest is use enough for the server."""

    def uses(self) -> Mapping[str, float]:
        return {}

    def flush(self, timeout: float) -> None:
        """Nothing: there are no records of use."""

    def reserve(self, paths: Collection[str]) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """Nothing: what the server forgets meanwhile is built again."""
        return contextlib.nullcontext()

    def reserved(self) -> set[str]:
        return set()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return self._outer.map(function, items)

    def now(self) -> float:
        return time.time()

    def tidy(self) -> None:
        """Nothing: incomplete uploads are not visible."""


def _access(url: str, ca: Path | None, login: str, haste: Haste | None) -> Access:
    parts = urlsplit(url)
    host, port = host_and_port(parts.netloc, _PORTS[parts.scheme], "artifacts")
    encrypted = parts.scheme == "reapis"
    if not encrypted and not is_loopback(host):
        raise ValueError(f"{host} is not a loopback address: use reapis://")
    header = ""
    if login:
        header = basic(login) if ":" in login else f"Bearer {login}"
    return Access(
        host=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        encrypted=encrypted,
        instance=unquote(parts.path).strip("/"),
        ca=ca,
        authorization=header,
        who="The server",
        advice={},
        patience=haste.answer if haste else None,
        whole=haste.whole if haste else None,
    )


def _digest(path: str) -> Digest | None:
    """The digest in the path of a blob; None for another object."""
    folder, _, rest = path.partition("/")
    if folder != "blobs":
        return None
    sha256, _, size = rest.partition("/")
    return Digest(sha256, int(size))


def _named(path: str) -> Digest:
    digest = _digest(path)
    assert digest is not None, path
    return digest


def _content(data: bytes | Path) -> Content:
    return (data, b"") if isinstance(data, bytes) else (b"", os.fsencode(data))


def _action(path: str) -> tuple[Digest, Mapping[Digest, bytes]]:
    """The action whose result names the object at ``path``, and all that it consists of."""
    command = pb.Command(arguments=["distbuild", path]).SerializeToString(deterministic=True)
    action = pb.Action(
        command_digest=Digest.of(command).message(), input_root_digest=Digest.of(b"").message()
    ).SerializeToString(deterministic=True)
    blobs = {Digest.of(data): data for data in (command, b"", action)}
    return Digest.of(action), blobs


def _unlisted() -> NoReturn:
    raise io.UnsupportedOperation(
        "a server of the Remote Execution API does not tell what it has, and cleans by itself what"
        " was not used for long: its own settings say how much it keeps"
    )
