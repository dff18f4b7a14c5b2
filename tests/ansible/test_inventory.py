"""The inventory plugin, through Ansible's own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
VALUES = {
    "trove_id": "trove",
    "trove_url": "trove.example",
    "controller_url": "controller.example",
    "worker0_url": "w0.example",
    "worker1_url": "w1.example",
    "vmhost": "root@vm.example",
}


def inventory(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    extra = [word for key, value in variables.items() for word in ("-e", f"{key}={value}")]
    return subprocess.run(
        [BIN / "ansible-inventory", *words, *extra],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )


def plain(value: object) -> object:
    """Text that may not be taken for a template is marked, here or there."""
    return value["__ansible_unsafe"] if isinstance(value, dict) else value


@pytest.mark.parametrize("cluster", sorted(path.name for path in (ROOT / "clusters").iterdir()))
def test_every_cluster_has_a_graph(cluster: str) -> None:
    shown = inventory("--graph", cluster=f"clusters/{cluster}", **VALUES)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert "@vm_hosts" in shown.stdout
    assert shown.stdout == inventory("--graph", "-i", f"clusters/{cluster}", **VALUES).stdout


def test_the_guide() -> None:
    shown = inventory("--list", **VALUES, **{"worker1.VCPUS": "7", "RAM_SIZE": "3G"})
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["workers"]["hosts"] == ["worker0", "worker1"]
    assert found["controllers"]["hosts"] == ["controller"]
    assert found["vm_hosts"]["hosts"] == ["vmhost"]
    variables = found["_meta"]["hostvars"]
    assert plain(variables["vmhost"]["ansible_user"]) == "user"
    worker = variables["worker1"]
    assert plain(worker["ansible_host"]) == "w1.example"
    assert plain(worker["guest"]["address"]) == "w1.example"
    assert (worker["guest"]["vcpus"], worker["guest"]["ram_size"]) == (7, 3 << 30)
    assert variables["worker0"]["guest"]["vcpus"] == 2
    assert plain(worker["guest"]["vm_host"]["name"]) == "vmhost"


def test_all_mistakes_at_once_and_no_host_is_touched() -> None:
    shown = inventory("--graph", trove_id="x", trove_url="x", worker0_url="w0")
    assert shown.returncode != 0
    for line, name in ((9, "controller_url"), (27, "worker1_url"), (37, "worker1_url")):
        place = f"clusters/distbuild-cluster.morph:{line}: ${name} has no value"
        assert place in shown.stderr
    run = subprocess.run(
        [BIN / "ansible-playbook", "deploy-cluster.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "TASK" not in run.stdout


def test_no_such_cluster() -> None:
    shown = inventory("--graph", cluster="clusters/none.morph")
    assert shown.returncode != 0
    assert "clusters/none.morph: there is no such file" in shown.stderr
