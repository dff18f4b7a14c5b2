"""Opens the trove that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.trove.artifacts.store import Store
from fabric.trove.sources.resolve import Sources

if TYPE_CHECKING:
    from fabric.config import Shared
    from fabric.trove.sources.farm_remote import Trove


def open_store(settings: Shared, scratch: Path | None = None) -> Store:
    """The artifact store; ``scratch`` is for copies of what it has, by default in the cache."""
    return Store(
        settings.store_url,
        scratch or settings.cache_dir / "tmp",
        ca=_path(settings.artifacts_ca),
        password=_path(settings.artifacts_password),
    )


def open_trove(settings: Shared) -> Trove | None:
    """The farm's repository; None if there is none."""
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
    progress: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Sources:
    """Sources, as `Sources` describes them."""
    return Sources(
        settings.trove_dir,
        settings.aliases,
        lorries,
        trove=open_trove(settings),
        imports=imports,
        head=head,
        progress=progress,
    )


def _path(name: str) -> Path | None:
    return Path(name).expanduser().absolute() if name else None
