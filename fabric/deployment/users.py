"""Reads the public keys of the users whom a cluster authorizes, from the folder ``USERS``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from fabric.bounds import PEOPLE, SSH_KEY_FILE
from fabric.definitions.fields import Findings
from fabric.deployment.guest import WEB_PAGE, Guest
from fabric.errors import DefinitionsError
from fabric.host.files import read_regular
from fabric.wire import keys

#: One line: a second one would be another key, without the restrictions put before the first.
_SSH = re.compile(r"(ssh|ecdsa|sk)-[\w@.-]+ AAAA[\w+/=]+( .*)?\n*", re.ASCII)
_WANTED = "it needs NAME.key and NAME.pub of each person"


def users(root: Path, file: str, guests: Collection[Guest], own: Collection[str]) -> dict[str, str]:
    """Name of a person -> absolute path of their files, without ``.key`` and ``.pub``.

    ``root`` is the root of the definitions, ``file`` the cluster morph there, and ``own`` has names
    of the deploying user.  DefinitionsError has all mistakes in the folder.
    """
    for guest in guests:
        if "controller" in guest.roles and guest.users:
            found = _Folder(root / guest.users, guests, own)
            findings = Findings()
            for problem in found.problems():
                findings.error(file, guest.line_of("USERS"), f"USERS: {problem}")
            if findings.errors:
                raise DefinitionsError(findings.errors)
            return {name: str(found.path / name) for name in found.names}
    return {}


class _Folder:
    def __init__(self, path: Path, guests: Iterable[Guest], own: Collection[str]) -> None:
        self.path = path
        self.own = own
        self.workers = {guest.name for guest in guests if "worker" in guest.roles}
        self.trove = any(guest.trove for guest in guests)
        self.names: list[str] = []

    def problems(self) -> Iterator[str]:
        """All mistakes in the folder; sets ``names``."""
        try:
            files = {file.name for file in self.path.iterdir()}
        except OSError as error:
            yield f"{self.path}: {error.strerror}: make the folder ({_WANTED}), or name another"
            return
        stems = (re.fullmatch(r"(.*)\.(key|key_secret|pub)", file) for file in files)
        self.names = sorted({stem[1] for stem in stems if stem})
        if len(self.names) > PEOPLE:
            yield f"{self.path}: it has {len(self.names):,} people, and at most {PEOPLE:,} can be"
            return
        for name in self.names:
            yield from self._person(name, files)

    def _person(self, name: str, files: Collection[str]) -> Iterator[str]:
        try:
            keys.check_name(name)
        except keys.KeyProblem as problem:
            yield f"{self.path}: {problem}"
            return
        place = self.path / name
        make = f"`fabric-keys make initiator {name}`"
        if f"{name}.key_secret" in files:
            yield (
                f"{place}.key_secret is a secret key, and must not be shared: remove it, and have"
                f" {name} make a new key with {make}"
            )
        elif f"{name}.key" not in files:
            yield f"{place}.key is missing, beside {name}.pub: {name} makes it with {make}"
        elif not _is_public(place.with_name(f"{name}.key"), name):
            yield (
                f"{place}.key is not the public key of an initiator named {name}: use the one"
                f" that {name} makes with {make}"
            )
        elif name == WEB_PAGE:
            yield f"{place}.key: the web page has the name {name}: use another name for the person"
        elif name in self.workers:
            yield f"{place}.key: a worker has the name {name}: use another name for the person"
        elif name in self.own:
            yield (
                f"{place}.key: {name} is the deploying user, who has a key in the cluster's folder:"
                " remove it here"
            )
        elif f"{name}.pub" not in files and self.trove:
            yield (
                f"{place}.pub is missing, beside {name}.key: it is the public SSH key with which"
                f" {name} pushes to the trove"
            )
        if f"{name}.pub" in files and not _is_ssh(place.with_name(f"{name}.pub")):
            yield f"{place}.pub is not one line with a public SSH key, as ssh-keygen writes it"


def _is_public(file: Path, name: str) -> bool:
    """Whether a file is the public key of the initiator with this name."""
    try:
        found = keys.read(file)
    except keys.KeyProblem:
        return False
    return (found.role, found.name, found.secret) == ("initiator", name, "")


def _is_ssh(file: Path) -> bool:
    try:
        return bool(_SSH.fullmatch(read_regular(file, SSH_KEY_FILE).decode()))
    except (OSError, UnicodeDecodeError):
        return False
