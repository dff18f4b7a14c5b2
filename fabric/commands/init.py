"""``init``: makes a directory of one's own definitions, with a chunk that builds at once."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import socket
from pathlib import Path

from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import print_json
from fabric.config import Settings, built_architectures
from fabric.definitions.system_morph import ARCHITECTURES
from fabric.errors import FabricError, command, in_line
from fabric.trove.sources.git_process import run as git
from fabric.trove.sources.snapshot import user

SYSTEM = "systems/hello-system.morph"

_README = """\
# My definitions

One system, with one stratum and one chunk: the program `hello`. Its source is the folder `source`.

    fabric-initiator build systems/hello-system.morph
    fabric-initiator checkout systems/hello-system.morph --to out
    out/usr/bin/hello

Change `source/hello`, commit, and build again: a build takes the commit that is checked out.

    git commit --all --message 'Another greeting'
    fabric-initiator build systems/hello-system.morph

| file | is |
|---|---|
| `systems/hello-system.morph` | a system: a list of strata |
| `strata/greetings.morph` | a stratum: a list of chunks, each with its source |
| `strata/greetings/hello.morph` | a chunk: the commands that build it |
| `sources/own.lorry` | the origin of a source: here this repository itself |
| `VERSION`, `DEFAULTS` | the version of the format; the files of each artifact |

More commands:

    fabric-initiator check               # all mistakes in these files, without a build
    fabric-initiator show systems/hello-system.morph
    fabric-initiator logs hello
    fabric-initiator shell hello         # a shell in the sandbox of the chunk
    fabric-initiator edit hello          # a work tree of its source, built without commits
"""

#: Path -> text.  Every file that `init` writes.
FILES = {
    "README.md": _README,
    ".gitignore": "build-step-*.log\n.build-step-logs-*.part\n/out/\n*.img\n",
    "VERSION": "version: 8\n",
    "DEFAULTS": """\
# The artifact that takes each file of a chunk: the first rule that matches the path.
split-rules:
  chunk:
  - artifact: -bins
    include: ['(usr/)?s?bin/.*']
  - artifact: -libs
    include: ['(usr/)?lib/lib[^/]*\\.so(\\.\\d+)*']
  - artifact: -devel
    include: ['(usr/)?include/.*', '(usr/)?lib/lib.*\\.a', '(usr/)?(lib|share)/pkgconfig/.*']
  - artifact: -doc
    include: ['(usr/)?share/(doc|man|info)/.*']
  - artifact: -misc
    include: ['.*']
  stratum:
  - artifact: -devel
    include: ['.*-devel', '.*-doc']
  - artifact: -runtime
    include: ['.*']
""",
    SYSTEM: """\
name: hello-system
kind: system
arch: {arch}
strata:
- name: greetings
  morph: strata/greetings.morph
""",
    "strata/greetings.morph": """\
name: greetings
kind: stratum
chunks:
- name: hello
  morph: strata/greetings/hello.morph
  repo: upstream:own
  ref: HEAD                    # the commit of these definitions
  build-mode: test             # with the tools of this machine
""",
    "strata/greetings/hello.morph": """\
name: hello
kind: chunk
build-commands:
- sh -n source/hello           # is it valid?
install-commands:
- mkdir -p "$DESTDIR$PREFIX/bin"
- install -m 755 source/hello "$DESTDIR$PREFIX/bin"
""",
    "sources/own.lorry": "own:\n  type: git\n  url: ..\n",
    "source/hello": "#!/bin/sh\necho 'Hello from a system of my own'\n",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "directory", nargs="?", default=".", metavar="DIR", help="new or empty (default: here)"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    arch = built_architectures(settings)[0]
    if arch not in ARCHITECTURES:
        raise FabricError(f"no system is built for {arch}, the architecture of this machine")
    if shutil.which("git") is None:
        raise FabricError("git is not installed: install it (on Debian: apt install git)")
    directory = Path(options.directory)
    try:
        if directory.exists() and any(directory.iterdir()):
            raise FabricError(f"{in_line(directory)}: not empty; name a new or an empty folder")
        for path, text in FILES.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("{arch}", arch))
        (directory / "source/hello").chmod(0o755)
    except OSError as error:
        raise FabricError(f"{in_line(error.filename)}: {error.strerror}") from None
    _commit(directory)
    full = directory.absolute()
    where = [shlex.join(["cd", str(directory)])] if full != Path.cwd() else []
    steps = [*where, command("build", SYSTEM, anywhere=bool(where))]
    if options.json:
        print_json({"directory": str(full), "system": SYSTEM, "next": steps})
    else:
        print(f"{in_line(full)}: definitions of a system with one chunk; README.md says more")
        print("\n".join(f"  {step}" for step in steps))
    return 0


def _commit(directory: Path) -> None:
    """Make a repository of the files.  SourceError if git fails."""
    here = ["-C", str(directory), "-c", f"core.hooksPath={os.devnull}", "-c", "commit.gpgSign=no"]
    git([*here, "init", "--quiet"], private=False)
    if not git([*here, "config", "user.email"], check=False, private=False):
        me = f"{user()}@{socket.gethostname()}"
        here += ["-c", f"user.name={user()}", "-c", f"user.email={me}"]
    git([*here, "add", "."], private=False)
    git([*here, "commit", "--quiet", "--message", "A system that greets"], private=False)
