"""Whatever waits has a reason, and it can be told."""

import pytest
from machine_kit import key_of
from scheduling_kit import Stage, building

from fabric.scheduling import explain
from fabric.scheduling.explain import BRIEF, why_request
from fabric.scheduling.model import Limits, Task, Worker
from fabric.scheduling.state import FarmState


def test_why_names_a_dependency_that_is_being_built() -> None:
    stage = building("app: zlib\nzlib:", "w1")
    stage.now += 12.0
    assert stage.why("app") == (
        "app is blocked: it needs zlib, building on w1 for 12 s of about 60"
    )
    assert stage.why("zlib") == "zlib is running: building on w1 for 12 s of about 60"


def test_why_names_running_dependencies_first() -> None:
    stage = building("app: a b\na: c\nb:\nc:", "w1")
    assert "it needs b, which waits for a worker; it needs a, which waits itself" in (
        stage.why("app")
    )


def test_why_counts_many_dependencies() -> None:
    stage = Stage()
    names = [f"d{n}" for n in range(20)]
    stage.submit("app: " + " ".join(names) + "\n" + "\n".join(f"{n}:" for n in names))
    assert stage.why("app").endswith("and 12 more")


def test_why_without_workers() -> None:
    stage = Stage()
    stage.submit("app:")
    assert stage.why("app") == "app is ready: there is no worker"


def test_why_without_an_able_worker() -> None:
    stage = Stage()
    stage.worker("arm", arch="armv8l64")
    stage.worker("plain")
    stage.submit("app:", needs={"app": ("kvm",)})
    assert stage.why("app") == (
        "app is ready: no worker is able to do it; arm: it builds armv8l64, not x86_64;"
        " plain: it lacks kvm"
    )


def test_why_with_busy_workers() -> None:
    stage = building("all: a b c d\na:\nb:\nc:\nd:", "w1", "w2")
    assert stage.why("c") == (
        "c is ready: it is number 1 in the queue of 2 workers that can do it; w1, w2: busy"
    )
    assert "number 2 in the queue" in stage.why("d")


def test_why_with_a_draining_worker() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.machines["w1"].draining = True
    stage.sync()
    stage.submit("a:")
    assert stage.why("a").endswith("w1: draining")


def test_why_with_a_worker_that_was_unable() -> None:
    stage = building("all: a b\na:\nb:", "sick", "well")
    stage.ends("a", "fault", message="disk full")
    stage.wait(2.0, alive=["sick", "well"], polls=["r1"])
    assert "sick: was unable to do it: disk full" in stage.why("a")
    assert "well: busy" in stage.why("a")


def test_why_while_the_store_is_queried() -> None:
    stage = Stage()
    stage.store_answers = False
    stage.submit("a:")
    assert "the artifact store is asked" in stage.why("a")


def test_why_of_present_and_unwanted_artifacts() -> None:
    stage = Stage(stored=["a"])
    stage.worker("w1")
    stage.submit("top: a b\na:\nb:")
    stage.sync()
    stage.done("b")
    assert stage.why("a") == "a is cached: the artifact store has it"
    assert stage.why("b") == "b is done: the artifact store has it, built by w1"
    assert "unknown: no request needs it now" in stage.why("other")


def test_why_nothing_of_a_request_runs() -> None:
    stage = Stage()
    stage.submit("app: lib\nlib: zlib\nzlib:")
    request = stage.scheduler.state.requests["r1"]
    assert (
        why_request(stage.scheduler.state, request, stage.now)
        == "zlib is ready: there is no worker"
    )
    assert stage.update().message == "zlib is ready: there is no worker"
    stage.worker("w1")
    stage.sync()
    assert stage.update().message == ""


def test_why_nothing_runs_when_the_longest_path_is_done() -> None:
    """Found by the simulator: a request whose first steps were there had no reason to wait."""
    stage = Stage()
    stage.worker("w1")
    stage.submit("all: a b\na:\nb:", "a", "b", "all")
    stage.sync()
    stage.machines["w1"].draining = True
    stage.done("a")
    request = stage.scheduler.state.requests["r1"]
    assert why_request(stage.scheduler.state, request, stage.now).startswith("b is ready")


def test_history() -> None:
    stage = building("a:", "w1", "w2")
    stage.now += 1.5
    stage.ends("a", "fault", message="disk full")
    assert stage.history("a").splitlines() == [
        f"a ({key_of('a')[:12]})",
        "     +0.000 s  blocked    the store does not have it",
        "     +0.000 s  ready      nothing blocks it any more",
        "     +0.000 s  running    assigned to a worker (w1)",
        "     +1.500 s  blocked    the machine could not do it (w1: disk full)",
        "     +1.500 s  ready      nothing blocks it any more",
        "     +1.500 s  running    assigned to a worker (w2)",
    ]


