"""Makes and reads the Ed25519 keys of signatures, in PEM, as OpenSSL has them.

A directory holds whose signatures count::

    NAME.pub            a public key
    revoked/NAME.pub    one that counts no more, and refuses what it signed
    own.key             the private key of this machine, made when it first signs (mode 0600)
    own.pub             its public key, for others
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from fabric.bounds import SIGNING_KEY_FILE, TRUSTED_KEYS
from fabric.errors import FabricError, suggest
from fabric.host.files import read_regular, write_whole
from fabric.host.key_files import NAME, NAME_RULE, others_may_read

if TYPE_CHECKING:
    from nacl.signing import SigningKey, VerifyKey

#: Seconds after which keys are read again, though their directory shows no change.
AGAIN = 1.0
OWN = "own"
REVOKED = "revoked"
#: What stands before the 32 bytes of a key in its DER (RFC 8410), by the label of its PEM.
_PREFIX = {
    "PUBLIC KEY": bytes.fromhex("302a300506032b6570032100"),
    "PRIVATE KEY": bytes.fromhex("302e020100300506032b657004220420"),
}


class SigningProblem(FabricError):
    """A key of signatures is missing or unusable, or the library is."""


class UnusableKey(SigningProblem):
    """A file is not a public key that can be read."""


class PublicKey(NamedTuple):
    """A key whose signatures count, or do not any more."""

    name: str
    id: str  # SHA-256 of its DER
    key: VerifyKey
    revoked: bool = False

    def signed(self, content: bytes, signature: bytes) -> bool:
        """Whether the signature of ``content`` is this key's."""
        from nacl.exceptions import BadSignatureError

        try:
            self.key.verify(content, signature)
        except (BadSignatureError, ValueError):  # it is false, or not of 64 bytes
            return False
        return True


class Signer(NamedTuple):
    """A private key."""

    id: str  # as of its `PublicKey`
    key: SigningKey

    def sign(self, content: bytes) -> bytes:
        """The signature: 64 bytes."""
        return self.key.sign(content).signature


class _Read(NamedTuple):
    """The keys, and when they were read."""

    files: tuple[PublicKey, ...]  # a key may have several, with different names
    keys: Mapping[str, PublicKey]  # by id
    unusable: Mapping[str, str]  # name -> why it cannot be read
    folders: tuple[object, ...]
    until: float  # read them again then


