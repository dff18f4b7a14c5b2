"""Finds built steps by the beginning of their cache keys, and repairs damaged ones."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from fabric.config import Settings
from fabric.digest import PREFIX
from fabric.errors import DamagedError, FabricError, MachineFault, StoreError
from fabric.jobs import Manifest
from fabric.trove.artifacts.store import Store

#: The beginning of a cache key, in place of a name.
_KEY = re.compile(rf"[0-9a-f]{{{PREFIX},64}}")
#: Keys with one beginning that an error names.
_SHOWN = 3


def is_key(given: str) -> bool:
    """Whether a user means a cache key, and neither a file nor a name."""
    return bool(_KEY.fullmatch(given)) and not Path(given).exists()


def find_key(store: Store, beginning: str) -> str:
    """The only key in the store that begins so; a whole one need not be there.

    StoreError if there is none, or several.
    """
    if len(beginning) == 64:
        return beginning
    every = store.keys()
    found = list(islice((key for key in every if key.startswith(beginning)), _SHOWN + 1))
    if not found:
        raise StoreError(f"{beginning}: the store {store.url} has no key that begins so")
    require_one(beginning, found)
    return found[0]


def require_one(beginning: str, keys: list[str]) -> None:
    """StoreError if several keys begin as a user gave it."""
    if len(keys) > 1:
        more = " and more" if len(keys) > _SHOWN else ""
        listed = ", ".join(key[:16] for key in keys[:_SHOWN])
        raise StoreError(f"{beginning}: several keys begin so: {listed}{more}; give more digits")


def find_manifest(store: Store, beginning: str) -> Manifest:
    """The manifest of the only step whose key begins so.  StoreError as `find_key`."""
    manifest = store.manifest(find_key(store, beginning))
    if manifest is None:
        raise StoreError(f"{beginning}: the store {store.url} does not have it")
    return manifest


@contextlib.contextmanager
def mending(store: Store, keys: Iterable[str], remedy: str) -> Iterator[None]:
    """Remove those of these steps that turn out damaged, so that they are built again.

    The error ends with ``remedy``.
    """
    try:
        yield
    except DamagedError as error:
        from fabric.trove.artifacts.health import Health

        try:
            Health(store).mend(keys, read=True)
        except StoreError as unremoved:
            raise StoreError(f"{error}; it cannot be removed: {unremoved}") from None
        raise DamagedError(f"{error}: {remedy}") from None


def pinned(settings: Settings) -> set[str]:
    """Cache keys that live builds of the farm need.  MachineFault if it cannot be asked."""
    if not settings.controller:
        return set()
    from fabric.client.controller import open_controller

    try:
        with open_controller(settings) as controller:
            return set(controller.query("pinned").keys)
    except FabricError as error:
        raise MachineFault(
            f"nothing is removed, because builds on {settings.controller} may need it: {error}"
        ) from None
