"""A farm whose machines sign: who is not trusted costs builds, and no more."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace
from network_kit import Farm
from small_definitions import SYSTEM
from waiting import until

from fabric.trove.artifacts.store import Store
from fabric.trust import envelopes
from fabric.trust.seal import Seal, is_envelope
from fabric.trust.signing import TrustedKeys

pytestmark = pytest.mark.long


def manifests(farm: Farm) -> list[Path]:
    return sorted((Path(farm.store_url) / "manifests").iterdir())


def test_farm_copies_what_a_substituter_has(farm: Farm, tmp_path: Path) -> None:
    farm.sign("controller", "w1", "w2", readers=("alice",))
    farm.broker()
    first = farm.worker("w1")
    alice = farm.workstation("alice")
    alice.definitions.write(one="echo one > $DESTDIR/one", two=("one", "echo two > $DESTDIR/two"))
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    demand = ("verify", f"../definitions/{SYSTEM}", "--countersigned-by", "controller")
    until(lambda: alice.run(*demand).returncode == 0, what="the last countersignature")
    first.kill()
    before = {one.name: one.read_bytes() for one in manifests(farm)}
    mirror = tmp_path / "mirror"
    Path(farm.store_url).rename(mirror)
    farm.substituters = [str(mirror)]
    farm.worker("w2")
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 built, 4 copied" in done.stdout
    assert {one.name: one.read_bytes() for one in manifests(farm)} == before
    shown = alice.run("artifact", "show", "one", "--no-files")
    assert re.search(r"^signed by +w1$", shown.stdout, re.M)
    assert alice.run(*demand).returncode == 0  # countersignatures are copied as well


def test_controller_countersigns_what_its_workers_have_built(farm: Farm, tmp_path: Path) -> None:
    farm.sign("controller", "w1", readers=("alice",))
    farm.broker()
    farm.worker("w1")
    alice = farm.workstation("alice")
    alice.definitions.write(one="echo one > $DESTDIR/one", two=("one", "echo two > $DESTDIR/two"))
    assert alice.build().returncode == 0
    demand = ("verify", f"../definitions/{SYSTEM}", "--countersigned-by", "controller")
    until(lambda: alice.run(*demand).returncode == 0, what="the last countersignature")
    assert "  countersigned by  controller (4)\n" in alice.run(*demand).stdout

    # the controller's own key has two names there
    trusted = farm.trusted("alice")
    (trusted / "z.pub").write_bytes((trusted / "controller.pub").read_bytes())
    assert alice.run(*demand).returncode == 0
    (trusted / "z.pub").unlink()

    shown = alice.run("artifact", "show", "two", "--no-files")
    assert "countersigned by  controller: attempt " in shown.stdout
    assert " of w1\n" in shown.stdout

    # who has the signing key of the worker, and may write to the store, builds on another machine
    one = next(each for each in manifests(farm) if b'"name":"two"' in content_of(each))
    store = Store(farm.store_url, tmp_path / "scratch", seal=Seal(TrustedKeys(farm.trusted("w1"))))
    manifest = store.manifest(one.name)
    assert manifest is not None
    store.remove([manifest.key])
    store.put(replace(manifest, seconds=1.0), {})
    assert alice.run(*demand[:2]).returncode == 0, "its signature counts"
    done = alice.run(*demand)
    assert done.returncode == 1
    assert "two: it is not countersigned by controller\n" in done.stdout
    assert "  countersigned by  controller (3)\n" in done.stdout
    found = json.loads(alice.run(*demand, "--json").stdout)
    assert found["countersigned_by"] == {"controller": 3}
    done = alice.run(*demand[:2], "--countersigned-by", "controler")
    assert "has no trusted key controler; did you mean 'controller'?" in done.stderr


def content_of(manifest: Path) -> bytes:
    return envelopes.decode(manifest.read_bytes()).content


def test_farm_uses_only_what_its_own_machines_signed(farm: Farm, tmp_path: Path) -> None:
    farm.sign("controller", "w1", "w2", readers=("alice",))
    broker = farm.broker()
    first = farm.worker("w1")
    alice = farm.workstation("alice")
    alice.definitions.write(one="echo one > $DESTDIR/one", two=("one", "echo two > $DESTDIR/two"))

    def checkout(to: str) -> subprocess.CompletedProcess[str]:
        """The files of the system."""
        return alice.run("checkout", f"../definitions/{SYSTEM}", "--to", str(tmp_path / to))

    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(is_envelope(one.read_bytes()) for one in manifests(farm))
    assert checkout("a").returncode == 0
    assert "0 built" in alice.build().stdout

    # somebody writes to the store
    for one in manifests(farm):
        content = envelopes.decode(one.read_bytes()).content
        one.unlink()
        one.write_bytes(content)
    shown = checkout("b")
    assert shown.returncode == 1
    assert "counts as absent: it is not signed" in shown.stderr
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 built" in done.stdout
    assert all(is_envelope(one.read_bytes()) for one in manifests(farm))
    broker.says("counts as absent: it is not signed")
    assert checkout("c").returncode == 0

    # a worker is not trusted any more
    first.kill()
    for reader in ("controller", "w2", "alice"):
        farm.keys("distrust", "w1", "--trusted", str(farm.trusted(reader)))
    farm.worker("w2")
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "building on w2" in done.stdout
    broker.says("which is revoked")
    assert (tmp_path / "c/two").read_text() == "two\n"
