"""A cache key changes with all input that can change the output, and with nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from definitions_kit import loaded, named, small, spec, stratum, system
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fabric.definitions import keys as module
from fabric.definitions.graph import Device, Graph, Recipe, Rule, Step, Submodule
from fabric.definitions.keys import cache_keys, digests

BOOTSTRAP = "build-system: autotools\nbuild-mode: bootstrap\nprefix: /tools"
AFTER = "build-system: autotools\nbuild-depends: [one]"


def files() -> dict[str, str]:
    return small(
        boot=stratum("boot", spec("one", BOOTSTRAP), spec("base", AFTER)),
        x=stratum("x", spec("a"), spec("b", "morph: strata/b.morph"), depends="boot"),
    ) | {"strata/b.morph": "name: b\nkind: chunk\nbuild-commands: [make]\n"}


def trees(graph: Graph) -> dict[str, str]:
    return {step.id: f"tree of {step.id}" for step in graph.steps if step.kind == "chunk"}


def keys_of(graph: Graph, tools: str = "tools", **changed: str) -> dict[str, str]:
    """Keys by name; ``changed`` are trees by name of their chunk."""
    known = trees(graph) | {named(graph, name).id: tree for name, tree in changed.items()}
    found = cache_keys(graph, known, tools)
    return {graph[step].name: key for step, key in found.items()}


def with_step(graph: Graph, name: str, /, **fields: Any) -> Graph:
    """The graph with one step changed."""
    steps = tuple(replace(step, **fields) if step.name == name else step for step in graph.steps)
    return replace(graph, steps=steps)


def with_recipe(graph: Graph, name: str, **fields: Any) -> Graph:
    recipe = named(graph, name).recipe
    assert recipe is not None
    return with_step(graph, name, recipe=replace(recipe, **fields))


def test_keys_are_names() -> None:
    found = keys_of(loaded(files()))
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in found.values())
    assert len(set(found.values())) == len(found) == 7


CHANGES: dict[str, Callable[[Graph], Graph]] = {
    "arch": lambda graph: replace(graph, arch="x86_32"),
    "source name": lambda graph: with_step(graph, "b", source_name="c"),
    "mode": lambda graph: with_step(graph, "b", mode="test"),
    "prefix": lambda graph: with_step(graph, "b", prefix="/opt"),
    "path": lambda graph: with_step(graph, "b", path_prefixes=("/usr",)),
    "staged": lambda graph: with_step(graph, "b", staged=()),
    "commands": lambda graph: with_recipe(graph, "b", commands={"build-commands": ("make all",)}),
    "step": lambda graph: with_recipe(graph, "b", commands={"pre-build-commands": ("make",)}),
    "rules": lambda graph: with_recipe(graph, "b", rules=(Rule("b-misc", (".*",)),)),
    "devices": lambda graph: with_recipe(
        graph, "b", devices=(Device("/dev/null", "c", 0o666, 1, 3, 0, 0),)
    ),
    "max-jobs": lambda graph: with_recipe(graph, "b", max_jobs=1),
    "flags": lambda graph: with_recipe(graph, "b", flags={"CFLAGS": "-O2"}),
    "integration": lambda graph: with_recipe(graph, "b", integration={"b-misc": {"00": ("x",)}}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_keys_change_with_relevant_input(change: str) -> None:
    graph = loaded(files())
    before, after = keys_of(graph), keys_of(CHANGES[change](graph))
    assert before["b"] != after["b"]
    assert before["x"] != after["x"]
    assert before["s"] != after["s"]
    assert change == "arch" or before["a"] == after["a"]


SAME: dict[str, Callable[[Graph], Graph]] = {
    "repo": lambda graph: with_step(graph, "b", repo="elsewhere"),
    "ref": lambda graph: with_step(graph, "b", ref="master"),
    "name in the stratum": lambda graph: with_step(graph, "b", name="c"),
    "description": lambda graph: with_step(graph, "b", description="changed"),
    "strata": lambda graph: with_step(graph, "b", strata=("y",)),
    "morph": lambda graph: with_step(graph, "b", morph="strata/elsewhere.morph"),
    "build-system": lambda graph: with_step(graph, "b", build_system="cmake"),
    "submodules": lambda graph: with_recipe(graph, "b", submodules=(Submodule("a", "b"),)),
    "depends": lambda graph: with_step(graph, "b", depends=()),
    "empty lists": lambda graph: with_recipe(graph, "a", commands=_without_empty(graph, "a")),
    "system's file": lambda graph: replace(graph, path="systems/t.morph"),
    "where": lambda graph: with_step(graph, "a", where="x:1", unpetrify_ref="master"),
    "warnings": lambda graph: replace(graph, warnings=()),
    "build-only": lambda graph: with_step(graph, "b", build_only=True),
    "not-reproducible": lambda graph: with_step(graph, "a", not_reproducible="why"),
    "seeded": lambda graph: with_step(graph, "b", seeded=True),
}


def _without_empty(graph: Graph, name: str) -> dict[str, tuple[str, ...]]:
    recipe = named(graph, name).recipe
    assert recipe is not None
    return {step: commands for step, commands in recipe.commands.items() if commands}


@pytest.mark.parametrize("change", SAME)
def test_keys_ignore_irrelevant_input(change: str) -> None:
    graph = loaded(files())
    assert list(keys_of(graph).values()) == list(keys_of(SAME[change](graph)).values())


def test_keys_tests_know_every_field() -> None:
    """A new field of a step must be added to the tests of keys."""
    step = set(Step.__struct_fields__)
    assert step == {
        *("id", "kind", "name", "artifacts", "depends", "morph", "description", "strata"),
        *("source_name", "repo", "ref", "build_system", "mode", "prefix", "staged"),
        *("path_prefixes", "recipe", "in_system", "lists", "contents", "where", "unpetrify_ref"),
        *("build_only", "seeded", "not_reproducible"),
    }
    recipe = set(Recipe.__struct_fields__)
    assert recipe == {
        *("commands", "rules", "max_jobs", "devices", "integration", "submodules", "flags"),
    }


def test_keys_depend_on_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = loaded(files())
    before = keys_of(graph)
    monkeypatch.setattr(module, "KEY_VERSION", module.KEY_VERSION + 1)
    after = keys_of(graph)
    assert all(before[name] != after[name] for name in before)


def test_keys_cover_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = loaded(files())
    before = keys_of(graph)
    monkeypatch.setattr(module, "environment", lambda _step, _arch: {"LC_ALL": "C.UTF-8"})
    assert before["a"] != keys_of(graph)["a"]


def test_keys_cover_the_environment_of_integration_scripts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = loaded(files())
    before = digests(graph, {step.id: step.name for step in graph.steps}, "")
    monkeypatch.setattr(module, "INTEGRATION", {"PATH": "/bin"})
    after = digests(graph, {step.id: step.name for step in graph.steps}, "")
    for found, other in ((before.keys, after.keys), (before.recipes, after.recipes)):
        changed = {graph[id].kind for id in found if found[id] != other[id]}
        assert changed == {"system"}


def test_keys_of_all_dependents_change_with_a_tree() -> None:
    graph = loaded(files())
    before, after = keys_of(graph), keys_of(graph, one="other tree")
    assert [name for name in before if before[name] == after[name]] == []
    after = keys_of(graph, a="other tree")
    assert [name for name in before if before[name] == after[name]] == ["one", "base", "boot", "b"]


def test_keys_cover_host_tools_where_they_are_used() -> None:
    """The chunk is built with them, and so are all its dependents."""
    graph = loaded(small(x=stratum("x", spec("one", BOOTSTRAP)), y=stratum("y", spec("z"))))
    before, after = keys_of(graph), keys_of(graph, tools="newer")
    assert before["one"] != after["one"]
    assert before["z"] == after["z"]


def test_keys_need_a_tree() -> None:
    graph = loaded(files())
    known = {step: tree for step, tree in trees(graph).items() if not step.endswith(":a")}
    found = cache_keys(graph, known, "")
    assert {graph[step].name for step in graph.steps[0].depends} == set()
    assert {graph[step].name for step in found} == {"one", "base", "boot", "b"}


def test_keys_of_a_system_ignore_what_it_does_not_take() -> None:
    """Only x-devel of x is in the system, so x-runtime does not count."""
    entry = "name: x, morph: strata/x.morph, artifacts: [x-devel]"
    only = spec("a", "build-system: autotools\nartifacts: {a-devel: x-runtime}")
    definitions = files() | {"strata/x.morph": stratum("x", only, spec("b"), depends="boot")}
    graph = loaded({**definitions, "systems/s.morph": system("boot", entry)})
    before, after = keys_of(graph), keys_of(graph, a="other tree")
    assert before["x"] != after["x"]
    assert before["s"] == after["s"]


def test_keys_are_the_same_in_all_systems() -> None:
    """The order of layers depends on strata, not on the system."""
    definitions = small(
        base=stratum("base", spec("z"), spec("y")),
        left=stratum("left", spec("l"), depends="base"),
        atop=stratum("atop", spec("t"), depends="left base"),
    )
    found = set()
    for order in ("base left atop", "atop left base", "atop"):
        graph = loaded({**definitions, "systems/s.morph": system(*order.split())})
        found.add(keys_of(graph)["t"])
    assert len(found) == 1


def test_keys_ignore_formatting() -> None:
    """Order of keys, quotes, comments and description of a chunk morph do not count."""
    definitions = files()
    before = keys_of(loaded(definitions))
    definitions["strata/b.morph"] = (
        "# a comment\nkind: chunk\nbuild-commands:\n- 'make'\ndescription: new\nname: b\n"
    )
    assert keys_of(loaded(definitions)) == before


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)
_LISTS = st.dictionaries(
    st.sampled_from(["build-commands", "install-commands"]),
    st.lists(_TEXT, min_size=1, max_size=3).map(tuple),
    max_size=2,
)


@given(one=_LISTS, other=_LISTS, rules=st.lists(_TEXT, max_size=3), tree=_TEXT)
def test_keys_differ_for_different_input(
    one: dict[str, tuple[str, ...]], other: dict[str, tuple[str, ...]], rules: list[str], tree: str
) -> None:
    """Text that moves to a neighbouring field or list item changes the key."""
    graph = loaded(files())

    def key(commands: dict[str, tuple[str, ...]], include: tuple[str, ...], source: str) -> str:
        changed = with_recipe(graph, "b", commands=commands, rules=(Rule("b-misc", include),))
        return keys_of(changed, b=source)["b"]

    assert (key(one, (), tree) == key(other, (), tree)) == (one == other)
    assert (key(one, tuple(rules), tree) == key(one, ("".join(rules),), tree)) == (len(rules) == 1)
    assert key(one, (), tree) != key(one, (), f"{tree}x")
