"""Import chunks, and chunks that are build-only."""

from __future__ import annotations

import pytest
from definitions_kit import DEFAULTS, check_order, loaded, mistakes, named, small, spec, stratum

from fabric.definitions.describe import tree
from fabric.definitions.environment import environment
from fabric.definitions.keys import cache_keys
from fabric.definitions.least_depends import least_depends

IMPORT = "build-mode: import"
TOOLS = f"{IMPORT}\nbuild-only: true\nprefix: /tools"


def files(tools: str = TOOLS) -> dict[str, str]:
    """Two strata; ``cc`` of the lower one is built with ``tools``."""
    return small(
        low=stratum(
            "low",
            spec("tools", tools),
            spec("cc", "build-system: autotools\nbuild-depends: [tools]"),
        ),
        high=stratum("high", spec("app"), depends="low"),
    )


def test_import_chunk_has_no_commands_and_nothing_staged() -> None:
    """Commands of the build system `manual` are for chunks that are built."""
    defaults = DEFAULTS.replace("manual: {}", "manual: {build-commands: [make]}")
    high = stratum("high", spec("app", IMPORT), depends="low")
    graph = loaded(files() | {"DEFAULTS": defaults, "strata/high.morph": high})
    check_order(graph)
    for name in ("tools", "app"):
        step = named(graph, name)
        assert (step.mode, step.depends, step.staged, step.path_prefixes) == ("import", (), (), ())
        assert step.recipe is not None
        assert not any(step.recipe.commands.values())
        assert step.artifacts == (f"{name}-bins", f"{name}-devel", f"{name}-misc")


def test_import_chunk_may_have_a_morph() -> None:
    low = stratum("low", spec("tools", f"{IMPORT}\nmorph: strata/tools.morph"))
    graph = loaded(
        small(low=low)
        | {
            "strata/tools.morph": "name: tools\nkind: chunk\ndescription: d\n"
            "products: [{artifact: tools-all, include: ['.*']}]\n"
            "devices:\n- {filename: /dev/n, type: c, permissions: '0666', major: 1, minor: 3,"
            " uid: 0, gid: 0}\nsystem-integration: {tools-all: {00-a: [run]}}\n"
        }
    )
    step = named(graph, "tools")
    assert step.recipe is not None
    assert (step.artifacts[0], step.description) == ("tools-all", "d")
    assert step.recipe.devices
    assert step.recipe.integration == {"tools-all": {"00-a": ("run",)}}


def test_import_chunk_has_no_host_tools_in_any_key() -> None:
    graph = loaded(files())
    trees = {step.id: "tree" for step in graph.steps if step.kind == "chunk"}
    assert cache_keys(graph, trees, "one") == cache_keys(graph, trees, "two")
    assert not graph.needs_host_tools
    graph = loaded(files("build-system: autotools\nbuild-mode: bootstrap"))
    assert cache_keys(graph, trees, "one") != cache_keys(graph, trees, "two")
    assert graph.needs_host_tools


def test_import_chunk_with_fields_about_building() -> None:
    low = stratum(
        "low",
        spec("one", f"{IMPORT}\nbuild-system: autotools\nbuild-depends: []"),
        spec("two", f"{IMPORT}\nmorph: strata/two.morph"),
    )
    morph = (
        "name: two\nkind: chunk\nbuild-system: autotools\nbuild-commands: [make]\n"
        "post-strip-commands: []\nmax-jobs: 1\n"
    )
    fault = "it is imported as it is, and nothing is run: remove"
    ending = "or 'build-mode: import' from its stratum"
    assert mistakes(small(low=low) | {"strata/two.morph": morph}) == [
        f"strata/low.morph:9: chunk one: {fault} 'build-system', {ending}",
        f"strata/low.morph:10: chunk one: {fault} 'build-depends', {ending}",
        f"strata/two.morph:3: chunk two: {fault} 'build-system', {ending}",
        f"strata/two.morph:4: chunk two: {fault} 'build-commands', {ending}",
        f"strata/two.morph:5: chunk two: {fault} 'post-strip-commands', {ending}",
        f"strata/two.morph:6: chunk two: {fault} 'max-jobs', {ending}",
    ]


def test_import_stratum_needs_no_build_depends() -> None:
    text = stratum("low", spec("tools", IMPORT)).replace("build-depends: []\n", "")
    assert loaded(small(low=text))


def test_build_only_chunk_is_seen_in_its_stratum_only() -> None:
    graph = loaded(files())
    tools, cc, app = (named(graph, name) for name in ("tools", "cc", "app"))
    assert cc.staged == (tools.id,)
    assert environment(cc, "x86_64")["PATH"].startswith("/tools/bin:")
    assert app.staged == (cc.id,)
    assert environment(app, "x86_64")["PATH"].startswith("/usr/bin:")
    low = named(graph, "low", "stratum")
    assert {chunk for content in low.lists.values() for chunk, _ in content} == {cc.id}
    assert (tools.build_only, tools.in_system, cc.in_system) == (True, False, True)
    assert "tools  (import; build-only)\n" in tree(graph)


def test_import_chunk_is_seen_by_others_unless_build_only() -> None:
    graph = loaded(files(IMPORT))
    tools, cc, app = (named(graph, name) for name in ("tools", "cc", "app"))
    assert app.staged == (tools.id, cc.id)
    assert tools.in_system


