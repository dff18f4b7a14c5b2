"""Holds replies to initiators until the journal entries that they depend on are durable.

While the journal cannot be written, it rejects new requests and commands, and holds no replies:
they depend on nothing new.  Ends of builds are sent then, too, because a build that a crash opens
again finds its results in the store.
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
from fabric.scheduling.events import NotJournaled
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
    from fabric.controller.history import AttemptHistory
    from fabric.controller.journal import Journal
    from fabric.scheduling.scheduler import Scheduler

#: Cost of an update beside its steps, in steps.
UPDATE_COST = 50


class ReplyOutbox:
    """Answers and updates that wait for the journal, and the subscriptions to requests.

    ``send`` sends a message to a peer; it returns False if the peer is gone.
    """

    def __init__(
        self,
        journal: Journal,
        send: Callable[[bytes, Message], bool],
        history: AttemptHistory | None = None,
    ) -> None:
        self.subscriptions = Subscriptions()
        self._history = history
        self._journal = journal
        self._send = send
        self._waiting: deque[tuple[int, bytes, Message]] = (
            deque()
        )  # (statements that must be durable, peer, message)
        #: id of a command whose entry cannot be written -> its effect
        self._undurable: dict[str, str] = {}

    def check_journal(self) -> list[NotJournaled]:
        """Update the journal's status, once in a turn.

        Returns the events that the core must handle before `send_due`.
        """
        before = self._journal.error
        lost = self._journal.update_status()
        if self._journal.error and not before:  # their senders repeat the messages
            answers = (message for _, _, message in self._waiting if isinstance(message, Answer))
            self._undurable = {answer.id: "\n".join(answer.lines) for answer in answers}
            self._waiting.clear()
        return list(map(NotJournaled, lost))

    def rejects(self, peer: bytes, message: FromPeer, scheduler: Scheduler) -> bool:
        """Whether the outbox drops a message because it would have to wait for the journal.

        If the journal cannot be written, its sender gets a `Rejected`.  If too much waits for the
        journal, its sender repeats it.
        """
        if not self._journal.error:
            match message:
                case BuildOrder() | BuildGraph() | Command():
                    return self._journal.appended - self._journal.durable > bounds.PENDING_ENTRIES
                case Query():
                    return len(self._waiting) > bounds.HELD_REPLIES
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
        """Add the core's answer to a query."""
        try:
            answer = scheduler.answer(query, now)
            if query.what == "attempts" and self._history is not None:
                answer = self._history.complete(answer, query, scheduler.state, now)
        except Exception as error:  # noqa: BLE001 - other requests are not affected
            traceback.print_exc()
            answer = Answer(query.id, error=fault_text(error))
        if self._journal.error:
            answer = msgspec.structs.replace(answer, warning=self._error_text())
        self.add(peer, answer)

    def _error_text(self, about: str = "") -> str:
        """Why the journal cannot be written, and the effect on the command ``about``, if any."""
        if done := self._undurable.get(about):
            return (
                f"{done}, but it is not in the journal yet, and a restart of the controller would"
                f" undo it: {self._journal.error}"
            )
        return (
            "the controller accepts no builds, cancels or drains, because it cannot write its"
            " journal:"
            f" {self._journal.error}"
        )

    def due(self) -> float:
        """When `send_due` is due; infinity while replies wait for the journal, which wakes us."""
        return math.inf if self._waiting else self.subscriptions.next_due()

    def add(self, peer: bytes, message: Message) -> None:
        """Send a message as soon as all entries appended so far are durable."""
        self._waiting.append((self._journal.appended, peer, message))

    def send_due(self, scheduler: Scheduler, now: float) -> None:
        """Send the replies that wait no more, and updates to subscribers."""
        self._send_durable()
        if self._waiting:
            return  # updates must not overtake replies
        error = self._journal.error
        sent: Counter[str] = Counter()  # cost of updates by name, in steps
        for subscription in self.subscriptions.take(now):
            if subscription.owner and sent[subscription.owner] > bounds.STEPS_A_TURN:
                self.subscriptions.postpone(subscription)
                continue
            try:
                update = scheduler.update(subscription.request, subscription.seen, now)
            except Exception as error:  # noqa: BLE001 - other requests are not affected
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
                pass  # a crash would undo it; the subscriber polls again
            else:
                sent[subscription.owner] += UPDATE_COST + len(update.steps)
                self.add(subscription.peer, update)
        self._send_durable()

    def clear(self) -> None:
        """Forget all peers: their connections were closed, and they poll again."""
        self.subscriptions = Subscriptions()
        self._waiting.clear()

    def _send_durable(self) -> None:
        while self._waiting and (
            self._journal.error or self._waiting[0][0] <= self._journal.durable
        ):
            _, peer, message = self._waiting.popleft()
            if not self._send(peer, message) and isinstance(message, Update):
                self.subscriptions.unsubscribe(message.request, peer)
