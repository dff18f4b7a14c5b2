"""Worlds, nodes and guests of these tests work and leave nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from node_kit import Node
from systems_kit import BUILD_SYSTEM, ROOT, Built
from vmhost_kit import VmHost
from world_kit import World, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

_GUEST = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='GiB'>1</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='unsafe'/>
      <source file='{image}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'><source network='default'/><model type='virtio'/></interface>
    <serial type='pty'><log file='{console}'/></serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""


def test_world_leaves_nothing(tmp_path: Path) -> None:
    before = Path("/proc/mounts").read_text()
    with World(tmp_path, tmp_path) as world:
        world.run("sh", "-c", "echo written > /only-here && ip link add bridge0 type bridge")
        world.run("touch", tmp_path / "given")
        world.daemon("sleep", "1000")
        cgroup = world.cgroup
        assert cgroup.is_dir()
    assert not Path("/only-here").exists()
    assert not Path("/sys/class/net/bridge0").exists()
    assert not cgroup.exists()
    assert Path("/proc/mounts").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


@pytest.fixture(scope="module")
def operator_let_in(world: World, vmhost: VmHost, scratch: Path) -> Path:  # noqa: ARG001
    """The files of a machine that admits the operator's key."""
    files = scratch / "files"
    (files / "root/.ssh").mkdir(parents=True)
    key = world.run("cat", "/root/.ssh/id_ed25519.pub")
    (files / "root/.ssh/authorized_keys").write_text(key)
    return files


def test_node_is_a_running_system(
    vmhost: VmHost, tree: Path, operator_let_in: Path, scratch: Path
) -> None:
    node = Node(vmhost, "first.farm.test", tree, 1, operator_let_in, scratch)
    assert node.run("systemctl is-system-running --wait") == "running\n"
    # it polls its name servers every second
    named = "getent hosts first.farm.test"
    until(lambda: node.attempt(named).returncode == 0, 90, lambda: node.run("cat /run/resolv.conf"))
    assert node.run(named).split()[0] == node.address
    sandbox = "bwrap --unshare-all --unshare-user --ro-bind / / --proc /proc echo inside"
    assert node.run(sandbox) == "inside\n"


def test_guest_of_the_build_system_starts(
    world: World, vmhost: VmHost, built: Built, operator_let_in: Path, scratch: Path
) -> None:
    """It boots from its disk, has a DNS name, and admits the keys in its files."""
    image = scratch / "vm/guest.img"
    built.run(
        *("image", str(ROOT / BUILD_SYSTEM), "--to", str(image), "--size", "5G"),
        *("--hostname", "guest", "--files", str(operator_let_in)),
    )
    guest = _GUEST.format(name="guest", image="/path/to/vm/guest.img", console=scratch / "console")
    domain = scratch / "guest.xml"
    domain.write_text(guest)
    began = time.monotonic()
    world.run(*vmhost.virsh("create", str(domain)))
    ssh = ["ssh", "-o", "StrictHostKeyChecking=accept-new", "-o", "ConnectTimeout=5"]
    until(
        lambda: world.attempt(*ssh, "root@guest.farm.test", "true").returncode == 0,
        400,
        lambda: (scratch / "console").read_text(errors="replace")[-5000:],
        step=1,
    )
    print(f"answers after {time.monotonic() - began:.0f} s")
    print(
        world.run(
            *ssh,
            "root@guest.farm.test",
            "systemd-analyze; systemd-analyze blame | head -20; systemctl --failed",
        )
    )
    world.run(*vmhost.virsh("destroy", "guest"))
