"""The worker: builds in sandboxes what the broker assigns, and reports the progress.

One thread communicates (sockets, reports, logs); the others build, one attempt each at a time.
`fabric.building.agent` decides what to start, kill and report.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fabric import bounds, config
from fabric.building import agent, devices
from fabric.building.agent import WorkerAgent
from fabric.building.attempt import Attempt
from fabric.building.host_tools import host_tools
from fabric.building.workspace import Workspace
from fabric.config import WorkerSettings, built_architectures
from fabric.errors import FabricError
from fabric.host import daemon
from fabric.host.event_log import EventLog
from fabric.host.jobserver import NAME, Jobserver
from fabric.host.process import die_with_parent
from fabric.host.sd_notify import Supervisor
from fabric.jobs import HOST_TOOLS
from fabric.trove.configured import open_sources, open_store, open_substituters
from fabric.wire import sockets
from fabric.wire.connection import Connection, dial
from fabric.wire.messages import (
    ARCHITECTURE,
    Desired,
    LogPiece,
    LogWanted,
    Outcome,
    Published,
    Rejected,
)
from fabric.wire.sockets import Addresses, Codec, Curve, DecodeError

if TYPE_CHECKING:
    from fabric.execution.engine import RemoteEngine

#: Niceness of builds above that of the communicating thread.
NICE = 5
#: Seconds between two checks for new bytes of logs.
FOLLOW_EVERY = 0.02
#: The same, while a log grows faster than it is published.
FOLLOW_SOON = 0.002
#: Pieces of one log published in one turn.
PIECES_AT_ONCE = 16
#: Messages received in one turn of the loop.
MESSAGES_AT_ONCE = 100
#: Seconds between two measurements of free disk and memory.
SURVEY_EVERY = 1.0
#: Most problems logged in a minute.
REPORTS_A_MINUTE = 10
#: Seconds that an ending worker waits for its builds to die.
DEADLINE = 8.0
#: Seconds between two trims of the caches.
TRIM_EVERY = 30.0

#: Made at import, which takes a millisecond: the zygote forks embedded workers that have it.
_codec: Codec[Desired | LogWanted | Rejected] = Codec(Desired | LogWanted | Rejected)


class Worker:
    """The sockets, threads and logs around a `WorkerAgent`.

    ``tools`` is the digest of this machine's tools, as from `host_tools`; ``jobserver`` the address
    of one that several workers share.
    """

    def __init__(
        self,
        name: str,
        settings: WorkerSettings,
        tools: str,
        addresses: Addresses,
        curve: Curve | None = None,
        jobserver: Path | None = None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._event_log = EventLog("fabric-worker")
        self._store = store = open_store(settings, said=self._event_log)
        store.prepare()
        self._substituters = open_substituters(settings, self._event_log)
        sources = open_sources(settings)
        self._exports = sources.exports
        self._trimming: threading.Thread | None = None
        self._trim_due = 0.0
        self._workspace = Workspace(settings.work_dir, store, sources)
        self._engine = _engine(settings, self._workspace) if settings.execute else None
        self._spools = self._workspace.session.scratch()
        self._jobserver = jobserver or self._spools / NAME
        if jobserver is None:
            server = Jobserver(self._jobserver, settings.shared_jobs)
            threading.Thread(target=server.run, daemon=True).start()
        self._attempts: dict[tuple[str, int], Attempt] = {}  # running, or not acknowledged yet
        self._waiting: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        own, *others = built_architectures(settings)
        self._agent = WorkerAgent(
            name=name,
            instance=uuid.uuid4().hex,
            arch=own,
            slots=settings.slots,
            features=(
                f"{HOST_TOOLS}{tools}",
                *(f"{ARCHITECTURE}{one}" for one in others),
                *settings.features,
            ),
        )
        # ended attempts and signals write to it, to end the poller's wait
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._connection = Connection(
            addresses, "publish", curve=curve, name=name, wake=self._wake_read
        )
        self._reported: deque[tuple[float, str]] = deque(
            maxlen=REPORTS_A_MINUTE
        )  # (time, text) of the last ones
        self._behind = False  # a log grows faster than it is published
        self._survey_due = 0.0
        self._stop_requested = False
        self._stopping_until: float | None = None

    def run(self) -> None:
        """Work until SIGTERM or SIGINT."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        supervisor = Supervisor()
        supervisor.ready()
        if problem := devices.unprotected():
            self._report(problem)
        # A sandbox dies with the thread that started it, so threads live as long as the worker.  In
        # each slot, one attempt may run in its sandbox while the one before it is stored.
        for _ in range(2 * self._agent.slots):
            threading.Thread(target=self._build, daemon=True).start()
        while not self._finished():
            self._wait()
            self._hear()
            self._collect()
            self._follow()
            now = time.monotonic()
            self._survey(now)
            self._do(self._agent.tick(now))
            if self._connection.maintain(now):
                if not self._connection.error:
                    self._reported.clear()
                self._report(self._connection.error or "the broker answers again")
            supervisor.alive(now, self._connection.error or f"{len(self._agent.running)} builds")
            if self._stop_requested and self._stopping_until is None:
                supervisor.stopping()
                self._stop()

    def close(self) -> None:
        """Release everything."""
        signal.set_wakeup_fd(-1)
        self._connection.close()
        self._workspace.close()
        if self._engine is not None:
            self._engine.close()
        self._store.flush()

    # -- one turn of the loop --------------------------------------------------------------

    def _wait(self) -> None:
        left = self._agent.due - time.monotonic()
        if self._agent.running:
            left = min(left, FOLLOW_SOON if self._behind else FOLLOW_EVERY)
        self._behind = False
        self._connection.wait(left)

    def _hear(self) -> None:
        for frame in self._connection.receive(MESSAGES_AT_ONCE):
            try:
                message = _codec.decode(frame)
            except DecodeError as error:
                self._report(f"a message of the broker cannot be decoded: {error}")
                continue
            match message:
                case Desired():
                    self._do(self._agent.desired(message))
                    self._forget()
                case LogWanted():
                    self._serve(message)
                case Rejected():  # an operator may have to act, so go on
                    self._report(f"the broker rejects this worker: {message.reason}")

    def _collect(self) -> None:
        while not self._ended.empty():
            outcome = self._ended.get()
            attempt = self._attempts[outcome.key, outcome.fence]
            self._publish(attempt)
            id, size = (outcome.key, outcome.fence), outcome.log_size
            self._do(self._agent.progress(*id, phase=attempt.phase, log_size=size))
            self._event_log.info(
                f"{outcome.key[:12]}: {outcome.result} {outcome.message}",
                worker=self.name,
                key=outcome.key,
                fence=str(outcome.fence),
                result=outcome.result,
            )
            self._do(self._agent.ended(outcome))

    def _follow(self) -> None:
        for id in self._agent.running:
            attempt = self._attempts[id]
            self._publish(attempt)
            self._do(self._agent.progress(*id, phase=attempt.phase, log_size=attempt.published))

    def _survey(self, now: float) -> None:
        """Measure free disk and memory, and refuse new attempts if the disk is short."""
        if now < self._survey_due:
            return
        self._survey_due = now + SURVEY_EVERY
        self._agent.free_memory = daemon.free_memory()
        where, least = self._settings.work_dir, self._settings.min_free_disk
        self._agent.free_disk, refusing = daemon.free_disk(where, least)
        if self._agent.free_disk < 2 * least and now >= self._trim_due:
            self._trim_due = now + TRIM_EVERY
            self._trim(2 * least)
        if self._engine is not None:
            refusing = refusing or self._engine.trouble()
        self._do(self._agent.refuse(refusing))

    def _trim(self, wanted: int) -> None:
        """Remove unused cache entries in a thread until ``wanted`` bytes are free."""
        if self._trimming is None or not self._trimming.is_alive():
            self._trimming = threading.Thread(target=self._make_room, args=(wanted,), daemon=True)
            self._trimming.start()

    def _make_room(self, wanted: int) -> None:
        try:
            caches = (self._store.copies.folder, *self._exports.folders())
            self._workspace.trim(wanted, caches)
        except OSError as error:
            self._report(f"the caches cannot be trimmed: {error}")

    def _finished(self) -> bool:
        if self._stopping_until is None:
            return False
        return not self._agent.running or time.monotonic() > self._stopping_until

    # -- actions ---------------------------------------------------------------------------

    def _do(self, actions: Sequence[agent.Action]) -> None:
        for action in actions:
            match action:
                case agent.Start():
                    self._start(action)
                case agent.Kill():
                    self._attempts[action.key, action.fence].cancel.set()
                case agent.Send():
                    self._connection.send(_codec.encode(action.report))

    def _start(self, action: agent.Start) -> None:
        spool = self._spools / f"{action.key}.{action.fence}"
        attempt = Attempt(action.key, action.fence, action.job, spool, self._wake)
        self._attempts[action.key, action.fence] = attempt
        self._waiting.put(attempt)

    def _build(self) -> None:
        """Run waiting attempts, for ever, in a thread."""
        # applies to this thread and its children; the kernel limits the value
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
        while True:
            attempt = self._waiting.get()
            outcome = attempt.run(
                self._workspace,
                self._settings,
                self.name,
                self._jobserver,
                self._substituters,
                self._engine,
            )
            self._ended.put(outcome)
            self._wake()

    def _wake(self) -> None:
        """End the loop's wait.  Any thread may call this."""
        with contextlib.suppress(BlockingIOError):  # full: the wait ends anyway
            os.write(self._wake_write, b"\0")

    def _publish(self, attempt: Attempt) -> None:
        for _ in range(PIECES_AT_ONCE):
            data = self._read(attempt, attempt.published, bounds.LOG_PIECE)
            if not data:
                return
            piece = Published(attempt.key, attempt.fence, attempt.published, data)
            if not sockets.send(self._connection.logs, piece.frame()):
                break
            attempt.published += len(data)  # the broker requests a lost piece
        self._behind = True

    def _serve(self, wanted: LogWanted) -> None:
        attempt = self._attempts.get((wanted.key, wanted.fence))
        if attempt is None:
            return
        data = self._read(attempt, wanted.offset, min(wanted.length, bounds.LOG_RANGE))
        piece = LogPiece(wanted.key, wanted.fence, wanted.offset, data)
        self._connection.send(_codec.encode(piece))

    def _forget(self) -> None:
        """Discard logs of attempts that are not wanted, or whose outcomes are acked."""
        known = {*self._agent.running, *self._agent.unacked}
        for id in [id for id in self._attempts if id not in known]:
            attempt = self._attempts.pop(id)
            try:
                attempt.log.discard()
            except OSError as error:
                self._report(f"a log cannot be removed: {error}")

    def _read(self, attempt: Attempt, offset: int, length: int) -> bytes:
        """A range of a log; b"" if it cannot be read, and then the attempt ends as a fault."""
        try:
            return attempt.log.read(offset, length)
        except OSError as error:
            self._report(f"the log of {attempt.key[:12]} cannot be read: {error}")
            return b""

    def _report(self, text: str) -> None:
        """Log a problem, unless the same was logged lately, or too many were."""
        now = time.monotonic()
        flood = len(self._reported) == REPORTS_A_MINUTE and now - self._reported[0][0] < 60.0
        if not flood and all(text != reported for _, reported in self._reported):
            self._reported.append((now, text))
            self._event_log(text, worker=self.name)

    def _on_signal(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._stop_requested = True  # the signal has ended the loop's wait

    def _stop(self) -> None:
        """Kill all attempts, report that, and end."""
        self._stopping_until = time.monotonic() + DEADLINE
        for id in self._agent.running:
            self._attempts[id].cancel.set()
        self._do(self._agent.drain())


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = daemon.parser("fabric-worker", __doc__ or "", config.WORKER_FILE)
    top.add_argument("--name", help="embedded: its name")
    top.add_argument("--slots", type=int, help="embedded: builds at a time (default 1)")
    top.add_argument(
        "--execute", metavar="URL", help="run steps on the engine at grpc[s]://HOST[:PORT]"
    )
    top.add_argument("--host-tools", help="embedded: the digest of this machine's tools")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker; returns its exit code."""
    options = parser().parse_args(argv)
    try:
        if options.parent:
            die_with_parent(options.parent)
        settings = _settings(options)
    except FabricError as error:
        return _failed(error)
    if options.check_config:
        print(config.shown(settings))
        return 0
    return _run(settings, options.directory, options.host_tools)


def run_embedded(settings: config.Settings, directory: Path, name: str, tools: str) -> int:
    """Run a worker of an initiator, whose broker has its sockets in ``directory``.

    ``tools`` as for `Worker`.  Returns the exit code.
    """
    return _run(config.embedded_worker(settings, name), directory, tools)


def _run(settings: WorkerSettings, directory: Path | None, tools: str | None) -> int:
    try:
        worker = _worker(settings, directory, tools)
        try:
            worker.run()
        finally:
            worker.close()
    except (FabricError, OSError) as error:
        return _failed(error)
    return 0


def _failed(error: FabricError | OSError) -> int:
    print(f"fabric-worker: {error}", file=sys.stderr)
    return error.exit_code if isinstance(error, FabricError) else 4


def _settings(options: argparse.Namespace) -> WorkerSettings:
    given = {"name": options.name, "slots": options.slots}
    execute = {"execute": options.execute}
    if options.directory is not None:
        return config.embedded_worker(config.load_settings(overrides=execute), **given)
    for warning in config.unknown_variables():
        print(f"fabric-worker: warning: {warning}", file=sys.stderr)
    settings = config.load(WorkerSettings, options.config, overrides=given | execute)
    host, _ = config.host_and_port(settings.controller)
    if settings.plain:
        sockets.check_plain(host)
    return settings


def _worker(settings: WorkerSettings, directory: Path | None, tools: str | None) -> Worker:
    host = socket.gethostname().partition(".")[0]
    if tools is None:
        tools = host_tools(settings.host_tools_file)
    if directory is not None:
        addresses = sockets.in_directory(directory)
        jobserver = directory / NAME
        return Worker(settings.name or host, settings, tools, addresses, jobserver=jobserver)
    addresses, curve, name = dial(settings, "worker")
    if curve is not None and settings.name not in ("", name):
        raise config.ConfigError(
            f"name: the settings say {settings.name}, but the key in {settings.keys_dir} is of"
            f" {name}"
        )
    return Worker(name or settings.name or host, settings, tools, addresses, curve)


def _engine(settings: WorkerSettings, workspace: Workspace) -> RemoteEngine:
    """The engine of the setting `execute`.  FabricError if it is wrong, or a library is missing."""
    try:
        from fabric.execution import access, engine
    except ImportError as error:
        raise config.ConfigError(
            f"execute needs {error.name}, which is not installed: pip install"
            " 'distbuild[reapi]'; or leave the setting empty"
        ) from None
    return engine.RemoteEngine(access.of(settings), workspace.root / "indexes")


def program() -> NoReturn:
    """Run `main` as the program."""
    daemon.run(main)


if __name__ == "__main__":
    program()
