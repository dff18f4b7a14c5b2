"""Key files, and the admitted keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import zmq.auth

from fabric.controller import keytool
from fabric.wire import keys
from fabric.wire.keys import AuthorizedKeys, KeyProblem


@pytest.fixture
def controller(tmp_path: Path) -> Path:
    return tmp_path / "controller"


def test_keys_are_made_in_zeromqs_format_and_stay_secret(tmp_path: Path) -> None:
    public_file = keys.make("worker", "w1", tmp_path)
    secret_file = tmp_path / "w1.key_secret"
    assert public_file == tmp_path / "w1.key"
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w1.key", "w1.key_secret"]
    public, nothing = zmq.auth.load_certificate(public_file)
    same, secret = zmq.auth.load_certificate(secret_file)
    assert (public, nothing) == (same, None)
    assert secret is not None
    assert zmq.curve_public(secret) == public
    own = keys.read(secret_file)
    assert (own.name, own.role, own.public.encode()) == ("w1", "worker", public)
    assert secret.decode() not in f"{own!r} {own} {public_file.read_text()}"
    with pytest.raises(KeyProblem, match="exists already"):
        keys.make("worker", "w1", tmp_path)


@pytest.mark.parametrize("name", ["", "../w", "a b", "-x", ".x", "x" * 64, "é", "x\n"])
def test_keys_have_names_that_are_valid_in_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyProblem, match="is not a valid name"):
        keys.make("worker", name, tmp_path)


def test_keys_that_others_may_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of systemd's credentials, the group's bits are the mask of an access control list."""
    keys.make("worker", "w1", tmp_path)
    file = tmp_path / "w1.key_secret"
    for mode, folder in ((0o640, "/elsewhere"), (0o604, str(tmp_path))):
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", folder)
        file.chmod(mode)
        with pytest.raises(KeyProblem, match="chmod 600"):
            keys.read(file)
    file.chmod(0o440)
    assert keys.read(file).secret


@pytest.mark.parametrize(
    "text", ["", "\0" * 10_000, "curve\n  public-key = \"x\"", "\xff\xfe", "metadata\n  name = w\n"]
)  # fmt: skip
def test_keys_that_are_invalid_are_reported(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.key"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(KeyProblem, match=str(file)):
        keys.read(file)


def test_keys_of_a_peer(tmp_path: Path) -> None:
    with pytest.raises(KeyProblem, match=r"there is no key NAME.key_secret here"):
        keys.of_peer(tmp_path, "worker")
    keys.make("worker", "w1", tmp_path)
    with pytest.raises(KeyProblem, match=r"broker.key: no such file; copy it"):
        keys.of_peer(tmp_path, "worker")
    keys.make("broker", "broker", tmp_path)
    name, curve = keys.of_peer(tmp_path, "worker")
    assert name == "w1"
    assert curve.server == keys.of_broker(tmp_path).public
    assert curve.secret.decode() not in repr(curve)
    with pytest.raises(
        KeyProblem, match="is the key of the worker w1, and its role is not initiator"
    ):
        keys.of_peer(tmp_path, "initiator")
    with pytest.raises(KeyProblem, match="its role is not viewer"):
        keys.of_peer(tmp_path, "viewer")
    keys.make("worker", "w2", tmp_path)
    with pytest.raises(
        KeyProblem, match=r"one secret key is needed here, not w1.key_secret, w2.key_secret"
    ):
        keys.of_peer(tmp_path, "worker")


@pytest.mark.parametrize("role", ["viewer", "initiator"])
def test_key_of_an_initiator_includes_viewing(tmp_path: Path, role: keys.Role) -> None:
    keys.make("broker", "broker", tmp_path)
    keys.make(role, "ann", tmp_path)
    assert keys.of_peer(tmp_path, "viewer")[0] == "ann"
    if role == "viewer":
        with pytest.raises(KeyProblem, match="the key of the viewer ann, and its role is not init"):
            keys.of_peer(tmp_path, "initiator")


def test_keys_are_admitted_and_revoked(tmp_path: Path, controller: Path) -> None:
    public = keys.make("worker", "w1", tmp_path)
    broker, tool = AuthorizedKeys(controller), AuthorizedKeys(controller)
    assert not broker.refresh()
    tool.admit(public)
    tool.admit(public)  # changes nothing
    assert not broker.refresh(), "nobody is out"
    assert [str(peer.name) for peer in broker.all()] == ["w1"]
    assert broker.get(keys.read(public).public) == keys.read(public)
    tool.revoke("w1")
    assert broker.refresh()
    assert broker.all() == []
    assert not broker.refresh()
    with pytest.raises(KeyProblem, match="w1 is not admitted"):
        tool.revoke("w1")
    with pytest.raises(KeyProblem, match="is not a valid name"):
        tool.revoke("../broker")


def test_keys_are_admitted_once_for_each_name(tmp_path: Path, controller: Path) -> None:
    table = AuthorizedKeys(controller)
    table.admit(keys.make("worker", "w1", tmp_path / "a"))
    AuthorizedKeys(controller).refresh()
    table.refresh()
    with pytest.raises(KeyProblem, match="another worker is admitted as w1: revoke it first"):
        table.admit(keys.make("initiator", "w1", tmp_path / "b"))
    with pytest.raises(KeyProblem, match="is a secret key: admit the public one"):
        table.admit(tmp_path / "b" / "w1.key_secret")
    with pytest.raises(KeyProblem, match="the controller's own key"):
        table.admit(keys.make("broker", "broker", tmp_path))


def test_keys_in_bad_files_are_reported_and_not_admitted(tmp_path: Path, controller: Path) -> None:
    good = keys.make("worker", "w1", tmp_path)
    AuthorizedKeys(controller).admit(good)
    (controller / "admitted" / "w0.key").write_text("rubbish")
    (controller / "admitted" / "w2.key").write_bytes(good.read_bytes())
    table = AuthorizedKeys(controller)
    assert [peer.name for peer in table.all()] == ["w1"]
    assert len(table.problems) == 2
    assert "w0.key is not a key file of distbuild" in table.problems[0]
    assert "w2.key must be named w1.key" in table.problems[1]


def test_keytool_program(
    tmp_path: Path, controller: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keytool.main(["make", "broker", "--to", str(controller)]) == 0
    assert keytool.main(["make", "initiator", "alice", "--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{controller}/broker.key\n{tmp_path}/alice.key\n"
    where = ["--keys", str(controller)]
    assert keytool.main(["admit", str(tmp_path / "alice.key"), *where]) == 0
    assert keytool.main(["list", *where]) == 0
    public = keys.read(tmp_path / "alice.key").public
    out = capsys.readouterr().out.splitlines()
    assert out == ["initiator alice is admitted", f"{'alice':20} initiator  {public}"]
    assert keytool.main(["revoke", "alcie", *where]) == 1
    assert capsys.readouterr().err.endswith("; did you mean 'alice'?\n")
    assert keytool.main(["revoke", "alice", *where]) == 0
    assert keytool.main(["revoke", "alice", *where]) == 1
    assert "alice is not admitted" in capsys.readouterr().err
    assert keytool.main(["make", "worker", "broker", "--to", str(tmp_path)]) == 1
    assert "for no other key" in capsys.readouterr().err
