"""Downloads that are verified, resumed, and kept under their SHA-256."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from fabric.errors import SourceError
from fabric.trove.files import fsync, sha256_of
from fabric.trove.stop import Stop

Progress = Callable[[str], None]

_CHUNK = 256 * 1024
#: Seconds without a byte after which a server counts as gone.
_SILENCE = 60.0
_TRIES = 4


class Downloads:
    """The directory of finished downloads, shared by any number of processes.

    ``stop`` ends a download under way.
    """

    def __init__(self, directory: Path, progress: Progress, stop: Stop) -> None:
        self.directory = directory
        self.progress = progress
        self._stop = stop

    def get(
        self, sha256: str, url: str, headers: Mapping[str, str] = {}, *, ca: str | None = None
    ) -> Path:
        """The file with that digest, downloaded from ``url`` unless it is here already.

        What a broken connection left is continued.  SourceError if it cannot be had, or is
        something else.
        """
        name = shown(url).rpartition("/")[2]
        with self._reserved(sha256) as partial:
            if (done := self.find(sha256)) is not None:
                return done
            self._download(url, headers, ca, partial, name)
            self._settle(partial, sha256, shown(url))
        return self.directory / sha256

    def any_of(self, url: str) -> tuple[Path, str]:
        """What stands at ``url`` now, whatever it is: the file and its digest (for new pins)."""
        name = shown(url).rpartition("/")[2]
        with self._reserved("url-" + hashlib.sha256(url.encode()).hexdigest()) as partial:
            partial.write_bytes(b"")  # something else may stand there by now
            self._download(url, {}, None, partial, name)
            sha256 = sha256_of(partial)
            self._settle(partial, sha256, shown(url))
        return self.directory / sha256, sha256

    def find(self, sha256: str) -> Path | None:
        """The finished download of that digest, if it is here and whole."""
        file = self.directory / sha256
        if not file.exists():
            return None
        if sha256_of(file) != sha256:  # damaged since
            file.unlink(missing_ok=True)
            return None
        return file

    def adopt(self, file: Path, sha256: str, origin: str) -> Path:
        """Take in a file that something else downloaded.  SourceError if it is a wrong one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._settle(file, sha256, origin)
        return self.directory / sha256

    def gc(self, older_than: float, *, dry_run: bool = False) -> int:
        """Remove what is older than that many seconds, and not coming just now; return how many
        bytes that frees.
        """
        freed = 0
        for path in self.directory.glob("*"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = path.stat()
                if status.st_mtime < time.time() - older_than:
                    if not dry_run:
                        path.unlink()
                    freed += status.st_size
        return freed

    @contextlib.contextmanager
    def _reserved(self, name: str) -> Iterator[Path]:
        """The partial file of a download, ours alone."""
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.directory / f"{name}.part"
        while True:
            with partial.open("ab") as file:
                self._lock(file)
                # whoever held it may have renamed it away
                with contextlib.suppress(FileNotFoundError):
                    if partial.stat().st_ino == os.fstat(file.fileno()).st_ino:
                        try:
                            yield partial
                        finally:
                            with contextlib.suppress(FileNotFoundError):
                                if not partial.stat().st_size:
                                    partial.unlink()
                        return

    def _lock(self, file: IO[bytes]) -> None:
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process is downloading it
                self._stop.pause(0.2)

    def _settle(self, file: Path, sha256: str, origin: str) -> None:
        found = sha256_of(file)
        if found != sha256:
            file.unlink()
            raise SourceError(
                f"{origin}: not what the lorry pins: its SHA-256 is {found}, not {sha256};"
                " if the new one is right, put it into the lorry"
            )
        fsync(file)
        file.replace(self.directory / sha256)
        fsync(self.directory)

    def _download(
        self, url: str, headers: Mapping[str, str], ca: str | None, partial: Path, name: str
    ) -> None:
        context = ssl.create_default_context(cafile=ca) if url.startswith("https:") else None
        for attempt in range(1, _TRIES + 1):
            try:
                return self._attempt(url, headers, context, partial, name)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # the rest that we ask for does not exist: start again
                    partial.write_bytes(b"")
                elif error.code < 500 or attempt == _TRIES:
                    reason = f"the server says {error.code} {error.reason}"
                    raise SourceError(f"{shown(url)}: cannot be downloaded: {reason}") from None
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
                local = isinstance(error, OSError) and getattr(error, "filename", None)
                if attempt == _TRIES or local or url.startswith("file:"):
                    raise SourceError(
                        f"{shown(url)}: cannot be downloaded: {reason};"
                        " what came so far is kept, so try again"
                    ) from None
            self._stop.pause(attempt)
        raise SourceError(f"{shown(url)}: cannot be downloaded")

    def _attempt(
        self,
        url: str,
        headers: Mapping[str, str],
        context: ssl.SSLContext | None,
        partial: Path,
        name: str,
    ) -> None:
        have = partial.stat().st_size
        request = urllib.request.Request(url, headers={"User-Agent": "distbuild", **headers})
        if have:
            request.add_header("Range", f"bytes={have}-")
        with urllib.request.urlopen(request, timeout=_SILENCE, context=context) as response:
            continued = getattr(response, "status", None) == 206
            have = have if continued else 0
            rest = response.headers.get("Content-Length")
            total = have + int(rest) if rest else 0
            with partial.open("r+b") as file:
                file.truncate(have)
                file.seek(have)
                self._copy(response, file, have, total, name)
                if total and file.tell() < total:
                    raise ConnectionResetError("the connection ended early")

    def _copy(self, response: IO[bytes], file: IO[bytes], have: int, total: int, name: str) -> None:
        news = Throttle(self.progress)
        news(f"{name}: downloading{_of(have, total)}")
        while piece := response.read(_CHUNK):
            self._stop.check()
            file.write(piece)
            have += len(piece)
            news(f"{name}: downloading{_of(have, total)}")


class Throttle:
    """Passes on the first message, and later ones once in ``every`` seconds."""

    def __init__(self, progress: Progress, every: float = 2.0) -> None:
        self._progress = progress
        self._every = every
        self._next = 0.0

    def __call__(self, message: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every
            self._progress(message)


def fetch_text(url: str, headers: Mapping[str, str], ca: str | None) -> tuple[str, str, str]:
    """A small page: its text, its media type, its final URL.  OSError if it cannot be had."""
    context = ssl.create_default_context(cafile=ca) if url.startswith("https:") else None
    request = urllib.request.Request(url, headers={"User-Agent": "distbuild", **headers})
    with urllib.request.urlopen(request, timeout=_SILENCE, context=context) as response:
        text = response.read(256 * 1024 * 1024).decode()
        return text, response.headers.get_content_type(), response.geturl()


def shown(url: str) -> str:
    """A URL fit for messages: without a password and parameters."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    path = path.partition("?")[0].partition("#")[0]
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _of(have: int, total: int) -> str:
    size = f" of {total / 1e6:.1f} MB" if total else ""
    return f" {have / 1e6:.1f}{size}" if have else size
