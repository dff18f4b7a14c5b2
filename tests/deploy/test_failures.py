"""A deployment checks the VM host before it makes anything, and names the remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from deploy_kit import Cluster, Recap, changed, recap
from systems_kit import BUILD_SYSTEM, ROOT, Built
from vmhost_kit import VmHost

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

MORPH = "clusters/one.morph"
_MORPH = f"""\
name: one
kind: cluster
systems:
- morph: {BUILD_SYSTEM}
  deploy:
    one:
      type: extensions/kvm
      location: kvm+ssh://$vmhost/one/path/to/failures/one.img
      HOSTNAME: one
      DISK_SIZE: 1G
      RAM_SIZE: 256M
      NIC_CONFIG: network=default
      ATTACH_DISKS: /path/to/failures/blank.disk
      FSTAB_DATA: LABEL=data /srv/data auto defaults 0 0
      INSTALL_FILES: distbuild/manifest
      WORKER_SSH_KEY: worker.key
"""
_SETUP = """
mkdir /path/to/failures
cd /path/to/failures
truncate -s 64M blank.disk other.disk
mkfs.ext4 -q -L other other.disk
chown -R user: .
virsh -q -c qemu:///system net-define /dev/stdin <<END
<network><name>idle</name></network>
END
"""
_FOREIGN = """
virsh -q -c qemu:///system define /dev/stdin <<END
<domain type='qemu'><name>one</name><memory>65536</memory><os><type>hvm</type></os></domain>
END
"""


@dataclass(frozen=True)
class Lack:
    """A fault of the VM host or the settings, its repair, and the expected message."""

    said: str
    spoil: str = "true"
    mend: str = "true"
    settings: dict[str, str] = field(default_factory=dict)


LACKS = {
    "no such host": Lack(
        "no.invalid cannot be reached: ssh to no.invalid failed: ssh: Could not resolve hostname",
        settings={"vmhost": "user@no.invalid"},
    ),
    "nothing listens": Lack(
        "port 2222: Connection refused. Try: ssh -p 2222 user@vmhost",
        settings={"vmhost": "user@vmhost:2222"},
    ),
    "wrong ssh key": Lack(
        "vmhost cannot be reached: ssh to vmhost failed: user@vmhost: Permission denied",
        "mkdir /root/away; mv /root/.ssh/id_* /root/away",
        "mv /root/away/* /root/.ssh",
    ),
    "unknown host key": Lack(
        "ssh to vmhost failed: Host key verification failed. Try: ssh user@vmhost",
        "mv /root/.ssh/known_hosts /root/hosts",
        "mv /root/hosts /root/.ssh/known_hosts",
    ),
    "libvirt down": Lack(
        "libvirt on vmhost does not answer: .* No such file or directory.* Is libvirtd running",
        "mv /run/libvirt/libvirt-sock /run/libvirt/away",
        "mv /run/libvirt/away /run/libvirt/libvirt-sock",
    ),
    "may not use libvirt": Lack(
        "libvirt on vmhost does not answer: .* Permission denied.* is user in the group libvirt",
        "gpasswd --delete user libvirt",
        "gpasswd --add user libvirt",
    ),
    "no key for the trove": Lack(
        f"{ROOT}/none.key does not exist. Make a key", settings={"WORKER_SSH_KEY": "none.key"}
    ),
    "no manifest": Lack(
        f"{ROOT}/none does not exist: write it, or name another one in INSTALL_FILES",
        settings={"INSTALL_FILES": "none"},
    ),
    "network not active": Lack(
        "The network idle of vmhost is not active: virsh net-start idle",
        settings={"NIC_CONFIG": "network=idle"},
    ),
    "no such network": Lack(
        "The network lan of vmhost does not exist: make it, .* there is default, idle",
        settings={"NIC_CONFIG": "network=lan"},
    ),
    "no such bridge": Lack(
        "The bridge br9 of vmhost does not exist: make it, .* there is virbr0",
        settings={"NIC_CONFIG": "bridge=br9"},
    ),
    "a foreign guest": Lack(
        "vmhost has a guest one that no cluster of this project owns: name another one in location",
        _FOREIGN,
        "virsh -q -c qemu:///system undefine one",
    ),
    "path taken": Lack(
        "/path/to/failures/one.img exists already on vmhost, and belongs to no guest",
        "echo kept > /path/to/failures/one.img",
        "cd /path/to/failures; test $(cat one.img) = kept; rm one.img",
    ),
    "may not write": Lack(
        "/path/to/failures on vmhost is not writable for user: correct that, or name another",
        "chown root: /path/to/failures",
        "chown user: /path/to/failures",
    ),
    "no disk": Lack(
        "vmhost: the disk /dev/none does not exist: make it, or name another in ATTACH_DISKS",
        settings={"ATTACH_DISKS": "/dev/none"},
    ),
    "a disk in use": Lack(
        "no disk is labelled 'data', and none is blank .* contains ext4 labelled 'other'",
        settings={"ATTACH_DISKS": "/path/to/failures/other.disk"},
    ),
    "a filesystem that cannot be made": Lack(
        "FSTAB_DATA mounts data as zfs, which deploying cannot make on a blank disk",
        settings={"FSTAB_DATA": "'LABEL=data /srv/data zfs'"},
    ),
    "not enough space": Lack(
        r"/path/to/failures on vmhost has .* left, and the new guests there may need"
        r" 90.00 TB \(DISK_SIZE\)",
        settings={"DISK_SIZE": "90T"},
    ),
    "not enough memory": Lack(
        r"vmhost has .* of memory left, and the guests to be started need 9.00 TB \(RAM_SIZE\)",
        settings={"RAM_SIZE": "9T"},
    ),
}


@pytest.fixture(scope="module")
def cluster(vmhost: VmHost, built: Built, scratch: Path) -> Cluster:
    vmhost.world.run("tee", ROOT / MORPH, input=_MORPH)
    vmhost.world.run("bash", "-euc", _SETUP)
    return Cluster(vmhost, built, scratch / "failures")


def play(cluster: Cluster, *options: str, **settings: str) -> tuple[int, str, Recap]:
    """Deploy, and return the exit code, the output with single spaces, and the recap."""
    given = {"vmhost": "user@vmhost", "cluster": MORPH, **settings}
    extra = [word for pair in given.items() for word in ("-e", "{}={}".format(*pair))]
    done = cluster.world.attempt(
        *("ansible-playbook", "deploy-cluster.yml", *extra, *options),
        cwd=ROOT,
        env=cluster.environment,
        timeout=300,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    return done.returncode, " ".join(said.split()), recap(done.stdout)


def state(cluster: Cluster) -> list[str]:
    """Return the guests and files that a deployment could have made."""
    guests = cluster.world.run(*VmHost.virsh("list", "--all", "--name")).split()
    there = cluster.world.run("sh", "-c", "sha256sum /path/to/failures/*").splitlines()
    here = [str(path) for path in cluster.state.parent.rglob("*")]
    return [*guests, *there, *here]


@pytest.mark.parametrize("lack", LACKS.values(), ids=LACKS)
def test_check_fails_with_a_remedy_and_makes_nothing(cluster: Cluster, lack: Lack) -> None:
    before = state(cluster)
    cluster.world.run("bash", "-euc", lack.spoil)
    try:
        code, said, counts = play(cluster, **lack.settings)
    finally:
        cluster.world.run("bash", "-euc", lack.mend)
    assert code != 0
    assert re.search(lack.said, said), said
    assert not changed(counts)
    assert state(cluster) == before


def test_check_mode_makes_nothing(cluster: Cluster) -> None:
    before = state(cluster)
    code, said, counts = play(cluster, "--check", "--diff")
    assert code == 0, said
    assert changed(counts) == {"one"}
    for line in ("+ext4 labelled data", "+/path/to/failures/one.img", '+ "memory": 268435456,'):
        assert line in said
    assert state(cluster) == before
