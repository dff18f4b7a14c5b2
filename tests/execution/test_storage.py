"""Blobs that several slots send to an engine at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from faulty import Proxy, edited, once
from waiting import until

from fabric import bounds
from fabric.errors import Cancelled
from fabric.host.cancel import CancelToken, no_check
from fabric.reapi.access import Access
from fabric.reapi.blobs import Digest
from fabric.reapi.connection import Connection, ServerFault
from fabric.reapi.protocol import bytestream_pb2 as stream
from fabric.reapi.protocol import remote_execution_pb2 as pb
from fabric.reapi.storage import Storage


class Engine:
    """A worker's storage behind a proxy that holds uploads of large blobs until ``go`` is set."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.connection = Connection(Access(proxy.host))
        self.storage = Storage(self.connection)
        self.go = threading.Event()
        self.small: list[Digest] = []  # all that arrived
        self.large: list[Digest] = []
        self.threads: list[threading.Thread] = []
        self.results: list[int] = []
        proxy.faults |= {"BatchUpdateBlobs": self._update, "Write": self._write}

    def _update(self, request: bytes, context: Any, forward: Callable[..., Any]) -> Any:  # noqa: ARG002
        batch = pb.BatchUpdateBlobsRequest.FromString(request)
        self.small += [Digest.taken(each.digest) for each in batch.requests]
        return forward(request)

    def _write(self, requests: Iterator[bytes], context: Any, forward: Callable[..., Any]) -> Any:  # noqa: ARG002
        first = next(requests)
        name = stream.WriteRequest.FromString(first).resource_name
        sha256, size = name.rpartition("blobs/")[2].split("/")
        self.large.append(Digest(sha256, int(size)))
        assert self.go.wait(30)

        def all_() -> Iterator[bytes]:
            yield first
            yield from requests

        return forward(all_())

    def send(self, *blobs: bytes, ask: bool = True) -> threading.Thread:
        """Begin to send blobs, as a slot."""
        wanted = {Digest.of(blob): blob for blob in blobs}

        def send() -> None:
            self.results.append(self.storage.send((), wanted, no_check, ask=ask))

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        self.threads.append(thread)
        return thread

    def end(self) -> None:
        self.go.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    @property
    def arrived(self) -> list[Digest]:
        return self.small + self.large


@pytest.fixture
def engine(proxy: Proxy) -> Iterator[Engine]:
    made = Engine(proxy)
    yield made
    made.end()
    made.connection.close()


def large() -> bytes:
    return os.urandom(bounds.ENGINE_BATCH + 1)


def test_large_blob_delays_no_other(engine: Engine) -> None:
    """Neither others' blobs, nor small ones that the slot of the large one sends as well."""
    source, layer = large(), os.urandom(9)
    slow = engine.send(source, layer)
    until(lambda: engine.large)
    engine.send(layer, os.urandom(9)).join(10)
    assert engine.results == [1]
    assert slow.is_alive()
    assert len(engine.small) == 2


def test_blob_that_two_slots_need_is_sent_once(engine: Engine) -> None:
    source = large()
    engine.send(source)
    until(lambda: engine.large)
    second = engine.send(source, os.urandom(9))
    until(lambda: engine.small)
    assert second.is_alive(), "the engine does not have it yet"
    engine.end()
    assert engine.large == [Digest.of(source)]
    assert sorted(engine.results) == [1, 1]


def test_blob_whose_sender_fails_is_sent_by_another(engine: Engine, proxy: Proxy) -> None:
    asked: list[int] = []

    def refuse(request: Any, context: grpc.ServicerContext, forward: Callable[..., Any]) -> Any:
        asked.append(1)
        assert engine.go.wait(30)
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
        return forward(request)

    proxy.faults["BatchUpdateBlobs"] = once(refuse)
    blob = os.urandom(9)
    failures: list[Exception] = []

    def send() -> None:
        try:
            engine.storage.send((), {Digest.of(blob): blob}, no_check)
        except ServerFault as error:
            failures.append(error)

    first = threading.Thread(target=send)
    first.start()
    until(lambda: asked)
    engine.send(blob)
    engine.end()
    first.join()
    assert len(failures) == 1
    assert engine.results == [1], "it was sent then"


def test_waiting_for_another_slot_can_be_cancelled(engine: Engine) -> None:
    source = large()
    engine.send(source)
    until(lambda: engine.large)
    cancel = CancelToken()
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(Cancelled):
        engine.storage.send((), {Digest.of(source): source}, cancel.check)


def test_lost_blobs_are_sent_whatever_the_engine_says(engine: Engine, proxy: Proxy) -> None:
    def nothing(reply: pb.FindMissingBlobsResponse) -> None:
        del reply.missing_blob_digests[:]

    proxy.faults["FindMissingBlobs"] = edited(pb.FindMissingBlobsResponse, nothing)
    blobs = [os.urandom(9) for _ in range(3)]
    engine.send(*blobs).join(10)
    assert engine.results == [0]
    engine.storage.forget()
    engine.send(*blobs, ask=False).join(10)
    assert engine.results == [0, 3]
