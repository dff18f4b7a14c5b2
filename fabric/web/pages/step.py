"""One step: its state, story, inputs, attempts and artifacts, and why it was built again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from fabric import bounds
from fabric.client.changes import Change
from fabric.errors import FabricError, MachineFault, StoreError
from fabric.jobs import Manifest
from fabric.trove.artifacts.manifests import steps_of
from fabric.web.asks import NotFound
from fabric.web.attempts import Try
from fabric.web.mirrors import Mirror
from fabric.web.page import Page, View, Web
from fabric.web.pages.attempts import AttemptRow, attempt_row, tries
from fabric.web.pages.facts import StepRow, moment_of, step_row
from fabric.web.store import Built
from fabric.wire.messages import GraphStep


class StepQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The build in which the step is looked at."""

    build: Annotated[str, Meta(max_length=bounds.NAME)] = ""


class Neighbor(View, frozen=True, kw_only=True):
    """A step that this one needs, or that needs it."""

    key: str
    name: str
    state: str = ""  # in the build; "" if it is not known


class ArtifactRow(View, frozen=True, kw_only=True):
    """An artifact of a built step."""

    name: str
    size: int = 0  # bytes of its archive
    parts: int = 0  # artifacts that it lists
    empty: bool = False  # it has no files


class Reason(View, frozen=True, kw_only=True):
    """A difference from the former build."""

    step: str  # the name of the step whose input it is
    key: str
    text: str


class Record(View, frozen=True, kw_only=True):
    """A step in the store."""

    arch: str
    built: datetime | None  # None: not recorded
    seconds: float
    builder: str
    size: int  # bytes of its artifacts
    origin: str  # key of the step with equal contents whose artifacts these are; "" if it was built
    rebuild_of: str  # key of the step that was built once more; "" if it was not
    description: str
    repo: str  # of its source; "" if it has none
    ref: str
    commit: str
    morph: str
    remarks: tuple[str, ...]
    artifacts: tuple[ArtifactRow, ...]
    inputs: dict[str, str]  # by name, without other steps; long ones as a digest
    former: str = ""  # key of the build before; "" if none is known
    reasons: tuple[Reason, ...] = ()  # why it has another key


class StepView(View, frozen=True, kw_only=True):
    """A step."""

    key: str
    name: str
    kind: str
    state: str  # "" if it is not known
    build: str = ""  # the build in which it is looked at
    title: str = ""  # of that build
    step: StepRow | None = None  # in that build
    story: tuple[str, ...] = ()  # why it waits, or what became of it
    needs: tuple[Neighbor, ...] = ()
    needs_total: int = 0
    needed_by: tuple[Neighbor, ...] = ()
    needed_by_total: int = 0
    attempts: tuple[AttemptRow, ...] = ()  # the last one first
    attempts_total: int = 0
    record: Record | None = None  # if the store has it
    store_error: str = ""  # why the store cannot be read


class Facts(msgspec.Struct, kw_only=True):
    """What is known of a step."""

    key: str
    mirror: Mirror | None = None
    graph: Sequence[GraphStep] = ()
    attempts: Sequence[Try] = ()
    story: Sequence[str] = ()
    manifest: Manifest | None = None
    #: names of the steps that it was made from, as far as known, by key
    parts: Mapping[str, str] = {}
    former: Built | None = None
    changes: Sequence[Change] = ()
    store_error: str = ""


def view(facts: Facts, epoch: datetime) -> StepView:
    """The step, with times that count from ``epoch`` on.  NotFound if nothing is known of it."""
    key, mirror = facts.key, facts.mirror
    known = mirror.steps.get(key) if mirror else None
    node = next((one for one in facts.graph if one.key == key), None)
    last = facts.attempts[-1].info if facts.attempts else None
    named = known.state if known else node or facts.manifest or last
    if named is None:
        raise NotFound(
            f"{key[:12]}: neither the broker nor the store knows this step"
            + (f" ({facts.store_error})" if facts.store_error else "")
        )
    needs, needed_by = _neighbors(facts, node)
    last_first = facts.attempts[::-1]
    return StepView(
        key=key,
        name=named.name,
        kind=named.kind,
        state=_state(facts),
        build=mirror.update.request if mirror else "",
        title=mirror.title if mirror else "",
        step=step_row(known) if known else None,
        story=tuple(facts.story),
        needs=tuple(needs[: bounds.WEB_ROWS]),
        needs_total=len(needs),
        needed_by=tuple(needed_by[: bounds.WEB_ROWS]),
        needed_by_total=len(needed_by),
        attempts=tuple(attempt_row(one, epoch) for one in last_first[: bounds.WEB_ROWS]),
        attempts_total=len(last_first),
        record=_record(facts, facts.manifest) if facts.manifest else None,
        store_error=facts.store_error,
    )


