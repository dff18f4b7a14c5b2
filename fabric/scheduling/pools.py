"""Which ready task goes to which worker.

A *pool* is one set of needs (architecture and features): the tasks that have it, the workers
that meet it.  There are few pools, and every step here costs the same however many tasks wait.

Requesters share the workers, and the requests of each share what it gets (`shares`).  Of a
request, the task with the longest way to the end comes first, and then the older task.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from heapq import heappop, heappush

import msgspec

from fabric.scheduling.model import Limits, Request, Task, Worker
from fabric.scheduling.states import State
from fabric.wire.messages import Offer

#: (load of the requester, its number, load of the request, its number): least first.
Standing = tuple[float, int, float, int]
#: (standing of the request, -rank, the task's number): least first.
Order = tuple[Standing, float, int]


class Match(msgspec.Struct, frozen=True, gc=False):
    task: Task
    worker: Worker
    request: Request

    def order(self, now: float) -> Order:
        return _order(self.task, self.request, now)


class Pool:
    """Ready tasks and workers for one set of needs."""

    def __init__(self, arch: str, needs: frozenset[str], limits: Limits) -> None:
        self.arch = arch
        self.needs = needs
        self.members: dict[str, Worker] = {}
        self._limits = limits
        #: request's number -> (the request, heap of its ready tasks).  Tasks that are ready no
        #: more are thrown out when they reach the top.
        self._queues: dict[int, tuple[Request, list[tuple[float, int, int, Task]]]] = {}
        #: ready tasks that some machine was unable to do; few
        self._choosy: dict[str, Task] = {}
        self._pushes = 0
        #: load -> workers with room that carry it, longest there first; none is empty
        self._by_load: dict[int, dict[str, Worker]] = {}
        self._load: dict[str, int] = {}

    def serves(self, worker: Worker) -> bool:
        """A worker may name further architectures among its features: "arch:x86_32"."""
        native = worker.arch == self.arch or f"arch:{self.arch}" in worker.features
        return native and self.needs <= worker.features

    # -- workers -----------------------------------------------------------------------

    def place(self, worker: Worker, now: float) -> bool:
        """Note how much room a member has; whether it has any."""
        load = len(worker.held) if worker.room and worker.rests_until <= now else -1
        if self._load.get(worker.name, -1) == load:
            return load >= 0
        self.unplace(worker)
        if load < 0:
            return False
        self._by_load.setdefault(load, {})[worker.name] = worker
        self._load[worker.name] = load
        return True

    def unplace(self, worker: Worker) -> None:
        load = self._load.pop(worker.name, None)
        if load is not None:
            del self._by_load[load][worker.name]
            if not self._by_load[load]:
                del self._by_load[load]

    def _freest(self, now: float, avoid: Container[str] = ()) -> Worker | None:
        """The least loaded worker with room that is not to be avoided."""
        for load in sorted(self._by_load):
            for worker in self._by_load[load].values():
                if now - worker.heard > self._limits.stale:
                    continue
                if worker.name not in avoid:
                    return worker
        return None

    # -- tasks -------------------------------------------------------------------------

    def push(self, task: Task, request: Request) -> None:
        """Queue a ready task on behalf of one of those who want it."""
        if task.choosy:
            self._choosy[task.key] = task
            return
        self._pushes += 1
        entry = (-request.ranks.get(task.key, 0.0), task.number, self._pushes, task)
        queue = self._queues.get(request.share.number)
        if queue is None:
            self._queues[request.share.number] = (request, [entry])
        else:
            heappush(queue[1], entry)

    def next(self, now: float) -> tuple[Task, Request] | None:
        """The ready task that comes first, and for whom."""
        best: tuple[float, ...] = ()
        chosen: tuple[Task, Request] | None = None
        several = len(self._queues) > 1
        for number, (request, heap) in list(self._queues.items()):
            standing = _standing(request, now) if several else ()
            if chosen is not None and best < standing:
                continue
            while heap and not _waits(heap[0][3], request):
                heappop(heap)
            if heap:
                best, chosen = standing, (heap[0][3], request)
            else:
                del self._queues[number]
        return chosen

    def match(self, now: float) -> Match | None:
        """The task that comes first with a worker for it; None if nothing can be matched."""
        worker = self._freest(now)
        if worker is None:
            return None
        found = None
        first = self.next(now)
        if first is not None:
            found = Match(first[0], worker, first[1])
        for task in list(self._choosy.values()):
            if task.state is not State.READY or not task.requests:
                del self._choosy[task.key]
                continue
            order, request = _best(task, now)
            if found is None or order < found.order(now):
                other = self.worker_for(task, now)
                if other is not None:
                    found = Match(task, other, request)
        return found

    def worker_for(self, task: Task, now: float) -> Worker | None:
        """A worker with room: one that has not been unable to do it, as long as there is hope."""
        shunned = {name for name, refusal in task.refusals.items() if now < refusal.until}
        return self._freest(now, shunned | task.faults.keys() if self.hope(task) else shunned)

    def hope(self, task: Task) -> bool:
        """Whether some worker may yet do a task that others were unable to do."""
        return any(
            worker.open
            and name not in task.faults
            and (name not in task.refusals or task.refusals[name].count < self._limits.refusals)
            for name, worker in self.members.items()
        )

    def waiting(self, now: float) -> Iterator[tuple[Order, Task]]:
        """All ready tasks, in no order, some more than once.  For `why`, not for dispatch."""
        for request, heap in self._queues.values():
            for entry in heap:
                if _waits(entry[3], request):
                    yield _best(entry[3], now)[0], entry[3]
        for task in self._choosy.values():
            if task.state is State.READY and task.requests:
                yield _best(task, now)[0], task

    def queued(self) -> Iterator[tuple[str, str]]:
        """(key, request id) of all that waits, for tests."""
        for request, heap in self._queues.values():
            yield from ((entry[3].key, request.id) for entry in heap if _waits(entry[3], request))
        for task in self._choosy.values():
            yield from ((task.key, request) for request in task.requests)


class Pools:
    """All pools, and which of them might have a match."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pools: dict[tuple[str, tuple[str, ...]], Pool] = {}
        self._of: dict[str, list[Pool]] = {}
        self._workers: dict[str, Worker] = {}
        self._stirred: dict[Pool, None] = {}

    def all(self) -> Iterable[Pool]:
        return self._pools.values()

    def of(self, offer: Offer, now: float) -> Pool:
        """The pool of tasks such as this."""
        pool = self._pools.get((offer.arch, offer.needs))
        if pool is None:
            pool = Pool(offer.arch, frozenset(offer.needs), self._limits)
            self._pools[offer.arch, offer.needs] = pool
            for worker in self._workers.values():
                if pool.serves(worker):
                    pool.members[worker.name] = worker
                    pool.place(worker, now)
                    self._of[worker.name].append(pool)
        return pool

    def join(self, worker: Worker) -> None:
        """A worker registered, or changed what it is."""
        self.leave(worker)
        self._workers[worker.name] = worker
        self._of[worker.name] = [pool for pool in self._pools.values() if pool.serves(worker)]
        for pool in self._of[worker.name]:
            pool.members[worker.name] = worker

    def leave(self, worker: Worker) -> None:
        for pool in self._of.pop(worker.name, ()):
            pool.unplace(worker)
            del pool.members[worker.name]
            self._stirred[pool] = None  # a task may have waited for just this one
        self._workers.pop(worker.name, None)

    def place(self, worker: Worker, now: float) -> None:
        """A worker's room may have changed."""
        for pool in self._of.get(worker.name, ()):
            if pool.place(worker, now):
                self._stirred[pool] = None

    def push(self, task: Task, request: Request, now: float) -> None:
        pool = self.of(task.offer, now)
        pool.push(task, request)
        self._stirred[pool] = None

    def urgent(self, task: Task, now: float) -> bool:
        """Whether a task, once ready, would come before all that is ready now."""
        first = self.of(task.offer, now).next(now)
        return first is not None and order_of(task, now) < _order(*first, now)

    def hope(self, task: Task, now: float) -> bool:
        """Whether some worker may yet do a task that others were unable to do."""
        return self.of(task.offer, now).hope(task)

    def stir(self, task: Task, now: float) -> None:
        """A ready task may find a worker now, for whatever reason."""
        self._stirred[self.of(task.offer, now)] = None

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
    return _best(task, now)[0]


def _best(task: Task, now: float) -> tuple[Order, Request]:
    """Where a task stands, and the request that brings it there."""
    return min((_order(task, each, now), each) for each in task.requests.values())


def _order(task: Task, request: Request, now: float) -> Order:
    """Where a task stands on behalf of one of those who want it."""
    return (_standing(request, now), -request.ranks.get(task.key, 0.0), task.number)


def _standing(request: Request, now: float) -> Standing:
    share, mine = request.requester.share, request.share
    return (share.load(now), share.number, mine.load(now), mine.number)


def _waits(task: Task, request: Request) -> bool:
    """Whether a queue's entry still counts."""
    ready = task.state is State.READY and not task.choosy
    return ready and task.requests.get(request.id) is request
