"""The worker's side of the protocol."""

from itertools import pairwise

import msgspec
import pytest

from fabric import bounds
from fabric.building.agent import (
    FORGET,
    PROGRESS_EVERY,
    REPORT_EVERY,
    Kill,
    Send,
    Start,
    WorkerAgent,
)
from fabric.wire.messages import STORING, Assignment, Attempt, Desired, Outcome, Report, cut

JOB = msgspec.Raw(msgspec.msgpack.encode("job"))


class Wish:
    """Desired states, numbered."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.sequence = 0

    def __call__(
        self,
        start: tuple[tuple[str, int], ...] = (),
        keep: tuple[tuple[str, int], ...] = (),
        acked: tuple[tuple[str, int], ...] = (),
    ) -> Desired:
        self.sequence += 1
        return Desired(
            self.sequence,
            self.epoch,
            start=tuple(Assignment(*id, JOB) for id in start),
            keep=tuple(Attempt(*id) for id in keep),
            acked=tuple(Attempt(*id) for id in acked),
        )


def agent_with(slots: int = 1) -> WorkerAgent:
    agent = WorkerAgent(name="w1", instance="first", arch="x86_64", slots=slots)
    agent.tick(0.0)
    return agent


def reported(agent: WorkerAgent) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
    report = agent.report()
    running = [(each.key, each.fence) for each in report.running]
    return running, [(each.key, each.result) for each in report.finished]


def test_agent_reports_at_once_and_then_each_second() -> None:
    agent = WorkerAgent(name="w1", instance="first", arch="x86_64", slots=2, features=("kvm",))
    [send] = agent.tick(10.0)
    assert isinstance(send, Send)
    report = send.report
    assert (report.name, report.slots, report.features) == ("w1", 2, ("kvm",))
    assert agent.due == 10.0 + REPORT_EVERY
    assert agent.tick(10.5) == []
    assert len(agent.tick(11.0)) == 1


def test_agent_starts_and_reports_a_wanted_attempt() -> None:
    agent = agent_with()
    assert agent.desired(Wish()(start=(("a", 1),))) == [Start("a", 1, JOB)]
    assert agent.running == (("a", 1),)
    assert reported(agent) == ([("a", 1)], [])
    assert agent.due == PROGRESS_EVERY, "that it began is reported soon"


def test_agent_ignores_repeated_and_old_messages() -> None:
    agent, wish = agent_with(2), Wish()
    first, second = wish(start=(("a", 1),)), wish(start=(("a", 1), ("b", 2)))
    agent.desired(second)
    assert agent.desired(second) == []
    assert agent.desired(first) == []
    assert agent.running == (("a", 1), ("b", 2))


def test_agent_kills_an_unwanted_attempt_once() -> None:
    agent, wish = agent_with(), Wish()
    agent.desired(wish(start=(("a", 1),)))
    assert agent.desired(wish()) == [Kill("a", 1)]
    assert agent.desired(wish()) == []
    assert reported(agent) == ([("a", 1)], []), "still there until it is dead"
    [send] = agent.ended(Outcome("a", 1, "cancelled"))
    assert isinstance(send, Send)
    assert reported(agent) == ([], [])
    assert agent.idle


def test_agent_reports_an_attempt_that_ended_before_its_kill() -> None:
    agent, wish = agent_with(), Wish()
    agent.desired(wish(start=(("a", 1),)))
    agent.desired(wish())
    agent.ended(Outcome("a", 1, "done"))
    assert reported(agent) == ([], [("a", "done")])


def test_outcome_is_reported_until_it_is_acknowledged() -> None:
    agent, wish = agent_with(), Wish()
    agent.desired(wish(start=(("a", 1),)))
    [send] = agent.ended(Outcome("a", 1, "failed"))
    assert isinstance(send, Send)
    assert [each.result for each in send.report.finished] == ["failed"]
    agent.desired(wish(keep=(("a", 1),)))
    assert agent.unacked == (("a", 1),)
    assert not agent.idle
    agent.desired(wish(acked=(("a", 1),)))
    assert reported(agent) == ([], [])
    assert agent.idle


def test_agent_starts_no_attempt_again_that_ended() -> None:
    agent, wish = agent_with(), Wish()
    agent.desired(wish(start=(("a", 1),)))
    agent.ended(Outcome("a", 1, "done"))
    assert agent.desired(wish(start=(("a", 1),))) == []


def test_agent_queues_attempts_past_its_slots() -> None:
    agent, wish = agent_with(), Wish()
    assert agent.desired(wish(start=(("a", 1), ("b", 2)))) == [Start("a", 1, JOB)]
    assert reported(agent) == ([("a", 1), ("b", 2)], [])
    start, send = agent.ended(Outcome("a", 1, "done"))
    assert start == Start("b", 2, JOB)
    assert isinstance(send, Send)


def test_slot_is_free_while_an_attempt_only_stores() -> None:
    agent, wish = agent_with(), Wish()
    agent.desired(wish(start=(("a", 1),)))
    [send] = agent.progress("a", 1, phase=STORING, log_size=5)
    assert isinstance(send, Send)
    assert send.report.running[0].phase == STORING
    assert agent.progress("a", 1, phase=STORING, log_size=5) == [], "told once"
    assert agent.desired(wish(start=(("b", 2),), keep=(("a", 1),))) == [Start("b", 2, JOB)]
    agent.progress("b", 2, phase=STORING, log_size=5)
    keep = (("a", 1), ("b", 2))
    assert agent.desired(wish(start=(("c", 3),), keep=keep)) == [], "they do not pile up"
    assert agent.ended(Outcome("a", 1, "done"))[0] == Start("c", 3, JOB)
    assert agent.report().slots == 1


def test_agent_forgets_a_queued_attempt_that_is_unwanted() -> None:
    agent, wish = agent_with(), Wish()
    agent.desired(wish(start=(("a", 1), ("b", 2))))
    [send] = agent.desired(wish(keep=(("a", 1),)))
    assert isinstance(send, Send)
    assert reported(agent) == ([("a", 1)], [])


def test_agent_starts_a_new_attempt_once_the_old_one_is_dead() -> None:
    agent, wish = agent_with(2), Wish()
    agent.desired(wish(start=(("a", 1),)))
    assert agent.desired(wish(start=(("a", 2),))) == [Kill("a", 1)]
    start, _ = agent.ended(Outcome("a", 1, "cancelled"))
    assert start == Start("a", 2, JOB)


def test_agent_obeys_a_later_run_of_the_broker_only() -> None:
    agent, old, new = agent_with(), Wish(1), Wish(2)
    for _ in range(5):
        last = old(start=(("a", 1),))
    agent.desired(last)
    assert agent.desired(new(keep=(("a", 1),))) == []
    assert agent.desired(old()) == []
    assert agent.running == (("a", 1),)
    report = agent.report()
    assert (report.epoch, report.answered) == (2, 1)


def test_agent_obeys_a_new_run_after_a_late_message_of_an_old_one() -> None:
    """Messages of several runs may arrive in any order."""
    agent, oldest, old, new = agent_with(), Wish(1), Wish(2), Wish(3)
    agent.desired(old())
    agent.desired(new())
    for late in (oldest, old, oldest):
        agent.desired(late(start=(("late", 1),)))
        agent.desired(new(start=(("a", 5),)))
        assert agent.running == (("a", 5),)


def test_agent_obeys_a_lower_epoch_once_the_former_broker_is_silent() -> None:
    agent, former, wish = agent_with(), Wish(9), Wish(1)
    agent.tick(0.0)
    agent.desired(former())
    agent.tick(FORGET - 1.0)
    assert agent.desired(wish(start=(("a", 1),))) == []
    agent.tick(FORGET)
    assert agent.desired(wish(start=(("a", 1),))) == [Start("a", 1, JOB)]
    assert agent.report().epoch == 1


def test_report_has_the_token_of_each_attempt() -> None:
    agent = agent_with()
    start = tuple(Assignment(key, 1, JOB, token) for key, token in (("a", 7), ("b", 8)))
    agent.desired(Desired(1, 1, start=start))
    assert [each.token for each in agent.report().running] == [7, 8]
    agent.ended(Outcome("a", 1, "failed"))
    agent.ended(Outcome("b", 1, "done"))
    assert [each.token for each in agent.report().finished] == [7, 8]


def test_report_has_the_token_of_a_refused_attempt() -> None:
    agent = agent_with()
    agent.refuse("disk full")
    agent.desired(Desired(1, 1, start=(Assignment("a", 1, JOB, 7),)))
    assert [each.token for each in agent.report().finished] == [7]


def test_agent_reports_a_new_phase_before_new_bytes() -> None:
    agent = agent_with()
    agent.desired(Wish()(start=(("a", 1),)))
    agent.tick(1.0)
    assert agent.progress("a", 1, phase="", log_size=10) == []
    assert agent.due == 1.0 + REPORT_EVERY
    agent.progress("a", 1, phase="build", log_size=20)
    assert agent.due == 1.0 + PROGRESS_EVERY
    [send] = agent.tick(1.2)
    assert isinstance(send, Send)
    [running] = send.report.running
    assert (running.phase, running.log_size) == ("build", 20)
    assert agent.progress("gone", 1, phase="build", log_size=1) == []


def test_drain_hands_back_queued_attempts() -> None:
    agent, wish = agent_with(), Wish()
    agent.desired(wish(start=(("a", 1), ("b", 2))))
    [send] = agent.drain()
    assert isinstance(send, Send)
    assert send.report.draining
    assert reported(agent) == ([("a", 1)], [("b", "cancelled")])
    agent.ended(Outcome("a", 1, "done"))
    agent.desired(wish(acked=(("a", 1), ("b", 2))))
    assert agent.idle


def test_drain_hands_back_attempts_that_still_come() -> None:
    agent, wish = agent_with(2), Wish()
    agent.drain()
    [send] = agent.desired(wish(start=(("a", 1),)))
    assert isinstance(send, Send)
    assert reported(agent) == ([], [("a", "cancelled")])


def test_agent_refuses_new_attempts_for_a_while() -> None:
    agent, wish = agent_with(), Wish()
    agent.desired(wish(start=(("a", 1), ("b", 2))))
    [send] = agent.refuse("1.2 GiB of disk left")
    assert isinstance(send, Send)
    assert send.report.refusing == "1.2 GiB of disk left"
    assert agent.refuse("1.2 GiB of disk left") == []
    assert reported(agent) == ([("a", 1)], [("b", "refused")])
    agent.desired(wish(start=(("c", 3),), keep=(("a", 1),), acked=(("b", 2),)))
    assert reported(agent) == ([("a", 1)], [("c", "refused")])
    [outcome] = agent.report().finished
    assert outcome.message == "1.2 GiB of disk left"
    agent.ended(Outcome("a", 1, "done"))
    agent.refuse("")
    assert agent.report().refusing == ""
    assert agent.desired(wish(start=(("c", 4),))) == [Start("c", 4, JOB)]


def test_agent_refuses_one_job() -> None:
    agent, wish = agent_with(), Wish()
    agent.desired(wish(start=(("a", 1),)))
    agent.ended(Outcome("a", 1, "refused", message="its sources need 40 GiB"))
    assert reported(agent) == ([], [("a", "refused")])


def test_report_has_free_disk_and_memory() -> None:
    agent = agent_with()
    agent.free_disk, agent.free_memory = 5, 7
    report = agent.report()
    assert (report.free_disk, report.free_memory) == (5, 7)


def test_agent_raises_for_the_end_of_an_attempt_that_never_ran() -> None:
    with pytest.raises(KeyError):
        agent_with().ended(Outcome("a", 1, "done"))


def test_reports_are_numbered() -> None:
    agent = agent_with()
    reports: list[Report] = [agent.report() for _ in range(3)]
    assert [b.sequence - a.sequence for a, b in pairwise(reports)] == [1, 1]


@pytest.mark.bound("REMOTE_FRAME")
def test_report_of_the_largest_size_fits_a_frame() -> None:
    wide = "\U0001f980"  # four bytes
    agent = WorkerAgent(
        name=wide * 63,
        instance="i" * 32,
        arch="x86_64",
        slots=bounds.SLOTS,
        features=(wide * 255,) * bounds.FEATURES,
    )
    agent.free_disk = agent.free_memory = 2**63 - 1
    wish = Wish(2**63 - 1)
    many = tuple((f"{n:064x}", 2**63 - 1 - n) for n in range(2 * bounds.REPORTED))
    started = [each for each in agent.desired(wish(start=many)) if isinstance(each, Start)]
    message, command = cut(wide * 10_000), cut(wide * 10_000_000)
    for each in started:
        agent.progress(each.key, each.fence, phase=wide * 64, log_size=2**63 - 1)
        outcome = Outcome(
            each.key, each.fence, "refused",
            message=message,
            phase=wide * 64,
            command=command,
            seconds=1e9,
            log_size=2**63 - 1,
            log_sha256="f" * 64,
            damaged=("e" * 64,) * bounds.DAMAGED,
        )  # fmt: skip
        agent.ended(outcome)
    agent.refuse(wide * 10_000)
    report = agent.report()
    assert len(report.finished) == bounds.OUTCOMES
    assert len(report.running) + len(report.finished) == bounds.REPORTED
    frame = msgspec.msgpack.encode(report)
    assert bounds.REMOTE_FRAME / 2 < len(frame) < bounds.REMOTE_FRAME
    assert msgspec.msgpack.decode(frame, type=Report) == report


def test_outcomes_past_the_bound_count_as_running() -> None:
    agent, wish = agent_with(slots=bounds.SLOTS), Wish()
    ids = tuple((f"{n:064x}", n + 1) for n in range(bounds.OUTCOMES + 2))
    agent.desired(wish(start=ids))
    for id in ids:
        agent.ended(Outcome(*id, "done"))
    running, finished = reported(agent)
    assert running == list(ids[-2:])
    assert [id for id, _ in finished] == [key for key, _ in ids[:-2]]
    agent.desired(wish(keep=ids[-2:], acked=ids[:5]))
    running, finished = reported(agent)
    assert running == []
    assert len(finished) == bounds.OUTCOMES + 2 - 5
