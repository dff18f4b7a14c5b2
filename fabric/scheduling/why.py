"""Why is this waiting?  And what has happened to it?  Pure reading of the core's state.

`why` answers in whole sentences, most important first; it always has an answer.
"""

from __future__ import annotations

from heapq import heappop
from typing import TYPE_CHECKING

import msgspec

from fabric.scheduling.pools import order_of
from fabric.scheduling.states import PRESENT, State
from fabric.scheduling.unfit import MANY, unfit

if TYPE_CHECKING:
    from fabric.scheduling.core import Scheduler
    from fabric.scheduling.model import Request, Task, Worker


class Why(msgspec.Struct, frozen=True):
    """Where a task stands, and what it waits for."""

    key: str
    name: str
    state: str  # as in `states.State`, or "unknown"
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} is {self.state}: " + "; ".join(self.reasons)


def why(scheduler: Scheduler, key: str, now: float) -> Why:
    """What a task waits for."""
    task = scheduler.tasks.get(key)
    if task is None:
        return Why(key, key[:12], "unknown", ("no request needs it now",))
    tell = {
        State.ASKING: _asking,
        State.BLOCKED: _blocked,
        State.READY: _ready,
        State.RUNNING: _running,
        State.VERIFYING: _asking,
        State.CACHED: _present,
        State.DONE: _present,
    }[task.state]
    return Why(key, task.offer.name, task.state.value, tuple(tell(scheduler, task, now)))


def why_request(scheduler: Scheduler, request: Request, now: float) -> str:
    """Why nothing of a request runs; "" if something does, or it is over.

    Costs the same whatever the size of the request.
    """
    if request.over or request.running:
        return ""
    if request.state == "resolving":
        return f"its definitions are being resolved, for {now - request.since:.1f} s"
    task = _awaited(scheduler, request)
    if task is None:
        return ""
    asked = task.state is State.ASKING and not task.unanswered
    if asked and not scheduler.in_doubt(task.key):
        return ""
    return str(why(scheduler, task.key, now))


def warning(scheduler: Scheduler, request: Request, now: float) -> str:
    """What somebody has to do that a request goes on; "" if nothing of the kind is known.

    The same text as long as that does not change.
    """
    if request.over or request.running:
        return ""
    task = _awaited(scheduler, request)
    if task is None or task.state is not State.READY:
        return ""
    if not scheduler.workers:
        return f"{task.offer.name} waits: there is no worker"
    if scheduler.pools.of(task.offer, now).members:
        return ""
    limit = scheduler.limits.unserved
    until = f"; it fails unless one comes within {limit:.0f} s" if limit else ""
    reasons = "; ".join(unfit(task, scheduler.workers.values()))
    return f"{task.offer.name} waits: no worker is able to do it: {reasons}{until}"


def _awaited(scheduler: Scheduler, request: Request) -> Task | None:
    """The step that a request waits for, if nothing of it runs."""
    task = first(scheduler, request)
    while task is not None and task.state is State.BLOCKED:
        below = next(iter(_missing(scheduler, task)), None)
        if below is None:
            break
        task = below
    return task


def first(scheduler: Scheduler, request: Request) -> Task | None:
    """Of all that a request waits for, the step with the longest way to the end."""
    while request.longest:
        task = scheduler.tasks.get(request.longest[0][1])
        if task is not None and request.id in task.requests and task.state not in PRESENT:
            return task
        heappop(request.longest)
    return None


def story(task: Task) -> str:
    """All that happened to a task, a line for each transition, times from the first on."""
    start = task.story[0].at if task.story else 0.0
    lines = [f"{task.offer.name} ({task.key[:12]})"]
    for line in task.story:
        detail = f" ({line.detail})" if line.detail else ""
        lines.append(f"  {line.at - start:+9.3f} s  {line.state:<9}  {line.cause}{detail}")
    return "\n".join(lines)


def _asking(scheduler: Scheduler, task: Task, now: float) -> list[str]:
    since = f", for {now - task.story[-1].at:.1f} s" if task.story else ""
    if scheduler.in_doubt(task.key):
        who = task.story[-1].detail if task.story else "a worker"
        return [f"{who} found it damaged; the artifact store inspects it{since}"]
    told = [f"the artifact store is asked whether it has it{since}"]
    if task.unanswered:
        told.append(f"it failed to answer {task.unanswered} times: {task.story[-1].detail}")
    return told


