"""Definitions of old versions are migrated: their meaning, comments and order stay."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from definitions_kit import SHA, reader, small, spec, stratum, system

from fabric.definitions.graph import Graph
from fabric.definitions.load import load
from fabric.definitions.migration.migrate import Migrated, migrate
from fabric.definitions.migration.old_tool import DEFAULTS
from fabric.errors import DefinitionsError


class Source:
    """A source with these files at its top."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.names = frozenset(files)
        self.read = dict(files).get


def migrated(files: Mapping[str, str], sources: Mapping[str, Source] | None = None) -> Migrated:
    morphs = [path for path in files if path.endswith(".morph")]
    return migrate(reader(files), morphs, lambda repo, _: (sources or {}).get(repo))


def after(
    files: Mapping[str, str], sources: Mapping[str, Source] | None = None
) -> tuple[dict[str, str], list[str]]:
    """The files after the migration, and the notes."""
    made = migrated(files, sources)
    new = {path: content.decode() for path, content in made.files.items()}
    return {**files, **new}, [str(note) for note in made.notes]


def commands(graph: Graph, chunk: str, step: str) -> tuple[str, ...]:
    recipe = next(one.recipe for one in graph.steps if one.name == chunk)
    assert recipe is not None
    return recipe.commands[step]


def old(version: int | None, **strata: str) -> dict[str, str]:
    """Definitions of an old version with a system ``s``."""
    files = small(**strata)
    del files["VERSION"], files["DEFAULTS"]
    return files if version is None else {**files, "VERSION": f"# the format\nversion: {version}\n"}


@pytest.mark.parametrize("version", [None, 0, 1, 2, 3, 4, 5, 6])
def test_every_old_version_loads_afterwards(version: int | None) -> None:
    files = old(version, x=stratum("x", spec("a"), spec("b", "build-system: cpan")))
    with pytest.raises(DefinitionsError, match=r"version 0|not supported"):
        load(reader(files), "systems/s.morph")
    new, notes = after(files)
    assert notes == []
    assert new["DEFAULTS"] == DEFAULTS
    assert new["VERSION"].endswith("version: 8\n")
    assert new["VERSION"].startswith("# the format") == (version is not None)
    graph = load(reader(new), "systems/s.morph")
    assert graph.warnings == ()
    assert commands(graph, "b", "configure-commands") == (
        'perl Makefile.PL PREFIX="$DESTDIR$PREFIX"',
    )


def test_the_migration_of_new_definitions_changes_nothing() -> None:
    files = small(x=stratum("x", spec("a")))
    assert migrated(files).files == {}
    new, _ = after(old(3, x=stratum("x", spec("a"))))
    assert migrated(new).files == {}


def test_a_defaults_file_that_was_ignored_is_kept_and_noted() -> None:
    files = {**old(6, x=stratum("x", spec("a"))), "DEFAULTS": "build-systems: {}\n"}
    new, notes = after(files)
    assert new["DEFAULTS"] == "build-systems: {}\n"
    assert notes == [
        "DEFAULTS:1: versions before 7 ignored this file, and it counts now: check that it has all"
        " build systems that the chunks name"
    ]


@pytest.mark.parametrize(
    ("names", "system"),
    [
        (["configure.in", "setup.py"], "autotools"),
        (["autogen.sh"], "autotools"),
        (["Makefile.PL", "setup.py"], "python-distutils"),
        (["Makefile.PL", "CMakeLists.txt"], "cpan"),
        (["CMakeLists.txt", "x.pro"], "cmake"),
        (["x.pro"], "qmake"),
    ],
)
def test_the_build_system_is_detected_in_the_old_order(names: list[str], system: str) -> None:
    files = old(5, x=stratum("x", spec("a", "unpetrify-ref: master  # ours")))
    new, notes = after(files, {"upstream:a": Source(dict.fromkeys(names, b""))})
    assert notes == []
    assert f"- name: a\n  build-system: {system}\n  repo: upstream:a\n" in new["strata/x.morph"]
    assert "unpetrify-ref: master  # ours\n" in new["strata/x.morph"]
    load(reader(new), "systems/s.morph")


def test_the_morph_in_a_source_moves_to_the_definitions() -> None:
    files = old(None, x=stratum("x", spec("a", "")))
    own = b"name: a\nkind: chunk\nbuild-mode: staging\ninstall-commands: [touch b]\n"
    new, notes = after(files, {"upstream:a": Source({"a.morph": own, "configure": b""})})
    assert notes == []
    assert "- name: a\n  morph: strata/x/a.morph\n" in new["strata/x.morph"]
    assert new["strata/x/a.morph"] == own.decode().replace("build-mode", "# build-mode")
    graph = load(reader(new), "systems/s.morph")
    assert commands(graph, "a", "install-commands") == ("touch b",)


def test_a_source_that_tells_nothing_is_noted_with_its_new_line() -> None:
    files = old(5, x=stratum("x", spec("a", ""), spec("b", "")))
    sources = {"upstream:a": Source({"configure": b""}), "upstream:b": Source({"README": b""})}
    new, notes = after(files, sources)
    assert notes == [
        f"strata/x.morph:9: chunk b: no file in its source, upstream:b {SHA}, tells how it is"
        " built: name a 'build-system', or its file as 'morph'"
    ]
    assert new["strata/x.morph"].splitlines()[8] == "- name: b"


