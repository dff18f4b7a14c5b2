"""How fast do logs travel, and how late is a line?  Real builds beside bare PUB and SUB.

    python bench/logs.py [--megabytes 400] [--seconds 5]

A build prints as fast as it can; measured is how fast the user's file grows, beside a PUB socket
that sends the same pieces to a SUB socket in another process.  Then a build prints the time a
thousand times a second; measured is how long each line takes from there to the user's file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zmq

from fabric.wire import sockets
from fabric.wire.messages import MAX_LOG_PIECE, Published

FLOOD = 'yes "$(printf %079d 0)" | head -c {size}'
CLOCK = (
    "perl -MTime::HiRes=time,sleep -e '$| = 1; $t = time; foreach $n (1..{lines})"
    ' {{ printf "%.6f line %d\\n", time, $n; $d = $t + $n / 1000 - time;'
    " sleep $d if $d > 0 }}'"
)


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@invalid"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *args], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def write_definitions(root: Path, command: str) -> None:
    """One chunk that prints."""
    source = root / "source"
    source.mkdir(parents=True)
    git(source, "init", "-q", "-b", "main")
    (source / "README").write_text("nothing to see\n")
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "one file")
    ref = git(source, "rev-parse", "HEAD")
    for folder in ("strata/logs", "systems"):
        (root / folder).mkdir(parents=True)
    (root / "VERSION").write_text("version: 8\n")
    (root / "strata/logs/talker.morph").write_text(
        f"name: talker\nkind: chunk\ninstall-commands:\n- |\n  {command}\n"
    )
    (root / "strata/logs.morph").write_text(
        "name: logs\nkind: stratum\nchunks:\n- name: talker\n  morph: strata/logs/talker.morph\n"
        f"  repo: file://{source}\n  ref: {ref}\n  build-mode: test\n  build-depends: []\n"
    )
    (root / "systems/logs.morph").write_text(
        "name: logs\nkind: system\narch: x86_64\nstrata:\n- name: logs\n"
        "  morph: strata/logs.morph\n"
    )


class Growing:
    """The user's log file of a build of one chunk, read as it grows."""

    def __init__(self, root: Path, command: str) -> None:
        write_definitions(root, command)
        self._log = root / "build-step-talker.log"
        self._child = subprocess.Popen(
            [Path(sys.executable).with_name("fabric-initiator"), "build", "systems/logs.morph",
             "talker"],
            cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(root), "FABRIC_CACHE": str(root / "cache")},
        )  # fmt: skip

    def pieces(self, every: float) -> list[tuple[float, bytes]]:
        """(when, what came) until the build is over."""
        found = []
        while not self._log.exists() and self._child.poll() is None:
            time.sleep(every)
        if self._log.exists():
            with self._log.open("rb") as file:
                while True:
                    over = self._child.poll() is not None
                    if data := file.read(1 << 24):
                        found.append((time.time(), data))
                    elif over:
                        break
                    else:
                        time.sleep(every)
        _, errors = self._child.communicate()
        if self._child.returncode != 0:
            raise SystemExit(errors)
        return found


def measure_flood(size: int) -> float:
    """Bytes a second into the user's file."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        pieces = Growing(Path(name), FLOOD.format(size=size)).pieces(0.002)
    total = sum(len(data) for _, data in pieces)
    assert total > size, f"{total} bytes came"
    return total / (pieces[-1][0] - pieces[0][0])


def measure_bare(size: int) -> float:
    """Bytes a second from a PUB socket to a SUB socket."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        child = subprocess.Popen([sys.executable, __file__, "--publish", name])
        context = zmq.Context()
        socket = sockets.subscriber(context, "")
        sockets.connect(socket, sockets.ipc(name, "logs"))
        socket.recv()
        began, total = time.monotonic(), 0
        while total < size:
            total += len(socket.recv())
        took = time.monotonic() - began
        child.kill()
        child.wait()
        context.destroy(linger=0)
    return total / took


def publish(directory: Path) -> None:
    socket = sockets.publisher(zmq.Context())
    sockets.bind(socket, sockets.ipc(directory, "logs"))
    frame = Published("a" * 64, 1, 0, b"x" * MAX_LOG_PIECE).frame()
    while True:
        socket.send(frame)


def measure_delay(seconds: int) -> list[float]:
    """Seconds that each line took, smallest first."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        pieces = Growing(Path(name), CLOCK.format(lines=1000 * seconds)).pieces(0.001)
    delays, rest = [], b""
    for when, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            said, _, text = line.partition(b" ")
            if text.startswith(b"line "):
                delays.append(when - float(said))
    assert len(delays) == 1000 * seconds, f"{len(delays)} lines came"
    return sorted(delays)


def main() -> None:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    top.add_argument("--megabytes", type=int, default=400)
    top.add_argument("--seconds", type=int, default=5)
    top.add_argument("--publish", type=Path, help=argparse.SUPPRESS)
    options = top.parse_args()
    if options.publish:
        publish(options.publish)
    size = options.megabytes * 1_000_000
    bare, flood = measure_bare(size), measure_flood(size)
    print(f"  bare PUB and SUB   {bare / 1e6:8.0f} MB/s")
    print(f"  to the user's file {flood / 1e6:8.0f} MB/s")
    print(f"  ratio              {flood / bare:8.2f}")
    delays = measure_delay(options.seconds)
    median, late = (1000 * delays[len(delays) * part // 100] for part in (50, 99))
    print(f"  a line, at 1,000 a second: median {median:.0f} ms, p99 {late:.0f} ms")


if __name__ == "__main__":
    main()
