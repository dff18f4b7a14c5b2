"""Finds steps that others have built in their stores: substituters, which are only read.

Each is asked in the order of the settings.  Nothing that one of them does costs more than time:
what a trusted key did not sign is not there, what does not match its digest is not taken, and
waiting has a bound: `bounds.SUBSTITUTE_ANSWER` for the manifest, and for the artifacts the time
that the step took to build.  One that did not answer in time rests: no program of the machine asks
it for `bounds.SUBSTITUTER_REST`.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fabric import bounds
from fabric.errors import DamagedError, StoreError
from fabric.host.cancel import CancelToken, TooSlow, abandonable
from fabric.host.progress import Moved
from fabric.jobs import Manifest
from fabric.trove.artifacts.backend import Haste
from fabric.trove.artifacts.store import Sealed, Store
from fabric.trove.artifacts.transfer import fetch, fetch_countersignature
from fabric.trust.seal import UnsignedError

#: Names of errors, of obstore and of our client, with which a server answers that it refuses.
_ANSWERS = ("PermissionDeniedError", "UnauthenticatedError")


class Substitute(NamedTuple):
    """A step that a substituter has, with all that `Store.put` needs."""

    url: str
    manifest: Manifest
    data: bytes  # as `Sealed`
    files: Mapping[str, bytes | Path]
    countersignature: bytes | None  # as it is there: readers check it


def haste() -> Haste:
    """The time that a client of a substituter has."""
    return Haste(bounds.SUBSTITUTE_ANSWER, bounds.SUBSTITUTE_TIME)


class Substituters:
    """Stores to ask, in order.  Programs that share the folder ``resting`` share who rests."""

    def __init__(self, stores: Sequence[Store], resting: Path) -> None:
        self._stores = stores
        self._resting = resting

    def find(
        self,
        key: str,
        cancel: CancelToken,
        said: Callable[[str], None],
        moved: Moved,
    ) -> Substitute | None:
        """The step ``key``; None if no substituter has it, or in time.

        ``said`` is told, in a line, why one that has it does not count; ``moved`` follows the
        artifacts.  Cancelled soon after ``cancel`` is set.
        """
        until: float | None = None  # for the artifacts of all substituters together
        for store in self._stores:
            url = store.shown
            if until is not None and time.monotonic() >= until:
                break
            if self._rests(store):
                continue
            try:
                found = abandonable(
                    partial(_sealed, store, key), cancel, "substituter", bounds.SUBSTITUTE_ANSWER
                )
                if found is None:
                    continue
                if until is None:
                    until = time.monotonic() + _limit(found.manifest)
                left = until - time.monotonic()
                return abandonable(
                    partial(_whole, url, found, store, moved), cancel, "substituter", left
                )
            except UnsignedError as error:
                said(f"{url}: its manifest counts as absent: {error}")
            except DamagedError as error:
                said(str(error))
            except TooSlow:
                slow = "it did not answer in time"
                if until is not None:
                    slow = "the artifacts did not come in the time that building took there"
                said(f"{url}: {slow}{self._rest(store)}")
            except StoreError as error:
                answered = type(error.__cause__).__name__ in _ANSWERS
                said(f"{error}{'' if answered else self._rest(store)}")
        return None

    # -- rests -----------------------------------------------------------------------------

    def _rests(self, store: Store) -> bool:
        try:
            since = self._mark(store).stat().st_mtime
        except OSError:
            return False
        return 0 <= time.time() - since < bounds.SUBSTITUTER_REST

    def _rest(self, store: Store) -> str:
        """Let a store rest; returns the end of a sentence that says so."""
        mark = self._mark(store)
        with contextlib.suppress(OSError):  # on a full disk, each step pays
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        return f"; it is not asked for {bounds.SUBSTITUTER_REST} s"

    def _mark(self, store: Store) -> Path:
        """A file whose time is that of the last silence of a store."""
        return self._resting / hashlib.sha256(store.url.encode()).hexdigest()[:16]


def _sealed(store: Store, key: str, check: Callable[[], None]) -> Sealed | None:
    check()
    return store.sealed(key)


def _whole(
    url: str, found: Sealed, store: Store, moved: Moved, check: Callable[[], None]
) -> Substitute:
    files = fetch(found, store, {}, check, moved)
    countersignature = fetch_countersignature(found.manifest.key, store)
    return Substitute(url, found.manifest, found.data, files, countersignature)


def _limit(manifest: Manifest) -> float:
    """Seconds that the artifacts of a step may take: to build it took so long."""
    return min(max(manifest.seconds, bounds.SUBSTITUTE_ANSWER), bounds.SUBSTITUTE_TIME)
