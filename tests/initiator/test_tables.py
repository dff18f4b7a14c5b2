"""Tables of requests and workers."""

from __future__ import annotations

import re

from fabric.commands.shared import tables
from fabric.wire.messages import RequestInfo, StepState, Update, WorkerInfo

ID = "01a20e7156840123456789abcdef0123"
RUNNING = StepState(
    "a" * 64, "running", name="zlib", worker="oak", phase="build", running_for=12, expected=20
)
STORED = StepState("d" * 64, "running", name="jq", worker="oak", phase="store", running_for=9)
INFO = RequestInfo(
    ID, "minimal for alice", "alice", "building", 130.0, priority=2, detached=True, done=3,
    cached=2, total=12, running=1, left=240,
)  # fmt: skip


def test_table_of_requests() -> None:
    waiting = RequestInfo("f" * 32, "other", "bob", "building", 5.0, total=1, message="it waits")
    lines = tables.requests([INFO, waiting])
    assert [re.split(r"  +", line) for line in lines] == [
        ["BUILD", "STATE", "PROGRESS", "SINCE", "BY", "TITLE"],
        [
            *("01a20e715684", "building", "3 of 10, 1 running, about 4 min 00 s left"),
            *("2 min ago", "alice", "minimal for alice (detached, priority +2)"),
        ],
        ["ffffffffffff", "building", "0 of 1", "5 s ago", "bob", "other"],
        ["", "it waits"],
    ]
    assert lines[0].index("TITLE") == lines[1].index("minimal") == lines[2].index("other")
    assert tables.requests([]) == ["no builds"]


def test_table_of_workers() -> None:
    oak = WorkerInfo(
        "oak", "x86_64", 2, 7200.0, 0.1, (RUNNING, STORED), "busy", free_disk=9_000_000_000
    )
    elm = WorkerInfo("elm", "x86_64", 1, 3.0, 0.1, state="refusing", message="1.2 GB of disk left")
    assert tables.workers([oak, elm]) == [
        "WORKER  STATE     ARCH    SLOTS  DISK    MEMORY  SINCE",
        "oak     busy      x86_64  1/2    9.0 GB  -       2 h ago",
        "  zlib                     build, 12 s of about 20 s on oak",
        "  jq                       store, 9.0 s on oak",
        "elm     refusing  x86_64  0/1    -       -       3 s ago",
        "  1.2 GB of disk left",
    ]


def test_table_of_one_request() -> None:
    failed = StepState("b" * 64, "failed", name="jq", message="install-commands failed")
    cached = StepState("c" * 64, "cached", name="lua")
    lines = tables.request(INFO, Update(ID, 3, "building", (failed, cached, RUNNING)))
    assert lines[0] == "minimal for alice (detached, priority +2)"
    assert lines[-2:] == [
        "    zlib                     build, 12 s of about 20 s on oak",
        "    jq                       failed: install-commands failed",
    ]
    assert not any("lua" in line for line in lines)