def _blocked(scheduler: Scheduler, task: Task, now: float) -> list[str]:
    told = []
    missing = list(_missing(scheduler, task))
    # What is being worked on says more than what waits itself.
    missing.sort(key=lambda each: (each.state in (State.BLOCKED, State.ASKING), each.number))
    for dependency in missing[:MANY]:
        told.append(f"it needs {dependency.offer.name}, {_briefly(dependency, now)}")
    if len(missing) > MANY:
        told.append(f"and {len(missing) - MANY} more")
    for attempt in scheduler.ghosts.get(task.key, {}).values():
        told.append(f"an earlier attempt on {attempt.worker}, no longer wanted, has not ended yet")
    return told


def _ready(scheduler: Scheduler, task: Task, now: float) -> list[str]:
    pool = scheduler.pools.of(task.offer, now)
    if not scheduler.workers:
        return ["there is no worker"]
    if now < scheduler.settled_at:
        left = scheduler.settled_at - now
        return [f"the broker has just started: workers have {left:.1f} s to say what they run"]
    if not pool.members:
        return ["no worker is able to do it", *unfit(task, scheduler.workers.values())]
    place = order_of(task, now)
    ahead = {other.key for order, other in pool.waiting(now) if order < place}
    if all(request.state == "checking" for request in task.requests.values()):
        return ["the artifact store is still asked what else has to be built"]
    told = [
        f"it is number {len(ahead) + 1} in the queue of {len(pool.members)} workers that can do it"
    ]
    obstacles: dict[str, list[str]] = {}
    for worker in map(scheduler.workers.__getitem__, pool.members):
        obstacles.setdefault(_obstacle(scheduler, worker, task, now), []).append(worker.name)
    for obstacle, names in obstacles.items():
        more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
        told.append(f"{', '.join(names[:MANY])}{more}: {obstacle}")
    return told


def _running(_: Scheduler, task: Task, now: float) -> list[str]:
    return [_briefly(task, now)]


def _present(_: Scheduler, task: Task, __: float) -> list[str]:
    built = f", built by {task.builder}" if task.state is State.DONE else ""
    return [f"the artifact store has it{built}"]


def _missing(scheduler: Scheduler, task: Task) -> list[Task]:
    if not task.missing:
        return []
    found = (scheduler.tasks.get(key) for key in dict.fromkeys(task.offer.depends))
    return [each for each in found if each is not None and task.key in each.waiters]


def _briefly(task: Task, now: float) -> str:
    attempt = task.attempt
    if attempt is not None:
        phase = f", at {attempt.phase}" if attempt.phase else ""
        return (
            f"building on {attempt.worker} for {now - attempt.since:.0f} s of about"
            f" {task.expected:.0f}{phase}"
        )
    return {
        State.ASKING: "which the store is asked for",
        State.BLOCKED: "which waits itself",
        State.READY: "which waits for a worker",
        State.VERIFYING: "which is built and being verified",
    }.get(task.state, str(task.state))


def _obstacle(scheduler: Scheduler, worker: Worker, task: Task, now: float) -> str:
    """Why a worker that could do a task does not begin it now."""
    if worker.draining:
        return "draining"
    if worker.drained:
        return "drained by an operator"
    if worker.refusing:
        return f"takes nothing at present: {worker.refusing}"
    if now - worker.heard > scheduler.limits.stale:
        return f"not heard of for {now - worker.heard:.0f} s"
    refusal = task.refusals.get(worker.name)
    if refusal is not None and now < refusal.until:
        again = f"asked again in {refusal.until - now:.0f} s"
        return f"refused it, {again}: {refusal.message}"
    if worker.rests_until > now:
        return resting(worker, now)
    if not worker.room:
        return "busy"
    if worker.name in task.faults:
        return f"was unable to do it: {task.faults[worker.name]}"
    return "free, and about to get it"


def resting(worker: Worker, now: float) -> str:
    """Why a worker rests."""
    told = f"rests for {worker.rests_until - now:.0f} s"
    return f"{told} after {worker.faults} faults in a row" if worker.faults else told
