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
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import zmq
from zmq.utils import z85

from fabric.bounds import ADMITTED_KEYS, KEY_FILE
from fabric.errors import PASSING, FabricError, suggest
from fabric.host.files import read_regular
from fabric.host.key_files import NAME, NAME_RULE, others_may_read
from fabric.wire.sockets import Context, Curve

Role = Literal["broker", "worker", "initiator", "viewer"]
ROLES: tuple[Role, ...] = get_args(Role)
BROKER = "broker"
ADMITTED = "admitted"
#: Roles that may connect to each of the broker's sockets.
ROLES_BY_SOCKET: dict[bytes, tuple[Role, ...]] = {
    b"jobs": ("worker", "initiator", "viewer"),
    b"logs-in": ("worker",),
    b"logs": ("initiator", "viewer"),
}
#: Roles that include another one: the key of an initiator also serves a web page of its owner.
INCLUDED_IN: dict[Role, tuple[Role, ...]] = {"viewer": ("initiator",)}
#: Handshakes answered in one turn.
HANDSHAKES_AT_ONCE = 200
#: Seconds between two reads of the table because of unknown keys.
REFRESH_EVERY = 0.05
_LINE = re.compile(r'\s+(name|role|public-key|secret-key)\s*=\s*"?([^"\s]+)"?\s*\Z')


class KeyProblem(FabricError):
    """A key is missing or unusable."""


class Unreadable(KeyProblem):
    """A file exists, but cannot be read at the moment."""


class Certificate(NamedTuple):
    """A public key and, in the owner's file, the secret key; each is 40 characters of Z85."""

    name: str
    role: Role
    public: str
    secret: str = ""

    def __repr__(self) -> str:
        return f"Certificate({self.role} {self.name}, {self.public})"


def check_name(name: str) -> str:
    """Returns ``name``.  KeyProblem if it is not valid."""
    if not NAME.match(name):
        raise KeyProblem(f"{name!r} is not a valid name: {NAME_RULE}")
    return name


def make(role: Role, name: str, directory: Path) -> Path:
    """Makes a key pair in ``directory``; returns the file of the public key.

    The file of the secret key has mode 0600 and appears complete.  KeyProblem if a pair of that
    name exists, or a file cannot be written.
    """
    check_name(name)
    public_file, secret_file = directory / f"{name}.key", directory / f"{name}.key_secret"
    for file in (secret_file, public_file):
        if file.exists():
            raise KeyProblem(f"{file} exists already; to give {name} a new key, remove it first")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    certificate = Certificate(name, role, public, secret)
    _write(public_file, certificate._replace(secret=""), 0o644)
    _write(secret_file, certificate, 0o600)
    return public_file


def read(path: Path) -> Certificate:
    """Reads a certificate.

    KeyProblem if the file is not one, or if others may read a secret key.  Unreadable if the system
    cannot read the file at the moment.
    """
    try:
        text = read_regular(path, KEY_FILE).decode()
        shared = others_may_read(path)
    except UnicodeDecodeError:
        raise KeyProblem(f"{path}: the key cannot be read: it is not text") from None
    except OSError as error:
        kind = Unreadable if error.errno in PASSING else KeyProblem
        raise kind(f"{path}: the key cannot be read: {error.strerror}") from None
    found = {m[1]: m[2] for line in text.split("\n") if (m := _LINE.match(line))}
    name, role, public = (found.get(what, "") for what in ("name", "role", "public-key"))
    secret = found.get("secret-key", "")
    if not NAME.match(name) or role not in ROLES:
        raise KeyProblem(f"{path} is not a key file of distbuild: name or role is missing")
    for key in (public, secret) if secret else (public,):
        if not _is_key(key):
            raise KeyProblem(
                f"{path} is not a key file of distbuild: a key is 40 characters of Z85"
            )
    if secret and shared:
        raise KeyProblem(f"{path}: other users may read this secret key: chmod 600 {path}")
    return Certificate(name, role, public, secret)


def of_broker(directory: Path) -> Curve:
    """The keys of the broker's sockets.  KeyProblem if they are missing."""
    path = directory / f"{BROKER}.key_secret"
    if not path.exists():
        raise KeyProblem(
            f"{path}: no such file; `fabric-keys make broker --to {directory}` makes the"
            " controller's key"
        )
    own = read(path)
    return Curve(own.public.encode(), own.secret.encode())


def of_peer(directory: Path, role: Role) -> tuple[str, Curve]:
    """The name of a peer's key, and the keys of its sockets.

    KeyProblem unless ``directory`` contains one secret key, of this role or one that includes it,
    and ``broker.key``.
    """
    secrets = sorted(set(directory.glob("*.key_secret")) - {directory / f"{BROKER}.key_secret"})
    if len(secrets) != 1:
        if secrets:
            found = ", ".join(file.name for file in secrets)
            raise KeyProblem(
                f"{directory}: one secret key is needed here, not {found}; move others"
            )
        make = f"`fabric-keys make {role} NAME --to {directory}`"
        raise KeyProblem(f"{directory}: there is no key NAME.key_secret here; {make} makes one")
    own = read(secrets[0])
    if own.role not in (role, *INCLUDED_IN.get(role, ())) or not own.secret:
        raise KeyProblem(
            f"{secrets[0]} is the key of the {own.role} {own.name}, and its role is not {role}"
        )
    broker = directory / f"{BROKER}.key"
    if not broker.exists():
        raise KeyProblem(f"{broker}: no such file; copy it from the controller's keys")
    server = read(broker).public
    return own.name, Curve(own.public.encode(), own.secret.encode(), server.encode())