def test_build_only_works_in_every_mode() -> None:
    for more in (IMPORT, "build-system: autotools", "build-system: autotools\nbuild-mode: test"):
        graph = loaded(files(f"{more}\nbuild-only: true"))
        assert not named(graph, "tools").in_system
        assert named(graph, "app").staged == (named(graph, "cc").id,)


SEEDED = "build-system: autotools\nbuild-mode: bootstrap\nprefix: /tools\nbuild-depends: "


def stages(seed: str = f"{IMPORT}\nbuild-only: true") -> dict[str, str]:
    """Two strata: the lower one has a seed, two bootstrap chunks on it, and ``libc`` on these."""
    return small(
        low=stratum(
            "low",
            spec("seed", seed),
            spec("stage1", f"{SEEDED}[seed]"),
            spec("stage2", f"{SEEDED}[stage1]"),
            spec("libc", "build-system: autotools\nbuild-depends: [stage2]"),
            spec("make", "build-system: autotools\nbuild-depends: [libc]"),
        ),
        high=stratum("high", spec("app"), depends="low"),
    )


def test_bootstrap_chunk_on_an_import_chunk_is_built_with_it() -> None:
    """Its key has no host tools, and what it is built with stays behind."""
    graph = loaded(stages())
    check_order(graph)
    seed, stage1, stage2, libc, make, app = (
        named(graph, name) for name in ("seed", "stage1", "stage2", "libc", "make", "app")
    )
    assert (stage1.mode, stage1.staged) == ("staging", (seed.id,))
    assert (stage2.mode, stage2.staged) == ("staging", (seed.id, stage1.id))
    assert environment(stage2, "x86_64")["PATH"].startswith("/tools/bin:/usr/bin:")
    assert libc.staged == (stage2.id,)
    assert make.staged == (stage2.id, libc.id)
    assert app.staged == (libc.id, make.id)
    assert environment(app, "x86_64")["PATH"].startswith("/usr/bin:")
    assert (stage2.build_only, stage2.in_system, libc.in_system) == (True, False, True)
    trees = {step.id: "tree" for step in graph.steps if step.kind == "chunk"}
    assert not graph.needs_host_tools
    assert cache_keys(graph, trees, "one") == cache_keys(graph, trees, "two")
    changed = trees | {seed.id: "other"}
    assert cache_keys(graph, trees, "")[make.id] != cache_keys(graph, changed, "")[make.id]


def test_least_depends_names_what_a_seeded_chunk_leaves_behind() -> None:
    files = stages()
    files["strata/low.morph"] = files["strata/low.morph"].replace(
        "build-depends: [stage2]", "build-depends: [stage1, stage2]"
    )
    graph = loaded(files)
    libc, stage1, stage2 = (named(graph, name) for name in ("libc", "stage1", "stage2"))
    assert libc.staged == (stage1.id, stage2.id)
    assert least_depends(graph, libc, libc.staged).build_depends == ["stage1", "stage2"]
    assert least_depends(graph, stage2, stage2.staged).build_depends == ["stage1"]


def test_bootstrap_chunk_on_others_than_import_chunks_needs_the_machine() -> None:
    graph = loaded(stages("build-system: autotools\nbuild-mode: bootstrap"))
    assert named(graph, "stage2").mode == "bootstrap"
    assert len(named(graph, "make").staged) == 4
    assert graph.needs_host_tools


def test_bootstrap_chunk_does_not_see_an_import_chunk_that_is_build_only_elsewhere() -> None:
    high = stratum("high", spec("app", f"{SEEDED}[]"), spec("top"), depends="low")
    graph = loaded(stages() | {"strata/high.morph": high})
    assert named(graph, "app").mode == "bootstrap"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            f"{IMPORT}\nbuild-only: 1",
            "9: chunk tools: 'build-only' must be true or false, not the number 1",
        ),
        (
            "build-system: autotools\nbuild-mode: bootstrap\nbuild-only: false",
            "10: chunk tools: bootstrap chunks are always build-only: remove 'build-only: false'",
        ),
        (
            f"{IMPORT}\nbuild-only: true\nartifacts: {{tools-bins: low-bins}}",
            "10: chunk tools is build-only, so no stratum artifact takes its artifacts: remove"
            " 'artifacts' or 'build-only'",
        ),
    ],
)
def test_build_only_mistakes(more: str, message: str) -> None:
    assert mistakes(files(more)) == [f"strata/low.morph:{message}"]


def test_build_only_is_the_same_in_all_strata_of_a_chunk() -> None:
    high = stratum("high", spec("tools", f"{IMPORT}\nprefix: /tools"))
    assert mistakes(files() | {"strata/high.morph": high}) == [
        "strata/high.morph:5: chunk tools: strata/low.morph:9 lists the same repo, ref and morph"
        " with another build-only, but it is built only once: make them equal, or give one of them"
        " another name and morph"
    ]


def test_system_of_build_only_chunks_is_a_mistake() -> None:
    assert mistakes(small(low=stratum("low", spec("tools", TOOLS)))) == [
        "systems/s.morph:1: system s: all its chunks are build-only or bootstrap chunks, which are"
        " in no system: there is nothing to build"
    ]
