"""Speaks WebDAV with Python's own HTTP client, where obstore is not installed.

Machines that are built from source have no obstore, which is written in Rust.  The class has those
methods of obstore's stores that `fabric.trove.artifacts.remote` calls for a WebDAV server.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import time
import weakref
import xml.etree.ElementTree as xml
from collections import deque
from collections.abc import Callable, Iterator
from mmap import mmap
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import quote, urlsplit

from fabric.host.shared_files import CHUNK
from fabric.trove.artifacts.backend import basic
from fabric.trove.artifacts.webdav_answers import (
    KINDS,
    Answer,
    DavError,
    Failed,
    close_both,
    is_success,
    pieces,
    said,
)
from fabric.trove.artifacts.webdav_lists import Listing, date_of, read_listing, shown, size_of

T = TypeVar("T")
Piece = bytes  # the class below has a method of that name

#: Most bytes of a refusal that are read.
REFUSAL = 4096
#: Most connections that are kept for the next request, about.
KEPT = 16
#: The first pause before a request is repeated, in seconds; each is twice the one before.
PAUSE = 0.5
_BROKEN = (OSError, http.client.HTTPException)


class Patience(NamedTuple):
    """How long a client waits, in seconds, and how often it tries again."""

    connect: float
    silence: float
    whole: float
    retries: int
    retrying: float


class Got:
    """An object that is being downloaded."""

    def __init__(self, dav: WebDav, path: str) -> None:
        self._dav = dav
        self._path = path
        self._until = time.monotonic() + dav.patience.whole
        self._begin()
        self._tag = self._answer.headers.get("ETag", "")
        self.meta = _meta(path, self._answer)

    def _begin(self, **request: Any) -> None:
        got = self._dav.begin("GET", self._path, until=self._until, **request)
        self._connection, self._answer = got
        self._abandon = weakref.finalize(self, close_both, *got)

    def bytes(self) -> Piece:
        """All of it."""
        return b"".join(self.stream())

    def stream(self, min_chunk_size: int = CHUNK) -> Iterator[Piece]:
        """Its pieces; after a broken connection, the rest is asked for."""
        size = self.meta["size"]
        done = 0
        left = self._dav.patience.retries
        while done < size:
            try:
                piece = self._answer.read(min(min_chunk_size, size - done))
                if not piece:
                    raise http.client.IncompleteRead(b"", size - done)
            except _BROKEN as error:
                self._abandon()
                if not left or time.monotonic() > self._until:
                    raise DavError(f"{self._path} ends too early: {said(error)}") from None
                left -= 1
                self._again(done)
                continue
            done += len(piece)
            yield piece
        self._abandon.detach()
        self._dav.keep(self._connection, self._answer)

    def _again(self, done: int) -> None:
        headers = {"Range": f"bytes={done}-"}
        if self._tag.startswith('"'):  # no weak one matches
            headers["If-Match"] = self._tag
        self._begin(headers=headers)
        _demand_part(self._answer, f"{done}-")
        if self._answer.headers.get("ETag", "") != self._tag:
            raise DavError(f"{self._path} was replaced while it was downloaded")


class WebDav:
    """The objects below a URL of http or https.

    ``ca`` is a PEM certificate to be trusted besides the system's, ``login`` is "USER:PASSWORD".
    A missing object raises FileNotFoundError, and all else `DavError`.
    """

    def __init__(self, url: str, ca: bytes, login: str, patience: Patience) -> None:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError(f"{url} names no host")
        self.patience = patience
        self._url = url.rstrip("/")
        self._host, self._port = parts.hostname, parts.port
        self._root = quote(parts.path.strip("/"), safe="/%!$&'()*+,;=:@")
        self._headers = {"Connection": "keep-alive"}
        if login:
            self._headers["Authorization"] = basic(login)
        self._context: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._context = ssl.create_default_context()
            # Python 3.13 refuses authorities without a key usage; obstore does not.
            self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if ca:
                self._context.load_verify_locations(cadata=ca.decode("ascii", "replace"))
        self._new()  # ValueError, or InvalidURL
        self._idle: deque[tuple[int, http.client.HTTPConnection]] = deque()
        # no __del__, since a collection of garbage may end the sockets before it
        weakref.finalize(self, _close_all, self._idle)

    def head(self, path: str) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            with self._asked("HEAD", path) as answer:
                return _meta(path, answer)

        return self._patiently(read)

    def get(self, path: str) -> Got:
        return Got(self, path)

    def get_range(self, path: str, *, start: int, length: int) -> bytes:
        part = f"{start}-{start + length - 1}"

        def read() -> bytes:
            with self._asked("GET", path, headers={"Range": f"bytes={part}"}) as answer:
                _demand_part(answer, f"{part}/")
                content = answer.read(length)
                if len(content) < length:
                    raise http.client.IncompleteRead(content, length - len(content))
                return content

        return self._patiently(read)

    def put(self, path: str, data: bytes | mmap, *, use_multipart: bool = False) -> None:  # noqa: ARG002
        """Write or replace an object; in one request, as WebDAV has no uploads in parts."""

        def write() -> None:
            with self._asked("PUT", path, body=data):
                pass

        try:
            self._patiently(write)
        except DavError as error:
            if error.status not in (404, 409):
                raise
            self._make_folders(path)  # some servers do not for an upload
            self._patiently(write)

    def _make_folders(self, path: str) -> None:
        """Make the folders of an object that are missing."""
        folders = path.split("/")[:-1]
        for end in range(1, len(folders) + 1):
            self._make_folder("/".join(folders[:end]) + "/")

    def _make_folder(self, path: str) -> None:
        def make() -> None:
            with self._asked("MKCOL", path):
                pass

        try:
            self._patiently(make)
        except DavError as error:
            if error.status != 405:  # it exists
                raise

    def delete(self, path: str) -> None:
        def delete() -> None:
            with self._asked("DELETE", path):
                pass

        self._patiently(delete)

    def list_with_delimiter(self, prefix: str) -> dict[str, Any]:
        """The objects of a folder, and the folders in it, by their paths from the server's top.

        None if there is no such folder.
        """

        def read() -> Listing:
            with self._asked("PROPFIND", f"{prefix}/", headers={"Depth": "1"}) as answer:
                return read_listing(answer)

        try:
            found = self._patiently(read)
        except FileNotFoundError:
            found = Listing()
        except (xml.ParseError, ValueError) as error:
            raise DavError(f"the answer to PROPFIND of {prefix} cannot be used: {error}") from None
        return {"objects": found.objects, "common_prefixes": found.folders}

    def begin(
        self, method: str, path: str, **request: Any
    ) -> tuple[http.client.HTTPConnection, Answer]:
        """Send a request until there is an answer.  FileNotFoundError, DavError."""
        return self._patiently(lambda: self._once(method, path, **request))

    def keep(self, connection: http.client.HTTPConnection, answer: Answer) -> None:
        """Use a connection again, unless its answer has more than is worth reading."""
        answer.timed.until = time.monotonic() + self.patience.silence
        with contextlib.suppress(*_BROKEN):
            answer.read(REFUSAL)
        if answer.isclosed() and not answer.will_close and len(self._idle) < KEPT:
            self._idle.append((os.getpid(), connection))
        else:
            close_both(connection, answer)

    @contextlib.contextmanager
    def _asked(self, method: str, path: str, **request: Any) -> Iterator[Answer]:
        connection, answer = self._once(method, path, **request)
        try:
            yield answer
        except BaseException:
            close_both(connection, answer)
            raise
        self.keep(connection, answer)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call again after a failure of the connection or the server, with growing pauses."""
        until = time.monotonic() + self.patience.retrying
        pause = PAUSE
        for left in range(self.patience.retries, -1, -1):
            try:
                return call()
            except FileNotFoundError:
                raise
            except (*_BROKEN, Failed) as error:
                if not left or time.monotonic() + pause > until:
                    raise DavError(said(error)) from None
            time.sleep(pause)
            pause *= 2
        raise AssertionError

    def _once(
        self,
        method: str,
        path: str,
        *,
        body: bytes | mmap | None = None,
        headers: Any = None,
        until: float = 0,
    ) -> tuple[http.client.HTTPConnection, Answer]:
        """Send a request, on a kept connection if there is one that the server has not closed.

        ``until``: when the content of the answer must be there; by default, as ever a transfer.
        """
        target = "/".join(part for part in (self._root, quote(path)) if part)
        given = {**self._headers, **(headers or {})}
        silence = self.patience.silence
        if body is not None:
            given["Content-Length"] = str(len(body))
        while True:
            try:
                process, connection = self._idle.pop()
            except IndexError:
                connection, kept = self._connect(), False
            else:
                kept = True
                if process != os.getpid():  # who forked this one gets answers on it
                    connection.close()
                    continue
            try:
                cut = False
                try:
                    sent = None if body is None else pieces(body, connection.sock, silence)
                    connection.request(method, f"/{target}", body=sent, headers=given)
                except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                    cut = True  # who refuses an upload need not read it: there may be an answer
                connection.sock.settimeout(silence)
                answer = cast("Answer", connection.getresponse())
                while answer.status < 200:  # it is to be continued
                    # else begin() returns at once
                    answer.headers = None  # type: ignore[assignment]
                    answer.begin()
                if cut and answer.status < 300:
                    close_both(connection, answer)
                    raise ConnectionResetError("the server has not read all of it")
            except _BROKEN as error:
                connection.close()
                if kept and not isinstance(error, TimeoutError):
                    continue
                raise
            if is_success(method, given, answer.status):
                answer.timed.until = until or time.monotonic() + self.patience.whole
                return connection, answer
            content = b""
            with contextlib.suppress(*_BROKEN):
                content = answer.read(REFUSAL)
            if body is None:
                self.keep(connection, answer)
            else:  # who refuses an upload may not have read all of it
                close_both(connection, answer)
            if answer.status in (404, 410) and method not in ("PUT", "MKCOL"):
                raise FileNotFoundError(path)
            text = (
                f"Error performing {method} {self._url}/{path} - Server returned non-2xx status"
                f" code: {answer.status} {answer.reason}: {content.decode(errors='replace')}"
            )
            kind = KINDS.get(answer.status, Failed if answer.status >= 500 else DavError)
            raise kind(text, answer.status)

    def _new(self) -> http.client.HTTPConnection:
        """A connection that is not connected."""
        wait = self.patience.connect
        # without a port, the last part of an IPv6 address would be taken for one
        if self._context:
            return http.client.HTTPSConnection(
                self._host,
                self._port or http.client.HTTPSConnection.default_port,
                timeout=wait,
                context=self._context,
            )
        port = self._port or http.client.HTTPConnection.default_port
        return http.client.HTTPConnection(self._host, port, timeout=wait)

    def _connect(self) -> http.client.HTTPConnection:
        connection = self._new()
        connection.response_class = Answer
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            kind = {9: "NotValidYet", 10: "Expired"}.get(error.verify_code, "Other")
            raise DavError(f"InvalidCertificate({kind}): {error.verify_message}") from None
        connection.sock.settimeout(self.patience.silence)
        return connection


def _close_all(idle: deque[tuple[int, http.client.HTTPConnection]]) -> None:
    for _, connection in idle:
        connection.close()


def _demand_part(answer: http.client.HTTPResponse, part: str) -> None:
    """DavError unless an answer has the part of an object that begins so."""
    found = answer.headers.get("Content-Range", "")
    if answer.status != 206 or not found.startswith(f"bytes {part}"):
        raise DavError(
            f"it does not send the part that was asked for: {answer.status} {shown(found)}"
        )


def _meta(path: str, answer: http.client.HTTPResponse) -> dict[str, Any]:
    try:
        size = size_of(answer.headers["Content-Length"])
    except ValueError as error:
        raise DavError(f"its answer has no valid Content-Length: {error}") from None
    return {"path": path, "size": size, "last_modified": date_of(answer.headers["Last-Modified"])}
