"""Holds replies to initiators until the journal records that they depend on are durable.

While the journal cannot be written, it rejects new requests and commands.
"""

from __future__ import annotations

import math
import traceback
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from fabric import bounds
from fabric.controller.blame import fault_text
from fabric.controller.subscriptions import Subscriptions
from fabric.scheduling.events import Unwritten
from fabric.wire.messages import (
    Answer,
    BuildGraph,
    BuildOrder,
    Command,
    FromPeer,
    Message,
    Query,
    Rejected,
    Update,
)

if TYPE_CHECKING:
    from fabric.controller.journal import Journal
    from fabric.scheduling.scheduler import Scheduler

#: What an update costs beside its steps, in steps.
UPDATE_COST = 50


class ReplyOutbox:
    """All who ask or follow.  Answers and updates wait until the journal has kept what it had
    promised when they were made; then they go out by ``send``, which is False for a peer that is
    gone.

    While it cannot be written, they do not wait: nothing new is promised then.  How builds end is
    told, for what was built is in the store, and a build that a crash opens again finds it there.
    """

    def __init__(self, journal: Journal, send: Callable[[bytes, Message], bool]) -> None:
        self.subscriptions = Subscriptions()
        self._journal = journal
        self._send = send
        self._waiting: deque[tuple[int, bytes, Message]] = deque()  # once so many promises are kept
        #: id of a command that was the first to find that nothing can be written -> what it did
        self._undurable: dict[str, str] = {}

    def check_journal(self) -> list[Unwritten]:
        """See how writing it goes, once in a turn; what the core has to hear before `tell`."""
        before = self._journal.error
        lost = self._journal.update_status()
        if self._journal.error and not before:  # whoever asked asks again, and hears of it
            answers = (message for _, _, message in self._waiting if isinstance(message, Answer))
            self._undurable = {answer.id: "\n".join(answer.lines) for answer in answers}
            self._waiting.clear()
        return list(map(Unwritten, lost))

    def rejects(self, peer: bytes, message: FromPeer, scheduler: Scheduler) -> bool:
        """Whether a message asks for a promise that cannot be kept now: its sender hears so.

        Or for one beside too many that are not kept yet: it asks again.
        """
        if not self._journal.error:
            match message:
                case BuildOrder() | BuildGraph() | Command():
                    return self._journal.appended - self._journal.durable > bounds.PROMISES
                case Query():
                    return len(self._waiting) > bounds.UNSAID
                case _:
                    return False
        match message:
            case BuildOrder() | BuildGraph() if message.request not in scheduler.state.requests:
                about = message.request
            case Command():
                about = message.id
            case _:
                return False
        self._send(peer, Rejected(about, "not-now", self._error_text(about)))
        return True

    def answer(self, peer: bytes, query: Query, scheduler: Scheduler, now: float) -> None:
        """Answer a question."""
        try:
            answer = scheduler.answer(query, now)
        except Exception as error:  # noqa: BLE001 - that a question breaks us is to cost nobody else
            traceback.print_exc()
            answer = Answer(query.id, error=fault_text(error))
        if self._journal.error:
            answer = msgspec.structs.replace(answer, warning=self._error_text())
        self.add(peer, answer)

    def _error_text(self, about: str = "") -> str:
        """What is wrong; what that means for a command, if it is ``about`` one."""
        if done := self._undurable.get(about):
            return (
                f"{done}, but that is not written down, and undone if the controller ends before it"
                f" can be: {self._journal.error}"
            )
        return (
            "the controller takes no orders, cancels or drains, for it cannot write its journal:"
            f" {self._journal.error}"
        )

    def due(self) -> float:
        """When `tell` is due; the journal wakes whoever waits for it."""
        return math.inf if self._waiting else self.subscriptions.next_due()

    def add(self, peer: bytes, message: Message) -> None:
        """Tell somebody something, as soon as all is on the disk that it speaks of."""
        self._waiting.append((self._journal.appended, peer, message))

    def send_due(self, scheduler: Scheduler, now: float) -> None:
        """Say what may be said now, news of requests too."""
        self._send_durable()
        if self._waiting:
            return  # whoever follows a request hears more of it after that
        error = self._journal.error
        sent: Counter[str] = Counter()  # steps, by names
        for subscription in self.subscriptions.take(now):
            if subscription.owner and sent[subscription.owner] > bounds.TOLD_STEPS:
                self.subscriptions.postpone(subscription)
                continue
            try:
                update = scheduler.update(subscription.request, subscription.seen, now)
            except Exception as error:  # noqa: BLE001 - as above
                traceback.print_exc()
                self._send(
                    subscription.peer,
                    Rejected(subscription.request, "bad-request", fault_text(error)),
                )
                update = None
            if update is None:
                self.subscriptions.unsubscribe(subscription.request, subscription.peer)
            elif (
                error
                and update.state == "cancelled"
                and not self._journal.is_durable(update.request)
            ):
                pass  # after a crash it would go on; who follows it asks again
            else:
                sent[subscription.owner] += UPDATE_COST + len(update.steps)
                self.add(subscription.peer, update)
        self._send_durable()

    def clear(self) -> None:
        """All connections are made anew: who still follows will say so."""
        self.subscriptions = Subscriptions()
        self._waiting.clear()

    def _send_durable(self) -> None:
        while self._waiting and (
            self._journal.error or self._waiting[0][0] <= self._journal.durable
        ):
            _, peer, message = self._waiting.popleft()
            if not self._send(peer, message) and isinstance(message, Update):
                self.subscriptions.unsubscribe(message.request, peer)
