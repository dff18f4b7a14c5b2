"""Makes sockets with safe options, and sends and receives frames.

A socket drops unsent messages when it is closed, accepts no frame past its bound, and queues at
most its high-water mark for each peer: a peer that floods is blocked by its own kernel, and a peer
that does not read loses messages, without effect on others.  Lost messages are repeated, because
each is a state or a question.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import msgspec
import zmq

from fabric import bounds
from fabric.errors import FabricError
from fabric.host import process
from fabric.wire.messages import PROTOCOL

T = TypeVar("T")
Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]
Socket: TypeAlias = zmq.Socket[bytes]

#: Messages kept for one peer in each direction,
JOBS_HWM = 100
#: and by a router from one peer: a flood waits where it comes from.
ROUTER_HWM = 8
LOGS_HWM = 32
#: Bytes kept for the messages to come: what is on its way for one peer, in both directions.
KEPT_MEMORY = 2 * LOGS_HWM * bounds.LOG_PIECE
#: No frame of the log stream is larger, in bytes.
MAX_LOG_FRAME = bounds.LOG_PIECE + 4096
#: No frame is larger that a republisher hears: subscriptions, and the handshake.
MAX_HEARD = 1024
#: Frames of one message that are looked at; no message has so many.
MAX_FRAMES = 4
#: An ipc path must be shorter than the kernel's limit for socket names, in bytes.
MAX_IPC_PATH = 107
#: Milliseconds a connection may take to be made, and to say who it is.
PATIENCE = 5000
#: Milliseconds that a peer's machine may take to confirm what was sent, or a peer to read it.
HALF_DEAD = 20_000
#: Says that another frame follows.
_MORE = zmq.NOBLOCK | zmq.SNDMORE


class AddressError(FabricError):
    """A socket cannot be bound or connected where it was asked to be."""


class DecodeError(ValueError):
    """A frame is not what it should be."""


class Addresses(NamedTuple):
    """Where a broker's three sockets are."""

    jobs: str
    logs_in: str
    logs: str


class Curve(msgspec.Struct, frozen=True):
    """The keys a socket encrypts with, in Z85; ``server`` is the broker's, b"" at the broker."""

    public: bytes
    secret: bytes
    server: bytes = b""

    def __repr__(self) -> str:
        return f"Curve({self.public!r})"  # tracebacks and logs are no place for the secret


def new_context() -> Context:
    """What the sockets of a process belong to, which passes on logs."""
    process.keep_memory(KEPT_MEMORY)
    return zmq.Context()


def in_directory(directory: str | os.PathLike[str]) -> Addresses:
    """Sockets of one machine, as files.  AddressError if the path is too long."""
    return Addresses(*(ipc(directory, name) for name in Addresses._fields))


def over_tcp(host: str, port: int) -> Addresses:
    """Sockets of a controller: three ports in a row.  ``host`` "*" is all of its addresses."""
    if ":" in host:
        host = f"[{host}]"
    return Addresses(*(f"tcp://{host}:{port + n}" for n in range(3)))


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_plain(host: str) -> None:
    """AddressError unless only this machine can be meant: nothing else goes unencrypted."""
    if not is_loopback(host):
        raise AddressError(
            f"plain: nothing goes unencrypted over a network, and {host} is not this machine"
            " alone; leave `plain` out of the settings, and see `fabric-keys`"
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
    """The broker's socket for jobs.  `send` to a peer that is gone returns False."""
    largest = bounds.FRAME if curve is None else bounds.REMOTE_FRAME
    socket = _socket(context, zmq.ROUTER, JOBS_HWM, largest, curve, "jobs")
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if curve is not None:
        socket.setsockopt(zmq.RCVHWM, ROUTER_HWM)
    return socket


def dealer(context: Context, curve: Curve | None = None) -> Socket:
    """A worker's or an initiator's socket for jobs."""
    return _socket(context, zmq.DEALER, JOBS_HWM, bounds.FRAME, curve, "jobs")


def publisher(context: Context, curve: Curve | None = None) -> Socket:
    """A worker's socket for logs.  `send` returns False while the broker takes no more."""
    socket = _socket(context, zmq.PUB, LOGS_HWM, MAX_LOG_FRAME, curve, "logs-in")
    socket.setsockopt(zmq.XPUB_NODROP, 1)
    return socket


def republisher(context: Context, curve: Curve | None = None) -> Socket:
    """The broker's socket for logs to initiators.  Its subscriptions must be read."""
    socket = _socket(context, zmq.XPUB, LOGS_HWM, MAX_HEARD, curve, "logs")
    socket.setsockopt(zmq.XPUB_VERBOSER, 1)  # each is counted
    return socket


def subscriber(context: Context, *topics: str, curve: Curve | None = None) -> Socket:
    """A socket that hears logs: of these keys, or of all if one is ""; later `subscribe`."""
    domain = "logs" if curve and curve.server else "logs-in"
    socket = _socket(context, zmq.SUB, LOGS_HWM, MAX_LOG_FRAME, curve, domain)
    # Subscriptions are all that it sends, and past this limit they would be lost without a word.
    socket.setsockopt(zmq.SNDHWM, 0)
    for topic in topics:
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
    return socket


def monitor(socket: Socket, events: int) -> Socket:
    """A socket that tells of these events of ``socket``'s connections.

    It has no high-water mark: at one, ZeroMQ itself would wait, and with it all connections.  So
    it is to be read often.
    """
    address = f"inproc://monitor-{id(socket)}"
    socket.monitor(address, events)
    told: Socket = socket.context.socket(zmq.PAIR)
    told.setsockopt(zmq.RCVHWM, 0)
    told.connect(address)
    return told


def bind(socket: Socket, address: str) -> None:
    """AddressError if that cannot be done."""
    socket.setsockopt(zmq.IPV6, address.startswith(("tcp://*", "tcp://[")))
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise AddressError(f"cannot listen on {address}: {error.strerror}") from None


def connect(socket: Socket, address: str) -> None:
    """Connect, now or as soon as somebody listens there.  AddressError if it is no address."""
    # ZeroMQ would try a name's IPv6 address alone, if there is one.
    socket.setsockopt(zmq.IPV6, address.startswith("tcp://["))
    if address.startswith("ipc:"):  # the broker is just starting, too; there is no load to spare it
        socket.setsockopt(zmq.RECONNECT_IVL, 3)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 0)
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise AddressError(f"cannot connect to {address}: {error.strerror}") from None


