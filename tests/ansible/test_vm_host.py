"""The connection to a VM host: names of hosts, users and files are quoted."""

from __future__ import annotations

import urllib.parse
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ansible_collections.distbuild.fabric.plugins.module_utils import kvm_probe
from ansible_collections.distbuild.fabric.plugins.module_utils.guest_xml import (
    Spec,
    domain_xml,
    read_mark,
)
from ansible_collections.distbuild.fabric.plugins.module_utils.vm_host import HostError, VmHost


@pytest.fixture
def ssh(tmp_path: Path) -> Path:
    """An ssh that succeeds, records its arguments, and prints nothing."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/arguments\n')
    ssh.chmod(0o755)
    return ssh


@pytest.mark.parametrize(
    "field", ["x?command={}&y=", "x&command={}", "x#{}", "x/system?command={}&y="]
)
def test_vm_host_user_is_quoted_in_the_uri(tmp_path: Path, ssh: Path, field: str) -> None:
    """A libvirt URI can name a program to run."""
    evil, canary = tmp_path / "evil", tmp_path / "canary"
    evil.write_text(f"#!/bin/sh\ntouch {canary}\n")
    evil.chmod(0o755)
    user = field.format(urllib.parse.quote(str(evil), safe=""))
    given = {"vm_host": {"name": "h", "user": user, "port": 0}, "ssh_executable": str(ssh)}
    with pytest.raises(HostError), VmHost({**given, "uri": ""}).libvirt():
        pass
    assert not canary.exists()
    assert user in (tmp_path / "arguments").read_text().splitlines()


def test_kvm_probe_path_is_quoted_in_xml() -> None:
    disk = "/a'/><emulator>/x</emulator><y z='&/.probe-ABCDEF"
    domain = ET.fromstring(kvm_probe.domain_xml(disk))
    assert [source.get("file") for source in domain.iter("source")] == [disk]
    assert domain.find(".//emulator") is None
    assert domain.findtext("name") == "distbuild-probe-ABCDEF"


@pytest.mark.parametrize("host", ["../../..", "-x", "a/b", "", "a b", "{{ x }}"])
def test_read_mark_refuses_a_host_that_is_no_file_name(host: str) -> None:
    """The names that a VM host reports become paths of files that are removed."""
    assert read_mark(domain_xml(Spec("net", host, "d", 1 << 30, 1, "/i", "/c"))) is None
