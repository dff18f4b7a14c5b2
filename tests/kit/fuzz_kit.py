"""Damaged messages."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

from fabric.wire.messages import PROTOCOL, BuildGraph, BuildOrder, Command, Published

#: Bytes by which a process may grow meanwhile.
GROWTH = 100 * 2**20

KEY = "ab" * 32
encode = msgspec.msgpack.Encoder().encode


def pieces() -> list[bytes]:
    """Published pieces of logs."""
    some = [Published(KEY, 1, 0, b"a line\n" * 30), Published(KEY, 2**62, 2**62, b"")]
    return [each.frame() for each in some]


def malformed(rng: random.Random, seeds: list[bytes]) -> Iterator[bytes]:
    """An endless stream of damaged messages: changed, cut, spliced, repeated, or random."""
    whole = [
        encode(BuildOrder(PROTOCOL, "r", "t", "refs/x", "c" * 40, "s")),
        encode(BuildGraph(PROTOCOL, "r", "t", (), ())),
        encode(Command(PROTOCOL, "c", "cancel", "nobody")),
    ]
    strange = [b"", b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", b"\x81\xa1t\xa6Report", b"\xc1",
               encode({"t": "Report", "protocol": 2**63}), encode({"t": ["Poll"]})]  # fmt: skip
    while True:
        kind = rng.random()
        frame = bytearray(rng.choice(seeds))
        if kind < 0.6:
            for _ in range(rng.randint(1, 4)):
                frame[rng.randrange(len(frame))] = rng.randrange(256)
            yield bytes(frame)
        elif kind < 0.75:
            yield bytes(rng.choice(whole)[: rng.randrange(1, 20)])
        elif kind < 0.9:
            cut = rng.randrange(len(frame))
            yield bytes(frame[:cut]) + rng.choice(seeds)[rng.randrange(20) :]
        elif kind < 0.999:
            yield rng.randbytes(rng.randrange(200))
        else:
            yield rng.choice(strange)
