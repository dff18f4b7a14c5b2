"""Copies built steps from one store to another.

A manifest is copied with all its signatures, after the blobs that it names; then its
countersignature.  So an interrupted copy leaves no half step, and the next one goes on: what is
there is not sent again.
Everything is compared with its digest when it is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from fabric import bounds
from fabric.errors import DamagedError, StoreError
from fabric.host.cancel import CancelToken, no_check
from fabric.host.progress import Moved, unmoved
from fabric.host.shared_files import sha256_of
from fabric.jobs import Blob, Manifest
from fabric.trove.artifacts.manifests import apart, steps_of
from fabric.trove.artifacts.store import Sealed, Store
from fabric.trust.seal import UnsignedError


class Amount(msgspec.Struct):
    """How many steps, and how many bytes of blobs and copied manifests."""

    steps: int = 0
    bytes: int = 0


class Transfer(NamedTuple):
    """The result of copying steps."""

    copied: list[str]  # cache keys
    sent: Amount
    there: Amount  # before
    missing: list[str]  # keys that the source does not have
    refused: dict[str, str]  # key -> why its manifest does not count


class _Done(NamedTuple):
    key: str
    sent: int = 0  # bytes
    there: int = 0
    missing: bool = False
    refused: str = ""


def copy_steps(
    keys: Iterable[str],
    source: Store,
    to: Store,
    progress: Callable[[int, int, int], None],
) -> Transfer:
    """Copy those steps that ``to`` does not have, in parallel if a store is remote.

    ``progress`` is called with the steps that are dealt with, those that there are, and the bytes
    sent.  StoreError if a store cannot be read or written; what was copied before stays.
    """
    wanted = list(dict.fromkeys(keys))
    with to.reserve(wanted):
        before = to.has(wanted)
        to.use(before)
        rest = [key for key in wanted if key not in before]
        there = Amount(len(before), _bytes_of(before, to))
        result = Transfer([], Amount(), there, [], {})
        cancel = CancelToken()
        each = to.each if source.is_local else source.each
        try:
            for count, done in enumerate(each(lambda key: _copy(key, source, to, cancel), rest), 1):
                _add(done, result)
                progress(len(before) + count, len(wanted), result.sent.bytes)
        except BaseException:
            cancel.set()  # other threads end soon
            raise
    return result


def _add(done: _Done, result: Transfer) -> None:
    if done.missing:
        result.missing.append(done.key)
    elif done.refused:
        result.refused[done.key] = done.refused
    else:
        result.copied.append(done.key)
        result.sent.steps += 1
        result.sent.bytes += done.sent
        result.there.bytes += done.there


def _copy(key: str, source: Store, to: Store, cancel: CancelToken) -> _Done:
    cancel.check()
    try:
        found = source.sealed(key)
        if found is None:
            return _Done(key, missing=True)
        blobs = apart(found.manifest)
        there = to.there(blobs)
        own = _whole((blob for blob in blobs if blob.sha256 in there), to)
        files = fetch(found, source, own, cancel.check)
    except (UnsignedError, DamagedError) as error:
        return _Done(key, refused=str(error))
    to.put(found.manifest, files, found.data)
    if (countersignature := fetch_countersignature(key, source)) is not None:
        to.put_countersignature(key, countersignature)  # whoever signed it: readers check
    sizes = {blob.sha256: blob.size for blob in blobs}
    old = sum(size for sha256, size in sizes.items() if sha256 in there)
    return _Done(key, sent=sum(sizes.values()) - old + len(found.data), there=old)


def fetch(
    found: Sealed,
    source: Store,
    own: Mapping[str, Path] = {},
    check: Callable[[], None] = no_check,
    moved: Moved = unmoved,
) -> dict[str, bytes | Path]:
    """The verified files of a step, by sha256, for `Store.put`; those in ``own`` are not fetched.

    ``check`` is called repeatedly, and may raise; ``moved`` follows it.
    """
    blobs = {blob.sha256: blob for blob in apart(found.manifest) if blob.sha256 not in own}
    done, total = 0, sum(blob.size for blob in blobs.values())
    files: dict[str, bytes | Path] = {**own}
    for sha256, blob in blobs.items():  # not in parallel: steps are, in threads of the same pool
        check()
        moved(done, total)
        files[sha256] = source.path(blob, found.manifest.key, check)
        done += blob.size
    return files


def fetch_countersignature(key: str, source: Store) -> bytes | None:
    """The countersignature of a step; None if it cannot be read, for the step counts without it."""
    # S3 refuses access to a missing object if the user may not list the bucket
    with contextlib.suppress(StoreError):
        return source.countersignature(key)
    return None


def _whole(blobs: Iterable[Blob], store: Store) -> dict[str, Path]:
    """Those files of blobs in a store on this machine that are not damaged."""
    found = {}
    for blob in blobs:
        file = store.place(blob)
        with contextlib.suppress(OSError):  # removed just now
            if file and file.stat().st_size == blob.size and sha256_of(file) == blob.sha256:
                found[blob.sha256] = file
    return found


def made_from(store: Store, keys: Iterable[str], *, inside: bool = False) -> list[str]:
    """The steps ``keys`` and, by the manifests in a store, all that they were made from.

    With ``inside``, only what they contain.  StoreError if there are too many.
    """
    found = dict.fromkeys(keys)
    level = list(found)
    while level:
        below: dict[str, None] = {}
        for manifest in store.each(store.whole_manifest, level):
            steps = (_contents(manifest) if inside else steps_of(manifest)) if manifest else []
            below |= dict.fromkeys(key for key in steps if key not in found)
            if len(found) + len(below) > bounds.SHARED_STEPS:
                raise StoreError(
                    f"{store.url}: these steps are made from more than {bounds.SHARED_STEPS:,}:"
                    " name fewer at a time"
                )
        level = list(below)
        found |= below
    return list(found)


def _contents(manifest: Manifest) -> list[str]:
    return [one.key for artifact in manifest.artifacts for one in artifact.contents]


def _bytes_of(keys: Iterable[str], store: Store) -> int:
    """The bytes of all blobs of some steps; a blob of several of them counts once."""
    sizes = {
        blob.sha256: blob.size
        for manifest in store.each(store.whole_manifest, keys)
        for blob in apart(manifest)
    }
    return sum(sizes.values())
