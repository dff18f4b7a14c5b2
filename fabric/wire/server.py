"""Receives messages at the broker's sockets, and checks them.

Each message must be decodable, of this protocol version, and allowed for the sender's role.  The
sender's name is the one in its key.  An invalid message is answered with `Rejected`, and has no
effect on other peers.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import zmq

from fabric import bounds
from fabric.wire import sockets
from fabric.wire.keys import Authenticator, AuthorizedKeys, Certificate
from fabric.wire.messages import (
    PROTOCOL,
    BuildOrder,
    Code,
    Command,
    FromPeer,
    Leave,
    LogPiece,
    LogRead,
    Message,
    Poll,
    Published,
    Query,
    Rejected,
    Report,
    Update,
    cut,
)
from fabric.wire.server_connections import Connections, Unauthenticated, Unread, descriptor
from fabric.wire.sockets import Addresses, Curve, Socket
from fabric.wire.viewing import Viewing

#: Messages received from each socket in one turn.
JOBS_AT_ONCE = 200
LOGS_AT_ONCE = 100
SUBSCRIPTIONS_AT_ONCE = 500
#: Seconds for which a name with too many subscriptions cannot follow logs.
BLOCKED_FOR = 10.0
#: Connections of one name to a socket, by role.
CONNECTIONS = {
    "worker": bounds.WORKER_CONNECTIONS,
    "initiator": bounds.CONNECTIONS,
    "viewer": bounds.CONNECTIONS,
}
#: Bytes from which on a message is tracked until it has left.
LARGE = 8 * bounds.KIB
#: Seconds between two reads of the authorized keys.
REFRESH_EVERY = 0.2
#: Seconds between two warnings about unauthenticated connections.
WARN_EVERY = 60.0
#: Peers remembered for invalid messages, so that there is one warning for each.
WARNED_PEERS = 1000

#: Made at import, which takes a millisecond: the zygote forks embedded brokers that have it.
_messages: sockets.Codec[FromPeer] = sockets.Codec(FromPeer)

#: Message types by role.  A `BuildGraph` is not accepted over a network: nothing proves that its
#: cache keys belong to its steps.
ALLOWED_MESSAGES: dict[str, tuple[type, ...]] = {
    "worker": (Report, LogPiece),
    "initiator": (BuildOrder, Poll, Leave, LogRead, Query, Command),
    "viewer": (LogRead, Query),
}
#: All ids have the same length, so none is a prefix of another: users type prefixes.
_ID = re.compile("[0-9a-f]{32}")
#: Largest size of each message type, in bytes.
LARGEST: dict[Any, int] = {
    Report: bounds.REMOTE_FRAME,
    LogPiece: bounds.LOG_RANGE + bounds.INITIATOR_MESSAGE,
    BuildOrder: bounds.BUILD_ORDER,
} | dict.fromkeys((Poll, Leave, LogRead, Query, Command), bounds.INITIATOR_MESSAGE)


class Received(NamedTuple):
    """A valid message."""

    peer: bytes  # identity to which the answer goes
    sender: str  # name in the sender's key, "" without keys
    message: FromPeer


class Server:
    """The sockets at ``addresses``; with ``curve`` they accept only the ``admitted`` keys.

    ``wake`` is a descriptor that ends `wait` when it is readable, as in `sockets.Inbox`.
    ``warn`` is called for invalid messages, once for each peer.
    """

    def __init__(
        self,
        addresses: Addresses,
        warn: Callable[[str], None],
        *,
        wake: int,
        curve: Curve | None = None,
        admitted: AuthorizedKeys | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``clock`` measures the time that messages take, in nanoseconds.

        AddressError if an address is invalid or in use.
        """
        self._addresses = addresses
        self._warn = warn
        self._wake = wake
        self._curve = curve
        self._admitted = admitted
        self._clock = clock
        self._viewing = Viewing()
        self._warned: dict[str, None] = {}
        self._problems: list[str] = []
        ports = {each.rpartition(":")[2] for each in addresses if each.startswith("tcp:")}
        self._unauthenticated = Unauthenticated({int(port) for port in ports})
        self._crowd_warned = -math.inf
        #: when `refresh_keys` is due
        self.due = math.inf if admitted is None else 0.0
        self._listen()

    def _listen(self) -> None:
        self._context = context = sockets.new_context()
        self._authenticator = (
            None if self._admitted is None else Authenticator(context, self._admitted)
        )
        self._jobs = sockets.router(context, self._curve)
        self._logs_in = sockets.subscriber(context, "", curve=self._curve)
        self._logs = sockets.republisher(context, self._curve)
        opened = (self._jobs, self._logs_in, self._logs)
        try:
            for socket, address in zip(opened, self._addresses, strict=True):
                sockets.bind(socket, address)
        except sockets.AddressError:
            self.close()
            raise
        authentication = () if self._authenticator is None else (self._authenticator.socket,)
        self._connections = {socket: Connections(socket) for socket in opened}
        monitors = (connections.events for connections in self._connections.values())
        self._inbox = sockets.Inbox(*opened, *authentication, *monitors, wake=self._wake)
        self._unread = Unread()

    def close(self) -> None:
        """Close all connections and sockets."""
        for socket in (self._jobs, self._logs_in, self._logs):
            socket.disable_monitor()
        self._context.destroy(linger=0)

    # -- receiving -----------------------------------------------------------------------------

    def wait(self, milliseconds: int) -> None:
        """Wait until something can be received, or for ``milliseconds``."""
        self._inbox.wait(milliseconds)

    def refresh_keys(self, now: float) -> bool:
        """Read the authorized keys again, if it is due; True if all connections were closed.

        ZeroMQ authenticates a connection once, when it begins, and does not say which one it is.
        Therefore, after a revocation, all are closed; authorized peers reconnect.
        """
        if self._admitted is None or self._authenticator is None or now < self.due:
            return False
        self.due = now + REFRESH_EVERY
        if (number := self._unauthenticated.cut()) and now >= self._crowd_warned + WARN_EVERY:
            self._crowd_warned = now
            self._warn(
                f"closed {number} connections that had not authenticated: fewer than"
                f" {bounds.DESCRIPTORS_KEPT} descriptors were left"
            )
        revoked = self._admitted.refresh() or self._authenticator.revoked
        for problem in self._admitted.problems:
            if problem not in self._problems:
                self._warn(problem)
        self._problems = self._admitted.problems
        if revoked:
            self._warn("a key is not admitted any more: all connections are made anew")
            self.close()
            self._listen()
        return revoked

    def authenticate(self, now: float) -> None:
        """Answer handshakes, and count connections and subscriptions."""
        if self._authenticator is not None and self._inbox.has(self._authenticator.socket):
            self._authenticator.serve(now)
        for connections in self._connections.values():
            if self._inbox.has(connections.events):
                connections.forget_ended()
        left = SUBSCRIPTIONS_AT_ONCE
        for frames in self._inbox.receive(self._logs, SUBSCRIPTIONS_AT_ONCE):
            left -= 1
            fd = descriptor(frames[0])
            if fd is None:
                continue  # ZeroMQ's own message, when a connection has ended
            sender = self._sender(frames[0])
            self._count(self._logs, frames[0], sender)
            if why := self._connections[self._logs].subscribed(fd, frames[0].buffer):
                self._warn_once(b"", sender, why)
                if self._authenticator is not None and sender is not None:
                    self._authenticator.block(sender.name, now + BLOCKED_FOR)
        if left:
            self._connections[self._logs].all_received()

    def _count(
        self, socket: Socket, frame: zmq.Frame, sender: Certificate | None, peer: bytes = b""
    ) -> None:
        """Count the connection by which ``frame`` came, and close one if the name has too many."""
        fd = descriptor(frame)
        if fd is None:
            return
        name, most = (
            ("", sys.maxsize) if sender is None else (sender.name, CONNECTIONS[sender.role])
        )
        if why := self._connections[socket].received(fd, name, most, peer):
            self._warn_once(peer, sender, why)

    def receive(self) -> Iterator[Received]:
        """Valid messages from peers."""
        reads: Counter[bytes] = Counter()
        spent: Counter[str] = Counter()  # nanoseconds by name
        for frames in self._inbox.receive(self._jobs, JOBS_AT_ONCE):
            sender = self._sender(frames[-1])
            if self._admitted is None:
                name = ""
            elif sender is None:
                continue  # its key was revoked a moment ago
            else:
                name = sender.name
                self._count(self._jobs, frames[-1], sender, frames[0].bytes)
                if spent[name] > bounds.TURN * 1_000_000:
                    continue  # its share of this turn is used up
            began = self._clock()
            viewer = sender is not None and sender.role == "viewer"
            if viewer and not self._viewing.may(name, began):
                continue  # its share of these seconds is used up
            if (received := self._check(frames, sender, reads)) is not None:
                yield received
            if name:
                took = self._clock() - began
                spent[name] += took
                if viewer:
                    self._viewing.spend(name, took)

    def _check(
        self, frames: list[zmq.Frame], sender: Certificate | None, reads: Counter[bytes]
    ) -> Received | None:
        """The message in ``frames``; None if it is invalid, or one `LogRead` too many.

        ``reads`` counts the log reads of each peer in this turn.
        """
        peer, frame = frames[0].bytes, frames[-1].buffer
        if len(frames) != 2:
            self._warn_once(peer, sender, f"it has {len(frames)} frames")
            return None
        try:
            message = _messages.decode(frame)
        except sockets.DecodeError as error:
            self._reject_undecodable(peer, sender, frame, str(error))
            return None
        if getattr(message, "protocol", PROTOCOL) != PROTOCOL:
            self._reject_undecodable(peer, sender, frame, "")
            return None
        if sender is not None:
            named = self._authorize(peer, sender, message, len(frame))
            if named is None:
                return None
            message = named
        if isinstance(message, LogRead):
            reads[peer] += 1
            if reads[peer] > bounds.LOGS_READ:
                return None  # the peer repeats it
        return Received(peer, "" if sender is None else sender.name, message)

    def pieces(self) -> Iterator[tuple[str, Published, zmq.Frame]]:
        """Published pieces of logs: (name of the sender, piece, the frame for `publish`)."""
        for frames in self._inbox.receive(self._logs_in, LOGS_AT_ONCE):
            sender = self._sender(frames[0])
            if self._admitted is not None:
                if sender is None or sender.role != "worker":
                    continue
                self._count(self._logs_in, frames[0], sender)
            try:
                (frame,) = frames
                piece = Published.of(frame.buffer)
            except ValueError:
                self._warn_once(b"", sender, "it is not a piece of a log")
            else:
                yield "" if sender is None else sender.name, piece, frame

    def _sender(self, frame: zmq.Frame) -> Certificate | None:
        """The sender's certificate; None without keys, or if its key is not admitted any more."""
        if self._admitted is None:
            return None
        return self._admitted.get(str(frame.get("User-Id")))

    def _authorize(
        self, peer: bytes, sender: Certificate, message: FromPeer, size: int
    ) -> FromPeer | None:
        """The message with the name in the sender's key; None if its role may not send it."""
        if not isinstance(message, ALLOWED_MESSAGES[sender.role]):
            kind = type(message).__name__
            reason = f"{sender.name} is admitted as {sender.role}, who may not send a {kind}"
            self.reject(peer, about(message), "not-allowed", reason)
            self._warn_once(peer, sender, reason)
            return None
        if size > (largest := LARGEST[type(message)]):
            kind = type(message).__name__
            reason = f"{kind} of {size:,} bytes: it may have {largest:,}"
            self.reject(peer, about(message), "bad-request", reason)
            self._warn_once(peer, sender, reason)
            return None
        if isinstance(message, BuildOrder) and not _ID.fullmatch(message.request):
            reason = "the id of a request has 32 hexadecimal digits"
            self.reject(peer, message.request, "bad-request", reason)
            return None
        if isinstance(message, Report) and message.name != sender.name:
            return msgspec.structs.replace(message, name=sender.name)
        if isinstance(message, BuildOrder) and message.requester != sender.name:
            return msgspec.structs.replace(message, requester=sender.name)
        return message

    def _reject_undecodable(
        self, peer: bytes, sender: Certificate | None, frame: memoryview, error: str
    ) -> None:
        greeting = sockets.greeting(frame)
        if greeting is None:
            self._warn_once(peer, sender, error)
            return
        code: Code = "bad-request"
        reason = f"a message cannot be read: {error}"
        if greeting[1] != PROTOCOL:
            code = "protocol"
            reason = sockets.mismatch(greeting[1], us="the broker", them="this peer")
        self.reject(peer, greeting[0], code, reason)
        self._warn_once(peer, sender, reason)

    def _warn_once(self, peer: bytes, sender: Certificate | None, why: str) -> None:
        """Warn of an invalid message, once for each peer."""
        who = sender.name if sender is not None else peer.hex()
        if who not in self._warned:
            self._warned[who] = None
            if len(self._warned) > WARNED_PEERS:
                del self._warned[next(iter(self._warned))]
            by = f" of {sender.role} {sender.name}" if sender is not None else ""
            self._warn(f"a message{by} was dropped: {why}")

    # -- sending -------------------------------------------------------------------------------

    def send(self, peer: bytes, message: Message) -> bool:
        """Send to a peer; False if it is gone, or peers of its name have too much unread."""
        name = self._connections[self._jobs].name(peer)
        began = self._clock() if name in self._viewing else 0
        frame = _messages.encode(message)
        if len(frame) > bounds.FRAME and isinstance(message, Update):
            frame = _messages.encode(_brief(message))
        if began:
            self._viewing.spend(name, self._clock() - began)
        if len(frame) < LARGE or not name:
            return sockets.send(self._jobs, frame, to=peer)
        if self._unread.full(name):
            return False
        tracker = sockets.send_tracked(self._jobs, frame, to=peer)
        if tracker is None:
            return False
        self._unread.sent(name, peer, len(frame), tracker)
        return True

    def reject(self, peer: bytes, about: str, code: Code, reason: str) -> None:
        """Send a `Rejected`."""
        self.send(peer, Rejected(about, code, reason))

    def publish(self, piece: bytes | zmq.Frame) -> None:
        """Send a piece of a log to its subscribers; those that read too slowly lose it."""
        sockets.send(self._logs, piece)


def about(message: FromPeer) -> str:
    """Value of `Rejected.about` for a message: a worker, request, key or id."""
    match message:
        case Report():
            return message.name
        case LogPiece() | LogRead():
            return message.key
        case Query() | Command():
            return message.id
        case _:
            return message.request


def _brief(update: Update) -> Update:
    """An update with shortened failure messages: the logs have the whole text."""
    steps = (
        msgspec.structs.replace(step, message=cut(step.message, 100), failed_command="")
        for step in update.steps
    )
    return msgspec.structs.replace(update, steps=tuple(steps))
