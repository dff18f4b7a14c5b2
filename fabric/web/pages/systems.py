"""The systems in the store, and what is in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from fabric import bounds
from fabric.errors import StoreError
from fabric.jobs import Manifest
from fabric.web.asks import NotFound
from fabric.web.page import Page, View, Web
from fabric.web.pages.facts import Number, Part, Word, moment_of, part
from fabric.web.store import Built, Index

#: Builds of a system that are listed.
MANY = 20


class SystemsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which systems are listed."""

    name: Word = ""  # a part of the name
    page: Number = 1


class SystemQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which system is shown: of several architectures with this name, or an earlier build."""

    arch: Word = ""
    key: Word = ""
    name: Word = ""  # a part of the name of a chunk
    page: Number = 1


class SystemRow(View, frozen=True, kw_only=True):
    """A build of a system that is in the store."""

    key: str
    name: str
    arch: str
    built: datetime | None  # None: not recorded
    seconds: float
    builder: str
    size: int  # bytes of its archive


class SystemsView(View, frozen=True, kw_only=True):
    """The systems in the store, with the last good build of each."""

    systems: tuple[SystemRow, ...]
    part: Part
    unread: int = 0  # steps of the store that are still to be read
    store_error: str = ""  # why the store cannot be read


class ChunkRow(View, frozen=True, kw_only=True):
    """A chunk in a system."""

    key: str
    name: str  # the beginning of its key if it is not in the store any more
    repo: str = ""  # of its source, as in the definitions
    ref: str = ""
    size: int = 0  # bytes of all its artifacts
    artifacts: tuple[str, ...] = ()  # those that are in the system


class SystemView(View, frozen=True, kw_only=True):
    """A build of a system, with its contents."""

    system: SystemRow
    description: str
    morph: str
    builds: tuple[SystemRow, ...]  # that the store has, the last one first
    chunks: tuple[ChunkRow, ...]
    part: Part


def systems_view(index: Index, query: SystemsQuery) -> SystemsView:
    """The list of systems."""
    wanted = query.name.casefold()
    last = [_last(builds) for builds in index.of_kind("system")]
    chosen = [one for one in last if wanted in one.name.casefold()]
    chosen.sort(key=lambda one: (one.name, one.arch))
    shown, which = part(chosen, query.page)
    return SystemsView(
        systems=tuple(map(_row, shown)),
        part=which,
        unread=index.unread,
        store_error=index.error,
    )


def find(builds: Iterable[Sequence[Built]], name: str, query: SystemQuery) -> Built:
    """The build of a system that is asked for.  NotFound if the store has none."""
    named = [each for each in builds if each[0].name == name]
    for each in sorted(named, key=lambda each: each[0].arch):
        if query.key:
            for one in each:
                if one.key == query.key:
                    return one
        elif query.arch in ("", each[0].arch):
            return _last(each)
    raise NotFound(f"{name[:80]}: the store has no such system")


def system_view(built: Built, manifest: Manifest, index: Index, query: SystemQuery) -> SystemView:
    """A build of a system."""
    inside: dict[str, list[str]] = {}
    for artifact in manifest.artifacts:
        for content in artifact.contents:
            inside.setdefault(content.key, []).append(content.artifact)
    wanted = query.name.casefold()
    rows = [_chunk(key, artifacts, index.steps.get(key)) for key, artifacts in inside.items()]
    chosen = [row for row in rows if wanted in row.name.casefold()]
    chosen.sort(key=lambda row: row.name)
    shown, which = part(chosen, query.page)
    builds = index.builds("system", built.name, built.arch)
    return SystemView(
        system=_row(built),
        description=manifest.metadata.get("description", ""),
        morph=manifest.metadata.get("morph", ""),
        builds=tuple(map(_row, builds[:MANY])),
        chunks=tuple(shown),
        part=which,
    )


def _last(builds: Sequence[Built]) -> Built:
    return next((one for one in builds if one.original), builds[0])


def _row(built: Built) -> SystemRow:
    return SystemRow(
        key=built.key,
        name=built.name,
        arch=built.arch,
        built=moment_of(built.built),
        seconds=built.seconds,
        builder=built.builder,
        size=built.size,
    )


def _chunk(key: str, artifacts: Sequence[str], built: Built | None) -> ChunkRow:
    few = tuple(artifacts[: bounds.WEB_ROWS])
    if built is None:
        return ChunkRow(key=key, name=key[:12], artifacts=few)
    return ChunkRow(
        key=key,
        name=built.name,
        repo=built.repo,
        ref=built.ref,
        size=built.size,
        artifacts=few,
    )


async def make_systems(web: Web, _: Mapping[str, str], query: SystemsQuery) -> SystemsView:
    await web.store.index.refresh()
    return systems_view(web.store.index, query)


async def make_system(web: Web, path: Mapping[str, str], query: SystemQuery) -> SystemView:
    index = web.store.index
    await index.refresh()
    if index.error:
        raise StoreError(index.error)
    built = find(index.of_kind("system"), path["name"], query)
    manifest = await web.store.manifest(built.key)
    if manifest is None:
        raise NotFound(f"{built.name}: the store has lost this build")
    return system_view(built, manifest, index, query)


routes = [
    Page(
        path="/systems",
        template="systems.html",
        summary="The systems in the store, with the last good build of each",
        view=SystemsView,
        make=make_systems,
        query=SystemsQuery,
    ),
    Page(
        path="/systems/{name}",
        template="system.html",
        summary="A build of a system, with its contents",
        view=SystemView,
        make=make_system,
        query=SystemQuery,
    ),
]