class TrustedKeys:
    """The public keys in a directory, which is read again as soon as it has changed.

    A file that is changed in its place, or within the same tick of the file system's clock as
    another, leaves no trace in its directory: so all are read again after `AGAIN` seconds.

    A trusted key that is unusable costs only its own signatures.  A revoked one stops all: without
    it, what it signed could count again.
    """

    def __init__(self, directory: Path, warn: Callable[[str], object] = lambda _: None) -> None:
        """``warn`` is told of each unusable key, again only after the text about it has changed."""
        self.directory = directory
        self._warn = warn
        self._read: _Read | None = None  # replaced as a whole, since threads share it

    def __str__(self) -> str:
        return str(self.directory)

    def all(self) -> list[PublicKey]:
        """The keys, sorted by name; one with two names is there twice, and revoked in both.

        SigningProblem if a revoked one is unusable.
        """
        return sorted(self._now().files, key=lambda one: (one.name, one.revoked))

    def named(self, name: str) -> PublicKey:
        """The trusted key of a name.  SigningProblem if there is none, or it is revoked."""
        known = {one.name: one for one in self.all() if not one.revoked}
        if problem := self._now().unusable.get(name):
            raise SigningProblem(problem)
        if name not in known:
            raise SigningProblem(
                f"{self.directory} has no trusted key {name}{suggest(name, known)}"
            )
        return known[name]

    def by_id(self) -> Mapping[str, PublicKey]:
        """The keys as they are now; the same mapping until they are read again.

        SigningProblem if a revoked one is unusable.
        """
        return self._now().keys

    def _now(self) -> _Read:
        now = time.monotonic()
        folders = tuple(_changed(one) for one in (self.directory, self.directory / REVOKED))
        read = self._read
        if read is not None and read.folders == folders and now < read.until:
            return read
        unusable: dict[str, str] = {}
        trusted = _public_keys(self.directory, unusable)
        revoked = _public_keys(self.directory / REVOKED)
        if len(trusted) + len(unusable) + len(revoked) > TRUSTED_KEYS:
            raise SigningProblem(f"{self.directory} has more than {TRUSTED_KEYS:,} keys")
        gone = {one.id for one in revoked}
        files = tuple(one._replace(revoked=one.id in gone) for one in (*trusted, *revoked))
        keys = {one.id: one for one in files}
        told = self._read.unusable if self._read else {}
        self._read = read = _Read(files, keys, unusable, folders, now + AGAIN)
        for name, problem in unusable.items():
            if told.get(name) != problem:
                self._warn(f"{problem}: signatures of this key do not count")
        return read

    def signer(self) -> Signer:
        """The own key, which is made if there is none.

        SigningProblem if that is impossible, or its signatures would not count.
        """
        path = self.directory / f"{OWN}.key"
        try:
            if not path.exists():
                _make(path)
            signer = _read_private(path)
            public = path.with_suffix(".pub")
            if not public.exists():
                write_whole(public, _public_pem(signer.key.verify_key), 0o644)
        except OSError as error:
            raise SigningProblem(
                f"{path}: the key that signs cannot be made or read: {error.strerror}; see the"
                " setting trusted-keys"
            ) from None
        known = self.by_id().get(signer.id)
        if known is None:
            raise SigningProblem(
                f"{path.with_suffix('.pub')} is not the public key of {path.name}: rename it to go"
                " on trusting it, or remove it"
            )
        if known.revoked:
            raise SigningProblem(f"{path}: this key is revoked; `fabric-keys renew` makes another")
        return signer

    def trust(self, file: Path, name: str = "") -> PublicKey:
        """Let the signatures of a public key count.

        SigningProblem if it is not a public key, is revoked, or its name belongs to another.
        """
        name = name or file.stem
        if not NAME.match(name):
            raise SigningProblem(f"{name!r} is not a valid name of a key: {NAME_RULE}")
        found = _read_public(file, name, revoked=False)
        for known in self.all():
            if known.id == found.id and known.revoked:
                raise SigningProblem(f"{file}: this key is revoked, as {known.name}")
            if known.id == found.id:
                return known
            if known.name == name:
                raise SigningProblem(f"another key is known as {name}: give this one another name")
        if name == OWN:
            raise SigningProblem(f"{OWN} is the name of this machine's key: give another: --name")
        try:
            _make_folder(self.directory)
            # no more than the key: the file may have others, also private ones
            write_whole(self.directory / f"{name}.pub", _public_pem(found.key), 0o644)
        except OSError as error:
            raise SigningProblem(f"{self.directory}: {error.strerror}") from None
        return found

    def revoke(self, name: str) -> None:
        """Refuse what a key signed, from now on.  SigningProblem if there is no such key."""
        known = self.named(name)
        try:
            _make_folder(self.directory / REVOKED)
            public = self.directory / f"{name}.pub"
            public.rename(self.directory / REVOKED / f"{name}-{known.id[:12]}.pub")
            if name == OWN:
                (self.directory / f"{OWN}.key").unlink(missing_ok=True)
        except OSError as error:
            raise SigningProblem(f"{self.directory}: {error.strerror}") from None

    def renew(self) -> Signer:
        """Sign with a new own key; what the former one signed still counts.

        SigningProblem if the own public key is unusable.
        """
        own = [one for one in self.all() if one.name == OWN]
        if problem := self._now().unusable.get(OWN):
            raise SigningProblem(problem)
        try:
            for one in own:  # it may be revoked, under the name that others have for this machine
                public = self.directory / f"{OWN}.pub"
                public.rename(self.directory / f"{OWN}-{one.id[:12]}.pub")
            (self.directory / f"{OWN}.key").unlink(missing_ok=True)
        except OSError as error:
            raise SigningProblem(f"{self.directory}: {error.strerror}") from None
        return self.signer()


