"""Makes sockets with safe options, and sends and receives frames.

A socket drops unsent messages when it is closed, accepts no frame past its bound, and queues at
most its high-water mark for each peer.  A peer that floods is blocked by its own kernel, and a peer
that does not read loses messages; neither affects other peers.  Every message is a state or a
question, so its sender repeats it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import msgspec
import zmq

from fabric import bounds
from fabric.config import is_loopback
from fabric.errors import FabricError
from fabric.host import process
from fabric.wire.messages import PROTOCOL

T = TypeVar("T")
Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]
Socket: TypeAlias = zmq.Socket[bytes]

#: Messages queued for one peer in each direction.
JOBS_HWM = 100
#: Messages that an encrypted router queues from one peer: a flood waits at its sender.
ROUTER_HWM = 8
LOGS_HWM = 32
#: Bytes that the allocator keeps for reuse: the queued pieces of logs of one peer.
KEPT_MEMORY = 2 * LOGS_HWM * bounds.LOG_PIECE
#: Largest frame of the log stream, in bytes.
MAX_LOG_FRAME = bounds.LOG_PIECE + 4096
#: Largest frame that a republisher receives, in bytes: subscriptions and the handshake.
MAX_SUBSCRIPTION = 1024
#: Frames kept of one message; a valid message has fewer.
MAX_FRAMES = 4
#: Longest path of a socket, in bytes: the kernel's limit.
MAX_IPC_PATH = 107
#: Milliseconds that connecting may take, and the handshake.
PATIENCE = 5000
#: Milliseconds after which an unacknowledged connection is closed.
HALF_DEAD = 20_000
#: Flags of a frame that another one follows.
_MORE = zmq.NOBLOCK | zmq.SNDMORE


class AddressError(FabricError):
    """A socket cannot be bound or connected at an address."""


class DecodeError(ValueError):
    """A frame is not a valid message."""


class Addresses(NamedTuple):
    """Addresses of a broker's three sockets."""

    jobs: str
    logs_in: str
    logs: str


class Curve(msgspec.Struct, frozen=True):
    """Keys of a socket in Z85; ``server`` is the broker's public key, b"" at the broker itself."""

    public: bytes
    secret: bytes
    server: bytes = b""

    def __repr__(self) -> str:
        return f"Curve({self.public!r})"  # without the secret key, for tracebacks and logs


def new_context() -> Context:
    """The context for the sockets of a process that passes on logs."""
    process.keep_memory(KEPT_MEMORY)
    return zmq.Context()


def in_directory(directory: str | os.PathLike[str]) -> Addresses:
    """Addresses of socket files in a directory.  AddressError if a path is too long."""
    return Addresses(*(ipc(directory, name) for name in Addresses._fields))


def over_tcp(host: str, port: int) -> Addresses:
    """Addresses at three consecutive ports.  ``host`` "*" listens at all addresses."""
    if ":" in host:
        host = f"[{host}]"
    return Addresses(*(f"tcp://{host}:{port + n}" for n in range(3)))


def check_plain(host: str) -> None:
    """AddressError unless ``host`` is a loopback: nothing leaves the machine unencrypted."""
    if not is_loopback(host):
        raise AddressError(
            f"plain: {host} is not a loopback address, and nothing goes unencrypted over a"
            " network; remove `plain` from the settings, and make keys with `fabric-keys`"
        )


def ipc(directory: str | os.PathLike[str], name: str) -> str:
    """The address of a socket file.  AddressError if its path is too long for the kernel."""
    path = f"{os.fspath(directory)}/{name.replace('_', '-')}"
    if len(os.fsencode(path)) > MAX_IPC_PATH:
        raise AddressError(
            f"{path}: the path of a socket may have {MAX_IPC_PATH} bytes and this has "
            f"{len(os.fsencode(path))}; set TMPDIR to a directory with a shorter name"
        )
    return f"ipc://{path}"


