"""An OpenTelemetry collector: it takes OTLP over HTTP, and keeps the spans."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Collector:
    """Answers with ``status``; a request that is no OTLP fails the test that looks."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.requests: list[ExportTraceServiceRequest] = []
        self.errors: list[str] = []
        self.url = ""

    @property
    def spans(self) -> list[Any]:
        assert not self.errors, self.errors
        resources = [each for one in self.requests for each in one.resource_spans]
        return [span for each in resources for one in each.scope_spans for span in one.spans]

    def take(self, path: str, kind: str | None, encoding: str | None, body: bytes) -> None:
        try:
            assert path == "/v1/traces", path
            assert kind == "application/x-protobuf", kind
            data = gzip.decompress(body) if encoding == "gzip" else body
            self.requests.append(ExportTraceServiceRequest.FromString(data))
        except Exception as error:  # noqa: BLE001 - the test is told
            self.errors.append(repr(error))


def facts(span: Any) -> dict[str, Any]:
    """The attributes of a span."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@contextlib.contextmanager
def collector(status: int = 200) -> Iterator[Collector]:
    found = Collector(status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            kind, encoding = self.headers["Content-Type"], self.headers["Content-Encoding"]
            found.take(self.path, kind, encoding, self.rfile.read(length))
            body = ExportTraceServiceResponse().SerializeToString()
            self.send_response(found.status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
