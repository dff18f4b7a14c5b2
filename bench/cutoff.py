"""An edit at the bottom of a graph of depth 10 that changes no output, beside BuildStream 2.

    python bench/cutoff.py [--rounds 5]

The graph: a chunk `bottom`, on it 9 layers of 4 chunks, each of which needs two of the layer
below, and a system of all of them.  `bottom` installs 20 text files without their comments; the
others copy and change the files of the layer below.  BuildStream builds elements with the same
commands and dependencies, and the system is a `compose`.  It is installed from PyPI into a virtual
environment of its own that is thrown away.  Both use two workers, and the same busybox in their
sandboxes.

A round is six builds on each side, in turns: all from nothing; a comment is edited, and `bottom`
alone is built; another comment is edited, and the chunks are built; the system, whose metadata
have the new commit; a line that reaches every chunk is edited, and all is built; all again.
Printed are medians of the wall times, and numbers of built steps: the chunks, the base with
busybox, and the system.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench_kit import BUILDSTREAM, bst_environ, git, install, run, write_base

WORKERS = 2
DEPTH, WIDTH = 10, 4
FILES, LINES = 20, 200

ALONE, COMMENT = "comment edited, bottom alone", "comment edited, the chunks"
#: For each phase, in this order: the kind of edit, and the part that is built.
PHASES = {
    "from nothing": ("", "all"),
    ALONE: ("comment", "bottom"),
    COMMENT: ("comment", "chunks"),
    "then the system": ("", "all"),
    "content edited, all": ("content", "all"),
    "all cached": ("", "all"),
}


def graph() -> dict[str, tuple[str, ...]]:
    """Each chunk, and the two of the layer below that it needs."""
    layers = [["bottom"]]
    below: dict[str, tuple[str, ...]] = {"bottom": ()}
    for number in range(1, DEPTH):
        last = layers[-1]
        layers.append([f"n{number}-{column}" for column in range(WIDTH)])
        for column, name in enumerate(layers[-1]):
            needs = (last[column % len(last)], last[(column + 1) % len(last)])
            below[name] = tuple(dict.fromkeys(needs))
    return below


def goals(what: str, system: str) -> list[str]:
    """The names of what a phase builds."""
    top = [f"n{DEPTH - 1}-{column}" for column in range(WIDTH)]
    return {"all": [system], "chunks": top, "bottom": ["bottom"]}[what]


def script(name: str, below: tuple[str, ...], root: str) -> str:
    """The commands of a chunk that installs below ``root``."""
    out = f"{root}/out/{name}"
    if not below:
        return f"mkdir -p {out}\nfor f in *.txt; do sed '/^#/d' $f > {out}/$f; done\n"
    first, last = below[0], below[-1]
    return (
        f"mkdir -p {out}\n"
        f"cp /out/{first}/*.txt {out}/\n"
        f"sed -i 's/^by .*/by {name}/' {out}/*.txt\n"
        f"cp /out/{last}/00.txt {out}/beside\n"
    )


def write_source(folder: Path, comment: str, content: str) -> None:
    """The source of `bottom`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"line {number} of a text that goes on\n" for number in range(LINES))
    for number in range(FILES):
        text = f"# {comment}\nby hand\ncontent {content}\n{lines}"
        (folder / f"{number:02}.txt").write_text(text)


class Cost(NamedTuple):
    seconds: float
    built: int  # steps


