"""Controls processes in ways that the standard library does not offer."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fabric import bounds

if TYPE_CHECKING:
    import subprocess  # loaded by modules that start processes

_PR_SET_PDEATHSIG = 1
_PIECE = 65536  # bytes: what a pipe holds
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when ``parent``, which started it, ends.

    That is the thread that started it: start children from a thread that lives as long as they
    should.
    """
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        raise SystemExit(0)


def more_descriptors() -> int:
    """Raise the limit on descriptors, up to `bounds.DESCRIPTORS`; return the limit."""
    import resource  # few callers

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = bounds.DESCRIPTORS
    wanted = max(soft, min(hard, bounds.DESCRIPTORS))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def pass_niceness_on(leader: int) -> bool:
    """Make a session as nice as this process; False if that has to be tried again.

    Where the kernel shares processors among sessions first (`sched_autogroup`), the niceness of a
    process counts only within its session.
    """
    own = os.getpriority(os.PRIO_PROCESS, os.getpid())  # 0 is this thread, which may be nicer
    if own > 0:
        try:
            Path(f"/proc/{leader}/autogroup").write_text(str(own))
        except BlockingIOError:  # the kernel allows it to users ten times a second
            return False
        except OSError:  # it has no such sessions, or this one has ended
            pass
    return True


def kill_session(leader: int) -> None:
    """Kill all processes of a session whose leader has not been reaped yet.

    A session contains all that its leader started, in any process group and also orphans, except
    processes that began a session of their own.
    """
    killed: set[int] = set()
    while fresh := _members(leader) - killed:
        for member in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        killed |= fresh


def _members(session: int) -> set[int]:
    """The processes of a session that have not ended."""
    found = set()
    for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208  as below
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123  hundreds
                state, _, _, its_session = file.read().rpartition(b")")[2].split(maxsplit=4)[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state not in (b"Z", b"X"):
            found.add(int(name))
    return found


class TooMuchOutput(Exception):
    """A child process printed more than its limit."""


def converse(
    process: subprocess.Popen[bytes],
    input: bytes = b"",
    *,
    most: int,
    seconds: float = float("inf"),
) -> tuple[bytes, bytes]:
    """Write a child's input; return its output, and the end of its standard error.

    As `subprocess.Popen.communicate`, but bounded: TooMuchOutput past ``most`` bytes,
    TimeoutError past ``seconds``.  After either, the child may still run.
    """
    import selectors

    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    assert stdout is not None
    assert stderr is not None
    deadline = time.monotonic() + seconds
    output, complaints = bytearray(), bytearray()
    left = memoryview(input)
    with selectors.PollSelector() as selector:
        if stdin is not None:
            os.set_blocking(stdin.fileno(), False)
            selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(stdout, selectors.EVENT_READ)
        selector.register(stderr, selectors.EVENT_READ)
        while selector.get_map():
            wait = deadline - time.monotonic()
            if wait <= 0:
                raise TimeoutError
            for key, _ in selector.select(None if wait == float("inf") else wait):
                if key.fileobj is stdin:
                    assert stdin is not None
                    try:
                        left = left[os.write(key.fd, left[:_PIECE]) :]
                    except BrokenPipeError:
                        left = left[:0]
                    if not left:
                        selector.unregister(stdin)
                        stdin.close()
                    continue
                piece = os.read(key.fd, _PIECE)
                if not piece:
                    selector.unregister(key.fileobj)
                elif key.fileobj is stdout:
                    output += piece
                    if len(output) > most:
                        raise TooMuchOutput
                else:
                    complaints += piece
                    del complaints[:-_PIECE]
    return bytes(output), bytes(complaints)


def keep_memory(size: int) -> None:
    """Return memory to the kernel only when more than ``size`` bytes of it are free.

    By default glibc returns it after each message that carries a piece of a log, and the kernel
    clears every page that is requested again: most of the cost of passing logs on.  Without glibc,
    nothing happens.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, size)
        mallopt(_M_MMAP_THRESHOLD, size)
