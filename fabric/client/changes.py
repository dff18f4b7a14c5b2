"""Compares a step with another build of it: which inputs differ, down to the first causes.

A *cause* is a step with an input of its own that differs.  Steps that are made from it differ
because of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from fabric import inputs as names
from fabric.definitions.places import Places
from fabric.inputs import inputs
from fabric.jobs import Content, Job, Manifest
from fabric.plan import Plan
from fabric.trove.artifacts.store import Store

#: Causes, and parts added or removed, that a line names.
FEW = 3

_NEVER = "never built before"
_GONE = "the record of its last build is no longer in the store"
_SAME = "built before with these inputs, but no longer in the store"
_OLD = "its last build was by an older version, which recorded no inputs"

#: Input -> inputs that are made from it.
_IMPLIED = {
    "name": {f"{names.ENVIRONMENT}DESTDIR", "products"},
    "prefix": {f"{names.ENVIRONMENT}PREFIX"},
}
_LOST = "the store no longer has the records of some chunks that it was built with"


class Change(msgspec.Struct, frozen=True):
    """One difference between two builds of a step."""

    step: str  # its name
    key: str  # its new key
    input: str  # "build-commands", "source", "build-depends"; "" if none can be named
    text: str  # "build-commands changed", "source 6.4 -> 6.5"
    old: str = ""
    new: str = ""
    where: str = ""  # the input's place in the definitions as they are now: "DEFAULTS:12"


class Record(msgspec.Struct, frozen=True):
    """A step as it was, or is to be, built."""

    key: str
    kind: Literal["chunk", "stratum", "system"]
    name: str
    ref: str
    inputs: Mapping[str, str]
    #: (the key of a step that it is made from, the artifact that it takes of it; "" for a chunk)
    parts: tuple[tuple[str, str], ...]


class Records:
    """Records by cache key: those of a plan, and those in a store."""

    def __init__(self, store: Store, plan: Plan | None = None) -> None:
        self._store = store
        self._plan = plan
        self._known: dict[str, Record | None] = {}
        self._steps = {plan.keys[step.id]: step for step in plan.steps} if plan else {}

    def bring(self, keys: Iterable[str]) -> None:
        """Read the records of many steps, in parallel."""
        wanted = [key for key in keys if key not in self._known and key not in self._steps]
        found = self._store.each(self._store.whole_manifest, wanted)
        for key, manifest in zip(wanted, found, strict=True):
            self._known[key] = None if manifest is None else of_manifest(manifest)

    def __getitem__(self, key: str) -> Record | None:
        """The record of a step; None if it is gone or damaged."""
        if key not in self._known:
            if self._plan is not None and key in self._steps:
                self._known[key] = _of_job(self._plan.job(self._steps[key]))
            else:
                manifest = self._store.whole_manifest(key)
                self._known[key] = None if manifest is None else of_manifest(manifest)
        return self._known[key]


def placing(plan: Plan, read: Callable[[str], bytes | None]) -> Callable[[str, str], str]:
    """The place of a field in the definitions of a plan, as `Comparison` asks for it."""
    steps = {plan.keys[step.id]: step for step in plan.steps}
    places = Places(read)

    def place(key: str, field: str) -> str:
        return places.of(steps[key], field) if key in steps else ""

    return place


def _of_job(job: Job) -> Record:
    staged = [staged.key for staged in job.staged]
    return _record(job, inputs(job), staged, job.lists)


def of_manifest(manifest: Manifest) -> Record:
    """The record of a built step."""
    lists = ((artifact.name, artifact.contents) for artifact in manifest.artifacts)
    return _record(manifest, manifest.inputs, manifest.staged, lists)


def _record(
    step: Job | Manifest,
    inputs: Mapping[str, str],
    staged: Iterable[str],
    lists: Iterable[tuple[str, tuple[Content, ...]]],
) -> Record:
    parts = [(key, "") for key in staged]
    for artifact, contents in lists:
        inside = f" in {artifact}" if step.kind == "stratum" else ""
        parts += [(one.key, one.artifact + inside) for one in contents]
    ref = step.metadata.get("ref", "")
    return Record(step.key, step.kind, step.name, ref, inputs, tuple(parts))


class _Difference(msgspec.Struct, frozen=True):
    own: tuple[Change, ...]
    below: tuple[tuple[str, str], ...] = ()  # (old key, new key) of parts that differ
    gone: frozenset[str] = frozenset()  # parts by name
    come: frozenset[str] = frozenset()


class Comparison:
    """Compares steps of ``old`` with those of ``new``.

    ``place`` gives the place of a field by the new key of its step; "" if it is unknown.
    """

    def __init__(self, old: Records, new: Records, place: Callable[[str, str], str]) -> None:
        self._old = old
        self._new = new
        self._place = place
        self._known: dict[tuple[str, str], _Difference] = {}
        self._causes: dict[tuple[str, str], tuple[Change, ...]] = {}

    def changes(self, name: str, old: str | None, new: str) -> tuple[Change, ...]:
        """Why the step ``name`` has the key ``new``, and not ``old``: its own changes come first.

        A change of a part is left out if the step has the same.
        """
        if old is None:
            return (Change(name, new, "", _NEVER),)
        if old == new:
            return (Change(name, new, "", _SAME),)
        difference = self._difference(old, new)
        own = {(one.input, one.old, one.new) for one in difference.own if one.input}
        below = self._below(difference)
        more = (one for one in below if (one.input, one.old, one.new) not in own)
        return (*difference.own, *more)

    def _first(self, old: str, new: str) -> tuple[Change, ...]:
        """The changes that are the causes of a step's.

        Parts come after those that they are made from, so this recurses into few that are unknown.
        """
        if (old, new) not in self._causes:
            difference = self._difference(old, new)
            self._causes[old, new] = difference.own or self._below(difference)
        return self._causes[old, new]

    def _below(self, difference: _Difference) -> tuple[Change, ...]:
        found = dict.fromkeys(one for pair in difference.below for one in self._first(*pair))
        return tuple(found)

    def _difference(self, old: str, new: str) -> _Difference:
        if (old, new) not in self._known:
            self._known[old, new] = self._compare(self._old[old], self._new[new], new)
        return self._known[old, new]

    def _compare(self, old: Record | None, new: Record | None, key: str) -> _Difference:
        if new is None or old is None:
            known = new or old
            name = known.name if known is not None else key[:12]
            return _Difference((Change(name, key, "", _GONE),))
        if not (old.inputs and new.inputs):
            return _Difference((Change(new.name, key, "", _OLD),))
        own = self._inputs(old, new)
        gone, come, below = self._parts(old, new)
        if gone or come or below:  # PATH has the prefixes of dependencies
            own = [one for one in own if one.input != f"{names.ENVIRONMENT}PATH"]
        if not any(one.input.startswith(names.STRATUM) for one in own):  # which explain the parts
            own += self._named(new, gone, come, below)
        if not own and not below:
            text = f"the order of its {'dependencies' if new.kind == 'chunk' else 'parts'} changed"
            own.append(self._of_parts(new, text))
        return _Difference(tuple(own), below, frozenset(gone), frozenset(come))

    def _inputs(self, old: Record, new: Record) -> list[Change]:
        found = []
        differing = {
            name
            for name in {**old.inputs, **new.inputs}
            if old.inputs.get(name) != new.inputs.get(name)
        }
        if differing & {names.TREE, names.SUBMODULES}:
            text, before, after = _source(old.inputs, new.inputs)
            where = self._place(new.key, "ref")
            found.append(Change(new.name, new.key, "source", text, before, after, where))
        skipped = {names.REF, names.COMMIT, names.TREE, names.SUBMODULES}
        for name in differing & _IMPLIED.keys():
            skipped |= _IMPLIED[name]
        for name in sorted(differing - skipped):
            before, after = old.inputs.get(name, ""), new.inputs.get(name, "")
            where = self._place(new.key, name.removeprefix(names.STRATUM))
            found.append(
                Change(new.name, new.key, name, _text(name, before, after), before, after, where)
            )
        return found

    def _parts(
        self, old: Record, new: Record
    ) -> tuple[list[str], list[str], tuple[tuple[str, str], ...]]:
        """The parts that only one of two steps has, by name, and the pairs of those that differ."""
        before, after = set(old.parts), set(new.parts)
        self._old.bring(
            key for key, artifact in old.parts if not artifact and (key, "") not in after
        )
        lost = _slots(self._old, (part for part in old.parts if part not in after))
        won = _slots(self._new, (part for part in new.parts if part not in before))
        below: dict[tuple[str, str], None] = {}
        for slot in won:
            below |= dict.fromkeys(zip(lost.get(slot, []), won[slot], strict=False))
        gone = [slot for slot in lost if len(lost[slot]) > len(won.get(slot, []))]
        come = [slot for slot in won if len(won[slot]) > len(lost.get(slot, []))]
        return gone, come, tuple(below)

    def _named(
        self, new: Record, gone: list[str], come: list[str], below: Iterable[tuple[str, str]]
    ) -> Iterator[Change]:
        """The changes that name the parts which only one of two steps has."""
        if "" in gone:  # one without a record, which may be the former build of a new one
            yield Change(new.name, new.key, "", _LOST)
            return
        has = "has"
        if new.kind == "chunk":  # it is built with all that its dependencies are built with
            has = "built with"
            parts = [self._difference(*pair) for pair in below]
            gone = [one for one in gone if not any(one in part.gone for part in parts)]
            come = [one for one in come if not any(one in part.come for part in parts)]
        if gone:
            yield self._of_parts(new, f"no longer {has} {_few(gone)}", old=", ".join(gone))
        if come:
            yield self._of_parts(new, f"now {has} {_few(come)}", new=", ".join(come))

    def _of_parts(self, step: Record, text: str, old: str = "", new: str = "") -> Change:
        field = "build-depends" if step.kind == "chunk" else "contents"
        return Change(step.name, step.key, field, text, old, new, self._place(step.key, field))


def _slots(records: Records, parts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Keys of parts, by artifact, or by name of the chunk; "" for a chunk without a record."""
    found: dict[str, list[str]] = {}
    for key, artifact in parts:
        slot = artifact
        if not slot:
            record = records[key]
            slot = record.name if record is not None else ""
        found.setdefault(slot, []).append(key)
    return found


