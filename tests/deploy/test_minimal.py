"""A small system as a guest, whose deployment continues after failures."""

from __future__ import annotations

from pathlib import Path

import pytest
from deploy_kit import Cluster, changed, recap
from systems_kit import BUILD_SYSTEM, MINIMAL, ROOT, Built
from vmhost_kit import VmHost

pytestmark = [pytest.mark.system, pytest.mark.timeout(3000)]

MORPH = "clusters/several.morph"
_MORPH = f"""\
name: several
kind: cluster
systems:
- morph: {MINIMAL}
  deploy-defaults: &small
    type: extensions/kvm
    VERSION_LABEL: minimal
    DISK_SIZE: 1G
    RAM_SIZE: 256M
  deploy:
    small:
      location: kvm+ssh://user@vmhost/small/path/to/vm/small.img
      HOSTNAME: small
  subsystems:
  - morph: {MINIMAL}
    deploy:
      inner:
        type: extensions/tar
        location: srv/inner.tar
- morph: {BUILD_SYSTEM}
  deploy:
    large:
      <<: *small
      location: kvm+ssh://user@vmhost/large/path/to/vm/large.img
"""


def test_guest_of_a_small_system_starts_after_failures(
    vmhost: VmHost, built: Built, scratch: Path
) -> None:
    built.build(MINIMAL)
    world = vmhost.world
    world.run("tee", ROOT / MORPH, input=_MORPH)
    cluster = Cluster(vmhost, built, scratch / "several")
    options = ("-e", f"cluster={MORPH}", "--limit", "small")
    image, console = scratch / "vm/small.img", scratch / "vm/small.img.console"

    def fails(*more: str) -> str:
        command = ("ansible-playbook", "deploy-cluster.yml", *options, *more)
        done = world.attempt(*command, cwd=ROOT, env=cluster.environment, timeout=400)
        assert done.returncode != 0
        assert recap(done.stdout)["small"]["failed"] == 1
        assert "Traceback" not in done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    # it cannot be started
    said = fails("-e", "small.NIC_CONFIG=network=default,model=none")
    assert "libvirt on vmhost: " in said
    assert "'none'" in said
    # it takes too long
    said = fails("-e", "kvm_guest_boot_timeout=1")
    assert "small (small on vmhost) failed while waiting for it to start and to answer" in said
    assert "no answer to ssh in 1 s" in said
    assert "The last lines of its console" in said
    assert "virsh -c qemu+ssh://user@vmhost/system console small" in said

    sent = image.stat().st_ino
    said, counts = cluster.play("deploy-cluster.yml", *options)
    assert not changed(counts), said  # the former runs have made everything
    assert image.stat().st_ino == sent
    assert "small login: " in console.read_text()
    assert "small" in vmhost.guests()
    assert "large" not in vmhost.guests()

    # the login works with the host key of the image, and the subsystem is in the image
    state = cluster.state.parent / "several/ssh"
    ssh = ["ssh", "-i", f"{state}/admin", "-o", f"UserKnownHostsFile={state}/small/known_hosts"]
    ssh += ["-o", "HostKeyAlias=small", "root@small.farm.test"]
    listed = world.run(*ssh, "hostname; tar -tf /srv/inner.tar | grep etc/hostname", timeout=120)
    assert listed == "small\netc/hostname\n"

    cluster.play("destroy-cluster.yml", *options)
    assert "small" not in vmhost.guests()
    assert not list((scratch / "vm").glob("small*"))
