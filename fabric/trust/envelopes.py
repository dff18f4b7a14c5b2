"""Reads and writes DSSE envelopes: signed bytes with their type, as JSON.

Source: https://github.com/secure-systems-lab/dsse, version 1.0.2.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec
from msgspec import Meta

from fabric.bounds import NAMELESS_SIGNATURES, SIGNATURE, SIGNATURES

_Text = Annotated[str, Meta(max_length=SIGNATURE)]


class Signature(msgspec.Struct, frozen=True):
    """``sig``: Base64 of the signature; ``keyid`` only helps to find its key."""

    sig: _Text
    keyid: _Text = ""


class Envelope(msgspec.Struct, frozen=True, rename={"kind": "payloadType"}):
    """Bytes in Base64, and who signed them."""

    payload: str
    kind: str
    signatures: tuple[Signature, ...]

    @property
    def content(self) -> bytes:
        """The signed bytes.  ValueError if they are not Base64."""
        return _bytes(self.payload)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Envelope).decode


def encode(envelope: Envelope) -> bytes:
    """The envelope as a line of JSON."""
    return _encode(envelope)


def decode(data: bytes) -> Envelope:
    """The envelope in ``data``.  ValueError if it is none, or has too many signatures."""
    try:
        envelope = _decode(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if len(envelope.signatures) > SIGNATURES:
        raise ValueError(f"it has more than {SIGNATURES} signatures")
    if sum(not one.keyid for one in envelope.signatures) > NAMELESS_SIGNATURES:
        raise ValueError(f"it has more than {NAMELESS_SIGNATURES} signatures without a key's id")
    return envelope


def plain(data: bytes) -> bytes:
    """The envelope without unknown fields and blanks, which no signature covers.

    ValueError if it is none.
    """
    envelope = decode(data)
    return encode(msgspec.structs.replace(envelope, payload=text(envelope.content)))


def signed_bytes(kind: str, content: bytes) -> bytes:
    """What a signature is of: the pre-authentication encoding of content and type."""
    type_ = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(type_), type_, len(content), content)


def text(content: bytes) -> str:
    """Bytes as envelopes have them."""
    return base64.b64encode(content).decode()


def raw(signature: Signature) -> bytes:
    """The bytes of a signature.  ValueError if they are not Base64."""
    return _bytes(signature.sig)


def _bytes(data: str) -> bytes:
    """Base64 of either alphabet, as the specification demands of readers."""
    try:
        return binascii.a2b_base64(data.replace("-", "+").replace("_", "/"), strict_mode=True)
    except binascii.Error as error:
        raise ValueError(f"it is not Base64: {error}") from None
