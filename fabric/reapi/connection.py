"""Connects to a server: its methods, who we are to it, and the faults that calls end with."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from google.longrunning import operations_pb2 as operations
from google.protobuf import empty_pb2
from google.rpc import code_pb2

from fabric import bounds
from fabric.errors import MachineFault, in_line
from fabric.host.cancel import TICK
from fabric.host.files import read_regular
from fabric.reapi.access import Access
from fabric.reapi.protocol import bytestream_pb2 as stream
from fabric.reapi.protocol import remote_execution_pb2 as pb

#: Seconds for a call that carries at most one batch.
_DEADLINE = 60.0
#: Seconds until a broken connection without traffic is noticed: most servers allow no more pings.
_PING_EVERY = 310
#: Seconds before the first of the repeated attempts at a call.
_SOON = 0.2
#: Replies of a stream received before they are needed.
_AHEAD = 4
#: Bytes a second that an engine must at least take or give.
_SLOWEST = 256 << 10
#: Failures that may pass by themselves.
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED)
#: Most characters of an engine's text in a message.
_TEXT = 500


class ServerFault(MachineFault):
    """A server did not do what it should; ``away``: it may do nothing else either.

    ``code`` is the status that it gave.
    """

    def __init__(
        self, message: str, *, away: bool = False, code: grpc.StatusCode | None = None
    ) -> None:
        super().__init__(message)
        self.away = away
        self.code = code


class Connection:
    """The methods of a server.  Any thread may call them."""

    def __init__(self, access: Access) -> None:
        """MachineFault if a file of ``access`` cannot be read."""
        self.access = access
        self.host = access.host
        self.who = f"{access.who} {access.host}"  # begins messages
        options = [
            ("grpc.max_receive_message_length", bounds.ENGINE_MESSAGE),
            ("grpc.keepalive_time_ms", _PING_EVERY * 1000),
            ("grpc.max_reconnect_backoff_ms", 5000),
            ("grpc.primary_user_agent", "distbuild"),
        ]
        if access.encrypted:
            credentials = grpc.ssl_channel_credentials(
                _read(access.ca), _read(access.key), _read(access.certificate)
            )
            channel = grpc.secure_channel(self.host, credentials, options)
        else:
            channel = grpc.insecure_channel(self.host, options)
        self._channel = channel
        service = "/build.bazel.remote.execution.v2."
        storage = f"{service}ContentAddressableStorage/"
        self.capabilities = self._unary(
            f"{service}Capabilities/GetCapabilities",
            pb.GetCapabilitiesRequest,
            pb.ServerCapabilities,
        )
        self.find_missing = self._unary(
            f"{storage}FindMissingBlobs", pb.FindMissingBlobsRequest, pb.FindMissingBlobsResponse
        )
        self.update = self._unary(
            f"{storage}BatchUpdateBlobs", pb.BatchUpdateBlobsRequest, pb.BatchUpdateBlobsResponse
        )
        cache = f"{service}ActionCache/"
        self.result = self._unary(
            f"{cache}GetActionResult", pb.GetActionResultRequest, pb.ActionResult
        )
        self.update_result = self._unary(
            f"{cache}UpdateActionResult", pb.UpdateActionResultRequest, pb.ActionResult
        )
        self.cancel_operation = self._unary(
            "/google.longrunning.Operations/CancelOperation",
            operations.CancelOperationRequest,
            empty_pb2.Empty,
        )
        self.execute = self._stream(f"{service}Execution/Execute", pb.ExecuteRequest)
        self.wait = self._stream(f"{service}Execution/WaitExecution", pb.WaitExecutionRequest)
        self.read = channel.unary_stream(
            "/google.bytestream.ByteStream/Read",
            request_serializer=stream.ReadRequest.SerializeToString,
            response_deserializer=stream.ReadResponse.FromString,
        )
        self.write = channel.stream_unary(
            "/google.bytestream.ByteStream/Write",
            request_serializer=stream.WriteRequest.SerializeToString,
            response_deserializer=stream.WriteResponse.FromString,
        )

    def _unary(self, method: str, request: Any, reply: Any) -> Any:
        return self._channel.unary_unary(
            method,
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )

    def _stream(self, method: str, request: Any) -> Any:
        return self._channel.unary_stream(
            method,
            request_serializer=request.SerializeToString,
            response_deserializer=operations.Operation.FromString,
        )

    def metadata(self) -> list[tuple[str, str]]:
        """What each call carries.  ServerFault if the token cannot be read."""
        if self.access.authorization:
            return [("authorization", self.access.authorization)]
        if self.access.token is None:
            return []
        token = _read(self.access.token)
        assert token is not None
        text = token.decode("ascii", "replace").strip()
        if not text.isprintable() or not text.isascii():
            raise ServerFault(f"execute-token: {self.access.token} holds no token", away=True)
        return [("authorization", f"Bearer {text}")]

    def call(self, method: Any, request: Any, check: Callable[[], None]) -> Any:
        """The reply to a call that may be repeated; ``check`` is called while it waits.

        ServerFault if it fails, or the server does not answer within its patience.
        """
        for pause in self.pauses():
            future = method.future(request, timeout=self.deadline(0), metadata=self.metadata())
            try:
                return result(future, check)
            except grpc.RpcError as error:
                self.passing(error, pause)
            wait(pause, check)
        raise AssertionError("the last pause is None")

    def passing(self, error: grpc.RpcError, pause: float | None) -> None:
        """ServerFault unless a call that failed so can be tried again after ``pause``."""
        if error.code() not in PASSING or pause is None:
            raise self.fault(error) from error

    def fault(self, error: grpc.RpcError) -> ServerFault:
        """The fault of a call that failed."""
        return self.refused(error.code(), error.details() or "")

    def refused(self, code: grpc.StatusCode, text: str) -> ServerFault:
        """The fault for a status of the engine."""
        advice = self.access.advice.get(code.name, "")
        said = in_line(text[:_TEXT]) or "it gives no reason"
        return ServerFault(
            f"{self.who}: {code.name}: {said}{'; ' if advice else ''}{advice}",
            code=code,
            away=code
            in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.UNAUTHENTICATED,
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.UNIMPLEMENTED,
            ),
        )

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Turns errors of calls into ServerFault."""
        try:
            yield
        except grpc.RpcError as error:
            raise self.fault(error) from error

    def deadline(self, size: int) -> float:
        """Seconds for a call that carries so many bytes besides a batch."""
        seconds = _DEADLINE + size / _SLOWEST
        return seconds if self.access.whole is None else min(seconds, self.access.whole)

    def pauses(self) -> Iterator[float | None]:
        """Seconds to wait before each new attempt at a call; None: it is the last."""
        patience = self.access.patience
        until = time.monotonic() + (bounds.ENGINE_PATIENCE if patience is None else patience)
        pause = _SOON
        while time.monotonic() + pause < until:
            yield pause
            pause = min(2 * pause, 5.0)
        yield None

    def close(self) -> None:
        self._channel.close()


