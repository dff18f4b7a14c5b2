"""How fast do logs travel, and how late is a line?  Real builds beside bare PUB and SUB.

    python bench/logs.py [--megabytes 400] [--seconds 5]

A build prints as fast as it can; measured is how fast the user's file grows.  Beside it: sockets
of the same kinds and options that pass on the same pieces and do nothing else, over ipc as well,
with no process between (one hop), and with one that forwards, as the broker does (two); and the
latter with what makes a log safe and nothing else: each of the three digests and writes all of it.

Then a build prints the time a thousand times a second; measured is how long each line takes from
there to the user's file.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import zmq
from bench_kit import Chunk, write_definitions

from fabric import bounds
from fabric.wire import sockets
from fabric.wire.messages import Published

TOPIC = "a" * 64
FLOOD = 'yes "$(printf %079d 0)" | head -c {size}'
CLOCK = (
    "perl -MTime::HiRes=time,sleep -e '$| = 1; $t = time; foreach $n (1..{lines})"
    ' {{ printf "%.6f line %d\\n", time, $n; $d = $t + $n / 1000 - time;'
    " sleep $d if $d > 0 }}'"
)


class Growing:
    """The user's log file of a build of one chunk, read as it grows."""

    def __init__(self, root: Path, command: str) -> None:
        write_definitions(root, "logs", [Chunk("talker", command)])
        self._log = root / "build-step-talker.log"
        self._child = subprocess.Popen(
            [Path(sys.executable).with_name("fabric-initiator"), "build", "systems/logs.morph",
             "talker"],
            cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(root), "FABRIC_CACHE": str(root / "cache")},
        )  # fmt: skip

    def sizes(self, every: float) -> list[tuple[float, int]]:
        """(when, bytes) whenever it has grown, until the build is over."""
        found: list[tuple[float, int]] = []
        over = False
        while not over:
            time.sleep(every)
            over = self._child.poll() is not None
            size = self._log.stat().st_size if self._log.exists() else 0
            if size and (not found or size > found[-1][1]):
                found.append((time.time(), size))
        _, errors = self._child.communicate()
        if self._child.returncode != 0:
            raise SystemExit(errors)
        return found


def measure_flood(size: int) -> float:
    """Bytes a second into the user's file."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        sizes = Growing(Path(name), FLOOD.format(size=size)).sizes(0.005)
    (began, before), (ended, total) = sizes[0], sizes[-1]
    assert total > size, f"{total} bytes came"
    return (total - before) / (ended - began)


class Safe:
    """Where pieces of a log go; with a ``folder``, they are digested and written there."""

    def __init__(self, folder: str) -> None:
        self._file = (
            tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  open to the end
            if folder
            else None
        )
        self._digest = hashlib.sha256()

    def take(self, piece: bytes | memoryview) -> None:
        if self._file is not None:
            self._digest.update(piece)
            self._file.write(piece)


def measure_bare(size: int, hops: int, *, safe: bool = False) -> float:
    """Bytes a second from a PUB socket to a SUB socket, with ``hops`` - 1 processes between."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        places = [sockets.ipc(name, f"logs-{n}") for n in range(hops)]
        ways = [["--publish", places[0]], *([["--forward", *pair] for pair in pairwise(places)])]
        folder = ["--safe", name] if safe else []
        children = [subprocess.Popen([sys.executable, __file__, *way, *folder]) for way in ways]
        context = sockets.new_context()
        socket = sockets.subscriber(context, TOPIC)
        sockets.connect(socket, places[-1])
        socket.recv()
        began, total, sink = time.monotonic(), 0, Safe(name if safe else "")
        while total < size:
            piece = socket.recv(copy=False).buffer
            sink.take(piece)
            total += len(piece)
        took = time.monotonic() - began
        for child in children:
            child.kill()
            child.wait()
        context.destroy(linger=0)
    return total / took


def publish(place: str, sink: Safe) -> None:
    """Pieces of logs, as fast as they are taken."""
    socket = sockets.publisher(sockets.new_context())
    sockets.bind(socket, place)
    frame = Published(TOPIC, 1, 0, b"x" * bounds.LOG_PIECE).frame()
    while True:
        sink.take(frame)
        socket.send(frame)


def forward(here: str, there: str, sink: Safe) -> None:
    """What a broker does, if it does nothing else."""
    context = sockets.new_context()
    source, target = sockets.subscriber(context, ""), sockets.republisher(context)
    target.setsockopt(zmq.XPUB_NODROP, 1)
    sockets.connect(source, here)
    sockets.bind(target, there)
    while True:
        frame = source.recv(copy=False)
        sink.take(frame.buffer)
        target.send(frame)


def measure_delay(seconds: int) -> list[float]:
    """Seconds that each line took, smallest first."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        sizes = Growing(Path(name), CLOCK.format(lines=1000 * seconds)).sizes(0.001)
        text = Path(name, "build-step-talker.log").read_bytes()
    delays, end = [], 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        said, _, rest = line.partition(b" ")
        if rest.startswith(b"line "):
            came = next(when for when, size in sizes if size >= end)
            delays.append(came - float(said))
    assert len(delays) == 1000 * seconds, f"{len(delays)} lines came"
    return sorted(delays)


def main() -> None:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    top.add_argument("--megabytes", type=int, default=400)
    top.add_argument("--seconds", type=int, default=5)
    top.add_argument("--publish", help=argparse.SUPPRESS)
    top.add_argument("--forward", nargs=2, help=argparse.SUPPRESS)
    top.add_argument("--safe", default="", help=argparse.SUPPRESS)
    options = top.parse_args()
    if options.publish:
        publish(options.publish, Safe(options.safe))
    if options.forward:
        here, there = options.forward
        forward(here, there, Safe(options.safe))
    size = options.megabytes * 1_000_000
    flood = measure_flood(size)
    print(f"  to the user's file              {flood / 1e6:8.0f} MB/s")
    for hops, safe, what in (
        (1, False, "bare PUB and SUB, 1 hop"),
        (2, False, "bare PUB and SUB, 2 hops"),
        (2, True, "each digests and writes"),
    ):
        bare = measure_bare(size, hops, safe=safe)
        print(f"  {what:32}{bare / 1e6:8.0f} MB/s, ratio {flood / bare:.2f}")
    delays = measure_delay(options.seconds)
    median, late = (1000 * delays[len(delays) * part // 100] for part in (50, 99))
    print(f"  a line, at 1,000 a second: median {median:.0f} ms, p99 {late:.0f} ms")


if __name__ == "__main__":
    main()
