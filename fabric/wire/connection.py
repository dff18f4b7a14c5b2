"""Keeps a worker's or an initiator's connection to the broker alive.

ZeroMQ reconnects after a break, but not after a rejection, and it does not detect a broker that
accepts connections and stays silent.  Therefore, after a long silence, the sockets are made anew.
``trouble`` contains the reason for the silence.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Literal

import zmq

from fabric.config import Settings, WorkerSettings, host_and_port
from fabric.wire import keys, sockets
from fabric.wire.messages import Published
from fabric.wire.sockets import Addresses, Curve

#: Seconds without a word from the broker until the sockets are made anew,
SILENCE = 10.0
#: and if it has turned us away.
RETRY_UNAUTHORIZED = 1.0
#: Seconds without a word from the broker that are worth a word.
REPORT_SILENCE = 3.0
#: Events of the connection that are looked at in one turn.
EVENTS_AT_ONCE = 100

_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
#: As ``zmq_socket_monitor`` sends it, with a value.  pyzmq's own parser imports asyncio.
_EVENT = struct.Struct("=hi")
_EVENTS = (
    _FAILED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
)


class Connection:
    """Sockets ``jobs`` and ``logs``.  `wait`, and then hear what has come.

    ``wake`` ends the waiting, too: see `fabric.wire.sockets.Inbox`.
    """

    def __init__(
        self,
        addresses: Addresses,
        logs: Literal["publish", "follow"],
        *,
        curve: Curve | None = None,
        name: str = "",
        wake: int | None = None,
    ) -> None:
        """``name`` is that of one's own key, for messages.  AddressError if that is none."""
        self._addresses = addresses
        self._publishes = logs == "publish"
        self._curve = curve
        self._name = name
        self._wake = wake
        self._topics: dict[str, None] = {}
        self._last_received: float | None = None
        self._reason = ""  # it does not connect
        self._reported = ""
        #: why the broker is silent; "" if it is not
        self.error = ""
        self._open()

    def _open(self) -> None:
        self._context = sockets.new_context()
        self.jobs = sockets.dealer(self._context, self._curve)
        self._events = self.jobs.get_monitor_socket(_EVENTS)
        sockets.connect(self.jobs, self._addresses.jobs)
        receiving = [self.jobs, self._events]
        if self._publishes:
            self.logs = sockets.publisher(self._context, self._curve)
            sockets.connect(self.logs, self._addresses.logs_in)
        else:
            self.logs = sockets.subscriber(self._context, *self._topics, curve=self._curve)
            sockets.connect(self.logs, self._addresses.logs)
            receiving.append(self.logs)
        self._inbox = sockets.Inbox(*receiving, wake=self._wake)

    def close(self, linger: int = 200) -> None:
        """Send what is on its way, for ``linger`` milliseconds at most."""
        self.jobs.disable_monitor()
        self._context.destroy(linger=linger)

    def send(self, frame: bytes) -> bool:
        """Say something to the broker; False if it cannot be said now."""
        return sockets.send(self.jobs, frame)

    def wait(self, seconds: float) -> None:
        """Until something comes, or so long at most."""
        self._inbox.wait(round(1000 * max(0.0, seconds)))

    def receive(self, limit: int) -> Iterator[bytes]:
        """Messages of the broker that have come."""
        for frames in self._inbox.receive(self.jobs, limit):
            self._last_received = None
            self.error = self._reason = ""
            yield frames[-1].bytes

    def pieces(self, limit: int) -> Iterator[Published]:
        """Pieces of followed logs that have come."""
        for frames in self._inbox.receive(self.logs, limit):
            with contextlib.suppress(ValueError):  # rubbish
                (frame,) = frames
                yield Published.of(frame.buffer)

    def subscribe(self, topic: str) -> None:
        """Follow a log."""
        if topic not in self._topics:
            self._topics[topic] = None
            self.logs.setsockopt(zmq.SUBSCRIBE, topic.encode())

    def unsubscribe(self, topic: str) -> None:
        """Follow it no more."""
        if self._topics.pop(topic, "") is None:
            self.logs.setsockopt(zmq.UNSUBSCRIBE, topic.encode())

    def maintain(self, now: float) -> bool:
        """To be called in every turn of a loop, after `receive`.  Whether ``trouble`` changed.

        The one who calls has something to ask at least once a second, so that silence is news.
        """
        self._read_events(now)
        if self._last_received is None:
            self._last_received = now
        silent = now - self._last_received
        rejected = bool(self._reason) and self._reason == self._unauthorized_text
        if silent >= REPORT_SILENCE or rejected:
            self.error = self._reason or f"{self._addresses.jobs} does not answer"
        if silent >= (RETRY_UNAUTHORIZED if rejected else SILENCE):
            self._last_received, self._reason = now, ""
            self.close(linger=0)
            self._open()
        reported, self._reported = self._reported, self.error
        return reported != self.error

    def _read_events(self, now: float) -> None:
        for frames in self._inbox.receive(self._events, EVENTS_AT_ONCE):
            event, _ = _EVENT.unpack(frames[0].buffer)
            where = self._addresses.jobs
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._reason = self._unauthorized_text
            elif event & _FAILED:
                self._reason = (
                    f"{where} breaks the connection off; if it goes on doing so,"
                    " broker.key is not the key of this controller"
                )
            elif event == zmq.EVENT_CLOSED and self._reason != self._unauthorized_text:
                self._reason = f"{where} cannot be reached"
            elif event == zmq.EVENT_CONNECT_RETRIED and not self._reason:
                # nothing was there to be closed: it knows no address
                self._reason = f"{where} cannot be reached: its name is not known here"
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._last_received, self._reason = now, ""

    @property
    def unauthorized(self) -> bool:
        """The trouble is that the broker does not admit our key."""
        return self.error == self._unauthorized_text

    @property
    def _unauthorized_text(self) -> str:
        return (
            f"{self._addresses.jobs} does not admit the key of {self._name}:"
            f" `fabric-keys admit {self._name}.key` there authorizes it"
        )


def dial(
    settings: Settings | WorkerSettings, role: keys.Role
) -> tuple[Addresses, Curve | None, str]:
    """Where the controller is, what to encrypt with, and the name in one's key, "" if none.

    ConfigError or KeyProblem if that is not as it should be.
    """
    host, port = host_and_port(settings.controller)
    addresses = sockets.over_tcp(host, port)
    if settings.plain:
        sockets.check_plain(host)
        return addresses, None, ""
    name, curve = keys.of_peer(settings.keys_dir, role)
    return addresses, curve, name
