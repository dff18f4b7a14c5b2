"""Explains in whole sentences why a task or request waits.

`why` always gives a reason, the most important first.  Nothing here changes a table.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from heapq import heappop
from itertools import islice

import msgspec

from fabric.scheduling.model import Request, Task, Worker
from fabric.scheduling.queues import order_of
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import PRESENT, State
from fabric.wire.messages import ARCHITECTURE

#: Dependencies, or workers, that are listed one by one, at most.
MANY = 8
#: Steps of a queue, and workers, that are looked at for a line about a request, at most: there may
#: be as many requests as steps in the queue.
BRIEF = 100


class Why(msgspec.Struct, frozen=True):
    """The state of a task, and the reasons why it waits."""

    key: str
    name: str
    state: str  # as in `states.State`, or "unknown"
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} is {self.state}: " + "; ".join(self.reasons)


def why(state: FarmState, key: str, now: float) -> Why:
    """The reasons why a task waits."""
    task = state.tasks.get(key)
    if task is None:
        return Why(key, key[:12], "unknown", ("no request needs it now",))
    reasons = _REASONS[task.state]
    return Why(key, task.spec.name, task.state.value, tuple(reasons(state, task, now)))


def _briefly_why(state: FarmState, task: Task, now: float) -> Why:
    """The same, at a cost that depends neither on the queue nor on the number of workers."""
    if task.state is not State.READY:
        return why(state, task.key, now)
    return Why(task.key, task.spec.name, "ready", tuple(_ready(state, task, now, BRIEF)))


def why_request(state: FarmState, request: Request, now: float) -> str:
    """Why nothing of a request runs; "" if something does, or it is over.

    The cost depends neither on the size of the request nor on that of the farm.
    """
    if request.over or request.running:
        return ""
    if request.state == "resolving":
        return f"its definitions are being resolved, for {now - request.since:.1f} s"
    task = _awaited(state, request)
    if task is None:
        return ""
    first_query = task.state is State.ASKING and not task.unanswered
    if first_query and not state.under_inspection(task.key):
        return ""
    return str(_briefly_why(state, task, now))


def warning(state: FarmState, request: Request, now: float) -> str:
    """The action that a request needs from somebody to go on; "" if none is known.

    The text is the same as long as the reason is.
    """
    if request.over or request.running:
        return ""
    task = _awaited(state, request)
    if task is None or task.state is not State.READY:
        return ""
    if not state.workers:
        starting = now < state.startup_until
        return "" if starting else f"{task.spec.name} waits: there is no worker"
    pool = state.queues.find(task.spec)
    if pool is None or pool.members:
        return ""
    limit = state.limits.unserved
    until = f"; it fails unless one comes within {limit:.0f} s" if limit else ""
    reasons = "; ".join(unfit(task, state.workers.values()))
    return f"{task.spec.name} waits: no worker is able to do it: {reasons}{until}"


def unfit(task: Task, workers: Collection[Worker]) -> list[str]:
    """Why each of some workers can never do a task."""
    lines = [f"{worker.name}: {_unfit(worker, task)}" for worker in islice(workers, MANY)]
    if len(workers) > MANY:
        lines.append(f"and {len(workers) - MANY} more workers")
    return lines


def _unfit(worker: Worker, task: Task) -> str:
    others = sorted(one for one in worker.features if one.startswith(ARCHITECTURE))
    built = [worker.arch, *(one.removeprefix(ARCHITECTURE) for one in others)]
    if task.spec.arch not in built:
        return f"it builds {', '.join(built)}, not {task.spec.arch}"
    lacks = [need for need in task.spec.needs if need not in worker.features]
    return f"it lacks {', '.join(lacks)}"


def _awaited(state: FarmState, request: Request) -> Task | None:
    """The step that a request waits for, if nothing of it runs."""
    task = first(state, request)
    while task is not None and task.state is State.BLOCKED:
        below = next(iter(_missing(state, task)), None)
        if below is None:
            break
        task = below
    return task


def first(state: FarmState, request: Request) -> Task | None:
    """Of all tasks that a request waits for, the one with the longest path to the end."""
    while request.longest:
        task = state.tasks.get(request.longest[0][1])
        if task is not None and request.id in task.requests and task.state not in PRESENT:
            return task
        heappop(request.longest)
    return None


def history(task: Task) -> str:
    """All transitions of a task, one a line, with seconds since the first."""
    start = task.history[0].at if task.history else 0.0
    lines = [f"{task.spec.name} ({task.key[:12]})"]
    for line in task.history:
        detail = f" ({line.detail})" if line.detail else ""
        lines.append(f"  {line.at - start:+9.3f} s  {line.state:<9}  {line.cause}{detail}")
    return "\n".join(lines)


def _asking(state: FarmState, task: Task, now: float) -> list[str]:
    since = f", for {now - task.history[-1].at:.1f} s" if task.history else ""
    if state.under_inspection(task.key):
        worker = task.history[-1].detail if task.history else "a worker"
        return [f"{worker} found it damaged; the artifact store inspects it{since}"]
    reasons = [f"the artifact store is asked whether it has it{since}"]
    if task.unanswered:
        last = task.history[-1].detail
        reasons.append(f"it failed to answer {task.unanswered} times: {last}")
    return reasons


def _comparing(_: FarmState, task: Task, now: float) -> list[str]:
    since = now - task.history[-1].at
    return [f"the artifact store looks for a step with equal contents, for {since:.1f} s"]


def _blocked(state: FarmState, task: Task, now: float) -> list[str]:
    reasons = []
    missing = list(_missing(state, task))
    # A dependency that is being worked on explains more than one that waits itself.
    missing.sort(key=lambda each: (each.state in (State.BLOCKED, State.ASKING), each.number))
    for dependency in missing[:MANY]:
        reasons.append(f"it needs {dependency.spec.name}, {_briefly(dependency, now)}")
    if len(missing) > MANY:
        reasons.append(f"and {len(missing) - MANY} more")
    for attempt in state.dying.get(task.key, {}).values():
        reasons.append(
            f"an earlier attempt on {attempt.worker}, no longer wanted, has not ended yet"
        )
    return reasons


def _ready(state: FarmState, task: Task, now: float, most: int = sys.maxsize) -> list[str]:
    """``most``: steps of the queue, and workers, that are looked at."""
    if not state.workers:
        return ["workers are starting" if now < state.startup_until else "there is no worker"]
    if now < state.dispatch_from:
        left = state.dispatch_from - now
        return [f"the broker has just started: workers have {left:.1f} s to say what they run"]
    pool = state.queues.find(task.spec)
    if pool is None or all(request.state == "checking" for request in task.requests.values()):
        return ["the artifact store is still asked what else has to be built"]
    if not pool.members:
        return ["no worker is able to do it", *unfit(task, state.workers.values())]
    queue = f"in the queue of {len(pool.members)} workers that can do it"
    if any(islice(pool.queued(), most, None)):
        reasons = [f"it is one of more than {most} steps {queue}"]
    else:
        place = order_of(task, now)
        ahead = {other.key for order, other in pool.waiting(now) if order < place}
        reasons = [f"it is number {len(ahead) + 1} {queue}"]
    obstacles: dict[str, list[str]] = {}
    for worker in map(state.workers.__getitem__, islice(pool.members, most)):
        obstacles.setdefault(_obstacle(state, worker, task, now), []).append(worker.name)
    for obstacle, names in obstacles.items():
        more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
        reasons.append(f"{', '.join(names[:MANY])}{more}: {obstacle}")
    if len(pool.members) > most:
        reasons.append(f"and {len(pool.members) - most} more workers")
    return reasons


def _running(_: FarmState, task: Task, now: float) -> list[str]:
    return [_briefly(task, now)]


def _present(_: FarmState, task: Task, __: float) -> list[str]:
    built = f", built by {task.builder}" if task.state is State.DONE else ""
    return [f"the artifact store has it{built}"]


_REASONS = {
    State.ASKING: _asking,
    State.BLOCKED: _blocked,
    State.COMPARING: _comparing,
    State.READY: _ready,
    State.RUNNING: _running,
    State.VERIFYING: _asking,
    State.CACHED: _present,
    State.DONE: _present,
}


def _missing(state: FarmState, task: Task) -> list[Task]:
    if not task.missing:
        return []
    found = (state.tasks.get(key) for key in dict.fromkeys(task.spec.depends))
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
        State.COMPARING: "for which the store looks for equal contents",
        State.READY: "which waits for a worker",
        State.VERIFYING: "which is built and being verified",
    }.get(task.state, str(task.state))


def _obstacle(state: FarmState, worker: Worker, task: Task, now: float) -> str:
    """Why a worker that is able to do a task does not begin it now."""
    if worker.draining:
        return "draining"
    if worker.drained:
        return "drained by an operator"
    if worker.refusing:
        return f"takes nothing at present: {worker.refusing}"
    if now - worker.heard > state.limits.stale:
        return f"not heard of for {now - worker.heard:.0f} s"
    refusal = task.refusals.get(worker.name)
    if refusal is not None and now < refusal.until:
        again = f"asked again in {refusal.until - now:.0f} s"
        return f"refused it, {again}: {refusal.message}"
    if worker.name == task.first and worker.name in task.avoid:
        return "built it the first time, and another one is able to build it once more"
    if worker.backoff_until > now:
        return backing_off(worker, now)
    if not worker.room:
        return "busy"
    if worker.name in task.faults:
        return f"was unable to do it: {task.faults[worker.name]}"
    return "free, and about to get it"


def backing_off(worker: Worker, now: float) -> str:
    """Why a worker is assigned nothing for a while."""
    pause = f"rests for {worker.backoff_until - now:.0f} s"
    return f"{pause} after {worker.faults} faults in a row" if worker.faults else pause