def router(context: Context, curve: Curve | None = None) -> Socket:
    """The broker's socket for messages.  `send` to a peer that is gone returns False."""
    largest = bounds.FRAME if curve is None else bounds.REMOTE_FRAME
    socket = _socket(context, zmq.ROUTER, JOBS_HWM, largest, curve, "jobs")
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if curve is not None:
        socket.setsockopt(zmq.RCVHWM, ROUTER_HWM)
    return socket


def dealer(context: Context, curve: Curve | None = None) -> Socket:
    """A worker's or an initiator's socket for messages."""
    return _socket(context, zmq.DEALER, JOBS_HWM, bounds.FRAME, curve, "jobs")


def publisher(context: Context, curve: Curve | None = None) -> Socket:
    """A worker's socket for logs.  `send` returns False while its queue is full."""
    socket = _socket(context, zmq.PUB, LOGS_HWM, MAX_LOG_FRAME, curve, "logs-in")
    socket.setsockopt(zmq.XPUB_NODROP, 1)
    return socket


def republisher(context: Context, curve: Curve | None = None) -> Socket:
    """The broker's socket for logs to initiators.  The broker must receive its subscriptions."""
    socket = _socket(context, zmq.XPUB, LOGS_HWM, MAX_SUBSCRIPTION, curve, "logs")
    socket.setsockopt(
        zmq.XPUB_VERBOSER, 1
    )  # reports each subscription, so that they can be counted
    return socket


def subscriber(context: Context, *topics: str, curve: Curve | None = None) -> Socket:
    """A socket that receives the logs of the keys ``topics``; "" stands for all logs."""
    domain = "logs" if curve and curve.server else "logs-in"
    socket = _socket(context, zmq.SUB, LOGS_HWM, MAX_LOG_FRAME, curve, domain)
    # It sends only subscriptions; past a high-water mark they would be lost silently.
    socket.setsockopt(zmq.SNDHWM, 0)
    for topic in topics:
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
    return socket


def monitor(socket: Socket, events: int) -> Socket:
    """A socket that reports these events of ``socket``'s connections.

    It has no high-water mark, because reaching one would block all connections.  Read it often.
    """
    address = f"inproc://monitor-{id(socket)}"
    socket.monitor(address, events)
    told: Socket = socket.context.socket(zmq.PAIR)
    told.setsockopt(zmq.RCVHWM, 0)
    told.connect(address)
    return told


def bind(socket: Socket, address: str) -> None:
    """Listen at an address.  AddressError if it is in use or invalid."""
    socket.setsockopt(zmq.IPV6, address.startswith(("tcp://*", "tcp://[")))
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise AddressError(f"cannot listen on {address}: {error.strerror}") from None


def connect(socket: Socket, address: str) -> None:
    """Connect, now or as soon as a peer listens there.  AddressError if the address is invalid."""
    # With IPv6 on, ZeroMQ tries only the IPv6 address of a name that has one.
    socket.setsockopt(zmq.IPV6, address.startswith("tcp://["))
    if address.startswith("ipc:"):  # the broker starts at the same time, and has no load
        socket.setsockopt(zmq.RECONNECT_IVL, 3)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 0)
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise AddressError(f"cannot connect to {address}: {error.strerror}") from None


def receive(socket: Socket, limit: int) -> Iterator[list[zmq.Frame]]:
    """At most ``limit`` pending messages, each as its first `MAX_FRAMES` frames.  Never waits."""
    for number in range(limit):
        # Reading the flag costs less than a failing `recv`, which would end most calls.
        if number and not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return
        try:
            frame = socket.recv(zmq.NOBLOCK, copy=False, track=False)
        except zmq.Again:
            return
        frames = [frame]
        while frame.more:
            frame = socket.recv(zmq.NOBLOCK, copy=False, track=False)
            if len(frames) < MAX_FRAMES:
                frames.append(frame)
        yield frames


