"""Requests come and go: ordered, resolved, followed, left, cancelled, remembered for a while.

An initiator that watches its request polls; if it is silent for long, it has left, and the
request ends.  One that is *detached* goes on whether anybody watches or not.  What is over stays
known for a while, for whoever asks how it went.
"""

from __future__ import annotations

from collections.abc import Iterator

from fabric import bounds
from fabric.scheduling import plan
from fabric.scheduling.events import (
    Closed,
    Opened,
    Remembered,
    Resolve,
    Resolved,
    Tick,
    Unresolved,
    Unwritten,
)
from fabric.scheduling.interest import Interest
from fabric.scheduling.model import Durations, Limits, Request, Requester
from fabric.scheduling.shares import Share
from fabric.wire.messages import Answer, BuildGraph, BuildOrder, Command, Leave, Poll

#: Requests remembered as left, so that a late copy of their `BuildGraph` does not revive them.
_LEFT = 1000
#: Requests that are over and that nobody watches: so many are kept, with so many steps in all.
_KEPT = 200
_KEPT_STEPS = 100_000
#: This much of a request's id may stand for the whole, if it is the only such one.
_PREFIX = 4
_DONE = True


class Intake(Interest):
    """All that initiators say of requests."""

    __slots__ = ("_kept", "_kept_steps", "_left", "_studies")

    def __init__(self, limits: Limits, durations: Durations, first: int, now: float) -> None:
        super().__init__(limits, durations, first, now)
        self._left: dict[str, None] = {}
        self._studies: dict[str, Iterator[None]] = {}  # of requests that are taken in
        self._kept: dict[str, Request] = {}  # over, and nobody watches; oldest first
        self._kept_steps = 0

    # -- they come -----------------------------------------------------------------------------

    def _order(self, order: BuildOrder) -> None:
        if not self._known(order) and self._has_room(order):
            self._begin(order)
            self.effects.append(Resolve(order))

    def _submit(self, submit: BuildGraph) -> None:
        if not self._known(submit) and self._has_room(submit):
            self._study(self._begin(submit), submit)

    def _has_room(self, wanted: BuildOrder | BuildGraph) -> bool:
        """Whether one more request may begin."""
        requester = self.requesters.get(wanted.requester)
        if requester is not None and len(requester.requests) >= bounds.OPEN_REQUESTS:
            told = f"{wanted.requester or 'this user'} has {bounds.OPEN_REQUESTS} builds that are"
        elif sum(len(each.requests) for each in self.requesters.values()) >= bounds.ALL_REQUESTS:
            told = f"the controller has {bounds.ALL_REQUESTS} builds that are"
        else:
            return True
        more = "not over, as many as there may be; `fabric-initiator list` shows them"
        self._refuse(wanted.request, "not-now", f"{told} {more}")
        return False

    def _resolved(self, event: Resolved) -> None:
        request = self.requests.get(event.request)
        if request is not None and request.state == "resolving":  # it is still wanted
            self._study(request, event.submit)

    def _unresolved(self, event: Unresolved) -> None:
        request = self.requests.get(event.request)
        if request is not None and request.state == "resolving":
            self._make_nothing(request, event.message)

    def _study(self, request: Request, submit: BuildGraph) -> None:
        """Find out what a request comes to; the first portion at once, the rest with time."""
        before = sum(each.size for each in request.requester.requests.values())
        request.size = len(submit.steps)
        if before and before + request.size > bounds.OPEN_STEPS:
            told = f"its {request.size:,} steps are too many beside the {before:,} of"
            reason = f"{told} {request.requester.name or 'this user'}'s builds that are not over"
            self._make_nothing(request, f"{reason}; order it again when some are")
            return
        study = self._take_in(request, submit)
        if next(study, _DONE) is not _DONE:
            self._studies[request.id] = study

    def _take_in(self, request: Request, submit: BuildGraph) -> Iterator[None]:
        try:
            offers, ranks = yield from plan.study(submit, self.expected)
            self._agree(submit)
        except plan.Unsound as problem:
            self._make_nothing(request, str(problem))
        else:
            request.offers, request.ranks = offers, ranks
            self._build(request, submit)

    def _make_nothing(self, request: Request, reason: str) -> None:
        """A request cannot be resolved."""
        request.state = "checking"
        self.finish(request, "failed", reason)

    def _tick(self, _: Tick) -> None:
        """Go on with what is large, a portion at a time: nobody else has to wait long."""
        for id, study in self._studies.items():
            request = self.requests.get(id)
            if request is None or request.over or next(study, _DONE) is _DONE:
                del self._studies[id]
            break

    def _known(self, wanted: BuildOrder | BuildGraph) -> bool:
        """Whether a request is not new: then there is no more to do for it."""
        request = self.requests.get(wanted.request)
        if request is not None:
            self._followed(request)
            return True
        if wanted.request in self._left and not wanted.detach:
            self._refuse(wanted.request, "unknown-request", "this request was left")
            return True
        return False

    def _begin(self, wanted: BuildOrder | BuildGraph) -> Request:
        self.count += 1
        requester = self.requesters.get(wanted.requester)
        if requester is None:
            requester = Requester(wanted.requester, Share(self.count))
            requester.share.join([each.share for each in self.requesters.values()], self.now)
            self.requesters[requester.name] = requester
        share = Share(self.count, weight=2.0**wanted.priority)
        share.join([each.share for each in requester.requests.values()], self.now)
        request = Request(
            id=wanted.request,
            title=wanted.title,
            requester=requester,
            share=share,
            heard=self.now,
            since=self.now,
            born=self.versions,
            keep_going=wanted.keep_going,
            priority=wanted.priority,
            detached=wanted.detach,
        )
        requester.gain(request)
        self.requests[request.id] = request
        self._news(request)
        self.effects.append(Opened(request.id, request.title, wanted))
        self._timer(self.now + self.limits.patience, self._check_patience, request)
        return request

    def _build(self, request: Request, submit: BuildGraph) -> None:
        """What a request needs is known: find out what of it is missing."""
        request.state = "checking"
        request.index = None
        request.goals = tuple(dict.fromkeys(submit.goals))
        request.wanted = dict.fromkeys((*submit.goals, *submit.along))
        self._news(request)
        request.known = request.version
        self._checking[request.id] = request
        self.need(request, request.wanted)
        self.check_over(request)

    def _agree(self, submit: BuildGraph) -> None:
        """A key names all that goes into an artifact, dependencies too.  Else it is Unsound."""
        for offer in submit.steps:
            task = self.tasks.get(offer.key)
            if task is not None and task.offer.depends != offer.depends:
                raise plan.Unsound(f"{offer.name}: another request says it depends on other things")

    # -- they are followed ---------------------------------------------------------------------

    def _poll(self, poll: Poll) -> None:
        request = self.requests.get(poll.request)
        if request is None:
            self._refuse(poll.request, "unknown-request", "there is no such request (any more)")
        else:
            self._followed(request)

    def _followed(self, request: Request) -> None:
        request.heard = self.now
        self._changes[request.id] = None

    def _check_patience(self, request: Request) -> None:
        if self.requests.get(request.id) is not request or request.id in self._kept:
            return
        due = request.heard + self.limits.patience
        if request.over:  # whoever polls it has been told, and is not to fill the memory with them
            self._keep(request)
        elif self.now < due:
            self._timer(due, self._check_patience, request)
        elif request.detached:
            self._timer(self.now + self.limits.patience, self._check_patience, request)
        else:
            # Not kept: its initiator, if it was merely cut off, asks for it again.
            self.finish(request, "cancelled", "its initiator was not heard of any more")
            del self.requests[request.id]

    def _remembered(self, event: Remembered) -> None:
        """A former run saw its end."""
        outcome = event.outcome
        if outcome.request in self.requests:
            return
        self.count += 1
        request = Request(
            id=outcome.request,
            title=outcome.title,
            requester=Requester(event.requester, Share(self.count)),
            share=Share(self.count),
            heard=self.now,
            since=self.now - event.ago,
            born=outcome.version - len(outcome.steps),
            state=outcome.state,
            message=outcome.message,
            goals=outcome.goals,
            known=outcome.version,
        )
        for step in outcome.steps:
            request.record(step.key, step)
            request.news.append(step.key)
        self.requests[request.id] = request
        self._keep(request)

    # -- they go -------------------------------------------------------------------------------

    def _leave(self, leave: Leave) -> None:
        request = self.requests.get(leave.request)
        if request is None or not request.detached:
            self._left[leave.request] = None
            if len(self._left) > _LEFT:
                del self._left[next(iter(self._left))]
        if request is None or (request.detached and not request.over):
            return
        if not request.over:
            self.finish(request, "cancelled", "left by its initiator")
        self._keep(request)

    def _unwritten(self, event: Unwritten) -> None:
        """As if it had never been asked for, so that it may be asked for again."""
        request = self.requests.get(event.request)
        if request is None:
            return
        if request.over:
            if self._kept.pop(request.id, None) is not None:
                self._kept_steps -= len(request.results)
            self.effects.append(Closed(request.id, request.state))
        else:
            self.finish(request, "cancelled", "it cannot be written down")
        del self.requests[request.id]

    def _cancel(self, command: Command) -> Answer:
        """An operator, or whoever asked for it, wants a request no more."""
        found = self.find_requests(command.about)
        if len(found) != 1:
            problem = "several requests begin with" if found else "no request here is called"
            return Answer(command.id, error=f"{problem} {command.about}")
        [request] = found
        if request.over:
            told = f"it is {request.state} already"
        else:
            self.finish(request, "cancelled", "cancelled on demand")
            told = "cancelled"
        return Answer(command.id, lines=(f"{request.title}: {told}",))

    def find_requests(self, about: str) -> list[Request]:
        """The requests that a user may mean: by the whole id, or by how it begins."""
        request = self.requests.get(about)
        if request is not None:
            return [request]
        if len(about) < _PREFIX:
            return []
        return [request for id, request in self.requests.items() if id.startswith(about)]

    def _keep(self, request: Request) -> None:
        """Nobody watches what is over: it is kept as long as there is room."""
        if request.id in self._kept:
            return
        self._kept[request.id] = request
        self._kept_steps += len(request.results)
        while len(self._kept) > _KEPT or (self._kept_steps > _KEPT_STEPS and len(self._kept) > 1):
            oldest = self._kept.pop(next(iter(self._kept)))
            self._kept_steps -= len(oldest.results)
            del self.requests[oldest.id]
