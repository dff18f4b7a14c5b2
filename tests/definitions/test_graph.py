"""The build graph, beyond comparison with Baserock's tool."""

from __future__ import annotations

import json

import pytest
from definitions_kit import SHA, check_order, loaded, mistakes, named, small, spec, stratum, system

from fabric.definitions.describe import describe, dot, tree
from fabric.definitions.graph import COMMAND_STEPS, Graph, Submodule
from fabric.definitions.select import find, needed
from fabric.errors import FabricError

CHUNK = "build-system: autotools"
BOOTSTRAP = f"{CHUNK}\nbuild-mode: bootstrap\nprefix: /tools"


def core() -> dict[str, str]:
    """A toolchain, two strata that need it, and one that only the second of these needs."""
    return small(
        boot=stratum(
            "boot",
            spec("stage1", BOOTSTRAP),
            spec("unused", BOOTSTRAP),
            spec("cc", f"{CHUNK}\nbuild-depends: [stage1]"),
        ),
        core=stratum("core", spec("zlib"), spec("gtk-devel"), depends="boot"),
        deep=stratum("deep", spec("m4"), depends="boot"),
        top=stratum("top", spec("b", f"{CHUNK}\nbuild-depends: [a]"), spec("a"), depends="deep"),
    )


def ids(graph: Graph, *names: str) -> set[str]:
    return {step.id for step in graph.steps if step.name in names}


def test_graph_ids_name_the_files_of_steps() -> None:
    graph = loaded(core())
    assert named(graph, "zlib").id == "chunk:strata/core.morph:zlib"
    assert named(graph, "core", "stratum").id == "stratum:strata/core.morph"
    assert graph.root.id == "system:systems/s.morph"
    assert graph.root.artifacts == ("s-rootfs",)


def test_graph_order_is_by_height_then_path_then_dependency() -> None:
    graph = loaded({**core(), "systems/s.morph": system("top", "core", "boot")})
    check_order(graph)
    assert [step.name for step in graph.steps] == [
        *("stage1", "unused", "cc", "boot"),
        *("zlib", "gtk-devel", "core", "m4", "deep"),
        *("a", "b", "top", "s"),
    ]


def test_graph_staging_areas_and_paths() -> None:
    graph = loaded(core())
    assert named(graph, "cc").staged == (named(graph, "stage1").id,)
    assert named(graph, "cc").path_prefixes == ("/tools",)
    # Bootstrap chunks of other strata are not staged, but their prefix stays on the PATH.
    assert set(named(graph, "b").staged) == ids(graph, "cc", "m4", "a")
    assert named(graph, "b").path_prefixes == ("/tools", "/usr")
    assert set(named(graph, "a").depends) == {named(graph, "deep", "stratum").id}


def test_chunk_morph_replaces_commands_one_list_at_a_time() -> None:
    files = small(x=stratum("x", spec("a", "morph: strata/a.morph")))
    files["strata/a.morph"] = (
        "name: other\nkind: chunk\nbuild-system: autotools\ndescription: d\nmax-jobs: '3'\n"
        "configure-commands: []\npre-build-commands: [true, no, 'x']\n"
        "products: [{artifact: other-devel, include: [x]}, {artifact: other-x, include: [y]}]\n"
        "devices:\n- {filename: /dev/n, type: c, permissions: '0666', major: 1, minor: 3, uid: 0,"
        " gid: 5}\nsystem-integration: {other-x: {00-a: [run]}}\n"
    )
    graph = loaded(files)
    step = named(graph, "a")
    recipe = step.recipe
    assert recipe is not None
    assert tuple(recipe.commands) == COMMAND_STEPS
    assert recipe.commands["configure-commands"] == ()
    assert recipe.commands["pre-build-commands"] == ("true", "false", "x")
    assert recipe.commands["build-commands"] == ("make",)
    assert recipe.commands["test-commands"] == ()
    assert recipe.max_jobs == 3
    assert recipe.devices[0].permissions == 0o666
    assert recipe.integration == {"other-x": {"00-a": ("run",)}}
    assert (step.source_name, step.description, step.morph) == ("other", "d", "strata/a.morph")
    # Products stand first and replace the default of their name.
    assert step.artifacts == ("other-devel", "other-x", "other-bins", "other-misc")
    assert recipe.rules[0].include == ("x",)
    [warning] = graph.warnings
    assert warning.message.startswith("chunk a: strata/a.morph calls it 'other'")


