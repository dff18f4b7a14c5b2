"""Sockets with sane options, and frames as messages.

Every socket here forgets what it could not send when it is closed, takes no frame larger than
its bound, and keeps at most its high-water mark of messages for each peer: a peer that floods
is made to wait by its own kernel, one that does not read loses messages, and nobody else
notices.  Whatever was lost is told again, since every message is a state or a question.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Generic, TypeAlias, TypeVar

import msgspec
import zmq

from fabric.errors import FabricError
from fabric.wire.messages import MAX_FRAME, MAX_LOG_PIECE, PROTOCOL

T = TypeVar("T")
Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]
Socket: TypeAlias = zmq.Socket[bytes]

#: Messages kept for one peer.
JOBS_HWM = 1000
LOGS_HWM = 256
#: No frame of the log stream is larger, in bytes.
MAX_LOG_FRAME = MAX_LOG_PIECE + 4096
#: An ipc path must be shorter than the kernel's limit for socket names, in bytes.
MAX_IPC_PATH = 107


class AddressError(FabricError):
    """A socket cannot be bound or connected where it was asked to be."""


class Garbage(ValueError):
    """A frame is not what it should be."""


def ipc(directory: str | os.PathLike[str], name: str) -> str:
    """The address of a socket file.  AddressError if its path is too long for the kernel."""
    path = f"{os.fspath(directory)}/{name}"
    if len(os.fsencode(path)) > MAX_IPC_PATH:
        raise AddressError(
            f"{path}: the path of a socket may have {MAX_IPC_PATH} bytes and this has "
            f"{len(os.fsencode(path))}; set TMPDIR to a directory with a shorter name"
        )
    return f"ipc://{path}"


def router(context: Context) -> Socket:
    """The broker's socket for jobs.  `send` to a peer that is gone returns False."""
    socket = _socket(context, zmq.ROUTER, JOBS_HWM, MAX_FRAME)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return socket


def dealer(context: Context) -> Socket:
    """A worker's or an initiator's socket for jobs."""
    return _socket(context, zmq.DEALER, JOBS_HWM, MAX_FRAME)


def publisher(context: Context) -> Socket:
    """A worker's socket for logs.  Sending never blocks; what nobody takes is dropped."""
    return _socket(context, zmq.PUB, LOGS_HWM, MAX_LOG_FRAME)


def republisher(context: Context) -> Socket:
    """The broker's socket for logs to initiators.  Its subscriptions must be read."""
    return _socket(context, zmq.XPUB, LOGS_HWM, MAX_LOG_FRAME)


def subscriber(context: Context, *topics: str) -> Socket:
    """A socket that hears logs: of these keys, or of all if one is ""; later `subscribe`."""
    socket = _socket(context, zmq.SUB, LOGS_HWM, MAX_LOG_FRAME)
    for topic in topics:
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
    return socket


def bind(socket: Socket, address: str) -> None:
    """AddressError if that cannot be done."""
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise AddressError(f"cannot listen on {address}: {error.strerror}") from None


def connect(socket: Socket, address: str) -> None:
    """Connect, now or as soon as somebody listens there.  AddressError if it is no address."""
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise AddressError(f"cannot connect to {address}: {error.strerror}") from None


def drain(socket: Socket, limit: int) -> Iterator[list[bytes]]:
    """What has come, without waiting: at most ``limit`` messages, as lists of frames."""
    for _ in range(limit):
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return


def send(socket: Socket, *frames: bytes) -> bool:
    """Send without waiting; False if the peer is gone, or does not read."""
    try:
        socket.send_multipart(frames, zmq.NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


class Codec(Generic[T]):
    """Frames to messages of one type or union, ``Codec[A | B](A | B)``; anything to a frame."""

    def __init__(self, kinds: object) -> None:
        self._decode = msgspec.msgpack.Decoder(kinds).decode
        self.encode = msgspec.msgpack.Encoder().encode

    def decode(self, frame: bytes) -> T:
        """Garbage if the frame is not such a message."""
        try:
            return self._decode(frame)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise Garbage(str(error)) from None


class _Hello(msgspec.Struct):
    """What every version of the protocol says when it greets."""

    protocol: int
    name: str = ""
    request: str = ""


_HELLO: Codec[_Hello] = Codec(_Hello)


def greeting(frame: bytes) -> tuple[str, int] | None:
    """Who sent a frame that cannot be read (name or request), and in which protocol."""
    try:
        hello = _HELLO.decode(frame)
    except Garbage:
        return None
    return (hello.name or hello.request)[:255], hello.protocol


def mismatch(theirs: int, *, us: str, them: str) -> str:
    """Says which side to upgrade; ``us`` and ``them`` as in "the broker", "this worker"."""
    older = us if theirs > PROTOCOL else them
    return f"{us} speaks protocol {PROTOCOL} and {them} {theirs}: upgrade {older}"


def _socket(context: Context, type: int, hwm: int, largest: int) -> Socket:
    socket = context.socket(type)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.MAXMSGSIZE, largest)
    # A peer may start before the one it connects to: try often at first, then less often.
    socket.setsockopt(zmq.RECONNECT_IVL, 10)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    # Half-dead connections are found out and made anew.
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
    return socket
