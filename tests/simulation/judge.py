"""What must hold, whatever goes wrong: looked at after every event, and in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fabric import bounds
from fabric.client.request_logs import CloseLog
from fabric.scheduling import events
from fabric.scheduling.explain import why_request
from fabric.scheduling.invariants import validate
from fabric.scheduling.model import Attempt, Request, Task, Worker
from fabric.scheduling.states import State

if TYPE_CHECKING:
    from brokers import Run
    from simulator import Simulation
    from users import Initiator

#: Attempts that may begin for others while a request waits and its requester has nothing, times the
#: ratio of their shares then.  Beside a long attempt of one's own, others may have many short ones.
TURNS = 6
#: Events of which one is followed by a look at everything: what is wrong stays so for a while.
LOOK = 4
#: Messages that may wait in the broker for anybody, beside updates: the farms here are small.
QUEUED = bounds.HELD_REPLIES + 100
#: The fault of a worker that says that it built a step whose artifact cannot be found.
NOT_STORED = "what it built is not in the store"
#: Seconds in peace that an initiator may stay when its request is over.
LATE = 60.0
#: Seconds after its start in which a broker lets workers say what they run.
SETTLE = 3.0


class Violation(AssertionError):
    """Something happened that must not."""


class _Attempt(msgspec.Struct):
    """An attempt that a broker has begun."""

    worker: str
    began: float
    request: str = ""  # that it was begun for
    ended: bool = False


class Judge:
    def __init__(self, world: Simulation) -> None:
        self.world = world
        self._looks = 0
        #: request -> how much of its patience it has used, while attempts began for others
        self._passed_over: dict[str, float] = {}
        self._used: dict[str, float] = {}  # request -> seconds of workers that it has used
        #: by run of the broker, key, and fence
        self._attempts: dict[tuple[int, str, int], _Attempt] = {}
        #: since when an attempt is unwanted, on the broker's clock.  One that is given up, and that
        #: its worker runs all the same, is another object, and is waited for anew.
        self._unwanted: dict[Attempt, float] = {}

    # -- after every event ---------------------------------------------------------------------

    def after(self, broker: Run) -> None:
        """The core's own invariants; nothing waits without a reason; nobody idles who need not."""
        scheduler, now = broker.scheduler, broker.clock()
        self._looks += 1
        if self.world.warehouse.wrong:
            raise Violation(self.world.warehouse.wrong)
        if self._looks % LOOK == 0:
            validate(scheduler.state, now)
            for whom, number in broker.queues().items():
                if number > QUEUED:
                    raise Violation(f"{number} messages wait in the broker for {whom}")
            self._nothing_unwanted_is_waited_for(broker)
        for request in scheduler.state.requests.values():
            if not request.over and not request.running:
                self._has_reason(broker, request)
            silent = now - request.heard > scheduler.state.limits.patience + 1.0
            if silent and not request.over and not request.detached:
                raise Violation(f"{request.id} goes on, and nobody wants it")
        ready = [task for task in scheduler.state.tasks.values() if task.state is State.READY]
        if ready and now >= scheduler.state.dispatch_from:
            for worker in scheduler.state.workers.values():
                self._is_not_idle(broker, worker, ready)

    def _nothing_unwanted_is_waited_for(self, broker: Run) -> None:
        now, before, self._unwanted = broker.clock(), self._unwanted, {}
        for key, dying in broker.scheduler.state.dying.items():
            for attempt in dying.values():
                since = self._unwanted[attempt] = before.get(attempt, now)
                if not attempt.stuck and now > since + broker.scheduler.state.limits.kill + 1.0:
                    raise Violation(f"{self.world.names[key]} waits for what was to end long ago")

    def answered(self, broker: Run, answer: events.StoreAnswered) -> None:
        """The store was asked, this moment: what it has is not said to be absent."""
        for task in broker.scheduler.state.outbox.questions.get(answer.question, ()):
            if task.key not in answer.present and self.world.warehouse.has(task.key):
                raise Violation(f"the store has {task.spec.name}, and is said not to")

    def _has_reason(self, broker: Run, request: Request) -> None:
        scheduler = broker.scheduler
        told = why_request(scheduler.state, request, broker.clock())
        if "about to get it" in told:
            raise Violation(f"{request.id} waits for nothing: {told}")
        if not told:
            tasks = request.needed.values()
            asked = (State.ASKING, State.VERIFYING)
            shared = any(task.attempt is not None or task.state in asked for task in tasks)
            if not shared:
                raise Violation(f"{request.id} waits without a reason")

    def _is_not_idle(self, broker: Run, worker: Worker, ready: list[Task]) -> None:
        limits, now = broker.scheduler.state.limits, broker.clock()
        fresh = now - worker.heard <= limits.stale
        if not worker.room or not fresh or worker.backoff_until > now:
            return
        for task in ready:
            shunned = worker.name in task.refusals and now < task.refusals[worker.name].until
            checking = all(request.state == "checking" for request in task.requests.values())
            able = worker.features.issuperset(task.spec.needs)
            spared = worker.name == task.first and self._another_is_able(broker, worker, task)
            if able and not (shunned or checking or spared or worker.name in task.faults):
                raise Violation(f"{worker.name} is free, and {task.spec.name} is ready")

    def _another_is_able(self, broker: Run, worker: Worker, task: Task) -> bool:
        """Whether a step that is built once more may wait for another worker."""
        limits = broker.scheduler.state.limits
        return any(
            other.open
            and other is not worker
            and other.features.issuperset(task.spec.needs)
            and other.name not in task.faults
            and (
                other.name not in task.refusals or task.refusals[other.name].count < limits.refusals
            )
            for other in broker.scheduler.state.workers.values()
        )

    def ended(self, broker: Run, event: events.Ended) -> None:
        """An attempt ends: it began, and ends for the first time."""
        id = (broker.run, event.key, event.fence)
        attempt = self._attempts.get(id)
        if attempt is None or attempt.ended:
            raise Violation(f"{self.world.names[event.key]} {event.fence} ends, and does not run")
        attempt.ended = True
        self._used[attempt.request] = self._used.get(attempt.request, 0.0) + (
            self.world.now - attempt.began
        )

    def began(self, broker: Run, event: events.Began) -> None:
        """An attempt begins: is it the only one, and whose turn was it?"""
        id = (broker.run, event.key, event.fence)
        if id in self._attempts:
            raise Violation(f"{self.world.names[event.key]} {event.fence} begins a second time")
        self._attempts[id] = _Attempt(event.worker, self.world.now)
        if event.found:
            return
        self._is_alone(broker, event)
        task = broker.scheduler.state.tasks[event.key]
        assert task.billed is not None
        self._attempts[id].request = task.billed.id
        features = broker.scheduler.state.workers[event.worker].features
        for request in broker.scheduler.state.requests.values():
            if request.over:
                continue
            waits = request.state == "building" and any(
                each.state is State.READY
                and not each.restricted
                and features.issuperset(each.spec.needs)
                for each in request.needed.values()
            )
            if request.id in task.requests or request.share.running or not waits:
                self._passed_over[request.id] = 0.0
                continue
            mine = task.billed.requester is request.requester
            if request.requester.share.running and not mine:
                continue
            live = [each for each in broker.scheduler.state.requests.values() if not each.over]
            ratio = sum(each.share.weight for each in live) / request.share.weight
            # the others may use the workers as long as it has used them itself
            turns = TURNS + self._used.get(request.id, 0.0)
            passed = self._passed_over.get(request.id, 0.0) + 1.0 / (turns * ratio)
            self._passed_over[request.id] = passed
            if passed > 1.0:
                raise Violation(f"{request.id} is starved")

    def _was_not_taken(self, broker: Run, key: str, fence: int) -> bool:
        """Whether an attempt was given up because its worker did not say that it has it, when it
        came back after it was lost, or in two leases.
        """
        attempt = self._attempts.get((broker.run, key, fence))
        if attempt is None or not attempt.ended or (key, fence) in broker.reported:
            return False
        lost = broker.lost.get(attempt.worker, 0.0) >= attempt.began
        return lost or self.world.now - attempt.began > 2 * broker.scheduler.state.limits.lease

    def _is_alone(self, broker: Run, event: events.Began) -> None:
        """No job runs twice at once, unless its worker could not be heard for long, or could not
        hear for long; or what another run of that worker had said came so late that it counted.
        """
        limits, now = broker.scheduler.state.limits, self.world.now
        for builder in self.world.builders.values():
            for key, fence in builder.agent.running:
                if not builder.alive or key != event.key or fence == event.fence:
                    continue
                if self._was_not_taken(broker, key, fence) or builder.node in broker.ousted:
                    continue
                worker = broker.scheduler.state.workers.get(builder.name)
                attempt = worker.held.get((key, fence)) if worker is not None else None
                if attempt is not None and attempt.stuck:
                    continue  # it was told to end it long ago
                heard = broker.heard.get(builder.node, broker.started)
                silence = now - heard
                known = (broker.run, key, fence) in self._attempts
                told = (key, fence) in broker.reported
                if not (known or told) and builder.began[key, fence] >= heard:
                    continue  # a former broker's word came late
                if silence < (limits.lease if known else SETTLE) - 0.001:
                    name = self.world.names[key]
                    raise Violation(f"{name} runs on {builder.node} and begins on {event.worker}")

    # -- in the end ----------------------------------------------------------------------------

    def conclude(self) -> None:
        world = self.world
        for initiator in world.initiators:
            if not initiator.departed:
                self._was_told_the_truth(initiator)
        for request in world.detached:
            if not world.is_over(request):
                raise Violation(f"{request} was accepted, and is not over")
        for request, told in world.told.items():
            # What was told while nothing could be written, a crash may take back.
            if "cancelled" in told and len(told) > 1 and not world.scenario.full_disks:
                raise Violation(f"{request} was cancelled, and goes on: {told}")
        if world.broker is not None:
            self._all_have_ended(world.broker)

    def _all_have_ended(self, broker: Run) -> None:
        """All attempts that began, but for those that a worker has, or had when it was lost: these
        end too where that is waited for.
        """
        workers, waited = broker.scheduler.state.workers, self.world.scenario.long
        for (run, key, fence), attempt in self._attempts.items():
            if run != broker.run or attempt.ended:
                continue
            held = any((key, fence) in each.held for each in workers.values())
            if not held and (waited or attempt.worker in workers):
                raise Violation(f"{self.world.names[key]} {fence} has not ended, and nobody has it")

    def _was_told_the_truth(self, initiator: Initiator) -> None:
        world, mirror = self.world, initiator.mirror
        request = mirror.request
        if not initiator.gone or initiator.over != 1 or initiator.open:
            raise Violation(f"{initiator.node} has no end: {initiator.over}, {initiator.open}")
        known = world.over.get(initiator.mirror.request, 0.0)
        back = world.broker.started if world.broker is not None else 0.0
        late = initiator.until - max(world.peace, initiator.since, known, back)
        if late > LATE:
            raise Violation(f"{initiator.node} ends {late:.0f} s after its request")
        if initiator.refused:
            if request in world.detached:
                raise Violation(f"{request} was accepted, and is forgotten")
            return
        failures = {
            world.names[key]: step.message
            for key, step in mirror.steps.items()
            if step.state == "failed"
        }
        goals = world.goals[request]
        match mirror.state:
            case "done":
                if goals is None or not world.warehouse.built.issuperset(goals) or failures:
                    raise Violation(f"{request} is not done: {failures}")
                if set(mirror.goals) != set(goals):
                    raise Violation(f"{request} has other goals")
            case "cancelled":
                left = any(
                    each.departed and each.mirror.request == request for each in world.initiators
                )
                if not left and request not in world.cancelled:
                    raise Violation(f"{request} is cancelled, and nobody wanted that")
            case "failed":
                given_up = mirror.message.endswith(", which failed")
                if goals is not None and not failures and not given_up:
                    raise Violation(f"{request} failed without a reason: {mirror.message}")
            case state:
                raise Violation(f"{request} is {state} in the end")
        for name, message in failures.items():
            if not self._is_excused(name, message):
                raise Violation(f"{name} failed: {message}")
        self._has_whole_logs(initiator)

    def _is_excused(self, name: str, message: str) -> bool:
        world, scenario = self.world, self.world.scenario
        kinds = list(world.kinds.values())
        bad = kinds.count("sick") + kinds.count("liar")
        away = not scenario.gentle or scenario.drains > 0
        if message.startswith("failed on"):
            return name.endswith("-bad")
        if message.startswith("it was lost"):
            return not scenario.gentle
        if message.startswith("no machine could"):
            # A result may be damaged before the broker looks at it.
            damaged = min(message.count(NOT_STORED), world.faults["damaged artifact"])
            # One bad machine alone fails nothing, if the good ones are there.
            faulty = (bad > 0 and away) or bad + damaged >= scenario.limits.faults
            return faulty or world.faults["fault without a store"] > 0
        if message.startswith("the artifact store does not answer"):
            return world.faults["store outage"] > 0
        if message.startswith("no worker was able to do it"):
            return scenario.foreign > 0
        if message.startswith("the artifact store spoilt it"):
            return world.faults["damaged artifact"] >= 3
        return False

    def _has_whole_logs(self, initiator: Initiator) -> None:
        names = self.world.names
        for key, log in initiator.closed.items():
            if log.whole:
                self._is_the_log_used(initiator, key)
            elif self._should_be_whole(initiator, log):
                raise Violation(f"the log of {names[key]} is not whole")

    def _should_be_whole(self, initiator: Initiator, log: CloseLog) -> bool:
        """Not if the broker might take its worker for lost, or removed the log to make room.

        Nor if the attempt was ended, and another one built the step: after the request, the log is
        completed from the store (`fabric.client.user_logs`).
        """
        broker, gentle = self.world.broker, self.world.scenario.gentle
        removed = broker is not None and broker.removed_log(log.key)
        step = initiator.mirror.steps.get(log.key)
        cached = step is not None and step.state == "cached"
        by_another = cached and log.fence not in self.world.done.get(log.key, ())
        return gentle and not initiator.attached and not removed and not by_another

    def _is_the_log_used(self, initiator: Initiator, key: str) -> None:
        """The log of a step in a user's folder is that of the attempt which decided the step.

        A step that is equal to one of another version of the definitions has the log of that.
        """
        name = self.world.names[key]
        lines = initiator.logs[key].decode().splitlines()
        if not all(line[1:].startswith(name[1:]) for line in lines):
            raise Violation(f"the log of {name} is another's")
        versions = [one for one, other in self.world.names.items() if other[1:] == name[1:]]
        attempts = {int(line.split()[1]) for line in lines}
        step = initiator.mirror.steps.get(key)
        if step is None or not attempts:
            return
        if step.state == "failed" and step.message.startswith("failed on"):
            right = {int(step.message.split()[-1])}
        elif step.state == "done":
            right = {fence for one in versions for fence in self.world.done.get(one, ())}
        else:
            return
        if len(attempts) > 1 or not attempts <= right:
            raise Violation(f"the log of {name} is of {attempts}, not of {right}")
