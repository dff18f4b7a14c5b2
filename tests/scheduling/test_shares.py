"""Who gets how much of the workers."""

from collections import Counter

from scheduling_kit import Stage

from fabric.scheduling.shares import HALF_LIFE, Share


def many(letter: str, count: int = 60) -> str:
    names = [f"{letter}{n}" for n in range(count)]
    return f"{letter}: " + " ".join(names) + "\n" + "\n".join(f"{name}:" for name in names)


def shares(stage: Stage, rounds: int, seconds: float = 1.0) -> Counter[str]:
    """How often whose steps have run, a letter for each request."""
    counts: Counter[str] = Counter()
    machines = list(stage.machines)
    stage.sync()
    for _ in range(rounds):
        stage.wait(seconds, alive=machines, polls=list(stage.scheduler.state.requests))
        for name in stage.all_running():
            counts[name[0]] += 1
            stage.ends(name, "done", seconds=seconds)
        stage.sync()
    return counts


def test_one_worker_is_shared_in_turns() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(many("a"), request="ra", requester="alice")
    stage.submit(many("b"), request="rb", requester="bob")
    counts = shares(stage, 40)
    assert abs(counts["a"] - counts["b"]) <= 2


def test_requesters_are_equal_however_many_requests_they_have() -> None:
    stage = Stage()
    stage.worker("w1", slots=4)
    for letter in "abc":
        stage.submit(many(letter), request=f"r{letter}", requester="alice")
    stage.submit(many("x"), request="rx", requester="bob")
    counts = shares(stage, 20)
    assert abs(counts["x"] - 40) <= 4
    assert max(counts[each] for each in "abc") - min(counts[each] for each in "abc") <= 6


def test_priority_doubles_a_share() -> None:
    stage = Stage()
    stage.worker("w1", slots=3)
    stage.submit(many("a", 200), request="ra", priority=1)
    stage.submit(many("b", 200), request="rb")
    counts = shares(stage, 60)
    assert 1.7 < counts["a"] / counts["b"] < 2.3


def test_priority_counts_between_requesters_too() -> None:
    stage = Stage()
    stage.worker("w1", slots=5)
    stage.submit(many("a", 300), request="ra", requester="alice", priority=2)
    stage.submit(many("b", 300), request="rb", requester="bob")
    counts = shares(stage, 50)
    assert 3.3 < counts["a"] / counts["b"] < 4.7


def test_the_least_priority_is_not_starved_by_the_greatest() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(many("a"), request="ra", requester="alice", priority=10)
    stage.submit(many("z", 2), request="rz", requester="zoe", priority=-10)
    counts = shares(stage, 20)
    assert counts["z"] >= 1


def test_what_is_old_is_not_starved_by_a_stream_of_what_is_new() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(many("a"), request="ra", requester="alice")
    counts: Counter[str] = Counter()
    for number in range(60):
        stage.submit(f"n{number}:", request=f"rn{number}", requester="alice")
        counts += shares(stage, 1, seconds=5.0)
    assert counts["a"] >= 4


def test_long_steps_count_as_more_than_short_ones() -> None:
    """Alice's take ten times as long as Bob's: he gets more of them done."""
    stage = Stage()
    stage.worker("w1", slots=2)
    stage.submit(many("a"), request="ra", requester="alice")
    stage.submit(many("b", 300), request="rb", requester="bob")
    stage.sync()
    began: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for _ in range(200):
        stage.wait(1.0, alive=["w1"], polls=["ra", "rb"])
        for name in stage.all_running():
            began.setdefault(name, stage.now)
            if name[0] == "b" or stage.now - began[name] >= 10.0:
                counts[name[0]] += 1
                stage.ends(name, "done")
        stage.sync()
    assert counts["b"] > 7 * counts["a"]


def test_a_share_that_is_not_used_is_forgotten() -> None:
    share = Share(1)
    share.begin(0.0)
    share.end(600.0, 0.0)
    assert share.used_lately(0.0) == 600.0
    assert share.used_lately(HALF_LIFE) == 300.0
    assert share.load(30 * HALF_LIFE) == 0.0


def test_a_share_in_constant_use_is_worth_two_slots_running() -> None:
    share = Share(1)
    for second in range(1000):
        share.begin(float(second))
        share.end(1.0, second + 1.0)
    share.begin(1000.0)
    assert 1.9 < share.load(1000.0) < 2.1


def test_a_new_one_begins_where_the_others_are_on_average() -> None:
    busy, idle, new = Share(1), Share(2), Share(3)
    busy.begin(0.0)
    busy.end(100.0, 0.0)
    idle.begin(0.0)
    idle.end(10.0, 0.0)
    new.join([busy, idle], 0.0)
    assert new.used_lately(0.0) == 55.0
