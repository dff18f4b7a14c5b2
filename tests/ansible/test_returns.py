"""The RETURN of a module names the values that it returns, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libvirt
import pytest
import yaml

from ansible_collections.distbuild.fabric.plugins.modules import libvirt_guest, vm_host_info


@pytest.fixture
def parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters of vm_host_info, with a local shell as ssh and one guest, ``test``."""
    # which the test driver of libvirt lacks
    monkeypatch.setattr(libvirt.virConnect, "getMemoryStats", lambda *_: {"free": 1})
    ssh, disk = tmp_path / "ssh", tmp_path / "disk"
    ssh.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    with disk.open("wb") as file:
        file.truncate(1 << 20)
    return {
        "vm_host": {"name": "h", "user": "", "port": 0},
        "ssh_executable": str(ssh),
        "uri": "test:///default",
        "cluster": "farm",
        "domain": "test",
        "image": str(tmp_path / "image"),
        "disks": [str(disk)],
        "labels": ["data"],
    }


def compare(documented: dict[str, Any], returned: dict[str, Any]) -> None:
    assert returned.keys() == documented.keys()
    for name, entry in documented.items():
        one = returned[name][0] if entry.get("elements") == "dict" else returned[name]
        if "contains" in entry:
            compare(entry["contains"], one)


def test_vm_host_info_returns_the_documented_facts(parameters: dict[str, Any]) -> None:
    compare(yaml.safe_load(vm_host_info.RETURN), vm_host_info.gather(parameters))


def test_libvirt_guest_returns_the_documented_values() -> None:
    given = {"domain": "none", "cluster": "c", "host": "h", "state": "absent", "timeout": 1}
    connection = libvirt.open("test:///default")
    returned = libvirt_guest.apply(connection, given, check=True)
    connection.close()
    compare(
        yaml.safe_load(libvirt_guest.RETURN),
        {name: value for name, value in returned.items() if name not in ("changed", "diff")},
    )
