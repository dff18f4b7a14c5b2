"""Initiators, and what they are told: nothing that a crash of the broker could take back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from fabric.scheduling.watchers import Watchers
from fabric.wire.messages import Message, Update

if TYPE_CHECKING:
    from fabric.journal import Journal
    from fabric.scheduling.core import Scheduler


class Audience:
    """All who ask or follow.  Answers and updates wait until the journal has kept what it had
    promised when they were made; then they go out by ``send``, which is False for a peer that is
    gone.
    """

    def __init__(self, journal: Journal, send: Callable[[bytes, Message], bool]) -> None:
        self.watchers = Watchers()
        self._journal = journal
        self._send = send
        self._unsaid: deque[tuple[int, bytes, Message]] = deque()  # once so many promises are kept

    def due(self) -> float:
        """When `tell` is due; the journal wakes whoever waits for it."""
        return math.inf if self._unsaid else self.watchers.next_due()

    def say(self, peer: bytes, message: Message) -> None:
        """Tell somebody something, as soon as all is on the disk that it speaks of."""
        self._unsaid.append((self._journal.promised, peer, message))

    def tell(self, scheduler: Scheduler, now: float) -> None:
        """Say what may be said now, news of requests too."""
        self._say_what_is_kept()
        if self._unsaid:
            return  # whoever follows a request hears more of it after that
        for watcher in self.watchers.take(now):
            update = scheduler.update(watcher.request, watcher.seen, now)
            if update is None:
                self.watchers.unwatch(watcher.request, watcher.peer)
            else:
                self.say(watcher.peer, update)
        self._say_what_is_kept()

    def cut_off(self) -> None:
        """All connections are made anew: who still follows will say so."""
        self.watchers = Watchers()
        self._unsaid.clear()

    def _say_what_is_kept(self) -> None:
        while self._unsaid and self._unsaid[0][0] <= self._journal.kept:
            _, peer, message = self._unsaid.popleft()
            if not self._send(peer, message) and isinstance(message, Update):
                self.watchers.unwatch(message.request, peer)
