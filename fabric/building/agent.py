"""Decides what a worker runs, kills and reports.  Pure: no I/O, no clock.

The shell around it (`fabric.worker`) owns sockets, threads and the clock::

    agent = WorkerAgent(name="w1", instance=uuid4().hex, arch="x86_64", slots=2)
    actions = agent.tick(now)            # once at the start, then at least at agent.due
    actions = agent.desired(message)     # a Desired arrived
    actions = agent.progress(key, fence, phase="build", log_size=1234)
    actions = agent.ended(outcome)       # an attempt ended, in whatever way
    actions = agent.drain()              # accept no attempt; hand back those that did not begin
    actions = agent.refuse("disk full")  # the same, until refuse("")

Every call returns the actions to carry out, in order: `Start`, `Kill`, `Send`.  The shell calls
`ended` exactly once for each attempt that was started: also for a killed one (with the result
"cancelled", or "done" or "failed" if it ended before the kill), and for one that it refuses to
begin (with the result "refused" and the reason).
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from fabric import bounds
from fabric.wire.messages import (
    PROTOCOL,
    STORING,
    Assignment,
    Desired,
    Outcome,
    Report,
    Running,
    cut,
)

#: Seconds between reports when nothing changes.
REPORT_EVERY = 1.0
#: Reports of progress and of accepted attempts are at least this far apart, in seconds.
PROGRESS_EVERY = 0.1
#: Seconds without a message after which a broker with a smaller epoch is obeyed: it has lost its
#: journal, and its clock is wrong.
FORGET = 60.0

Id = tuple[str, int]


class Start(msgspec.Struct, frozen=True):
    """Begin this attempt.  ``job`` is an encoded `fabric.jobs.Job`."""

    key: str
    fence: int
    job: msgspec.Raw


class Kill(msgspec.Struct, frozen=True):
    """Kill this attempt and all its processes, then call `ended`."""

    key: str
    fence: int


class Send(msgspec.Struct, frozen=True):
    """Send this report to the broker."""

    report: Report


Action = Start | Kill | Send


class _Entry:
    """An attempt that is accepted and has not ended."""

    __slots__ = ("assignment", "dying", "fence", "key", "log_size", "phase", "started")

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.key = assignment.key
        self.fence = assignment.fence
        self.started = False
        self.dying = False
        self.phase = "queued"
        self.log_size = 0


class WorkerAgent:
    """One run of a worker.  ``instance`` differs in each run."""

    def __init__(
        self,
        *,
        name: str,
        instance: str,
        arch: str,
        slots: int,
        features: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.instance = instance
        self.arch = arch
        self.slots = slots
        self.features = features
        self.free_disk = 0  # bytes; the shell sets these two at any time
        self.free_memory = 0
        self.draining = False
        self.refusing = ""  # why nothing new is accepted at present
        #: when `tick` is due
        self.due = float("-inf")
        self._sequence = 0
        self._epoch = 0
        self._answered = 0
        self._now = self._obeyed = float("-inf")  # when the broker was last obeyed
        self._entries: dict[Id, _Entry] = {}
        self._finished: dict[Id, Outcome] = {}
        self._reported = float("-inf")  # when `tick` last sent a report

    # -- events ----------------------------------------------------------------------------

    def desired(self, message: Desired) -> list[Action]:
        """The broker sent its desired state."""
        if message.epoch < self._epoch:
            if self._now - self._obeyed < FORGET:
                return []
        elif message.epoch == self._epoch and message.sequence <= self._answered:
            return []
        self._epoch, self._answered, self._obeyed = message.epoch, message.sequence, self._now
        for attempt in message.acked:
            self._finished.pop((attempt.key, attempt.fence), None)
        wanted = {(each.key, each.fence) for each in message.keep}
        gone = False
        actions: list[Action] = []
        for assignment in message.start:
            id = (assignment.key, assignment.fence)
            wanted.add(id)
            known = id in self._entries or id in self._finished
            # More than a report can hold is not accepted: the broker assigns it again.
            if not known and len(self._entries) + len(self._finished) < bounds.REPORTED:
                self._entries[id] = _Entry(assignment)
                self._soon()
        for id, entry in list(self._entries.items()):
            if id in wanted or entry.dying:
                continue
            if entry.started:
                entry.dying = True
                actions.append(Kill(*id))
            else:
                del self._entries[id]
                gone = True
        handed_back = len(self._finished)
        actions += self._begin()
        gone = gone or len(self._finished) > handed_back
        return [*actions, self._send()] if gone else actions

    def progress(self, key: str, fence: int, *, phase: str, log_size: int) -> list[Action]:
        """An attempt progressed; ``log_size`` in bytes.

        A new phase brings `due` forward; in the phase `STORING`, its slot is free for another.
        """
        entry = self._entries.get((key, fence))
        if entry is None:
            return []
        before, entry.phase, entry.log_size = entry.phase, phase, log_size
        if before != phase:
            if phase == STORING:
                return [*self._begin(), self._send()]
            self._soon()
        return []

    def ended(self, outcome: Outcome) -> list[Action]:
        """An attempt ended.  KeyError if it was not running here."""
        id = (outcome.key, outcome.fence)
        entry = self._entries.pop(id)
        if not (entry.dying and outcome.result == "cancelled"):
            self._finished[id] = replace(outcome, token=entry.assignment.token)
        return [*self._begin(), self._send()]

    def tick(self, now: float) -> list[Action]:
        """Time has passed: report if a report is due.  Sets ``due``."""
        self._now = now
        if now < self.due:
            return []
        self._reported = now
        self.due = now + REPORT_EVERY
        return [self._send()]

    def drain(self) -> list[Action]:
        """Accept nothing new, and hand back attempts that have not begun."""
        self.draining = True
        return [*self._begin(), self._send()]

    def refuse(self, why: str) -> list[Action]:
        """Accept nothing new, for this reason, and refuse attempts not begun; "": accept again."""
        why = cut(why)
        if why == self.refusing:
            return []
        self.refusing = why
        return [*self._begin(), self._send()]

    # -- state -------------------------------------------------------------------------------

    @property
    def running(self) -> tuple[Id, ...]:
        """Attempts that have started and not ended."""
        return tuple(id for id, entry in self._entries.items() if entry.started)

    @property
    def unacked(self) -> tuple[Id, ...]:
        """Attempts whose outcome or whole log the broker has not acknowledged."""
        return tuple(self._finished)

    @property
    def idle(self) -> bool:
        """Whether nothing runs, and the broker has acknowledged every outcome."""
        return not self._entries and not self._finished

    def report(self) -> Report:
        """The whole state, with the next sequence number."""
        self._sequence += 1
        finished = tuple(self._finished.values())
        # Outcomes past the bound are reported as running until others are acknowledged.
        late = finished[bounds.OUTCOMES :]
        return Report(
            protocol=PROTOCOL,
            name=self.name,
            arch=self.arch,
            slots=self.slots,
            sequence=self._sequence,
            features=self.features,
            running=tuple(
                Running(entry.key, entry.fence, entry.phase, entry.log_size, entry.assignment.token)
                for entry in self._entries.values()
            )
            + tuple(Running(each.key, each.fence, "", each.log_size, each.token) for each in late),
            finished=finished[: bounds.OUTCOMES],
            draining=self.draining,
            free_disk=self.free_disk,
            free_memory=self.free_memory,
            refusing=self.refusing,
            instance=self.instance,
            epoch=self._epoch,
            answered=self._answered,
        )

    # -- inside ------------------------------------------------------------------------------

    def _soon(self) -> None:
        self.due = min(self.due, self._reported + PROGRESS_EVERY)

    def _send(self) -> Send:
        return Send(self.report())

    def _begin(self) -> list[Action]:
        """Start accepted attempts while there are slots, unless an older attempt has the job.

        When draining or refusing, hand them back instead.
        """
        if self.draining or self.refusing:
            for id in [id for id, entry in self._entries.items() if not entry.started]:
                token = self._entries.pop(id).assignment.token
                self._finished[id] = (
                    Outcome(*id, "cancelled", message="the worker drains", token=token)
                    if self.draining
                    else Outcome(*id, "refused", message=self.refusing, token=token)
                )
            return []
        actions: list[Action] = []
        if all(entry.started for entry in self._entries.values()):
            return actions
        busy = {entry.key for entry in self._entries.values() if entry.started}
        # Storing needs no slot; at most as many as there are slots, so that they do not pile up.
        storing = sum(entry.phase == STORING for entry in self._entries.values())
        room = self.slots + min(self.slots, storing)
        room -= sum(entry.started for entry in self._entries.values())
        for entry in self._entries.values():
            if room <= 0:
                break
            if entry.started or entry.key in busy:
                continue
            entry.started = True
            entry.phase = ""
            busy.add(entry.key)
            room -= 1
            actions.append(Start(entry.key, entry.fence, entry.assignment.job))
        return actions
