"""Manages CURVE keys in ZeroMQ's certificate files, and the table of authorized keys.

Each machine or person has a key pair: ``NAME.key_secret`` (mode 0600; it never leaves its
directory) and ``NAME.key``, whose metadata contains name and role.  Workers and initiators also
need the broker's public key, ``broker.key``.  The broker accepts the keys in ``admitted/``; these
files alone determine a peer's name and role.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import zmq
from zmq.utils import z85

from fabric.bounds import ADMITTED_KEYS, KEY_FILE
from fabric.errors import PASSING, FabricError
from fabric.host.files import read_regular
from fabric.wire.sockets import Context, Curve

Role = Literal["broker", "worker", "initiator"]
ROLES: tuple[Role, ...] = get_args(Role)
BROKER = "broker"
ADMITTED = "admitted"
#: Whom each of the broker's sockets is for.
ROLES_BY_SOCKET: dict[bytes, tuple[Role, ...]] = {
    b"jobs": ("worker", "initiator"),
    b"logs-in": ("worker",),
    b"logs": ("initiator",),
}
#: Connections that are let in or not at one go.
HANDSHAKES_AT_ONCE = 200
#: Seconds between two looks at the table for strangers.
REFRESH_EVERY = 0.05
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_LINE = re.compile(r'\s+(name|role|public-key|secret-key)\s*=\s*"?([^"\s]+)"?\s*\Z')


class KeyProblem(FabricError):
    """A key is missing, or is not what it should be."""


class Unreadable(KeyProblem):
    """A file is there, and cannot be read now."""


class Certificate(NamedTuple):
    """A public key, with the secret one if it is one's own; both in Z85, 40 characters."""

    name: str
    role: Role
    public: str
    secret: str = ""

    def __repr__(self) -> str:
        return f"Certificate({self.role} {self.name}, {self.public})"


def check_name(name: str) -> str:
    """The name, if it is fit to be one.  KeyProblem otherwise."""
    if not _NAME.match(name):
        raise KeyProblem(
            f"{name!r} cannot be a name: it has letters, digits, and . _ - behind the first,"
            " 63 at most"
        )
    return name


def make(role: Role, name: str, directory: Path) -> Path:
    """A new pair of keys in ``directory``; returns the public one's file.

    KeyProblem if there is a pair of that name.  The secret one is nobody else's to read, and
    whole when it appears.
    """
    check_name(name)
    public_file, secret_file = directory / f"{name}.key", directory / f"{name}.key_secret"
    for file in (secret_file, public_file):
        if file.exists():
            raise KeyProblem(f"{file} is there already; remove it if {name} is to have a new key")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    certificate = Certificate(name, role, public, secret)
    _write(public_file, certificate._replace(secret=""), 0o644)
    _write(secret_file, certificate, 0o600)
    return public_file


def read(path: Path) -> Certificate:
    """The certificate in a file.  KeyProblem if there is none, or others may read a secret."""
    try:
        text = read_regular(path, KEY_FILE).decode()
        mode = path.stat().st_mode
    except UnicodeDecodeError:
        raise KeyProblem(f"{path}: the key cannot be read: it is no text") from None
    except OSError as error:
        kind = Unreadable if error.errno in PASSING else KeyProblem
        raise kind(f"{path}: the key cannot be read: {error.strerror}") from None
    found = {m[1]: m[2] for line in text.split("\n") if (m := _LINE.match(line))}
    name, role, public = (found.get(what, "") for what in ("name", "role", "public-key"))
    secret = found.get("secret-key", "")
    if not _NAME.match(name) or role not in ROLES:
        raise KeyProblem(f"{path} is no key of ours: it does not say a name and a role")
    for key in (public, secret) if secret else (public,):
        if not _is_key(key):
            raise KeyProblem(f"{path} is no key of ours: a key has 40 characters of Z85")
    if secret and stat.S_IMODE(mode) & 0o077:
        raise KeyProblem(f"{path}: others may read this secret key: chmod 600 {path}")
    return Certificate(name, role, public, secret)


