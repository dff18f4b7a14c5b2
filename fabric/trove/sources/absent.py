"""Explains why a ref cannot be found, and how to bring it where it is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fabric.errors import SourceError, command
from fabric.trove.sources.aliases import Location
from fabric.trove.sources.git import SHA

if TYPE_CHECKING:
    from fabric.trove.sources.lorries import Lorry


def at_url(url: str, repo: str, ref: str) -> SourceError:
    """The error for a ref that the repository at ``url`` lacks."""
    which = "it" if repo == url else url
    if SHA.fullmatch(ref):
        return SourceError(f"{repo}: {which} has no commit {ref}")
    return SourceError(f"{repo}: {which} has no ref {ref}; `git ls-remote {url}` lists its refs")


def from_machine(
    git: Path, repo: str, ref: str, location: Location, lorry: Lorry | None, *, exists: bool
) -> SourceError:
    """The error for a ref that this machine's trove lacks; its repositories are in ``git``.

    ``exists``: it has the repository.
    """
    if lorry is not None and lorry.type != "git":
        return SourceError(f"{repo}: no ref {ref}: {_brings(lorry)}")
    if lorry is not None:
        return SourceError(f"{repo}: no ref {ref} at {_leads(lorry)}")
    if exists:
        where = f"in {location.directory}, and no lorry that could bring it"
        return SourceError(f"{repo}: no ref {ref} {where}")
    name = repo.partition(":")[2] or repo
    return SourceError(
        f"{repo}: no such repository: there is no {location.directory} and no lorry for it;"
        f" add sources/{name.rpartition('/')[2]}.lorry to the definitions, {location.hint},"
        " or configure its alias to be a URL",
        alike="no such repository, and no lorry for it: add lorries to the folder sources of"
        f" the definitions, push repositories to {git}, or configure aliases to be URLs",
    )


def from_trove(
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
        return SourceError(f"{lacks}, and {_brings(lorry)}")
    if imports:
        return SourceError(f"{lacks}, nor has {_leads(lorry)}")
    bring = command("lorry", "import")
    return SourceError(
        f"{lacks}; `{bring} {lorry.name}` brings it there",
        alike=f"the trove {url} has none of these refs; `{bring} NAME` brings each there",
    )


def _brings(lorry: Lorry) -> str:
    return f"its lorry ({lorry.where}) brings {lorry.ref}; change one of them"


def _leads(lorry: Lorry) -> str:
    return f"{lorry.url}, where its lorry ({lorry.where}) leads"
