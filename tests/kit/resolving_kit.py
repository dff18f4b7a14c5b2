"""A scripted resolver, and build orders for it."""

from __future__ import annotations

import sys
from pathlib import Path

from waiting import until

from fabric.controller.resolver_pool import ResolverPool
from fabric.scheduling.events import Resolved, Unresolved
from fabric.wire.messages import PROTOCOL, BuildOrder

#: A resolver whose behavior is given by the path of the system.
PROGRAM = """
import os, sys, time, msgspec
from fabric.wire.messages import PROTOCOL, BuildGraph, BuildOrder, StepSpec
from wire_kit import steps_of
order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=BuildOrder)
word, _, rest = order.system.partition(" ")
if word == "fail":
    sys.exit(rest)
if word == "hang":
    if os.fork() == 0:
        os.setpgid(0, 0)  # as git does
        open(rest + ".child", "w").write(str(os.getpid()))
        time.sleep(600)
    while not os.path.exists(rest + ".child"):
        time.sleep(0.01)
    open(rest + ".new", "w").write(str(os.getpid()))
    os.rename(rest + ".new", rest)
    time.sleep(600)
if word == "once" and not os.path.exists(rest):
    open(rest, "w").close()
    print("the trove is away", file=sys.stderr)
    sys.exit(4)
if word == "away":
    print("the trove is away", file=sys.stderr)
    sys.exit(4)
if word == "flood":
    open(rest, "w").write(str(os.getpid()))
    while True:
        sys.stdout.write("x" * 65536)
if word == "rubbish":
    sys.stdout.write("hello")
    sys.exit(0)
if word == "when":
    while not os.path.exists(rest):
        time.sleep(0.01)
steps = steps_of("app: zlib\\nzlib:")
graph = BuildGraph(PROTOCOL, order.request, order.title, steps, (steps[0].key,),
                detach=order.detach, requester=order.requester)
sys.stdout.buffer.write(msgspec.msgpack.encode(graph))
"""
COMMAND = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{PROGRAM}",
)


def order(
    number: int, system: str = "x", *, detach: bool = False, requester: str = ""
) -> BuildOrder:
    return BuildOrder(
        PROTOCOL,
        f"{number:032x}",
        "a test",
        "refs/x",
        "c" * 40,
        system,
        detach=detach,
        requester=requester,
    )


def answers_of(resolvers: ResolverPool, number: int) -> list[Resolved | Unresolved]:
    found: list[Resolved | Unresolved] = []

    def enough() -> bool:
        found.extend(resolvers.answers())
        return len(found) >= number

    until(enough)
    return found


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
