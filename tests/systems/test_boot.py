"""The systems boot to a login prompt from the disk that `fabric-initiator image` makes."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
import yaml
from qemu import Machine
from systems_kit import BUILD_SYSTEM, MINIMAL, ROOT, Built

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

#: Commands that show what of the kernel bubblewrap and systemd need, and what they print.
CONFINED = {
    "unshare -Urmpf sh -c 'mount -t tmpfs none /mnt && cd /mnt && mkdir l u w o && "
    "mount -t overlay -o userxattr,lowerdir=l,upperdir=u,workdir=w none o && "
    "echo $$ > o/f && cat u/f'": "1",
    "unshare -Un ip -o link | wc -l": "1",
    "grep -c Seccomp_filters /proc/self/status": "1",
    "mount -t cgroup2 none /mnt && cat /mnt/cgroup.controllers": "cpuset cpu io memory pids",
}


def test_minimal_system_boots_and_works(minimal: Built) -> None:
    disk = minimal.logs / "minimal.img"
    options = ["--to", str(disk), "--hostname", "proof", "--force"]
    said = minimal.run("image", str(ROOT / MINIMAL), *options)
    [hint] = re.findall("(?m)^  try it  (qemu-system-x86_64 .*)$", said)
    guide = (ROOT / "docs/tutorial/first-build.md").read_text()
    assert hint.replace(str(disk), "build/system.img") in guide
    words = shlex.split(hint)
    with Machine(disk, network=words[words.index("-nic") + 1]) as machine:
        machine.wait_for(r"proof login: ", 600)
        machine.send("root")
        machine.wait_for(r"# ", 120)
        assert machine.run("hostname", 60) == (0, "proof")
        stratum = yaml.safe_load((ROOT / "strata/linux.morph").read_text())
        [version] = [chunk["ref"] for chunk in stratum["chunks"] if chunk["name"] == "linux"]
        assert machine.run("uname -r; ls -1 /boot", 60) == (0, f"{version}\nconfig\nvmlinuz")
        for command, printed in CONFINED.items():
            assert machine.run(command, 60) == (0, printed)
        addressed = (
            "for n in $(seq 60); do ip addr | grep -q 'inet 10.0.2.' && break; sleep 1; done"
        )
        code, said = machine.run(f"{addressed}; ip addr", 120)
        assert "inet 10.0.2." in said
        code, said = machine.run("jq --version && lua -v && curl --version", 120)
        assert code == 0, said
        assert "jq-1." in said
        assert "mbedTLS" in said
        assert machine.run("cat /baserock/*.meta | jq -r .kind | sort -u", 300) == (
            0,
            "chunk\nstratum\nsystem",
        )
        machine.send("poweroff")
        machine.wait_end(300)


def test_build_system_boots_with_the_fabric_in_it(minimal: Built) -> None:
    """``minimal`` brings the toolchain; the rest is unpacked, and takes less than a minute."""
    minimal.build(BUILD_SYSTEM)
    system = str(ROOT / BUILD_SYSTEM)
    tree = minimal.logs / "machine"
    minimal.run("checkout", system, "--to", str(tree), "--force")
    sandbox = ["bwrap", "--unshare-all", "--ro-bind", str(tree), "/", "--proc", "/proc"]
    for program in ("fabric-broker", "fabric-worker", "fabric-initiator"):
        command = [*sandbox, "--dev", "/dev", "--tmpfs", "/tmp", program, "--help"]
        assert (
            "usage: " + program
            in subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
    disk = minimal.logs / "machine.img"
    minimal.run("image", system, "--to", str(disk), "--hostname", "farm-1", "--force")
    with Machine(disk, memory="1G") as machine:
        # each is printed once, in either order
        for _ in range(2):
            machine.wait_for(r"Started .*ssh\.service|farm-1 login: ", 900)
