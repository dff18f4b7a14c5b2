"""The keys that sign artifacts, as deploying makes and brings them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from fabric.controller import keytool
from fabric.trust.signing import TrustedKeys

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NAMES = ("controller", "worker0", "worker1")
ADDRESSES = {
    **{f"{name}_url": f"{name}.example" for name in (*NAMES, "trove")},
    "trove_id": "x",
}


class Deployment:
    """The example cluster, whose machines are folders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.state = folder / "distbuild/clusters/x86_64_distbuild_network"
        (folder / "key").write_text("x")

    def deploy(self, **more: str) -> dict[str, int]:
        """Make and bring keys, and return how much has changed, by machine."""
        given = {
            **ADDRESSES,
            **{"access_known_hosts": "x", "trees": str(self._folder)},
            **{"WORKER_SSH_KEY": str(self._folder / "key"), **more},
        }
        done = subprocess.run(
            [
                BIN / "ansible-playbook",
                "tests/ansible/playbooks/signing.yml",
                "-e",
                json.dumps(given),
            ],
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": str(self._folder), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        changed = re.findall(r"(?m)^(\w+) +: .* changed=(\d+)", done.stdout)
        return {name: int(count) for name, count in changed}

    def trusted(self, name: str) -> Path:
        return self._folder / name / "etc/distbuild/trusted"

    def known(self, name: str) -> dict[str, bool]:
        """What a machine knows: id of a key -> whether it is revoked."""
        return {one.id: one.revoked for one in TrustedKeys(self.trusted(name)).all()}

    def signers(self) -> dict[str, str]:
        """The id of the key that each machine signs with."""
        return {name: TrustedKeys(self.trusted(name)).signer().id for name in NAMES}


def test_each_machine_has_a_key_that_all_trust(tmp_path: Path) -> None:
    """Also after one was lost, and another removed to be replaced."""
    deployment = Deployment(tmp_path)
    deployment.deploy()
    former = deployment.signers()
    assert len(set(former.values())) == 3
    for name in NAMES:
        assert deployment.known(name) == dict.fromkeys(former.values(), False)
        modes = {
            str(file.relative_to(deployment.trusted(name))): oct(file.stat().st_mode & 0o777)
            for file in (deployment.trusted(name), *deployment.trusted(name).rglob("*"))
        }
        public = {f"{one}.pub": "0o644" for one in (*NAMES, "own")}
        assert modes == {".": "0o755", "revoked": "0o755", "own.key": "0o600", **public}
    private = [file for file in deployment.state.rglob("*") if b"PRIVATE" in _content(file)]
    assert {file.stem for file in private if file.parent.name == "signing"} == set(NAMES)
    assert not [file for file in private if file.stat().st_mode & 0o077]

    trusted = deployment.state / "trusted"
    assert keytool.main(["distrust", "worker0", "--trusted", str(trusted)]) == 0
    (deployment.state / "signing/worker1.key").unlink()
    # a key of the deploying user is no machine's
    assert keytool.main(["renew", "--trusted", str(trusted)]) == 0
    assert all(deployment.deploy().values())
    keys = deployment.signers()
    assert keys["controller"] == former["controller"]
    assert not set(former.values()) & {keys["worker0"], keys["worker1"]}
    for name in NAMES:
        assert deployment.known(name) == {
            **dict.fromkeys({*former.values(), *keys.values()}, False),
            former["worker0"]: True,
        }
    assert not any(deployment.deploy().values())
    assert deployment.signers() == keys


def test_signatures_can_be_switched_off(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    deployment.deploy(SIGNATURES="no")
    assert not any(deployment.trusted(name).exists() for name in NAMES)


def test_machine_without_the_library_is_reported_before_anything_changes(tmp_path: Path) -> None:
    """As one of an older system is, whose programs would not start."""
    there = tmp_path / "python3"
    command = [str(BIN / "ansible"), "worker0", "-c", "local", "-e", json.dumps(ADDRESSES)]
    command += ["-m", "ansible.builtin.include_role"]
    command += ["-a", "name=distbuild.fabric.access tasks_from=library"]

    def look(script: str) -> subprocess.CompletedProcess[str]:
        there.write_text(f"#!/bin/sh\n{script}\n")
        there.chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    done = look('exec /usr/bin/python3 -S -I "$@"')
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "run upgrade-cluster.yml -e SIGNATURES=no, and then deploy-cluster.yml" in said
    done = look(f'exec {sys.executable} "$@"')
    assert done.returncode == 0, done.stdout + done.stderr


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