class Inbox:
    """Polls sockets, so that only readable ones are received from: a failing `recv` is slow.

    ``wake`` is a file descriptor that ends `wait` when it is readable; its data is discarded.
    """

    def __init__(self, *listened: Socket, wake: int | None = None) -> None:
        self._wake = wake
        self._poller = zmq.Poller()
        for source in (*listened, wake):
            if source is not None:
                self._poller.register(source, zmq.POLLIN)
        self._ready: set[Socket | int] = set()

    def wait(self, milliseconds: int) -> None:
        """Wait until something is readable, or for ``milliseconds``."""
        self._ready = {source for source, _ in self._poller.poll(milliseconds)}
        if self._wake is not None and self._wake in self._ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)

    def has(self, socket: Socket) -> bool:
        """Whether ``socket`` was readable when `wait` returned."""
        return socket in self._ready

    def receive(self, socket: Socket, limit: int) -> Iterator[list[zmq.Frame]]:
        """As `receive`; nothing if ``socket`` was not readable when `wait` returned."""
        return receive(socket, limit) if self.has(socket) else iter(())


def send(socket: Socket, frame: bytes | zmq.Frame, to: bytes | None = None) -> bool:
    """Send one frame without waiting; False if the peer is gone or its queue is full.

    ``to`` is the identity of a router's peer.
    """
    try:
        if to is not None:
            socket.send(to, _MORE)
        socket.send(frame, zmq.NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


def send_tracked(socket: Socket, frame: bytes, to: bytes) -> zmq.MessageTracker | None:
    """As `send` to a router's peer; returns a tracker of the frame, or None for False."""
    try:
        socket.send(to, _MORE)
        return socket.send(frame, zmq.NOBLOCK, copy=False, track=True)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return None
        raise


class Codec(Generic[T]):
    """Decodes frames to messages of one type or union, ``Codec[A | B](A | B)``; encodes any."""

    def __init__(self, kinds: object) -> None:
        self._decode = msgspec.msgpack.Decoder(kinds).decode
        self.encode = msgspec.msgpack.Encoder().encode

    def decode(self, frame: bytes | memoryview) -> T:
        """The message in a frame.  DecodeError if it is not such a message."""
        try:
            return self._decode(frame)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise DecodeError(str(error)) from None


class _Hello(msgspec.Struct):
    """The fields that every version of the protocol has in its first message."""

    protocol: int
    name: str = ""
    request: str = ""
    id: str = ""


_HELLO: Codec[_Hello] = Codec(_Hello)


def greeting(frame: bytes | memoryview) -> tuple[str, int] | None:
    """(name, request or id; protocol) of a message of any version; None if it has neither."""
    try:
        hello = _HELLO.decode(frame)
    except DecodeError:
        return None
    return (hello.name or hello.request or hello.id)[:255], hello.protocol


def mismatch(theirs: int, *, us: str, them: str) -> str:
    """A text that says which side to upgrade; ``us`` and ``them`` as in "the broker"."""
    older = us if theirs > PROTOCOL else them
    return f"{us} speaks protocol {PROTOCOL} and {them} {theirs}: upgrade {older}"


def _socket(
    context: Context, type: int, hwm: int, largest: int, curve: Curve | None, domain: str
) -> Socket:
    socket = context.socket(type)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.MAXMSGSIZE, largest)
    # A peer may start before the broker: try often at first, then less often.
    socket.setsockopt(zmq.RECONNECT_IVL, 10)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, PATIENCE)
    socket.setsockopt(zmq.HANDSHAKE_IVL, PATIENCE)
    socket.setsockopt(zmq.BACKLOG, 1024)  # all peers may reconnect at once
    # The kernel closes half-dead connections.  ZeroMQ's own heartbeat aborts the process if a peer
    # disappears at the high-water mark (libzmq issue 4364).
    socket.setsockopt(zmq.TCP_MAXRT, HALF_DEAD)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    if curve is not None:
        socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret)
        if curve.server:
            socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server)
        else:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
    return socket
