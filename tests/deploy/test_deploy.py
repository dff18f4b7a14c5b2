"""The example cluster on a VM host: deployed after an interruption, and used; a machine dies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import secrets_kit
from deploy_kit import NAMES, changed, tiny_definitions
from guests_kit import MACHINES, Guests
from signatures_kit import forge, signers
from systems_kit import ROOT
from world_kit import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]


def test_deployment_continues_after_an_interruption(farm: Guests) -> None:
    assert farm.guests() == MACHINES
    assert farm.workers() == {"worker0": "idle", "worker1": "idle"}


def test_deployment_keeps_its_secrets(farm: Guests, scratch: Path) -> None:
    key = farm.world.run("cat", ROOT / "worker.key")
    secrets = [*secrets_kit.secrets_of(farm.state, key), farm.password]
    assert not [text[:99] for text in farm.shown for secret in secrets if secret in text]
    roots = [
        str(scratch),
        "/etc",
        "/home",
        "/root/.ansible",
        "/run",
        "/var",
        str(ROOT / "build"),
    ]
    temporary = ["find", "/tmp", "/dev/shm", "-maxdepth", "1", "-name", "ansible*"]
    roots += farm.world.run(*temporary).split()
    walk = [sys.executable, secrets_kit.__file__, "walk", *roots]
    given = json.dumps({"secrets": secrets, "since": farm.began})
    found = dict(json.loads(farm.world.run(*walk, input=given, timeout=600)))
    assert not {path: oct(mode) for path, mode in found.items() if mode & 0o077}
    assert {str(farm.image(name)) for name in NAMES} <= found.keys()


def test_machine_that_died_is_deployed_again(farm: Guests, scratch: Path) -> None:
    """A build goes on without it, and nothing changes at the other machines."""
    definitions = tiny_definitions(scratch / "tiny", 12, "sleep 5")
    system = str(definitions / "systems/tiny.morph")
    here = scratch / "here"
    here.mkdir()
    with (scratch / "build").open("w") as to:
        build = farm.start_initiator("build", system, cwd=here, stdout=to, stderr=to)
        until(lambda: any(here.glob("build-step-tiny-*.log")), 300, (scratch / "build").read_text)
        farm.vmhost.kill("distbuild-worker0")
        try:
            build.wait(600)
        except subprocess.TimeoutExpired:
            build.kill()
            build.wait()
    said = (scratch / "build").read_text()
    assert build.returncode == 0, said
    assert len(list(here.glob("build-step-tiny-*-misc.log"))) == 12
    assert "built tiny-01" in (here / "build-step-tiny-01-misc.log").read_text()

    def run(command: str) -> str:
        return farm.on("controller", command)

    trusted = farm.state / "trusted"
    signed = signers(run, trusted)
    assert len(signed) >= 13
    assert {(one.name, by) for one, by in signed if by != one.builder} == set()
    key = max(signed, key=lambda one: one[0].built)[0].key
    forge(run, key, scratch / "stranger")
    # the worker that lives builds the step again
    again = farm.initiator("build", system, cwd=here)
    assert "1 built" in again, again
    assert {by for one, by in signers(run, trusted) if one.key == key} == {"worker1"}

    said, counts = farm.play("deploy-cluster.yml", timeout=900)
    assert changed(counts) == {"worker0"}, said
    # its journal of the time before it died is there, and bounded
    told = farm.on("worker0", "journalctl --boot=-1 -u fabric-worker -u systemd-journald")
    assert "Started fabric-worker.service" in told
    assert re.search(r"System Journal \(/var/log/journal/.*max 128M", told), told
