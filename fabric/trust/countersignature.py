"""Defines countersignatures: what a broker states of a step that it has verified.

It is plain data; its JSON is the same for the same statement, so that it can be signed.
"""

from __future__ import annotations

import msgspec

from fabric.digest import OptionalSha256, Sha256

#: The type of a countersignature, in its envelope.
KIND = "application/vnd.distbuild.countersignature+json"


class Countersignature(msgspec.Struct, frozen=True, omit_defaults=True):
    """The manifest of a step is the result of an attempt that the signer had assigned.

    Or it has the output of another step of which that holds.
    """

    key: Sha256
    manifest: Sha256  # digest of the manifest (`fabric.trove.artifacts.manifests.digest_of`)
    worker: str = ""  # as its CURVE key names it
    fence: int = 0  # of the attempt
    origin: OptionalSha256 = ""  # key of the step whose output this is


encode = msgspec.json.Encoder(order="deterministic").encode
decode = msgspec.json.Decoder(Countersignature).decode
