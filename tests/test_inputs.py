"""The inputs that a manifest records: nothing is built again without one that can be named."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from definitions_kit import loaded
from msgspec.structs import replace
from test_keys import CHANGES, SAME, files, with_recipe

from fabric import inputs as module
from fabric.definitions.graph import Graph
from fabric.definitions.keys import KEY_VERSION
from fabric.definitions.select import needed
from fabric.inputs import DIGEST, SHORT, inputs
from fabric.jobs import Job, Manifest, Source
from fabric.plan import Plan
from fabric.trove.artifacts.manifests import decode, encode


def sha1(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def jobs(graph: Graph, tools: str = "tools", **changed: Source) -> dict[str, Job]:
    """Jobs by name; ``changed`` are sources of chunks by name."""
    sources = {
        step.id: changed.get(
            step.name, Source(step.repo, step.ref, sha1(step.ref), sha1(f"tree {step.name}"))
        )
        for step in graph.steps
        if step.kind == "chunk"
    }
    goals = (graph.root.id,)
    plan = Plan(graph, goals, needed(graph, goals), sources, tools)
    return {step.name: plan.job(step) for step in plan.steps}


def recorded(job: Job) -> tuple[object, ...]:
    """All that a manifest tells of the reasons for a build."""
    return inputs(job), job.staged, job.lists


@pytest.mark.parametrize("change", CHANGES)
def test_inputs_change_with_the_key(change: str) -> None:
    graph = loaded(files())
    before, after = jobs(graph), jobs(CHANGES[change](graph))
    for name in ("b", "x", "s"):
        assert before[name].key != after[name].key
        assert recorded(before[name]) != recorded(after[name])
    own = change == "staged" or inputs(before["b"]) != inputs(after["b"])
    assert own, "the chunk's own inputs changed, not only keys of what it is made from"


@pytest.mark.parametrize("change", SAME)
def test_inputs_stay_with_the_key_but_for_the_ref(change: str) -> None:
    graph = loaded(files())
    before, after = jobs(graph)["a"], jobs(SAME[change](graph))["a"]
    labels = (module.REF, module.COMMIT)
    one, other = (
        {name: value for name, value in inputs(job).items() if name not in labels}
        for job in (before, after)
    )
    assert one == other


def test_inputs_change_with_source_submodules_tools_and_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = loaded(files())
    plain = Source("upstream:one", "1.0", sha1("c"), sha1("t"))
    module_source = Source("upstream:m", "1.0", sha1("mc"), sha1("mt"))
    with_module = replace(plain, submodules=(("m", module_source),))
    newer = replace(plain, submodules=(("m", replace(module_source, tree=sha1("newer"))),))
    elsewhere = replace(plain, submodules=(("m", replace(module_source, repo="upstream:n")),))
    found = [
        jobs(graph, one=plain)["one"],
        jobs(graph, one=replace(plain, tree=sha1("other")))["one"],
        jobs(graph, one=with_module)["one"],
        jobs(graph, one=newer)["one"],
        jobs(graph, tools="newer", one=plain)["one"],
    ]
    found += [jobs(with_recipe(graph, "one", max_jobs=n), one=plain)["one"] for n in (1, 2)]
    assert len({job.key for job in found}) == len(found)
    assert len({msgspec.json.encode(inputs(job)) for job in found}) == len(found)
    same = [jobs(graph, one=source)["one"] for source in (with_module, elsewhere)]
    assert same[0].key == same[1].key
    assert inputs(same[0]) == inputs(same[1])
    monkeypatch.setattr(module, "KEY_VERSION", KEY_VERSION + 1)
    assert inputs(found[0])[module.RULES] == str(KEY_VERSION + 1)


def test_inputs_know_every_field_of_a_job() -> None:
    """A new field of a job that changes its output must be added to the inputs."""
    assert set(Job.__struct_fields__) == {
        *("key", "kind", "name", "arch", "log", "artifacts", "recipe", "metadata"),
        *("source_name", "source"),
        *("mode", "host_tools", "prefix", "environment", "commands", "max_jobs", "rules"),
        *("devices", "integration", "staged", "lists", "strata", "rebuild_of"),
    }


def test_inputs_are_bounded() -> None:
    graph = loaded(files())
    commands = {"build-commands": ("make " * 100_000,)}
    long = replace(with_recipe(graph, "b", commands=commands), arch="x86_64")
    for job in jobs(long).values():
        for name, value in inputs(job).items():
            assert len(name) < 300
            assert len(value) <= SHORT
        assert len(msgspec.json.encode(inputs(job))) < 4000


def test_inputs_that_are_long_are_digests() -> None:
    graph = loaded(files())

    def prefix(text: str) -> str:
        return inputs(replace(jobs(graph)["b"], prefix=text))["prefix"]

    assert prefix("x" * SHORT) == "x" * SHORT
    assert prefix("x" * (SHORT + 1)).startswith(DIGEST)
    assert prefix("x" * (SHORT + 1)) != prefix("x" * (SHORT + 2))
    assert prefix(DIGEST) != DIGEST, "no text looks like a digest"


def test_manifest_without_inputs_is_read() -> None:
    old = Manifest(key="0" * 64, kind="chunk", name="a", arch="x86_64", artifacts=())
    assert b"inputs" not in encode(old)
    assert decode(encode(old), old.key).inputs == {}
    new = replace(old, inputs={"prefix": "/usr"})
    assert decode(encode(new), old.key) == new