def result(future: Any, check: Callable[[], None]) -> Any:
    """The reply of a call that was begun; ``check`` is called while it waits."""
    try:
        while True:
            check()
            with suppress(grpc.FutureTimeoutError):
                return future.result(timeout=TICK)
    finally:
        future.cancel()


def replies(call: Any, check: Callable[[], None]) -> Iterator[Any]:
    """The replies of a call that streams them; ``check`` is called while it waits.

    The call is cancelled at the end.  grpc.RpcError if it fails.
    """
    received: queue.Queue[Any] = queue.Queue(maxsize=_AHEAD)
    ended = threading.Event()

    def put(item: object) -> None:
        while not ended.is_set():
            with suppress(queue.Full):
                received.put(item, timeout=TICK)
                return

    def receive() -> None:
        try:
            for reply in call:
                put(reply)
            put(None)
        except grpc.RpcError as error:
            put(error)

    threading.Thread(target=receive, name="receiving", daemon=True).start()
    try:
        while True:
            check()
            try:
                item = received.get(timeout=TICK)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, grpc.RpcError):
                raise item
            yield item
    finally:
        ended.set()
        call.cancel()


def status_code(number: int) -> grpc.StatusCode:
    """The code of a `google.rpc.Status`."""
    try:
        return grpc.StatusCode[code_pb2.Code.Name(number)]
    except (KeyError, ValueError):
        return grpc.StatusCode.UNKNOWN


@contextmanager
def locked(lock: threading.Lock, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock; ``check`` is called while another thread has it."""
    while not lock.acquire(timeout=TICK):
        check()
    try:
        yield
    finally:
        lock.release()


def wait(seconds: float | None, check: Callable[[], None]) -> None:
    """Wait, calling ``check``, which may raise."""
    until = time.monotonic() + (seconds or 0)
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, TICK))


def _read(file: Path | None) -> bytes | None:
    """The contents of a small file of the settings; None without one."""
    if file is None:
        return None
    try:
        return read_regular(file, bounds.ENGINE_FILE)
    except OSError as error:
        raise ServerFault(
            f"{file}: {error.strerror}: see the settings `execute-...`", away=True
        ) from error
