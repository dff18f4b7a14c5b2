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
from fabric.controller.blame import broke
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
UPDATE = 50


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
        self._unsaid: deque[tuple[int, bytes, Message]] = deque()  # once so many promises are kept
        #: id of a command that was the first to find that nothing can be written -> what it did
        self._unkept: dict[str, str] = {}

    def heed_journal(self) -> list[Unwritten]:
        """See how writing it goes, once in a turn; what the core has to hear before `tell`."""
        before = self._journal.trouble
        lost = self._journal.look()
        if self._journal.trouble and not before:  # whoever asked asks again, and hears of it
            answers = (message for _, _, message in self._unsaid if isinstance(message, Answer))
            self._unkept = {answer.id: "\n".join(answer.lines) for answer in answers}
            self._unsaid.clear()
        return list(map(Unwritten, lost))

    def refuses(self, peer: bytes, message: FromPeer, scheduler: Scheduler) -> bool:
        """Whether a message asks for a promise that cannot be kept now: its sender hears so.

        Or for one beside too many that are not kept yet: it asks again.
        """
        if not self._journal.trouble:
            match message:
                case BuildOrder() | BuildGraph() | Command():
                    return self._journal.promised - self._journal.kept > bounds.PROMISES
                case Query():
                    return len(self._unsaid) > bounds.UNSAID
                case _:
                    return False
        match message:
            case BuildOrder() | BuildGraph() if message.request not in scheduler.state.requests:
                about = message.request
            case Command():
                about = message.id
            case _:
                return False
        self._send(peer, Rejected(about, "not-now", self._trouble(about)))
        return True

    def answer(self, peer: bytes, query: Query, scheduler: Scheduler, now: float) -> None:
        """Answer a question."""
        try:
            answer = scheduler.answer(query, now)
        except Exception as error:  # noqa: BLE001 - that a question breaks us is to cost nobody else
            traceback.print_exc()
            answer = Answer(query.id, error=broke(error))
        if self._journal.trouble:
            answer = msgspec.structs.replace(answer, warning=self._trouble())
        self.say(peer, answer)

    def _trouble(self, about: str = "") -> str:
        """What is wrong; what that means for a command, if it is ``about`` one."""
        if done := self._unkept.get(about):
            return (
                f"{done}, but that is not written down, and undone if the controller ends before it"
                f" can be: {self._journal.trouble}"
            )
        return (
            "the controller takes no orders, cancels or drains, for it cannot write its journal:"
            f" {self._journal.trouble}"
        )

    def due(self) -> float:
        """When `tell` is due; the journal wakes whoever waits for it."""
        return math.inf if self._unsaid else self.subscriptions.next_due()

    def say(self, peer: bytes, message: Message) -> None:
        """Tell somebody something, as soon as all is on the disk that it speaks of."""
        self._unsaid.append((self._journal.promised, peer, message))

    def tell(self, scheduler: Scheduler, now: float) -> None:
        """Say what may be said now, news of requests too."""
        self._say_what_is_kept()
        if self._unsaid:
            return  # whoever follows a request hears more of it after that
        trouble = self._journal.trouble
        told: Counter[str] = Counter()  # steps, by names
        for subscription in self.subscriptions.take(now):
            if subscription.owner and told[subscription.owner] > bounds.TOLD_STEPS:
                self.subscriptions.put_off(subscription)
                continue
            try:
                update = scheduler.update(subscription.request, subscription.seen, now)
            except Exception as error:  # noqa: BLE001 - as above
                traceback.print_exc()
                self._send(
                    subscription.peer, Rejected(subscription.request, "bad-request", broke(error))
                )
                update = None
            if update is None:
                self.subscriptions.unwatch(subscription.request, subscription.peer)
            elif (
                trouble and update.state == "cancelled" and not self._journal.keeps(update.request)
            ):
                pass  # after a crash it would go on; who follows it asks again
            else:
                told[subscription.owner] += UPDATE + len(update.steps)
                self.say(subscription.peer, update)
        self._say_what_is_kept()

    def cut_off(self) -> None:
        """All connections are made anew: who still follows will say so."""
        self.subscriptions = Subscriptions()
        self._unsaid.clear()

    def _say_what_is_kept(self) -> None:
        while self._unsaid and (self._journal.trouble or self._unsaid[0][0] <= self._journal.kept):
            _, peer, message = self._unsaid.popleft()
            if not self._send(peer, message) and isinstance(message, Update):
                self.subscriptions.unwatch(message.request, peer)