def of_broker(directory: Path) -> Curve:
    """What the broker's sockets need.  KeyProblem if it is not there."""
    path = directory / f"{BROKER}.key_secret"
    if not path.exists():
        raise KeyProblem(
            f"{path}: no such file; `fabric-keys make broker --to {directory}` makes the"
            " controller's key"
        )
    own = read(path)
    return Curve(own.public.encode(), own.secret.encode())


def of_peer(directory: Path, role: Role) -> tuple[str, Curve]:
    """The name in a peer's key, and what its sockets need.  KeyProblem if that is not there."""
    secrets = sorted(set(directory.glob("*.key_secret")) - {directory / f"{BROKER}.key_secret"})
    if len(secrets) != 1:
        what = "there is no key" if not secrets else "there are the keys of several"
        raise KeyProblem(
            f"{directory}: {what} here, and it should be one NAME.key_secret;"
            f" `fabric-keys make {role} NAME --to {directory}` makes it"
        )
    own = read(secrets[0])
    if own.role != role or not own.secret:
        raise KeyProblem(f"{secrets[0]} is the key of the {own.role} {own.name}, and of no {role}")
    broker = directory / f"{BROKER}.key"
    if not broker.exists():
        raise KeyProblem(f"{broker}: no such file; copy it from the controller's keys")
    server = read(broker).public
    return own.name, Curve(own.public.encode(), own.secret.encode(), server.encode())


# -- those admitted ------------------------------------------------------------------------


class AuthorizedKeys:
    """The table of those admitted, as ``admitted/`` says; `refresh` looks whether it changed."""

    def __init__(self, directory: Path) -> None:
        """``directory`` holds ``admitted/``, which is made.  KeyProblem if it cannot be."""
        self.directory = directory / ADMITTED
        self.problems: list[str] = []  # files that are no good
        self._seen: object = None
        self._peers: dict[str, Certificate] = {}  # by public key
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KeyProblem(f"{self.directory}: {error.strerror}") from None
        self.refresh()

    def get(self, public: str) -> Certificate | None:
        """Whose key this is; None if nobody's who is admitted."""
        return self._peers.get(public)

    def all(self) -> list[Certificate]:
        """Everybody, by name."""
        return sorted(self._peers.values())

    def refresh(self) -> bool:
        """Look again.  Whether somebody is not admitted any more, or as somebody else."""
        try:
            with os.scandir(self.directory) as entries:
                seen = sorted(_identity(entry) for entry in entries if entry.name.endswith(".key"))
        except OSError as error:  # whoever was admitted stays so meanwhile
            self.problems = [f"{self.directory}: {error.strerror}"]
            return False
        if seen == self._seen:
            return False
        self._seen = seen
        before, self._peers, self.problems = self._peers, {}, []
        if len(seen) > ADMITTED_KEYS:
            last = seen[ADMITTED_KEYS - 1][0]
            self.problems.append(
                f"{self.directory} has {len(seen):,} keys, and at most {ADMITTED_KEYS:,} are"
                f" admitted, in the order of their names up to {last}: revoke some"
            )
        stays = {f"{peer.name}.key": peer for peer in before.values()}
        for name, *_ in seen[:ADMITTED_KEYS]:
            try:
                self._add(read(self.directory / name), name)
            except Unreadable as problem:  # whoever was admitted stays so meanwhile
                self._seen = None
                self.problems.append(str(problem))
                if name in stays:
                    self._add(stays[name], name)
            except KeyProblem as problem:
                self.problems.append(str(problem))
        return any(self._peers.get(key) != peer for key, peer in before.items())

    def _add(self, peer: Certificate, file: str) -> None:
        if peer.role == BROKER or peer.secret:
            raise KeyProblem(f"{self.directory / file} is not the public key of a peer")
        if file != f"{peer.name}.key":
            raise KeyProblem(f"{self.directory / file} should be {peer.name}.key, as it says")
        if (other := self._peers.get(peer.public)) is not None:
            raise KeyProblem(f"{self.directory / file} is the same key as {other.name}'s")
        self._peers[peer.public] = peer

    def admit(self, file: Path) -> Certificate:
        """Admit whoever has this public key.  KeyProblem if another of that name is admitted."""
        peer = read(file)
        if peer.secret:
            raise KeyProblem(f"{file} is a secret key: admit the public one, {peer.name}.key")
        if peer.role == BROKER:
            raise KeyProblem(f"{file} is the controller's key, which needs no admission")
        for known in self.all():
            if known == peer:
                return peer
            if known.name == peer.name:
                raise KeyProblem(
                    f"another {known.role} is admitted as {peer.name}: revoke it first"
                )
            if known.public == peer.public:
                raise KeyProblem(f"this key is admitted as {known.name} already")
        _write(self.directory / f"{peer.name}.key", peer, 0o644)
        return peer

    def revoke(self, name: str) -> None:
        """Let this one in no more.  KeyProblem if it is not admitted."""
        try:
            (self.directory / f"{check_name(name)}.key").unlink()
        except FileNotFoundError:
            raise KeyProblem(f"{name} is not admitted, according to {self.directory}") from None


