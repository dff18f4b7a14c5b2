"""Speaks WebDAV with Python's own HTTP client, where obstore is not installed.

Machines that are built from source have no obstore, which is written in Rust.  The class has those
methods of obstore's stores that `fabric.trove.artifacts.remote` calls for a WebDAV server.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import socket
import ssl
import time
import xml.etree.ElementTree as xml
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from mmap import mmap
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import quote, unquote, urlsplit

from fabric.bounds import DAV_LISTING
from fabric.host.shared_files import CHUNK
from fabric.trove.artifacts.backend import basic

T = TypeVar("T")
Piece = bytes  # the class below has a method of that name

#: Most bytes of a refusal that are read.
REFUSAL = 4096
#: Most connections that are kept for the next request, about.
KEPT = 16
#: How deep elements nest in a list of a folder, at most.
DEEPEST = 16
#: Bytes of an upload that are sent at a time.
SENT = 64 * 1024
#: The first pause before a request is repeated, in seconds; each is twice the one before.
PAUSE = 0.5
_BROKEN = (OSError, http.client.HTTPException)
_DAV = "{DAV:}"


class DavError(Exception):
    """The server cannot be used, or refuses; texts and names are as obstore has them."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class PermissionDeniedError(DavError):
    """It refuses this user."""


class UnauthenticatedError(DavError):
    """It does not know this user."""


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
        self._held = False
        self._connection, self._answer = dav.begin("GET", path, until=self._until)
        self._held = True
        self._tag = self._answer.headers.get("ETag", "")
        self.meta = _meta(path, self._answer)

    def __del__(self) -> None:
        if self._held:
            _close(self._connection, self._answer)

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
                _close(self._connection, self._answer)
                if not left or time.monotonic() > self._until:
                    raise DavError(f"{self._path} ends too early: {said(error)}") from None
                left -= 1
                self._again(done)
                continue
            done += len(piece)
            yield piece
        self._held = False
        self._dav.keep(self._connection, self._answer)

    def _again(self, done: int) -> None:
        headers = {"Range": f"bytes={done}-"}
        if self._tag.startswith('"'):  # no weak one matches
            headers["If-Match"] = self._tag
        self._connection, self._answer = self._dav.begin(
            "GET", self._path, headers=headers, until=self._until
        )
        _demand_part(self._answer, f"{done}-")
        if self._answer.headers.get("ETag", "") != self._tag:
            raise DavError(f"{self._path} was replaced while it was downloaded")


