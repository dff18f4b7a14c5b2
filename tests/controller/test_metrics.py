"""The server of the broker's metrics."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from farm_kit import HOST

from fabric import bounds
from fabric.controller.metrics import Metrics

PORT = 7417


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics(f"{HOST}:{PORT}")
    yield metrics
    metrics.close()


def is_served() -> bool:
    with urllib.request.urlopen(f"http://{HOST}:{PORT}/metrics", timeout=60.0) as page:
        return b"process_resident_memory_bytes" in page.read()


@pytest.mark.bound("METRICS_READERS")
@pytest.mark.usefixtures("metrics")
def test_metrics_close_the_oldest_of_many_connections() -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection((HOST, PORT), timeout=60.0))
            for _ in range(5 * bounds.METRICS_READERS)
        ]
        assert is_served()
        assert idle[0].recv(1) == b""
        assert threading.active_count() <= before + 2 * bounds.METRICS_READERS
        assert is_served()


@pytest.mark.bound("METRICS_SILENCE")
@pytest.mark.usefixtures("metrics")
def test_metrics_close_a_silent_connection() -> None:
    with socket.create_connection((HOST, PORT), timeout=3.0 * bounds.METRICS_SILENCE) as idle:
        idle.send(b"GET /")
        assert idle.recv(1) == b""
