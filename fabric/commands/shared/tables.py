"""Formats the controller's answers as lines of text.  Pure: messages in, lines out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fabric.client.controller import SHOWN
from fabric.client.render import ago, duration, size, table
from fabric.wire.messages import STORING, RequestInfo, StepState, Update, WorkerInfo

#: Steps of a request that are listed one by one.
MANY = 30
#: States of steps, in the order in which they are listed.
_ORDER = ("running", "failed", "ready", "waiting", "done", "cached", "cancelled")


def requests(infos: Sequence[RequestInfo]) -> list[str]:
    """A line for each request, and below it the reason if nothing of it runs."""
    if not infos:
        return ["no builds"]
    heads = [("BUILD", "STATE", "PROGRESS", "SINCE", "BY", "TITLE")]
    rows = [
        (
            one.request[:SHOWN],
            one.state,
            progress(one),
            ago(one.since),
            one.requester or "-",
            one.title + _marks(one),
        )
        for one in infos
    ]
    lines = table([*heads, *rows])
    shown = [lines[0]]
    for line, one in zip(lines[1:], infos, strict=True):
        shown.append(line)
        shown += [f"  {text}" for text in one.message.splitlines()]
    return shown


def progress(one: RequestInfo) -> str:
    """ "3 of 12, 2 running, about 4 min left"."""
    if one.state in ("resolving", "checking"):
        return "-"
    facts = [f"{one.done} of {max(one.total - one.cached, one.done)}"]
    if one.running:
        facts.append(f"{one.running} running")
    if one.failed:
        facts.append(f"{one.failed} failed")
    if one.left:
        facts.append(f"about {duration(one.left)} left")
    return ", ".join(facts)


def _marks(one: RequestInfo) -> str:
    marks = ["detached"] if one.detached else []
    if one.priority:
        marks.append(f"priority {one.priority:+}")
    return f" ({', '.join(marks)})" if marks else ""


def workers(infos: Sequence[WorkerInfo]) -> list[str]:
    """A line for each worker, and below it its steps, or the reason why it takes none."""
    if not infos:
        return ["no workers"]
    heads = [("WORKER", "STATE", "ARCH", "SLOTS", "DISK", "MEMORY", "SINCE")]
    rows = [
        (
            one.name,
            one.state,
            one.arch,
            f"{sum(each.phase != STORING for each in one.running)}/{one.slots}",
            size(one.free_disk) if one.free_disk else "-",
            size(one.free_memory) if one.free_memory else "-",
            ago(one.since),
        )
        for one in infos
    ]
    lines = table([*heads, *rows])
    shown = [lines[0]]
    for line, one in zip(lines[1:], infos, strict=True):
        shown.append(line)
        if one.message:
            shown.append(f"  {one.message}")
        shown += [f"  {step(each)}" for each in one.running]
    return shown


def step(one: StepState) -> str:
    """ "zlib  running on worker-1, configure for 12 s of about 20 s"."""
    name = f"{one.name or one.key[:SHOWN]:<24}"
    if one.state == "running":
        expected = f" of about {duration(one.expected)}" if one.expected >= 1 else ""
        phase = f"{one.phase}, " if one.phase else ""
        on = f" on {one.worker}" if one.worker else ""
        return f"{name} {phase}{duration(one.running_for)}{expected}{on}"
    if one.state == "done":
        return f"{name} built in {duration(one.seconds)} by {one.worker}"
    return f"{name} {one.state}" + (f": {one.message}" if one.message else "")


def request(info: RequestInfo, update: Update) -> list[str]:
    """One request in detail."""
    lines = [
        f"{info.title}{_marks(info)}",
        f"  build   {info.request}",
        f"  state   {info.state}, submitted {ago(info.since)}"
        + (f" by {info.requester}" if info.requester else ""),
        f"  steps   {progress(info)}" + (f", {info.cached} cached" if info.cached else ""),
    ]
    lines += [f"  why     {text}" for text in update.message.splitlines()]
    steps = sorted(
        (one for one in update.steps if one.state not in ("cached", "cancelled")),
        key=lambda one: _ORDER.index(one.state),
    )
    lines += [f"    {step(one)}" for one in steps[:MANY]]
    if len(steps) > MANY:
        lines.append(f"    and {len(steps) - MANY} more")
    return lines


def warned(warning: str, lines: list[str]) -> list[str]:
    """The lines, below the controller's warning if it has one."""
    return joined([warning], lines) if warning else lines


def joined(*blocks: Iterable[str]) -> list[str]:
    """Blocks of lines with an empty line between."""
    lines: list[str] = []
    for block in blocks:
        lines += ["", *block] if lines else block
    return lines
