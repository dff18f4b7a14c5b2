"""Sends queries and commands to the controller, and waits for their answers."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
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
    QueryKind,
    Rejected,
    RequestInfo,
    Update,
)
from fabric.wire.sockets import Codec, DecodeError

#: Seconds after which a message is repeated, at first and at most.
REPEAT_AFTER = 1.0
REPEAT_AFTER_MOST = 4.0
#: Seconds after which waiting for an answer ends.
PATIENCE = 10.0
#: Digits of a request's id that are shown: they are its time in milliseconds.
SHOWN = 12


@contextlib.contextmanager
def open_connection(settings: Settings) -> Iterator[Connection]:
    """A connection to the controller.  FabricError if the settings lack what it needs."""
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


def named_by(beginning: str, infos: Iterable[RequestInfo]) -> RequestInfo:
    """The request whose id has this beginning.  FabricError if there is none, or several."""
    found = [one for one in infos if one.request.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise FabricError(f"{beginning}: no such build; `{command('list')}` lists them")
    ids = ", ".join(f"{one.request[:SHOWN]} ({one.title})" for one in found[:5])
    raise FabricError(f"{beginning}: the ids of several builds begin with this: {ids}")


class Controller:
    """Repeats each message until it is answered, for `PATIENCE` seconds.

    While the controller is out of reach, it waits for ``patience`` seconds if that is longer, and
    calls ``on_error`` with the reason.
    """

    def __init__(
        self,
        connection: Connection,
        patience: float = 0.0,
        on_error: Callable[[str], None] | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """``check`` is called while it waits, and raises an error to end that."""
        self.connection = connection
        #: fault of the controller, from its last answer; "" if there is none
        self.warning = ""
        self._patience = max(PATIENCE, patience)
        self._on_error = on_error
        self._check = check
        self._codec: Codec[Answer | Update | LogPiece | Rejected] = Codec(
            Answer | Update | LogPiece | Rejected
        )

    def query(self, what: QueryKind, about: str = "", seen: int = 0) -> Answer:
        """The answer to a query.

        FabricError with the controller's reason if it has none, MachineFault if it is silent.
        """
        return self._answer(Query(PROTOCOL, uuid.uuid4().hex, what, about, seen))

    def command(self, what: Literal["cancel", "drain", "resume"], about: str) -> Answer:
        """The answer to a command.  Errors as `query`; MachineFault also if it must be repeated."""
        return self._answer(Command(PROTOCOL, uuid.uuid4().hex, what, about))

    def update(self, request: str) -> Update:
        """The state of a request.  FabricError if the controller does not know it."""
        for message in self._send_until_answered(Poll(request, 0), request):
            if isinstance(message, Update) and message.request == request:
                return message
        raise AssertionError

    def read_log(self, key: str, fence: int, offset: int) -> LogPiece | None:
        """The next bytes of a log from ``offset`` on; None if there is no such log.

        MachineFault if it cannot be read at the moment.
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
        """The request whose id begins with ``named``.  FabricError if there is none, or several."""
        return named_by(named, self.query("requests").requests)

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
        """Messages from the controller; ``question`` is repeated until the caller stops."""
        began = due = time.monotonic()
        delay = REPEAT_AFTER
        while True:
            now = time.monotonic()
            if now >= due:
                self.connection.send(self._codec.encode(question))
                due, delay = now + delay, min(2 * delay, REPEAT_AFTER_MOST)
            self.connection.wait(due - now)
            if self._check:
                self._check()
            for frame in self.connection.receive(100):
                try:
                    message = self._codec.decode(frame)
                except DecodeError:  # another version, or damaged: the question is repeated
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
                    f"no answer: {error or 'the controller is silent'}; is fabric-broker running"
                    " there, and the setting `controller` correct?"
                )
            elif changed and error and self._on_error:
                self._on_error(error)


@contextlib.contextmanager
def open_controller(settings: Settings) -> Iterator[Controller]:
    """The controller that the settings name.  FabricError as `open_connection`."""
    with open_connection(settings) as connection:
        yield Controller(connection)