def test_history_keeps_its_beginning() -> None:
    stage = Stage()
    stage.worker("w1")
    stage.submit("a:")
    for _ in range(40):
        stage.sync()
        stage.wait(11.0, polls=["r1"])
    lines = stage.history("a").splitlines()
    assert len(lines) == 61
    assert "the store does not have it" in lines[1]


# -- steps that no worker is able to do -----------------------------------------------------------


def no_worker_for(arch: str, unserved: float = 1800.0) -> Stage:
    stage = Stage(limits=Limits(unserved=unserved))
    stage.worker("w1", features=("arch:x86_32",))
    stage.submit("app: lib\nlib:", arch=arch)
    return stage


def test_why_knows_further_architectures_of_a_worker() -> None:
    stage = no_worker_for("x86_32")
    stage.sync()
    assert stage.running() == {"w1": ["lib"]}


def test_warning_of_a_missing_able_worker() -> None:
    stage = no_worker_for("armv7lhf")
    assert stage.update().warning == (
        "lib waits: no worker is able to do it: w1: it builds x86_64, x86_32, not armv7lhf;"
        " it fails unless one comes within 1800 s"
    )
    [info] = stage.query("requests").requests
    assert info.message == (
        "lib is ready: no worker is able to do it; w1: it builds x86_64, x86_32, not armv7lhf"
    )
    stage.worker("arm", arch="armv7lhf")
    stage.sync()
    assert stage.update().warning == ""
    assert stage.running() == {"arm": ["lib"]}


def test_warning_of_no_worker_at_all() -> None:
    stage = Stage()
    stage.submit("app:", detach=True)
    assert stage.update().warning == "app waits: there is no worker"
    stage.wait(2 * stage.limits.unserved)
    assert stage.verdict() == "building"
    stage.worker("w1")
    stage.sync()
    assert stage.running() == {"w1": ["app"]}


def test_no_warning_while_workers_start() -> None:
    stage = Stage(limits=Limits(startup=20.0))
    stage.submit("app:", detach=True)
    stage.wait(19.0)
    assert stage.update().warning == ""
    assert stage.update().message == "app is ready: workers are starting"
    stage.wait(1.0)
    assert stage.update().warning == "app waits: there is no worker"
    assert stage.update().message == "app is ready: there is no worker"


def test_unserved_task_fails_after_its_limit() -> None:
    stage = no_worker_for("armv7lhf", unserved=20.0)
    stage.wait(19.5, alive=["w1"], polls=["r1"])
    assert stage.verdict() == "building"
    stage.wait(1.0, alive=["w1"], polls=["r1"])
    assert stage.verdict() == "failed"
    step = stage.steps()["lib"]
    assert step.fault
    assert step.message == (
        "no worker was able to do it for 20 s: w1: it builds x86_64, x86_32, not armv7lhf"
    )


def test_unserved_time_begins_when_the_last_able_worker_is_lost() -> None:
    stage = no_worker_for("armv7lhf", unserved=20.0)
    stage.wait(15.0, alive=["w1"], polls=["r1"])
    stage.worker("arm", arch="armv7lhf")
    stage.command("drain", "arm")  # it is there, so this is not for ever
    stage.wait(30.0, alive=["w1", "arm"], polls=["r1"])
    assert stage.verdict() == "building"
    stage.wait(stage.limits.lease + 19.0, alive=["w1"], polls=["r1"])
    assert stage.verdict() == "building"
    stage.wait(2.0, alive=["w1"], polls=["r1"])
    assert stage.verdict() == "failed"


def test_unserved_task_waits_without_a_limit() -> None:
    stage = no_worker_for("armv7lhf", unserved=0.0)
    assert stage.update().warning.endswith("it builds x86_64, x86_32, not armv7lhf")
    stage.wait(100.0, alive=["w1"], polls=["r1"])
    assert stage.verdict() == "building"


def test_why_of_a_request_looks_at_few_steps_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be as many requests as steps in the queue, and each is explained in a list."""
    stage = Stage()
    names = [f"w{n:03}" for n in range(BRIEF + 20)]
    stage.worker(*names)
    many = [f"s{n:03}" for n in range(2 * BRIEF + 50)]
    stage.submit("\n".join([f"top: {' '.join(many)}", *(f"{name}:" for name in many)]))
    stage.sync()
    stage.submit("other:", request="later", requester="bob")
    looked: list[str] = []
    real = explain._obstacle

    def counting(state: FarmState, worker: Worker, task: Task, now: float) -> str:
        looked.append(worker.name)
        return real(state, worker, task, now)

    monkeypatch.setattr(explain, "_obstacle", counting)
    shown = ", ".join(names[:8])
    assert stage.query("requests").requests[1].message == (
        "other is ready: it is one of more than 100 steps in the queue of 120 workers that can do"
        f" it; {shown} and 92 more: busy; and 20 more workers"
    )
    assert looked == names[:BRIEF]
    assert stage.why("other") == (
        "other is ready: it is number 1 in the queue of 120 workers that can do it;"
        f" {shown} and 112 more: busy"
    )
