"""Keeps a worker's or an initiator's connection to the broker alive.

ZeroMQ reconnects after a break, but not after a rejection, and it does not detect a broker that
accepts connections and stays silent.  Therefore `Connection.maintain` reopens the sockets after a
long silence.  `Connection.error` contains the reason for the silence.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Literal

import zmq

from fabric.config import Settings, WebSettings, WorkerSettings, host_and_port
from fabric.wire import keys, sockets
from fabric.wire.messages import Published
from fabric.wire.sockets import Addresses, Curve

#: Seconds without a message from the broker after which the sockets are reopened.
SILENCE = 10.0
#: The same, if the broker has rejected the key.
RETRY_UNAUTHORIZED = 1.0
#: Seconds without a message from the broker after which ``error`` says so.
REPORT_SILENCE = 3.0
#: Events of the connection that are handled in one turn.
EVENTS_AT_ONCE = 100

_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
#: An event of ``zmq_socket_monitor``: its number and a value.  pyzmq's parser imports asyncio.
_EVENT = struct.Struct("=hi")
_EVENTS = (
    _FAILED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
)


class Connection:
    """The sockets ``jobs`` and ``logs``.  Call `wait`, then `receive`, `pieces` and `maintain`.

    ``wake`` is a descriptor that ends `wait` when it is readable, as in `sockets.Inbox`.
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
        """``name`` is the name of the own key, for error texts.

        AddressError if ``addresses`` cannot be connected to.
        """
        self._addresses = addresses
        self._publishes = logs == "publish"
        self._curve = curve
        self._name = name
        self._wake = wake
        self._topics: dict[str, None] = {}
        self._last_received: float | None = None
        self._reason = ""  # why it is not connected
        self._reported = ""
        #: why the broker is silent; "" if it answers
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
        """Close the sockets; sending what is queued takes at most ``linger`` milliseconds."""
        self.jobs.disable_monitor()
        self._context.destroy(linger=linger)

    def send(self, frame: bytes) -> bool:
        """Send to the broker; False if its queue is full."""
        return sockets.send(self.jobs, frame)

    def wait(self, seconds: float) -> None:
        """Wait until something can be received, or for ``seconds``."""
        self._inbox.wait(round(1000 * max(0.0, seconds)))

    def receive(self, limit: int) -> Iterator[bytes]:
        """At most ``limit`` messages that the broker sent."""
        for frames in self._inbox.receive(self.jobs, limit):
            self._last_received = None
            self.error = self._reason = ""
            yield frames[-1].bytes

    def pieces(self, limit: int) -> Iterator[Published]:
        """At most ``limit`` published pieces of subscribed logs."""
        for frames in self._inbox.receive(self.logs, limit):
            with contextlib.suppress(ValueError):  # not a piece of a log
                (frame,) = frames
                yield Published.of(frame.buffer)

    def subscribe(self, topic: str) -> None:
        """Subscribe to the log of the step with the key ``topic``."""
        if topic not in self._topics:
            self._topics[topic] = None
            self.logs.setsockopt(zmq.SUBSCRIBE, topic.encode())

    def unsubscribe(self, topic: str) -> None:
        """End the subscription to ``topic``."""
        if self._topics.pop(topic, "") is None:
            self.logs.setsockopt(zmq.UNSUBSCRIBE, topic.encode())

    def maintain(self, now: float) -> bool:
        """Reopen the sockets if the broker is silent; True if ``error`` changed.

        Call it in every turn of the loop, after `receive`.  The caller must send a message that
        has an answer at least once a second: otherwise silence means nothing.
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
                # no connection was closed before, so the name has no address
                self._reason = f"{where} cannot be reached: its name is not known here"
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._last_received, self._reason = now, ""

    @property
    def unauthorized(self) -> bool:
        """Whether ``error`` is that the broker does not admit the own key."""
        return self.error == self._unauthorized_text

    @property
    def _unauthorized_text(self) -> str:
        return (
            f"{self._addresses.jobs} does not admit the key of {self._name}:"
            f" `fabric-keys admit {self._name}.key` there authorizes it"
        )


def dial(
    settings: Settings | WorkerSettings | WebSettings, role: keys.Role
) -> tuple[Addresses, Curve | None, str]:
    """The controller's addresses, the keys to encrypt with, and the name of the own key.

    Without encryption, there are no keys and the name is "".  ConfigError if the setting
    `controller` is malformed, AddressError if `plain` is set for a remote host, KeyProblem if a key
    is missing or unusable.
    """
    host, port = host_and_port(settings.controller)
    addresses = sockets.over_tcp(host, port)
    if settings.plain:
        sockets.check_plain(host)
        return addresses, None, ""
    name, curve = keys.of_peer(settings.keys_dir, role)
    return addresses, curve, name
