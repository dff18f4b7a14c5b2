"""Threads whose results a main thread awaits: signals interrupt it, however they come."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fabric.client.edits import _Taking
from fabric.host.pool import Pool


class Interrupted(Exception):
    pass


@pytest.fixture
def silent() -> Iterator[Callable[[int], None]]:
    """A call that has the process sent a signal which does not wake its main thread, and waits.

    So does one that comes just before the main thread waits.
    """
    ended = threading.Event()

    def interrupt(number: int, frame: object) -> None:  # noqa: ARG001
        raise Interrupted

    def call(number: int) -> None:
        if number == 0:
            time.sleep(0.3)  # so that the main thread waits already
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        if not ended.wait(20):
            late.append(number)

    late: list[int] = []
    before = signal.signal(signal.SIGUSR1, interrupt)
    yield call
    ended.set()
    signal.signal(signal.SIGUSR1, before)
    assert not late, "the main thread has waited for the call"


def test_pool_call_is_interrupted(silent: Callable[[int], None]) -> None:
    with pytest.raises(Interrupted):
        Pool(1, "test").call(lambda: silent(0))


def test_pool_map_is_interrupted(silent: Callable[[int], None]) -> None:
    begun: list[int] = []

    def call(number: int) -> None:
        begun.append(number)
        silent(number)

    with pytest.raises(Interrupted):
        list(Pool(2, "test").map(call, range(9)))
    assert set(begun) <= {0, 1}


def test_snapshot_is_interrupted(silent: Callable[[int], None]) -> None:
    def take() -> None:
        silent(0)

    with pytest.raises(Interrupted):
        _Taking(take).result()  # type: ignore[arg-type]


def test_pool_map_has_the_order_of_its_items() -> None:
    second = threading.Event()

    def call(number: int) -> int:
        if number == 1:
            second.set()
        assert second.wait(30)
        return number

    assert list(Pool(2, "test").map(call, [0, 1, 2])) == [0, 1, 2]


def test_pool_map_raises_what_a_call_raises() -> None:
    results = Pool(1, "test").map(lambda number: 6 // number, [2, 0, 1])
    assert next(results) == 3
    with pytest.raises(ZeroDivisionError):
        next(results)
