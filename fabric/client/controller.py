"""Asks the controller questions for commands: one question, one answer."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Literal

from fabric import bounds
from fabric.config import Settings
from fabric.errors import FabricError, MachineFault, command, with_own_commands
from fabric.wire.connection import Connection, dial
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    Command,
    LogPiece,
    LogRead,
    Poll,
    Query,
    Rejected,
    RequestInfo,
    Update,
)
from fabric.wire.sockets import Codec, DecodeError

#: Seconds after which a question is put again, at first and at most; and after which there is no
#: answer.
REPEAT_AFTER = 1.0
REPEAT_AFTER_MOST = 4.0
PATIENCE = 10.0
#: Digits of a request's id that are shown: its time in milliseconds.
SHOWN = 12


@contextlib.contextmanager
def open_connection(settings: Settings) -> Iterator[Connection]:
    """A line to the controller.  FabricError if the settings do not tell how."""
    if not settings.controller:
        raise FabricError(
            "no controller is set: give --controller HOST, set `controller` in the settings, or"
            " FABRIC_CONTROLLER"
        )
    addresses, curve, name = dial(settings, "initiator")
    connection = Connection(addresses, "follow", curve=curve, name=name)
    try:
        yield connection
    finally:
        connection.close()


class Controller:
    """Puts questions, again and again until there is an answer.

    For PATIENCE seconds, or for ``patience`` if that is more and nothing but reach is wanting;
    ``tell`` hears what is waited for.
    """

    def __init__(
        self,
        connection: Connection,
        patience: float = 0.0,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self.connection = connection
        #: what the controller said in its last answer that is wrong with it; "" if nothing is
        self.warning = ""
        self._patience = max(PATIENCE, patience)
        self._on_error = on_error
        self._codec: Codec[Answer | Update | LogPiece | Rejected] = Codec(
            Answer | Update | LogPiece | Rejected
        )

    def query(
        self, what: Literal["requests", "workers", "why", "pinned", "logs"], about: str = ""
    ) -> Answer:
        """FabricError with the controller's reason if it has no answer, MachineFault if it is
        silent."""
        return self._answer(Query(PROTOCOL, uuid.uuid4().hex, what, about))

    def command(self, what: Literal["cancel", "drain", "resume"], about: str) -> Answer:
        """The same for an operator's word; MachineFault too if that cannot be kept now."""
        return self._answer(Command(PROTOCOL, uuid.uuid4().hex, what, about))

    def update(self, request: str) -> Update:
        """All that is known of a request.  FabricError if nothing is."""
        for message in self._send_until_answered(Poll(request, 0), request):
            if isinstance(message, Update) and message.request == request:
                return message
        raise AssertionError

    def read_log(self, key: str, fence: int, offset: int) -> LogPiece | None:
        """What there is of a log from ``offset`` on; None if there is no such log.

        MachineFault if it cannot be read now.
        """
        question = LogRead(key, fence, offset, bounds.LOG_RANGE)
        for message in self._send_until_answered(question, ""):
            if isinstance(message, LogPiece) and (message.key, message.offset) == (key, offset):
                return message
            if isinstance(message, Rejected) and message.about == key:
                if message.code == "not-now":
                    raise MachineFault(message.reason)
                return None
        raise AssertionError

    def request(self, named: str) -> RequestInfo:
        """The request whose id begins so.  FabricError if there is none, or several."""
        found = [one for one in self.query("requests").requests if one.request.startswith(named)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise FabricError(f"{named}: no such build; `{command('list')}` lists them")
        ids = ", ".join(f"{one.request[:SHOWN]} ({one.title})" for one in found[:5])
        raise FabricError(f"{named}: several builds begin so: {ids}")

    def _answer(self, question: Query | Command) -> Answer:
        for message in self._send_until_answered(question, question.id):
            if isinstance(message, Answer) and message.id == question.id:
                self.warning = message.warning
                if message.error:
                    error = "\n".join(filter(None, (message.error, message.warning)))
                    raise FabricError(with_own_commands(error))
                return message
        raise AssertionError

    def _send_until_answered(
        self, question: Query | Command | Poll | LogRead, about: str
    ) -> Iterator[Answer | Update | LogPiece | Rejected]:
        """All that comes, until whoever asked is content."""
        began = due = time.monotonic()
        delay = REPEAT_AFTER
        while True:
            now = time.monotonic()
            if now >= due:
                self.connection.send(self._codec.encode(question))
                due, delay = now + delay, min(2 * delay, REPEAT_AFTER_MOST)
            self.connection.wait(due - now)
            for frame in self.connection.receive(100):
                try:
                    message = self._codec.decode(frame)
                except DecodeError:  # of another version, or damaged: the question is put again
                    continue
                if isinstance(message, Rejected) and about and message.about == about:
                    kind = MachineFault if message.code == "not-now" else FabricError
                    raise kind(with_own_commands(message.reason))
                yield message
            changed, error = self.connection.maintain(time.monotonic()), self.connection.error
            waited = time.monotonic() - began
            if self.connection.unauthorized:
                if waited > PATIENCE:
                    raise MachineFault(error)
            elif waited > self._patience:
                raise MachineFault(
                    f"no answer: {error or 'the controller is silent'}; is fabric-broker up"
                    " there, and the setting `controller` right?"
                )
            elif changed and error and self._on_error:
                self._on_error(error)


@contextlib.contextmanager
def open_controller(settings: Settings) -> Iterator[Controller]:
    """The controller of the settings."""
    with open_connection(settings) as connection:
        yield Controller(connection)
