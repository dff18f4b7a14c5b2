"""How fast are jobs handed out?  The real broker beside a bare ROUTER that echoes its messages.

    python bench/dispatch.py [--workers 8] [--slots 8] [--jobs 20000] [--dask]

Over loopback TCP, encrypted, peers known by their keys, on both sides.  With ``--dask`` the same
number of no-op tasks goes through dask.distributed, too, installed into a virtual environment of
its own that is thrown away.

Jobs do nothing and the store is a stub that has what was asked for twice, so what is measured is
messages, the core, and the broker's loop.  Both sides use the same worker process, which costs
as much as the broker does: on two cores both are busy.  Look at ratios, not at rates, and at that
of CPU while the machine does other work, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import zmq

from fabric.client.request import Action, RequestMirror
from fabric.client.request_logs import Send
from fabric.wire import keys, sockets
from fabric.wire.connection import Connection
from fabric.wire.messages import (
    PROTOCOL,
    Assignment,
    Attempt,
    BuildGraph,
    BuildOrder,
    Desired,
    LogWanted,
    Outcome,
    Rejected,
    Report,
    StepSpec,
    ToInitiator,
    Update,
)
from fabric.wire.sockets import Curve

ARCH = "x86_64"
#: An address of this machine that is hardly in use.
AT = sockets.over_tcp("127.74.11.1", 7411)
#: Jobs of one request: wide enough to keep all workers busy.
LAYER = 500


class Stub:
    """A store that lacks what it is asked for the first time, and then has it."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def has(self, keys: Iterable[str]) -> set[str]:
        wanted = set(keys)
        known = wanted & self._asked
        self._asked |= wanted
        return known

    def use(self, keys: Iterable[str]) -> None:
        """Nothing here is ever collected."""


def offers(number: int) -> tuple[StepSpec, ...]:
    """Layers of jobs, each of which needs two of the layer before."""
    job = msgspec.Raw(msgspec.msgpack.encode({"name": "nothing", "padding": "x" * 150}))
    keys = [f"{n:064x}" for n in range(number)]
    made = []
    for n, key in enumerate(keys):
        below = n - LAYER
        depends: tuple[str, ...] = ()
        if below >= 0:
            other = below - below % LAYER + (below * 7 + 3) % LAYER
            depends = tuple(dict.fromkeys((keys[below], keys[other])))
        made.append(StepSpec(key, f"job {n}", "chunk", ARCH, job, depends=depends))
    return tuple(made)


# -- processes -----------------------------------------------------------------------------


def make_keys(directory: Path, workers: int) -> None:
    """Keys of a farm: the broker's, a user's, and those of all workers."""
    keys.make("broker", "broker", directory)
    admitted = keys.AuthorizedKeys(directory)
    for name in ("user", *(f"w{n}" for n in range(workers))):
        own = directory / name
        admitted.admit(keys.make("initiator" if name == "user" else "worker", name, own))
        (own / "broker.key").write_bytes((directory / "broker.key").read_bytes())


def curve_of(directory: Path, name: str) -> Curve:
    return keys.of_peer(directory / name, "initiator" if name == "user" else "worker")[1]


def serve_broker(directory: Path) -> None:
    """The real broker, with the stub for a store, and a resolver that knows the answer."""
    from fabric.broker import assemble, serve

    broker = assemble(
        AT,
        directory / "state",
        Stub,  # type: ignore[arg-type]
        keys_dir=directory,
        resolver=("sh", "-c", 'cat "$0"', str(directory / "submit")),
    )
    serve(broker)


def serve_echo(directory: Path) -> None:
    """What ZeroMQ can do from Python at best."""
    context = zmq.Context()
    authenticator = keys.Authenticator(context, keys.AuthorizedKeys(directory))
    socket = sockets.router(context, keys.of_broker(directory))
    sockets.bind(socket, AT.jobs)
    poller = zmq.Poller()
    poller.register(authenticator.socket, zmq.POLLIN)
    poller.register(socket, zmq.POLLIN)
    while True:
        poller.poll()
        authenticator.serve(time.monotonic())
        with contextlib.suppress(zmq.Again):
            for _ in range(200):
                socket.send_multipart(socket.recv_multipart(zmq.NOBLOCK))


