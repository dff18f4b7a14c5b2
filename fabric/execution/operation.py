"""Follows the execution of an action: its stages, its output while it runs, and its end."""

from __future__ import annotations

import contextlib
import hashlib
import io
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
from google.longrunning import operations_pb2 as operations
from msgspec.structs import replace

from fabric import bounds
from fabric.building.build_script import reported
from fabric.building.log import Log
from fabric.building.sandbox import Limits
from fabric.errors import in_line
from fabric.host.cancel import TICK, CancelToken
from fabric.reapi.blobs import Digest
from fabric.reapi.connection import (
    Connection,
    ServerFault,
    replies,
    status_code,
    wait,
)
from fabric.reapi.protocol import bytestream_pb2 as stream
from fabric.reapi.protocol import remote_execution_pb2 as pb

#: Seconds past the limit of a step after which it counts as too long, whatever the engine says.
_GRACE = 10.0
#: Seconds that a cancelled operation is given to be cancelled at the engine.
_CANCELLING = 5.0
#: Seconds that a cancelled step waits for that.
_LAST = 0.3
#: Statuses of an action that the engine does not have all of: by the API the first, and in
#: buildbox-casd the last.
_LACKING = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INTERNAL,
)
#: Pieces of output received before they are written.
_AHEAD = 16


class Lacking(ServerFault):
    """An engine may lack something of the action that it had; ``surely``: it says so."""

    def __init__(self, fault: ServerFault, *, surely: bool) -> None:
        super().__init__(str(fault), away=fault.away)
        self.surely = surely


class _Stream:
    """What an engine streams while a step runs, if it names a stream."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pieces: queue.Queue[bytes] = queue.Queue(maxsize=_AHEAD)
        self._name = ""
        self._ended = threading.Event()

    def follow(self, name: str) -> None:
        """Begin to receive the stream of this name, unless one is received."""
        if name and not self._name:
            self._name = name
            threading.Thread(target=self._receive, name="stream", daemon=True).start()

    def _receive(self) -> None:
        with contextlib.suppress(grpc.RpcError, ServerFault):  # the whole of it comes at the end
            call = self._connection.read(
                stream.ReadRequest(resource_name=self._name),
                metadata=self._connection.metadata(),
            )
            for reply in replies(call, self._check):
                while not self._ended.is_set():
                    with contextlib.suppress(queue.Full):
                        self._pieces.put(reply.data, timeout=TICK)
                        break

    def _check(self) -> None:
        if self._ended.is_set():
            raise ServerFault("the step has ended")

    def pieces(self) -> Iterator[bytes]:
        """What was received since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._pieces.get_nowait()

    def close(self) -> None:
        """Receive no more."""
        self._ended.set()


class Reports:
    """Calls ``started`` with each command list as it begins, as far as an engine streams reports.

    At least with the first of ``lists``.
    """

    def __init__(
        self, connection: Connection, lists: Sequence[str], started: Callable[[str], None]
    ) -> None:
        self.stream = _Stream(connection)
        self._first = lists[0]
        self._list = ""
        self._rest = b""
        self._started = started

    def begin(self) -> None:
        """The engine begins with the step."""
        self._begun(self._first)

    def tell(self) -> None:
        """Call ``started`` for what was received."""
        for piece in self.stream.pieces():
            whole, newline, rest = (self._rest + piece).rpartition(b"\n")
            self._rest = rest[-bounds.ENGINE_REPORTS :]
            for name, _ in reported(whole + newline):
                if name:
                    self._begun(name)

    def _begun(self, name: str) -> None:
        if name != self._list:
            self._list = name
            self._started(name)


class Output:
    """The log of a step: what the engine streams while it runs, then the rest of the whole."""

    def __init__(self, connection: Connection, log: Log, limits: Limits) -> None:
        self.stream = _Stream(connection)
        self._log = log
        self._limits = limits
        self._streamed = hashlib.sha256()
        self._size = 0

    def write(self) -> None:
        """Write what was received to the log.  BuildFailed past the limit."""
        for piece in self.stream.pieces():
            self._streamed.update(piece)
            self._size += len(piece)
            self._append(piece)

    def finish(self, whole: Callable[[], Iterable[bytes]]) -> None:
        """Write the rest of the output, all of which is ``whole()``.  BuildFailed past the limit.

        ``whole`` is called once more if the stream was of something else.
        """
        self.stream.close()
        start, left = hashlib.sha256(), self._size
        equal = not left
        for piece in whole():
            start.update(piece[:left])
            rest = piece[left:]
            left = max(0, left - len(piece))
            equal = equal or (not left and start.digest() == self._streamed.digest())
            if equal:
                self._append(rest)
        if not equal:
            self._log.write("### The engine streamed something else than the output, which follows")
            for piece in whole():
                self._append(piece)

    def _append(self, data: bytes) -> None:
        self._log.copy(io.BytesIO(data))
        self._limits.check_log("", self._log.size())


