"""Shares the cores of this machine among its builds, as a jobserver of GNU make.

A build runs one job without a token.  For each further one, its make takes a byte out of a FIFO,
and writes it back after the job (``--jobserver-auth=fifo:PATH``; also ninja, cargo, gcc -flto).

Each build has a FIFO of its own, which is all that it can reach.  The server moves tokens between
a pool and the FIFOs, and offers each build one at a time.  So it knows how many tokens a build has:
a FIFO of one page reports POLLOUT when it is empty, and POLLIN otherwise.  The tokens of a build
return to the pool when its connection ends.  Bytes that it was not given are discarded.

A make whose job ends may take the token again before the server does.  So when a build starts
while others have all tokens, there are more jobs than cores for a moment, at most one a build.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

#: The name of its socket in a folder.
NAME = "jobserver"
#: Seconds that an offer may stay unused while another build has none.
_GRACE = 0.02
#: Seconds without an offer after that, while others use theirs.
_REST = 1.0
#: Most seconds between two turns.  A page that is never empty has room for 4096 tokens until the
#: next turn, in which the server empties it.
_LOOK = 0.1
#: Seconds between two turns: no build can keep the server busy.
_PAUSE = 0.001
#: Seconds that a build waits for the server.
_PATIENCE = 5.0
_TOKEN = b"+"
_PAGE = 65536  # or less
#: Bytes of the message of a build, and the most jobs in it.
_SIZE, _MOST = 4, (1 << 32) - 1


class _Build:
    """A build, and the tokens that it was given."""

    __slots__ = ("fifo", "given", "most", "offered", "rests_until", "since")

    def __init__(self, fifo: int, most: int) -> None:
        self.fifo = fifo
        self.most = most  # jobs
        self.given = 0  # tokens that it has, or is offered
        self.offered = False  # the FIFO has a token
        self.since = 0.0  # when that was offered first
        self.rests_until = 0.0

    def collect(self, now: float, *, emptied: bool) -> None:
        """Take back the tokens in the FIFO, which may have been empty since the last turn."""
        try:
            there = len(os.read(self.fifo, _PAGE))
        except BlockingIOError:
            there = 0
        self.given -= min(there, self.given)
        if self.offered and (emptied or not there):  # the build has used it
            self.offered = False
            self.rests_until = 0.0
        if not self.offered:
            self.since = now

    def offer(self) -> bool:
        """Put a token into the FIFO; False if the build has just filled it."""
        try:
            os.write(self.fifo, _TOKEN)
        except BlockingIOError:
            return False
        self.given += 1
        return True


class Jobserver:
    """Shares ``jobs`` among the builds that are `joined` at ``address``, a path for a socket.

    Call `step` when ``fileno`` is readable, and ``wait`` seconds after the last call.
    """

    def __init__(self, address: Path, jobs: int) -> None:
        self._jobs = jobs
        self._builds: dict[int, _Build] = {}  # by connection
        self._connections: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        with _short(address) as name:
            self._listener.bind(name)
        self._listener.listen()
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self.wait = _LOOK

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to do."""
        return self._epoll.fileno()

    def run(self) -> None:
        """Serve for ever."""
        while True:
            self.step(self.wait)

    def step(self, seconds: float = 0.0) -> None:
        """Wait for so long for something to do, and do it."""
        events = dict(self._epoll.poll(seconds))
        if self._listener.fileno() in events:
            self._accept()
        for fd in self._connections.keys() & events.keys():
            self._hear(fd)
        now = time.monotonic()
        for build in self._builds.values():
            build.collect(now, emptied=bool(events.get(build.fifo, 0) & select.EPOLLOUT))
        self._offer(now)
        if events:
            time.sleep(_PAUSE)

    def close(self) -> None:
        """End all connections."""
        for fd in list(self._connections):
            self._leave(fd)
        self._epoll.close()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._connections[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLIN)

    def _hear(self, fd: int) -> None:
        """A build joins, or ends."""
        message, fds, _, _ = socket.recv_fds(self._connections[fd], _SIZE, 1)
        if not fds:
            self._leave(fd)
            return
        self._builds[fd] = _Build(fds[0], int.from_bytes(message))
        self._epoll.register(fds[0], select.EPOLLIN)

    def _leave(self, fd: int) -> None:
        self._connections.pop(fd).close()
        if build := self._builds.pop(fd, None):
            self._epoll.unregister(build.fifo)
            os.close(build.fifo)

    def _offer(self, now: float) -> None:
        """Offer the tokens of the pool, first to builds that have few and use them."""
        builds = self._builds.values()
        spare = self._jobs - sum(1 + build.given for build in builds)
        wanting = [build for build in builds if build.given < build.most - 1]
        short = len(wanting) > spare
        for build in wanting:
            if short and build.offered and now - build.since >= _GRACE:
                build.rests_until = now + _REST
        wanting.sort(key=lambda one: (one.rests_until > now, one.given, not one.offered))
        offered = {build for build in wanting[: max(0, spare)] if build.offer()}
        for build in builds:
            build.offered = build in offered
            event = select.EPOLLOUT if build.offered else select.EPOLLIN
            self._epoll.modify(build.fifo, event)
        waits = any(build.rests_until <= now for build in wanting if build not in offered)
        self.wait = _GRACE if waits and offered else _LOOK


@contextlib.contextmanager
def joined(address: Path | None, fifo: Path, most: int) -> Iterator[Path | None]:
    """Have the jobserver at ``address`` serve a build of at most so many jobs.

    Makes ``fifo`` for it, and yields that path; None without a server.
    """
    with contextlib.ExitStack() as stack:
        try:
            served = None if address is None else _join(address, fifo, most, stack)
        except OSError:  # the build goes on without it
            served = None
        yield served


def _join(address: Path, fifo: Path, most: int, stack: contextlib.ExitStack) -> Path:
    connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    connection.settimeout(_PATIENCE)
    with _short(address) as name:
        connection.connect(name)
    os.mkfifo(fifo, 0o600)
    stack.callback(fifo.unlink)
    handle = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    stack.callback(os.close, handle)  # open until the end, so that no reader finds it closed
    fcntl.fcntl(handle, fcntl.F_SETPIPE_SZ, 1)  # one page
    socket.send_fds(connection, [min(most, _MOST).to_bytes(_SIZE)], [handle])
    return fifo


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A short name for a socket, whose name is limited to 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