def receive(socket: Socket, limit: int) -> Iterator[list[zmq.Frame]]:
    """What has come, without waiting: at most ``limit`` messages.

    Of one with more frames than any has, only the first are kept.
    """
    for number in range(limit):
        # To look costs less than to fail, which is how most calls would end.
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
    """Sockets to hear, and which of them have something: to ask in vain costs more than to receive.

    ``wake`` is a file descriptor that ends the waiting, too; what can be read from it is rubbish.
    """

    def __init__(self, *listened: Socket, wake: int | None = None) -> None:
        self._wake = wake
        self._poller = zmq.Poller()
        for source in (*listened, wake):
            if source is not None:
                self._poller.register(source, zmq.POLLIN)
        self._ready: set[Socket | int] = set()

    def wait(self, milliseconds: int) -> None:
        """Until something comes, or so long at most."""
        self._ready = {source for source, _ in self._poller.poll(milliseconds)}
        if self._wake is not None and self._wake in self._ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)

    def has(self, socket: Socket) -> bool:
        """Whether something was there when the waiting ended."""
        return socket in self._ready

    def receive(self, socket: Socket, limit: int) -> Iterator[list[zmq.Frame]]:
        """As `receive`, if something was there."""
        return receive(socket, limit) if self.has(socket) else iter(())


def send(socket: Socket, frame: bytes | zmq.Frame, to: bytes | None = None) -> bool:
    """Send without waiting; False if the peer is gone, or does not read.

    ``to`` is whom a router sends it to.  There is no message of several frames: decision 11.
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
    """`send` to a peer; tells whether the frame has left, or None where that returns False."""
    try:
        socket.send(to, _MORE)
        return socket.send(frame, zmq.NOBLOCK, copy=False, track=True)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return None
        raise


class Codec(Generic[T]):
    """Frames to messages of one type or union, ``Codec[A | B](A | B)``; anything to a frame."""

    def __init__(self, kinds: object) -> None:
        self._decode = msgspec.msgpack.Decoder(kinds).decode
        self.encode = msgspec.msgpack.Encoder().encode

    def decode(self, frame: bytes | memoryview) -> T:
        """DecodeError if the frame is not such a message."""
        try:
            return self._decode(frame)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise DecodeError(str(error)) from None


class _Hello(msgspec.Struct):
    """What every version of the protocol says when it greets."""

    protocol: int
    name: str = ""
    request: str = ""
    id: str = ""


_HELLO: Codec[_Hello] = Codec(_Hello)


def greeting(frame: bytes | memoryview) -> tuple[str, int] | None:
    """What a frame that cannot be read is about (a name, request or id), and its protocol."""
    try:
        hello = _HELLO.decode(frame)
    except DecodeError:
        return None
    return (hello.name or hello.request or hello.id)[:255], hello.protocol


def mismatch(theirs: int, *, us: str, them: str) -> str:
    """Says which side to upgrade; ``us`` and ``them`` as in "the broker", "this worker"."""
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
    # A peer may start before the one it connects to: try often at first, then less often.
    socket.setsockopt(zmq.RECONNECT_IVL, 10)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, PATIENCE)
    socket.setsockopt(zmq.HANDSHAKE_IVL, PATIENCE)
    socket.setsockopt(zmq.BACKLOG, 1024)  # all may come back at once
    # The kernel finds out half-dead connections, which are made anew.  ZeroMQ's own heartbeat ends
    # the process if a peer that waited at the high-water mark is gone (libzmq's issue 4364).
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
