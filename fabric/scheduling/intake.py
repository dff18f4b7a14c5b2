"""Requests come and go: ordered, resolved, followed, left, cancelled, remembered for a while.

An initiator that watches its request polls; if it is silent for long, it has left, and the
request ends.  One that is *detached* goes on whether anybody watches or not.  What is over stays
known for a while, for whoever asks how it went.
"""

from __future__ import annotations

from typing import Literal

from fabric.scheduling import plan
from fabric.scheduling.events import Opened, Remembered, Resolve, Resolved, Unresolved
from fabric.scheduling.interest import Interest
from fabric.scheduling.model import Durations, Limits, Request, Requester
from fabric.scheduling.shares import Share
from fabric.wire.messages import Answer, Command, Leave, Order, Poll, Submit

#: Requests remembered as left, so that a late copy of their `Submit` does not revive them.
_LEFT = 1000
#: Requests that are over and that nobody watches: so many are kept, with so many steps in all.
_KEPT = 200
_KEPT_STEPS = 100_000
#: This much of a request's id may stand for the whole, if it is the only such one.
_PREFIX = 4


class Intake(Interest):
    """All that initiators say of requests."""

    def __init__(self, limits: Limits, durations: Durations, first: int, now: float) -> None:
        super().__init__(limits, durations, first, now)
        self._left: dict[str, None] = {}
        self._kept: dict[str, Request] = {}  # over, and nobody watches; oldest first
        self._kept_steps = 0

    # -- they come -----------------------------------------------------------------------------

    def _order(self, order: Order) -> None:
        if not self._known(order):
            self._begin(order, "resolving")
            self.effects.append(Resolve(order))

    def _submit(self, submit: Submit) -> None:
        if self._known(submit):
            return
        reason = plan.problem(submit) or self._disagreement(submit)
        if reason:
            self._refuse(submit.request, "bad-request", reason)
        else:
            self._build(self._begin(submit, "checking"), submit)

    def _resolved(self, event: Resolved) -> None:
        request = self.requests.get(event.request)
        if request is None or request.state != "resolving":
            return  # it was given up meanwhile
        reason = plan.problem(event.submit) or self._disagreement(event.submit)
        request.state = "checking"
        if reason:
            self.finish(request, "failed", reason)
        else:
            self._build(request, event.submit)

    def _unresolved(self, event: Unresolved) -> None:
        request = self.requests.get(event.request)
        if request is not None and request.state == "resolving":
            request.state = "checking"
            self.finish(request, "failed", event.message)

    def _known(self, wanted: Order | Submit) -> bool:
        """Whether a request is not new: then there is no more to do for it."""
        request = self.requests.get(wanted.request)
        if request is not None:
            self._followed(request)
            return True
        if wanted.request in self._left and not wanted.detach:
            self._refuse(wanted.request, "unknown-request", "this request was left")
            return True
        return False

    def _begin(self, wanted: Order | Submit, state: Literal["resolving", "checking"]) -> Request:
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
            version=self._next_version(),
            keep_going=wanted.keep_going,
            priority=wanted.priority,
            detached=wanted.detach,
            state=state,
        )
        requester.gain(request)
        self.requests[request.id] = request
        self._changes[request.id] = None
        self.effects.append(Opened(request.id, request.title, wanted))
        self._timer(self.now + self.limits.patience, self._check_patience, request)
        return request

    def _build(self, request: Request, submit: Submit) -> None:
        """What a request needs is known: find out what of it is missing."""
        request.offers = {offer.key: offer for offer in submit.steps}
        request.goals = dict.fromkeys(submit.goals)
        request.ranks = plan.ranks(request.offers, self.expected)
        request.version = request.known = self._next_version()
        self._checking[request.id] = request
        self._changes[request.id] = None
        self.need(request, request.goals)
        self.check_over(request)

    def _disagreement(self, submit: Submit) -> str:
        """A key names all that goes into an artifact, dependencies too."""
        for offer in submit.steps:
            task = self.tasks.get(offer.key)
            if task is not None and task.offer.depends != offer.depends:
                return f"{offer.name}: another request says it depends on other things"
        return ""

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
        if self.now < due:
            self._timer(due, self._check_patience, request)
        elif request.over:
            self._keep(request)
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
            version=outcome.version,
            state=outcome.state,
            message=outcome.message,
            goals=dict.fromkeys(outcome.goals),
            known=outcome.version,
        )
        for step in outcome.steps:
            request.record(step.key, step)
            request.changed[step.key] = outcome.version
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