class _Timed(io.RawIOBase):
    """Reads an answer from a socket: only until ``until``, however slowly it comes.

    At first, this is when the head must be there: after the silence that the socket allows.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._raw = connected.makefile("rb", buffering=0)
        self._silence = connected.gettimeout() or 0
        self.until = time.monotonic() + self._silence

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(min(self._silence, _left(self.until)))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, connected: socket.socket, **more: Any) -> None:
        self.timed = _Timed(connected)
        super().__init__(cast("socket.socket", self.timed), **more)


def _left(until: float) -> float:
    """The seconds until then.  TimeoutError if it is past."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _pieces(body: bytes | mmap, connected: socket.socket, seconds: float) -> Iterator[bytes]:
    """The pieces of an upload, which altogether may take so long to be sent."""
    until = time.monotonic() + seconds
    for start in range(0, len(body), SENT):
        connected.settimeout(_left(until))
        yield body[start : start + SENT]


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
            if ca:
                self._context.load_verify_locations(cadata=ca.decode("ascii", "replace"))
        self._new()  # ValueError, or InvalidURL
        self._idle: deque[tuple[int, http.client.HTTPConnection]] = deque()

    def __del__(self) -> None:
        for _, connection in getattr(self, "_idle", ()):
            connection.close()

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

        def read() -> _Listing:
            with self._asked("PROPFIND", f"{prefix}/", headers={"Depth": "1"}) as answer:
                return _listing(answer)

        try:
            found = self._patiently(read)
        except FileNotFoundError:
            found = _Listing()
        except (xml.ParseError, ValueError) as error:
            raise DavError(f"the answer to PROPFIND of {prefix} cannot be used: {error}") from None
        return {"objects": found.objects, "common_prefixes": found.folders}

    def begin(
        self, method: str, path: str, **request: Any
    ) -> tuple[http.client.HTTPConnection, _Answer]:
        """Send a request until there is an answer.  FileNotFoundError, DavError."""
        return self._patiently(lambda: self._once(method, path, **request))

    def keep(self, connection: http.client.HTTPConnection, answer: _Answer) -> None:
        """Use a connection again, unless its answer has more than is worth reading."""
        answer.timed.until = time.monotonic() + self.patience.silence
        with contextlib.suppress(*_BROKEN):
            answer.read(REFUSAL)
        if answer.isclosed() and not answer.will_close and len(self._idle) < KEPT:
            self._idle.append((os.getpid(), connection))
        else:
            _close(connection, answer)

    @contextlib.contextmanager
    def _asked(self, method: str, path: str, **request: Any) -> Iterator[_Answer]:
        connection, answer = self._once(method, path, **request)
        try:
            yield answer
        except BaseException:
            _close(connection, answer)
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
            except (*_BROKEN, _Failed) as error:
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
    ) -> tuple[http.client.HTTPConnection, _Answer]:
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
                    sent = None if body is None else _pieces(body, connection.sock, silence)
                    connection.request(method, f"/{target}", body=sent, headers=given)
                except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                    cut = True  # who refuses an upload need not read it: there may be an answer
                connection.sock.settimeout(silence)
                answer = cast("_Answer", connection.getresponse())
                while answer.status < 200:  # it is to be continued
                    answer.headers = None  # type: ignore[assignment]
                    answer.begin()
                if cut and answer.status < 300:
                    _close(connection, answer)
                    raise ConnectionResetError("the server has not read all of it")
            except _BROKEN as error:
                connection.close()
                if kept and not isinstance(error, TimeoutError):
                    continue
                raise
            if _is_success(method, given, answer.status):
                answer.timed.until = until or time.monotonic() + self.patience.whole
                return connection, answer
            content = b""
            with contextlib.suppress(*_BROKEN):
                content = answer.read(REFUSAL)
            if body is None:
                self.keep(connection, answer)
            else:  # who refuses an upload may not have read all of it
                _close(connection, answer)
            if answer.status in (404, 410) and method not in ("PUT", "MKCOL"):
                raise FileNotFoundError(path)
            text = (
                f"Error performing {method} {self._url}/{path} - Server returned non-2xx status"
                f" code: {answer.status} {answer.reason}: {content.decode(errors='replace')}"
            )
            kind = _KINDS.get(answer.status, _Failed if answer.status >= 500 else DavError)
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
        connection.response_class = _Answer
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            kind = {9: "NotValidYet", 10: "Expired"}.get(error.verify_code, "Other")
            raise DavError(f"InvalidCertificate({kind}): {error.verify_message}") from None
        connection.sock.settimeout(self.patience.silence)
        return connection


def _is_success(method: str, headers: Mapping[str, str], status: int) -> bool:
    """Whether an answer is one to the request, not to another one."""
    if status == 207:
        return method == "PROPFIND"
    if status == 206:
        return "Range" in headers
    return status < 300 and method != "PROPFIND"


