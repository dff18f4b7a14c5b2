"""``check`` reports mistakes and warnings, and finds the dependencies that a build does not use."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from initiator_kit import Project

SYSTEM = "../systems/small.morph"
#: Installs a static shell as the programs that the tests need, on a tree like that of a system.
SHELL = (
    "mkdir -p $DESTDIR/usr/bin $DESTDIR/usr/lib\n"
    "ln -s usr/bin $DESTDIR/bin\nln -s usr/lib $DESTDIR/lib\n"
    "for name in sh cat chmod grep mkdir; do cp /bin/busybox $DESTDIR/usr/bin/$name; done"
)


def shared(name: str) -> str:
    """Commands that install one file."""
    return f"mkdir -p $DESTDIR/usr/share; echo {name} > $DESTDIR/usr/share/{name}"


def write(project: Project, app: str, libs: Mapping[str, str], app_needs: str = "") -> None:
    """The strata base (a shell), libs (by name: their commands) and apps (``app``)."""

    def chunk(name: str, commands: str, more: str) -> str:
        lines = "".join(f"  {line}\n" for line in commands.splitlines())
        (project.root / f"strata/{name}.morph").write_text(
            f"name: {name}\nkind: chunk\ninstall-commands:\n- |\n{lines}"
        )
        return (
            f"- name: {name}\n  morph: strata/{name}.morph\n  repo: file://{project.source}\n"
            f"  ref: main\n{more}"
        )

    def stratum(name: str, depends: str, *chunks: str) -> None:
        (project.root / f"strata/{name}.morph").write_text(
            f"name: {name}\nkind: stratum\nbuild-depends: [{depends}]\nchunks:\n{''.join(chunks)}"
        )

    host = "  build-mode: test\n"
    stratum("base", "", chunk("shell", SHELL, host))
    stratum("libs", "", *(chunk(name, text, host) for name, text in libs.items()))
    both = "{morph: strata/base.morph}, {morph: strata/libs.morph}"
    stratum("apps", both, chunk("app", app, app_needs))
    (project.root / "systems/small.morph").write_text(
        "name: small\nkind: system\narch: x86_64\nstrata:\n"
        + "".join(f"- {{name: {n}, morph: strata/{n}.morph}}\n" for n in ("base", "libs", "apps"))
    )


def build(project: Project) -> None:
    done = project.run("build", SYSTEM, "app", "--workers", "1")
    assert done.returncode == 0, done.stderr


def unused(project: Project, *within: str) -> dict[str, object]:
    done = project.run("check", SYSTEM, "--json", "--unused", "app", within=within)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    return dict(found)


def keys(project: Project) -> dict[str, str]:
    graph = json.loads(project.run("graph", SYSTEM, "--json").stdout)
    return {step["name"]: step["key"] for step in graph["steps"]}


THREE = {name: shared(name) for name in ("one", "two", "three")}


def test_unused_names_the_others_of_three_chunks(project: Project) -> None:
    write(project, "cat /usr/share/two; cat /usr/share/none || :", THREE)
    build(project)
    before = sorted((project.cache / "artifacts").rglob("*"))
    done = project.run("check", SYSTEM, "--unused", "app")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "strata/apps.morph:8: chunk app: it does not use one, three; this is enough:\n"
        "    build-depends:\n"
        "    - {stratum: strata/base.morph}\n"
        "    - stratum: strata/libs.morph\n"
        "      chunks: [two]\n"
        "    # shell: /usr/bin/sh\n"
        "    # two: /usr/share/two\n"
    )
    assert sorted((project.cache / "artifacts").rglob("*")) == before, "it stored something"
    assert not list((project.cache / "work/failed").iterdir())


def test_unused_prints_a_list_that_is_enough_and_rebuilds_less(project: Project) -> None:
    command = "cat /usr/share/two; if test -e /usr/share/one; then exit 7; fi; mkdir -p $DESTDIR/x"
    write(project, "cat /usr/share/two", THREE)
    build(project)
    advice = project.run("check", SYSTEM, "--unused", "app").stdout.partition("\n")[2]
    needs = "".join(line[2:] + "\n" for line in advice.splitlines())
    write(project, command, THREE, needs)
    build(project)  # a file of `one` would be exit status 7
    assert unused(project)["unused"] == []
    before = keys(project)
    write(project, command, THREE | {"one": shared("changed")}, needs)
    after = keys(project)
    assert {name for name in after if after[name] != before[name]} == {"one", "libs", "small"}
    write(project, command, THREE | {"two": shared("two; true")}, needs)
    assert keys(project)["app"] != before["app"]


def test_unused_counts_all_ways_to_use_a_file(project: Project) -> None:
    share = "$DESTDIR/usr/share"
    libs = {
        "opened": shared("opened"),
        "link": f"mkdir -p {share}; ln -s opened {share}/link",
        "moved": "mkdir -p $DESTDIR/lib; echo > $DESTDIR/lib/moved",  # to usr/lib, by `shell`
        "relative": f"mkdir -p {share}/dir; echo > {share}/dir/relative",
        "tested": shared("tested"),
        "script": "mkdir -p $DESTDIR/opt; cp /bin/busybox $DESTDIR/opt/ash",
        "staged-script": "mkdir -p $DESTDIR/opt; cp /bin/busybox $DESTDIR/opt/busybox\n"
        "printf '#!/opt/busybox sh\\n:\\n' > $DESTDIR/opt/run; chmod +x $DESTDIR/opt/run",
        "odd": f'mkdir -p {share}; echo > "{share}/a \\"<b>\\" \u00e4"',
        "listed": f"mkdir -p {share}/listed; echo > {share}/listed/listed",
        "missed": shared("missed"),
        "program": "mkdir -p $DESTDIR/opt; cp /bin/busybox $DESTDIR/opt/mkdir",
    }
    app = (
        "cat /usr/share/link /usr/lib/moved\n"
        "(cd /usr/share/dir && cat ../dir/relative)\n"
        "test -e /usr/share/tested\n"
        "mkdir sub; printf '#!/opt/ash\\necho hi\\n' > sub/run; chmod +x sub/run\n"
        "(cd sub; ./run)\n"
        "/opt/run\n"
        "cat '/usr/share/a \"<b>\" \u00e4'\n"
        "echo /usr/share/listed/*\n"
        "cat /usr/share/missing || :\n"
        "(echo > /usr/share/missed) || :\n"
        "/opt/mkdir $DESTDIR/made"
    )
    write(project, app, libs)
    build(project)
    assert unused(project)["unused"] == ["listed", "missed"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_unused_works_for_an_ordinary_user(project: Project, tmp_path: Path) -> None:
    write(project, "cat /usr/share/two", THREE)
    for path in (project.root, *project.root.rglob("*")):
        os.lchown(path, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and not folder.stat().st_mode & 0o005 and folder != Path("/"):
            folder.chmod(0o755)
    as_other = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    project.cache.mkdir(exist_ok=True)
    os.chown(project.cache, 65534, 65534)
    done = project.run("build", SYSTEM, "app", "--workers", "1", within=as_other)
    assert done.returncode == 0, done.stderr
    assert unused(project, *as_other)["unused"] == ["one", "three"]


def test_unused_needs_what_is_staged(project: Project) -> None:
    write(project, "true", THREE)
    done = project.run("check", SYSTEM, "--unused", "app")
    assert done.returncode == 1
    assert "not built yet (4 of 4); run: fabric-initiator build" in done.stderr


def test_unused_shows_the_end_of_the_log_of_a_failure(project: Project) -> None:
    observed = "grep -q Seccomp_filters:.2 /proc/self/status"  # strace has a filter of its own
    write(project, f"if {observed}; then echo Oh; exit 9; fi", THREE)
    build(project)
    done = project.run("check", SYSTEM, "--unused", "app")
    assert (done.returncode, done.stdout) == (3, "")
    assert "install-commands failed with exit status 9" in done.stderr
    assert "  | Oh\n" in done.stderr
    assert not list((project.cache / "work/failed").iterdir())


def test_check_prints_mistakes_and_warnings_of_all_systems(project: Project) -> None:
    project.write(one="true")
    well = "1 system, 1 stratum, 1 chunk: no mistakes, no warnings\n"
    assert project.run("check").stdout == well
    assert project.run("check", SYSTEM).stdout == "systems/small.morph: no mistakes, no warnings\n"
    other = (project.root / "systems/small.morph").read_text().replace("small", "other")
    (project.root / "systems/other.morph").write_text(other)
    chunk = project.root / "strata/one.morph"
    chunk.write_text(chunk.read_text() + "system-integration: {one-lib: {x: [true]}}\nnothing: 1\n")
    done = project.run("check")
    assert done.returncode == 1
    assert done.stdout == (
        "strata/one.morph:6: warning: chunk one: its 'system-integration' for 'one-lib' is lost,"
        " as it has no such artifact; did you mean 'one-misc'?\n"
        "strata/one.morph:7: chunk one: unknown field 'nothing'\n"
        "2 systems, 1 stratum, 1 chunk: 1 mistake, 1 warning\n"
    )
    facts = json.loads(project.run("check", SYSTEM, "--json").stdout)
    assert facts["systems"] == ["systems/small.morph"]
    assert [one["line"] for one in facts["mistakes"] + facts["warnings"]] == [7, 6]
    assert [file.name for file in project.cache.iterdir()] == ["host-tools.json"], "no repository"


def test_check_reads_everything_that_no_system_needs(project: Project) -> None:
    """Also lorries, clusters, and morphs in other folders; but no definitions inside."""
    project.write(one="true")
    files = {
        "strata/spare.morph": "name: spare\nkind: stratum\nchunks:\n"
        "- {name: one, morph: strata/oen.morph, repo: r, ref: x, build-mode: test}\n"
        "- {name: two, build-system: atuo, repo: r, ref: x, build-mode: test}\n",
        "strata/stage1.morph": "name: stage1\nkind: stratum\nchunks:\n"
        "- {name: gcc, build-system: manual, repo: r, ref: x, build-mode: bootstrap}\n",
        "elsewhere/three.morph": "name: three\nkind: chunk\nbuild-command: []\n",
        "elsewhere/odd.morph": "name: odd\nkind: sytsem\n",
        "elsewhere/broken.morph": "name: [\n",
        "clusters/all.morph": "name: all\nkind: cluster\nsystems:\n"
        "- {morph: systems/smal.morph, deploy: {a: {type: extensions/kvm, location: x}}}\n",
        "sources/some.lorry": "a: {type: tarbal, url: x}\nb: {type: git, url: 'file:///b'}\n",
        "inside/VERSION": "version: 8\n",
        "inside/systems/x.morph": "nothing",
        ".hidden/x.morph": "nothing",
    }
    for path, text in files.items():
        (project.root / path).parent.mkdir(exist_ok=True)
        (project.root / path).write_text(text)
    done = project.run("check")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == (
        "clusters/all.morph:4: the cluster names the file systems/smal.morph, which does not"
        " exist; did you mean 'systems/small.morph'?\n"
        "elsewhere/broken.morph:1: not YAML: did not find expected node content while parsing a"
        " flow node that starts in line 2\n"
        "elsewhere/odd.morph:2: unknown kind 'sytsem'; did you mean 'system'?\n"
        "elsewhere/three.morph:3: chunk three: unknown field 'build-command'; did you mean"
        " 'build-commands'?\n"
        "sources/some.lorry:1: a: unknown type 'tarbal'; did you mean 'tarball'?\n"
        "strata/spare.morph:4: chunk one names the file strata/oen.morph, which does not exist;"
        " did you mean 'strata/one.morph'?\n"
        "strata/spare.morph:5: chunk two: unknown build system 'atuo': add it to DEFAULTS, or use"
        " 'manual' with commands\n"
        "1 system, 3 strata, 2 chunks, 1 cluster: 7 mistakes, no warnings\n"
    )
    facts = json.loads(project.run("check", "--json").stdout)
    assert facts["strata"] == ["strata/spare.morph", "strata/stage1.morph", "strata/things.morph"]
    assert len(facts["mistakes"]) == 7
    assert [file.name for file in project.cache.iterdir()] == ["host-tools.json"], "no repository"


def test_check_warns_of_lorries_that_cannot_be_imported_yet(project: Project) -> None:
    project.write(one="true")
    (project.root / "sources").mkdir()
    (project.root / "sources/some.lorry").write_text(
        "zlib: {type: debian-source}\n"
        "tools: {type: debian-packages, packages: [gcc], version: '13'}\n"
        "more: {type: pypi-wheels, packages: [rich], python: '3.13', version: '1'}\n"
    )
    (project.root / "sources/more.lock").write_text("rich\n")
    done = project.run("check")
    assert done.returncode == 1
    fills = "` fills in what is offered"
    assert done.stdout == (
        "sources/some.lorry:1: warning: zlib: no version and no sha256 pinned yet;"
        f" `fabric-initiator lorry update zlib{fills}\n"
        "sources/some.lorry:2: warning: tools: no packages pinned yet;"
        f" `fabric-initiator lorry update tools{fills}\n"
        f"sources/some.lorry:3: more: {project.root}/sources/more.lock:1: not a line of a lock"
        " file, which is NAME VERSION ARCHITECTURE SHA-256 SIZE; make it again with"
        " `fabric-initiator lorry update more`\n"
        "1 system, 1 stratum, 1 chunk, 3 lorries: 1 mistake, 2 warnings\n"
    )


def test_unused_says_how_to_install_strace(project: Project, tmp_path: Path) -> None:
    project.write(one="true")
    found = shutil.which("git")
    assert found
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").symlink_to(found)
    done = project.run("check", SYSTEM, "--unused", environ={"PATH": str(tmp_path / "bin")})
    assert done.returncode == 1
    assert done.stderr == (
        "fabric-initiator: strace is not installed, and without it no build can be observed:"
        " install it (on Debian: apt install strace)\n"
    )


def test_unused_takes_one_system(project: Project) -> None:
    project.write(one="true")
    done = project.run("check", "--unused")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("check SYSTEM --unused [CHUNK...]\n")


def test_unused_looks_at_all_chunks_of_a_system(project: Project) -> None:
    write(project, "cat /usr/share/two", THREE)
    build(project)
    done = project.run("check", SYSTEM, "--unused", "--json")
    facts = {one["chunk"]: one for one in json.loads(done.stdout)}
    assert facts.keys() == {"shell", "one", "two", "three", "app"}
    assert facts["shell"]["unused"] == []  # nothing is staged for it
    assert facts["app"]["used"] == {"shell": "/usr/bin/sh", "two": "/usr/share/two"}


def test_unused_knows_staging_areas_beside_the_tools_of_the_machine(project: Project) -> None:
    """A test chunk sees its staging area in another place."""
    project.write(
        one=shared("one"),
        two=shared("two"),
        app=("one, two", 'cat "$(dirname "$PWD")"/usr/share/two'),
    )
    assert project.build().returncode == 0
    found = unused(project)
    assert (found["unused"], found["build_depends"]) == (["one"], ["two"])