def _state(facts: Facts) -> str:
    if facts.mirror and facts.key in facts.mirror.steps:
        return facts.mirror.steps[facts.key].state.state
    last = facts.attempts[-1].info if facts.attempts else None
    if last is not None and not last.result:
        return "running"
    if facts.manifest is not None:
        return "done"
    return last.result if last is not None else ""


def _neighbors(facts: Facts, node: GraphStep | None) -> tuple[list[Neighbor], list[Neighbor]]:
    """The steps that this one needs, and those that need it: by the build, else by the store."""
    if node is None:
        return [Neighbor(key=key, name=name) for key, name in facts.parts.items()], []
    place = facts.graph.index(node)
    steps = facts.mirror.steps if facts.mirror else {}
    states = {key: known.state.state for key, known in steps.items()}

    def neighbor(step: GraphStep) -> Neighbor:
        return Neighbor(key=step.key, name=step.name, state=states.get(step.key, ""))

    needs = [neighbor(facts.graph[each]) for each in node.depends if each < len(facts.graph)]
    return needs, [neighbor(step) for step in facts.graph if place in step.depends]


def _record(facts: Facts, manifest: Manifest) -> Record:
    metadata = manifest.metadata
    return Record(
        arch=manifest.arch,
        built=moment_of(manifest.built),
        seconds=manifest.seconds,
        builder=manifest.builder,
        size=sum(each.blob.size for each in manifest.artifacts if each.blob is not None),
        origin=manifest.origin,
        rebuild_of=manifest.rebuild_of,
        description=metadata.get("description", ""),
        repo=metadata.get("repo", ""),
        ref=metadata.get("ref", ""),
        commit=metadata.get("sha1", ""),
        morph=metadata.get("morph", ""),
        remarks=manifest.remarks,
        artifacts=tuple(
            ArtifactRow(
                name=each.name,
                size=each.blob.size if each.blob else 0,
                parts=len(each.contents),
                empty=each.blob is None and not each.contents,
            )
            for each in manifest.artifacts
        ),
        inputs=dict(sorted(manifest.inputs.items())),
        former=facts.former.key if facts.former else "",
        reasons=tuple(
            Reason(step=change.step, key=change.key, text=change.text) for change in facts.changes
        ),
    )


async def make(web: Web, path: Mapping[str, str], query: StepQuery) -> StepView:
    key = path["key"]
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise NotFound(f"{key[:80]}: no key of a step, which has 64 hexadecimal digits")
    facts = Facts(key=key)
    if query.build:
        facts.mirror = await web.mirrors.get(query.build)
        facts.graph = (await web.graphs.get(query.build)).steps
    facts.attempts, facts.story = await asyncio.gather(tries(web, key), _story(web, key))
    try:
        await _read_store(web, facts)
    except StoreError as error:
        facts.store_error = str(error)
    return view(facts, web.attempts.epoch)


async def _story(web: Web, key: str) -> Sequence[str]:
    try:
        return (await web.farm.query("why", key)).lines
    except MachineFault:
        raise
    except FabricError:  # no request needs it now
        return ()


async def _read_store(web: Web, facts: Facts) -> None:
    manifest = facts.manifest = await web.store.manifest(facts.key)
    if manifest is None:
        return
    facts.former = await web.store.former(manifest)
    if facts.former is not None:
        facts.changes = await web.store.changes(manifest.name, facts.former.key, facts.key)
    steps = web.store.index.steps
    names = {key: steps[key].name if key in steps else key[:12] for key in steps_of(manifest)}
    facts.parts = names


routes = [
    Page(
        path="/steps/{key}",
        template="step.html",
        summary="A step, with its attempts and artifacts",
        view=StepView,
        make=make,
        query=StepQuery,
    )
]
