"""Machines of the build-system follow the name servers that DHCP gives."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from systems_kit import ROOT

SCRIPT = ROOT / "systems/build-system/usr/lib/distbuild/resolv-conf"


def leased(state: Path, *servers: str) -> None:
    """Write the state as systemd-networkd does after a change."""
    new = state.with_suffix(".new")
    new.write_text(
        f"# This is private data. Do not parse.\nOPER_STATE=routable\nDNS={' '.join(servers)}\n"
        "DOMAINS=farm.test\n"
    )
    new.rename(state)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """The watched file; resolv.conf is written beside it."""
    state = tmp_path / "state"
    command: list[str | Path] = ["sh", SCRIPT, state, tmp_path / "resolv.conf"]
    with subprocess.Popen(command, process_group=0) as script:
        yield state
        subprocess.run(["kill", "--", f"-{script.pid}"], check=True)


def test_name_servers_follow_every_change(state: Path) -> None:
    """Changes during an update count too."""
    resolv_conf = state.with_name("resolv.conf")
    for count in (1, 2, 30):
        for number in range(count):
            leased(state, f"10.0.{count}.{number}", "10.0.0.1")
        expected = f"nameserver 10.0.{count}.{count - 1}\nnameserver 10.0.0.1\nsearch farm.test\n"
        deadline = time.monotonic() + 60
        while not resolv_conf.exists() or resolv_conf.read_text() != expected:
            assert time.monotonic() < deadline, resolv_conf.read_text()
            time.sleep(0.1)