def _source(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, str, str]:
    """How a source changed, and two texts that tell the old from the new: refs, else commits."""
    before, after = (version(one.get(names.REF, "")) for one in (old, new))
    if before != after:
        return f"source {before} -> {after}", before, after
    ref = before
    before, after = (one.get(names.COMMIT, "")[:12] for one in (old, new))
    if before != after:
        return f"source {ref}: {before} -> {after}", before, after
    return f"submodules of source {ref} changed", before, after


def version(ref: str) -> str:
    """A ref for people: a commit is shortened."""
    commit = len(ref) == 40 and set(ref) <= set("0123456789abcdef")
    return ref[:12] if commit else ref


def _text(name: str, before: str, after: str) -> str:
    shown = name.replace(names.RULES, "build rules")
    if not (before and after) and name != "max-jobs":
        return f"{shown} {'removed' if before else 'added'}"
    if before.startswith(names.DIGEST) or after.startswith(names.DIGEST):
        return f"{shown} changed"
    colon = ":" if name.startswith(names.STRATUM) else ""
    return f"{shown}{colon} {before or 'unset'} -> {after or 'unset'}"


def _few(words: list[str]) -> str:
    more = f" and {len(words) - FEW} more" if len(words) > FEW else ""
    return ", ".join(words[:FEW]) + more
