"""Workers and the attempts they hold.

Workers report their whole state, again and again; what they were told is never assumed to have
arrived.  An attempt is *held* by a worker from its assignment until that worker reports its
end, reports without it, or is lost.  When nobody wants an attempt any more it is *doomed*: left
out of what the worker is told to do, so that the worker kills it; until it is gone, its task
is not begun anywhere else.

Each attempt gives one `Began` and one `Ended`.  A lost worker may have been cut off only: its
attempts end when it comes back without them, or not for long.  A worker is believed only of
attempts that it was given, which it proves by their tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain

from fabric import bounds
from fabric.scheduling.events import Began, Drained, Ended, Tell
from fabric.scheduling.faults import Faults
from fabric.scheduling.model import Attempt, Durations, Gone, Id, Limits, Task, Worker
from fabric.scheduling.states import Cause, State
from fabric.wire.messages import STORING, Answer, Command, Outcome, Report, Running

#: Commands remembered, so that a late copy of one does not undo what was said since.
_COMMANDS = 1000


class Tokens:
    """Proofs that workers were given attempts, by any run of the broker that has this secret."""

    __slots__ = ("_fresh",)

    def __init__(self, secret: bytes) -> None:
        # Each goes on from a copy, in which the secret is digested already: that is half the work.
        fresh = hashlib.blake2b(b"attempt ", key=secret, digest_size=7)
        self._fresh = fresh.copy

    def __call__(self, key: str, fence: int, worker: str) -> int:
        proof = self._fresh()
        proof.update(f"{key} {fence} {worker}".encode())
        return int.from_bytes(proof.digest())


class Fleet(Faults):
    """What happens to workers, and to tasks on them."""

    __slots__ = ("_commands", "_first", "_gone", "drained", "epoch", "token")

    def __init__(
        self,
        limits: Limits,
        durations: Durations,
        *,
        epoch: int,
        first: int,
        secret: bytes,
        drained: frozenset[str],
        now: float,
    ) -> None:
        super().__init__(limits, durations, first, now)
        self.epoch = epoch
        self._first = first
        self.token = Tokens(secret)
        self._commands: dict[str, Answer] = {}
        self.drained = dict.fromkeys(sorted(drained))
        self._gone: dict[str, Gone] = {}  # by name of the worker, longest lost first

    # -- workers -------------------------------------------------------------------------------

    def _report(self, report: Report) -> None:
        most = bounds.ATTEMPTS_A_SLOT * (report.slots or 1)
        if (told := len(report.running) + len(report.finished)) > most:
            reason = f"{report.name} reports {told} attempts; with its slots it may have {most}"
            self._refuse(report.name, "bad-request", reason)
            return
        worker = self.workers.get(report.name)
        reborn = False
        returned: list[Attempt] = []
        if worker is None:
            worker = self._register(report)
            returned = list(worker.held.values())
        elif report.instance in worker.former and not self._comes_back(worker, report):
            return
        elif report.instance != worker.instance:
            reborn = True
            worker.former.append(worker.instance)
            del worker.former[:-10]
            worker.instance, worker.sequence, worker.since = report.instance, 0, self.now
            worker.rival = 0.0
        if report.sequence <= worker.sequence:
            return
        self._describe(worker, report)
        taken_in = report.answered if report.epoch == self.epoch else 0
        known, floor = worker.held.copy(), worker.floor
        running = {(each.key, each.fence): each for each in report.running}
        finished = {(each.key, each.fence): each for each in report.finished}
        for attempt in returned:
            if attempt.id in running and not attempt.doomed:
                self._take_up(attempt)
            elif attempt.id not in finished:
                self.doom(attempt)
        for id, attempt in known.items():
            if (outcome := finished.get(id)) is not None:
                self._ended(worker, attempt, outcome)
            elif (sighting := running.get(id)) is not None:
                self._sighted(attempt, sighting)
            elif attempt.confirmed or reborn or taken_in >= attempt.told:
                self._vanished(worker, attempt)
            elif self.now - attempt.since > 2 * self.limits.lease:
                self._untaken(worker, attempt)
        reported: Iterable[tuple[Id, Running | Outcome]]
        reported = chain(running.items(), finished.items())
        for id, each in reported:
            if id in known or id in worker.held or id in worker.settled:
                continue
            if each.token != self.token(each.key, each.fence, worker.name):
                break  # nor are the others looked at
            over = each.fence > self._first or each.fence <= floor
            if isinstance(each, Running):
                self._found(worker, each, over=over, ended=each.fence <= floor)
            elif not over:
                self._came_late(worker, each)
        worker.settled = tuple(finished)
        self.pools.place(worker.name, self.now)
        self.desires[worker.name] = None

    def _comes_back(self, worker: Worker, report: Report) -> bool:
        """Whether a report of what counts as a former run shows that it is not.

        It may be a late one.  Or what counts as the present run was a late one: then that is not
        heard again.  Or both are there: then each is heard after the other.
        """
        if self.now - worker.heard > self.limits.stale:
            worker.former.remove(report.instance)
            return True
        if not worker.rival:
            worker.rival = self.now
        elif worker.heard > worker.rival:
            reason = f"another worker is named {report.name} too: give each its own name"
            self._refuse(report.name, "bad-request", reason)
        return False

    def _register(self, report: Report) -> Worker:
        self.count += 1
        worker = Worker(
            name=report.name,
            number=self.count,
            instance=report.instance,
            arch=report.arch,
            slots=0,
            features=frozenset(),
            heard=self.now,
            since=self.now,
            drained=report.name in self.drained,
        )
        self.workers[worker.name] = worker
        self._timer(self.now + self.limits.lease, self._check_lease, worker.name)
        self.pools.join(worker, self.now)
        gone = self._gone.get(worker.name)
        if gone is not None and gone.instance == worker.instance:
            del self._gone[worker.name]
            worker.held = gone.held
            # It was cut off, and not taken down by what it ran.
            for key, _ in worker.held:
                task = self.tasks.get(key)
                if task is not None and worker.name in task.losses:
                    task.losses.remove(worker.name)
        else:
            self._give_up_gone(worker.name)
        if gone is not None:
            worker.floor = gone.floor  # what another run of it was at is over
        return worker

    def _describe(self, worker: Worker, report: Report) -> None:
        worker.sequence = report.sequence
        worker.heard = self.now
        worker.free_disk, worker.free_memory = report.free_disk, report.free_memory
        self.capacity += report.slots - worker.slots
        worker.slots = report.slots
        worker.storing = sum(each.phase == STORING for each in report.running)
        features = frozenset(report.features)
        new = (report.arch, features, report.draining, bool(report.refusing))
        old = (worker.arch, worker.features, worker.draining, bool(worker.refusing))
        worker.arch, worker.features, worker.draining = report.arch, features, report.draining
        worker.refusing = report.refusing
        if new != old:
            self.pools.join(worker, self.now)

    def _command(self, command: Command) -> None:
        """An operator's word."""
        answer = self._commands.get(command.id)
        if answer is None:
            answer = self._cancel(command) if command.what == "cancel" else self._drain(command)
            self._commands[command.id] = answer
            if len(self._commands) > _COMMANDS:
                del self._commands[next(iter(self._commands))]
        self.effects.append(Tell(answer))

    def _drain(self, command: Command) -> Answer:
        name, on = command.about, command.what == "drain"
        worker = self.workers.get(name)
        if worker is None and name not in self.drained:
            return Answer(command.id, error=f"no worker is named {name}")
        if on != (name in self.drained):
            if on:
                self.drained[name] = None
            else:
                del self.drained[name]
            self.effects.append(Drained(name, on))
            if worker is not None:
                worker.drained = on
                self.pools.join(worker, self.now)
                self.pools.place(name, self.now)
        told = "gets nothing new" if on else "gets work"
        if worker is None:
            told += " when it comes back"
        elif on and worker.held:
            told += f", and still does {len(worker.held)}"
        return Answer(command.id, lines=(f"{name} {told}",))

    def _sighted(self, attempt: Attempt, seen: Running) -> None:
        attempt.confirmed = True
        attempt.log_size = seen.log_size
        if attempt.phase != seen.phase:
            attempt.phase = seen.phase
            task = self.tasks.get(attempt.key)
            if task is not None and task.attempt is attempt:
                self.touch(task)

    def _found(self, worker: Worker, seen: Running, *, over: bool, ended: bool) -> None:
        """A worker runs what it was not known to run.

        ``over``: this is known to have ended, or to be given up.  It is to be killed, without news.
        ``ended``: and that is not waited for, since a worker may tell of it again and again.
        """
        attempt = Attempt(seen.key, seen.fence, worker.name, self.now, seen.token, over=over)
        attempt.confirmed = True
        attempt.phase, attempt.log_size = seen.phase, seen.log_size
        worker.held[attempt.id] = attempt
        if over:
            attempt.stuck = ended
            self.doom(attempt)
        else:
            self.effects.append(Began(seen.key, seen.fence, worker.name, found=True))
            self._take_up(attempt)

    def _take_up(self, attempt: Attempt) -> None:
        """An attempt runs that is no task's: it may become one's."""
        key = attempt.key
        task = self.tasks.get(key)
        if task is None:
            wanted = self.now < self.grace_until
        else:
            early = task.state in (State.ASKING, State.BLOCKED, State.READY)
            wanted = early and task.fence <= attempt.fence
        if not wanted or key in self.strays:
            self.doom(attempt)
        elif task is None or task.state is State.ASKING:
            self.strays[key] = attempt
        else:
            self.adopt(task, attempt)

    def _came_late(self, worker: Worker, outcome: Outcome) -> None:
        """How an attempt ended that a former run of the broker began."""
        if self._claims(outcome, ("done", "failed")):
            attempt = Attempt(outcome.key, outcome.fence, worker.name, self.now, outcome.token)
            worker.held[attempt.id] = attempt
            self.effects.append(Began(outcome.key, outcome.fence, worker.name, found=True))
            self._ended(worker, attempt, outcome)

    def _claims(self, outcome: Outcome, results: tuple[str, ...]) -> Task | None:
        """The task that waits for what an attempt that is not its own comes to, if there is one."""
        task = self.tasks.get(outcome.key)
        if (
            task is not None
            and task.state in (State.BLOCKED, State.READY)
            and task.fence <= outcome.fence
            and outcome.result in results
        ):
            return task
        return None

    def _ended(self, worker: Worker, attempt: Attempt, outcome: Outcome) -> None:
        task = self.tasks.get(attempt.key)
        if (task is None or task.attempt is not attempt) and not attempt.over:
            # A doomed one may fail because it is killed.
            results = ("done",) if attempt.doomed else ("done", "failed")
            if (task := self._claims(outcome, results)) is not None:
                self.lay(attempt)
                self.adopt(task, attempt)
        task = self._release(worker, attempt, outcome)
        if task is None:
            return
        task.outcome = outcome
        faulty = outcome.result in ("fault", "refused")
        if faulty and outcome.damaged and self.complain(task, attempt, outcome):
            return
        match outcome.result:
            case "done":
                worker.faults = 0
                self.move(task, Cause.FINISHED, worker.name)
                self.keep_seat(task, worker)
                self.ask(task)
                self.touch(task)
            case "failed":
                worker.faults = 0
                self.fail(task, Cause.BROKE, outcome.message)
            case "cancelled" if worker.draining:
                self.move(task, Cause.RETURNED, worker.name)
                self.expand(task)
                self.touch(task)
            case "cancelled":
                self.faulted(task, worker.name, "it handed the job back")
            case "refused":
                self.refused(task, worker, outcome.message)
            case "fault":
                self.faulted(task, worker.name, outcome.message)

    def _untaken(self, worker: Worker, attempt: Attempt) -> None:
        """A worker that is heard does not hear, or does not do as it is told."""
        floor = worker.floor
        task = self._release(worker, attempt, None)
        worker.floor = floor  # it may take it yet
        self.rest_after_fault(worker)
        if task is not None:
            self.move(task, Cause.UNTAKEN, worker.name)
            self.expand(task)
            self.touch(task)

    def _vanished(self, worker: Worker, attempt: Attempt) -> None:
        """An attempt is no more, and how it ended nobody knows."""
        task = self._release(worker, attempt, None)
        if task is not None:
            self._lost(task, worker.name)

    def _lost(self, task: Task, name: str) -> None:
        """What ran a task is no more, or cannot be heard."""
        task.losses.append(name)
        if len(task.losses) >= self.limits.losses:
            names = ", ".join(dict.fromkeys(task.losses))
            message = f"it was lost {len(task.losses)} times, with its worker: {names}"
            self.fail(task, Cause.EXHAUSTED, message)
            return
        self.move(task, Cause.LOST, name)
        self.expand(task)
        self.touch(task)

    def _release(self, worker: Worker, attempt: Attempt, outcome: Outcome | None) -> Task | None:
        """A worker no longer holds an attempt; returns the task whose attempt it was, if any.

        The caller notes the worker's room, once for all of them.
        """
        del worker.held[attempt.id]
        if attempt.fence > worker.floor:
            worker.floor = attempt.fence
        task = self.tasks.get(attempt.key)
        self._say_ended(attempt, outcome, task)
        return self.disown(attempt, task)

    def _say_ended(self, attempt: Attempt, outcome: Outcome | None, task: Task | None) -> None:
        if attempt.over:
            return
        kind = name = arch = ""
        if task is not None:
            offer = task.offer
            kind, name, arch = offer.kind, offer.name, offer.arch
        self.effects.append(
            Ended(attempt.key, attempt.fence, attempt.worker, kind, name, arch,
                  attempt.since, outcome)
        )  # fmt: skip

    # -- leases --------------------------------------------------------------------------------

    def _check_lease(self, name: str) -> None:
        worker = self.workers[name]
        if self.now < worker.heard + self.limits.lease:
            self._timer(worker.heard + self.limits.lease, self._check_lease, name)
            return
        self.pools.leave(name, self.now)
        del self.workers[name]
        self.capacity -= worker.slots
        for key in worker.seats:
            self.tasks[key].seat = ""
        for attempt in list(worker.held.values()):
            task = self.disown(attempt, self.tasks.get(attempt.key))
            if task is not None:
                self._lost(task, name)
        self._gone[name] = Gone(worker.instance, worker.held, worker.floor)
        self._timer(self.now + self.limits.absence, self._check_gone, (name, worker.instance))
        if len(self._gone) > bounds.LOST_WORKERS:
            oldest = next(iter(self._gone))
            self._give_up_gone(oldest)

    def _check_gone(self, lost: tuple[str, str]) -> None:
        name, instance = lost
        gone = self._gone.get(name)
        if gone is not None and gone.instance == instance:
            self._give_up_held(gone)

    def _give_up_gone(self, name: str) -> None:
        """A lost worker does not come back."""
        gone = self._gone.pop(name, None)
        if gone is not None:
            self._give_up_held(gone)

    def _give_up_held(self, gone: Gone) -> None:
        for attempt in gone.held.values():
            self._say_ended(attempt, None, self.tasks.get(attempt.key))
            gone.floor = max(gone.floor, attempt.fence)
        gone.held = {}
