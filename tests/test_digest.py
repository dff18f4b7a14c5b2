"""A digest is 64 hex digits, and is encoded like text."""

from __future__ import annotations

import msgspec
import pytest

from fabric.digest import Digest

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text", ["", HEX[1:], HEX + "0", HEX + "\n", HEX.upper(), "../" + HEX[3:], "\u0660" * 64]
)
def test_digest_refuses_all_else(text: str) -> None:
    with pytest.raises(ValueError, match="a SHA-256 is 64 hex digits"):
        Digest(text)


def test_digest_is_encoded_like_text() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Digest(HEX))) == HEX
    assert msgspec.json.encode(Digest(HEX)) == f'"{HEX}"'.encode()
