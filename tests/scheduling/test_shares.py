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


def test_share_of_one_worker_goes_in_turns() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(many("a"), request="ra", requester="alice")
    stage.submit(many("b"), request="rb", requester="bob")
    counts = shares(stage, 40)
    assert abs(counts["a"] - counts["b"]) <= 2


def test_share_of_a_requester_does_not_grow_with_requests() -> None:
    stage = Stage()
    stage.worker("w1", slots=4)
    for letter in "abc":
        stage.submit(many(letter), request=f"r{letter}", requester="alice")
    stage.submit(many("x"), request="rx", requester="bob")
    counts = shares(stage, 20)
    assert abs(counts["x"] - 40) <= 4
    assert max(counts[each] for each in "abc") - min(counts[each] for each in "abc") <= 6


def test_share_doubles_with_priority() -> None:
    stage = Stage()
    stage.worker("w1", slots=3)
    stage.submit(many("a", 200), request="ra", priority=1)
    stage.submit(many("b", 200), request="rb")
    counts = shares(stage, 60)
    assert 1.7 < counts["a"] / counts["b"] < 2.3


def test_share_doubles_with_priority_among_requesters() -> None:
    stage = Stage()
    stage.worker("w1", slots=5)
    stage.submit(many("a", 300), request="ra", requester="alice", priority=2)
    stage.submit(many("b", 300), request="rb", requester="bob")
    counts = shares(stage, 50)
    assert 3.3 < counts["a"] / counts["b"] < 4.7


def test_share_of_the_least_priority_is_not_starved() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(many("a"), request="ra", requester="alice", priority=10)
    stage.submit(many("z", 2), request="rz", requester="zoe", priority=-10)
    counts = shares(stage, 20)
    assert counts["z"] >= 1


def test_share_of_an_old_request_is_not_starved_by_new_ones() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit(many("a"), request="ra", requester="alice")
    counts: Counter[str] = Counter()
    for number in range(60):
        stage.submit(f"n{number}:", request=f"rn{number}", requester="alice")
        counts += shares(stage, 1, seconds=5.0)
    assert counts["a"] >= 4


def test_share_counts_seconds_not_steps() -> None:
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


def test_share_that_is_not_used_decays() -> None:
    share = Share(1)
    share.begin(0.0)
    share.end(600.0, 0.0)
    assert share.used_lately(0.0) == 600.0
    assert share.used_lately(HALF_LIFE) == 300.0
    assert share.load(30 * HALF_LIFE) == 0.0


def test_share_in_constant_use_has_a_load_of_two() -> None:
    share = Share(1)
    for second in range(1000):
        share.begin(float(second))
        share.end(1.0, second + 1.0)
    share.begin(1000.0)
    assert 1.9 < share.load(1000.0) < 2.1


def test_share_starts_at_the_mean_of_the_others() -> None:
    busy, idle, new = Share(1), Share(2), Share(3)
    busy.begin(0.0)
    busy.end(100.0, 0.0)
    idle.begin(0.0)
    idle.end(10.0, 0.0)
    new.join([busy, idle], 0.0)
    assert new.used_lately(0.0) == 55.0
