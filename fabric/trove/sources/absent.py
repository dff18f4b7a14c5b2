"""Explains why the farm's trove lacks a ref, and how to bring it there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric.errors import SourceError, command
from fabric.trove.sources.aliases import Location
from fabric.trove.sources.git import SHA

if TYPE_CHECKING:
    from fabric.trove.sources.lorries import Lorry


def absent(
    url: str, repo: str, ref: str, location: Location, lorry: Lorry | None, *, imports: bool
) -> SourceError:
    """The error for a ref that the trove at ``url`` lacks.

    With ``imports``, the URL of its lorry lacks it, too.
    """
    lacks = f"{repo}: the trove {url} has no ref {ref} of it"
    if lorry is None and SHA.fullmatch(ref):
        help = "push it there, then submit the build again"
        return SourceError(
            f"{lacks}: {help}", alike=f"the trove {url} has none of these commits: {help}"
        )
    if lorry is None:
        help = "and no lorry could bring it"
        return SourceError(
            f"{lacks} (refs/tags/{location.name}/{ref}), {help}",
            alike=f"the trove {url} has none of these refs, {help}",
        )
    if lorry.type != "git" and ref != lorry.ref:
        return SourceError(
            f"{lacks}, and its lorry ({lorry.where}) brings {lorry.ref}; change one of them"
        )
    if imports:
        leads = f"where its lorry ({lorry.where}) leads"
        return SourceError(f"{lacks}, nor has {lorry.url}, {leads}")
    bring = command("lorry", "import")
    return SourceError(
        f"{lacks}; `{bring} {lorry.name}` brings it there",
        alike=f"the trove {url} has none of these refs; `{bring} NAME` brings each there",
    )
