"""Which task first, and on which worker."""

from machine_kit import key_of
from scheduling_kit import Stage, building

from fabric.scheduling.model import Durations
from fabric.scheduling.queues import FEW
from fabric.wire.messages import STORING

FORK = """
    top: long short
    long: middle
    middle: bottom
    bottom:
    short:
"""


def took(**seconds: float) -> Durations:
    return {("chunk", name, "x86_64"): value for name, value in seconds.items()}


def test_dispatch_takes_the_longest_path_first() -> None:
    stage = building(FORK, "w1")
    assert stage.running() == {"w1": ["bottom"]}
    stage.done("bottom")
    assert stage.running() == {"w1": ["middle"]}


def test_dispatch_knows_paths_by_durations() -> None:
    stage = Stage(durations=took(short=1000.0, bottom=1.0, middle=1.0, long=1.0))
    stage.worker("w1")
    stage.submit(FORK)
    stage.sync()
    assert stage.running() == {"w1": ["short"]}


def test_dispatch_breaks_ties_by_age() -> None:
    stage = building("all: c a b\nc:\na:\nb:", "w1")
    ran = []
    for _ in range(3):
        [name] = stage.running()["w1"]
        ran.append(name)
        stage.done(name)
    assert ran == ["c", "a", "b"]


def test_durations_are_learned() -> None:
    stage = Stage(durations=took(a=10.0))
    stage.worker("w1")
    stage.submit("b: a\na:")
    stage.sync()
    assert stage.steps()["a"].expected == 10.0
    stage.done("a", seconds=20.0)
    stage.done("b", seconds=3.0)
    assert [(each.name, each.seconds) for each in stage.learned] == [("a", 15.0), ("b", 3.0)]


def test_durations_of_copied_steps_are_not_learned() -> None:
    """They say nothing of how long building takes, nor of the pace of this request."""
    stage = Stage(durations=took(a=10.0, b=10.0))
    stage.worker("w1")
    stage.submit("c: b\nb: a\na:")
    stage.sync()
    stage.ends("a", "done", seconds=0.5, built=False)
    stage.sync()
    request = stage.scheduler.state.requests["r1"]
    assert (request.planned, request.took) == (0.0, 0.0)
    stage.done("b", seconds=20.0)
    assert (request.planned, request.took) == (10.0, 20.0)
    assert [(each.name, each.seconds) for each in stage.learned] == [("b", 15.0)]
    assert stage.scheduler.state.durations["chunk", "a", "x86_64"] == 10.0


def test_dispatch_shares_the_workers_among_requests() -> None:
    stage = Stage()
    many = "all1: " + " ".join(f"x{n}" for n in range(10)) + "\n"
    many += "\n".join(f"x{n}:" for n in range(10))
    stage.submit(many)
    stage.submit(many.replace("x", "y").replace("all1", "all2"), request="r2")
    stage.worker("w1", slots=4)
    stage.sync()
    assert sorted(name[0] for name in stage.running()["w1"]) == ["x", "x", "y", "y"]
    stage.done("x0", "x1")
    assert sorted(name[0] for name in stage.running()["w1"]) == ["x", "x", "y", "y"]


def test_dispatch_does_not_starve_a_late_request() -> None:
    stage = building("all: a b c\na:\nb:\nc:", "w1")
    stage.submit("late:", request="r2")
    stage.done("a")
    assert stage.running() == {"w1": ["b"]}  # both have none running: the older comes first
    stage.worker("w2")
    stage.sync()
    assert stage.running() == {"w1": ["b"], "w2": ["late"]}


def test_dispatch_takes_the_least_loaded_worker() -> None:
    stage = Stage()
    stage.worker("w1", slots=3)
    stage.worker("w2", slots=3)
    stage.submit("all: a b c\na:\nb:\nc:")
    stage.sync()
    assert sorted(map(len, stage.running().values())) == [1, 2]


def test_dispatch_needs_a_worker_of_the_architecture() -> None:
    stage = Stage()
    stage.worker("arm", arch="armv8l64")
    stage.submit("a:")
    stage.sync()
    assert stage.running() == {}
    stage.worker("pc")
    stage.sync()
    assert stage.running() == {"pc": ["a"]}


