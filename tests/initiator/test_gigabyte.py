"""A build that prints a gigabyte."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from initiator_kit import Project

SIZE = 1_000_000_000
#: Shows pieces that are lost, repeated or in the wrong place.
NUMBERS = f"seq 200000000 | head -c {SIZE}"
#: Bytes of memory that broker, worker and initiator may need each: Python, its modules, and some
#: tens of MiB of pieces in transit.
BOUND = 256 * 2**20


@pytest.mark.slow
def test_log_of_a_gigabyte_is_whole_and_needs_little_memory(project: Project) -> None:
    project.write(loud=NUMBERS)
    child = project.start()
    peaks: dict[str, int] = {}
    while child.poll() is None:
        for pid, name in project.processes().items():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                continue
            if "VmHWM:" in status:
                size = 1024 * int(status.partition("VmHWM:")[2].split()[0])
                name = "fabric-initiator" if pid == child.pid else name
                peaks[name] = max(size, peaks.get(name, 0))
        time.sleep(0.1)
    said, errors = child.communicate()
    assert child.returncode == 0, errors
    assert "not complete" not in said
    expected = subprocess.Popen(["sh", "-c", NUMBERS], stdout=subprocess.PIPE)
    assert expected.stdout is not None
    with (project.logs / "build-step-loud-misc.log").open("rb") as log, expected:
        while (line := log.readline()) != b"1\n":
            assert line, "what was printed is not there"
        log.seek(-2, 1)
        while piece := expected.stdout.read(1 << 20):
            assert log.read(len(piece)) == piece
    ours = {name: size for name, size in peaks.items() if name.startswith("fabric-")}
    assert len(ours) == 3, ours
    assert max(ours.values()) < BOUND, ours
