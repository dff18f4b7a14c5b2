"""Workers and the attempts they hold.

Workers report their whole state, again and again; what they were told is never assumed to have
arrived.  An attempt is *held* by a worker from its assignment until that worker reports its
end, reports without it, or is lost.  When nobody wants an attempt any more it is *doomed*: left
out of what the worker is told to do, so that the worker kills it; until it is gone, its task
is not begun anywhere else.
"""

from __future__ import annotations

from fabric.scheduling.events import Began, Drained, Ended, Tell
from fabric.scheduling.faults import Faults
from fabric.scheduling.model import Attempt, Durations, Limits, Task, Worker
from fabric.scheduling.states import Cause, State
from fabric.wire.messages import STORING, Answer, Command, Outcome, Report, Running

#: Lost workers remembered, in case one was merely cut off.
_GONE = 1000
#: Commands remembered, so that a late copy of one does not undo what was said since.
_COMMANDS = 1000


class Fleet(Faults):
    """What happens to workers, and to tasks on them."""

    __slots__ = ("_commands", "_gone", "broker", "drained")

    def __init__(
        self,
        limits: Limits,
        durations: Durations,
        *,
        broker: str,
        first: int,
        drained: frozenset[str],
        now: float,
    ) -> None:
        super().__init__(limits, durations, first, now)
        self.broker = broker
        self._commands: dict[str, Answer] = {}
        self.drained = dict.fromkeys(sorted(drained))
        self._gone: dict[tuple[str, str], list[Task]] = {}

    # -- workers -------------------------------------------------------------------------------

    def _report(self, report: Report) -> None:
        worker = self.workers.get(report.name)
        reborn = False
        if worker is None:
            worker = self._register(report)
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
        taken_in = report.answered if report.broker == self.broker else 0
        known = set(worker.held)
        running = {(each.key, each.fence): each for each in report.running}
        finished = {(each.key, each.fence): each for each in report.finished}
        for id, attempt in list(worker.held.items()):
            if (outcome := finished.get(id)) is not None:
                self._ended(worker, attempt, outcome)
            elif (sighting := running.get(id)) is not None:
                self._sighted(attempt, sighting)
            elif attempt.confirmed or reborn or taken_in >= attempt.told:
                self._vanished(worker, attempt)
        for id, sighting in running.items():
            if id not in worker.held:
                self._found(worker, sighting)
        for id, outcome in finished.items():
            if id not in known and id not in worker.settled:
                self._came_late(worker, outcome)
        worker.settled = tuple(finished)
        self.pools.place(worker, self.now)
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
        self._timer(self.now + self.limits.lease, self._check_lease, worker)
        self.pools.join(worker)
        # It was cut off, and not taken down by what it ran.
        for task in self._gone.pop((worker.name, worker.instance), ()):
            if worker.name in task.losses:
                task.losses.remove(worker.name)
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
            self.pools.join(worker)

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
                self.pools.join(worker)
                self.pools.place(worker, self.now)
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

    def _found(self, worker: Worker, seen: Running) -> None:
        """A worker runs what it was not known to run."""
        attempt = Attempt(seen.key, seen.fence, worker.name, self.now)
        attempt.confirmed = True
        attempt.phase, attempt.log_size = seen.phase, seen.log_size
        worker.held[attempt.id] = attempt
        self.effects.append(Began(seen.key, seen.fence, worker.name, found=True))
        task = self.tasks.get(seen.key)
        if task is None:
            wanted = self.now < self.grace_until
        else:
            early = task.state in (State.ASKING, State.BLOCKED, State.READY)
            wanted = early and task.fence <= seen.fence
        if not wanted:
            self.doom(attempt)
        elif task is not None and task.state is not State.ASKING:
            self._adopt(task, attempt)
        elif seen.key in self.strays:
            self.doom(attempt)
        else:
            self.strays[seen.key] = attempt

    def _adopt(self, task: Task, attempt: Attempt) -> None:
        task.move(Cause.ADOPTED, self.now, attempt.worker)
        self.strays.pop(task.key, None)
        self.run(task, attempt, next(iter(task.requests.values())))

    def _came_late(self, worker: Worker, outcome: Outcome) -> None:
        """An outcome of what the worker was not known to run: it was thought lost, or doomed."""
        task = self.tasks.get(outcome.key)
        if (
            task is not None
            and task.state in (State.BLOCKED, State.READY)
            and task.fence <= outcome.fence
            and outcome.result in ("done", "failed")
        ):
            attempt = Attempt(outcome.key, outcome.fence, worker.name, self.now)
            worker.held[attempt.id] = attempt
            self.effects.append(Began(outcome.key, outcome.fence, worker.name, found=True))
            self._adopt(task, attempt)
            self._ended(worker, attempt, outcome)

    def _ended(self, worker: Worker, attempt: Attempt, outcome: Outcome) -> None:
        task = self._release(worker, attempt, outcome)
        if task is None:
            if attempt.doomed and outcome.result == "done":
                self._came_late(worker, outcome)
            return
        task.outcome = outcome
        faulty = outcome.result in ("fault", "refused")
        if faulty and outcome.damaged and self.complain(task, attempt, outcome):
            return
        match outcome.result:
            case "done":
                worker.faults = 0
                task.move(Cause.FINISHED, self.now, worker.name)
                self.keep_seat(task, worker)
                self.ask(task)
                self.touch(task)
            case "failed":
                worker.faults = 0
                self.fail(task, Cause.BROKE, outcome.message)
            case "cancelled" if worker.draining:
                task.move(Cause.RETURNED, self.now, worker.name)
                self.expand(task)
                self.touch(task)
            case "cancelled":
                self.faulted(task, worker.name, "it handed the job back")
            case "refused":
                self.refused(task, worker, outcome.message)
            case "fault":
                self.faulted(task, worker.name, outcome.message)

    def _vanished(self, worker: Worker, attempt: Attempt) -> None:
        """An attempt is no more, and how it ended nobody knows."""
        task = self._release(worker, attempt, None)
        if task is None:
            return
        task.losses.append(worker.name)
        if len(task.losses) >= self.limits.losses:
            names = ", ".join(dict.fromkeys(task.losses))
            message = f"it was lost {len(task.losses)} times, with its worker: {names}"
            self.fail(task, Cause.EXHAUSTED, message)
            return
        task.move(Cause.LOST, self.now, worker.name)
        self.expand(task)
        self.touch(task)

    def _release(self, worker: Worker, attempt: Attempt, outcome: Outcome | None) -> Task | None:
        """A worker no longer holds an attempt; returns the task whose attempt it was, if any.

        The caller notes the worker's room, once for all of them.
        """
        key, fence = attempt.key, attempt.fence
        del worker.held[key, fence]
        task = self.tasks.get(key)
        kind = name = arch = ""
        if task is not None:
            kind, name, arch = task.offer.kind, task.offer.name, task.offer.arch
        told = None if attempt.doomed else outcome
        self.effects.append(Ended(key, fence, worker.name, kind, name, arch, attempt.since, told))
        if task is not None and task.attempt is attempt:
            self.stop(task)
            return task
        if self.strays.get(key) is attempt:
            del self.strays[key]
        if attempt.doomed:
            ghosts = self.ghosts[key]
            del ghosts[worker.name, fence]
            if not ghosts:
                del self.ghosts[key]
                if task is not None:
                    self.unblock(task)
        return None

    # -- leases --------------------------------------------------------------------------------

    def _check_lease(self, worker: Worker) -> None:
        if self.workers.get(worker.name) is not worker:
            return
        if self.now < worker.heard + self.limits.lease:
            self._timer(worker.heard + self.limits.lease, self._check_lease, worker)
            return
        lost = [self.tasks[key] for key, _ in worker.held if key in self.tasks]
        self.pools.leave(worker)
        del self.workers[worker.name]
        self.capacity -= worker.slots
        self._gone[worker.name, worker.instance] = lost
        if len(self._gone) > _GONE:
            del self._gone[next(iter(self._gone))]
        for attempt in list(worker.held.values()):
            self._vanished(worker, attempt)
