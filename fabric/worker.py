"""The worker: builds in sandboxes what the broker assigns, and reports the progress.

One thread communicates (sockets, reports, logs); other threads build, one attempt each at a time.
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
from typing import NoReturn

from fabric import bounds, config
from fabric.building import agent
from fabric.building.agent import WorkerAgent
from fabric.building.attempt import Attempt
from fabric.building.host_tools import host_tools
from fabric.building.workspace import Workspace
from fabric.config import WorkerSettings, built_architectures
from fabric.errors import FabricError
from fabric.host import daemon
from fabric.host.event_log import EventLog
from fabric.host.process import die_with_parent
from fabric.host.sd_notify import Supervisor
from fabric.jobs import HOST_TOOLS
from fabric.trove.configured import open_sources, open_store
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

#: How much less builds ask of the processor than what keeps them going and tells of them.
NICE = 5
#: Seconds between two looks at logs that may have grown.
FOLLOW_EVERY = 0.02
#: The same, of one that grows faster than the broker takes it.
FOLLOW_SOON = 0.002
#: Pieces of one log published at one look.
PIECES_AT_ONCE = 16
#: Messages taken in one turn of the loop.
MESSAGES_AT_ONCE = 100
#: Seconds between two looks at what this machine has left.
SURVEY_EVERY = 1.0
#: Complaints noted in a minute.
REPORTS_A_MINUTE = 10
#: Seconds a worker that ends gives its builds to die.
DEADLINE = 8.0
#: Seconds between two attempts at making room on the disk.
TRIM_EVERY = 30.0

#: Made once, which takes a millisecond: embedded workers are forked from where it is.
_codec: Codec[Desired | LogWanted | Rejected] = Codec(Desired | LogWanted | Rejected)


class Worker:
    """The shell around `WorkerAgent`: sockets, threads, spools.  ``tools`` as in `host_tools`."""

    def __init__(
        self,
        name: str,
        settings: WorkerSettings,
        tools: str,
        addresses: Addresses,
        curve: Curve | None = None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._store = store = open_store(settings)
        sources = open_sources(settings)
        self._exports = sources.exports
        self._trimming: threading.Thread | None = None
        self._trim_due = 0.0
        self._workspace = Workspace(settings.work_dir, store, sources)
        self._spools = self._workspace.session.scratch()
        self._attempts: dict[tuple[str, int], Attempt] = {}  # running, or not settled yet
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
        # written by threads that end and by signals, so that the poller wakes
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._connection = Connection(
            addresses, "publish", curve=curve, name=name, wake=self._wake_read
        )
        self._event_log = EventLog("fabric-worker")
        self._reported: deque[tuple[float, str]] = deque(
            maxlen=REPORTS_A_MINUTE
        )  # of late, and when
        self._behind = False  # a log grows faster than it is published
        self._survey_due = 0.0
        self._stop_requested = False
        self._stopping_until: float | None = None

    def run(self) -> None:
        """Work until told to end."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        supervisor = Supervisor()
        supervisor.ready()
        # A sandbox dies with the thread that started it, so these live as long as we do.  In each
        # slot one attempt may run in its sandbox while the one before it is stored.
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
        """Leave nothing behind."""
        signal.set_wakeup_fd(-1)
        self._connection.close()
        self._workspace.close()
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
                self._report(f"the broker said what cannot be understood: {error}")
                continue
            match message:
                case Desired():
                    self._do(self._agent.desired(message))
                    self._forget()
                case LogWanted():
                    self._serve(message)
                case Rejected():  # whoever can mend that may not be here, so go on asking
                    self._report(f"the broker refuses this worker: {message.reason}")

    def _collect(self) -> None:
        while not self._ended.empty():
            outcome = self._ended.get()
            attempt = self._attempts[outcome.key, outcome.fence]
            self._publish(attempt)
            self._agent.progress(
                outcome.key, outcome.fence, phase=attempt.phase, log_size=outcome.log_size
            )
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
        """See what this machine has left, and refuse new jobs if that is too little."""
        if now < self._survey_due:
            return
        self._survey_due = now + SURVEY_EVERY
        self._agent.free_memory = daemon.free_memory()
        where, least = self._settings.work_dir, self._settings.min_free_disk
        self._agent.free_disk, refusing = daemon.free_disk(where, least)
        if self._agent.free_disk < 2 * least and now >= self._trim_due:
            self._trim_due = now + TRIM_EVERY
            self._trim(2 * least)
        self._do(self._agent.refuse(refusing))

    def _trim(self, wanted: int) -> None:
        """Make room, in a thread: what comes back by itself goes, if no build uses it."""
        if self._trimming is None or not self._trimming.is_alive():
            self._trimming = threading.Thread(target=self._make_room, args=(wanted,), daemon=True)
            self._trimming.start()

    def _make_room(self, wanted: int) -> None:
        try:
            caches = (self._store.copies.folder, *self._exports.folders())
            self._workspace.trim(wanted, caches)
        except OSError as error:
            self._report(f"room cannot be made on the disk: {error}")

    def _finished(self) -> bool:
        if self._stopping_until is None:
            return False
        return not self._agent.running or time.monotonic() > self._stopping_until

    # -- what it does ----------------------------------------------------------------------

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
        """A thread that builds what waits."""
        # of this thread, and of all that it starts; more than the most counts as that
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
        while True:
            attempt = self._waiting.get()
            self._ended.put(attempt.run(self._workspace, self._settings, self.name))
            self._wake()

    def _wake(self) -> None:
        """Have the loop turn; any thread may call this."""
        with contextlib.suppress(BlockingIOError):  # full: it wakes anyway
            os.write(self._wake_write, b"\0")

    def _publish(self, attempt: Attempt) -> None:
        for _ in range(PIECES_AT_ONCE):
            data = self._read(attempt, attempt.published, bounds.LOG_PIECE)
            if not data:
                return
            piece = Published(attempt.key, attempt.fence, attempt.published, data)
            if not sockets.send(self._connection.logs, piece.frame()):
                break
            attempt.published += len(data)  # if it is lost, the broker asks for it
        self._behind = True

    def _serve(self, wanted: LogWanted) -> None:
        attempt = self._attempts.get((wanted.key, wanted.fence))
        if attempt is None:
            return
        data = self._read(attempt, wanted.offset, min(wanted.length, bounds.LOG_RANGE))
        piece = LogPiece(wanted.key, wanted.fence, wanted.offset, data)
        self._connection.send(_codec.encode(piece))

    def _forget(self) -> None:
        """Drop spools of attempts that are over and settled, or that nobody wanted any more."""
        known = {*self._agent.running, *self._agent.unsettled}
        for id in [id for id in self._attempts if id not in known]:
            attempt = self._attempts.pop(id)
            try:
                attempt.log.discard()
            except OSError as error:
                self._report(f"a log cannot be removed: {error}")

    def _read(self, attempt: Attempt, offset: int, length: int) -> bytes:
        """A range of a log; nothing of one that cannot be read, which ends as a fault."""
        try:
            return attempt.log.read(offset, length)
        except OSError as error:
            self._report(f"the log of {attempt.key[:12]} cannot be read: {error}")
            return b""

    def _report(self, text: str) -> None:
        """Note something, but neither every second, nor more than an operator can read."""
        now = time.monotonic()
        flood = len(self._reported) == REPORTS_A_MINUTE and now - self._reported[0][0] < 60.0
        if not flood and all(text != reported for _, reported in self._reported):
            self._reported.append((now, text))
            self._event_log(text, worker=self.name)

    def _on_signal(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._stop_requested = True  # the loop is awake now, and does the rest

    def _stop(self) -> None:
        """Kill what runs, hand it back, end."""
        self._stopping_until = time.monotonic() + DEADLINE
        for id in self._agent.running:
            self._attempts[id].cancel.set()
        self._do(self._agent.drain())


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = daemon.parser("fabric-worker", __doc__ or "", config.WORKER_FILE)
    top.add_argument("--name", help="embedded: what it is called")
    top.add_argument("--slots", type=int, help="embedded: builds at a time (default 1)")
    top.add_argument("--host-tools", help="embedded: the digest of this machine's tools")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker; returns its exit code."""
    options = parser().parse_args(argv)
    try:
        if options.parent:
            die_with_parent(options.parent)
        settings = _settings(options)
        if options.check_config:
            print(config.shown(settings))
            return 0
        worker = _worker(settings, options.directory, options.host_tools)
        try:
            worker.run()
        finally:
            worker.close()
    except (FabricError, OSError) as error:
        print(f"fabric-worker: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, FabricError) else 4
    return 0


def _settings(options: argparse.Namespace) -> WorkerSettings:
    given = {"name": options.name, "slots": options.slots}
    if options.directory is not None:
        return config.embedded_worker(config.load_settings(), **given)
    for warning in config.unknown_variables():
        print(f"fabric-worker: warning: {warning}", file=sys.stderr)
    settings = config.load(WorkerSettings, options.config, overrides=given)
    host, _ = config.host_and_port(settings.controller)
    if settings.plain:
        sockets.check_plain(host)
    return settings


def _worker(settings: WorkerSettings, directory: Path | None, tools: str | None) -> Worker:
    host = socket.gethostname().partition(".")[0]
    tools = tools or host_tools(settings.host_tools_file)
    if directory is not None:
        return Worker(settings.name or host, settings, tools, sockets.in_directory(directory))
    addresses, curve, name = dial(settings, "worker")
    if curve is not None and settings.name not in ("", name):
        raise config.ConfigError(
            f"name: it is {settings.name} in the settings, and {name} in the key in"
            f" {settings.keys_dir}"
        )
    return Worker(name or settings.name or host, settings, tools, addresses, curve)


def program() -> NoReturn:
    """The program: `main`."""
    daemon.run(main)


if __name__ == "__main__":
    program()
