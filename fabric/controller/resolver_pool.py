"""Starts `fabric.controller.resolver` for each build order, and collects the results.

Resolving reads a repository, computes for seconds, fetches, and parses untrusted input, so the
broker's process does none of it.  A child reads the encoded `BuildOrder` from standard input and
writes an encoded `BuildGraph`; if it fails, the user gets its standard error.

Each child leads a session that includes its git processes, so all of them can be killed.
"""

from __future__ import annotations

import errno
import heapq
import os
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from fabric import bounds
from fabric.host.process import TooMuchOutput, converse, kill_session
from fabric.scheduling.events import Resolved, Unresolved
from fabric.wire.messages import BuildGraph, BuildOrder

#: Exit code for a failure of the machine.
FAULT = 4
#: Errors of a start that are no failure of the machine: the program is missing, or is none.
_NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOEXEC)
#: Seconds before each repetition of an order whose try the machine failed.
RETRY_DELAYS = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 60.0)
#: Seconds after its time limit that a child has to end by itself with an error text.
GRACE = 30

_decode = msgspec.msgpack.Decoder(BuildGraph).decode
_encode = msgspec.msgpack.Encoder().encode


class Child:
    """The build order of one request, and the process that resolves it, if it runs."""

    def __init__(self, build_order: BuildOrder, options: Sequence[str]) -> None:
        self.build_order = build_order
        self.options = options
        self.tries = 0
        self.fault = False  # the machine failed at the last try
        self.abandoned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self, command: Sequence[str], seconds: float) -> Resolved | Unresolved:
        """Resolve it in a process, and wait for the result."""
        self.tries += 1
        self.fault = False
        try:
            with self._lock:
                if self.abandoned:
                    return self._failed("abandoned")
                self._process = process = subprocess.Popen(
                    [*command, *self.options],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
        except OSError as error:
            self.fault = error.errno not in _NO_PROGRAM
            return self._failed(f"the controller cannot resolve it: {error}")
        with process:
            try:
                output, errors = converse(
                    process, _encode(self.build_order), most=bounds.FRAME, seconds=seconds
                )
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            except TimeoutError:
                return self._failed(f"resolving it took more than {seconds:.0f} s")
            except TooMuchOutput:
                return self._failed(f"its steps take more than {bounds.FRAME:,} bytes")
            finally:
                with self._lock:  # before it is reaped, because its number may be reused then
                    kill_session(process.pid)
                    process.wait()
        return self._read(process.returncode, output, errors)

    def _read(self, code: int, output: bytes, errors: bytes) -> Resolved | Unresolved:
        if code != 0:
            self.fault = code == FAULT
            message = errors.decode(errors="replace").strip()[-bounds.RESOLVE_MESSAGE :]
            return self._failed(message or f"resolving it ended with code {code}")
        try:
            graph = _decode(output)
        except (msgspec.MsgspecError, ValueError) as error:
            return self._failed(f"the resolver's answer cannot be decoded: {error}")
        if graph.request != self.build_order.request:
            return self._failed("the resolver answered for another request")
        return Resolved(graph.request, graph)

    def abandon(self) -> None:
        """Kill it and its children, without waiting."""
        with self._lock:
            self.abandoned = True
            if self._process is not None and self._process.returncode is None:
                kill_session(self._process.pid)

    def _failed(self, why: str) -> Unresolved:
        return Unresolved(self.build_order.request, why)


class ResolverPool:
    """Resolves build orders, at most `bounds.RESOLVERS` at a time.

    Requesters take turns, and one requester cannot occupy all places.
    """

    def __init__(
        self,
        command: Sequence[str],
        wake: Callable[[], None],
        seconds: int = bounds.RESOLVE_TIME,
    ) -> None:
        """``wake`` is called, in another thread, when `answers` has a result."""
        self._command = (*command, "--seconds", str(seconds))
        self._seconds = seconds + GRACE
        self._wake = wake
        #: requester -> request -> child; the first requester is next
        self._waiting: dict[str, dict[str, Child]] = {}
        self._pausing: list[tuple[float, int, Child]] = []  # a heap by the end of the pause
        self._running: dict[str, Child] = {}  # by request
        self._ended: deque[tuple[Child, Resolved | Unresolved]] = deque()
        self._count = 0

    def resolve(self, build_order: BuildOrder, host_tools: str = "") -> None:
        """Resolve an order for workers with these tools.  The result comes from `answers`."""
        options = ["--host-tools", host_tools] if host_tools else []
        self._enqueue(Child(build_order, options))
        self._start()

    def abandon(self, request: str) -> None:
        """Drop the order of a request, and kill its process."""
        if (child := self._running.get(request)) is not None:
            child.abandon()
        for queue in self._waiting.values():
            queue.pop(request, None)
        if any(child.build_order.request == request for _, _, child in self._pausing):
            others = (each for each in self._pausing if each[2].build_order.request != request)
            self._pausing = sorted(others)

    def answers(self) -> Iterator[Resolved | Unresolved]:
        """Results of build orders, each once."""
        while self._ended:
            child, answer = self._ended.popleft()
            del self._running[child.build_order.request]
            if child.abandoned:
                continue
            if child.fault and child.tries <= len(RETRY_DELAYS):
                self._count += 1
                due = time.monotonic() + RETRY_DELAYS[child.tries - 1]
                heapq.heappush(self._pausing, (due, self._count, child))
            else:
                yield answer
        self._start()

    def next_due(self) -> float:
        """When to call `answers` even without a wake-up: an order is repeated then."""
        return self._pausing[0][0] if self._pausing else float("inf")

    def close(self) -> None:
        """Kill all children."""
        self._waiting.clear()
        self._pausing.clear()
        for child in self._running.values():
            child.abandon()

    def _enqueue(self, child: Child) -> None:
        self._waiting.setdefault(child.build_order.requester, {})[child.build_order.request] = child

    def _start(self) -> None:
        while self._pausing and self._pausing[0][0] <= time.monotonic():
            self._enqueue(heapq.heappop(self._pausing)[2])
        while len(self._running) < bounds.RESOLVERS and (child := self._next()):
            self._running[child.build_order.request] = child

            def work(child: Child = child) -> None:
                self._ended.append((child, child.run(self._command, self._seconds)))
                self._wake()

            name = f"resolve {child.build_order.request[:8]}"
            threading.Thread(target=work, name=name, daemon=True).start()

    def _next(self) -> Child | None:
        """The first order of the next requester, who becomes the last."""
        busy = Counter(child.build_order.requester for child in self._running.values())
        for requester, queue in list(self._waiting.items()):
            if not queue:
                del self._waiting[requester]
            elif busy[requester] < bounds.RESOLVERS - 1:
                request = next(iter(queue))
                if request in self._running:  # its abandoned child has not ended
                    continue
                child = queue.pop(request)
                del self._waiting[requester]
                if queue:
                    self._waiting[requester] = queue
                return child
        return None
