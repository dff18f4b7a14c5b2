"""The example cluster on a VM host: deployed, used for a build, and removed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import secrets_kit
from deploy_kit import NAMES, Cluster, changed, tiny_definitions
from signatures_kit import forge, signers
from systems_kit import ROOT, Built
from vmhost_kit import VmHost
from world_kit import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]

GUESTS = {"distbuild-controller", "distbuild-worker0", "distbuild-worker1"}


@contextmanager
def phase(name: str, phases: dict[str, float]) -> Iterator[None]:
    """Record the duration of the body in seconds."""
    began = time.monotonic()
    yield
    phases[name] = round(time.monotonic() - began, 1)
    print(f"{name}: {phases[name]} s", flush=True)


def test_cluster_from_its_morph_to_its_end(vmhost: VmHost, built: Built, scratch: Path) -> None:
    phases: dict[str, float] = {}
    world = vmhost.world
    disks = {name: scratch / f"{name}.disk" for name in ("worker0", "worker1")}
    for name, file in disks.items():
        vmhost.disk(f"/dev/vg/{name}_src", "4G", file)
    began = time.time() - 1  # the clock of files may be a tick behind
    cluster = Cluster(vmhost, built, scratch / "guests")

    # the value of any setting may be a password
    password = "pass" + "word" * 10
    (scratch / "more").write_text(f"PORTAL_PASSWORD: {password}\n")
    (scratch / "more").chmod(0o600)
    watch = secrets_kit.start_watch(world.start)
    with phase("deploy", phases):
        options = ["-vvv", "--diff", "-e", f"@{scratch / 'more'}"]
        said, _ = cluster.play("deploy-cluster.yml", *options, timeout=1200)
    assert set(vmhost.guests()) >= GUESTS

    with phase("look for secrets", phases):
        key = world.run("cat", ROOT / "worker.key")
        secrets = [*secrets_kit.secrets_of(cluster.state, key), password]
        texts = [said, *secrets_kit.end_watch(watch)]
        assert not [text[:99] for text in texts for secret in secrets if secret in text]
        roots = [
            str(scratch),
            "/etc",
            "/home",
            "/root/.ansible",
            "/run",
            "/var",
            str(ROOT / "build"),
        ]
        roots += world.run(
            "find", "/tmp", "/dev/shm", "-maxdepth", "1", "-name", "ansible*"
        ).split()
        walk = [sys.executable, secrets_kit.__file__, "walk", *roots]
        given = json.dumps({"secrets": secrets, "since": began})
        found = dict(json.loads(world.run(*walk, input=given, timeout=600)))
        assert not {path: oct(mode) for path, mode in found.items() if mode & 0o077}
        assert {f"{scratch}/vm/{name}_vm.img" for name in NAMES} <= found.keys()

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

    with phase("signatures", phases):

        def run(command: str) -> str:
            return cluster.on("controller", command)

        trusted = cluster.state / "trusted"
        signed = signers(run, trusted)
        assert len(signed) >= 13
        assert {(one.name, by) for one, by in signed if by != one.builder} == set()
        key = max(signed, key=lambda one: one[0].built)[0].key
        forge(run, key, scratch / "stranger")
        # a worker was killed: the other one builds the step again
        again = cluster.initiator("build", system, cwd=here)
        assert "1 built" in again, again
        assert {by for one, by in signers(run, trusted) if one.key == key} == {"worker1"}

    with phase("deploy what was killed", phases):
        said, counts = cluster.play("deploy-cluster.yml", timeout=900)
    assert changed(counts) == {"worker0"}, said
    # its journal of the time before it died is there, and bounded
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
        # the files of the worker are on the disk
        assert "work" in world.run("debugfs", "-R", "ls -p /", device)