class Execution:
    """One execution of an action."""

    def __init__(
        self,
        connection: Connection,
        output: Output,
        cancel: CancelToken,
        limits: Limits,
        reports: Reports,
    ) -> None:
        self._connection = connection
        self._output = output
        self._reports = reports
        self._cancel = cancel
        self._limits = limits
        self._running: Limits | None = None  # with the time that is left, once it counts
        self._name = ""  # of the operation
        self._sent = time.monotonic()

    def run(self, action: Digest) -> pb.ExecuteResponse:
        """Execute, and return the response, with a result whose digests are to be verified.

        Lacking if the engine may lack part of the action; BuildFailed past a limit, Cancelled,
        ServerFault.  Then the operation is cancelled at the engine.
        """
        try:
            return self._run(action)
        except BaseException:
            self._abandon()
            raise
        finally:
            self._output.stream.close()
            self._reports.stream.close()

    def _run(self, action: Digest) -> pb.ExecuteResponse:
        tries = self._connection.pauses()
        while True:
            try:
                for operation in replies(self._begun(action), self._check):
                    tries = self._connection.pauses()
                    self._name = operation.name or self._name
                    if operation.done:
                        self._name = ""  # nothing is left to be cancelled
                        return self._response(operation)
                    self._notice(operation)
            except grpc.RpcError as error:
                code, text = error.code(), error.details() or ""
                if code == grpc.StatusCode.NOT_FOUND and self._name:
                    self._name = ""
                    raise ServerFault(
                        f"{self._connection.who} has lost the action: {in_line(text)}"
                    ) from error
                if code in _LACKING:
                    raise self._fault(code, text) from error
                pause = next(tries)
                self._connection.passing(error, pause)
            else:  # the stream ended before the operation did
                pause = next(tries)
                if pause is None:
                    raise ServerFault(f"{self._connection.who} does not say how the action ended")
            wait(pause, self._check)

    def _begun(self, action: Digest) -> Any:
        """The stream of operations: a new one, or after a broken connection that which runs."""
        connection = self._connection
        if self._name:
            request = pb.WaitExecutionRequest(name=self._name)
            return connection.wait(request, metadata=connection.metadata())
        return connection.execute(
            pb.ExecuteRequest(
                instance_name=connection.access.instance,
                action_digest=action.message(),
                skip_cache_lookup=True,
                inline_stderr=True,
            ),
            metadata=connection.metadata(),
        )

    def _notice(self, operation: operations.Operation) -> None:
        metadata = pb.ExecuteOperationMetadata()
        if operation.metadata.Is(metadata.DESCRIPTOR):
            operation.metadata.Unpack(metadata)
        self._output.stream.follow(metadata.stdout_stream_name)
        self._reports.stream.follow(metadata.stderr_stream_name)
        waits = metadata.stage in (pb.ExecutionStage.CACHE_CHECK, pb.ExecutionStage.QUEUED)
        if self._running is None and not waits:  # engines that report no stage begin at once
            seconds = self._limits.seconds
            until = None if seconds is None else time.monotonic() + seconds + _GRACE
            self._running = replace(self._limits, until=until)
            self._reports.begin()

    def _check(self) -> None:
        self._cancel.check()
        self._output.write()
        self._reports.tell()
        if self._running is not None:
            self._running.check("")
        elif time.monotonic() - self._sent > bounds.ENGINE_QUEUE:
            raise ServerFault(
                f"{self._connection.who} did not begin with the step for"
                f" {bounds.ENGINE_QUEUE / 3600:g} hours: see `execute-properties`"
            )

    def _response(self, operation: operations.Operation) -> pb.ExecuteResponse:
        response = pb.ExecuteResponse()
        if operation.HasField("error"):
            self._refuse(operation.error.code, operation.error.message)
        if not operation.response.Is(response.DESCRIPTOR):
            raise ServerFault(f"{self._connection.who} ended the action without a word")
        operation.response.Unpack(response)
        if response.status.code:
            self._refuse(response.status.code, response.status.message)
        if response.cached_result:
            raise ServerFault(
                f"{self._connection.who} did not run the step: it answered from its"
                " cache, which was to be skipped"
            )
        return response

    def _refuse(self, number: int, text: str) -> None:
        """Raise the error for a status other than OK."""
        code = status_code(number)
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            running, limit = self._running, self._limits.seconds
            if running is not None and running.until is not None and limit is not None:
                # the clocks of two machines differ
                ran = time.monotonic() - (running.until - limit - _GRACE)
                if ran > 0.9 * limit:
                    replace(running, until=0.0).check("")
            raise ServerFault(
                f"{self._connection.who} ended the step by a limit of its own on its"
                f" time: {in_line(text)}; the setting `build-timeout` asks it for more"
            )
        raise self._fault(code, text)

    def _fault(self, code: grpc.StatusCode, text: str) -> ServerFault:
        fault = self._connection.refused(code, text)
        if code in _LACKING:
            return Lacking(fault, surely=code != grpc.StatusCode.INTERNAL)
        return fault

    def _abandon(self) -> None:
        """Cancel the operation at the engine, which may have ended it, or may not answer."""
        if not self._name:
            return
        with contextlib.suppress(grpc.RpcError, grpc.FutureTimeoutError, ServerFault):
            connection = self._connection
            connection.cancel_operation.future(
                operations.CancelOperationRequest(name=self._name),
                timeout=_CANCELLING,
                metadata=connection.metadata(),
            ).result(timeout=_LAST)
