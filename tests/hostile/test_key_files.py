"""Invalid files among the keys of USERS and among the admitted keys."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fabric.bounds import ADMITTED_KEYS, KEY_FILE, PEOPLE, SSH_KEY_FILE
from fabric.deployment.users import users
from fabric.errors import DefinitionsError
from fabric.wire import keys
from fabric.wire.keys import AuthorizedKeys

Make = Callable[[Path], object]
#: name -> function that makes the file, words of the error
FILES: dict[str, tuple[Make, str]] = {
    "a pipe": (os.mkfifo, "it is not an ordinary file"),
    "a folder": (Path.mkdir, "it is not an ordinary file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is not an ordinary file"),
    "a link to nothing": (lambda path: path.symlink_to("none"), "No such file or directory"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic"),
    "a large file": (lambda path: path.write_bytes(bytes(KEY_FILE + 1)), "more than 4,096 bytes"),
    "no text": (lambda path: path.write_bytes(b"\xff"), "it is not text"),
    "nothing": (Path.touch, "is not a key file of distbuild: name or role is missing"),
}


@pytest.mark.bound("KEY_FILE")
@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "said"), FILES.values(), ids=FILES)
def test_key_file_that_is_bad_does_not_affect_others(tmp_path: Path, make: Make, said: str) -> None:
    """Other keys are admitted and can be revoked."""
    admitted = AuthorizedKeys(tmp_path)
    admitted.admit(keys.make("worker", "good", tmp_path / "good"))
    admitted.admit(keys.make("worker", "gone", tmp_path / "gone"))
    make(admitted.directory / "bad.key")
    admitted.refresh()
    [problem] = admitted.problems
    assert str(admitted.directory / "bad.key") in problem
    assert said in problem
    assert [peer.name for peer in admitted.all()] == ["gone", "good"]
    admitted.revoke("gone")
    assert admitted.refresh()
    assert [peer.name for peer in admitted.all()] == ["good"]


@pytest.mark.bound("ADMITTED_KEYS")
def test_key_files_past_the_bound_are_reported(tmp_path: Path) -> None:
    admitted = AuthorizedKeys(tmp_path)
    for number in range(ADMITTED_KEYS):
        (admitted.directory / f"{number:06}.key").touch()
    admitted.admit(keys.make("worker", "z", tmp_path))
    admitted.refresh()
    assert not admitted.all()
    assert admitted.problems[0] == (
        f"{admitted.directory} has 10,001 keys, and only the first 10,000 by name are admitted,"
        " up to 009999.key: revoke some"
    )


CONTROLLER: Any = SimpleNamespace(
    roles=("controller",), users="people", trove=True, name="controller", line_of=lambda _: 7
)


def refused(root: Path) -> list[str]:
    """The errors of the folder ``people`` there."""
    with pytest.raises(DefinitionsError) as caught:
        users(root, "c.morph", [CONTROLLER], [])
    begin = f"USERS: {root / 'people'}"
    said = [problem.message for problem in caught.value.problems]
    assert all(one.startswith(begin) for one in said)
    return [one.removeprefix(begin) for one in said]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "said"), FILES.values(), ids=FILES)
def test_key_file_of_a_user_that_is_bad_is_named(tmp_path: Path, make: Make, said: str) -> None:  # noqa: ARG001
    folder = tmp_path / "people"
    folder.mkdir()
    for name in ("ann.key", "ann.pub"):
        make(folder / name)
    assert refused(tmp_path) == [
        "/ann.key is not the public key of an initiator named ann: use the one that ann makes with"
        " `fabric-keys make initiator ann`",
        "/ann.pub is not one line with a public SSH key, as ssh-keygen writes it",
    ]


@pytest.mark.bound("SSH_KEY_FILE")
def test_ssh_key_file_past_the_bound_is_rejected(tmp_path: Path) -> None:
    keys.make("initiator", "ann", tmp_path / "people")
    (tmp_path / "people/ann.key_secret").unlink()
    key = "ssh-ed25519 AAAAC3 "
    (tmp_path / "people/ann.pub").write_text(key + "x" * (SSH_KEY_FILE - len(key)))
    assert users(tmp_path, "c.morph", [CONTROLLER], []).keys() == {"ann"}
    (tmp_path / "people/ann.pub").write_text(key + "x" * (SSH_KEY_FILE - len(key) + 1))
    assert refused(tmp_path) == [
        "/ann.pub is not one line with a public SSH key, as ssh-keygen writes it"
    ]


@pytest.mark.bound("PEOPLE")
def test_users_past_the_bound_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "people").mkdir()
    for number in range(PEOPLE + 1):
        (tmp_path / f"people/p{number}.key").touch()
    assert refused(tmp_path) == [": it has 1,001 people, and at most 1,000 can be"]


def test_user_name_with_terminal_escapes_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "people").mkdir()
    (tmp_path / "people/\x1b]52;c;x\a.key").touch()
    assert refused(tmp_path) == [
        ": '\\x1b]52;c;x\\x07' is not a valid name: use letters and digits, and . _ - after the"
        " first character, at most 63 characters"
    ]
