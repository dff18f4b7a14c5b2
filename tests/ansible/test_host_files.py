"""Disks and images on a VM host.  A local shell replaces ssh and runs the real scripts."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from ansible_collections.distbuild.fabric.plugins.module_utils.disk_facts import assign, disk_facts
from ansible_collections.distbuild.fabric.plugins.module_utils.vm_host import HostError, VmHost
from ansible_collections.distbuild.fabric.plugins.modules import vm_disk, vm_image

MIB = 1 << 20


@pytest.fixture
def host(tmp_path: Path) -> VmHost:
    """A host whose ssh runs its last argument in a local shell."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    name = {"name": "h", "user": "me", "port": 22}
    return VmHost({"vm_host": name, "ssh_executable": str(ssh), "uri": ""})


def blank(path: Path, size: int = 8 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_vm_disk_formats_only_a_blank_disk(host: VmHost, tmp_path: Path) -> None:
    disk = blank(tmp_path / "a disk")
    facts = disk_facts(host, str(disk))
    assert (facts["blank"], facts["kind"], facts["format"]) == (True, "file", "raw")
    host.run(vm_disk._FORMAT, str(disk), "src", "ext4")
    facts = disk_facts(host, str(disk))
    assert (facts["blank"], facts["type"], facts["label"]) == (False, "ext4", "src")
    before = disk.read_bytes()
    with pytest.raises(HostError, match="it is not blank"):
        host.run(vm_disk._FORMAT, str(disk), "other", "ext4")
    assert disk.read_bytes() == before


@pytest.mark.parametrize("offset", [0, 4096, MIB - 1, -1, -MIB])
def test_disk_facts_unknown_data_is_not_blank(host: VmHost, tmp_path: Path, offset: int) -> None:
    disk = blank(tmp_path / "disk")
    with disk.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        file.write(b"x")
    assert not disk_facts(host, str(disk))["blank"]


def test_disk_facts_qcow2_is_not_blank(host: VmHost, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"], check=True)
    facts = disk_facts(host, str(disk))
    assert (facts["format"], facts["type"], facts["blank"]) == ("qcow2", "qcow2", False)


def test_disk_facts_missing_disk_is_a_problem(host: VmHost, tmp_path: Path) -> None:
    facts = [disk_facts(host, str(tmp_path / "none")), disk_facts(host, str(tmp_path))]
    plan, problems = assign(facts, ["src"])
    assert plan == []
    assert problems == [
        f"the disk {tmp_path}/none does not exist: make it, or name another in ATTACH_DISKS",
        f"{tmp_path} is neither a block device nor a file",
    ]


def test_assign_gives_missing_labels_to_blank_disks() -> None:
    def disk(path: str, **facts: Any) -> dict[str, Any]:
        plain = {"usable": True, "blank": False, "label": "", "type": ""}
        return {"path": path, **plain, **facts}

    disks = [disk("/a", blank=True), disk("/b", label="two", type="xfs"), disk("/c", blank=True)]
    plan, problems = assign(disks, ["one", "two"])
    assert (plan, problems) == ([{"path": "/a", "label": "one"}], [])
    assert assign(disks, []) == ([], [])
    plan, problems = assign([disk("/a"), disk("/b", label="x", type="ext4")], ["one"])
    assert plan == []
    (message,) = problems
    assert message.startswith(
        "no disk is labelled 'one', and none is blank to get that label"
        " (/a contains something unknown; /b contains ext4 labelled 'x')"
    )


def image(
    host: VmHost, path: Path, state: str, src: Path | None = None, check: bool = False
) -> Any:
    given = {"path": str(path), "state": state, "src": str(src) if src else None}
    return vm_image.apply(host, given, check)


def test_vm_image_present_sends_the_image_with_its_holes(host: VmHost, tmp_path: Path) -> None:
    source = blank(tmp_path / "source.img", 64 * MIB)
    with source.open("r+b") as file:
        file.seek(32 * MIB)
        file.write(b"data" * MIB)
    to = tmp_path / "host" / "guest image.img"
    to.parent.mkdir()
    assert image(host, to, "present", source, check=True)["changed"]
    assert list(to.parent.iterdir()) == []
    sent = image(host, to, "present", source)
    assert sent["diff"] == {"before": "", "after": f"{to}\n"}
    assert to.read_bytes() == source.read_bytes()
    assert to.stat().st_blocks * 512 < 8 * MIB
    assert sorted(file.name for file in to.parent.iterdir()) == [to.name, f"{to.name}.console"]
    assert not image(host, to, "present", source)["changed"]


def test_vm_image_is_readable_for_its_owner_only(host: VmHost, tmp_path: Path) -> None:
    """Whatever the mode of the local image is, and also during the transfer."""
    source = tmp_path / "source.img"
    source.write_bytes(os.urandom(MIB))
    source.chmod(0o644)
    to = tmp_path / "host" / "guest.img"
    to.parent.mkdir()
    with vm_image.archive(source) as packed:
        sent = packed.read()
    digest = hashlib.sha256(sent).hexdigest()
    receive = host.command(vm_image._RECEIVE, str(to), source.name, digest)
    with subprocess.Popen(receive, stdin=subprocess.PIPE, umask=0o022) as received:
        assert received.stdin is not None
        received.stdin.write(sent[: len(sent) // 2])
        received.stdin.flush()
        until(lambda: any(to.parent.glob(f"*/{source.name}")))
        [half] = to.parent.glob(f"*/{source.name}")
        assert [path.stat().st_mode & 0o077 for path in (half, half.parent)] == [0, 0]
        received.stdin.write(sent[len(sent) // 2 :])
    assert received.returncode == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in to.parent.iterdir()}
    assert modes == {"guest.img": 0o600, "guest.img.console": 0o600}


def test_vm_image_promoted_and_rolled_back(host: VmHost, tmp_path: Path) -> None:
    to, old = tmp_path / "host.img", tmp_path / "host.img.old"
    to.write_bytes(b"former")
    (tmp_path / "new").write_bytes(b"new")
    image(host, to, "staged", tmp_path / "new")
    assert to.read_bytes() == b"former"
    assert image(host, to, "promoted")["changed"]
    assert (to.read_bytes(), old.read_bytes()) == (b"new", b"former")
    assert not image(host, to, "promoted")["changed"]
    assert image(host, to, "rolled_back")["changed"]
    assert (to.read_bytes(), old.exists()) == (b"former", False)
    assert not image(host, to, "rolled_back")["changed"]


def test_vm_image_former_image_is_the_last_committed_one(host: VmHost, tmp_path: Path) -> None:
    to, old = tmp_path / "host.img", tmp_path / "host.img.old"
    to.write_bytes(b"former")
    for text in (b"never proved", b"new"):
        (tmp_path / "new").write_bytes(text)
        image(host, to, "staged", tmp_path / "new")
        image(host, to, "promoted")
    assert (to.read_bytes(), old.read_bytes()) == (b"new", b"former")
    committed = image(host, to, "committed", check=True)
    assert committed["changed"]
    assert str(old) in committed["diff"]["before"]
    assert str(old) not in committed["diff"]["after"]
    assert old.exists()
    image(host, to, "committed")
    assert (to.read_bytes(), old.exists()) == (b"new", False)


def test_vm_image_absent_removes_all_its_files_and_no_others(host: VmHost, tmp_path: Path) -> None:
    to = tmp_path / "host.img"
    for name in ("", ".new", ".old", ".console"):
        Path(f"{to}{name}").touch()
    other = tmp_path / "host.img.of-others"
    other.touch()
    assert image(host, to, "absent")["changed"]
    assert not image(host, to, "absent")["changed"]
    assert list(tmp_path.glob("host.img*")) == [other]


def test_vm_image_damage_in_transfer_is_an_error(host: VmHost, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"damaged")
    pack = subprocess.Popen(["tar", "-cf", "-", "-C", tmp_path, "x"], stdout=subprocess.PIPE)
    to = tmp_path / "to"
    with pytest.raises(HostError, match="the image was damaged in transfer"):
        host.run(vm_image._RECEIVE, str(to), "x", "0" * 64, stdin=pack.stdout)
    assert pack.stdout is not None
    pack.stdout.close()
    pack.wait()
    assert [file.name for file in tmp_path.glob("to*")] == []


def test_vm_image_missing_folder_is_an_error(host: VmHost, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new")
    with pytest.raises(HostError, match=r"none/there"):
        image(host, tmp_path / "none" / "there", "present", tmp_path / "new")
