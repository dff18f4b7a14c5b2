"""Connections to a broker's sockets, one by one, which ZeroMQ itself cannot end.

A connection is known by its descriptor; shutting that down has ZeroMQ drop the connection, as if
the peer had closed it.  Between a look at a descriptor and its end another connection may have got
the number: that one is made anew by its peer.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
from collections.abc import Iterator

import zmq

from fabric import bounds
from fabric.wire import sockets

#: A connection that has received fewer bytes has not said who it is: greeting, hello, initiate.
_HANDSHAKE = 540
#: Milliseconds that a handshake may take when descriptors are few.
_PATIENCE = 200
#: Subscriptions after which those of a name are added up.
_LOOK = 256
#: In Linux's ``struct tcp_info``: milliseconds since data was sent, bytes received.
_TCP_INFO = struct.Struct("=44xI80xQ")
#: As ``zmq_socket_monitor`` sends it: what happened, and to which descriptor.
_EVENT = struct.Struct("=Hi")


def descriptor(frame: zmq.Frame) -> int | None:
    """The connection by which a frame came; None if ZeroMQ itself made it."""
    try:
        return int(frame.get("__fd"))
    except zmq.ZMQError:
        return None


class Strangers:
    """Connections that have not said who they are, as against descriptors that are left.

    Those are cut, the oldest first, once fewer than `bounds.DESCRIPTORS_KEPT` descriptors are left
    for the broker itself.
    """

    def __init__(self, ports: set[int]) -> None:
        """``ports`` are the broker's."""
        self._ports = ports
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = self._limit - min(bounds.DESCRIPTORS_KEPT, self._limit // 2)

    def cut(self) -> int:
        """Cut as many as is needed; returns how many that are."""
        if not self._crowded():
            return 0
        oldest = sorted(self._strangers(), reverse=True)
        for _, fd in oldest:
            _cut(fd)
        return len(oldest)

    def _crowded(self) -> bool:
        """The kernel gives the lowest number that is free: all below it are taken."""
        try:
            lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        os.close(lowest)
        return lowest >= self._most

    def _strangers(self) -> Iterator[tuple[int, int]]:
        """(milliseconds that it has lasted, descriptor)"""
        for fd in range(3, self._limit):
            with contextlib.suppress(OSError), _borrowed(fd) as connection:
                if connection.getsockname()[1] not in self._ports:
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
                lasted, received = _TCP_INFO.unpack(info)
                if received < _HANDSHAKE and lasted >= _PATIENCE:
                    yield lasted, fd


class Subscriptions:
    """Topics that each connection of a socket for logs subscribes to."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        """``socket`` is an XPUB that tells of every subscription, also of one that is not new."""
        self._events = sockets.monitor(socket, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._counts: dict[int, int] = {}  # by descriptor
        self._names: dict[int, str] = {}  # whose it is

    def count(self, fd: int, change: memoryview, name: str) -> str:
        """A subscription of ``name``, or the end of one; why it is too much, "" if it is not.

        Its connection is cut then, so that nothing of it stays.
        """
        self.forget_ended()
        topic, on = len(change) - 1, bytes(change[:1]) == b"\1"
        self._counts[fd] = number = max(0, self._counts.get(fd, 0) + (1 if on else -1))
        self._names[fd] = name
        why = ""
        if topic > bounds.TOPIC:
            why = f"it subscribes to a topic of {topic} bytes, and it may have {bounds.TOPIC}"
        elif on and number % _LOOK == 0 and (all := self._of(name)) > bounds.TOPICS:
            why = f"it has {all:,} subscriptions, and there may be {bounds.TOPICS:,}"
        if why:
            _cut(fd)
        return why

    def _of(self, name: str) -> int:
        """All that somebody has on all connections."""
        return sum(number for fd, number in self._counts.items() if self._names[fd] == name)

    def forget_ended(self) -> None:
        """Connections that have ended, and those that others have the number of now.

        To be called in every turn of a loop.
        """
        with contextlib.suppress(zmq.Again):
            while True:
                event, _ = self._events.recv_multipart(zmq.NOBLOCK)
                _, fd = _EVENT.unpack(event)
                self._counts.pop(fd, None)
                self._names.pop(fd, None)


def _cut(fd: int) -> None:
    with contextlib.suppress(OSError), _borrowed(fd) as connection:
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """ZeroMQ's connection as a socket of Python's.  OSError if it is none of TCP."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
    try:
        yield connection
    finally:
        connection.detach()
