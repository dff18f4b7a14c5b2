"""Many long logs at once, with readers that are slow, late, or without the stream."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from fabric_kit import Fabric
from wire_kit import Process, key_of, resident

from fabric import bounds
from fabric.wire import sockets

WORKERS = 20
LINES = 100_000
#: Memory that the broker may use: for each worker the pieces that it has not received, for each
#: initiator those that this has not received, a hundred answers to log reads, and some reserve.
#: A piece has at most `bounds.LOG_PIECE` bytes, so this is a quarter of a GiB for this test.
READERS = 3
BOUND = (WORKERS + READERS) * sockets.LOGS_HWM * bounds.LOG_PIECE + 64 * 2**20


def text_of(name: str) -> bytes:
    return b"".join(b"%s: line %d of many\n" % (name.encode(), n) for n in range(LINES))


@pytest.mark.slow
def test_load_every_log_is_complete_for_every_reader(fabric: Fabric) -> None:
    names = [f"chunk-{n}" for n in range(WORKERS)]
    texts = {name: text_of(name) for name in names}
    for n in range(WORKERS):
        fabric.worker(f"w{n}", texts.__getitem__)
    text = "\n".join([*(f"{name}:" for name in names), f"all: {' '.join(names)}"])
    texts["all"] = text_of("all")
    before = resident(fabric.broker.child.pid)
    usual, slow = fabric.initiator(text, "all"), fabric.initiator(text, "all")

    def slowly() -> None:
        while not slow.mirror.complete:
            slow.turn(at_once=1)
            time.sleep(0.01)

    thread = threading.Thread(target=slowly)
    thread.start()
    assert usual.follow(120.0) == "done"
    late = fabric.initiator(text, "all", request=usual.mirror.request)
    assert late.follow(120.0) == "done"
    thread.join(120.0)
    assert not thread.is_alive()
    for initiator in (usual, slow, late):
        assert initiator.whole == dict.fromkeys(texts, True)
        for name, expected in texts.items():
            assert initiator.logs[name] == expected, name
    assert resident(fabric.broker.child.pid) - before < BOUND


@pytest.mark.slow
def test_load_queues_of_one_message_lose_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With high-water marks of 1 for logs and few for messages, most are lost and repeated."""
    monkeypatch.setattr(sockets, "JOBS_HWM", 1)
    monkeypatch.setattr(sockets, "LOGS_HWM", 1)
    monkeypatch.setattr(
        Process, "PROGRAM",
        ("-c", "import sys; from fabric.wire import sockets; sockets.JOBS_HWM = 1;"
               "sockets.LOGS_HWM = 1; from fabric.broker import main; sys.exit(main())"),
    )  # fmt: skip
    with ExitStack() as stack:
        fabric = Fabric(directory, stack)
        text = b"a line that is lost, and asked for\n" * 20_000
        workers = [fabric.worker(f"w{n}", lambda _: text) for n in range(2)]
        initiator = fabric.initiator("\n".join(["top: a b", "a:", "b:"]))
        assert initiator.follow(60.0) == "done"
        assert initiator.whole == dict.fromkeys("ab", True) | {"top": True}
        assert all(initiator.logs[name] == text for name in "ab")
        assert sum(len(worker.built) for worker in workers) == 3
        assert initiator.mirror.steps[key_of("top")].state == "done"
