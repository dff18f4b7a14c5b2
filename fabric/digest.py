"""Defines the type of SHA-256 digests."""

from __future__ import annotations

import re
from typing import Annotated, cast

from msgspec import Meta

#: Digits that a user types in place of a whole cache key, at least.
PREFIX = 8

_HEX = re.compile(r"[0-9a-f]{64}")

#: A digest in a message or file that msgspec decodes: 64 hex digits, or decoding fails.
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
#: The same, or "".
OptionalSha256 = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]


class Digest(str):
    """A SHA-256 as 64 lower-case hex digits.  ValueError for any other text.

    A digest becomes part of paths and command lines, so the type must exclude other texts.  At
    run time the value is a plain str: msgspec does not encode subclasses of str.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        if not _HEX.fullmatch(text):
            raise ValueError("a SHA-256 is 64 hex digits, 0-9 and a-f")
        return cast("Digest", str(text))
