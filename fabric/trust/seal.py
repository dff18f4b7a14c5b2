"""Signs what is in a store: manifests and hints; and opens those that a trusted key signed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fabric.host.terminal import one_line
from fabric.trust import envelopes
from fabric.trust.envelopes import Envelope, Signature

if TYPE_CHECKING:
    from fabric.trust.signing import PublicKey, Signer, TrustedKeys

#: Types of what is signed, in their envelopes.
MANIFEST = "application/vnd.distbuild.manifest"
HINT = "application/vnd.distbuild.hint"
#: Most signatures that are remembered as right; to check one takes as long as to read a manifest.
REMEMBERED = 10_000


class UnsignedError(ValueError):
    """No trusted key signed this, or a revoked one did."""


class Seal:
    """Signs with the own key of ``keys``, and trusts all of them.  Thread-safe."""

    def __init__(self, keys: TrustedKeys) -> None:
        self._keys = keys
        self._signer: tuple[object, Signer] | None = None  # with the keys of then
        self._right: set[bytes] = set()  # a signature that was right stays so

    def prepare(self) -> None:
        """Load the own key, or make it.  SigningProblem if that is impossible."""
        self._own()

    @property
    def own_id(self) -> str:
        """The id of the own key.  SigningProblem if there is none, nor can be."""
        return self._own().id

    def trusted(self, name: str) -> PublicKey:
        """The trusted key of a name.  SigningProblem if there is none of that name."""
        return self._keys.named(name)

    def close(self, kind: str, content: bytes) -> bytes:
        """``content`` of a type in a signed envelope.

        SigningProblem if there is no key, nor can be.
        """
        signer = self._own()
        signed = envelopes.signed_bytes(kind, content)
        signature = signer.sign(signed)
        self._remember(_seen(signer.id, signature, signed))
        signatures = (Signature(envelopes.text(signature), signer.id),)
        return envelopes.encode(Envelope(envelopes.text(content), kind, signatures))

    def _own(self) -> Signer:
        known = self._signer
        if known is None or known[0] is not self._keys.by_id():
            signer = self._keys.signer()
            known = self._signer = self._keys.by_id(), signer
        return known[1]

    def open(self, kind: str, data: bytes) -> bytes:
        """The content of an envelope of a type that a trusted key signed.

        UnsignedError if none did; ValueError if it is no envelope of that type.
        """
        return self.opened(kind, data)[0]

    def opened(self, kind: str, data: bytes) -> tuple[bytes, list[PublicKey]]:
        """The content, as of `open`, and the trusted keys that signed it, each once."""
        keys = self._keys.by_id()
        envelope = read_envelope(kind, data)
        content = envelope.content
        signed = envelopes.signed_bytes(kind, content)
        found = {
            key.id: key
            for one in envelope.signatures
            for key in _may_have_made(one, keys)
            if self._is_right(key, envelopes.raw(one), signed)
        }
        by = list(found.values())
        _judge(envelope, by, keys, self._keys)
        return content, by

    def _is_right(self, key: PublicKey, signature: bytes, signed: bytes) -> bool:
        seen = _seen(key.id, signature, signed)
        if seen in self._right:
            return True
        right = key.signed(signed, signature)
        if right:
            self._remember(seen)
        return right

    def _remember(self, seen: bytes) -> None:
        if len(self._right) >= REMEMBERED:
            self._right.clear()
        self._right.add(seen)

    def demand_unrevoked(self, ids: Iterable[str]) -> None:
        """UnsignedError if one of these keys is revoked."""
        wanted = frozenset(ids)
        if wanted:
            keys = self._keys.by_id()
            _demand_unrevoked((keys[id] for id in wanted if id in keys), "its contents are")


def _may_have_made(signature: Signature, keys: Mapping[str, PublicKey]) -> Iterable[PublicKey]:
    """The key that a signature names; all keys if it names none, as other tools' may."""
    if not signature.keyid:
        return keys.values()
    key = keys.get(signature.keyid)
    return () if key is None else (key,)


def _seen(id: str, signature: bytes, signed: bytes) -> bytes:
    """A digest of who signed what, and how."""
    return hashlib.sha256(b"%b %b %b" % (id.encode(), signature.hex().encode(), signed)).digest()


def _judge(
    envelope: Envelope, found: list[PublicKey], keys: Mapping[str, PublicKey], where: TrustedKeys
) -> None:
    _demand_unrevoked(found, "it is")
    if found:
        return
    if not envelope.signatures:
        raise UnsignedError("it is not signed")
    known = [key.name for one in envelope.signatures if (key := keys.get(one.keyid))]
    if known:
        raise UnsignedError(f"its signature of {known[0]} is wrong: somebody has changed it")
    named = [one.keyid[:12] for one in envelope.signatures if one.keyid]
    if not named:
        raise UnsignedError(f"it is signed without the id of a key, and by none in {where}")
    ids = one_line(", ".join(named[:3]))
    raise UnsignedError(f"it is signed with the unknown key {ids}, and {where} has no such key")


def _demand_unrevoked(keys: Iterable[PublicKey], what: str) -> None:
    for by in keys:
        if by.revoked:
            raise UnsignedError(f"{what} signed with the key {by.name}, which is revoked")


def is_envelope(data: bytes) -> bool:
    """Whether ``data`` is signed; manifests and hints that are not begin otherwise."""
    return data.startswith(b'{"payload"')


def read_envelope(kind: str, data: bytes) -> Envelope:
    """The envelope of something of a type, whoever signed it.  ValueError if it is none."""
    envelope = envelopes.decode(data)
    if envelope.kind != kind:
        raise ValueError(f"it is of the type {envelope.kind[:100]!r}, not {kind!r}")
    return envelope