def test_dispatch_gives_each_architecture_to_its_own_workers() -> None:
    stage = Stage()
    for name, arch in (("pc", "x86_64"), ("arm0", "aarch64"), ("arm1", "aarch64")):
        stage.worker(name, arch=arch)
    stage.submit("p: q\nq: r\nr:", arch="x86_64")
    stage.submit("all: a b c\na:\nb:\nc:", arch="aarch64", request="r2")
    stage.sync()
    assert stage.running() == {"pc": ["r"], "arm0": ["a"], "arm1": ["b"]}
    stage.done("r")
    stage.done("a")
    assert stage.running() == {"pc": ["q"], "arm0": ["c"], "arm1": ["b"]}


def test_dispatch_accepts_further_architectures() -> None:
    stage = Stage()
    stage.worker("pc", features=("arch:x86_32",))
    stage.submit("a:", arch="x86_32")
    stage.sync()
    assert stage.running() == {"pc": ["a"]}


def test_dispatch_needs_a_worker_with_the_features() -> None:
    stage = Stage()
    stage.worker("plain")
    stage.worker("rich", features=("kvm", "host-tools:1"))
    stage.submit("all: a b\na:\nb:", needs={"a": ("kvm",), "b": ("kvm", "host-tools:1")})
    stage.sync()
    assert stage.running() == {"rich": ["a"]}
    stage.done("a")
    assert stage.running() == {"rich": ["b"]}
    stage.done("b")
    assert stage.running() == {"plain": ["all"]}


def test_dispatch_notices_a_worker_that_changes() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit("a:", needs={"a": ("kvm",)})
    stage.sync()
    assert stage.running() == {}
    stage.machines["w1"].features = ("kvm",)
    stage.sync()
    assert stage.running() == {"w1": ["a"]}


def test_draining_worker_gets_nothing_new_and_may_hand_back() -> None:
    stage = Stage()
    stage.worker("w1", slots=2)
    stage.submit("all: a b c\na:\nb:\nc:")
    stage.sync()
    stage.machines["w1"].draining = True
    stage.done("a")
    assert stage.running() == {"w1": ["b"]}
    stage.ends("b", "cancelled")
    assert stage.states()["b"] == "ready"
    stage.worker("w2", slots=3)
    stage.sync()
    assert sorted(stage.running()["w2"]) == ["b", "c"]
    assert stage.scheduler.state.tasks[key_of("b")].fault_count == 0


def test_slots_may_become_fewer() -> None:
    stage = Stage()
    stage.worker("w1", slots=3)
    stage.submit("all: a b c d\na:\nb:\nc:\nd:")
    stage.sync()
    stage.machines["w1"].slots = 1
    stage.done("a", "b")
    assert stage.running() == {"w1": ["c"]}
    stage.done("c")
    assert stage.running() == {"w1": ["d"]}


def test_slots_are_not_needed_for_storing() -> None:
    stage = building("all: a b c\na:\nb:\nc:", "w1")
    for name, running in (("a", ["a", "b"]), ("b", ["a", "b"])):  # they do not pile up
        for id in stage.machines["w1"].running:
            if id[0] == key_of(name):
                stage.machines["w1"].running[id] = STORING
        stage.sync()
        assert stage.running() == {"w1": running}
    [worker] = stage.query("workers").workers
    assert worker.slots == 1, "as many as ever"
    stage.done("a")
    assert stage.running() == {"w1": ["b", "c"]}


def test_update_has_the_seconds_left() -> None:
    stage = Stage(durations=took(a=100.0, b=10.0, c=10.0))
    stage.worker("w1", "w2")
    stage.submit("c: a b\na:\nb:")
    stage.sync()
    assert stage.update().left == 110.0
    stage.wait(20.0, alive=["w1", "w2"], polls=["r1"])
    assert stage.update().left == 90.0
    stage.done("a", seconds=100.0)
    stage.done("b", seconds=10.0)
    assert stage.update().left == 10.0


def test_dispatch_forgets_needs_that_nothing_has_any_more() -> None:
    """Each order names needs of its own; the first one waits all the while."""
    stage = Stage()
    stage.worker("w1")
    stage.submit("first:", request="first", needs={"first": ("feature",)})
    for number in range(3 * FEW):
        request = f"r{number}"
        stage.submit(f"{request}:", request=request, needs={request: (f"feature-{number}",)})
        stage.leave(request)
    assert len(stage.scheduler.state.queues.all()) <= FEW
    stage.worker("able", features=("feature",))
    assert stage.running() == {"able": ["first"]}