def work(directory: Path, workers: int, slots: int, *, echo: bool) -> None:
    """Workers that are done with everything at once, all in one process."""
    context = zmq.Context()
    codec: sockets.Codec[Desired | LogWanted | Rejected] = sockets.Codec(
        Desired | LogWanted | Rejected
    )
    poller = zmq.Poller()
    peers = {}
    for n in range(workers):
        socket = sockets.dealer(context, curve_of(directory, f"w{n}"))
        sockets.connect(socket, AT.jobs)
        poller.register(socket, zmq.POLLIN)
        peers[socket] = Idler(f"w{n}", slots, socket, codec)
    if echo:
        typical = codec.encode(
            Desired(1, 3, (Assignment("a" * 64, 1, msgspec.Raw(offers(1)[0].job)),),
                    acked=(Attempt("b" * 64, 1),))
        )  # fmt: skip
        for peer in peers.values():
            for _ in range(slots):
                peer.socket.send(typical)
    count = 0
    while True:
        for peer in () if echo else peers.values():
            peer.beat()
        for socket, _ in poller.poll(1000):
            peer = peers[socket]
            for frames in sockets.receive(socket, slots):
                message = codec.decode(frames[-1].bytes)
                if echo:
                    assert isinstance(message, Desired)
                    peer.obey(message, send=False)
                    socket.send(typical)
                    count += 1
                    if count % 1000 == 0:
                        print(count, flush=True)
                elif isinstance(message, Desired):
                    peer.obey(message)


class Idler:
    """A worker that has done its jobs as soon as it gets them."""

    def __init__(
        self,
        name: str,
        slots: int,
        socket: zmq.Socket[bytes],
        codec: sockets.Codec[Desired | LogWanted | Rejected],
    ) -> None:
        self.name = name
        self.slots = slots
        self.socket = socket
        self._codec = codec
        self._finished: dict[tuple[str, int], Outcome] = {}
        self._sequence = 0
        self._answered = (0, 0)
        self._due = 0.0

    def beat(self) -> None:
        if time.monotonic() >= self._due:
            self.report()

    def obey(self, desired: Desired, *, send: bool = True) -> None:
        self._answered = (desired.epoch, desired.sequence)
        for attempt in desired.acked:
            self._finished.pop((attempt.key, attempt.fence), None)
        for start in desired.start:
            id = (start.key, start.fence)
            self._finished[id] = Outcome(*id, "done", seconds=0.001)
        if desired.start:
            self.report(send=send)

    def report(self, *, send: bool = True) -> None:
        self._due = time.monotonic() + 1.0
        self._sequence += 1
        frame = self._codec.encode(
            Report(
                PROTOCOL,
                self.name,
                ARCH,
                self.slots,
                self._sequence,
                finished=tuple(self._finished.values()),
                instance=self.name,
                epoch=self._answered[0],
                answered=self._answered[1],
            )
        )
        if send:
            self.socket.send(frame)


# -- measuring -----------------------------------------------------------------------------


def spawn(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *args], stdout=subprocess.PIPE, text=True, bufsize=1
    )