@pytest.mark.parametrize(("version", "loads"), [(1, True), (2, False)])
def test_a_morph_that_does_not_exist_was_no_mistake_before_version_2(
    version: int, loads: bool
) -> None:
    files = old(version, x=stratum("x", spec("a", "morph: a.morph")))
    new, _ = after(files, {"upstream:a": Source({"configure": b""})})
    assert ("  # morph: a.morph\n" in new["strata/x.morph"]) == loads
    if loads:
        load(reader(new), "systems/s.morph")
    else:
        with pytest.raises(DefinitionsError, match=r"names the file a\.morph, which does not"):
            load(reader(new), "systems/s.morph")


def test_fields_without_effect_become_comments() -> None:
    """Lines stay where they are, also of lists and of fields in front of an entry."""
    files = old(
        4, x=stratum("x", spec("a", "build-system: dummy\nunpretrify-ref: >\n  master\n  b"))
    )
    files["strata/y.morph"] = (
        "name: y\nkind: stratum\ndescription:\n- some\n- |\n  text\n\n# a remark\n"
        "build-depends:\n- repo: old:defs\n  ref: m\n  morph: strata/x.morph\n"
        "chunks:\n- build-system: manual\n  name: b\n  ref: '1'\n"
    )
    files["systems/s.morph"] = (
        "name: s\nkind: system\nsystem-kind: rootfs-tarball\narch: x86_64\ndisk-size: 1G\nstrata:\n"
        "- morph: strata/y.morph\n- morph: x\n- {name: z, morph: strata/x.morph}\n"
    )
    new, notes = after(files)
    assert new["strata/x.morph"].endswith(
        "  build-system: dummy\n  # unpretrify-ref: >\n  #   master\n  #   b\n"
    )
    assert notes == [
        "strata/x.morph:9: chunk a: 'unpretrify-ref' had no effect and is a comment now; did you"
        " mean 'unpetrify-ref'?",
        "systems/s.morph:7: stratum y: without 'name', it was not in the system, and now it is:"
        " remove the entry if that is right",
    ]
    assert new["strata/y.morph"] == (
        "name: y\nkind: stratum\n# description:\n# - some\n# - |\n#   text\n\n# a remark\n"
        "build-depends:\n- # repo: old:defs\n  # ref: m\n  morph: strata/x.morph\n"
        "chunks:\n- build-system: manual\n  name: b\n  ref: '1'\n"
    )
    assert new["systems/s.morph"] == (
        "name: s\nkind: system\n# system-kind: rootfs-tarball\narch: x86_64\n# disk-size: 1G\n"
        "strata:\n- morph: strata/y.morph\n  name: y\n- morph: x\n  name: x\n"
        "- {name: z, morph: strata/x.morph}\n"
    )


def test_extensions_are_named_by_their_paths() -> None:
    files = old(3, x=stratum("x", spec("a")))
    files["systems/s.morph"] += (
        "configuration-extensions:\n- set-hostname  # first\n- extensions/x\n"
    )
    files["clusters/c.morph"] = (
        "name: c\nkind: cluster\nsystems:\n- morph: systems/s.morph\n"
        "  deploy-defaults: {type: 'kvm', upgrade-type: ssh-rsync}\n"
        "  deploy:\n    a: {location: x}\n    b:\n"
        "      type: rawdisk  # a file\n      location: y\n"
        "  subsystems:\n  - morph: systems/s.morph\n"
        "    deploy:\n      i: {type: tar, location: z}\n"
    )
    new, _ = after(files)
    assert new["systems/s.morph"].endswith("- extensions/set-hostname  # first\n- extensions/x\n")
    assert new["clusters/c.morph"] == files["clusters/c.morph"].replace(
        "'kvm', upgrade-type: ssh-rsync", "'extensions/kvm', upgrade-type: extensions/ssh-rsync"
    ).replace("type: rawdisk", "type: extensions/rawdisk").replace(
        "type: tar", "type: extensions/tar"
    )
    later, _ = after({**files, "VERSION": "version: 5\n"})
    assert later["clusters/c.morph"] == files["clusters/c.morph"]


def test_files_with_mistakes_stay_as_they_are() -> None:
    files = old(5, x=stratum("x", spec("a", "")))
    files["strata/y.morph"] = "name: [\n"
    files["strata/z.morph"] = "&a kind: stratum\nchunks: *a\n"
    files["strata/w.morph"] = "just text\n"
    made = migrated(files)
    assert sorted(made.files) == ["DEFAULTS", "VERSION"]
    with pytest.raises(DefinitionsError, match="version 9 of the definitions format is unknown"):
        migrated({**files, "VERSION": "version: 9\n"})


def test_a_field_with_an_anchor_is_not_made_a_comment() -> None:
    text = stratum("x", spec("a", "build-system: manual\nodd: &x [y]\nartifacts: {}"))
    files = {**old(5, x=text), "systems/s.morph": system("x")}
    new, notes = after(files)
    assert new["strata/x.morph"] == text
    assert notes == []
