"""The module libvirt_guest, in process, with the test driver of libvirt."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest

from ansible_collections.distbuild.fabric.plugins.module_utils.guest_xml import (
    Disk,
    Nic,
    Spec,
    domain_xml,
    read_mark,
)
from ansible_collections.distbuild.fabric.plugins.module_utils.vm_host import HostError
from ansible_collections.distbuild.fabric.plugins.modules import libvirt_guest

GUEST: dict[str, Any] = {
    "cluster": "net",
    "host": "worker0",
    "domain": "distbuild-worker0",
    "memory": 64 << 20,
    "vcpus": 1,
    "image": "/vm/worker0.img",
    "console": "/vm/worker0.img.console",
    "disks": [{"path": "/dev/vg/src", "kind": "block", "format": "raw"}],
    "nics": [{"kind": "network", "source": "default", "model": "virtio", "mac": ""}],
    "kvm": False,
    "label": "one",
    "content": "abc",
    "autostart": None,
    "timeout": 5,
}


@pytest.fixture
def connection() -> Iterator[Any]:
    """A host with one guest, ``test``, of another owner."""
    # all connections to test:///default share one host
    connection = libvirt.open("test:///default")
    yield connection
    for domain in connection.listAllDomains():
        if domain.name() != "test":
            if domain.isActive():
                domain.destroy()
            domain.undefine()
    connection.close()


def ask(connection: Any, state: str, check: bool = False, **other: Any) -> dict[str, Any]:
    return libvirt_guest.apply(connection, {**GUEST, "state": state, **other}, check)


def names(connection: Any) -> list[str]:
    return sorted(domain.name() for domain in connection.listAllDomains())


def test_guest_is_defined_and_started_once(connection: Any) -> None:
    made = ask(connection, "present")
    assert (made["changed"], made["running"]) == (True, False)
    assert made["mark"]["host"] == "worker0"
    assert not ask(connection, "present")["changed"]
    started = ask(connection, "started")
    assert (started["changed"], started["running"]) == (True, True)
    assert started["diff"] == {"before": "stopped\n", "after": "running\n"}
    assert not ask(connection, "started")["changed"]


def test_guest_check_mode_changes_nothing(connection: Any) -> None:
    for state in ("present", "started"):
        told = ask(connection, state, check=True)
        assert told["changed"]
        assert '"vcpus": 1' in told["diff"]["after"]
    assert names(connection) == ["test"]
    ask(connection, "started")
    assert ask(connection, "stopped", check=True)["changed"]
    assert ask(connection, "absent", check=True)["changed"]
    assert connection.lookupByName("distbuild-worker0").isActive()
    assert not ask(connection, "started", check=True)["changed"]


def test_guest_change_takes_effect_at_the_next_start(connection: Any) -> None:
    assert not ask(connection, "started")["restart_needed"]
    assert ask(connection, "started", check=True, vcpus=2)["restart_needed"]
    assert not ask(connection, "started")["restart_needed"]
    changed = ask(connection, "started", vcpus=2)
    assert (changed["changed"], changed["restart_needed"]) == (True, True)
    assert '"vcpus": 1' in changed["diff"]["before"]
    assert '"vcpus": 2' in changed["diff"]["after"]
    again = ask(connection, "started", vcpus=2)
    assert (again["changed"], again["restart_needed"]) == (False, True)
    ask(connection, "stopped")
    assert not ask(connection, "started", vcpus=2)["restart_needed"]


def test_guest_autostart(connection: Any) -> None:
    assert ask(connection, "present", autostart=True)["changed"]
    assert not ask(connection, "present", autostart=True)["changed"]
    assert ask(connection, "present", autostart=False)["changed"]


def test_guest_stopped_and_absent(connection: Any) -> None:
    assert not ask(connection, "stopped")["changed"]
    assert not ask(connection, "absent")["changed"]
    ask(connection, "started")
    stopped = ask(connection, "stopped")
    assert (stopped["changed"], stopped["running"]) == (True, False)
    assert ask(connection, "absent")["changed"]
    assert names(connection) == ["test"]


@pytest.mark.parametrize("state", ["present", "started", "stopped", "absent"])
def test_guest_of_another_owner_is_not_changed(connection: Any, state: str) -> None:
    with pytest.raises(HostError, match="a guest test exists already, and no cluster"):
        ask(connection, state, domain="test")
    ask(connection, "present")
    with pytest.raises(HostError, match="is worker0 of the cluster net"):
        ask(connection, state, cluster="other")
    assert names(connection) == ["distbuild-worker0", "test"]


def test_spec_uuid_and_mac_address_never_change() -> None:
    spec = Spec("net", "w", "w", 1 << 30, 2, "/i", "/c", nics=(Nic(), Nic(mac="52:54:00:00:00:01")))
    again = Spec("net", "w", "renamed", 2 << 30, 4, "/j", "/c", nics=(Nic(source="lan"),))
    assert spec.uuid == again.uuid
    assert spec.mac(0) == again.mac(0)
    assert spec.mac(0).startswith("52:54:00:")
    assert spec.mac(1) == "52:54:00:00:00:01"
    other = Spec("net", "v", "w", 1 << 30, 2, "/i", "/c", nics=(Nic(),))
    assert (other.uuid, other.mac(0)) != (spec.uuid, spec.mac(0))


def test_domain_xml() -> None:
    disks = (Disk("/dev/vg/a", "block"), Disk("/b.qcow2", "file", "qcow2"))
    nics = (Nic(), Nic("bridge", "br0"), Nic("user", ""))
    spec = Spec("n & m", "w", "dw", 1 << 30, 2, "/vm/w.img", "/vm/w.log", disks, nics, kvm=False)
    domain = ET.fromstring(domain_xml(spec))
    assert domain.get("type") == "qemu"
    assert domain.findtext("memory") == str(1 << 20)
    found = [
        (disk.get("type"), dict(disk.find("source").attrib), disk.find("target").get("dev"))  # type: ignore[union-attr]
        for disk in domain.iter("disk")
    ]
    assert found == [
        ("file", {"file": "/vm/w.img"}, "vda"),
        ("block", {"dev": "/dev/vg/a"}, "vdb"),
        ("file", {"file": "/b.qcow2"}, "vdc"),
    ]
    assert [card.get("type") for card in domain.iter("interface")] == ["network", "bridge", "user"]
    mark = read_mark(domain_xml(spec))
    assert mark is not None
    assert (mark.cluster, mark.host, mark.spec) == ("n & m", "w", spec.digest)
    assert read_mark("<domain/>") is None


def test_vm_host_without_libvirt_is_an_error() -> None:
    from ansible_collections.distbuild.fabric.plugins.module_utils.vm_host import VmHost

    host = {"name": "h", "user": "", "port": 0}
    parameters = {"vm_host": host, "ssh_executable": "ssh", "uri": "qemu+unix:///x?socket=/none"}
    with (
        pytest.raises(HostError, match="libvirt on h does not answer"),
        VmHost(parameters).libvirt(),
    ):
        pass
