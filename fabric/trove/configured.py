"""The trove that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.trove.sources import Sources

if TYPE_CHECKING:
    from fabric.config import Shared
    from fabric.trove.reach import Trove


def open_trove(settings: Shared) -> Trove | None:
    """The farm's repository; None if there is none."""
    from fabric.trove.reach import Trove

    if not settings.trove:
        return None
    url = settings.trove if ":" in settings.trove else str(Path(settings.trove).expanduser())
    return Trove(url, _file(settings.ssh_key), _file(settings.known_hosts))


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


def _file(name: str) -> str:
    return str(Path(name).expanduser().absolute()) if name else ""
