"""Keys of signatures: made, read, trusted, revoked and renewed."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fabric import bounds
from fabric.controller import keytool
from fabric.trust import signing
from fabric.trust.signing import SigningProblem, TrustedKeys


def public(directory: Path, name: str) -> Path:
    """The public key of another machine."""
    TrustedKeys(directory / name).signer()
    return (directory / name / "own.pub").rename(directory / f"{name}.pub")


def test_own_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "trusted"
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(TrustedKeys(folder).signer) for _ in range(8)]
        assert len({one.result().id for one in made}) == 1
    assert (folder / "own.key").stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in folder.iterdir()) == ["own.key", "own.pub"]
    keys = TrustedKeys(folder)
    [own] = keys.all()
    assert (own.name, own.id) == ("own", made[0].result().id)
    (folder / "own.key").chmod(0o640)
    with pytest.raises(SigningProblem, match="chmod 600"):
        keys.signer()


def test_openssl_reads_the_keys(tmp_path: Path) -> None:
    signer = TrustedKeys(tmp_path).signer()
    (tmp_path / "content").write_bytes(b"content")
    (tmp_path / "signature").write_bytes(signer.sign(b"content"))

    def verify() -> int:
        command = "openssl pkeyutl -verify -pubin -inkey own.pub -rawin -in content -sigfile"
        return subprocess.run(
            [*command.split(), "signature"], cwd=tmp_path, capture_output=True, check=False
        ).returncode

    assert verify() == 0
    (tmp_path / "content").write_bytes(b"other content")
    assert verify() == 1
    command = ["openssl", "pkey", "-pubin", "-in", "own.pub", "-outform", "DER"]
    der = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert hashlib.sha256(der).hexdigest() == signer.id


def test_keys_are_trusted_revoked_and_renewed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    farm = tmp_path / "trusted"
    keys = TrustedKeys(farm)

    def run(*words: str) -> tuple[int, str]:
        code = keytool.main([*words, "--trusted", str(farm)])
        out = capsys.readouterr()
        return code, out.out + out.err

    assert keys.all() == []
    first = keys.signer().id
    amber, blue = public(tmp_path, "amber"), public(tmp_path, "blue")
    code, said = run("trust", str(amber))
    assert (code, said.partition(":")[0]) == (0, "amber is trusted")
    amber_id = said.split()[-1]
    assert run("trust", str(amber))[0] == 0, "again"
    assert run("trust", str(blue), "--name", "amber") == (
        1, "fabric-keys: another key is known as amber: give this one another name\n",
    )  # fmt: skip
    assert run("trust", str(blue), "--name", "../x")[0] == 1
    assert run("trust", str(tmp_path / "blue" / "own.key"), "--name", "x") == (
        1, f"fabric-keys: {tmp_path}/blue/own.key is not a public key of Ed25519 in PEM\n",
    )  # fmt: skip
    assert run("distrust", "amger") == (
        1, f"fabric-keys: {farm} has no trusted key amger; did you mean 'amber'?\n",
    )  # fmt: skip
    assert [(one.name, one.revoked) for one in keys.all()] == [("amber", False), ("own", False)]
    assert run("distrust", "amber") == (0, "amber is trusted no more\n")
    assert keys.by_id()[amber_id].revoked
    code, said = run("trust", str(amber))
    assert code == 1
    assert "this key is revoked" in said

    second = run("renew")[1].split()[0]
    assert second != first
    assert keys.signer().id == second
    assert run("trusted")[1] == (
        f"amber-{amber_id[:12]}   revoked  {amber_id}\n"
        f"{'own':20} trusted  {second}\n"
        f"own-{first[:12]}     trusted  {first}\n"
    )
    assert run("distrust", "own")[0] == 0
    assert keys.signer().id not in (first, second)


def test_unusable_key_stops_renewing_only_if_it_is_the_own_one(tmp_path: Path) -> None:
    keys = TrustedKeys(tmp_path)
    first = keys.signer().id
    (tmp_path / "amber.pub").write_bytes(b"no key")
    second = keys.renew().id
    assert second != first
    assert keys.named(f"own-{first[:12]}").id == first
    (tmp_path / "own.pub").write_bytes(b"no key")
    keys = TrustedKeys(tmp_path)
    with pytest.raises(SigningProblem, match=r"own\.pub is not a public key of Ed25519 in PEM"):
        keys.renew()
    with pytest.raises(SigningProblem, match=r"own\.pub is not the public key of own\.key"):
        keys.signer()
    (tmp_path / "own.pub").unlink()
    assert keys.signer().id == second


def test_own_key_may_have_another_name_too(tmp_path: Path) -> None:
    """As on a farm, whose machines get all public keys by the names of the machines."""
    keys = TrustedKeys(tmp_path)
    first = keys.signer()
    for name in ("controller", "worker0"):
        (tmp_path / f"{name}.pub").write_bytes((tmp_path / "own.pub").read_bytes())
    assert [(one.name, one.id) for one in keys.all()] == [
        (name, first.id) for name in ("controller", "own", "worker0")
    ]
    assert keys.named("controller").id == keys.named("own").id == first.id
    second = keys.renew()
    assert second.id != first.id
    assert keys.named("own").id == second.id

    (tmp_path / "worker0.pub").write_bytes((tmp_path / "own.pub").read_bytes())
    keys = TrustedKeys(tmp_path)
    keys.revoke("worker0")
    with pytest.raises(SigningProblem, match="has no trusted key own"):
        keys.named("own")
    with pytest.raises(SigningProblem, match="this key is revoked; `fabric-keys renew`"):
        keys.signer()
    assert keys.renew().id not in (first.id, second.id)
    assert keys.by_id()[second.id].revoked


def test_name_of_a_key_controls_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders of keys are copied whole."""
    public(tmp_path, "x\x1b[2J\nown  trusted")
    assert keytool.main(["trusted", "--trusted", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(r"x\nown  trusted ")


def test_only_the_key_is_copied_from_a_file(tmp_path: Path) -> None:
    """Public keys are for all to read; the file may have the private one, too."""
    amber = public(tmp_path, "amber")
    only, private = amber.read_bytes(), (tmp_path / "amber/own.key").read_bytes()
    amber.write_bytes(b"of amber\n" + only + private)
    TrustedKeys(tmp_path / "trusted").trust(amber)
    assert (tmp_path / "trusted/amber.pub").read_bytes() == only


def _of_another_kind() -> bytes:
    private = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]
    made = subprocess.run(private, capture_output=True, check=True).stdout
    public = ["openssl", "pkey", "-pubout"]
    return subprocess.run(public, input=made, capture_output=True, check=True).stdout


UNUSABLE = [b"", b"no key", b"\xff" * 100, b"-----BEGIN PUBLIC KEY-----\n", _of_another_kind()]


@pytest.mark.parametrize("content", UNUSABLE)
def test_unusable_key_costs_only_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    said: list[str] = []
    keys = TrustedKeys(tmp_path / "trusted", said.append)
    signer = keys.signer()
    keys.trust(public(tmp_path, "blue"))
    amber = keys.directory / "amber.pub"
    amber.write_bytes(content)
    for _ in range(2):
        assert [one.name for one in keys.all()] == ["blue", "own"]
        assert keys.signer().id == signer.id
        time.sleep(signing.AGAIN)
    problem = f"{amber} is not a public key of Ed25519 in PEM"
    warning = f"{problem}: signatures of this key do not count"
    assert said == [warning], "once"
    with pytest.raises(SigningProblem, match=re.escape(problem)):
        keys.named("amber")
    with pytest.raises(SigningProblem, match=re.escape(problem)):
        keys.revoke("amber")
    assert keytool.main(["trusted", "--trusted", str(keys.directory)]) == 0
    assert capsys.readouterr().err == f"fabric-keys: warning: {warning}\n"
    amber.unlink()
    assert len(keys.all()) == 2
    amber.write_bytes(content)
    time.sleep(signing.AGAIN)
    assert len(keys.all()) == 2
    assert said == [warning] * 2, "it was usable in between"
    keys.trust(public(tmp_path, "amber"))
    assert [one.name for one in keys.all()] == ["amber", "blue", "own"]


@pytest.mark.parametrize("content", UNUSABLE)
def test_unusable_revoked_key_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    """Without it, what it signed could count again."""
    keys = TrustedKeys(tmp_path)
    keys.signer()
    keys.trust(public(tmp_path / "others", "amber"))
    keys.revoke("amber")
    [revoked] = (tmp_path / "revoked").iterdir()
    revoked.write_bytes(content)
    with pytest.raises(SigningProblem, match=f"{revoked} is not a public key of Ed25519 in PEM"):
        TrustedKeys(tmp_path).all()


def test_change_that_the_directory_does_not_show_is_noticed(tmp_path: Path) -> None:
    """One in the same tick of the clock, or of a file in its place."""
    farm = tmp_path / "trusted"
    keys = TrustedKeys(farm)
    amber, blue = public(tmp_path, "amber"), public(tmp_path, "blue")
    keys.trust(amber, "one")
    before = farm.stat()
    [known] = keys.all()
    (farm / "one.pub").write_bytes(blue.read_bytes())
    (farm / "two.pub").write_bytes(amber.read_bytes())
    os.utime(farm, ns=(before.st_atime_ns, before.st_mtime_ns))
    time.sleep(signing.AGAIN)
    assert [one.name for one in keys.all()] == ["one", "two"]
    assert keys.by_id()[known.id].name == "two"


def test_folders_can_be_read_whatever_the_umask(tmp_path: Path) -> None:
    """Root revokes a key, and a service of another user has to see it."""
    amber = public(tmp_path, "amber")
    before = os.umask(0o077)
    try:
        keys = TrustedKeys(tmp_path / "trusted")
        keys.trust(amber)
        keys.revoke("amber")
        TrustedKeys(tmp_path / "made").signer()
    finally:
        os.umask(before)
    for folder in ("trusted", "trusted/revoked", "made"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o755
    for file in (tmp_path / "trusted/revoked").iterdir():
        assert file.stat().st_mode & 0o777 == 0o644


def test_key_of_another_is_not_the_own_one(tmp_path: Path) -> None:
    """Everybody sends a file of that name; with it, this machine could not sign."""
    TrustedKeys(tmp_path / "amber").signer()
    keys = TrustedKeys(tmp_path / "trusted")
    with pytest.raises(SigningProblem, match="own is the name of this machine's key"):
        keys.trust(tmp_path / "amber/own.pub")
    keys.signer()
    with pytest.raises(SigningProblem, match="another key is known as own: give this one another"):
        keys.trust(tmp_path / "amber/own.pub")
    assert keys.trust(keys.directory / "own.pub").name == "own", "it is trusted already"


@pytest.mark.parametrize("folder", ["", "revoked"])
def test_directory_that_cannot_be_listed_is_an_error(tmp_path: Path, folder: str) -> None:
    """A key that is revoked there would count."""
    keys = TrustedKeys(tmp_path / "trusted")
    keys.trust(public(tmp_path, "amber"))
    (keys.directory / "revoked").mkdir()
    tmp_path.chmod(0o711)
    (keys.directory / folder).chmod(0o311)
    script = (
        "import os, sys; from pathlib import Path; from fabric.trust.signing import TrustedKeys;"
        "import fabric.trust.signing as s; s._library(); os.geteuid() or os.setuid(65534);"
        "TrustedKeys(Path('trusted')).all()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the keys of signatures cannot be read: Permission denied" in done.stderr


@pytest.mark.bound("SIGNING_KEY_FILE")
def test_large_file_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "amber.pub").write_bytes(b" " * (bounds.SIGNING_KEY_FILE + 1))
    keys = TrustedKeys(tmp_path)
    assert keys.all() == []
    with pytest.raises(SigningProblem, match="more than 4,096 bytes"):
        keys.named("amber")


@pytest.mark.bound("TRUSTED_KEYS")
def test_too_many_keys_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "TRUSTED_KEYS", 2)
    for name in "ab":
        public(tmp_path, name)
    assert len(TrustedKeys(tmp_path).all()) == 2
    (tmp_path / "c.pub").write_bytes(b"no key")
    with pytest.raises(SigningProblem, match="more than 2 keys"):
        TrustedKeys(tmp_path).all()


def test_library_that_is_missing_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['nacl'] = None;"
        "from fabric.controller.keytool import main;"
        f"sys.exit(main(['renew', '--trusted', {str(tmp_path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "fabric-keys: signatures need nacl, which is not installed: pip install"
        " 'distbuild[signatures]'; or leave the setting trusted-keys empty\n"
    )
