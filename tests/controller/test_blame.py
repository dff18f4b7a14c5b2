"""A request that breaks the core fails, and no other is affected."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from parts_kit import broker_at
from wire_kit import key_of

from fabric.broker import Broker
from fabric.controller.parts import Wakeup
from fabric.controller.resolver_pool import ResolverPool
from fabric.scheduling import lifecycle, queries, requests, store, updates
from fabric.scheduling.events import Resolved
from fabric.wire import sockets
from fabric.wire.messages import (
    PROTOCOL,
    Answer,
    BuildGraph,
    BuildOrder,
    Poll,
    Query,
    Rejected,
    StepSpec,
    ToInitiator,
    Update,
)


class Resolving(ResolverPool):
    """Resolves each order at once, to one step with the name in the title."""

    def __init__(self, wake: Wakeup) -> None:
        super().__init__(("false",), wake)
        self._found: list[Resolved] = []

    def resolve(self, order: BuildOrder, host_tools: str = "") -> None:  # noqa: ARG002
        key, job = key_of(order.title), msgspec.Raw(msgspec.msgpack.encode(""))
        step = StepSpec(key, order.title, "chunk", "x86_64", job)
        graph = BuildGraph(PROTOCOL, order.request, order.title, (step,), (key,), detach=True)
        self._found.append(Resolved(order.request, graph))

    def answers(self) -> Iterator[Any]:
        while self._found:
            yield self._found.pop(0)


class Service:
    """A broker that restarts when it ends, as with systemd."""

    def __init__(self, path: Path) -> None:
        self.said: list[str] = []
        self.ends: list[str] = []
        self._path = path
        self._broker = self._begin()
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _begin(self) -> Broker:
        return broker_at(self._path, self.said.append, resolvers=Resolving)

    def _run(self) -> None:
        while not self._over:
            try:
                self._broker.run()
            except KeyError as error:
                self.ends.append(str(error))
                self._broker.close()
                self._broker = self._begin()
        self._broker.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        while self._thread.is_alive():  # it may be restarting
            self._broker.stop()
            self._thread.join(0.1)


@contextmanager
def peer_at(path: Path) -> Iterator[Any]:
    """A function that repeats a message until there is a suitable answer."""
    context = zmq.Context()
    socket = sockets.dealer(context)
    sockets.connect(socket, sockets.ipc(path, "jobs"))
    codec: sockets.Codec[ToInitiator] = sockets.Codec(ToInitiator)

    def ask(message: Any, enough: Any) -> Any:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            sockets.send(socket, codec.encode(message))
            while socket.poll(300):
                answer = codec.decode(socket.recv())
                if enough(answer):
                    return answer
        raise AssertionError("no such answer")

    yield ask
    context.destroy(linger=0)


def order(title: str) -> BuildOrder:
    request = uuid.uuid4().hex
    return BuildOrder(PROTOCOL, request, title, "refs/builds/m/r", "c" * 40, "s.morph", detach=True)


def breaks(monkeypatch: pytest.MonkeyPatch, where: Any, what: str) -> None:
    """Make a function raise, after its work, if its arguments have the poisonous request."""
    work = getattr(where, what)

    def broken(*args: Any) -> Any:
        done = work(*args)
        if any("poison" in str(getattr(each, "title", "")) for each in args):
            raise KeyError(what)
        if any(getattr(getattr(each, "spec", None), "name", "") == "poison" for each in args):
            raise KeyError(what)
        return done

    for module in list(sys.modules.values()):  # others may have imported it by name
        if module.__name__.startswith("fabric.scheduling") and getattr(module, what, None) is work:
            monkeypatch.setattr(module, what, broken)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (requests, "open_request"),  # ordered
        (requests, "start_request"),  # resolved
        (lifecycle, "need"),
        (store, "absent"),  # the store has answered
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_blame_fails_only_the_request_that_breaks_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, what: str
) -> None:
    breaks(monkeypatch, where, what)
    with Service(tmp_path) as service, peer_at(tmp_path) as ask:
        fine = order("fine")
        ask(fine, lambda it: isinstance(it, Update) and it.state == "building")
        over = ask(order("poison"), lambda it: isinstance(it, Update) and it.state == "failed")
        told = f"internal error of the controller: KeyError: '{what}'"
        assert over.message == told
        ask(Poll(fine.request, 0), lambda it: isinstance(it, Update) and it.state == "building")
        assert service.ends == [repr(what)]


def test_blame_rejects_only_the_update_that_breaks_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, updates, "update")
    with Service(tmp_path) as service, peer_at(tmp_path) as ask:
        rejected = ask(order("poison"), lambda it: isinstance(it, Rejected))
        told = "internal error of the controller: KeyError: 'update'"
        assert rejected.reason == told
        ask(order("fine"), lambda it: isinstance(it, Update) and it.state == "building")
    assert not service.ends


def test_blame_fails_only_the_query_that_breaks_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Answer:
        raise KeyError("answer")

    monkeypatch.setattr(queries, "answer", broken)
    with Service(tmp_path) as service, peer_at(tmp_path) as ask:
        found = ask(Query(PROTOCOL, "q", "requests"), lambda it: isinstance(it, Answer))
        told = "internal error of the controller: KeyError: 'answer'"
        assert found.error == told
        ask(order("fine"), lambda it: isinstance(it, Update) and it.state == "building")
    assert not service.ends
