"""Definitions for the farm to build: a wide system of small chunks, and a small one of real work.

``systems/wide.morph`` is 300 chunks in layers, each on two of the layer before; a few take some
seconds, a few print much. ``systems/small.morph`` compiles C programs with the host's compiler,
libraries first, and runs them. They share a stratum, so users of both share its steps.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from small_definitions import DEFAULTS

LAYERS, WIDTH = 15, 20
PROGRAMS = 12

SYSTEM = "name: {name}\nkind: system\narch: x86_64\nstrata:\n{strata}"
LIBRARY = "int value_{n}(void) {{ return {n}{calls}; }}\n"
PROGRAM = """\
#include <stdio.h>
{declared}
int main(void) {{ printf("{n}: %d\\n", {sum}); return 0; }}
"""


def git(folder: Path, *args: str) -> str:
    day = "2020-01-01T00:00:00Z"  # two users have the same commits
    dates = {"GIT_AUTHOR_DATE": day, "GIT_COMMITTER_DATE": day}
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *args], check=True, capture_output=True, text=True,
        env={**os.environ, **dates},
    )  # fmt: skip
    return done.stdout.strip()


def commit(folder: Path) -> str:
    """Commit everything in ``folder``."""
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", "all of it")
    return git(folder, "rev-parse", "HEAD")


def write(definitions: Path, sources: Path, seen: str) -> None:
    """Write definitions, and the sources they want; ``seen`` is where a build finds the latter."""
    for folder in ("strata", "systems"):
        (definitions / folder).mkdir(parents=True)
    (definitions / "VERSION").write_text("version: 8\n")
    (definitions / "DEFAULTS").write_text(DEFAULTS)
    programs = _programs(definitions, sources / "programs", f"{seen}programs")
    wide = _wide(definitions, sources / "nothing", f"{seen}nothing")
    _stratum(definitions, "programs", programs)
    _stratum(definitions, "wide", wide)
    strata = "- name: {0}\n  morph: strata/{0}.morph\n"
    for name, parts in (("small", ["programs"]), ("wide", ["wide", "programs"])):
        text = SYSTEM.format(name=name, strata="".join(strata.format(part) for part in parts))
        (definitions / f"systems/{name}.morph").write_text(text)
    commit(definitions)


def _stratum(definitions: Path, name: str, chunks: list[str]) -> None:
    text = f"name: {name}\nkind: stratum\nchunks:\n{''.join(chunks)}"
    (definitions / f"strata/{name}.morph").write_text(text)


def _chunk(definitions: Path, name: str, at: str, needs: list[str], **commands: str) -> str:
    """Write a chunk, and return its entry in the stratum."""
    lists = "".join(f"{key}-commands:\n- {text}\n" for key, text in commands.items())
    (definitions / f"strata/{name}.morph").write_text(f"name: {name}\nkind: chunk\n{lists}")
    return (
        f"- name: {name}\n  morph: strata/{name}.morph\n  repo: {at}\n  ref: main\n"
        f"  build-mode: test\n  build-depends: [{', '.join(needs)}]\n"
    )


def _wide(definitions: Path, source: Path, seen: str) -> list[str]:
    source.mkdir(parents=True)
    (source / "README").write_text("nothing to see\n")
    commit(source)
    chunks = []
    for number in range(LAYERS * WIDTH):
        layer, column = divmod(number, WIDTH)
        names = [f"w{layer - 1:02}-{(column + shift) % WIDTH:02}" for shift in (0, 7)]
        name = f"w{layer:02}-{column:02}"
        build = f"seq {50 + number}"
        if number % 50 == 17:
            build = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done"
        elif number % 50 == 34:
            build = "set +x; seq 30000"
        make = f"mkdir $DESTDIR/share && seq {number} 999 > $DESTDIR/share/{name}"
        needs = names if layer else []
        chunks.append(_chunk(definitions, name, seen, needs, build=build, install=make))
    return chunks


def _programs(definitions: Path, source: Path, seen: str) -> list[str]:
    source.mkdir(parents=True)
    chunks, before = [], ""
    for n in range(PROGRAMS):
        calls = f" + value_{n - 1}()" if n else ""
        declared = f"int value_{n - 1}(void);\n" if n else ""
        (source / f"lib{n}.c").write_text(declared + LIBRARY.format(n=n, calls=calls))
        everyone = range(n + 1)
        (source / f"main{n}.c").write_text(
            PROGRAM.format(
                n=n,
                declared="\n".join(f"int value_{k}(void);" for k in everyone),
                sum=" + ".join(f"value_{k}()" for k in everyone),
            )
        )
        name = f"program-{n:02}"
        files = " ".join([f"main{n}.c", *(f"lib{k}.c" for k in everyone)])
        chunks.append(
            _chunk(
                definitions,
                name,
                seen,
                [before] if n % 3 else [],
                build=f"gcc -O2 -o {name} {files} && ./{name}",
                install=f"mkdir -p $DESTDIR/usr/bin && cp {name} $DESTDIR/usr/bin/",
            )
        )
        before = name
    commit(source)
    return chunks
