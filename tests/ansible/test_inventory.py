"""The inventory plugin, through Ansible's own command."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.wire import keys

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


@pytest.mark.parametrize("state", ["plain", "a b", "50%d", 'quo"te', "it's", "gr\u00fc\u00df"])
def test_ssh_finds_the_known_hosts_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    folder = tmp_path / state
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    shown = inventory("--host", "worker0", **VALUES)
    options = plain(json.loads(shown.stdout)["ansible_ssh_common_args"])
    asked = ["ssh", "-G", *shlex.split(str(options)), "host"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    known = folder / "distbuild/clusters/x86_64_distbuild_network/ssh/worker0/known_hosts"
    [told] = [line for line in said.splitlines() if line.startswith("userknownhostsfile ")]
    assert told.removeprefix("userknownhostsfile ").replace("%%", "%") == str(known)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_this_machine_as_vm_host_is_no_host(host: str) -> None:
    """What is delegated to it goes by no ssh, and runs with Ansible's own Python."""
    shown = inventory("--list", cluster="clusters/minimal-system.morph", vmhost=f"me@{host}")
    found = json.loads(shown.stdout)
    assert "vm_hosts" not in found
    assert found["_meta"]["hostvars"].keys() == {"minimal"}


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
    assert "clusters/none.morph: no such file" in shown.stderr


MORPH = "clusters/distbuild-cluster.morph"
OWN_TROVE = {**VALUES, "trove_url": "controller.example", "secrets_initiator": "operator"}


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """The folder USERS of definitions with the guide's cluster; ann and bob are in it."""
    for file in ("VERSION", "systems/build-system-x86_64.morph", MORPH):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    text = (tmp_path / MORPH).read_text()
    text = text.replace("WORKERS: $worker0_url", "USERS: people\n      WORKERS: $worker0_url")
    (tmp_path / MORPH).write_text(text)
    for name in ("ann", "bob"):
        person(tmp_path / "people", name)
    return tmp_path / "people"


def person(folder: Path, name: str, role: keys.Role = "initiator") -> None:
    """What one hands in; the secret halves stay elsewhere."""
    keys.make(role, name, folder)
    (folder / f"{name}.key_secret").rename(folder.parent / f"{name}.key_secret")
    ssh = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder.parent / name)]
    subprocess.run(ssh, check=True)
    (folder.parent / f"{name}.pub").rename(folder / f"{name}.pub")


def people_of(people: Path, **variables: str) -> tuple[object, list[str]]:
    """What the inventory says of them: all, or else what is wrong in the morph's line of USERS."""
    shown = inventory("--list", cluster=str(people.parent / MORPH), **variables)
    if shown.returncode:
        line = (people.parent / MORPH).read_text().partition("USERS")[0].count("\n") + 1
        begin = f"{MORPH}:{line}: USERS: {people}"
        said = [one for one in shown.stderr.splitlines() if one.startswith("clusters")]
        assert all(one.startswith(begin) for one in said), shown.stderr
        return None, [one.removeprefix(begin) for one in said]
    hosts = json.loads(shown.stdout)["_meta"]["hostvars"]
    assert hosts["worker0"]["cluster_users"] == hosts["controller"]["cluster_users"]
    return {key: plain(value) for key, value in hosts["controller"]["cluster_users"].items()}, []


def test_people(people: Path) -> None:
    both = {"ann": f"{people}/ann", "bob": f"{people}/bob"}
    (people / "README").write_text("Whom we let in.\n")
    assert people_of(people, **OWN_TROVE) == (both, [])
    (people / "ann.pub").unlink()  # which only a trove of the cluster's own has to know
    assert people_of(people, **VALUES) == (both, [])
    for file in people.iterdir():
        file.unlink()
    assert people_of(people, **VALUES) == ({}, [])


def test_what_can_be_wrong_with_people(people: Path) -> None:
    (people / "ann.pub").unlink()
    (people / "bob.key").rename(people / "rob.key")
    for name in ("carl", "dora", "worker0", "operator"):
        person(people, name)
    person(people, "eve", "worker")
    shutil.copy(people.parent / "carl.key_secret", people)
    shutil.copy(people.parent / "dora.key_secret", people / "dora.key")
    with (people / "carl.pub").open("a") as file:
        file.write((people / "dora.pub").read_text())
    shutil.copy(people.parent / "dora", people / "dora.pub")
    _, found = people_of(people, **OWN_TROVE)
    wanted = [
        "/ann.pub is missing, beside ann.key: it is the public SSH key with which ann pushes",
        "/bob.key is missing, beside bob.pub: bob makes it with `fabric-keys make initiator bob`",
        "/carl.key_secret is a secret key, and must not be shared: remove it",
        "/carl.pub is not one line with a public SSH key",
        "/dora.key is not the public key of an initiator named dora: use the one that dora",
        "/dora.pub is not one line with a public SSH key",
        "/eve.key is not the public key of an initiator named eve",
        "/operator.key: operator is the deploying user",
        "/rob.key is not the public key of an initiator named rob",
        "/worker0.key: a worker has the name worker0: use another name for the person",
    ]
    assert len(found) == len(wanted), found
    for message, begin in zip(found, wanted, strict=True):
        assert message.startswith(begin)
    shutil.rmtree(people)
    _, [found_none] = people_of(people, **OWN_TROVE)
    assert found_none.startswith(": No such file or directory: make the folder (it needs NAME.key")