def _changed(directory: Path) -> tuple[int, int]:
    try:
        found = directory.stat()
    except FileNotFoundError:
        return 0, 0  # none is trusted yet
    except OSError as error:
        raise SigningProblem(
            f"{directory}: the keys of signatures cannot be read: {error.strerror}"
        ) from None
    return found.st_mtime_ns, found.st_ino


def _public_keys(directory: Path, unusable: dict[str, str] | None = None) -> list[PublicKey]:
    """The trusted keys in a directory, and in ``unusable`` why others cannot be read, by name.

    Without ``unusable``, they are the revoked ones: UnusableKey if one cannot be read.
    """
    try:
        files = sorted(one for one in directory.iterdir() if one.suffix == ".pub")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SigningProblem(
            f"{directory}: the keys of signatures cannot be read: {error.strerror}"
        ) from None
    found = []
    for file in files[: TRUSTED_KEYS + 1]:
        try:
            found.append(_read_public(file, file.stem, revoked=unusable is None))
        except UnusableKey as problem:
            if unusable is None:
                raise
            unusable[file.stem] = str(problem)
    return found


def _read_public(file: Path, name: str, *, revoked: bool) -> PublicKey:
    library = _library()
    try:
        raw = _of_pem(read_regular(file, SIGNING_KEY_FILE), "PUBLIC KEY")
    except OSError as error:
        raise UnusableKey(f"{file}: the key cannot be read: {error.strerror}") from None
    if raw is None:
        raise UnusableKey(f"{file} is not a public key of Ed25519 in PEM")
    key = library.VerifyKey(raw)
    return PublicKey(name, _id(key), key, revoked)


def _read_private(file: Path) -> Signer:
    library = _library()
    content = read_regular(file, SIGNING_KEY_FILE)
    if others_may_read(file):
        raise SigningProblem(f"{file}: other users may read this private key: chmod 600 {file}")
    raw = _of_pem(content, "PRIVATE KEY")
    if raw is None:
        raise SigningProblem(f"{file} is not a private key of Ed25519 in PEM, without a password")
    key = library.SigningKey(raw)
    return Signer(_id(key.verify_key), key)


def _make(path: Path) -> None:
    """Make a private key, unless another process is first."""
    pem = _pem(_library().SigningKey.generate().encode(), "PRIVATE KEY")
    _make_folder(path.parent)
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        Path(fresh).unlink()


def _make_folder(folder: Path) -> None:
    """Make a directory that a service of another user can read, whatever the umask."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)


def _public_pem(key: VerifyKey) -> bytes:
    return _pem(key.encode(), "PUBLIC KEY")


def _id(key: VerifyKey) -> str:
    return hashlib.sha256(_PREFIX["PUBLIC KEY"] + key.encode()).hexdigest()


def _pem(raw: bytes, label: str) -> bytes:
    text = base64.b64encode(_PREFIX[label] + raw).decode()
    return f"-----BEGIN {label}-----\n{text}\n-----END {label}-----\n".encode()


def _of_pem(content: bytes, label: str) -> bytes | None:
    """The first key of a PEM file, 32 bytes.  None if there is none, or it is not of Ed25519."""
    _, begun, rest = content.partition(f"-----BEGIN {label}-----".encode())
    text, ended, _ = rest.partition(f"-----END {label}-----".encode())
    if not begun or not ended:
        return None
    try:
        der = base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError:
        return None
    prefix, raw = der[:-32], der[-32:]
    return raw if prefix == _PREFIX[label] else None


def _library() -> ModuleType:
    """The module of the extra `signatures`, which takes a while to load."""
    try:
        from nacl import signing
    except ImportError as error:
        raise SigningProblem(
            f"signatures need {error.name}, which is not installed: pip install"
            " 'distbuild[signatures]'; or leave the setting trusted-keys empty"
        ) from None
    return signing
