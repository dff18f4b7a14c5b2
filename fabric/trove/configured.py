"""Opens the trove and the artifact store of the settings, and gives sources their importer."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.host.progress import Progress, silent
from fabric.host.terminal import printable
from fabric.trove.artifacts.store import Store
from fabric.trove.sources.resolve import Sources
from fabric.trust.seal import Seal

if TYPE_CHECKING:
    from fabric.config import Building, Shared
    from fabric.host.cancel import CancelToken
    from fabric.trove.artifacts.substituters import Substituters
    from fabric.trove.sources.farm_remote import Trove
    from fabric.trove.sources.repositories import Importer


def warn(text: str) -> None:
    """Print a warning to standard error."""
    print(f"warning: {printable(text)}", file=sys.stderr)


def open_store(
    settings: Shared, scratch: Path | None = None, said: Callable[[str], object] = warn
) -> Store:
    """The artifact store; ``scratch`` is for copies of its blobs, by default in the cache.

    ``said`` as for `Store`, also told of unusable keys; by default, it warns on standard error.
    """
    return Store(
        settings.store_url,
        scratch or settings.cache_dir / "tmp",
        ca=_path(settings.artifacts_ca),
        password=_path(settings.artifacts_password),
        seal=open_seal(settings, said),
        said=said,
    )


def open_other_store(settings: Shared, url: str, named: str, password: Path | None) -> Store:
    """A store that an option names, read and written as that of the settings.

    The password of the latter is not for it: ``password`` is the file with its own.
    """
    return Store(
        url,
        settings.cache_dir / "tmp",
        ca=_path(settings.artifacts_ca),
        password=password.expanduser() if password else None,
        seal=open_seal(settings),
        named=named,
    )


def open_substituters(settings: Building, said: Callable[[str], object]) -> Substituters | None:
    """The stores that are asked before a step is built; None if there are none.

    ``said`` is told of unusable keys.
    """
    if not settings.substituters:
        return None
    from fabric.trove.artifacts.substituters import Substituters, haste

    seal = open_seal(settings, said)
    scratch = settings.cache_dir / "tmp"
    stores = [
        Store(url, scratch, ca=_path(settings.artifacts_ca), seal=seal, named="", haste=haste())
        for url in settings.substituters
    ]
    return Substituters(stores, settings.cache_dir / "substituters")


def open_seal(settings: Shared, said: Callable[[str], object] = warn) -> Seal | None:
    """What signs and checks manifests; None if no keys are trusted.

    ``said`` is told of unusable keys, by default as `warn` does.
    """
    directory = _path(settings.trusted_keys)
    return _seal(directory, said) if directory else None


@functools.cache
def _seal(directory: Path, said: Callable[[str], object]) -> Seal:
    """The seal of all stores of a program: they remember the same signatures."""
    from fabric.trust.signing import TrustedKeys

    return Seal(TrustedKeys(directory, said))


def open_trove(settings: Shared) -> Trove | None:
    """The farm's repository; None if the settings have none."""
    from fabric.trove.sources.farm_remote import Trove

    if not settings.trove:
        return None
    url = settings.trove if ":" in settings.trove else str(Path(settings.trove).expanduser())
    key, hosts = _path(settings.ssh_key), _path(settings.known_hosts)
    return Trove(url, str(key or ""), str(hosts or ""))


def open_sources(
    settings: Shared,
    lorries: Path | None = None,
    *,
    imports: bool = True,
    head: str = "",
    progress: Progress = silent,
) -> Sources:
    """The sources, as described at `Sources`."""
    return Sources(
        settings.trove_dir,
        settings.aliases,
        lorries,
        trove=open_trove(settings),
        importer=(
            functools.partial(open_importer, snapshot=settings.debian_snapshot) if imports else None
        ),
        head=head,
        progress=progress,
    )


def open_importer(
    root: Path, progress: Progress, cancel: CancelToken, snapshot: str = ""
) -> Importer:
    """The importer of lorries for the trove at ``root``; ``snapshot`` as the setting has it."""
    # loads the readers of archives, which a fully cached build does not need
    from fabric.trove.importers.context import Context
    from fabric.trove.importers.imports import Imports

    return Imports(Context(root, progress, cancel, snapshot))


def _path(name: str) -> Path | None:
    return Path(name).expanduser().absolute() if name else None
