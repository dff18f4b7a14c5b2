"""Stages of a toolchain: what a bootstrap chunk on an import chunk is built with stays behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from initiator_kit import Project
from small_definitions import git

SYSTEM = "../systems/small.morph"
#: What each chunk runs in its install commands.
STAGE1 = """\
test -e /bin/seed
for path in /usr /lib /staging; do test ! -e "$path"; done
install -D -m 755 /bin/busybox "$DESTDIR$PREFIX"/bin/busybox1"""
STAGE2 = """\
busybox1 ls -d /bin/seed /tools/bin/busybox1
install -D -m 755 /bin/busybox "$DESTDIR$PREFIX"/bin/busybox
for name in sh ls mkdir; do ln -s busybox "$DESTDIR$PREFIX"/bin/$name; done"""
FINAL = """\
mkdir -p "$DESTDIR"/usr/share
ls -d /* /tools/bin/* > "$DESTDIR"/usr/share/seen"""


@pytest.fixture
def stages(project: Project) -> Project:
    """Seed, two stages and a chunk in the system; the seed is a static shell."""
    seed = project.root / "seed"
    (seed / "bin").mkdir(parents=True)
    program = shutil.which("busybox")
    assert program is not None, "the tests need the Debian package busybox-static"
    shutil.copy(program, seed / "bin/busybox")
    (seed / "bin/seed").touch()
    for name in ("sh", "ls", "ln", "test", "install", "mkdir"):
        (seed / f"bin/{name}").symlink_to("busybox")
    git(seed, "init", "-q", "-b", "main")
    git(seed, "add", ".")
    git(seed, "commit", "-qm", "seed")
    built = "build-mode: bootstrap, prefix: /tools, build-depends: [{}]"
    specs = [_spec("seed", seed, "build-mode: import, build-only: true")]
    for name, commands, more in (
        ("stage1", STAGE1, built.format("seed")),
        ("stage2", STAGE2, built.format("stage1")),
        ("final", FINAL, "build-depends: [stage2]"),
    ):
        lines = "".join(f"  {line}\n" for line in commands.splitlines())
        (project.root / f"strata/{name}.morph").write_text(
            f"name: {name}\nkind: chunk\ninstall-commands:\n- |\n{lines}"
        )
        morph = f"morph: strata/{name}.morph, {more}"
        specs.append(_spec(name, project.source, morph))
    (project.root / "strata/things.morph").write_text(
        "name: things\nkind: stratum\nchunks:\n" + "".join(specs)
    )
    return project


def _spec(name: str, repo: Path, more: str) -> str:
    return f"- {{name: {name}, repo: 'file://{repo}', ref: main, {more}}}\n"


def test_each_stage_sees_what_it_is_built_with_and_the_last_one_sees_no_seed(
    stages: Project,
) -> None:
    done = stages.build()
    assert done.returncode == 0, done.stderr + "".join(
        file.read_text() for file in stages.logs.glob("build-step-*.log")
    )
    done = stages.run("checkout", SYSTEM, "--to", "tree")
    assert done.returncode == 0, done.stderr
    seen = (stages.logs / "tree/usr/share/seen").read_text().split()
    assert set(seen) == {
        *("/dev", "/proc", "/tmp", "/tools", "/final.build", "/final.inst"),
        *(f"/tools/bin/{name}" for name in ("busybox", "ls", "mkdir", "sh")),
    }
    assert not (stages.logs / "tree/tools").exists()


def test_stages_do_not_need_the_tools_of_the_machine(stages: Project) -> None:
    """Their digest is not even computed."""
    memory = stages.cache / "host-tools.json"
    memory.unlink()
    graph = json.loads(stages.run("graph", SYSTEM, "--json").stdout)
    assert all(step["key"] for step in graph["steps"])
    assert not memory.exists()