def stop(*children: subprocess.Popen[str]) -> None:
    for child in children:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_broker(
    workers: int,
    slots: int,
    jobs: int,
    beside: Callable[[Path], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> tuple[float, float]:
    """(jobs a second, broker's CPU seconds a job); ``beside`` gets the folder with its keys."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        make_keys(directory, workers)
        steps = offers(jobs)
        goals = tuple(offer.key for offer in steps[-LAYER:])
        request = "0" * 32
        submit = BuildGraph(PROTOCOL, request, "bench", steps, goals)
        (directory / "submit").write_bytes(msgspec.msgpack.encode(submit))
        broker = spawn("--serve", "broker", name)
        crew = spawn("--serve", "workers", name, f"--workers={workers}", f"--slots={slots}")
        line = Connection(AT, "follow", curve=curve_of(directory, "user"), name="user")
        codec: sockets.Codec[ToInitiator] = sockets.Codec(ToInitiator)
        stack = contextlib.ExitStack()
        stack.enter_context(beside(directory))
        time.sleep(3.0)  # until the workers are there
        mirror = RequestMirror(BuildOrder(PROTOCOL, request, "bench", "refs/x", "c" * 40, "bench"))

        def say(actions: list[Action]) -> None:
            for action in actions:
                if isinstance(action, Send):
                    line.send(codec.encode(action.message))

        used = began = 0.0
        while mirror.state != "done":
            say(mirror.tick(time.monotonic()))
            line.wait(0.1)
            for frame in line.receive(100):
                message = codec.decode(frame)
                assert isinstance(message, Update), message
                say(mirror.update(message, time.monotonic()))
                assert mirror.state != "failed", message.message
                if mirror.state == "building" and not began:
                    began, used = time.monotonic(), cpu(broker.pid)
            line.maintain(time.monotonic())
        took, used = time.monotonic() - began, cpu(broker.pid) - used
        stack.close()
        line.close()
        stop(crew, broker)
    return jobs / took, used / jobs


def measure_echo(workers: int, slots: int, jobs: int) -> tuple[float, float]:
    """(round trips a second, the echo's CPU seconds for one)"""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        make_keys(Path(name), workers)
        echo = spawn("--serve", "echo", name)
        crew = spawn("--serve", "echoed", name, f"--workers={workers}", f"--slots={slots}")
        assert crew.stdout is not None
        first = int(crew.stdout.readline())
        began, used = time.monotonic(), cpu(echo.pid)
        count = first
        while count < first + jobs:
            count = int(crew.stdout.readline())
        took, used = time.monotonic() - began, cpu(echo.pid) - used
        stop(crew, echo)
    return (count - first) / took, used / (count - first)


#: What dask is measured with: as many workers, tasks that do nothing, none of them the same.
DASK = """
import sys, time
from dask.distributed import Client, LocalCluster, wait

def nothing(n):
    return None

if __name__ == "__main__":
    workers, slots, tasks = map(int, sys.argv[1:])
    cluster = LocalCluster(n_workers=workers, threads_per_worker=slots, processes=True,
                           dashboard_address=None)
    with cluster, Client(cluster) as client:
        wait(client.map(nothing, range(-100, 0), pure=False))
        began = time.monotonic()
        wait(client.map(nothing, range(tasks), pure=False))
        print(tasks / (time.monotonic() - began))
"""


def measure_dask(workers: int, slots: int, tasks: int) -> float:
    """Tasks a second."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        venv = Path(name) / "venv"
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin/pip", "install", "-q", "distributed"], check=True)
        program = Path(name) / "nothing.py"
        program.write_text(DASK)
        done = subprocess.run(
            [venv / "bin/python", program, str(workers), str(slots), str(tasks)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    top.add_argument("--workers", type=int, default=8)
    top.add_argument("--slots", type=int, default=8)
    top.add_argument("--jobs", type=int, default=20_000)
    top.add_argument("--dask", action="store_true", help="measure dask.distributed, too")
    top.add_argument("--serve", nargs=2, metavar=("WHAT", "DIRECTORY"), help=argparse.SUPPRESS)
    options = top.parse_args()
    if options.serve:
        what, directory = options.serve[0], Path(options.serve[1])
        if what == "broker":
            serve_broker(directory)
        elif what == "echo":
            serve_echo(directory)
        else:
            work(directory, options.workers, options.slots, echo=what == "echoed")
        return
    print(f"{options.jobs} jobs, {options.workers} workers with {options.slots} slots each")
    echo, least = measure_echo(options.workers, options.slots, options.jobs)
    rate, used = measure_broker(options.workers, options.slots, options.jobs)
    print(f"  bare ROUTER echo  {echo:8.0f} round trips a second, {least * 1e6:.0f} us of CPU each")
    print(f"  broker            {rate:8.0f} jobs a second, {used * 1e6:.0f} us of CPU each")
    print(f"  ratio             {rate / echo:8.2f}, by CPU {least / used:.2f}")
    if options.dask:
        tasks = measure_dask(options.workers, options.slots, options.jobs // 4)
        print(f"  dask.distributed  {tasks:8.0f} tasks a second")
        print(f"  ratio             {rate / tasks:8.1f}")


if __name__ == "__main__":
    main()
