"""Which ready task goes to which worker.

A *pool* is one set of needs (architecture and features): the tasks that have it, the workers
that meet it.  There are few pools, and every step here costs the same however many tasks wait.

Requesters share the workers, and the requests of each share what it gets (`shares`).  Of a
request, the task with the longest way to the end comes first, and then the older task.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from heapq import heappop, heappush

import msgspec

from fabric.scheduling.model import Limits, Request, Task, Worker
from fabric.scheduling.states import State
from fabric.wire.messages import ARCHITECTURE, StepSpec

#: (load of the requester, its number, load of the request, its number): least first.
Standing = tuple[float, int, float, int]
#: (standing of the request, -rank, the task's number): least first.
Order = tuple[Standing, float, int]
#: (-rank, the task's number, a number of its own, the task): least first.
Entry = tuple[float, int, int, Task]

#: Workers to avoid: none.
NOBODY: frozenset[str] = frozenset()


class Match(msgspec.Struct, frozen=True, gc=False):
    task: Task
    worker: str
    request: Request

    def order(self, now: float) -> Order:
        return _order(self.task, self.request, now)


class Queue:
    """Ready tasks that the same workers are to be avoided for: most often none."""

    __slots__ = ("_heaps", "avoid")

    def __init__(self, avoid: frozenset[str]) -> None:
        self.avoid = avoid
        #: request's number -> (the request, heap of its ready tasks).  Tasks that are ready no
        #: more are thrown out when they reach the top.
        self._heaps: dict[int, tuple[Request, list[Entry]]] = {}

    def push(self, task: Task, request: Request, number: int) -> None:
        entry = (-request.ranks.get(task.key, 0.0), task.number, number, task)
        known = self._heaps.get(request.share.number)
        if known is None:
            self._heaps[request.share.number] = (request, [entry])
        else:
            heappush(known[1], entry)

    def next(self, now: float) -> tuple[Task, Request] | None:
        """The ready task that comes first, and for whom."""
        best: tuple[float, ...] = ()
        chosen: tuple[Task, Request] | None = None
        several = len(self._heaps) > 1
        for number, (request, heap) in list(self._heaps.items()):
            standing = _standing(request, now) if several else ()
            if chosen is not None and best < standing:
                continue
            while heap and not self._waits(heap[0][3], request):
                heappop(heap)
            if heap:
                best, chosen = standing, (heap[0][3], request)
            else:
                del self._heaps[number]
        return chosen

    def all(self) -> Iterator[tuple[Task, Request]]:
        """All that waits here, in no order."""
        for request, heap in self._heaps.values():
            for entry in heap:
                if self._waits(entry[3], request):
                    yield entry[3], request

    def _waits(self, task: Task, request: Request) -> bool:
        """Whether an entry still counts."""
        here = task.state is State.READY and task.avoid == self.avoid
        return here and task.requests.get(request.id) is request


class Pool:
    """Ready tasks and workers for one set of needs.  ``workers`` is the table of all."""

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
        #: ready tasks that some machine was unable to do
        self._choosy: dict[str, Task] = {}
        self._pushes = 0
        #: load -> names of workers with room that carry it, longest there first; none is empty
        self._by_load: dict[int, dict[str, None]] = {}
        self._load: dict[str, int] = {}

    def serves(self, worker: Worker) -> bool:
        """Whether a worker is able to do these tasks."""
        native = worker.arch == self.arch or ARCHITECTURE + self.arch in worker.features
        return native and self.needs <= worker.features

    # -- workers -----------------------------------------------------------------------

    def place(self, worker: Worker, now: float) -> bool:
        """Note how much room a member has; whether it has any."""
        name = worker.name
        load = len(worker.held) if worker.room and worker.rests_until <= now else -1
        if self._load.get(name, -1) == load:
            return load >= 0
        self.unplace(name)
        if load < 0:
            return False
        self._by_load.setdefault(load, {})[name] = None
        self._load[name] = load
        return True

    def unplace(self, name: str) -> None:
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
        """Queue a ready task on behalf of one of those who want it."""
        if task.choosy:
            self._choosy[task.key] = task
            if self.choose(task, now):
                return
        self._push(task, request)

    def _push(self, task: Task, request: Request) -> None:
        self._pushes += 1
        queue = self._queues.get(task.avoid)
        if queue is None:
            queue = self._queues[task.avoid] = Queue(task.avoid)
        queue.push(task, request, self._pushes)

    def choose_all(self, now: float) -> None:
        """Look anew at which workers may do what some machine was unable to do."""
        for key, task in list(self._choosy.items()):
            if task.state is State.READY and task.requests:
                self.choose(task, now)
            else:
                del self._choosy[key]

    def choose(self, task: Task, now: float) -> bool:
        """Note which workers a task is not for now; True if it is queued anew for that."""
        shunned = {name for name, refusal in task.refusals.items() if now < refusal.until}
        avoid = frozenset(shunned | task.faults.keys() if self.hope(task) else shunned)
        if avoid == task.avoid:
            return False
        task.avoid = avoid
        for request in task.requests.values():
            if request.state == "building":
                self._push(task, request)
        return True

    def next(self, now: float) -> tuple[Task, Request] | None:
        """The task that comes first of those that any worker may do, and for whom."""
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
        """Of the tasks that come first for each kind of workers, the one that is ready longest."""
        firsts = (queue.next(now) for queue in self._queues.values())
        tasks = (first[0] for first in firsts if first is not None)
        return min(tasks, key=lambda task: task.story[-1].at, default=None)

    def hope(self, task: Task) -> bool:
        """Whether some worker may yet do a task that others were unable to do."""
        return any(
            self._workers[name].open
            and name not in task.faults
            and (name not in task.refusals or task.refusals[name].count < self._limits.refusals)
            for name in self.members
        )

    def waiting(self, now: float) -> Iterator[tuple[Order, Task]]:
        """All ready tasks, in no order, some more than once.  For `why`, not for dispatch."""
        for task, _ in self.queued():
            yield order_of(task, now), task

    def queued(self) -> Iterator[tuple[Task, Request]]:
        """All ready tasks, each for all who want it, in no order."""
        for queue in self._queues.values():
            yield from queue.all()


class Pools:
    """All pools, and which of them might have a match.  ``workers`` is the table of all."""

    def __init__(self, limits: Limits, workers: Mapping[str, Worker]) -> None:
        self._limits = limits
        self._pools: dict[tuple[str, tuple[str, ...]], Pool] = {}
        self._of: dict[str, list[Pool]] = {}
        self._workers = workers
        self._stirred: dict[Pool, None] = {}

    def all(self) -> Iterable[Pool]:
        return self._pools.values()

    def of(self, offer: StepSpec, now: float) -> Pool:
        """The pool of tasks such as this."""
        pool = self._pools.get((offer.arch, offer.needs))
        if pool is None:
            pool = Pool(offer.arch, frozenset(offer.needs), self._limits, self._workers, now)
            self._pools[offer.arch, offer.needs] = pool
            for name, pools in self._of.items():
                worker = self._workers[name]
                if pool.serves(worker):
                    pool.members[name] = None
                    pool.place(worker, now)
                    pools.append(pool)
        return pool

    def join(self, worker: Worker, now: float) -> None:
        """A worker registered, or changed what it is."""
        self.leave(worker.name, now)
        self._of[worker.name] = [pool for pool in self._pools.values() if pool.serves(worker)]
        for pool in self._of[worker.name]:
            pool.members[worker.name] = None
            pool.choose_all(now)

    def leave(self, name: str, now: float) -> None:
        for pool in self._of.pop(name, ()):
            pool.unplace(name)
            del pool.members[name]
            if not pool.members:
                pool.empty_since = now
            pool.choose_all(now)
            self._stirred[pool] = None  # a task may have waited for just this one

    def place(self, name: str, now: float) -> None:
        """A worker's room may have changed."""
        for pool in self._of.get(name, ()):
            if pool.place(self._workers[name], now):
                self._stirred[pool] = None

    def push(self, task: Task, request: Request, now: float) -> None:
        pool = self.of(task.offer, now)
        pool.push(task, request, now)
        self._stirred[pool] = None

    def urgent(self, task: Task, now: float) -> bool:
        """Whether a task, once ready, would come before all that is ready now."""
        first = self.of(task.offer, now).next(now)
        return first is not None and order_of(task, now) < _order(*first, now)

    def hope(self, task: Task, now: float) -> bool:
        """Whether some worker may yet do a task that others were unable to do."""
        return self.of(task.offer, now).hope(task)

    def choose(self, task: Task, now: float) -> None:
        """A ready task may be for other workers now, for whatever reason."""
        pool = self.of(task.offer, now)
        if pool.choose(task, now):
            self._stirred[pool] = None

    def match(self, now: float) -> Match | None:
        """The best match of all pools; None once there is none."""
        best: Match | None = None
        for pool in list(self._stirred):
            found = pool.match(now)
            if found is None:
                del self._stirred[pool]
            elif best is None or found.order(now) < best.order(now):
                best = found
        return best


def order_of(task: Task, now: float) -> Order:
    """Where a ready task stands among others.  Only tasks of one pool compare."""
    return min(_order(task, each, now) for each in task.requests.values())


def _order(task: Task, request: Request, now: float) -> Order:
    """Where a task stands on behalf of one of those who want it."""
    return (_standing(request, now), -request.ranks.get(task.key, 0.0), task.number)


def _standing(request: Request, now: float) -> Standing:
    share, mine = request.requester.share, request.share
    return (share.load(now), share.number, mine.load(now), mine.number)