def _close(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
    """Close a connection; its answer has it, too, and would keep it open."""
    answer.close()
    connection.close()


class _Failed(DavError):
    """The server fails, maybe not the next time."""


_KINDS = {401: UnauthenticatedError, 403: PermissionDeniedError, 429: _Failed}


def said(error: Exception) -> str:
    """What an exception of the connection means."""
    if type(error) in (http.client.BadStatusLine, http.client.UnknownProtocol):
        return f"its answer is not HTTP: {error}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Listing:
    """Collects the members of a folder from an answer to PROPFIND, as the target of a parser.

    It holds no more of the answer than these.  ValueError if the answer is something else.
    """

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self.folders: list[str] = []
        self._open: list[str] = []  # elements
        self._text: list[str] = []  # of the innermost one
        self._here: dict[str, str] = {}  # name -> text, in this propstat
        self._member: dict[str, str] = {}  # name -> text, in this response

    def doctype(self, *_: object) -> None:
        raise ValueError("it has a DOCTYPE")  # whose entities may be endless

    def start(self, tag: str, _: object) -> None:
        if not self._open and tag != f"{_DAV}multistatus":
            raise ValueError("it is a list of no folder")
        if len(self._open) == DEEPEST:
            raise ValueError("it is nested too deeply")
        self._open.append(tag)
        self._text = []

    def data(self, text: str) -> None:
        if self._name():
            self._text.append(text)

    def end(self, _: str) -> None:
        if name := self._name():
            known = self._member if name == "href" else self._here
            known[name] = "".join(self._text)
        self._open.pop()
        if len(self._open) == 1:
            self._add(self._member)
            self._member = {}
        elif len(self._open) == 2:
            # the server does not tell those of another status
            if self._here.pop("status", "").split()[1:2] == ["200"]:
                self._member |= self._here
            self._here = {}

    def _name(self) -> str:
        """That of the innermost element; "" unless it is one to read."""
        name = self._open[-1].removeprefix(_DAV)
        return name if _DEPTHS.get(name) == len(self._open) else ""

    def _add(self, member: dict[str, str]) -> None:
        path = unquote(urlsplit(member.get("href", "")).path).strip("/")
        if "collection" in member:
            self.folders.append(path)
            return
        changed = member.get("getlastmodified")
        if not changed:  # gc would take it for an old one
            raise ValueError(f"{path} has no date")
        size = _size(member.get("getcontentlength"))
        self.objects.append({"path": path, "size": size, "last_modified": _date(changed)})

    def close(self) -> None:
        pass


#: The elements that `_Listing` reads, and how deep they are in multistatus/response/propstat/prop.
_DEPTHS = {"href": 3, "status": 4, "getcontentlength": 5, "getlastmodified": 5, "collection": 6}


def _listing(answer: http.client.HTTPResponse) -> _Listing:
    found = _Listing()
    parser = xml.XMLParser(target=found)
    read = 0
    while piece := answer.read(CHUNK):
        read += len(piece)
        if read > DAV_LISTING:
            raise DavError(f"a list of a folder has more than {DAV_LISTING:,} bytes")
        parser.feed(piece)
    if answer.length:  # it ended before
        raise http.client.IncompleteRead(b"", answer.length)
    parser.close()
    return found


def _demand_part(answer: http.client.HTTPResponse, part: str) -> None:
    """DavError unless an answer has the part of an object that begins so."""
    found = answer.headers.get("Content-Range", "")
    if answer.status != 206 or not found.startswith(f"bytes {part}"):
        raise DavError(
            f"it does not send the part that was asked for: {answer.status} {_shown(found)}"
        )


def _meta(path: str, answer: http.client.HTTPResponse) -> dict[str, Any]:
    try:
        size = _size(answer.headers["Content-Length"])
    except ValueError as error:
        raise DavError(f"its answer has no valid Content-Length: {error}") from None
    return {"path": path, "size": size, "last_modified": _date(answer.headers["Last-Modified"])}


def _size(text: str | None) -> int:
    """A number of bytes; ValueError if it is none."""
    if not re.fullmatch("[0-9]{1,18}", text or ""):
        raise ValueError(f"{_shown(text)} is no size")
    return int(text or "")


def _date(text: str | None) -> datetime:
    """A date of HTTP; ValueError if it is none."""
    if not text:
        return datetime.fromtimestamp(0, UTC)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{_shown(text)} is no date") from None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _shown(text: str | None) -> str:
    return repr(text and text[:60])
