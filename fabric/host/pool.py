"""Threads for calls that take long, such as requests.

A signal that comes just before Python's main thread waits without end is handled only after that
wait: Ctrl-C would do nothing until a silent server has answered.  Every wait here is short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from fabric.host.cancel import TICK

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """So many threads, which are called ``name``."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def call(self, function: Callable[[], R]) -> R:
        """The result of a function that another thread calls."""
        return _result(self._executor.submit(function))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The result for each item, in their order; calls that still wait end with the iterator."""
        return _results(deque(self._executor.submit(function, item) for item in items))


def _result(future: Future[R]) -> R:
    while not future.done():
        wait([future], TICK)
    return future.result()


def _results(futures: deque[Future[R]]) -> Iterator[R]:
    try:
        while futures:
            yield _result(futures.popleft())
    finally:
        for future in futures:
            future.cancel()
