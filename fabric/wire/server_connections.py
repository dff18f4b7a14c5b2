"""Counts the connections of each name to the broker's sockets, and closes those past a bound.

ZeroMQ has no call for that.  A connection is identified by its descriptor; shutting it down makes
ZeroMQ drop the connection as if the peer had closed it.  If the descriptor belongs to a newer
connection by then, its peer reconnects.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
from collections import Counter, deque
from collections.abc import Iterator

import zmq

from fabric import bounds
from fabric.wire import sockets

#: A connection that has received fewer bytes has not authenticated: greeting, hello, initiate.
_HANDSHAKE = 540
#: Milliseconds that a handshake may take when descriptors are few.
_PATIENCE = 200
#: Subscriptions of a connection between two sums over all connections of its name.
_LOOK = 256
#: Of Linux's ``struct tcp_info``: milliseconds since data was sent, bytes received.
_TCP_INFO = struct.Struct("=44xI80xQ")
#: An event of ``zmq_socket_monitor``: its number and the descriptor.
_EVENT = struct.Struct("=Hi")


def descriptor(frame: zmq.Frame) -> int | None:
    """Descriptor of the connection by which a frame came; None if ZeroMQ itself made it."""
    try:
        return int(frame.get("__fd"))
    except zmq.ZMQError:
        return None


class Unauthenticated:
    """Connections that have not authenticated.

    `cut` closes them, the oldest first, while fewer than `bounds.DESCRIPTORS_KEPT` descriptors are
    left for the broker itself.
    """

    def __init__(self, ports: set[int]) -> None:
        """``ports`` are the TCP ports of the broker's sockets."""
        self._ports = ports
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = self._limit - min(bounds.DESCRIPTORS_KEPT, self._limit // 2)

    def cut(self) -> int:
        """Close them if descriptors are short; returns the number of closed connections."""
        if not self._is_short():
            return 0
        oldest = sorted(self._strangers(), reverse=True)
        for _, fd in oldest:
            _cut(fd)
        return len(oldest)

    def _is_short(self) -> bool:
        """Whether few descriptors are left: the kernel assigns the lowest free number."""
        try:
            lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        os.close(lowest)
        return lowest >= self._most

    def _strangers(self) -> Iterator[tuple[int, int]]:
        """(age in milliseconds, descriptor) of each."""
        for fd in range(3, self._limit):
            with contextlib.suppress(OSError), _borrowed(fd) as connection:
                if connection.getsockname()[1] not in self._ports:
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                lasted, received = _TCP_INFO.unpack(info)
                if received < _HANDSHAKE and lasted >= _PATIENCE:
                    yield lasted, fd


class Unread:
    """Bytes of large messages that the peers of a name have not read yet."""

    def __init__(self) -> None:
        #: name -> peer -> (bytes, tracker), oldest first
        self._sent: dict[str, dict[bytes, deque[tuple[int, zmq.MessageTracker]]]] = {}
        self._bytes: Counter[str] = Counter()

    def full(self, name: str) -> bool:
        """Whether this name has reached `bounds.UNREAD`."""
        if self._bytes[name] >= bounds.UNREAD:
            self._forget_read(name)
        return self._bytes[name] >= bounds.UNREAD

    def sent(self, name: str, peer: bytes, size: int, tracker: zmq.MessageTracker) -> None:
        """Count a message of ``size`` bytes."""
        self._sent.setdefault(name, {}).setdefault(peer, deque()).append((size, tracker))
        self._bytes[name] += size

    def _forget_read(self, name: str) -> None:
        peers = self._sent[name]
        for peer, queue in list(peers.items()):
            while queue and queue[0][1].done:
                self._bytes[name] -= queue.popleft()[0]
            if not queue:
                del peers[peer]


class _Connection:
    """A connection that has sent something."""

    __slots__ = ("name", "peer", "topics")

    def __init__(self, name: str, peer: bytes) -> None:
        self.name = name
        self.peer = peer
        self.topics = 0


class Connections:
    """The connections of a socket by name, each known from its first message on.

    ZeroMQ's memory for a connection is bounded; bounding the number of connections bounds it for a
    name.  Of too many, the one that was silent longest is closed: its peer may be gone.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        """An XPUB socket must report repeated subscriptions, too (``XPUB_VERBOSER``)."""
        #: readable when connections have begun or ended
        self.events = sockets.monitor(socket, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._known: dict[int, _Connection] = {}  # by descriptor
        self._of: dict[str, dict[int, None]] = {}  # name -> descriptors, longest silent first
        self._names: dict[bytes, str] = {}  # by peer
        self._changes: Counter[str] = Counter()  # of subscriptions, since `all_received`

    def received(self, fd: int, name: str, most: int, peer: bytes = b"") -> str:
        """Note a message of ``name``, which may have ``most`` connections.

        Returns why a connection of that name was closed; "" if none was.
        """
        known = self._known.get(fd)
        if known is None or (known.name, known.peer) != (name, peer):
            self.forget_ended()
            self._forget(fd)
            self._known[fd] = _Connection(name, peer)
            self._names[peer] = name
        its = self._of.setdefault(name, {})
        its.pop(fd, None)
        its[fd] = None
        if len(its) <= most:
            return ""
        silent = next(iter(its))
        self._forget(silent)
        _cut(silent)
        return f"it has {len(its) + 1:,} connections, and there may be {most:,}"

    def name(self, peer: bytes) -> str:
        """The name of a peer; "" if it is gone."""
        return self._names.get(peer, "")

    def subscribed(self, fd: int, change: memoryview) -> str:
        """Note that a subscription began or ended, on a connection just passed to `received`.

        Returns why it exceeds a bound; "" if it does not.  Then its connection is closed, with all
        its subscriptions; or all connections of its name, if that changes subscriptions faster than
        they are read.
        """
        known = self._known[fd]
        self._changes[known.name] += 1
        topic, on = len(change) - 1, bytes(change[:1]) == b"\1"
        known.topics = number = max(0, known.topics + (1 if on else -1))
        why = ""
        if topic > bounds.TOPIC:
            why = f"it subscribes to a topic of {topic} bytes, and it may have {bounds.TOPIC}"
        elif on and number % _LOOK == 0:
            all = sum(self._known[each].topics for each in self._of[known.name])
            if all > bounds.TOPICS:
                why = f"it has {all:,} subscriptions, and there may be {bounds.TOPICS:,}"
        if why:
            _cut(fd)
        elif known.name and self._changes[known.name] > bounds.CHANGES:
            self._changes[known.name] = 0
            why = f"it has changed more than {bounds.CHANGES:,} subscriptions without a pause"
            for each in self._of[known.name]:
                _cut(each)
        return why

    def all_received(self) -> None:
        """All pending changes of subscriptions were read."""
        self._changes.clear()

    def forget_ended(self) -> None:
        """Forget ended connections, and those whose descriptor is reused.

        Call it whenever `events` is readable.
        """
        with contextlib.suppress(zmq.Again):
            while True:
                event, _ = self.events.recv_multipart(zmq.NOBLOCK)
                _, fd = _EVENT.unpack(event)
                self._forget(fd)

    def _forget(self, fd: int) -> None:
        known = self._known.pop(fd, None)
        if known is not None:
            self._names.pop(known.peer, None)
            its = self._of[known.name]
            del its[fd]
            if not its:
                del self._of[known.name]


def _cut(fd: int) -> None:
    """Close a connection."""
    with contextlib.suppress(OSError), _borrowed(fd) as connection:
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """A connection of ZeroMQ as a Python socket.  OSError if it is not TCP."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
    try:
        yield connection
    finally:
        connection.detach()