class Ours:
    """Our definitions and cache below ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._logs = root / "logs"
        self._logs.mkdir(parents=True)
        (root / "empty").mkdir()
        (root / "empty/README").write_text("nothing to see\n")
        write_base(root / "base")
        for one in ("base", "empty"):
            git(root / one, "init", "-q", "-b", "main")
            self._commit(one)
        git(root, "init", "-q", "-b", "main", "source")
        for folder in ("strata/layers", "systems"):
            (root / folder).mkdir(parents=True)
        (root / "VERSION").write_text("version: 8\n")
        specs = [
            f"- name: base\n  repo: {root}/base\n  ref: main\n"
            "  build-mode: import\n  build-only: true\n"
        ]
        for name, below in graph().items():
            source = "empty" if below else "source"
            commands = script(name, below, "$DESTDIR")
            specs.append(self._chunk(name, source, ("base", *below), commands))
        (root / "strata/layers.morph").write_text(
            f"name: layers\nkind: stratum\nchunks:\n{''.join(specs)}"
        )
        (root / "systems/cutoff.morph").write_text(
            "name: cutoff\nkind: system\narch: x86_64\n"
            "strata:\n- name: layers\n  morph: strata/layers.morph\n"
        )
        cache = {"FABRIC_CACHE": str(root / "cache"), "FABRIC_CONFIG": "/dev/null"}
        self._environ = os.environ | cache
        self._environ.pop("PYTHONDONTWRITEBYTECODE", None)

    def _chunk(self, name: str, source: str, needs: tuple[str, ...], commands: str) -> str:
        lines = "".join(f"  {line}\n" for line in commands.splitlines())
        (self._root / f"strata/layers/{name}.morph").write_text(
            f"name: {name}\nkind: chunk\ninstall-commands:\n- |\n{lines}"
        )
        return (
            f"- name: {name}\n  morph: strata/layers/{name}.morph\n"
            f"  repo: {self._root / source}\n  ref: main\n"
            f"  build-depends: [{', '.join(needs)}]\n"
        )

    def _commit(self, repository: str) -> None:
        git(self._root / repository, "add", ".")
        git(self._root / repository, "commit", "-q", "-m", "as it is now")

    def edit(self, comment: str, content: str) -> None:
        write_source(self._root / "source", comment, content)
        self._commit("source")

    def build(self, what: str) -> Cost:
        program = str(Path(sys.executable).with_name("fabric-initiator"))
        command = [program, "build", "../systems/cutoff.morph", "--json"]
        command += ["--workers", str(WORKERS), *filter(None, goals(what, system=""))]
        took, said = run(command, self._logs, self._environ)
        events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        done = {e["name"] for e in events if e["event"] == "step" and e["state"] == "done"}
        return Cost(took, len(done - {"layers"}))  # a stratum is a list


class Theirs:
    """A project of BuildStream, installed at ``venv``, and its cache, below ``root``."""

    def __init__(self, root: Path, venv: Path) -> None:
        self._root = root
        self._bst = str(venv / "bin/bst")
        elements = root / "elements"
        elements.mkdir(parents=True)
        write_base(root / "base")
        (root / "project.conf").write_text(
            "name: cutoff\nmin-version: '2.0'\nelement-path: elements\n"
        )
        (root / "user.conf").write_text(
            f"cachedir: {root}/cache\nlogdir: {root}/logs\nscheduler: {{builders: {WORKERS}}}\n"
        )
        local = "sources:\n- kind: local\n  path: {}\n"
        (elements / "base.bst").write_text(f"kind: import\n{local.format('base')}")
        for name, below in graph().items():
            needs = ", ".join(f"{one}.bst" for one in ("base", *below))
            commands = script(name, below, "%{install-root}")
            lines = "".join(f"    {line}\n" for line in commands.splitlines())
            (elements / f"{name}.bst").write_text(
                f"kind: manual\nbuild-depends: [{needs}]\n"
                f"{'' if below else local.format('source')}"
                f"config:\n  install-commands:\n  - |\n{lines}"
            )
        every = ", ".join(f"{name}.bst" for name in graph())
        (elements / "system.bst").write_text(
            f"kind: compose\nbuild-depends: [{every}]\nconfig: {{integrate: false}}\n"
        )
        self._environ = bst_environ(root, venv)

    def edit(self, comment: str, content: str) -> None:
        write_source(self._root / "source", comment, content)

    def build(self, what: str) -> Cost:
        command = [self._bst, "--config", "user.conf", "--no-interactive", "build"]
        command += [f"{name}.bst" for name in goals(what, system="system")]
        took, said = run(command, self._root, self._environ)
        [built] = re.findall(r"Build Queue: processed (\d+)", said)
        return Cost(took, int(built))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--dir", default="/var/tmp", help="where to work (default %(default)s)")
    given = options.parse_args()
    costs: dict[tuple[str, str], list[Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="cutoff-", dir=given.dir) as name:
        scratch = Path(name)
        install(scratch / "venv")
        makers: dict[str, Callable[[Path], Ours | Theirs]] = {
            "ours": Ours,
            "theirs": lambda root: Theirs(root, scratch / "venv"),
        }
        for number in range(given.rounds):
            order = list(makers)[:: -1 if number % 2 else 1]
            sides = {side: makers[side](scratch / f"{side}-{number}") for side in order}
            comment = content = 0
            for one in sides.values():
                one.edit(str(comment), str(content))
            for phase, (edit, what) in PHASES.items():
                comment += edit == "comment"
                content += edit == "content"
                for side, one in sides.items():
                    if edit:
                        one.edit(str(comment), str(content))
                    costs.setdefault((phase, side), []).append(one.build(what))
            print(f"round {number + 1} of {given.rounds} is over", file=sys.stderr)
    report(costs, given.rounds)


def report(costs: dict[tuple[str, str], list[Cost]], rounds: int) -> None:
    def wall(phase: str, side: str) -> float:
        return median(cost.seconds for cost in costs[phase, side])

    def built(phase: str, side: str) -> str:
        return " or ".join(sorted({str(cost.built) for cost in costs[phase, side]}))

    chunks = len(graph())
    print(f"{chunks} chunks, depth {DEPTH}, {WORKERS} workers, medians of {rounds} rounds")
    print(f"{'':30}{'ours':>20}{BUILDSTREAM.replace('==', ' '):>22}   ratio")
    for phase in PHASES:
        ours, theirs = wall(phase, "ours"), wall(phase, "theirs")
        cells = [
            f"{built(phase, side)} built, {seconds:.2f} s"
            for side, seconds in (("ours", ours), ("theirs", theirs))
        ]
        print(f"{phase:30}{cells[0]:>20}{cells[1]:>22}   {theirs / ours:5.1f}")
    for side, name in (("ours", "ours"), ("theirs", "BuildStream")):
        edit, alone = wall(COMMENT, side), wall(ALONE, side)
        print(
            f"{name}: the chunks after an edited comment take {edit / alone:.2f} times as long as"
            f" bottom alone, {1000 * (edit - alone):.0f} ms more"
        )


if __name__ == "__main__":
    main()
