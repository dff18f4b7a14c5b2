"""Downloads files, verifies and resumes them, and keeps them under their SHA-256."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import ssl
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from fabric import bounds
from fabric.digest import Digest
from fabric.errors import NO_ROOM, SourceError, command
from fabric.host.cancel import CancelToken
from fabric.host.locks import locked, no_wait
from fabric.host.progress import Progress, Throttle
from fabric.host.shared_files import fsync, sha256_of

_CHUNK = 256 * 1024
_TRIES = 4


class WrongDigest(SourceError):
    """The offered file is not the one that a lorry pins."""

    def __init__(self, pinned_by: str, expected: str, offered: str, origin: str) -> None:
        super().__init__(
            f"{pinned_by}: the offered file is not the pinned one, so it is refused\n"
            f"  pinned:  SHA-256 {expected}\n"
            f"  offered: SHA-256 {offered}\n"
            f"  by:      {origin}\n"
            "Either a mirror, a proxy or somebody on the way has changed it, or upstream has"
            " released other files under the same version. Compare the digest with one that"
            " upstream publishes elsewhere, in a signed announcement for example. Only if the"
            " offered one is right, remove the old digest and tree, and `fabric-initiator lorry"
            " update` pins what is offered."
        )


class Downloads:
    """The directory of finished downloads, shared by any number of processes.

    ``cancel`` ends a download under way.
    """

    def __init__(self, directory: Path, progress: Progress, cancel: CancelToken) -> None:
        self.directory = directory
        self.progress = progress
        self._cancel = cancel

    def path(self, sha256: Digest) -> Path:
        """The path of the finished download of that digest; it need not exist."""
        return self.directory / sha256

    def get(
        self,
        sha256: Digest,
        url: str,
        headers: Mapping[str, str] = {},
        *,
        ca: str | None = None,
        pinned_by: str = "",
    ) -> Path:
        """The file with that digest, downloaded from ``url`` unless it exists.

        A partial download is continued.  SourceError if it fails; of that, WrongDigest if the file
        has another digest.  ``pinned_by`` names the pin in that message.
        """
        name = shown(url).rpartition("/")[2]
        with self._reserved(sha256) as partial:
            if (done := self.find(sha256)) is not None:
                return done
            continued = self._download(url, headers, ca, partial, name)
            if continued and sha256_of(partial) != sha256:
                self.progress(f"{name}: an earlier part does not match the rest: starting again")
                partial.write_bytes(b"")
                self._download(url, headers, ca, partial, name)
            self._accept(partial, sha256, shown(url), pinned_by)
        return self.path(sha256)

    def any_of(self, url: str) -> tuple[Path, Digest]:
        """The present file at ``url`` and its digest (for new pins)."""
        name = shown(url).rpartition("/")[2]
        with self._reserved("url-" + hashlib.sha256(url.encode()).hexdigest()) as partial:
            partial.write_bytes(b"")  # the file may have changed since
            self._download(url, {}, None, partial, name)
            sha256 = Digest(sha256_of(partial))
            self._accept(partial, sha256, shown(url), "")
        return self.path(sha256), sha256

    def find(self, sha256: Digest) -> Path | None:
        """The finished download of that digest, if it exists and is undamaged."""
        file = self.path(sha256)
        if not file.exists():
            return None
        if sha256_of(file) != sha256:  # damaged since
            file.unlink(missing_ok=True)
            return None
        return file

    def adopt(self, file: Path, sha256: Digest, origin: str, pinned_by: str) -> Path:
        """Move a file that another program downloaded here.  WrongDigest if it is another file."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._accept(file, sha256, origin, pinned_by)
        return self.path(sha256)

    def gc(self, older_than: float, *, dry_run: bool = False) -> int:
        """Remove downloads older than so many seconds, except running ones; return how many bytes
        that frees.
        """
        freed = 0
        for path in self.directory.glob("*"):
            with (
                contextlib.suppress(FileNotFoundError, BlockingIOError),
                locked(path, wait=no_wait, create=False),
            ):
                status = path.stat()
                if status.st_mtime < time.time() - older_than:
                    if not dry_run:
                        path.unlink()
                    freed += status.st_size
        return freed

    @contextlib.contextmanager
    def _reserved(self, name: str) -> Iterator[Path]:
        """The partial file of a download, locked."""
        partial = self.directory / f"{name}.part"
        with locked(partial, wait=lambda: self._cancel.pause(0.2)):
            try:
                yield partial
            finally:
                with contextlib.suppress(FileNotFoundError):
                    if not partial.stat().st_size:
                        partial.unlink()

    def _accept(self, file: Path, sha256: Digest, origin: str, pinned_by: str) -> None:
        found = sha256_of(file)
        if found != sha256:
            file.unlink()
            raise WrongDigest(pinned_by or origin, sha256, found, origin)
        fsync(file)
        file.replace(self.path(sha256))
        fsync(self.directory)

    def _download(
        self, url: str, headers: Mapping[str, str], ca: str | None, partial: Path, name: str
    ) -> bool:
        """Complete the partial file; true if it was continued, so that its parts may not match."""
        continued = False
        for attempt in range(1, _TRIES + 1):
            continued = continued or partial.stat().st_size > 0
            try:
                if url.startswith("file:"):
                    self._copy_local(url, partial, name)
                else:
                    self._attempt(url, headers, ca, partial, name)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # the requested range does not exist: start again
                    partial.write_bytes(b"")
                elif error.code < 500 or attempt == _TRIES:
                    reason = f"the server says {error.code} {error.reason}"
                    raise SourceError(f"{shown(url)}: cannot be downloaded: {reason}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise _no_room(url, self.directory) from None
                cause = getattr(error, "reason", error)
                reason = getattr(cause, "strerror", None) or str(cause) or type(error).__name__
                hopeless = isinstance(error, ValueError) or getattr(error, "filename", None)
                if attempt == _TRIES or hopeless or url.startswith("file:"):
                    again = "; the partial file is kept; try again" * (attempt == _TRIES)
                    raise SourceError(
                        f"{shown(url)}: cannot be downloaded: {reason}{again}"
                    ) from None
            else:
                return continued
            self._cancel.pause(attempt)
        raise SourceError(f"{shown(url)}: cannot be downloaded")

    def _attempt(
        self, url: str, headers: Mapping[str, str], ca: str | None, partial: Path, name: str
    ) -> None:
        have = partial.stat().st_size
        more = {"Range": f"bytes={have}-"} if have else {}
        with _open(url, {**headers, **more}, ca) as response:
            have = have if response.status == 206 else 0
            rest = response.headers.get("Content-Length", "")
            total = have + int(rest) if rest.isdecimal() and rest.isascii() else 0
            with partial.open("r+b") as file:
                file.truncate(have)
                file.seek(have)
                self._copy(response.read1, file, have, total, name)
                if total and file.tell() < total:
                    raise ConnectionResetError("the connection ended early")

    def _copy_local(self, url: str, partial: Path, name: str) -> None:
        path = local_file(url)
        # a pipe would block, a device never end
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb", buffering=0) as source, partial.open("wb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError(f"{shown(url)}: cannot be imported: it is not a plain file")
            self._copy(source.read, file, 0, status.st_size, name)

    def _copy(
        self, read: Callable[[int], bytes], file: IO[bytes], have: int, total: int, name: str
    ) -> None:
        """Copy to the end.  ``read`` returns available bytes, and waits for the first one only."""
        news = Throttle(self.progress)
        news(f"{name}: downloading{_of(have, total)}")
        since, due = have, time.monotonic() + bounds.DOWNLOAD_SILENCE
        if total > bounds.DOWNLOAD:
            raise _too_large(name, total)
        while piece := read(_CHUNK):
            self._cancel.check()
            file.write(piece)
            have += len(piece)
            if have > bounds.DOWNLOAD:
                file.truncate(0)
                raise _too_large(name, have)
            news(f"{name}: downloading{_of(have, total)}")
            if (now := time.monotonic()) >= due:
                if have - since < bounds.DOWNLOAD_PACE:
                    raise TimeoutError(
                        f"too slow: {have - since} bytes in {bounds.DOWNLOAD_SILENCE} seconds"
                    )
                since, due = have, now + bounds.DOWNLOAD_SILENCE


def _too_large(name: str, size: int) -> SourceError:
    return SourceError(
        f"{name}: not downloaded: {size / 1e9:.1f} GB, and the limit is"
        f" {bounds.DOWNLOAD / 1e9:.1f} GB"
    )


def _no_room(url: str, directory: Path) -> SourceError:
    return SourceError(
        f"{shown(url)}: cannot be downloaded: no space left on the disk of {directory};"
        f" `{command('gc')}` frees some, and --cache or FABRIC_CACHE names another place"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects over HTTP only, never from https to http, and sends passwords to the first
    host only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = newurl.partition(":")[0].lower()
        if scheme not in ("http", "https") or (scheme == "http" and req.type == "https"):
            raise SourceError(f"{shown(req.full_url)}: refused: it redirects to {shown(newurl)}")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and made.host != req.host:
            made.remove_header("Authorization")
        return made


def _open(url: str, headers: Mapping[str, str], ca: str | None) -> http.client.HTTPResponse:
    """The response to a request over HTTP or HTTPS, through the user's proxy."""
    context = ssl.create_default_context(cafile=ca) if url.startswith("https:") else None
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "distbuild", **headers})
    response: http.client.HTTPResponse = opener.open(request, timeout=bounds.DOWNLOAD_SILENCE)
    return response


def local_file(url: str) -> Path:
    """The path of a file: URL.  SourceError if it names another machine."""
    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.unquote(parts.path)
    if parts.netloc not in ("", "localhost") or "\0" in path:
        raise SourceError(f"{shown(url)}: a file of another machine: write file:///PATH")
    return Path(path)


def fetch_text(url: str, headers: Mapping[str, str], ca: str | None) -> tuple[str, str, str]:
    """A small page: its text, media type and final URL.  OSError if that fails."""
    with _open(url, headers, ca) as response:
        data = response.read(bounds.INDEX_PAGE + 1)
        if len(data) > bounds.INDEX_PAGE:
            raise OSError(errno.EFBIG, f"more than {bounds.INDEX_PAGE} bytes")
        return data.decode(errors="replace"), response.headers.get_content_type(), response.geturl()


def shown(url: str) -> str:
    """A URL fit for messages: without a password and parameters."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    path = path.partition("?")[0].partition("#")[0]
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _of(have: int, total: int) -> str:
    size = f" of {total / 1e6:.1f} MB" if total else ""
    return f" {have / 1e6:.1f}{size}" if have or total else ""
