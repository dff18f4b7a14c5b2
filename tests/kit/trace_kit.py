"""Checks that a document follows the Trace Event Format as viewers read it."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

#: Fields of each phase that is used, and their types, but for "args", which all may have.
FIELDS: dict[str, dict[str, type]] = {
    "M": {"ph": str, "name": str, "pid": int},
    "X": {"ph": str, "name": str, "cat": str, "pid": int, "tid": int, "ts": int, "dur": int},
    "s": {"ph": str, "name": str, "cat": str, "id": int, "pid": int, "tid": int, "ts": int},
    "f": {
        "ph": str,
        "name": str,
        "cat": str,
        "id": int,
        "pid": int,
        "tid": int,
        "ts": int,
        "bp": str,
    },
}
#: The argument of each kind of metadata.
METADATA: dict[str, tuple[str, type]] = {
    "process_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_name": ("name", str),
}
OPTIONAL = {"args", "cname", "tid"}

Lane = tuple[int, int]


class Trace:
    """A checked trace: its names, slices and arrows."""

    def __init__(self, text: str) -> None:
        """AssertionError if a viewer would not show all of it."""
        document = json.loads(text, parse_constant=_constant)
        assert set(document) <= {"traceEvents", "displayTimeUnit", "otherData"}
        assert document["displayTimeUnit"] in ("ms", "ns")
        self.facts = document["otherData"]
        self.processes: dict[int, str] = {}
        self.threads: dict[Lane, str] = {}
        self.slices: dict[Lane, list[dict[str, Any]]] = defaultdict(list)
        flows: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
        for event in document["traceEvents"]:
            fields = FIELDS[event["ph"]]
            assert fields.keys() <= event.keys() <= fields.keys() | OPTIONAL, event
            for name, kind in fields.items():
                assert type(event[name]) is kind, (name, event)
            assert event.get("ts", 0) >= 0
            match event["ph"]:
                case "M":
                    name, kind = METADATA[event["name"]]
                    assert type(event["args"][name]) is kind
                    if event["name"] == "process_name":
                        assert event["pid"] not in self.processes
                        self.processes[event["pid"]] = event["args"]["name"]
                    elif event["name"] == "thread_name":
                        assert (event["pid"], event["tid"]) not in self.threads
                        self.threads[event["pid"], event["tid"]] = event["args"]["name"]
                case "X":
                    assert event["dur"] >= 0
                    self.slices[event["pid"], event["tid"]].append(event)
                case kind:
                    assert kind not in flows[event["id"]]
                    flows[event["id"]][kind] = event
        assert self.slices.keys() == self.threads.keys(), "each lane has a name, and slices"
        assert {process for process, _ in self.threads} == self.processes.keys()
        for slices in self.slices.values():
            _check_nesting(slices)
        #: (step, step that needs it)
        self.arrows = [(self._at(flow["s"]), self._at(flow["f"])) for flow in flows.values()]

    def _at(self, flow: dict[str, Any]) -> str:
        """The name of the attempt to which the end of an arrow belongs."""
        slices = [one for one in self.slices[flow["pid"], flow["tid"]] if one["cat"] != "phase"]
        at = flow["ts"]
        inside = [one for one in slices if one["ts"] <= at <= one["ts"] + one["dur"]]
        assert inside, "an arrow from or to nothing"
        # of two in a row, an arrow leaves the first, and comes to the second
        return str(inside[0 if flow["ph"] == "s" else -1]["name"])

    def steps(self) -> dict[str, list[dict[str, Any]]]:
        """Worker -> its attempts, in the order of their beginnings."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for (process, _), slices in self.slices.items():
            for one in slices:
                if one["cat"] not in ("phase", "build"):
                    found[self.processes[process]].append(one)
        return {name: sorted(each, key=lambda one: one["ts"]) for name, each in found.items()}

    def phases(self, attempt: dict[str, Any]) -> list[str]:
        """The phases of an attempt, in their order."""
        end = attempt["ts"] + attempt["dur"]
        lane = self.slices[attempt["pid"], attempt["tid"]]
        inside = (
            one for one in lane if attempt["ts"] <= one["ts"] and one["ts"] + one["dur"] <= end
        )
        return [one["name"] for one in inside if one["cat"] == "phase"]


def _constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def _check_nesting(slices: list[dict[str, Any]]) -> None:
    """Slices of a lane lie within each other or apart, in the order in which they are listed."""
    open_ends: list[int] = []
    before = 0
    for one in slices:
        begin, end = one["ts"], one["ts"] + one["dur"]
        assert begin >= before, "out of order"
        before = begin
        while open_ends and open_ends[-1] <= begin:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1], f"{one['name']} overlaps another"
        open_ends.append(end)
