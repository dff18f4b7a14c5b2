"""Child processes that find out what an order needs: `python -m fabric.resolver`, one for each.

Resolving reads a repository and computes for seconds, fetches, and runs on what strangers wrote,
so none of it happens in the broker.  A child gets the encoded `Order` on its standard input, and
writes an encoded `Submit`; or it fails, and what it wrote on standard error is told to the user.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from fabric import bounds
from fabric.scheduling.events import Resolved, Unresolved
from fabric.wire.messages import Order, Submit

#: Children at a time.
AT_ONCE = 2
#: Seconds one may take.
TIMEOUT = 900.0
#: Exit code that says: not the order's fault.  It is tried again, this often, after these seconds.
FAULT = 4
AGAIN = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 60.0, 60.0)
#: Characters of a child's complaints that are told.
TOLD = 4000

_decode = msgspec.msgpack.Decoder(Submit).decode
_encode = msgspec.msgpack.Encoder().encode


class _Child:
    """One that runs.  Whoever abandons it does not wait for it."""

    def __init__(self, order: Order, options: Sequence[str]) -> None:
        self.order = order
        self.options = options
        self._abandoned = threading.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()

    @property
    def abandoned(self) -> bool:
        return self._abandoned.is_set()

    def run(self, command: Sequence[str]) -> Resolved | Unresolved:
        """What comes of it; a trove that cannot be reached may be back in a while."""
        for pause in AGAIN:
            answer = self._try(command)
            if self.process is None or self.process.returncode != FAULT:
                break
            if self._abandoned.wait(pause):
                break
        return answer

    def _try(self, command: Sequence[str]) -> Resolved | Unresolved:
        try:
            with self.lock:
                if self.abandoned:
                    return self._failed("abandoned")
                self.process = subprocess.Popen(
                    [*command, *self.options],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # so that all it started can be killed with it
                )
            with self.process as process:
                try:
                    output, errors = process.communicate(_encode(self.order), TIMEOUT)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    return self._failed(f"resolving it took more than {TIMEOUT:.0f} s")
        except OSError as error:
            return self._failed(f"the controller cannot resolve it: {error}")
        if process.returncode != 0:
            told = errors.decode(errors="replace").strip()[-TOLD:]
            return self._failed(told or f"resolving it ended with code {process.returncode}")
        try:
            if len(output) > bounds.FRAME:
                return self._failed("it has too many steps")
            submit = _decode(output)
        except (msgspec.MsgspecError, ValueError) as error:
            return self._failed(f"what the resolver says cannot be understood: {error}")
        if submit.request != self.order.request:
            return self._failed("the resolver speaks of another request")
        return Resolved(submit.request, submit)

    def abandon(self) -> None:
        """Kill it and all it started; it may have ended."""
        with self.lock:
            self._abandoned.set()
            if self.process is not None and self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def _failed(self, why: str) -> Unresolved:
        return Unresolved(self.order.request, why)


class Resolvers:
    """Resolves orders, a few at a time, the others in the order they came."""

    def __init__(self, command: Sequence[str], wake: Callable[[], None]) -> None:
        """``wake`` is called, from another thread, when there is something in `answers`."""
        self._command = command
        self._wake = wake
        self._waiting: dict[str, _Child] = {}
        self._running: dict[str, _Child] = {}
        self._ended: deque[tuple[_Child, Resolved | Unresolved]] = deque()

    def resolve(self, order: Order, host_tools: str = "") -> None:
        """Have it resolved, for workers with these tools; answered by `answers`."""
        options = ["--host-tools", host_tools] if host_tools else []
        self._waiting[order.request] = _Child(order, options)
        self._begin()

    def abandon(self, request: str) -> None:
        """Its answer is not wanted any more."""
        self._waiting.pop(request, None)
        if request in self._running:
            self._running[request].abandon()

    def answers(self) -> Iterator[Resolved | Unresolved]:
        """What has come of orders, each once."""
        while self._ended:
            child, answer = self._ended.popleft()
            del self._running[child.order.request]
            if not child.abandoned:
                yield answer
        self._begin()

    def close(self) -> None:
        """Kill all that run."""
        self._waiting.clear()
        for child in self._running.values():
            child.abandon()

    def _begin(self) -> None:
        for request in list(self._waiting):
            if len(self._running) >= AT_ONCE:
                return
            if request in self._running:  # an abandoned one that is dying
                continue
            child = self._waiting.pop(request)
            self._running[request] = child

            def work(child: _Child = child) -> None:
                self._ended.append((child, child.run(self._command)))
                self._wake()

            threading.Thread(target=work, name=f"resolve {request[:8]}", daemon=True).start()
