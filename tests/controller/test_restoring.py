"""A broker restores the requests in its journal, whatever their contents."""

from __future__ import annotations

from pathlib import Path

from parts_kit import broker_at

from fabric.controller.journal import Journal
from fabric.scheduling import events
from fabric.scheduling.events import Opened
from fabric.scheduling.scheduler import Scheduler
from fabric.wire.messages import PROTOCOL, BuildOrder


class Faulty(Scheduler):
    """A core with a fault: a request with a certain title breaks it."""

    def handle(self, event: events.Event, now: float) -> list[events.Effect]:
        effects = super().handle(event, now)
        if isinstance(event, events.Reopened) and event.intent.title == "poison":
            raise KeyError("poison")
        return effects


def order(request: str, title: str) -> BuildOrder:
    return BuildOrder(PROTOCOL, request, title, "refs/builds/m/r", "c" * 40, "s.morph", detach=True)


def test_broker_sets_a_request_aside_that_breaks_the_core(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, said.append)
    for n, title in enumerate(("one", "poison", "two", "poison")):
        intent = order(f"r{n}", title)
        journal.opened(Opened(intent.request, title, intent))
    journal.close()
    broker = broker_at(tmp_path, said.append, core=Faulty)
    assert list(broker._scheduler.state.requests) == ["r0", "r2"]
    broker.close()
    assert [text.partition(", and")[0] for text in said] == [
        "request r1 cannot be taken up again",
        "request r3 cannot be taken up again",
    ]
    assert all(text.endswith(": KeyError: 'poison'") for text in said)
    assert len(list(tmp_path.glob("journal.sqlite.request-*"))) == 2
    again = Journal(path, said.append)
    assert [record.id for record in again.stored_requests()] == [b"r0", b"r2"]
    again.close()
