"""A farm is deployed, interrupted, upgraded during builds, grown and shrunk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deploy_kit import Cluster, changed, guide, tiny_definitions
from systems_kit import ROOT, Built
from vmhost_kit import VmHost
from world_kit import Failed, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]

FARM = "clusters/farm.morph"
SMALL = {"farm-controller", "farm-worker0", "farm-worker1"}


def farm_morph(workers: int) -> str:
    """The example cluster with a number of workers and an attached disk for the trove."""
    text = guide().replace("x86_64_distbuild_network", "farm")
    head, *deployments = re.split(r"(?m)^(?=    worker\d:)", text)
    head = head.replace(
        "$worker0_url, $worker1_url", ", ".join(f"$worker{n}_url" for n in range(workers))
    )
    head += "      ATTACH_DISKS: /dev/vg/trove_src\n"
    head += "      FSTAB_TROVE: LABEL=trove /srv/trove auto defaults 0 0\n"
    numbered = (deployments[0].replace("worker0", f"worker{n}") for n in range(workers))
    text = head + "".join(numbered)
    for theirs, ours in {"distbuild-": "farm-", "vm/": "vm/farm-", "vg/": "vg/farm-"}.items():
        text = text.replace(theirs, ours)
    return text


class Farm(Cluster):
    def __init__(self, vmhost: VmHost, built: Built, scratch: Path) -> None:
        super().__init__(vmhost, built, scratch / "farm", "farm-", FARM, "farm")
        self.images = scratch / "vm"
        self.vmhost = vmhost
        for disk in ("trove", "worker0", "worker1", "worker2"):
            vmhost.disk(f"/dev/vg/farm-{disk}_src", "4G", scratch / f"farm-{disk}.disk")
        self.describe(workers=2)

    def describe(self, workers: int) -> None:
        """Write its morph in the world."""
        self.world.run("tee", ROOT / FARM, input=farm_morph(workers))

    def interrupt(self, log: Path, moment: Callable[[], bool], *playbook: str) -> None:
        """Run a playbook until ``moment`` is true, and press Ctrl-C."""
        pid = log.with_suffix(".pid")
        script = f'echo $$ > {pid}; exec "$@"'
        with log.open("w") as to:
            play = self.world.start(
                *("sh", "-c", script, "sh", *self.command(*playbook)),
                cwd=ROOT,
                env=self.environment,
                stdout=to,
                stderr=to,
            )
            until(moment, 600, log.read_text)
            self.world.run("kill", "-INT", pid.read_text().strip())
            play.wait(300)
        assert "User interrupted execution" in log.read_text()

    def guests(self) -> set[str]:
        return {guest for guest in self.vmhost.guests() if guest.startswith("farm-")}

    def label(self, name: str) -> str:
        """Return the VERSION_LABEL of the image that a guest runs."""
        xml = self.world.run(*self.vmhost.virsh("dumpxml", f"farm-{name}"))
        found = re.search(r'<distbuild:guest .* label="(\w+)"', xml)
        assert found is not None, xml
        return found[1]

    def workers(self) -> dict[str, str]:
        """Return the state of each worker that the controller lists."""
        told = json.loads(self.initiator("workers", "--json", cwd=self.images))
        return {worker["name"]: worker.get("state", "idle") for worker in told}


@pytest.fixture(scope="module")
def farm(vmhost: VmHost, built: Built, scratch: Path) -> Iterator[Farm]:
    """The farm, deployed by a second run: Ctrl-C ended the first while it sent images."""
    farm = Farm(vmhost, built, scratch)
    log = scratch / "interrupted"
    farm.interrupt(log, lambda: any(farm.images.glob("farm-*_vm.img.??????")), "deploy-cluster.yml")
    # the partial image has been removed
    until(lambda: not any(farm.images.glob("farm-*_vm.img.??????")), 120, log.read_text)
    farm.play("deploy-cluster.yml", timeout=1200)
    yield farm
    farm.play("destroy-cluster.yml", timeout=600)
    assert not farm.guests()


def test_deployment_continues_after_an_interruption(farm: Farm) -> None:
    assert farm.guests() == SMALL
    assert farm.workers() == {"worker0": "idle", "worker1": "idle"}


def release(farm: Farm, *workers: str) -> None:
    """Release the steps that these workers build: each waits for the end of its sleep."""
    for name in workers:
        farm.on(name, "pkill -x sleep || true")


@contextmanager
def building(farm: Farm, folder: Path) -> Iterator[Path]:
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


def test_upgrade_of_a_worker_that_builds(farm: Farm, scratch: Path) -> None:
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
    assert not list(farm.images.glob("farm-*.old"))


def test_upgrade_of_the_controller_during_builds(farm: Farm, scratch: Path) -> None:
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


def test_upgrade_rolls_back_a_guest_that_fails(farm: Farm) -> None:
    """The new image turns the machine off as soon as it has started."""
    broken = "worker1.KERNEL_ARGS=systemd.unit=poweroff.target"
    with pytest.raises(Failed) as failed:
        farm.play(
            *("upgrade-cluster.yml", "--limit", "worker1", "-e", "VERSION_LABEL=third"),
            *("-e", broken),
        )
    said = re.sub(r"\s+", " ", str(failed.value))
    assert "worker1 did not come back upgraded (third), and runs as before (second)." in said
    assert "worker1 (farm-worker1 on vmhost) failed while waiting for it with its new image" in said
    assert "the guest has turned itself off" in said
    assert "The last lines of its console:" in said
    assert "reboot: Power down" in said
    assert farm.label("worker1") == "second"
    assert farm.workers() == {"worker0": "idle", "worker1": "idle"}
    assert not list(farm.images.glob("farm-*.img.*[!e]"))  # only the consoles remain


def test_farm_grows_and_shrinks(farm: Farm) -> None:
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
    assert farm.guests() == SMALL
    assert not list(farm.images.glob("farm-worker2*"))
    device = "/dev/vg/farm-worker2_src"
    assert farm.world.run("blkid", "-o", "value", "-s", "LABEL", device) == "src\n"
    farm.on("worker0", "ls /run/not-restarted")


def test_upgrade_continues_after_an_interruption(farm: Farm, scratch: Path) -> None:
    """The machine runs its new image, but was not verified."""
    upgrade = ["upgrade-cluster.yml", "--limit", "worker0", "-e", "VERSION_LABEL=second"]
    log = scratch / "interrupted-upgrade"
    promoted = "Promote the new image"
    farm.interrupt(log, lambda: "TASK" in log.read_text().partition(promoted)[2], *upgrade)
    assert [image.name for image in farm.images.glob("farm-*.old")] == ["farm-worker0_vm.img.old"]
    assert farm.workers()["worker0"] != "idle", "it was drained"
    farm.play(*upgrade)
    assert farm.label("worker0") == "second"
    assert farm.workers() == {"worker0": "idle", "worker1": "idle"}
    assert not list(farm.images.glob("farm-*.old"))
