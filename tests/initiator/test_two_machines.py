"""The same definitions, built on two machines with different tools."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from building_kit import copy_tools
from deb_kit import deb, hard_link, lorry, member, symlink
from initiator_kit import Project
from small_definitions import git

SYSTEM = "../systems/small.morph"
#: Programs that one of the machines does not have.
HIDDEN = ("dpkg-deb", "tar", "gcc", "make", "xz")
IMPORT = "build-mode: import\n  build-only: true"
#: Installs the same tree with the machine's cp.
BOOTSTRAP = "build-mode: bootstrap\n  morph: strata/tools.morph"


def without_tools() -> list[str]:
    """The start of a command that runs on a machine without these programs."""
    found = [os.path.realpath(path) for tool in HIDDEN if (path := shutil.which(tool))]
    mounts = "".join(f"mount --bind /dev/null {path} && " for path in found)
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mounts} exec "$@"', "sh"]


def repository(path: Path) -> str:
    """A git repository of all files there; returns its URL."""
    git(path, "init", "-q", "-b", "main")
    git(path, "add", ".")
    git(path, "commit", "-qm", "first")
    return f"file://{path}"


def define(project: Project, mode: str) -> None:
    """Write definitions of the chunk ``app``, which is built on two others; and their sources."""
    tools, debs = project.root / "source-tools", project.root / "source-debs"
    copy_tools(tools)
    debs.mkdir()
    one = deb(symlink("./lib2", "usr/lib2"), member("./usr/lib2/one", b"one", mode=0o600))
    two = deb(member("./lib2/two", b"two"), hard_link("./lib2/three", "./lib2/two"), suffix=".zst")
    for name, content in lorry({"one_1_all.deb": one, "two_1_all.deb": two}).items():
        (debs / name).write_bytes(content.encode() if isinstance(content, str) else content)
    project.write(app='mkdir "$DESTDIR"/usr; cat /lib2/* > "$DESTDIR"/usr/app')
    (project.root / "strata/tools.morph").write_text(
        'name: tools\nkind: chunk\ninstall-commands:\n- cp -r * "$DESTDIR"\n'
    )
    (project.root / "strata/things.morph").write_text(
        "name: things\nkind: stratum\nchunks:\n"
        f"- name: tools\n  {mode}\n  repo: {repository(tools)}\n  ref: main\n"
        f"- name: debs\n  build-mode: import\n  repo: {repository(debs)}\n  ref: main\n"
        f"- name: app\n  morph: strata/app.morph\n  repo: file://{project.source}\n  ref: main\n"
        "  build-depends: [tools, debs]\n"
    )


def built(project: Project, machine: str, within: list[str]) -> dict[str, Any]:
    """Keys and digests of all artifacts, by kind and name of their step."""
    project.cache = project.root / f"cache-{machine}"
    done = project.run("build", SYSTEM, within=within)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = project.run("show", SYSTEM, "--json", within=within)
    steps = {f"{step['kind']} {step['name']}": step for step in json.loads(shown.stdout)}
    assert all(step["cached"] for step in steps.values())
    return {name: (step["key"], step["artifacts"]) for name, step in steps.items()}


def test_two_machines_have_equal_keys_and_bytes(project: Project) -> None:
    define(project, IMPORT)
    one, two = built(project, "one", []), built(project, "two", without_tools())
    assert one.keys() == {
        *("chunk tools", "chunk debs", "chunk app"),
        *("stratum things", "system small"),
    }
    assert one == two
    project.run("checkout", SYSTEM, "--to", "tree")
    tree = project.logs / "tree"
    assert (tree / "usr/app").read_text() == "onetwotwo"
    assert (tree / "lib2").readlink() == Path("usr/lib2")
    assert (tree / "lib2/one").stat().st_mode & 0o777 == 0o600
    assert (tree / "lib2/two").samefile(tree / "lib2/three")
    assert not (tree / "bin").exists(), "the tools are build-only"


def test_two_machines_have_their_own_bootstrap_chunks(project: Project) -> None:
    define(project, BOOTSTRAP)
    one, two = built(project, "one", []), built(project, "two", without_tools())
    different = {name for name in one if one[name][0] != two[name][0]}
    assert different == {"chunk tools", "chunk app", "stratum things", "system small"}