def test_graph_warns_of_fields_without_effect() -> None:
    files = small(x=stratum("x", spec("a", "morph: strata/a.morph")))
    files["strata/a.morph"] = (
        "name: a\nkind: chunk\nprefix: /opt\nsystem-integration:\n  a-mics: {00: [x]}\n".replace(
            "00", "'00'"
        )
    )
    files["systems/s.morph"] = system(
        "name: x, morph: strata/x.morph, artifacts: [x-runtime, x-openssl]"
    )
    graph = loaded(files)
    recipe = named(graph, "a").recipe
    assert recipe is not None
    assert recipe.integration == {}
    assert [str(warning) for warning in graph.warnings] == [
        "strata/a.morph:3: chunk a: the field 'prefix' means nothing here: remove it",
        "strata/a.morph:5: chunk a: its 'system-integration' for 'a-mics' is lost, as it has no"
        " such artifact; did you mean 'a-misc'?",
        "systems/s.morph:5: system s: stratum x has no artifact 'x-openssl', so nothing is taken"
        " by that name; it has x-devel, x-runtime",
    ]


@pytest.mark.parametrize(
    ("artifacts", "message"),
    [
        ("x-rumtime", "'x-rumtime'; did you mean 'x-runtime'?"),
        ("x-devel, x-runtimes", "'x-runtimes'; did you mean 'x-runtime'?"),
    ],
)
def test_system_typos_in_the_names_of_artifacts(artifacts: str, message: str) -> None:
    files = small(x=stratum("x", spec("a")))
    files["systems/s.morph"] = system(f"name: x, morph: strata/x.morph, artifacts: [{artifacts}]")
    said = "systems/s.morph:5: system s: stratum x has no artifact"
    assert mistakes(files) == [f"{said} {message}"]


def test_chunk_of_two_names() -> None:
    files = small(x=stratum("x", spec("lua51", "morph: strata/lua.morph")))
    files["strata/lua.morph"] = "name: lua\nkind: chunk\n"
    assert [str(warning) for warning in loaded(files).warnings] == [
        "strata/x.morph:5: chunk lua51: strata/lua.morph calls it 'lua', which names its artifacts,"
        " as lua-bins: give it one name"
    ]


@pytest.mark.parametrize(
    ("arch", "meant"), [("amd64", "x86_64"), ("x86-64", "x86_64"), ("arm64", "aarch64")]
)
def test_architectures_as_others_call_them(arch: str, meant: str) -> None:
    files = small(x=stratum("x", spec("a")))
    files["systems/s.morph"] = system("x", arch=arch)
    unknown = f"systems/s.morph:3: system s: unknown architecture {arch!r}"
    assert mistakes(files) == [f"{unknown}; did you mean {meant!r}?"]


def test_submodules() -> None:
    inner = "{lib: {url: 'upstream:lib', submodules: {deep: {url: u}}}}"
    graph = loaded(small(x=stratum("x", spec("a", f"{CHUNK}\nsubmodules: {inner}"))))
    recipe = named(graph, "a").recipe
    assert recipe is not None
    assert recipe.submodules == (Submodule("lib", "upstream:lib", (Submodule("deep", "u"),)),)


def test_stratum_lists() -> None:
    mapped = spec("a", f"{CHUNK}\nartifacts: {{a-bins: x-tiny}}")
    products = "products: [{artifact: x-misc, include: ['.*-misc']}]\n"
    graph = loaded(small(x=stratum("x", mapped, spec("s1", BOOTSTRAP), more=products)))
    step = named(graph, "x", "stratum")
    a = named(graph, "a").id
    assert step.artifacts == ("x-tiny", "x-misc", "x-devel", "x-runtime")
    assert step.lists == {
        "x-tiny": ((a, "a-bins"),),
        "x-misc": ((a, "a-misc"),),
        "x-devel": ((a, "a-devel"),),
        "x-runtime": (),
    }
    assert [artifact for _, artifact in graph.root.contents] == list(step.artifacts)


def test_stratum_listed_twice_by_alias() -> None:
    entry = "name: x, morph: strata/x.morph, artifacts: [{}]"
    files = small(x=stratum("x", spec("a")))
    files["systems/s.morph"] = system(
        entry.format("x-runtime"), entry.format("x-runtime, x-devel") + ", alias: again"
    )
    graph = loaded(files)
    assert [artifact for _, artifact in graph.root.contents] == ["x-runtime", "x-devel"]


def test_chunk_names_may_repeat() -> None:
    files = small(
        x=stratum("x", spec("a")), y=stratum("y", spec("a", "morph: strata/a.morph"), depends="x")
    )
    graph = loaded({**files, "strata/a.morph": "name: a\nkind: chunk\n"})
    first, second = (step for step in graph.steps if step.name == "a")
    assert first.artifacts == second.artifacts
    assert second.staged == (first.id,)
    assert find(graph, "a") == (first.id, second.id)


