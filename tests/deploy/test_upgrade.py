"""The example cluster is upgraded during builds, grown, shrunk and removed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deploy_kit import changed, tiny_definitions
from guests_kit import MACHINES, Guests
from systems_kit import ROOT
from world_kit import Failed, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]


def release(farm: Guests, *workers: str) -> None:
    """Release the steps that these workers build: each waits for the end of its sleep."""
    for name in workers:
        farm.on(name, "pkill -x sleep || true")


@contextmanager
def building(farm: Guests, folder: Path) -> Iterator[Path]:
    """Run a build on all workers until the body ends, and check that it succeeds."""
    definitions = tiny_definitions(folder, 6, f"sleep 3000 || true {folder.name}")
    here, log = folder / "here", folder / "output"
    here.mkdir()
    system = str(definitions / "systems/tiny.morph")
    with log.open("w") as to:
        build = farm.start_initiator("build", system, cwd=here, stdout=to, stderr=to)
        try:
            until(lambda: set(farm.workers().values()) == {"busy"}, 300, log.read_text, step=1)
            yield log

            def over() -> bool:
                release(farm, "worker0", "worker1")
                return build.poll() is not None

            until(over, 600, log.read_text, step=1)
        finally:
            build.kill()
            build.wait()
    assert build.returncode == 0, log.read_text()
    for number in range(1, 7):
        name = f"tiny-{number:02}"
        assert f"built {name}\n" in (here / f"build-step-{name}-misc.log").read_text()


def test_upgrade_of_a_worker_that_builds(farm: Guests, scratch: Path) -> None:
    """It is replaced when it has no running attempts, and keeps its attached disk."""
    farm.on("worker1", "touch /srv/distbuild/kept /var/tmp/lost")
    upgrade = ["upgrade-cluster.yml", "--limit", "worker1", "-e", "VERSION_LABEL=second"]
    said, counts = farm.play(*upgrade, "--check", "--diff")
    assert (farm.label("worker1"), changed(counts)) == ("distbuild", {"worker1"}), said
    log = scratch / "upgrade"
    with building(farm, scratch / "first"), log.open("w") as to:
        play = farm.world.start(
            *farm.command(*upgrade), cwd=ROOT, env=farm.environment, stdout=to, stderr=to
        )
        until(lambda: farm.workers()["worker1"] == "draining", 300, log.read_text, step=1)
        release(farm, "worker1")
        assert play.wait(900) == 0, log.read_text()
    assert (farm.label("worker0"), farm.label("worker1")) == ("distbuild", "second")
    farm.on("worker1", "test -e /srv/distbuild/kept && ! test -e /var/tmp/lost")
    assert not farm.images(".old")


def test_upgrade_of_the_controller_during_builds(farm: Guests, scratch: Path) -> None:
    """Its state and the trove, on an attached disk, come along."""
    farm.on("controller", "fabric-keys make initiator bob --to . && fabric-keys admit bob.key")
    with building(farm, scratch / "second") as log:
        upgrade = ["upgrade-cluster.yml", "--limit", "controller", "-e", "VERSION_LABEL=second"]
        said, _ = farm.play(*upgrade, timeout=900)
        # the broker runs until the new image is on the VM host
        assert said.index("Send the new image") < said.index("Stop the broker")
        until(lambda: "the controller is back" in log.read_text(), 120, log.read_text)
    assert farm.label("controller") == "second"
    assert not (farm.state / "kept/controller.tar").exists()
    assert re.search(r"(?m)^bob +initiator ", farm.on("controller", "fabric-keys list"))
    builds = json.loads(farm.initiator("list", "--json", cwd=scratch))
    assert {build["state"] for build in builds} == {"done"}


def test_upgrade_rolls_back_a_guest_that_fails(farm: Guests) -> None:
    """The new image turns the machine off as soon as it has started."""
    broken = "worker1.KERNEL_ARGS=systemd.unit=poweroff.target"
    with pytest.raises(Failed) as failed:
        farm.play(
            *("upgrade-cluster.yml", "--limit", "worker1", "-e", "VERSION_LABEL=third"),
            *("-e", broken),
        )
    said = re.sub(r"\s+", " ", str(failed.value))
    assert "worker1 did not come back upgraded (third), and runs as before (second)." in said
    assert (
        "worker1 (distbuild-worker1 on vmhost) failed while waiting for it with its new image"
        in said
    )
    assert "the guest has turned itself off" in said
    assert "The last lines of its console:" in said
    assert "reboot: Power down" in said
    assert farm.label("worker1") == "second"
    assert farm.workers() == {"worker0": "idle", "worker1": "idle"}
    assert not farm.images(".*[!e]")  # only the consoles remain


def test_farm_grows_and_shrinks(farm: Guests) -> None:
    farm.on("worker0", "touch /run/not-restarted")
    farm.describe(workers=3)
    said, counts = farm.play("deploy-cluster.yml", "-e", "worker0.RAM_SIZE=1G", timeout=900)
    # the controller admits the new worker, and all trust its signatures
    assert changed(counts) == {"controller", "worker0", "worker1", "worker2"}, said
    assert "worker0 runs as it was defined before" in re.sub(r"\s+", " ", said)
    assert farm.workers() == {f"worker{number}": "idle" for number in range(3)}
    farm.describe(workers=2)
    said, _ = farm.play("deploy-cluster.yml", timeout=900)
    assert "worker_state : Drain the worker" in said
    assert farm.guests() == MACHINES
    assert not [name for name in farm.images("*") if name.startswith("worker2")]
    assert farm.disk_label("worker2") == "src"
    farm.on("worker0", "ls /run/not-restarted")


def test_upgrade_continues_after_an_interruption(farm: Guests, scratch: Path) -> None:
    """The machine runs its new image, but was not verified."""
    upgrade = ["upgrade-cluster.yml", "--limit", "worker0", "-e", "VERSION_LABEL=second"]
    log = scratch / "interrupted-upgrade"
    promoted = "Promote the new image"
    farm.interrupt(log, lambda: "TASK" in log.read_text().partition(promoted)[2], *upgrade)
    assert farm.images(".old") == ["worker0_vm.img.old"]
    assert farm.workers()["worker0"] != "idle", "it was drained"
    farm.play(*upgrade)
    assert farm.label("worker0") == "second"
    assert farm.workers() == {"worker0": "idle", "worker1": "idle"}
    assert not farm.images(".old")


def test_removal_keeps_the_disks(farm: Guests) -> None:
    farm.play("destroy-cluster.yml", timeout=600)
    assert not farm.guests()
    assert not farm.images("*")
    for name in ("worker0", "worker1"):
        assert farm.disk_label(name) == "src"
        # the files of the worker are on the disk
        assert "work" in farm.world.run("debugfs", "-R", "ls -p /", f"/dev/vg/{name}_src")
