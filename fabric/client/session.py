"""Follows one build request to its end: shows it on the screen and writes its log files.

An embedded broker and a controller differ only in the connection.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fabric import bounds
from fabric.client.log_lines import LogLines
from fabric.client.render import BuildView, RunningView, Screen, duration
from fabric.client.request import Action, Changed, Over, RequestMirror
from fabric.client.request_logs import ENDED, AppendLog, CloseLog, Follow, OpenLog, Send
from fabric.client.user_logs import UserLog, UserLogs
from fabric.errors import BuildFailed, Cancelled, FabricError, MachineFault, with_own_commands
from fabric.host.process import more_descriptors
from fabric.host.terminal import OutputError
from fabric.jobs import COPIED
from fabric.wire.connection import Connection
from fabric.wire.messages import (
    Answer,
    BuildGraph,
    BuildOrder,
    LogPiece,
    Rejected,
    StepState,
    ToInitiator,
    Update,
)
from fabric.wire.sockets import Codec, DecodeError

#: Last lines of a failed step's log that are shown.
TAIL = 20
#: Most seconds that one turn waits for messages.
TICK = 0.2
#: Seconds between two calls of ``check``, and two refreshes of the screen.
LOOK_EVERY = 0.1
#: Messages received in one turn of the loop.
MESSAGES_AT_ONCE = 200

_PROBLEM = re.compile(r"[^\s:]+:\d+: ")


class NotResolved(FabricError):
    """The broker cannot resolve the build order."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.problems = bool(_PROBLEM.match(message))  # mistakes in the definitions


