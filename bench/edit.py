"""One changed file of 3,000, built again: bare make, ours with `edit`, and BuildStream 2.

    python bench/edit.py [--rounds 9]

The tree: 3,000 text files in 100 folders, and a makefile that makes a file of each, and one of
all.  A round changes one file on each side, in turns, and builds.  Bare make runs in a folder
without a sandbox; ours in the work tree of `edit`; BuildStream, which is installed from PyPI into a
virtual environment of its own that is thrown away, in a workspace.  All run `make -j2`, then
`make install`, with the same make and busybox.  Printed are medians of the wall times, and what is
above bare make.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench_kit import BUILDSTREAM, bst_environ, git, install, run, write_base

FILES, FOLDERS, LINES = 3000, 100, 40
JOBS = 2
MAKEFILE = """\
SRC := $(wildcard s*/*.txt)
OUT := $(SRC:.txt=.out)
all: all.out
%.out: %.txt
\t@cp $< $@
all.out: $(OUT)
\t@cat $(OUT) > $@
install: all
\t@mkdir -p $(DESTDIR)/out && cp all.out $(DESTDIR)/out/
"""


def write_tree(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "Makefile").write_text(MAKEFILE)
    for number in range(FILES):
        file = folder / f"s{number % FOLDERS:02}/{number:04}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"line of file {number}\n" * LINES)


def change(folder: Path, number: int) -> None:
    with (folder / "s07/0007.txt").open("a") as file:
        file.write(f"change {number}\n")


def write_tools(folder: Path) -> None:
    """The base of a sandbox: busybox, and this machine's make with the libraries it needs."""
    write_base(folder)
    make = shutil.which("make")
    assert make, "install the Debian package make"
    shutil.copy(make, folder / "bin/make")
    listed = subprocess.run(["ldd", make], capture_output=True, text=True, check=True)
    for word in listed.stdout.split():
        if word.startswith("/"):
            library = folder / word[1:]
            library.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, library)


class Bare:
    """make in a folder."""

    def __init__(self, root: Path, venv: Path) -> None:  # noqa: ARG002
        self.tree = root / "tree"
        self._to = root / "installed"
        write_tree(self.tree)

    def build(self) -> tuple[float, str]:
        command = f"make -j{JOBS} && make install DESTDIR={self._to}"
        return run(["sh", "-c", command], self.tree, dict(os.environ))


class Ours:
    """A chunk that is edited."""

    def __init__(self, root: Path, venv: Path) -> None:  # noqa: ARG002
        self._logs = root / "logs"
        for folder in ("logs", "strata", "systems"):
            (root / folder).mkdir(parents=True)
        write_tools(root / "base")
        write_tree(root / "source")
        for one in ("base", "source"):
            git(root / one, "init", "-q", "-b", "main")
            git(root / one, "add", ".")
            git(root / one, "commit", "-q", "-m", "as it is")
        (root / "VERSION").write_text("version: 8\n")
        (root / "strata/edit.morph").write_text(
            "name: edit\nkind: stratum\nchunks:\n"
            f"- name: base\n  repo: {root}/base\n  ref: main\n"
            "  build-mode: import\n  build-only: true\n"
            "- name: chunk\n  morph: strata/chunk.morph\n"
            f"  repo: {root}/source\n  ref: main\n  build-depends: [base]\n"
        )
        (root / "strata/chunk.morph").write_text(
            "name: chunk\nkind: chunk\nbuild-commands: [make]\ninstall-commands: [make install]\n"
        )
        (root / "systems/edit.morph").write_text(
            "name: edit\nkind: system\narch: x86_64\n"
            "strata:\n- name: edit\n  morph: strata/edit.morph\n"
        )
        cache = {"FABRIC_CACHE": str(root / "cache"), "FABRIC_CONFIG": "/dev/null"}
        self._environ = os.environ | cache
        self._environ.pop("PYTHONDONTWRITEBYTECODE", None)
        self.tree = root / "logs/chunk"
        self._run("edit", "chunk", "--system", "../systems/edit.morph")

    def _run(self, *command: str) -> tuple[float, str]:
        program = str(Path(sys.executable).with_name("fabric-initiator"))
        return run([program, *command], self._logs, self._environ)

    def build(self) -> tuple[float, str]:
        command = ("build", "../systems/edit.morph", "chunk", "--max-jobs", str(JOBS))
        return self._run(*command)


class Theirs:
    """A workspace of BuildStream."""

    def __init__(self, root: Path, venv: Path) -> None:
        self._root = root
        elements = root / "elements"
        elements.mkdir(parents=True)
        write_tools(root / "base")
        write_tree(root / "source")
        (root / "project.conf").write_text(
            "name: edit\nmin-version: '2.0'\nelement-path: elements\n"
        )
        (root / "user.conf").write_text(
            f"cachedir: {root}/cache\nlogdir: {root}/logs\nbuild: {{max-jobs: {JOBS}}}\n"
        )
        (elements / "base.bst").write_text("kind: import\nsources: [{kind: local, path: base}]\n")
        (elements / "chunk.bst").write_text(
            "kind: manual\nbuild-depends: [base.bst]\nsources: [{kind: local, path: source}]\n"
            f"config:\n  build-commands: ['make -j{JOBS}']\n"
            "  install-commands: ['make install DESTDIR=%{install-root}']\n"
        )
        self._bst = [str(venv / "bin/bst"), "--config", "user.conf", "--no-interactive"]
        self._environ = bst_environ(root, venv)
        self.tree = root / "workspace"
        command = [*self._bst, "workspace", "open", "--directory", str(self.tree), "chunk.bst"]
        run(command, root, self._environ)

    def build(self) -> tuple[float, str]:
        return run([*self._bst, "build", "chunk.bst"], self._root, self._environ)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--dir", default="/var/tmp", help="where to work (default %(default)s)")
    given = options.parse_args()
    walls: dict[str, list[float]] = {}
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="edit-", dir=given.dir) as name:
        scratch = Path(name)
        install(scratch / "venv")
        makers: dict[str, Callable[[Path, Path], Bare | Ours | Theirs]] = {
            "bare make": Bare,
            "ours": Ours,
            BUILDSTREAM: Theirs,
        }
        sides = {}
        for number, (side, make) in enumerate(makers.items()):
            sides[side] = make(scratch / str(number), scratch / "venv")
            first[side] = sides[side].build()[0]
        for number in range(given.rounds):
            for side, one in sides.items():
                change(one.tree, number)
                walls.setdefault(side, []).append(one.build()[0])
    bare = median(walls["bare make"])
    print(f"{FILES} files, one changed; medians of {given.rounds} rounds")
    print(f"{'':22}{'all of it':>12}{'one changed':>14}{'above bare':>13}{'times bare':>12}")
    for side, seconds in walls.items():
        wall = median(seconds)
        print(
            f"{side:22}{first[side]:10.2f} s{wall:12.3f} s{1000 * (wall - bare):10.0f} ms"
            f"{wall / bare:12.1f}"
        )


if __name__ == "__main__":
    main()