class Authenticator:
    """ZeroMQ's question who may connect (ZAP, RFC 27), answered in the broker's own loop.

    pyzmq's authenticator would do, with a thread that must be told of every change, and knows
    no roles; this one reads the broker's own table, and is short.
    """

    def __init__(self, context: Context, admitted: AuthorizedKeys) -> None:
        """Must be there before sockets that use it are bound."""
        self.socket = context.socket(zmq.REP)
        self.socket.bind("inproc://zeromq.zap.01")
        self._admitted = admitted
        self._refreshed = float("-inf")
        self._blocked: dict[str, float] = {}  # name -> until when
        #: somebody was found not to be admitted any more
        self.revoked = False

    def block(self, name: str, until: float) -> None:
        """Do not let this one in to follow logs for a while."""
        self._blocked[name] = until

    def serve(self, now: float) -> None:
        """Answer all that ask."""
        for _ in range(HANDSHAKES_AT_ONCE):
            try:
                version, id, domain, _, _, _, *credentials = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            key = z85.encode(credentials[0]).decode() if credentials else ""
            peer = self._admitted.get(key)
            if peer is None and now - self._refreshed >= REFRESH_EVERY:  # admitted a moment ago?
                self._refreshed = now
                self.revoked |= self._admitted.refresh()
                peer = self._admitted.get(key)
            authorized = peer is not None and peer.role in ROLES_BY_SOCKET.get(domain, ())
            code, user = (b"200", key.encode()) if authorized else (b"400", b"")
            if peer is not None and domain == b"logs" and now < self._blocked.get(peer.name, now):
                code, user = b"300", b""  # it may try again
            self.socket.send_multipart([version, id, code, b"", user, b""])


# -- files ---------------------------------------------------------------------------------


def _identity(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    """What tells whether a file is another one than before; a link to nothing is never."""
    try:
        found = entry.stat()
    except OSError:
        return entry.name, 0, 0, 0
    return entry.name, found.st_mtime_ns, found.st_ino, found.st_size


def _is_key(text: str) -> bool:
    try:
        return len(text) == 40 and len(z85.decode(text.encode())) == 32
    except (ValueError, KeyError):
        return False


def _write(path: Path, certificate: Certificate, mode: int) -> None:
    """Write ZeroMQ's format, all at once."""
    kind = "Secret key: keep it here, and from everybody." if certificate.secret else "Public key."
    text = (
        f"#   {kind}\n\nmetadata\n    name = {certificate.name}\n    role = {certificate.role}\n"
        f'curve\n    public-key = "{certificate.public}"\n'
    )
    if certificate.secret:
        text += f'    secret-key = "{certificate.secret}"\n'
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(file, "w") as output:
            os.fchmod(output.fileno(), mode)
            output.write(text)
            output.flush()
            os.fsync(output.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise KeyProblem(f"{path}: cannot be written: {error.strerror}") from None
