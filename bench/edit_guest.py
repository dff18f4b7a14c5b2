"""From a saved edit to the changed program's output in a guest, beside make, scp and ssh.

    python bench/edit_guest.py [--rounds 7]

The chunk is a C program of 20 files, compiled with this machine's tools and linked statically.  The
guest is the minimal system, which must be built (`make build`), in QEMU by software emulation.  A
round changes one line in one file on each side, in turns:

    ours        fabric-initiator edit CHUNK --deploy GUEST, then ssh runs the program
    yardstick   make and make install in a folder, scp of the one program, then ssh runs it

Each program must print the new line.  Printed are medians and minima of the wall times, in parts,
and of `ssh GUEST true`, of which each side needs two.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench_kit import git, run

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "systems"))

from qemu import Machine

SYSTEM = Path(__file__).resolve().parent.parent / "systems/minimal-system-x86_64.morph"
PROGRAM = Path(sys.executable).with_name("fabric-initiator")
FILES = 20
PARTS = ("build", "install", "run", "all")
MAKEFILE = """\
OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))
tool: $(OBJECTS)
\tcc -static -o $@ $(OBJECTS)
%.o: %.c
\tcc -O2 -c -o $@ $<
install: tool
\tinstall -D -m 755 tool $(DESTDIR)/usr/bin/tool
"""
MORPH = """\
name: tool
kind: chunk
build-commands: [make]
install-commands: [make install]
"""
STRATUM = """\
name: edit
kind: stratum
chunks:
- name: tool
  morph: strata/tool.morph
  repo: {source}
  ref: main
  build-mode: test
"""
SYSTEM_OF_TOOL = """\
name: edit
kind: system
arch: x86_64
strata:
- name: edit
  morph: strata/edit.morph
"""
SSH = """\
Host guest
  HostName 127.0.0.1
  Port {port}
  User root
  IdentityFile {key}
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""

Times = dict[str, float]


def write_tree(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "Makefile").write_text(MAKEFILE)
    for number in range(1, FILES):
        text = f"int part{number}(int x) {{ return x * {number}; }}\n"
        (folder / f"part{number:02}.c").write_text(text)
    change(folder, "at first")


def change(folder: Path, text: str) -> None:
    source = f'#include <stdio.h>\nint main(void) {{ puts("{text}"); return 0; }}\n'
    (folder / "main.c").write_text(source)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Guest:
    """The minimal system, reached by an ssh and scp whose configuration is in ``root``."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self._root = root
        self.port = _free_port()
        files = root / "files/root/.ssh"
        files.mkdir(parents=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / "key"], check=True
        )
        shutil.copy(root / "key.pub", files / "authorized_keys")
        (root / "config").write_text(SSH.format(port=self.port, key=root / "key"))
        tools = root / "tools"
        tools.mkdir()
        for name in ("ssh", "scp"):
            (tools / name).write_text(
                f'#!/bin/sh\nexec {shutil.which(name)} -F {root}/config "$@"\n'
            )
            (tools / name).chmod(0o755)
        self.environ = dict(os.environ, PATH=f"{tools}:{os.environ['PATH']}")
        self._image = root / "guest.img"
        command = [str(PROGRAM), "image", str(SYSTEM), "--to", str(self._image)]
        run([*command, "--files", str(root / "files")], root, self.environ)

    @contextmanager
    def started(self) -> Iterator[None]:
        network = f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{self.port}-:22"
        with Machine(self._image, network=network) as machine:
            machine.wait_for(r"login: ", 600)
            self.ssh("true")
            yield

    def ssh(self, command: str) -> tuple[float, str]:
        return run(["ssh", "guest", command], self._root, self.environ)


class Yardstick:
    """make, scp and ssh."""

    def __init__(self, root: Path, guest: Guest) -> None:
        self.tree = root / "tree"
        self._guest = guest
        write_tree(self.tree)

    def deploy(self) -> Times:
        to = self.tree.parent / "installed"
        make = ["sh", "-c", f"make -j2 && make install DESTDIR={to}"]
        built, _ = run(make, self.tree, self._guest.environ)
        copy = ["scp", "-q", "-O", f"{to}/usr/bin/tool", "guest:/tmp/tool"]
        copied, _ = run(copy, self.tree, self._guest.environ)
        return {"build": built, "install": copied}

    def run(self) -> tuple[float, str]:
        return self._guest.ssh("/tmp/tool")


class Ours:
    """A chunk that is edited."""

    def __init__(self, root: Path, guest: Guest) -> None:
        self._logs = root / "logs"
        self._guest = guest
        for folder in ("logs", "strata", "systems"):
            (root / folder).mkdir(parents=True)
        write_tree(root / "source")
        git(root / "source", "init", "-q", "-b", "main")
        git(root / "source", "add", ".")
        git(root / "source", "commit", "-q", "-m", "as it is")
        (root / "VERSION").write_text("version: 8\n")
        (root / "strata/tool.morph").write_text(MORPH)
        (root / "strata/edit.morph").write_text(STRATUM.format(source=root / "source"))
        (root / "systems/edit.morph").write_text(SYSTEM_OF_TOOL)
        cache = {"FABRIC_CACHE": str(root / "cache"), "FABRIC_CONFIG": "/dev/null"}
        self._environ = guest.environ | cache
        self._environ.pop("PYTHONDONTWRITEBYTECODE", None)
        self.tree = root / "logs/tool"
        run(
            [str(PROGRAM), "edit", "tool", "--system", "../systems/edit.morph"],
            self._logs,
            self._environ,
        )

    def deploy(self) -> Times:
        command = [str(PROGRAM), "edit", "tool", "--deploy", "guest"]
        command += ["--system", "../systems/edit.morph"]
        began, built = time.perf_counter(), 0.0
        with subprocess.Popen(
            command, cwd=self._logs, env=self._environ, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("tool is built: 1 built"):
                    built = time.perf_counter() - began
        took = time.perf_counter() - began
        if process.returncode or not built:
            sys.exit(f"{' '.join(command)} failed")
        return {"build": built, "install": took - built}

    def run(self) -> tuple[float, str]:
        return self._guest.ssh("tool")


def measured(side: Yardstick | Ours, text: str) -> Times:
    change(side.tree, text)
    times = side.deploy()
    times["run"], said = side.run()
    if said != f"{text}\n":
        sys.exit(f"the guest printed {said!r} instead of {text!r}")
    times["all"] = sum(times.values())
    return times


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--dir", default="/var/tmp", help="where to work (default %(default)s)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="edit-guest-", dir=given.dir) as name:
        guest = Guest(Path(name) / "guest")
        sides: dict[str, Yardstick | Ours] = {
            "make, scp, ssh": Yardstick(Path(name) / "theirs", guest),
            "ours": Ours(Path(name) / "ours", guest),
        }
        rounds: dict[str, list[Times]] = {side: [] for side in sides}
        logins = []
        with guest.started():
            for side, one in sides.items():
                measured(one, f"{side}, for the first time")
            for number in range(given.rounds):
                logins.append(guest.ssh("true")[0])
                for side, one in sides.items():
                    rounds[side].append(measured(one, f"{side}, change {number}"))
    print(f"{FILES} files, one changed; {given.rounds} rounds; seconds: median (minimum)")
    print(f"{'':16}" + "".join(f"{part:>16}" for part in PARTS))
    for side, times in rounds.items():
        cells = [[one[part] for one in times] for part in PARTS]
        print(f"{side:16}" + "".join(f"{median(c):8.2f} ({min(c):5.2f})" for c in cells))
    print(f"ssh guest true: {median(logins):.2f} ({min(logins):.2f})")
    print(f"load: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
