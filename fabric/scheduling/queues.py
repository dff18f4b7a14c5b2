"""Matches ready tasks with workers.

A *pool* is one set of needs (architecture and features) with the tasks that have these needs and
the workers that meet them.  There are few pools with tasks, and the cost of a match does not
depend on the number of tasks that wait.

Requesters share the workers, and the requests of each share its part (`shares`).  Within a
request, the task with the largest rank comes first, and of equal ones the older task.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from heapq import heappop, heappush

import msgspec

from fabric.scheduling.model import Limits, Request, Task, Worker
from fabric.scheduling.states import State
from fabric.scheduling.turns import Turns
from fabric.wire.messages import ARCHITECTURE, StepSpec

#: (load of the requester, its number, load of the request, its number): least first.
Standing = tuple[float, int, float, int]
#: (standing of the request, -rank, the task's number): least first.
Order = tuple[Standing, float, int]
#: (-rank, the task's number, a number of its own, the task): least first.
Entry = tuple[float, int, int, Task]

#: Workers to avoid: none.
NOBODY: frozenset[str] = frozenset()
#: Pools that are kept whether they have tasks or not.
FEW = 64


class Match(msgspec.Struct, frozen=True, gc=False):
    task: Task
    worker: str
    request: Request

    def order(self, now: float) -> Order:
        return _order(self.task, self.request, now)


class Queue:
    """Ready tasks with the same workers to avoid: most often none."""

    __slots__ = ("_requesters", "avoid")

    def __init__(self, avoid: frozenset[str]) -> None:
        self.avoid = avoid
        #: requesters -> their requests -> (the request, heap of its ready tasks).  Entries of tasks
        #: that are no longer ready are removed when they reach the top.
        self._requesters: Turns[Turns[tuple[Request, list[Entry]]]] = Turns()

    def push(self, task: Task, request: Request, number: int, now: float) -> None:
        entry = (-request.ranks.get(task.key, 0.0), task.number, number, task)
        share = request.requester.share
        requests = self._requesters.get(share)
        if requests is None:
            requests = Turns()
            self._requesters.add(share, requests, now)
        known = requests.get(request.share)
        if known is None:
            requests.add(request.share, (request, [entry]), now)
        else:
            heappush(known[1], entry)

    def moved(self, request: Request, now: float) -> None:
        """The loads of a request and its requester may have fallen."""
        requests = self._requesters.get(request.requester.share)
        if requests is not None:
            self._requesters.moved(request.requester.share, now)
            requests.moved(request.share, now)

    def next(self, now: float) -> tuple[Task, Request] | None:
        """The ready task that comes first, and the request that it is for."""
        while (requester := self._requesters.first(now)) is not None:
            while (first := requester[1].first(now)) is not None:
                request, heap = first[1]
                while heap and not self._waits(heap[0][3], request):
                    heappop(heap)
                if heap:
                    return heap[0][3], request
                requester[1].remove(first[0])
            self._requesters.remove(requester[0])
        return None

    def all(self) -> Iterator[tuple[Task, Request]]:
        """All tasks that wait here, in no order."""
        for requests in self._requesters.all():
            for request, heap in requests.all():
                for entry in heap:
                    if self._waits(entry[3], request):
                        yield entry[3], request

    def _waits(self, task: Task, request: Request) -> bool:
        """Whether an entry still counts."""
        here = task.state is State.READY and task.avoid == self.avoid
        return here and task.requests.get(request.id) is request


class Pool:
    """Ready tasks and workers for one set of needs.  ``workers`` is the table of all workers."""

    def __init__(
        self,
        arch: str,
        needs: frozenset[str],
        limits: Limits,
        workers: Mapping[str, Worker],
        now: float,
    ) -> None:
        self.arch = arch
        self.needs = needs
        self.members: dict[str, None] = {}  # names of workers
        self.empty_since = now  # if it has no members
        self._limits = limits
        self._workers = workers
        self._queues: dict[frozenset[str], Queue] = {NOBODY: Queue(NOBODY)}
        self._restricted: dict[str, Task] = {}  # ready tasks with refusals or faults
        self._pushes = 0
        #: load -> names of workers with room that carry it, longest there first; none is empty
        self._by_load: dict[int, dict[str, None]] = {}
        self._load: dict[str, int] = {}

    def serves(self, worker: Worker) -> bool:
        """Whether a worker is able to do these tasks."""
        native = worker.arch == self.arch or ARCHITECTURE + self.arch in worker.features
        return native and self.needs <= worker.features

    # -- workers -----------------------------------------------------------------------

    def update_room(self, worker: Worker, now: float) -> bool:
        """Record how much room a member has; returns whether it has any."""
        name = worker.name
        load = len(worker.held) if worker.room and worker.backoff_until <= now else -1
        if self._load.get(name, -1) == load:
            return load >= 0
        self.remove_room(name)
        if load < 0:
            return False
        self._by_load.setdefault(load, {})[name] = None
        self._load[name] = load
        return True

    def remove_room(self, name: str) -> None:
        load = self._load.pop(name, None)
        if load is not None:
            del self._by_load[load][name]
            if not self._by_load[load]:
                del self._by_load[load]

    def _freest(self, now: float, avoid: Container[str] = ()) -> str | None:
        """The least loaded worker with room that is not to be avoided."""
        for load in sorted(self._by_load):
            for name in self._by_load[load]:
                if now - self._workers[name].heard > self._limits.stale:
                    continue
                if name not in avoid:
                    return name
        return None

    # -- tasks -------------------------------------------------------------------------

    def push(self, task: Task, request: Request, now: float) -> None:
        """Queue a ready task on behalf of one of the requests that want it."""
        if task.restricted:
            self._restricted[task.key] = task
            if self.update_avoid(task, now):
                return
        self._push(task, request, now)

    def _push(self, task: Task, request: Request, now: float) -> None:
        self._pushes += 1
        queue = self._queues.get(task.avoid)
        if queue is None:
            queue = self._queues[task.avoid] = Queue(task.avoid)
        queue.push(task, request, self._pushes, now)

    def update_all(self, now: float) -> None:
        """Determine anew which workers each restricted task avoids."""
        for key, task in list(self._restricted.items()):
            if task.state is State.READY and task.requests:
                self.update_avoid(task, now)
            else:
                del self._restricted[key]

    def update_avoid(self, task: Task, now: float) -> bool:
        """Determine which workers a task avoids; returns whether it was queued anew for that."""
        refused = {name for name, refusal in task.refusals.items() if now < refusal.until}
        candidates = set(self._candidates(task))
        avoid = frozenset(refused | task.faults.keys() if candidates else refused)
        if task.first and candidates - {task.first}:  # it may give the same wrong bytes twice
            avoid |= {task.first}
        if avoid == task.avoid:
            return False
        task.avoid = avoid
        for request in task.requests.values():
            if request.state == "building":
                self._push(task, request, now)
        return True

    def moved(self, request: Request, now: float) -> None:
        """The loads of a request and its requester may have fallen."""
        for queue in self._queues.values():
            queue.moved(request, now)

    def next(self, now: float) -> tuple[Task, Request] | None:
        """The first of the tasks that any worker may do, and the request that it is for."""
        return self._queues[NOBODY].next(now)

    def match(self, now: float) -> Match | None:
        """The task that comes first with a worker for it; None if nothing can be matched."""
        if not self._by_load:
            return None
        best: Match | None = None
        for avoid, queue in list(self._queues.items()):
            worker = self._freest(now, avoid)
            if worker is None:
                continue
            first = queue.next(now)
            if first is None:
                if avoid:
                    del self._queues[avoid]
                continue
            found = Match(first[0], worker, first[1])
            if best is None or found.order(now) < best.order(now):
                best = found
        return best

    def oldest(self, now: float) -> Task | None:
        """Of the first tasks of each queue, the one that has been ready longest."""
        firsts = (queue.next(now) for queue in self._queues.values())
        tasks = (first[0] for first in firsts if first is not None)
        return min(tasks, key=lambda task: task.history[-1].at, default=None)

    def has_candidate(self, task: Task) -> bool:
        """Whether some worker may yet do a task that others were unable to do."""
        return next(self._candidates(task), None) is not None

    def _candidates(self, task: Task) -> Iterator[str]:
        for name in self.members:
            often = name in task.refusals and (task.refusals[name].count >= self._limits.refusals)
            if self._workers[name].open and name not in task.faults and not often:
                yield name

    def waiting(self, now: float) -> Iterator[tuple[Order, Task]]:
        """All ready tasks, in no order, some more than once.  For `explain`, not for dispatch."""
        for task, _ in self.queued():
            yield order_of(task, now), task

    def queued(self) -> Iterator[tuple[Task, Request]]:
        """All ready tasks, each for all requests that want it, in no order."""
        for queue in self._queues.values():
            yield from queue.all()


class Queues:
    """All pools that have tasks, and which of them may have a match.

    ``workers`` is the table of all workers.
    """

    def __init__(self, limits: Limits, workers: Mapping[str, Worker]) -> None:
        self._limits = limits
        self._pools: dict[tuple[str, tuple[str, ...]], Pool] = {}
        self._of: dict[str, list[Pool]] = {}
        self._workers = workers
        self._dirty: dict[Pool, None] = {}
        self._most = FEW  # pools; with one more, those without tasks are removed

    def all(self) -> list[Pool]:
        return list(self._pools.values())

    def find(self, spec: StepSpec) -> Pool | None:
        """The pool of a step, for those who only read; None if no such step has waited lately."""
        return self._pools.get((spec.arch, spec.needs))

    def _pool_of(self, spec: StepSpec, now: float) -> Pool:
        """The pool of a step, which is made if there is none."""
        pool = self.find(spec)
        if pool is None:
            if len(self._pools) >= self._most:
                self._remove_unused(now)
            pool = Pool(spec.arch, frozenset(spec.needs), self._limits, self._workers, now)
            self._pools[spec.arch, spec.needs] = pool
            for name, pools in self._of.items():
                worker = self._workers[name]
                if pool.serves(worker):
                    pool.members[name] = None
                    pool.update_room(worker, now)
                    pools.append(pool)
        return pool

    def _remove_unused(self, now: float) -> None:
        """Remove pools without tasks, so that what orders once named costs nothing for ever."""
        self._pools = {
            needs: pool for needs, pool in self._pools.items() if pool.oldest(now) is not None
        }
        self._most = max(FEW, 2 * len(self._pools))
        kept = set(self._pools.values())
        self._dirty = {pool: None for pool in self._dirty if pool in kept}
        for name, pools in self._of.items():
            self._of[name] = [pool for pool in pools if pool in kept]

    def join(self, worker: Worker, now: float) -> None:
        """A worker registered, or what it is able to do changed."""
        self.leave(worker.name, now)
        self._of[worker.name] = [pool for pool in self._pools.values() if pool.serves(worker)]
        for pool in self._of[worker.name]:
            pool.members[worker.name] = None
            pool.update_all(now)

    def leave(self, name: str, now: float) -> None:
        for pool in self._of.pop(name, ()):
            pool.remove_room(name)
            del pool.members[name]
            if not pool.members:
                pool.empty_since = now
            pool.update_all(now)
            self._dirty[pool] = None  # a task may have waited for this worker only

    def update_room(self, name: str, now: float) -> None:
        """The room of a worker may have changed."""
        for pool in self._of.get(name, ()):
            if pool.update_room(self._workers[name], now):
                self._dirty[pool] = None

    def push(self, task: Task, request: Request, now: float) -> None:
        pool = self._pool_of(task.spec, now)
        pool.push(task, request, now)
        self._dirty[pool] = None

    def moved(self, request: Request, now: float) -> None:
        """The loads of a request and its requester may have fallen."""
        for pool in self._pools.values():
            pool.moved(request, now)

    def would_be_first(self, task: Task, now: float) -> bool:
        """Whether a task, once ready, would come before all that is ready now."""
        pool = self.find(task.spec)
        first = None if pool is None else pool.next(now)
        return first is not None and order_of(task, now) < _order(*first, now)

    def has_candidate(self, task: Task, now: float) -> bool:
        """Whether some worker may yet do a task that others were unable to do."""
        return self._pool_of(task.spec, now).has_candidate(task)

    def update_avoid(self, task: Task, now: float) -> None:
        """The workers that a ready task avoids may have changed."""
        pool = self._pool_of(task.spec, now)
        if pool.update_avoid(task, now):
            self._dirty[pool] = None

    def match(self, now: float) -> Match | None:
        """The best match of all pools; None if there is none."""
        best: Match | None = None
        for pool in list(self._dirty):
            found = pool.match(now)
            if found is None:
                del self._dirty[pool]
            elif best is None or found.order(now) < best.order(now):
                best = found
        return best


def order_of(task: Task, now: float) -> Order:
    """The place of a ready task among others.  Only tasks of one pool compare."""
    return min(_order(task, each, now) for each in task.requests.values())


def _order(task: Task, request: Request, now: float) -> Order:
    """The place of a task on behalf of one of the requests that want it."""
    return (_standing(request, now), -request.ranks.get(task.key, 0.0), task.number)


def _standing(request: Request, now: float) -> Standing:
    requester, share = request.requester.share, request.share
    return (requester.load(now), requester.number, share.load(now), share.number)
