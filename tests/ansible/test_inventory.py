"""The inventory plugin, run by the ansible-inventory command."""

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
    """Return a text without the mark that it is no template."""
    return value["__ansible_unsafe"] if isinstance(value, dict) else value


@pytest.mark.parametrize("cluster", sorted(path.name for path in (ROOT / "clusters").iterdir()))
def test_inventory_of_every_cluster_has_a_graph(cluster: str) -> None:
    shown = inventory("--graph", cluster=f"clusters/{cluster}", **VALUES)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert "@vm_hosts" in shown.stdout
    assert shown.stdout == inventory("--graph", "-i", f"clusters/{cluster}", **VALUES).stdout


def test_inventory_of_the_example_cluster() -> None:
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
    roles = {name: variables[name]["guest"]["roles"] for name in ("controller", "worker1")}
    assert {name: [plain(one) for one in each] for name, each in roles.items()} == {
        "controller": ["controller", "web"],
        "worker1": ["worker"],
    }


@pytest.mark.parametrize("state", ["plain", "a b", "50%d", 'quo"te', "it's", "gr\u00fc\u00df"])
def test_inventory_known_hosts_may_be_in_any_folder(
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
def test_inventory_does_not_list_localhost_as_vm_host(host: str) -> None:
    """Tasks that are delegated to it use no SSH, and the Python that runs Ansible."""
    shown = inventory("--list", cluster="clusters/minimal-system.morph", vmhost=f"me@{host}")
    found = json.loads(shown.stdout)
    assert "vm_hosts" not in found
    assert found["_meta"]["hostvars"].keys() == {"minimal"}


def test_inventory_lists_all_errors_and_runs_no_task() -> None:
    shown = inventory("--graph", trove_id="x", trove_url="x", worker0_url="w0")
    assert shown.returncode != 0
    for line, name in ((9, "controller_url"), (27, "worker1_url"), (38, "worker1_url")):
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


def test_inventory_missing_cluster_is_an_error() -> None:
    shown = inventory("--graph", cluster="clusters/none.morph")
    assert shown.returncode != 0
    assert "clusters/none.morph: no such file" in shown.stderr


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A cluster of a machine with both roles, files, and types that are left out."""
    for file in ("VERSION", "systems/build-system-debian-x86_64.morph"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    cluster = tmp_path / "clusters/real.morph"
    cluster.parent.mkdir()
    cluster.write_text(
        "name: real\nkind: cluster\nsystems:\n- morph: systems/build-system-debian-x86_64.morph\n"
        "  deploy-defaults: {DISK_SIZE: 5G, SWIFT_A: x}\n  deploy:\n"
        "    both: {type: kvm, location: 'kvm+ssh://h/both/i', HOSTNAME: c, CONTROLLERHOST: c,\n"
        "      WORKERS: c, TROVE_HOST: c, WORKER_SSH_KEY: k, DISTBUILD_CONTROLLER: yes,\n"
        "      DISTBUILD_WORKER: yes}\n"
        "    build-system-debian-x86_64: {type: kvm, location: 'kvm+ssh://h/b/j'}\n"
        "    disk: {type: extensions/rawdisk, location: out/disk.img}\n"
        "    archive: {type: tar, location: /srv/archive.tar, HOSTNAME: a}\n"
        "    net: {type: nfsboot, location: there}\n"
    )
    return cluster


def test_inventory_of_files_and_of_a_machine_with_both_roles(real: Path) -> None:
    shown = inventory("--list", cluster=str(real))
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["files"]["hosts"] == ["disk", "archive"]
    assert found["guests"]["hosts"] == ["both", "build-system-debian-x86_64"]
    for group in ("controllers", "workers", "troves"):
        assert found[group]["hosts"] == ["both"]
    guests = {
        name: one["guest"] for name, one in found["_meta"]["hostvars"].items() if "guest" in one
    }
    assert [plain(one) for one in guests["both"]["roles"]] == ["trove", "controller", "worker"]
    assert plain(guests["disk"]["path"]) == str(real.parent.parent / "out/disk.img")
    assert plain(guests["archive"]["path"]) == "/srv/archive.tar"
    assert (plain(guests["archive"]["kind"]), plain(guests["archive"]["hostname"])) == ("tar", "a")
    assert "deployment net: nfsboot is not deployable here, and is left out" in shown.stderr
    assert "except in templates of INSTALL_FILES: SWIFT_A" in shown.stderr


def test_a_file_is_not_written_out_of_the_definitions_by_a_link(real: Path) -> None:
    (real.parent.parent / "out").symlink_to("/srv")
    shown = inventory("--list", cluster=str(real))
    assert shown.returncode != 0
    assert "deployment disk: " in shown.stderr
    assert "out/disk.img is out of the definitions, by a link" in shown.stderr


MORPH = "clusters/distbuild-cluster.morph"
OWN_TROVE = {**VALUES, "trove_url": "controller.example", "secrets_initiator": "operator"}


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """The folder USERS of the example cluster, with the people ann and bob."""
    for file in ("VERSION", "systems/build-system-debian-x86_64.morph", MORPH):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    text = (tmp_path / MORPH).read_text()
    text = text.replace("WORKERS: $worker0_url", "USERS: people\n      WORKERS: $worker0_url")
    (tmp_path / MORPH).write_text(text)
    for name in ("ann", "bob"):
        person(tmp_path / "people", name)
    return tmp_path / "people"


def person(folder: Path, name: str, role: keys.Role = "initiator") -> None:
    """Make the public keys of a person in ``folder``, and the secret keys beside it."""
    keys.make(role, name, folder)
    (folder / f"{name}.key_secret").rename(folder.parent / f"{name}.key_secret")
    ssh = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder.parent / name)]
    subprocess.run(ssh, check=True)
    (folder.parent / f"{name}.pub").rename(folder / f"{name}.pub")


def people_of(people: Path, **variables: str) -> tuple[object, list[str]]:
    """Return ``cluster_users``, and the errors of the line USERS in the morph."""
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


def test_inventory_users(people: Path) -> None:
    both = {"ann": f"{people}/ann", "bob": f"{people}/bob"}
    (people / "README").write_text("Whom we let in.\n")
    assert people_of(people, **OWN_TROVE) == (both, [])
    (people / "ann.pub").unlink()  # only the cluster's own trove needs it
    assert people_of(people, **VALUES) == (both, [])
    for file in people.iterdir():
        file.unlink()
    assert people_of(people, **VALUES) == ({}, [])


def test_inventory_users_errors(people: Path) -> None:
    (people / "ann.pub").unlink()
    (people / "bob.key").rename(people / "rob.key")
    for name in ("carl", "dora", "worker0", "operator", "web-page"):
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
        "/web-page.key: the web page has the name web-page: use another name for the person",
        "/worker0.key: a worker has the name worker0: use another name for the person",
    ]
    assert len(found) == len(wanted), found
    for message, begin in zip(found, wanted, strict=True):
        assert message.startswith(begin)
    shutil.rmtree(people)
    _, [found_none] = people_of(people, **OWN_TROVE)
    assert found_none.startswith(": No such file or directory: make the folder (it needs NAME.key")
