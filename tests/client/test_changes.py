"""Comparisons of builds find causes through any number of steps, also if records are missing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from definitions_kit import loaded, small, spec, stratum
from msgspec.structs import replace

from fabric.client.changes import Change, Comparison, Records
from fabric.definitions.graph import Graph
from fabric.definitions.select import needed
from fabric.inputs import inputs
from fabric.jobs import Artifact, Job, Manifest, Source
from fabric.plan import Plan
from fabric.trove.artifacts.store import Store

BOOTSTRAP = "build-system: autotools\nbuild-mode: bootstrap\nprefix: /tools"


def after(*names: str, more: str = "") -> str:
    return f"build-system: autotools\nbuild-depends: [{', '.join(names)}]{more}"


def plan(graph: Graph, trees: Mapping[str, str] = {}, tools: str = "tools") -> Plan:
    """A plan; ``trees`` are sources of chunks that differ."""

    def source(name: str, ref: str) -> Source:
        sha = hashlib.sha1(trees.get(name, name).encode()).hexdigest()
        return Source(f"upstream:{name}", trees.get(name, ref), sha, sha)

    chunks = [step for step in graph.steps if step.kind == "chunk"]
    goals = (graph.root.id,)
    sources = {step.id: source(step.name, step.ref) for step in chunks}
    return Plan(graph, goals, needed(graph, goals), sources, tools)


def manifest(job: Job) -> Manifest:
    lists = dict(job.lists)
    return Manifest(
        key=job.key,
        kind=job.kind,
        name=job.name,
        arch=job.arch,
        artifacts=tuple(Artifact(name, None, lists.get(name, ())) for name in job.artifacts),
        metadata=job.metadata,
        staged=tuple(one.key for one in job.staged),
        inputs=inputs(job),
    )


class World:
    """The builds of an old plan in a store, and a new plan."""

    def __init__(self, folder: Path, old: Plan, new: Plan) -> None:
        self.store = Store(str(folder / "store"), folder / "scratch")
        self.old, self.new = old, new
        for step in old.steps:
            self.store.put(manifest(old.job(step)), {})

    def why(self, name: str) -> list[str]:
        """The changes of a step: "STEP: TEXT"."""
        return [f"{one.step}: {one.text}" for one in self.changes(name)]

    def changes(self, name: str) -> tuple[Change, ...]:
        comparison = Comparison(Records(self.store), Records(self.store, self.new), lambda *_: "")
        return comparison.changes(name, self.key(self.old, name), self.key(self.new, name))

    def key(self, plan: Plan, name: str) -> str:
        return next(plan.keys[step.id] for step in plan.steps if step.name == name)


FILES = small(
    low=stratum("low", spec("boot", BOOTSTRAP), spec("base", after("boot"))),
    x=stratum("x", spec("a"), spec("b", after("a")), spec("c", after("b")), depends="low"),
)


def test_changes_lead_through_chunks_that_are_not_staged(tmp_path: Path) -> None:
    """A bootstrap chunk is not in staging areas of other strata."""
    graph = loaded(FILES)
    world = World(tmp_path, plan(graph), plan(graph, {"boot": "2.0"}))
    for name in ("boot", "base", "a", "c", "x", "s"):
        assert world.why(name) == ["boot: source ffffffffffff -> 2.0"]


def test_changes_name_all_causes_once(tmp_path: Path) -> None:
    graph = loaded(FILES)
    world = World(tmp_path, plan(graph), plan(graph, {"a": "2.0", "b": "3.0"}))
    a, b = "a: source ffffffffffff -> 2.0", "b: source ffffffffffff -> 3.0"
    assert world.why("b") == [b, a], "its own changes come first"
    assert world.why("c") == [a, b]
    assert world.why("s") == [a, b]


def test_change_of_all_steps_is_named_once_a_step(tmp_path: Path) -> None:
    graph = loaded(FILES)
    world = World(tmp_path, plan(graph), plan(replace(graph, arch="x86_32")))
    text = "c: environment MORPH_ARCH x86_64 -> x86_32"
    assert text in world.why("c")
    assert {line.partition(":")[0] for line in world.why("c")} == {"c"}
    world = World(tmp_path, plan(graph), plan(graph, tools="newer"))
    assert world.why("boot") == ["boot: host-tools changed"]
    assert world.why("a") == ["boot: host-tools changed"]


def test_changes_of_a_source_whose_ref_stays(tmp_path: Path) -> None:
    graph = loaded(FILES)
    old, new = plan(graph), plan(graph)
    step = next(step for step in graph.steps if step.name == "a")
    source = replace(new.sources[step.id], commit="1" * 40, tree="2" * 40)
    moved = replace(new, sources={**new.sources, step.id: source})
    first = old.sources[step.id].commit[:12]
    world = World(tmp_path, old, moved)
    assert world.why("a") == [f"a: source ffffffffffff: {first} -> 111111111111"]
    inside = replace(old.sources[step.id], submodules=(("m", source),))
    world = World(tmp_path, old, replace(new, sources={**new.sources, step.id: inside}))
    assert world.why("a") == ["a: submodules of source ffffffffffff changed"]


def test_changes_of_contents(tmp_path: Path) -> None:
    def graph(*specs: str, more: str = "", strata: str = "x") -> Graph:
        files = small(x=stratum("x", *specs, more=more), y=stratum("y", spec("z")))
        entries = "".join(f"- {{name: {one}, morph: strata/{one}.morph}}\n" for one in strata)
        head = "name: s\nkind: system\narch: x86_64\nstrata:\n"
        return loaded({**files, "systems/s.morph": head + entries})

    one = plan(graph(spec("a"), spec("b")))
    without = World(tmp_path / "1", one, plan(graph(spec("a"))))
    gone = "no longer has b-devel in x-devel, b-bins in x-runtime, b-misc in x-runtime"
    assert without.why("x") == [f"x: {gone}"]
    assert without.why("s") == ["s: no longer has b-devel, b-bins, b-misc"]
    products = "products:\n- {artifact: x-devel, include: [a-misc]}\n"
    moved = World(tmp_path / "2", one, plan(graph(spec("a"), spec("b"), more=products)))
    assert moved.why("x") == [
        "x: no longer has a-devel in x-devel, b-devel in x-devel, a-misc in x-runtime",
        "x: now has a-misc in x-devel, a-devel in x-runtime, b-devel in x-runtime",
    ]
    more = World(tmp_path / "3", one, plan(graph(spec("a"), spec("b"), strata="xy")))
    assert more.why("s") == ["s: stratum y added"]
    order = World(tmp_path / "4", one, plan(graph(spec("b"), spec("a"))))
    assert order.why("s") == ["s: the order of its parts changed"]


def test_changes_without_old_records(tmp_path: Path) -> None:
    graph = loaded(FILES)
    world = World(tmp_path, plan(graph), plan(graph, {"a": "2.0"}))
    a, b = (world.key(world.old, name) for name in "ab")
    comparison = Comparison(Records(world.store), Records(world.store, world.new), lambda *_: "")
    key = world.key(world.new, "a")
    [never] = comparison.changes("a", None, key)
    assert never.text == "never built before"
    [same] = comparison.changes("a", key, key)
    assert same.text == "built before with these inputs, but no longer in the store"
    kept = world.store.manifest(b)
    assert kept is not None
    world.store.remove([b])
    assert world.why("b") == ["b: the record of its last build is no longer in the store"]
    world.store.put(replace(kept, inputs={}), {})
    assert world.why("b") == ["b: its last build was by an older version, which recorded no inputs"]
    world.store.remove([a])
    lost = "c: the store no longer has the records of some chunks that it was built with"
    assert world.why("c") == [lost, *world.why("b")]
    Path(tmp_path, "store/manifests", b).chmod(0o600)
    Path(tmp_path, "store/manifests", b).write_text("damaged")
    assert world.why("b") == ["b: the record of its last build is no longer in the store"]


@pytest.mark.parametrize("length", [300])
def test_changes_of_a_long_chain(tmp_path: Path, length: int) -> None:
    specs = [spec("c0")] + [spec(f"c{n}", after(f"c{n - 1}")) for n in range(1, length)]
    graph = loaded(small(x=stratum("x", *specs)))
    world = World(tmp_path, plan(graph), plan(graph, {"c0": "2.0"}))
    assert world.why("s") == ["c0: source ffffffffffff -> 2.0"]
