"""A proxy in front of a real engine, which can break what passes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

#: A method's fault: it gets the request (or an iterator of them), the call, and a function that
#: forwards a request; it returns the reply, or yields replies, as bytes.
Fault = Callable[[Any, grpc.ServicerContext, Callable[..., Any]], Any]

_STREAMED = {"Execute", "WaitExecution", "Read"}


class Proxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Forwards calls to the engine at ``host``; ``faults`` has those of methods, by name."""

    def __init__(self, host: str, credentials: grpc.ServerCredentials | None = None) -> None:
        self.faults: dict[str, Fault] = {}
        self.calls: list[tuple[str, Any]] = []  # (method, request) of all that arrived
        self.metadata: list[dict[str, Any]] = []
        self._channel = grpc.insecure_channel(host)
        self._server = grpc.server(ThreadPoolExecutor(16), handlers=[self])
        place = "127.0.0.1:0"
        if credentials is None:
            port = self._server.add_insecure_port(place)
        else:
            port = self._server.add_secure_port(place, credentials)
        self.host = f"127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()
        self._channel.close()

    def names(self) -> list[str]:
        """The methods that were called."""
        return [name for name, _ in self.calls]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method
        name = method.rpartition("/")[2]
        self.metadata.append({item.key: item.value for item in details.invocation_metadata})

        def forward(request: Any) -> Any:
            if name == "Write":
                return self._channel.stream_unary(method)(request)
            if name in _STREAMED:
                return self._channel.unary_stream(method)(request)
            return self._channel.unary_unary(method)(request)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls.append((name, request))
            with _passed_on(context):
                fault = self.faults.get(name)
                return fault(request, context, forward) if fault else forward(request)

        def answers(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.calls.append((name, request))
            with _passed_on(context):
                fault = self.faults.get(name)
                replies = fault(request, context, forward) if fault else forward(request)
                if isinstance(replies, grpc.Call):
                    context.add_callback(replies.cancel)
                yield from replies

        if name == "Write":
            return grpc.stream_unary_rpc_method_handler(answer)
        if name in _STREAMED:
            return grpc.unary_stream_rpc_method_handler(answers)
        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.contextmanager
def _passed_on(context: grpc.ServicerContext) -> Iterator[None]:
    """Errors of the engine become those of the proxy."""
    try:
        yield
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call):
            context.abort(error.code(), error.details())
        raise


def refuse(code: grpc.StatusCode, text: str = "no") -> Fault:
    """A fault: the method fails with this status."""

    def fault(request: Any, context: grpc.ServicerContext, forward: Callable[..., Any]) -> Any:  # noqa: ARG001
        context.abort(code, text)

    return fault


def once(fault: Fault) -> Fault:
    """The fault, at the first call only."""
    calls: list[None] = []

    def first(request: Any, context: grpc.ServicerContext, forward: Callable[..., Any]) -> Any:
        calls.append(None)
        return fault(request, context, forward) if len(calls) == 1 else forward(request)

    return first


def edited(message: type, edit: Callable[[Any], None]) -> Fault:
    """A fault: the replies of a method are edited, as messages of this type."""

    def fault(request: Any, context: grpc.ServicerContext, forward: Callable[..., Any]) -> Any:  # noqa: ARG001
        reply = forward(request)
        if isinstance(reply, bytes):
            return _edited(reply)
        return map(_edited, reply)

    def _edited(data: bytes) -> bytes:
        found = message.FromString(data)  # type: ignore[attr-defined]
        edit(found)
        out: bytes = found.SerializeToString()
        return out

    return fault
