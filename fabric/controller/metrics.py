"""Serves metrics to Prometheus: the broker's loop takes snapshots, and a request gets the last."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from fabric import bounds
from fabric.config import host_and_port
from fabric.errors import FabricError
from fabric.wire.messages import PROTOCOL, Answer

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

    from fabric.scheduling.scheduler import Scheduler

#: Seconds between snapshots.
EVERY = 1.0


class Counts(msgspec.Struct):
    """What is counted, whether anybody asks or not."""

    attempts: Counter[str]  # ended, by result
    requests: Counter[str]  # ended, by state
    log_bytes: int = 0  # taken in


class Metrics:
    """Serves at ``address``, HOST:PORT.  FabricError if that cannot be done."""

    def __init__(self, address: str) -> None:
        # slow, and an embedded broker does without
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
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterable[Metric]:
        """The last snapshot; in the server's thread."""
        return self._taken

    def take(
        self, scheduler: Scheduler, workers: Answer, counts: Counts, *, writable: bool
    ) -> None:
        """Take a snapshot.  ``workers`` answers a query for them; is the journal ``writable``?"""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        steps = {state.value: count for state, count in scheduler.state.tally.items() if count}
        states = Counter(request.state for request in scheduler.state.requests.values())
        machines = GaugeMetricFamily("fabric_workers", "Workers by state", labels=["state"])
        slots = GaugeMetricFamily("fabric_worker_slots", "Slots", labels=["worker"])
        running = GaugeMetricFamily("fabric_worker_running", "Attempts held", labels=["worker"])
        disk = GaugeMetricFamily("fabric_worker_disk_free_bytes", "Disk left", labels=["worker"])
        memory = GaugeMetricFamily("fabric_worker_memory_free_bytes", "Memory", labels=["worker"])
        for state, number in Counter(each.state for each in workers.workers).items():
            machines.add_metric([state], number)
        for worker in workers.workers:
            slots.add_metric([worker.name], worker.slots)
            running.add_metric([worker.name], len(worker.running))
            disk.add_metric([worker.name], worker.free_disk)
            memory.add_metric([worker.name], worker.free_memory)
        self._taken = [
            GaugeMetricFamily("fabric_protocol", "Version of the protocol", PROTOCOL),
            GaugeMetricFamily(
                "fabric_journal_writable", "1, or 0 if no promise can be kept", float(writable)
            ),
            _labelled(GaugeMetricFamily, "fabric_steps", "Steps known, by state", "state", steps),
            _labelled(
                GaugeMetricFamily, "fabric_requests", "Requests known, by state", "state", states
            ),
            _labelled(
                CounterMetricFamily, "fabric_attempts", "Attempts ended", "result", counts.attempts
            ),
            _labelled(
                CounterMetricFamily, "fabric_requests_ended", "Requests", "state", counts.requests
            ),
            CounterMetricFamily("fabric_log_bytes", "Bytes of logs taken in", counts.log_bytes),
            machines,
            slots,
            running,
            disk,
            memory,
        ]


def _server(host: str, port: int, registry: CollectorRegistry) -> WSGIServer:
    """A server that has a thread for each of a few connections, and cuts the oldest for more."""
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from prometheus_client import make_wsgi_app

    connections: dict[socket.socket, None] = {}  # oldest first

    class Handler(WSGIRequestHandler):
        timeout = bounds.METRICS_SILENCE

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    class Server(ThreadingMixIn, WSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

        def process_request(self, request: Any, client_address: Any) -> None:
            if len(connections) >= bounds.METRICS_READERS:
                with contextlib.suppress(OSError, KeyError, StopIteration):  # it has just ended
                    oldest = next(iter(connections))
                    del connections[oldest]
                    oldest.shutdown(socket.SHUT_RDWR)
            connections[request] = None
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            connections.pop(request, None)
            super().shutdown_request(request)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """The client has gone, or is cut."""

    return make_server(host, port, make_wsgi_app(registry), Server, Handler)


def _labelled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    description: str,
    label: str,
    counts: Mapping[Any, int],
) -> Metric:
    family = kind(name, description, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
