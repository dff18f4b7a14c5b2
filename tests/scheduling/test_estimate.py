"""How long a request goes on, as it is estimated."""

from typing import Any

import pytest
from msgspec import structs
from scheduling_kit import Stage

from fabric.scheduling import estimate
from fabric.scheduling.model import Durations, Request

CHAIN = "end: {wide}\n{each}\nlow: lower\nlower:"
WIDE = [f"w{number}" for number in range(20)]


def took(**seconds: float) -> Durations:
    return {("chunk", name, "x86_64"): length for name, length in seconds.items()}


def begun(text: str, *workers: str, **seconds: float) -> Stage:
    stage = Stage(durations=took(**seconds))
    stage.worker(*workers)
    stage.submit(text)
    stage.sync()
    return stage


def finished(stage: Stage, **seconds: float) -> float:
    """Build to the end, each step in its time; returns how long that takes."""
    start, ends = stage.now, dict[str, float]()
    while stage.verdict() == "building":
        for name in stage.all_running():
            ends.setdefault(name, stage.now + seconds[name])
        name = min(ends, key=ends.__getitem__)
        stage.wait(ends.pop(name) - stage.now, alive=list(stage.machines), polls=["r1"])
        stage.done(name)
    return stage.now - start


def test_estimate_adds_up_what_cannot_overlap() -> None:
    """A chain, then many steps at once, then the last: more than the longest path or the work."""
    text = CHAIN.format(wide=" ".join(WIDE), each="\n".join(f"{name}: low" for name in WIDE))
    seconds = {"lower": 5.0, "low": 5.0, "end": 10.0} | dict.fromkeys(WIDE, 2.0)
    stage = begun(text, "w1", "w2", **seconds)
    assert stage.update().left == 5 + 5 + 20 + 10
    assert finished(stage, **seconds) == 40


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_estimate_is_as_the_queue_goes(workers: int) -> None:
    text = "z: f g h i\ni: b d\nh: e\ng: c\nf: a b\na:\nb:\nc:\nd:\ne:"
    seconds = dict(
        zip("abcdefghiz", (5.0, 1.0, 9.0, 2.0, 4.0, 8.0, 1.0, 3.0, 7.0, 2.0), strict=True)
    )
    stage = begun(text, *(f"w{number}" for number in range(workers)), **seconds)
    left = stage.update().left
    assert finished(stage, **seconds) == pytest.approx(left)


def test_estimate_counts_what_has_run_already() -> None:
    stage = begun("c: a b\na:\nb:", "w1", "w2", a=100.0, b=10.0, c=10.0)
    stage.wait(20.0, alive=["w1", "w2"], polls=["r1"])
    assert stage.update().left == 90.0
    stage.done("b", seconds=10.0)
    assert stage.update().left == 90.0
    stage.wait(100.0, alive=["w1", "w2"], polls=["r1"])
    assert stage.update().left == 10.0, "a takes longer, and c comes after it"


def test_estimate_learns_that_the_machines_are_slower() -> None:
    names = WIDE[:10]
    seconds = dict.fromkeys(names, 10.0)
    text = "end: " + " ".join(names) + "\n" + "\n".join(f"{name}:" for name in names)
    stage = begun(text, "w1", **seconds, end=0.0)
    assert stage.update().left == 100.0
    for name in names[:5]:
        stage.wait(20.0, alive=["w1"], polls=["r1"])
        stage.done(name, seconds=20.0)
    assert stage.update().left == pytest.approx(50 * 105 / 55)


def test_estimate_is_unknown_with_a_step_that_was_never_built() -> None:
    assert begun("c: a b\na:\nb:", "w1", a=100.0, b=10.0).update().left == 0.0


def test_estimate_leaves_out_the_steps_of_others() -> None:
    stage = begun("a: z\nz:", "w1", a=1.0, z=5.0, b=100.0)
    stage.submit("b: z\nz:", request="r2")
    assert stage.update().left == 6.0


def test_update_names_the_steps_that_begin_next() -> None:
    stage = begun(
        "top: low quick\nlow: lower\nlower:\nquick:", "w1", top=1, low=9, lower=9, quick=1
    )
    assert stage.all_running() == ["lower"]
    assert stage.update().next == ("low", "quick", "top")
    stage.done("lower")
    assert stage.update().next == ("quick", "top")
    assert begun("c: a b\na:\nb:", "w1").update().next == ("b", "c"), "also in a first build"


def test_estimate_shares_the_workers() -> None:
    text = " ".join(WIDE)
    stage = Stage(durations=took(**dict.fromkeys(WIDE, 2.0), end=0.0, other=1000.0))
    stage.worker("w1", "w2")
    stage.submit(f"end: {text}\n" + "\n".join(f"{name}:" for name in WIDE), requester="alice")
    stage.sync()
    assert stage.update().left == 20.0
    stage.submit("other:", request="r2", requester="bob")
    assert stage.update().left == 20.0, "it has both yet"
    stage.done("w0", seconds=2.0)
    assert stage.update().left == 38.0


@pytest.mark.parametrize("needed", [300, 0])
def test_estimate_of_very_much_is_kept(monkeypatch: pytest.MonkeyPatch, needed: int) -> None:
    """Many dependencies, or many steps; more of them are estimated roughly."""
    names = [f"c{number}" for number in range(needed or 900)]
    lines = [
        f"{name}: {' '.join(names[: min(number, needed)])}" for number, name in enumerate(names)
    ]
    last = "" if needed else f"last: {' '.join(names)}\n"
    stage = begun(last + "\n".join(reversed(lines)), "w1", **dict.fromkeys([*names, "last"], 2.0))
    state = stage.scheduler.state
    state.requests["r1"].estimate_due = 0.0
    played, play = [], estimate.play

    def counted(*args: Any) -> Any:
        played.append(args)
        return play(*args)

    monkeypatch.setattr(estimate, "play", counted)
    for _ in range(50):
        left = estimate.future(state, state.requests["r1"], stage.now).left
        assert left == (600.0 if needed else 1802.0)
    assert len(played) == 1, "it is not estimated anew each time"
    monkeypatch.setattr(estimate, "MOST", 1000)
    stage.wait(10.0, alive=["w1"], polls=["r1"])
    assert stage.update().left == left - 2.0, "the running step takes no longer than expected"
    assert len(played) == 1


def test_list_of_requests_estimates_some_anew() -> None:
    stage = Stage(durations={("chunk", "a", "x86_64"): 10.0})
    stage.submit("a:")
    one = stage.scheduler.state.requests["r1"]

    def request(name: str, due: float, size: int) -> Request:
        needed: Any = dict.fromkeys(range(size))
        return structs.replace(one, id=name, estimate_due=due, needed=needed)

    never = [request(f"n{n}", 0.0, 6_000) for n in range(5)]
    again = [request(f"a{n}", 50.0 + n, 2_000) for n in range(5)]
    later = [request("l", 101.0, 10)]
    assert estimate.overdue([*again, *later], 100.0) == {"a0", "a1"}
    assert estimate.overdue([*never, *again, *later], 100.0) == {"n0", "n1", "n2"}
    huge = request("huge", 0.0, 100_000)
    assert estimate.overdue([huge, *again], 100.0) == {"huge"}, "one at least"
    assert [info.left for info in stage.query("requests").requests] == [10.0]
