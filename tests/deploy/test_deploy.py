"""The one real road: the guide's cluster on a VM host, from its morph to builds, and gone again."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deploy_kit import Cluster, changed, tiny_definitions
from systems_kit import Built
from vmhost_kit import VmHost
from world_kit import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]

GUESTS = {"distbuild-controller", "distbuild-worker0", "distbuild-worker1"}


@contextmanager
def phase(name: str, phases: dict[str, float]) -> Iterator[None]:
    """Takes down how long something takes, in seconds."""
    began = time.monotonic()
    yield
    phases[name] = round(time.monotonic() - began, 1)
    print(f"{name}: {phases[name]} s", flush=True)


def test_a_cluster_from_its_morph_to_its_end(vmhost: VmHost, built: Built, scratch: Path) -> None:
    phases: dict[str, float] = {}
    world = vmhost.world
    disks = {name: scratch / f"{name}.disk" for name in ("worker0", "worker1")}
    for name, file in disks.items():
        vmhost.disk(f"/dev/vg/{name}_src", "4G", file)
    cluster = Cluster(vmhost, built, scratch / "guests")

    with phase("deploy", phases):
        cluster.play("deploy-cluster.yml", timeout=1200)
    assert set(vmhost.guests()) >= GUESTS

    with phase("deploy again", phases):
        said, counts = cluster.play("deploy-cluster.yml", timeout=900)
    assert not changed(counts), said

    definitions = tiny_definitions(scratch / "tiny", 12, "sleep 5")
    here = scratch / "here"
    here.mkdir()

    with (
        phase("build of 12 chunks, one worker killed", phases),
        (scratch / "build").open("w") as to,
    ):
        system = str(definitions / "systems/tiny.morph")
        build = cluster.start_initiator("build", system, cwd=here, stdout=to, stderr=to)
        log = here / "build-step-tiny-01-misc.log"
        until(lambda: any(here.glob("build-step-tiny-*.log")), 300, (scratch / "build").read_text)
        vmhost.kill("distbuild-worker0")
        try:
            build.wait(600)
        except subprocess.TimeoutExpired:
            build.kill()
            build.wait()
    said = (scratch / "build").read_text()
    assert build.returncode == 0, said
    assert len(list(here.glob("build-step-tiny-*-misc.log"))) == 12
    assert "built tiny-01" in log.read_text()

    with phase("deploy what was killed", phases):
        said, counts = cluster.play("deploy-cluster.yml", timeout=900)
    assert changed(counts) == {"worker0"}, said
    # it has kept what it was about when it died, and so much at most
    told = cluster.on("worker0", "journalctl --boot=-1 -u fabric-worker -u systemd-journald")
    assert "Started fabric-worker.service" in told
    assert re.search(r"System Journal \(/var/log/journal/.*max 128M", told), told

    with phase("destroy", phases):
        cluster.play("destroy-cluster.yml", timeout=600)
    assert not set(vmhost.guests()) & GUESTS
    assert not [path.name for path in (scratch / "vm").iterdir() if "_vm" in path.name]
    for name in disks:
        device = f"/dev/vg/{name}_src"
        assert world.run("blkid", "-o", "value", "-s", "LABEL", device) == "src\n"
        # what workers wrote is on them
        assert "work" in world.run("debugfs", "-R", "ls -p /", device)