# -- authorized keys -----------------------------------------------------------------------


class AuthorizedKeys:
    """The public keys in ``admitted/``; `refresh` reads the directory again."""

    def __init__(self, directory: Path) -> None:
        """Makes ``admitted/`` in ``directory``.  KeyProblem if that is not possible."""
        self.directory = directory / ADMITTED
        self.problems: list[str] = []  # a text for each unusable file
        self._seen: object = None
        self._peers: dict[str, Certificate] = {}  # by public key
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KeyProblem(f"{self.directory}: {error.strerror}") from None
        self.refresh()

    def get(self, public: str) -> Certificate | None:
        """The peer with this public key, in Z85; None if it is not authorized."""
        return self._peers.get(public)

    def all(self) -> list[Certificate]:
        """All authorized peers, sorted by name."""
        return sorted(self._peers.values())

    def refresh(self) -> bool:
        """Read the directory again; True if a peer was removed, or has another role or key.

        Peers whose files cannot be read at the moment stay authorized.
        """
        try:
            with os.scandir(self.directory) as entries:
                seen = sorted(_identity(entry) for entry in entries if entry.name.endswith(".key"))
        except OSError as error:
            self.problems = [f"{self.directory}: {error.strerror}"]
            return False
        if seen == self._seen:
            return False
        self._seen = seen
        before, self._peers, self.problems = self._peers, {}, []
        if len(seen) > ADMITTED_KEYS:
            last = seen[ADMITTED_KEYS - 1][0]
            self.problems.append(
                f"{self.directory} has {len(seen):,} keys, and only the first {ADMITTED_KEYS:,} by"
                f" name are admitted, up to {last}: revoke some"
            )
        stays = {f"{peer.name}.key": peer for peer in before.values()}
        for name, *_ in seen[:ADMITTED_KEYS]:
            try:
                self._add(read(self.directory / name), name)
            except Unreadable as problem:
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
            raise KeyProblem(f"{self.directory / file} must be named {peer.name}.key")
        if (other := self._peers.get(peer.public)) is not None:
            raise KeyProblem(f"{self.directory / file} is the key of {other.name}, too")
        self._peers[peer.public] = peer

    def admit(self, file: Path) -> Certificate:
        """Authorize the peer with this public key.

        KeyProblem if it is not a peer's public key, or its name or key belongs to another peer.
        """
        peer = read(file)
        if peer.secret:
            raise KeyProblem(f"{file} is a secret key: admit the public one, {peer.name}.key")
        if peer.role == BROKER:
            raise KeyProblem(f"{file} is the controller's own key: it is not admitted")
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
        """Remove the key of this name.  KeyProblem if it is not authorized."""
        try:
            (self.directory / f"{check_name(name)}.key").unlink()
        except FileNotFoundError:
            hint = suggest(name, [file.stem for file in self.directory.glob("*.key")])
            raise KeyProblem(
                f"{name} is not admitted: {self.directory} has no such key{hint}"
            ) from None


class Authenticator:
    """Answers ZeroMQ's authentication requests (ZAP, RFC 27) in the broker's loop.

    pyzmq's authenticator has no roles, and needs a thread that is notified of every change.
    """

    def __init__(self, context: Context, admitted: AuthorizedKeys) -> None:
        """Make it before sockets that use it are bound."""
        self.socket = context.socket(zmq.REP)
        self.socket.bind("inproc://zeromq.zap.01")
        self._admitted = admitted
        self._refreshed = float("-inf")
        self._blocked: dict[str, float] = {}  # name -> time at which the block ends
        #: `serve` found that a peer is not authorized any more
        self.revoked = False

    def block(self, name: str, until: float) -> None:
        """Reject connections of this name to the log socket until then."""
        self._blocked[name] = until

    def serve(self, now: float) -> None:
        """Answer the pending requests."""
        for _ in range(HANDSHAKES_AT_ONCE):
            try:
                version, id, domain, _, _, _, *credentials = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            key = z85.encode(credentials[0]).decode() if credentials else ""
            peer = self._admitted.get(key)
            if peer is None and now - self._refreshed >= REFRESH_EVERY:  # its key may be new
                self._refreshed = now
                self.revoked |= self._admitted.refresh()
                peer = self._admitted.get(key)
            authorized = peer is not None and peer.role in ROLES_BY_SOCKET.get(domain, ())
            code, user = (b"200", key.encode()) if authorized else (b"400", b"")
            if peer is not None and domain == b"logs" and now < self._blocked.get(peer.name, now):
                code, user = b"300", b""  # temporary: ZeroMQ tries again
            self.socket.send_multipart([version, id, code, b"", user, b""])


# -- files ---------------------------------------------------------------------------------


def _identity(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    """Values that change when a file is replaced or edited; constant for a dangling link."""
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
    """Write a certificate in ZeroMQ's format, atomically."""
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
