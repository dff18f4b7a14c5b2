"""Builds that sign what they make, and use only what a trusted key signed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from initiator_kit import Project

from fabric.trust import envelopes
from fabric.trust.seal import is_envelope


def manifests(project: Project) -> list[Path]:
    return sorted((project.cache / "artifacts/manifests").iterdir())


def without_signature(manifest: Path) -> None:
    content = envelopes.decode(manifest.read_bytes()).content
    manifest.unlink()
    manifest.write_bytes(content)


def test_build_signs_and_uses_only_what_is_signed(project: Project, tmp_path: Path) -> None:
    project.write(one="true", two=("one", "echo two > $DESTDIR/two"))
    plain = project.build()
    assert plain.returncode == 0, plain.stderr
    assert not any(is_envelope(one.read_bytes()) for one in manifests(project))
    trusted = {"FABRIC_TRUSTED_KEYS": str(tmp_path / "trusted")}

    def build() -> str:
        done = project.run("build", "../systems/small.morph", environ=trusted)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = build()
    assert "counts as absent: it is not signed\n" in said
    assert "4 built" in said
    assert all(is_envelope(one.read_bytes()) for one in manifests(project))
    assert "all 4 steps cached" in build()
    assert "all 4 steps cached" in project.build().stdout, "who trusts everybody uses it, too"

    shown = project.run("artifact", "list", "--json", environ=trusted)
    keys = {one["name"]: one["key"] for one in json.loads(shown.stdout)["artifacts"]}
    found = project.run("artifact", "show", "two", environ=trusted)
    assert "signed by  own\n" in found.stdout
    for name in ("two", "small"):
        without_signature(project.cache / "artifacts/manifests" / keys[name])
    said = build()
    assert "two: built" in said
    assert "one: built" not in said
    assert all(is_envelope(one.read_bytes()) for one in manifests(project))


@pytest.mark.parametrize("args", [(), ("--json",)])
def test_log_that_somebody_changed_is_not_shown(project: Project, args: tuple[str, ...]) -> None:
    project.write(one="seq 5000; echo fine")
    assert project.build().returncode == 0
    shown = project.run("logs", "one", *args)
    assert "fine" in shown.stdout, shown.stderr
    for blob in (project.cache / "artifacts/blobs").glob("*/*"):
        content = blob.read_bytes()
        if b"4999" in content:
            blob.chmod(0o644)
            blob.write_bytes(content.replace(b"fine", b"evil"))
    shown = project.run("logs", "one", *args)
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert "is damaged: its digest is" in shown.stderr


@pytest.mark.parametrize(
    ("file", "content", "mode", "said"),
    [
        ("own.key", b"no key", 0o600, "own.key is not a private key of Ed25519 in PEM"),
        ("own.key", b"no key", 0o644, "own.key: other users may read this private key: chmod 600"),
        ("revoked/amber.pub", b"no key", 0o644, "amber.pub is not a public key of Ed25519 in PEM"),
    ],
)
def test_unusable_key_ends_a_build_before_it_begins(
    project: Project, tmp_path: Path, file: str, content: bytes, mode: int, said: str
) -> None:
    project.write(one="true")
    trusted = tmp_path / "trusted"
    (trusted / file).parent.mkdir(parents=True)
    (trusted / file).write_bytes(content)
    (trusted / file).chmod(mode)
    done = project.run(
        "build", "../systems/small.morph", environ={"FABRIC_TRUSTED_KEYS": str(trusted)}
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "building" not in done.stdout


def test_unusable_key_of_another_is_named_once(project: Project, tmp_path: Path) -> None:
    project.write(one="true", two=("one", "echo two > $DESTDIR/two"))
    amber = tmp_path / "amber.pub"
    amber.write_bytes(b"no key")
    trusted = {"FABRIC_TRUSTED_KEYS": str(tmp_path)}
    for done in (
        project.run("build", "../systems/small.morph", environ=trusted),
        project.run("verify", "../systems/small.morph", environ=trusted),
    ):
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("amber.pub") == 1
        assert (
            f"warning: {amber} is not a public key of Ed25519 in PEM: signatures of" in done.stderr
        )
    demanded = project.run(
        "verify", "../systems/small.morph", "--countersigned-by", "amber", environ=trusted
    )
    assert demanded.returncode == 1
    assert f"fabric-initiator: {amber} is not a public key of Ed25519 in PEM\n" in demanded.stderr


def test_signatures_are_not_loaded_by_who_does_not_use_them(project: Project) -> None:
    project.write(one="true")
    assert project.build().returncode == 0
    script = (
        "import sys; from fabric.initiator import main; code = main(sys.argv[1:]);"
        "print('loaded:', sorted({'nacl', 'fabric.trust.signing'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "build", "../systems/small.morph"],
        cwd=project.logs, env=project.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "all 3 steps cached" in done.stdout
    assert done.stdout.endswith("loaded: []\n")
