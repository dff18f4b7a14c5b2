"""Makes and reads the Ed25519 keys of signatures, in PEM, as OpenSSL has them.

A directory holds whose signatures count::

    NAME.pub            a public key
    revoked/NAME.pub    one that counts no more, and refuses what it signed
    own.key             the private key of this machine, made when it first signs (mode 0600)
    own.pub             its public key, for others
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fabric.bounds import SIGNING_KEY_FILE, TRUSTED_KEYS
from fabric.errors import FabricError, suggest
from fabric.host.files import read_regular, write_whole
from fabric.host.key_files import NAME, NAME_RULE, others_may_read

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

#: Seconds after which keys are read again, though their directory shows no change.
AGAIN = 1.0
OWN = "own"
REVOKED = "revoked"


class SigningProblem(FabricError):
    """A key of signatures is missing or unusable, or the library is."""


class UnusableKey(SigningProblem):
    """A file is not a public key that can be read."""


class PublicKey(NamedTuple):
    """A key whose signatures count, or do not any more."""

    name: str
    id: str  # SHA-256 of its DER
    key: Ed25519PublicKey
    revoked: bool = False

    def signed(self, content: bytes, signature: bytes) -> bool:
        """Whether the signature of ``content`` is this key's."""
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature, content)
        except InvalidSignature:
            return False
        return True


class Signer(NamedTuple):
    """A private key."""

    id: str  # as of its `PublicKey`
    key: Ed25519PrivateKey

    def sign(self, content: bytes) -> bytes:
        """The signature: 64 bytes."""
        return self.key.sign(content)


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
                write_whole(public, _public_pem(signer.key.public_key()), 0o644)
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
    ed25519, serialization = _library()
    try:
        key = serialization.load_pem_public_key(read_regular(file, SIGNING_KEY_FILE))
    except OSError as error:
        raise UnusableKey(f"{file}: the key cannot be read: {error.strerror}") from None
    except Exception:  # noqa: BLE001 - the library raises many kinds of errors
        key = None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UnusableKey(f"{file} is not a public key of Ed25519 in PEM")
    return PublicKey(name, _id(key), key, revoked)


def _read_private(file: Path) -> Signer:
    ed25519, serialization = _library()
    content = read_regular(file, SIGNING_KEY_FILE)
    if others_may_read(file):
        raise SigningProblem(f"{file}: other users may read this private key: chmod 600 {file}")
    try:
        key = serialization.load_pem_private_key(content, None)
    except Exception:  # noqa: BLE001 - the library raises many kinds of errors
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SigningProblem(f"{file} is not a private key of Ed25519 in PEM, without a password")
    return Signer(_id(key.public_key()), key)


def _make(path: Path) -> None:
    """Make a private key, unless another process is first."""
    ed25519, serialization = _library()
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
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


def _public_pem(key: Ed25519PublicKey) -> bytes:
    _, serialization = _library()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _id(key: Ed25519PublicKey) -> str:
    _, serialization = _library()
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def _library() -> tuple[Any, Any]:
    """Modules of the extra `signatures`, which take a while to load."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise SigningProblem(
            f"signatures need {error.name}, which is not installed: pip install"
            " 'distbuild[signatures]'; or leave the setting trusted-keys empty"
        ) from None
    return ed25519, serialization