class Session:
    """One build request, followed to its end."""

    def __init__(
        self,
        wanted: BuildOrder | BuildGraph | str,
        connection: Connection,
        screen: Screen,
        check: Callable[[], str] = str,
        since: float = 0.0,
        patience: float = 0.0,
        *,
        verbose: bool = False,
    ) -> None:
        """``wanted`` as for `RequestMirror`; it began ``since`` seconds ago.

        ``check`` is called regularly, and its texts are shown.  A new request that the broker
        cannot accept at the moment is repeated for ``patience`` seconds; a known one, without
        limit.  With ``verbose``, logs are printed as they grow.
        """
        self.mirror = RequestMirror(wanted, min(bounds.LOGS_OPEN, more_descriptors() // 2))
        self._connection = connection
        self._screen = screen
        self._check = check
        self._began = time.monotonic() - since
        self._look_due = self._began
        self._patience = patience
        self._shown_warning = ""
        self._rejected_since = 0.0  # when the broker first answered "not-now"; 0: it did not
        self._files: UserLogs | None = None  # made for the first log
        self._logs: dict[str, UserLog] = {}
        self._paths: dict[str, Path] = {}
        self._tails: dict[str, list[str]] = {}
        self._states: Counter[str] = Counter()  # number of steps by state
        self._copied: set[str] = set()  # steps whose log says that they were not built
        self._since: dict[str, tuple[int, float]] = {}  # running step -> (fence, when it began)
        self._left = 0.0  # the broker's last estimate, in seconds
        self._ends = 0.0  # the expected end; 0: unknown
        self._keeps_logs = True
        self._lines = LogLines(screen.say if verbose else None)
        self._codec: Codec[ToInitiator] = Codec(ToInitiator)

    @property
    def seconds(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self._began

    def accept(self, patience: float) -> None:
        """Run until the broker has accepted the request; ``patience`` seconds more to resolve it.

        Writes no logs, because nothing would complete them.  MachineFault if the broker cannot
        accept the request, NotResolved if it cannot resolve it.
        """
        self._keeps_logs = False
        while not self.mirror.version:
            self._turn()
        until = time.monotonic() + patience
        while self.mirror.state == "resolving" and time.monotonic() < until:
            self._turn()

    def follow(self, parting: str) -> None:
        """Run until the request is over and every log is complete, or given up.

        On leaving earlier, it prints ``parting``, with "interrupted" or "stopped" for its "{}".
        MachineFault if the broker cannot accept the request, NotResolved if it cannot resolve it.
        """
        try:
            while not self.mirror.complete:
                self._turn()
        finally:
            heeded = signal.signal(signal.SIGINT, signal.SIG_IGN)  # no second Ctrl-C now
            if not self.mirror.over and not (self._rejected_since and not self.mirror.version):
                by_user = isinstance(sys.exception(), KeyboardInterrupt)
                with contextlib.suppress(OSError, OutputError):
                    self._screen.say(parting.format("interrupted" if by_user else "stopped"))
            self._close()
            signal.signal(signal.SIGINT, heeded)

    def _turn(self) -> None:
        self._do(self.mirror.tick(time.monotonic()))
        self._connection.wait(min(TICK, self.mirror.due - time.monotonic()))
        now = time.monotonic()
        for frame in self._connection.receive(MESSAGES_AT_ONCE):
            try:
                message = self._codec.decode(frame)
            except DecodeError:  # the broker repeats its content
                continue
            match message:
                case Update():
                    self._do(self.mirror.update(message, now))
                    self._show_accepted()
                    self._show_warning()
                    self._estimate_end(now)
                case LogPiece():
                    self._do(self.mirror.piece(message, now))
                case Rejected():
                    self._do(self.mirror.rejected(message, now))
                    if message.code == "not-now" and message.about == self.mirror.request:
                        self._wait_for_room(with_own_commands(message.reason))
                case Answer():  # a repeated one, to a question on the same connection
                    pass
        for piece in self._connection.pieces(MESSAGES_AT_ONCE):
            self._do(self.mirror.published(piece, now))
        if self._connection.maintain(now):
            self._show_connection()
        if now >= self._look_due:  # not for each piece of log
            self._look_due = now + LOOK_EVERY
            if notices := self._check():
                self._screen.say(notices, "yellow")
            self._screen.show(self._view())

    def _close(self) -> None:
        """Leave the request, and close all files."""
        for log in self._logs.values():
            log.close(whole=False)
        self._logs.clear()
        if self._files is not None:
            self._files.close()
        self._do(self.mirror.leave())

    def counts(self) -> str:
        """ "1 built, 2 copied, 19 unchanged, 3 cached"."""
        copied = sum(self.mirror.steps[key].state == "done" for key in self._copied)
        unchanged = sum(self._is_unchanged(step) for step in self.mirror.steps.values())
        cached = self._states["cached"] - unchanged
        return (
            f"{self._states['done'] - copied} built"
            + (f", {copied} copied" if copied else "")
            + (f", {unchanged} unchanged" if unchanged else "")
            + (f", {cached} cached" if cached else "")
        )

    def judge(self, what: str, earlier: Sequence[StepState] = ()) -> None:
        """BuildFailed, MachineFault or Cancelled unless the request, called ``what``, was built.

        ``earlier``: the steps that failed for the same build before.
        """
        state = self.mirror.state
        failed = [*earlier]
        if state != "done":
            failed += (step for step, _ in self.failed())
        if state == "cancelled":
            raise Cancelled(f"{what} is not built: {self.mirror.message or 'cancelled'}")
        if state != "done" or failed:
            fault = bool(failed) and all(step.fault for step in failed)
            kind = MachineFault if fault else BuildFailed
            why = f"{', '.join(map(_name, failed))} failed" if failed else self.mirror.message
            raise kind(f"{what} is not built: {why}")

    def failed(self) -> Iterator[tuple[StepState, str]]:
        """(step, path of its log) of each failed step; "" if its log is not on this machine."""
        for key, step in self.mirror.steps.items():
            if step.state == "failed":
                yield step, str(self._paths.get(key, ""))

    def report_failures(self, hint: Callable[[StepState], str]) -> None:
        """Print each failure with the end of its log; ``hint`` returns its last line."""
        for step, log in self.failed():
            say = self._screen.say
            say(f"\n{_name(step)} failed: {step.message}", "bold red")
            for line in self._tails.get(step.key, []):
                say(f"  | {line}")
            if step.failed_command:
                lines = step.failed_command.strip().replace("\n", "\n    ")
                say(f"  {step.failed_phase}:\n    {lines}")
            if log:
                say(f"  log:   {log}")
            if step.kind == "chunk" and (last := hint(step)):
                say(f"  {last}")

    # -- actions ---------------------------------------------------------------------------

    def _do(self, actions: Sequence[Action]) -> None:
        for action in sorted(actions, key=_begins):
            match action:
                case Send():
                    if not self._connection.send(self._codec.encode(action.message)):
                        self.mirror.unsent(action.message)
                case Changed():
                    self._show_step(action.old, action.new)
                case Over():
                    self._end(action)
                case _ if not self._keeps_logs:
                    pass
                case OpenLog():
                    self._open_log(action.key)
                case AppendLog():
                    if not action.offset:
                        self._note_copied(action.key, action.data)
                    self._logs[action.key].write(action.offset, action.data)
                    name = _name(self.mirror.steps[action.key])
                    self._lines.add(action.key, name, action.offset, action.data)
                case Follow(key, True):
                    self._connection.subscribe(key)
                case Follow(key):
                    self._connection.unsubscribe(key)
                case CloseLog():
                    self._close_log(action)

    def _note_copied(self, key: str, beginning: bytes | memoryview) -> None:
        """Note by the beginning of a step's log whether the step is copied, and not built."""
        if bytes(beginning[: len(COPIED)]) == COPIED.encode():
            self._copied.add(key)
        else:
            self._copied.discard(key)

    def _wait_for_room(self, reason: str) -> None:
        """Handle "not-now" for the request.  MachineFault once ``patience`` is over."""
        now = time.monotonic()
        known = self.mirror.version > 0
        shown, self._rejected_since = bool(self._rejected_since), self._rejected_since or now
        if not known and now - self._rejected_since >= self._patience:
            raise MachineFault(reason)
        if not shown:
            self._screen.event("connection", ok=False, message=reason)
            limit = "" if known else f" for {duration(self._patience)}"
            self._screen.say(f"{reason}; retrying{limit}", "yellow")

    def _show_accepted(self) -> None:
        if self._rejected_since and self.mirror.accepted:
            self._rejected_since = 0.0
            self._screen.event("connection", ok=True, message="")
            self._screen.say("the controller takes orders again", "green")

    def _show_warning(self) -> None:
        """Show the broker's warning when it changes."""
        if self.mirror.warning != self._shown_warning:
            self._shown_warning = self.mirror.warning
            self._screen.event("warning", message=self._shown_warning)
            if self._shown_warning:
                self._screen.say(self._shown_warning, "yellow")

    def _estimate_end(self, now: float) -> None:
        """Compute the expected end when the broker's estimate changes, which it does in steps."""
        if self.mirror.left != self._left:
            self._left = self.mirror.left
            self._ends = now + self._left if self._left else 0.0

    def _end(self, over: Over) -> None:
        if over.rejected:
            raise MachineFault(f"the broker rejects this build: {with_own_commands(over.message)}")
        if over.state == "failed" and not self.mirror.steps:
            raise NotResolved(with_own_commands(over.message))

    def _open_log(self, key: str) -> None:
        step = self.mirror.steps[key]
        if step.state not in ENDED:
            self._connection.subscribe(key)
        if key in self._logs:
            self._logs[key].restart()
            return
        if self._files is None:
            self._files = UserLogs(Path.cwd())
        self._logs[key] = log = self._files.open(step.log, key)
        self._paths[key] = log.path

    def _close_log(self, action: CloseLog) -> None:
        log = self._logs.pop(action.key)
        self._tails[action.key] = log.tail(TAIL)
        self._lines.end(action.key)
        # the log of a cancelled step goes on if another request wants the step
        log.close(whole=action.whole and self.mirror.steps[action.key].state != "cancelled")
        self._connection.unsubscribe(action.key)

    def _show_connection(self) -> None:
        error = self._connection.error
        self._screen.event("connection", ok=not error, message=error)
        if error:
            self._screen.say(f"{error}; retrying", "yellow")
        else:
            self._screen.say("the controller is back", "green")

    def _show_step(self, old: StepState | None, new: StepState) -> None:
        name = _name(new)
        if old is not None:
            self._states[old.state] -= 1
        self._states[new.state] += 1
        if new.state != "running":
            self._since.pop(new.key, None)
        elif self._since.get(new.key, (-1, 0.0))[0] != new.fence:
            self._since[new.key] = (new.fence, time.monotonic() - new.running_for)
        if old is None or (old.state, old.fence) != (new.state, new.fence):
            self._screen.event(
                "step",
                name=name,
                key=new.key,
                state=new.state,
                worker=new.worker,
                seconds=new.seconds,
                message=new.message,
                log=str(self._paths.get(new.key, "")),
            )
            self._look_due = 0.0  # rows and printed lines must agree
            done, total = self._progress()
            if new.state == "running":
                self._screen.say(f"[{done}/{total}] {name}: building on {new.worker}")
            elif new.state == "done":
                how = "copied" if new.key in self._copied else "built"
                self._screen.say(f"[{done}/{total}] {name}: {how} in {duration(new.seconds)}")
            elif new.state == "failed":
                self._screen.say(f"[{done}/{total}] {name}: failed", "bold red")
            elif self._is_unchanged(new):
                self._screen.say(f"[{done}/{total}] {name}: not built: {new.message}")
            elif old is not None and old.state == "running" and new.message:
                self._screen.say(f"[{done}/{total}] {name}: once more: {new.message}", "yellow")

    @staticmethod
    def _is_unchanged(step: StepState) -> bool:
        """Whether a step was not built because a step with equal contents was."""
        return step.state == "cached" and bool(step.message)

    def _progress(self) -> tuple[int, int]:
        return self._states["done"], len(self.mirror.steps) - self._states["cached"]

    def _view(self) -> BuildView:
        done, total = self._progress()
        return BuildView(
            title=self.mirror.title,
            total=total,
            done=done,
            failed=self._states["failed"],
            cached=self._states["cached"],
            began=self._began,
            ends=self._ends,
            running=tuple(
                self._running(self.mirror.steps[key], began)
                for key, (_, began) in self._since.items()
            ),
            next=self.mirror.next,
            waiting=self._connection.error or self.mirror.message or _WAITING[self.mirror.state],
        )

    def _running(self, step: StepState, began: float) -> RunningView:
        log = self._logs.get(step.key)
        return RunningView(
            name=_name(step),
            worker=step.worker,
            phase=step.phase,
            began=began,
            expected=step.expected,
            log_size=max(step.log_size, log.size if log else 0),
        )


_WAITING = {
    "resolving": "resolving the definitions",
    "checking": "querying the artifact store",
    "building": "",
    "done": "",
    "failed": "",
    "cancelled": "",
}


def _name(step: StepState) -> str:
    return step.name or step.key[:12]


def _begins(action: Action) -> bool:
    """Sort key: steps that begin come last, so that ends are shown first."""
    return isinstance(action, Changed) and action.new.state == "running"
