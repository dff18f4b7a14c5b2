"""Serves metrics to Prometheus.

The broker's loop takes snapshots, and the server's threads return the last one.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fabric import bounds
from fabric.config import host_and_port
from fabric.errors import FabricError
from fabric.wire.messages import PROTOCOL, Answer

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from fabric.scheduling.scheduler import Scheduler

#: Seconds between snapshots.
EVERY = 1.0


class Family(NamedTuple):
    """A metric; ``label`` tells its values apart, "" if there is one."""

    name: str
    type: str  # "gauge" or "counter"
    label: str
    meaning: str


#: docs/reference/metrics.md shows this table.
FAMILIES = (
    Family("fabric_protocol", "gauge", "", "Version of the protocol"),
    Family("fabric_journal_writable", "gauge", "", "1, or 0 if the journal cannot be written"),
    Family("fabric_steps", "gauge", "state", "Known steps, by state"),
    Family("fabric_requests", "gauge", "state", "Known requests, by state"),
    Family("fabric_attempts", "counter", "result", "Attempts that ended, by result"),
    Family("fabric_requests_ended", "counter", "state", "Requests that ended, by state"),
    Family("fabric_log_bytes", "counter", "", "Bytes of logs that the broker received"),
    Family("fabric_workers", "gauge", "state", "Workers, by state"),
    Family("fabric_worker_slots", "gauge", "worker", "Builds that a worker runs at a time"),
    Family("fabric_worker_running", "gauge", "worker", "Attempts that a worker runs"),
    Family("fabric_worker_disk_free_bytes", "gauge", "worker", "Free disk of a worker"),
    Family("fabric_worker_memory_free_bytes", "gauge", "worker", "Free memory of a worker"),
)


class Counts(msgspec.Struct):
    """Counters since the start of the broker."""

    attempts: Counter[str]  # ended attempts by result
    requests: Counter[str]  # ended requests by state
    log_bytes: int = 0  # received


class Metrics:
    """Serves at ``address``, HOST:PORT.  FabricError if it cannot listen there."""

    def __init__(self, address: str) -> None:
        # slow to import, and an embedded broker has no metrics
        from prometheus_client import CollectorRegistry, ProcessCollector

        self._taken: list[Metric] = []
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        host, port = host_and_port(address)
        try:
            self._server = _server(host, port, registry)
        except OSError as error:
            raise FabricError(f"metrics: cannot listen at {address}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterable[Metric]:
        """The last snapshot.  Called in a thread of the server."""
        return self._taken

    def take(
        self, scheduler: Scheduler, workers: Answer, counts: Counts, *, writable: bool
    ) -> None:
        """Take a snapshot.

        ``workers`` is the answer to the query "workers"; ``writable`` says whether the journal is.
        """
        each = workers.workers
        values: dict[str, Mapping[Any, float]] = {
            "fabric_protocol": {"": PROTOCOL},
            "fabric_journal_writable": {"": float(writable)},
            "fabric_steps": {
                state: count for state, count in scheduler.state.tally.items() if count
            },
            "fabric_requests": Counter(one.state for one in scheduler.state.requests.values()),
            "fabric_attempts": counts.attempts,
            "fabric_requests_ended": counts.requests,
            "fabric_log_bytes": {"": counts.log_bytes},
            "fabric_workers": Counter(worker.state for worker in each),
            "fabric_worker_slots": {worker.name: worker.slots for worker in each},
            "fabric_worker_running": {worker.name: len(worker.running) for worker in each},
            "fabric_worker_disk_free_bytes": {worker.name: worker.free_disk for worker in each},
            "fabric_worker_memory_free_bytes": {worker.name: worker.free_memory for worker in each},
        }
        self._taken = [_filled(family, values[family.name]) for family in FAMILIES]


def _server(host: str, port: int, registry: CollectorRegistry) -> WSGIServer:
    """A server with a thread for each connection; past the bound it closes the oldest one."""
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from prometheus_client import make_wsgi_app

    connections: dict[socket.socket, None] = {}  # oldest first

    class Handler(WSGIRequestHandler):
        timeout = bounds.METRICS_SILENCE

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    class Server(ThreadingMixIn, WSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

        def process_request(self, request: Any, client_address: Any) -> None:
            if len(connections) >= bounds.METRICS_READERS:
                with contextlib.suppress(OSError, KeyError, StopIteration):  # it has just closed
                    oldest = next(iter(connections))
                    del connections[oldest]
                    oldest.shutdown(socket.SHUT_RDWR)
            connections[request] = None
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            connections.pop(request, None)
            super().shutdown_request(request)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore it: the client is gone, or its connection was closed."""

    return make_server(host, port, make_wsgi_app(registry), Server, Handler)


def _filled(family: Family, values: Mapping[Any, float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    made = kind(family.name, family.meaning, labels=[family.label] if family.label else [])
    for label, value in values.items():
        made.add_metric([str(label)] if family.label else [], value)
    return made