def test_shared_chunk_is_one_step() -> None:
    graph = loaded(small(x=stratum("x", spec("a")), y=stratum("y", spec("a"), spec("b"))))
    assert named(graph, "a").strata == ("x", "y")
    assert named(graph, "a").id == "chunk:strata/x.morph:a"


def test_needed_of_a_chunk() -> None:
    graph = loaded(core())
    wanted = needed(graph, [named(graph, "a").id])
    assert wanted == ids(graph, "a", "m4", "cc", "stage1")


def test_needed_of_a_system() -> None:
    """It needs only the chunks in the artifacts that it takes."""
    entry = "name: core, morph: strata/core.morph, artifacts: [core-runtime]"
    graph = loaded({**core(), "systems/s.morph": system("boot", entry)})
    assert needed(graph, [graph.root.id]) == ids(graph, "s", "boot", "cc", "stage1", "zlib")
    assert not named(graph, "gtk-devel").in_system
    whole = needed(graph, find(graph, "core"))
    assert whole == ids(graph, "core", "cc", "stage1", "zlib", "gtk-devel")


def test_find() -> None:
    graph = loaded(core())
    zlib = named(graph, "zlib").id
    for name in ("zlib", "zlib-misc", "zlib-bins", zlib):
        assert find(graph, name) == (zlib,)
    assert find(graph, "core") == find(graph, "core-runtime") == find(graph, "strata/core.morph")
    assert find(graph, "s") == find(graph, "s-rootfs") == (graph.root.id,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zlip", "s has no chunk, stratum or artifact 'zlip'; did you mean 'zlib'?"),
        (
            "qqq",
            "s has no chunk, stratum or artifact 'qqq';"
            " `fabric-initiator graph systems/s.morph` lists all",
        ),
        ("", "s has no chunk, stratum or artifact ''"),
    ],
)
def test_find_reports_similar_names(name: str, message: str) -> None:
    with pytest.raises(FabricError) as caught:
        find(loaded(core()), name)
    assert str(caught.value).startswith(message)


def test_describe_is_json_with_the_documented_fields() -> None:
    graph = loaded(core())
    facts = json.loads(json.dumps(describe(graph)))
    assert (facts["system"], facts["arch"]) == ("s", "x86_64")
    fields = (
        "id kind name strata repo ref morph build_system mode build_only prefix depends staged"
        " path_prefixes in_system"
    )
    assert all(list(step) == fields.split() for step in facts["steps"])
    by_name = {(step["kind"], step["name"]): step for step in facts["steps"]}
    assert by_name["chunk", "b"] == {
        "id": "chunk:strata/top.morph:b",
        "kind": "chunk",
        "name": "b",
        "strata": ["top"],
        "repo": "upstream:b",
        "ref": SHA,
        "morph": "",
        "build_system": "autotools",
        "mode": "staging",
        "build_only": False,
        "prefix": "/usr",
        "depends": ["stratum:strata/deep.morph", "chunk:strata/top.morph:a"],
        "staged": [
            "chunk:strata/boot.morph:cc",
            "chunk:strata/deep.morph:m4",
            "chunk:strata/top.morph:a",
        ],
        "path_prefixes": ["/tools", "/usr"],
        "in_system": True,
    }
    assert by_name["stratum", "top"]["depends"] == [
        "stratum:strata/deep.morph",
        "chunk:strata/top.morph:b",
        "chunk:strata/top.morph:a",
    ]
    assert by_name["system", "s"]["depends"] == [
        f"stratum:strata/{name}.morph" for name in ("boot", "core", "deep", "top")
    ]
    assert not by_name["chunk", "stage1"]["in_system"]


def test_tree() -> None:
    entry = "name: top, morph: strata/top.morph"
    assert tree(loaded({**core(), "systems/s.morph": system("boot", entry)})) == (
        "s (x86_64)\n"
        "├── boot\n"
        "│   ├── stage1  (bootstrap)\n"
        "│   ├── unused  (bootstrap)\n"
        "│   └── cc  (needs stage1)\n"
        "├── deep  (needs boot; not in the system)\n"
        "│   └── m4\n"
        "└── top  (needs deep)\n"
        "    ├── a\n"
        "    └── b  (needs a)\n"
    )


def test_dot() -> None:
    graph = loaded(core())
    lines = dot(graph).splitlines()
    assert lines[0] == 'digraph "s" {'
    assert lines[-1] == "}"
    assert '  "chunk:strata/top.morph:b" -> "chunk:strata/top.morph:a";' in lines
    assert '    "chunk:strata/boot.morph:stage1" [label="stage1", style=dashed];' in lines
    nodes = [line for line in lines if "label=" in line and "->" not in line]
    strata = sum(step.kind == "stratum" for step in graph.steps)
    assert len(nodes) == len(graph.steps) + strata  # a box has a label too
