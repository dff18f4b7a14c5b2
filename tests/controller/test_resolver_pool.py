"""The child processes that resolve build orders."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from resolving_kit import COMMAND, answers_of, gone, order
from waiting import until
from wire_kit import steps_of

from fabric import bounds
from fabric.controller.resolver_pool import Child, ResolverPool
from fabric.scheduling.events import Resolved, Unresolved


@pytest.fixture
def resolvers() -> Iterator[ResolverPool]:
    made = ResolverPool(COMMAND, lambda: None)
    yield made
    made.close()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("resolve ")])


def test_resolver_pool_resolves_an_order(resolvers: ResolverPool) -> None:
    resolvers.resolve(order(1))
    [resolved] = answers_of(resolvers, 1)
    assert isinstance(resolved, Resolved)
    assert resolved.graph.steps == steps_of("app: zlib\nzlib:")


def test_resolver_pool_reports_errors(resolvers: ResolverPool) -> None:
    resolvers.resolve(order(1, "fail s.morph:3: no such chunk"))
    resolvers.resolve(order(2, "rubbish"))
    told = {answer.request: answer for answer in answers_of(resolvers, 2)}
    first, second = told[order(1).request], told[order(2).request]
    assert isinstance(first, Unresolved)
    assert first.message == "s.morph:3: no such chunk"
    assert isinstance(second, Unresolved)
    assert "the resolver's answer cannot be decoded" in second.message


def test_resolver_pool_retries_after_a_fault_of_the_machine(
    resolvers: ResolverPool, tmp_path: Path
) -> None:
    resolvers.resolve(order(1, f"once {tmp_path}/tried"))
    [resolved] = answers_of(resolvers, 1)
    assert isinstance(resolved, Resolved)


def test_resolver_pool_retries_if_no_process_starts(
    resolvers: ResolverPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the system says: the order is not at fault."""
    start = subprocess.Popen
    failed: list[bool] = []

    def fail_once(*args: Any, **options: Any) -> Any:
        if not failed:
            failed.append(True)
            raise OSError(errno.EFAULT, "Bad address", "/usr/bin/python3")
        return start(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", fail_once)
    resolvers.resolve(order(1))
    [resolved] = answers_of(resolvers, 1)
    assert failed
    assert isinstance(resolved, Resolved)


def test_resolver_pool_without_a_program(tmp_path: Path) -> None:
    resolvers = ResolverPool([str(tmp_path / "nothing")], lambda: None)
    resolvers.resolve(order(1))
    [answer] = answers_of(resolvers, 1)
    assert isinstance(answer, Unresolved)
    assert "No such file" in answer.message


@pytest.mark.bound("RESOLVERS")
def test_resolver_pool_runs_few_and_kills_abandoned_ones_with_their_children(
    resolvers: ResolverPool, tmp_path: Path
) -> None:
    for n in (1, 2, 3):
        hang = f"hang {tmp_path}/{n}" if n < 3 else "x"
        resolvers.resolve(order(n, hang, requester=f"user{n}"))
    until(lambda: all((tmp_path / str(n)).exists() for n in (1, 2)))
    assert list(resolvers.answers()) == []
    pids = [
        [int((tmp_path / f"{n}{suffix}").read_text()) for suffix in ("", ".child")] for n in (1, 2)
    ]
    resolvers.abandon(order(1).request)
    [resolved] = answers_of(resolvers, 1)
    assert resolved.request == order(3).request
    until(lambda: all(map(gone, pids[0])))
    assert not any(map(gone, pids[1]))
    resolvers.close()
    until(lambda: all(map(gone, pids[1])))


def test_resolver_pool_kills_git_with_its_resolver(tmp_path: Path) -> None:
    """The server accepts the connection and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        trove = f"git://127.0.0.1:{silent.getsockname()[1]}/trove.git"
        config = tmp_path / "broker.toml"
        config.write_text(f'cache = "{tmp_path}/cache"\ntrove = "{trove}"\n')
        command = (sys.executable, "-m", "fabric.controller.resolver", "--config", str(config))
        others = children_of(os.getpid())  # servers of other tests
        resolvers = ResolverPool(command, lambda: None)
        resolvers.resolve(msgspec.structs.replace(order(1), ref="refs/builds/t/1"), "d" * 64)
        connection, _ = silent.accept()
        with connection:
            started = children_of(os.getpid())
            for pid in others:
                started.pop(pid, None)
            assert any("fetch" in words for words in started.values())
            resolvers.abandon(order(1).request)
            until(lambda: all(map(gone, started)))


def children_of(pid: int) -> dict[int, list[str]]:
    """All descendants of a process, with their command lines."""
    found: dict[int, list[str]] = {}
    for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()):
                found[child] = Path(f"/proc/{child}/cmdline").read_text().split("\0")
                found |= children_of(child)
    return found


@pytest.mark.bound("RESOLVE_TIME")
def test_resolver_pool_child_reports_its_time_limit(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        trove = f"git://127.0.0.1:{silent.getsockname()[1]}/trove.git"
        config = tmp_path / "broker.toml"
        config.write_text(f'cache = "{tmp_path}/cache"\ntrove = "{trove}"\n')
        command = (sys.executable, "-m", "fabric.controller.resolver", "--config", str(config))
        resolvers = ResolverPool(command, lambda: None, seconds=2)
        resolvers.resolve(msgspec.structs.replace(order(1), ref="refs/builds/t/1"), "d" * 64)
        [answer] = answers_of(resolvers, 1)
    late = "resolving took more than 2 s; order it again"
    assert answer == Unresolved(order(1).request, late)


def test_resolver_pool_bounds_answers(resolvers: ResolverPool, tmp_path: Path) -> None:
    resolvers.resolve(order(1, f"flood {tmp_path}/pid"))
    [answer] = answers_of(resolvers, 1)
    assert answer == Unresolved(order(1).request, "its steps take more than 67,108,864 bytes")
    until(lambda: gone(int((tmp_path / "pid").read_text())))


@pytest.mark.bound("RESOLVE_MESSAGE")
def test_resolver_pool_reports_the_end_of_a_long_error(resolvers: ResolverPool) -> None:
    resolvers.resolve(order(1, f"fail {'x' * 4000} at the end"))
    [answer] = answers_of(resolvers, 1)
    assert isinstance(answer, Unresolved)
    assert answer.message.endswith("x at the end")
    assert len(answer.message) == bounds.RESOLVE_MESSAGE


def test_resolver_pool_requesters_take_turns(resolvers: ResolverPool) -> None:
    for n in range(1, 6):
        resolvers.resolve(order(n, requester="many"))
    resolvers.resolve(order(6, requester="few"))
    told = [int(answer.request, 16) for answer in answers_of(resolvers, 6)]
    assert told.index(6) < 3
    assert [n for n in told if n != 6] == [1, 2, 3, 4, 5]


def test_resolver_pool_keeps_nothing_of_an_abandoned_order(
    resolvers: ResolverPool, tmp_path: Path
) -> None:
    resolvers.resolve(order(1, f"hang {tmp_path}/1", requester="many"))
    resolvers.resolve(order(4, requester="many"))  # waits for it
    for n in range(10, 1000):
        resolvers.resolve(order(n, requester="many"))
        resolvers.abandon(order(n).request)
    resolvers.resolve(order(2, "away", requester="user2"))
    until(lambda: not [*resolvers.answers()] and resolvers.next_due() < float("inf"))
    resolvers.abandon(order(2).request)
    gc.collect()
    kept = [each.build_order.request for each in gc.get_objects() if isinstance(each, Child)]
    assert sorted(kept) == [order(1).request, order(4).request]
    assert resolvers.next_due() == float("inf")
    resolvers.resolve(order(3, requester="user2"))
    [resolved] = answers_of(resolvers, 1)
    assert resolved.request == order(3).request


def test_resolver_pool_pause_takes_no_place(resolvers: ResolverPool) -> None:
    for n in (1, 2, 3):
        resolvers.resolve(order(n, "away", requester=f"user{n}"))
    resolvers.resolve(order(4, requester="user4"))
    [answer] = answers_of(resolvers, 1)
    assert answer.request == order(4).request
    assert resolvers.next_due() > time.monotonic()
