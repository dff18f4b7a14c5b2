"""What requests want of tasks: what is needed, what is finished, what nobody wants.

Work goes from the goals downwards.  A task exists because some request needs it; it asks the
store first, and only if its artifact is absent do its dependencies become tasks too.  What
became of a step, a request keeps for itself (``results``), so a task whose build failed leaves
no trace, and whoever asks later gets a new try.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappush

from fabric.scheduling import view
from fabric.scheduling.events import Abandon, Closed
from fabric.scheduling.ledger import Ledger
from fabric.scheduling.model import Attempt, Request, Task, Worker
from fabric.scheduling.states import PRESENT, Cause, State
from fabric.wire.messages import RequestState


class Interest(Ledger):
    """All that happens to the tables on behalf of requests."""

    __slots__ = ()

    # -- what is needed --------------------------------------------------------------------

    def need(self, request: Request, keys: Iterable[str]) -> None:
        """A request wants these artifacts, and whatever they turn out to need."""
        stack = list(keys)
        stack.reverse()
        while stack:
            key = stack.pop()
            if key in request.needed:
                continue
            task = self.tasks.get(key)
            if task is None:
                self.count += 1
                offer = request.offers[key]
                task = Task(key, offer, self.count, *self.expectation(offer))
                self.tasks[key] = task
                self.ask(task)
            request.needed[key] = task
            task.requests[request.id] = request
            if key in request.lost:  # someone tries again what failed for this request
                del request.lost[key]
                if key in request.failures:
                    request.failures.remove(key)
            if task.state in PRESENT:
                self._has(request, task)
                continue
            self.open(request, task)
            if task.state is State.ASKING:
                request.asking[key] = None
            else:
                self._news(request, key)
            if task.state is State.READY:
                self._queue(task, request)
            elif task.state is State.BLOCKED and task.expanded:
                stack.extend(reversed(task.offer.depends))

    def absent(self, task: Task) -> None:
        """The store does not have it: it has to be built, unless a worker is at it already."""
        self.move(task, Cause.ABSENT)
        for request in task.requests.values():
            del request.asking[task.key]
        self.touch(task)
        if task.key in self.strays:
            self.adopt(task, self.strays[task.key])
        else:
            self.expand(task)

    def adopt(self, task: Task, attempt: Attempt) -> None:
        """An attempt that a worker is at becomes the task's."""
        self.move(task, Cause.ADOPTED, attempt.worker)
        self.strays.pop(task.key, None)
        self.run(task, attempt, next(iter(task.requests.values())))

    def expand(self, task: Task) -> None:
        """A task has to wait for what it needs, if anything is missing."""
        if task.missing or not task.expanded:
            depends = tuple(dict.fromkeys(task.offer.depends))
            for request in list(task.requests.values()):
                for key in depends:
                    if key in request.lost and key not in self.tasks:
                        self._give_up(request, task, request.offers[key].name)
                        self.check_over(request)
                        break
                else:
                    self.need(request, depends)
            if not task.requests:
                return
            # Once more for one that was adopted while it waited: its dependencies may have
            # been dropped, and others may want it now.
            task.expanded = True
            task.missing = 0
            for key in depends:
                dependency = self.tasks[key]
                if dependency.state not in PRESENT:
                    task.missing += 1
                    dependency.waiters[task.key] = task
        self.unblock(task)

    def unblock(self, task: Task) -> None:
        """Nothing may stand in its way any more: then it is ready."""
        if task.state is State.BLOCKED and not task.missing and task.key not in self.ghosts:
            self.move(task, Cause.FREED)
            for request in task.requests.values():
                self._queue(task, request)
            self.touch(task)

    def _queue(self, task: Task, request: Request) -> None:
        """A ready task waits for a worker, once all that its request needs is known.

        Before that, the first to be ready would be taken for the most urgent.
        """
        if request.state == "building":
            self.pools.push(task, request, self.now)

    def begin_checked(self) -> None:
        """Requests of which all is known may build."""
        if not self._checking:
            return
        for request in list(self._checking.values()):
            if request.asking and not request.over:
                continue
            del self._checking[request.id]
            if not request.over:
                request.state = "building"
                for task in request.needed.values():
                    if task.state is State.READY:
                        self._queue(task, request)

    # -- running -----------------------------------------------------------------------------

    def run(self, task: Task, attempt: Attempt, request: Request) -> None:
        """An attempt at a task runs, and counts as this request's share."""
        task.attempt, task.fence, task.builder = attempt, attempt.fence, attempt.worker
        self._charge(task, request)
        self.touch(task)

    def stop(self, task: Task) -> None:
        """A task's attempt is no longer its own."""
        task.attempt = None
        self._charge(task, None)

    def _charge(self, task: Task, request: Request | None) -> None:
        """A running task uses this request's share of the workers, and its requester's."""
        if task.charged is not None:
            seconds = self.now - task.charged_at
            task.charged.share.end(seconds, self.now)
            task.charged.requester.share.end(seconds, self.now)
        task.charged, task.charged_at = request, self.now
        if request is not None:
            request.share.begin(self.now)
            request.requester.share.begin(self.now)

    def doom(self, attempt: Attempt) -> None:
        """Nobody wants an attempt: have it killed."""
        attempt.doomed = True
        if self.strays.get(attempt.key) is attempt:
            del self.strays[attempt.key]
        self.desires[attempt.worker] = None
        if not attempt.stuck:
            ghosts = self.ghosts.setdefault(attempt.key, {})
            ghosts[attempt.worker, attempt.fence] = attempt
            self._timer(self.now + self.limits.kill, self._check_doomed, attempt)

    def _check_doomed(self, attempt: Attempt) -> None:
        """A worker that does not end what nobody wants holds up nobody but itself."""
        ghosts = self.ghosts.get(attempt.key, {})
        if ghosts.get((attempt.worker, attempt.fence)) is attempt:
            attempt.stuck = True
            if self.lay(attempt) and (task := self.tasks.get(attempt.key)) is not None:
                self.unblock(task)

    def disown(self, attempt: Attempt, task: Task | None) -> Task | None:
        """An attempt is no task's any more; returns the task of its key if it was of that."""
        if task is not None and task.attempt is attempt:
            self.stop(task)
            return task
        if self.strays.get(attempt.key) is attempt:
            del self.strays[attempt.key]
        if attempt.doomed and self.lay(attempt) and task is not None:
            self.unblock(task)
        return None

    def lay(self, attempt: Attempt) -> bool:
        """An attempt keeps its task from beginning no more; True if it was the last that did."""
        ghosts = self.ghosts.get(attempt.key, {})
        if ghosts.pop((attempt.worker, attempt.fence), None) is None or ghosts:
            return False
        del self.ghosts[attempt.key]
        return True

    def keep_seat(self, task: Task, worker: Worker) -> None:
        """While what a worker built is verified, keep its slot for a task that waits for just that.

        Otherwise each step of the longest way would lose its worker to something less urgent.
        """
        for waiter in task.waiters.values():
            if waiter.missing == 1 and self.pools.urgent(waiter, self.now):
                task.seat = worker.name
                worker.seats[task.key] = None
                return

    def free_seat(self, task: Task) -> None:
        if task.seat:
            name, task.seat = task.seat, ""
            del self.workers[name].seats[task.key]
            self.pools.place(name, self.now)

    # -- what is finished ------------------------------------------------------------------

    def present(self, task: Task) -> None:
        """The store has it."""
        self.move(task, Cause.PRESENT)
        task.since = self.now
        if task.missing:
            self._await_nothing(task)
        self.reopened.pop(task.key, None)
        if task.key in self.strays:
            self.doom(self.strays[task.key])
        requests = list(task.requests.values())
        for request in requests:
            self._close(request, task)
            self._has(request, task)
        for waiter in task.waiters.values():
            waiter.missing -= 1
            if not waiter.missing:
                self.unblock(waiter)
        task.waiters.clear()
        for request in requests:
            self.check_over(request)

    def _await_nothing(self, task: Task) -> None:
        """A task waits no more for what it misses."""
        task.missing = 0
        for key in task.offer.depends:
            dependency = self.tasks.get(key)
            if dependency is not None:
                dependency.waiters.pop(task.key, None)

    def _has(self, request: Request, task: Task) -> None:
        request.asking.pop(task.key, None)
        request.record(task.key, view.step(task, self.now))
        self._news(request, task.key)

    def fail(self, task: Task, cause: Cause, message: str) -> None:
        """It cannot be had, for all who want it now."""
        self.move(task, cause, message)
        waiters = list(task.waiters.values())
        for request in list(task.requests.values()):
            request.failures.append(task.key)
            request.lost[task.key] = None
            fault = cause is not Cause.BROKE
            request.record(task.key, view.failure(task, message, fault=fault))
            self._news(request, task.key)
            self._drop(request, task)
            if request.keep_going:
                for waiter in waiters:
                    self._give_up(request, waiter, task.offer.name)
            self.check_over(request)

    def _give_up(self, request: Request, task: Task, culprit: str) -> None:
        """A request cannot have this task, nor what waits for it, because of ``culprit``."""
        stack = [task]
        while stack:
            task = stack.pop()
            if request.id not in task.requests:
                continue
            stack.extend(task.waiters.values())
            request.lost[task.key] = None
            message = f"needs {culprit}, which failed"
            request.record(task.key, view.cancelled(task, message))
            self._news(request, task.key)
            self._drop(request, task)

    def check_over(self, request: Request) -> None:
        lacking = request.failures or request.lost
        going_on = request.goals_left and not lacking
        if going_on or request.over or request.state == "resolving":
            return
        if not lacking:
            self.finish(request, "done", "")
        elif not request.keep_going or not request.open:
            self.finish(request, "failed", self._what_lacks(request))

    def _what_lacks(self, request: Request) -> str:
        """What a request has failed for, in few words."""
        if not request.failures:  # others had that built, too late for what was given up
            key = next(iter(request.lost))
            return f"{request.offers[key].name} {request.results[key].message}"
        first, more = request.offers[request.failures[0]].name, len(request.failures) - 1
        return first + (f" and {more} more" if more else "")

    def finish(self, request: Request, state: RequestState, message: str) -> None:
        """A request is over."""
        if request.state == "resolving":
            self.effects.append(Abandon(request.id))
        request.state, request.message = state, message
        needed, request.needed = request.needed, {}
        for key, task in needed.items():
            if task.state in PRESENT:  # quickly: it may be all of very many
                del task.requests[request.id]
                if not task.requests:
                    self.remove(task)
                continue
            if key not in request.asking or key in self.reopened:  # it has been told of
                request.record(key, view.cancelled(task))
                self._news(request, key)
            self._let_go(request, task)
        # What is left is for those who ask later how it went.
        self.throw_away(needed, request.offers, request.ranks, request.longest)
        request.offers, request.ranks, request.longest, request.lost = {}, {}, [], {}
        request.requester.lose(request)
        if not request.requester.requests:
            del self.requesters[request.requester.name]
        self.effects.append(Closed(request.id, state))
        self._news(request)

    # -- what nobody wants -----------------------------------------------------------------

    def open(self, request: Request, task: Task) -> None:
        """A request has to wait for a task."""
        request.record(task.key, None)
        request.open += 1
        request.work_left += task.expected
        request.guesses += task.guessed
        request.goals_left += task.key in request.wanted
        heappush(request.longest, (-request.ranks.get(task.key, 0.0), task.key))

    def _close(self, request: Request, task: Task) -> None:
        """It need not, any more."""
        request.open -= 1
        request.goals_left -= task.key in request.wanted
        request.work_left -= task.expected
        request.guesses -= task.guessed

    def _drop(self, request: Request, task: Task) -> None:
        """A request no longer wants a task that is not there."""
        del request.needed[task.key]
        self._let_go(request, task)

    def _let_go(self, request: Request, task: Task) -> None:
        request.asking.pop(task.key, None)
        del task.requests[request.id]
        self._close(request, task)
        if task.requests:
            if task.charged is request:
                self._charge(task, next(iter(task.requests.values())))
            return
        if task.state is not State.FAILED:
            self.move(task, Cause.UNWANTED)
        self.free_seat(task)
        if task.attempt is not None:
            self.doom(task.attempt)
            self.stop(task)
        task.question = 0
        if task.missing:
            self._await_nothing(task)
        self.remove(task)
        self.reopened.pop(task.key, None)
        stray = self.strays.get(task.key)
        if stray is not None:
            self.doom(stray)
