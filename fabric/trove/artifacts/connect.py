"""Opens the backend for the URL of an artifact store."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fabric.errors import StoreError
from fabric.trove.artifacts.backend import Backend, Haste
from fabric.trove.artifacts.directory import Directory
from fabric.trove.artifacts.errors import brief, name_of, password_of


def connect(
    url: str,
    scratch: Path,
    ca: Path | None,
    password: Path | None,
    named: str = "artifacts",
    haste: Haste | None = None,
) -> Backend:
    """The backend for a plain path or a URL; the other arguments are as for `Store`.

    With ``haste``, a remote store has so little time, and no second try.  StoreError if there is
    no such backend.  The store is not accessed.
    """
    certificate = _secret(ca, "artifacts-ca")
    login = _secret(password, password_of(named)).decode(errors="replace").strip()
    try:
        if url.startswith(("reapi:", "reapis:")):
            from fabric.trove.artifacts.reapi import Cas  # loads gRPC

            return Cas(url, ca, login, haste)
        return _backend(url, scratch, certificate, login, haste)
    except ImportError as error:
        needed = "obstore" if str(error.name).startswith("obstore") else "'distbuild[reapi]'"
        raise StoreError(
            f"{url}: needs {error.name}, which is not installed: pip install {needed}"
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever obstore raises about a bad URL
        raise StoreError(
            f"{url}: cannot be used as an artifact store: {brief(error)}; give a directory or a URL"
            f" of file:, http:, https:, s3:, gs:, az:, reapi: or reapis: as {name_of(named)}"
        ) from None


def _secret(file: Path | None, setting: str) -> bytes:
    """The content of the file that a setting names; empty if it names none."""
    try:
        return file.read_bytes() if file else b""
    except OSError as error:
        raise StoreError(f"{file}: cannot be read: {error.strerror}; see `{setting}`") from None


def _backend(url: str, scratch: Path, ca: bytes, login: str, haste: Haste | None) -> Backend:
    if url.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        return Directory(Path(unquote(urlsplit(url).path)))
    if "://" not in url:
        return Directory(Path(url).expanduser().absolute())
    from fabric.trove.artifacts.remote import (
        Remote,  # loads obstore, which a cached build does not need
    )

    notes = scratch / "uses" / hashlib.sha256(url.encode()).hexdigest()[:16]
    return Remote(url, notes, ca, login, haste)
