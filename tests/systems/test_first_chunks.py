"""The toolchain from source begins with what its digests say, wherever it is built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from systems_kit import ROOT, TOOLCHAIN, Built, user_cache

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]

#: What the seed builds within minutes; a compiler takes longer.
PARTS = ["stage1-binutils", "stage2-linux-api-headers", "stage2-links"]


def test_first_chunks_of_the_toolchain_are_those_of_everybody(tmp_path: Path) -> None:
    """Built anew, in an empty store: the digests were written on another machine."""
    built = Built(user_cache(), tmp_path)
    store = f"--artifacts={tmp_path}/store"
    said = built.run("build", str(ROOT / TOOLCHAIN), *PARTS, store, "--check-digests")
    [compared] = re.findall("(?m)^([0-9]+) artifacts are as in ", said)
    assert int(compared) >= len(PARTS)
