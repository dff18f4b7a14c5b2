"""A farm with faults builds the same as one without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import example
import pytest
from children import child_environment
from systems_kit import MINIMAL

from fabric.host.daemon import free_memory

#: PACE: seconds between two faults.  PARTS of the example system: its chunks and strata, or all, or
#: none.
DEFAULTS = (("FAULTS", "60"), ("SEED", "1"), ("PACE", "2"), ("PARTS", "core-libs lua less"))
FAULTS, SEED, PACE, PARTS = (os.environ.get(name) or default for name, default in DEFAULTS)
#: Seconds until the farm must have built everything.
PATIENCE = (3600 if PARTS == "all" else 900) + 2 * float(PACE) * int(FAULTS)
#: Seconds that building undisturbed may take before.
BEFORE = 3600
#: Bytes that the disks of a farm take that builds them: each worker unpacks the toolchain.
MEMORY = 5 << 30

NAMESPACES = ("--net", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child")
#: Process 1 of the namespaces, which reaps orphans.
INIT = ("sh", "-c", '"$@"; exit $?', "sh")


def apart(*command: str | Path) -> list[str]:
    """The command line for new namespaces, which end with the process that started them."""
    alone = ["setpriv", "--pdeathsig=KILL", "unshare", *NAMESPACES, "--mount-proc"]
    return [*alone, *INIT, *map(str, command)]


def refused() -> str:
    """Why this machine cannot run hosts; "" if it can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    try_it = (
        "mount -t tmpfs probe /mnt && ip link add name probe type bridge"
        " && unshare --time --monotonic=1 true"
    )
    probe = apart("sh", "-c", try_it)
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"namespaces are not permitted here: {done.stderr}" if done.returncode else ""


@pytest.mark.system
@pytest.mark.timeout(BEFORE + PATIENCE)
def test_farm_builds_despite_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if why := refused():
        pytest.skip(why)
    program = Path(__file__).with_name("run.py")
    command = apart(sys.executable, program, tmp_path, f"--faults={FAULTS}", f"--seed={SEED}")
    command += [f"--pace={PACE}", f"--patience={PATIENCE}"]
    left_out = free_memory() < MEMORY
    if PARTS != "none" and not left_out:
        chosen = [] if PARTS == "all" else PARTS.split()
        example.prepare(tmp_path / "example", chosen)
        command += [f"--example={tmp_path}/example", f"--system={Path(MINIMAL).stem}"]
        command += [f"--part={part}" for part in chosen]
    environ = child_environment()
    told = tmp_path / "faults.log"  # can be read during the test
    with told.open("w") as log:
        done = subprocess.run(command, stdout=log, check=False, env=environ)
    said = told.read_text().splitlines()
    lines = ["", *(line for line in said if line.startswith("WRONG")), *said[-3:]]
    if left_out:
        lines.append("nothing of the example system was built: its disks need more memory")
    with capsys.disabled():
        print(*lines, sep="\n", file=sys.stderr)  # pytest-xdist shows no standard output
    assert done.returncode == 0, told.read_text()


@pytest.mark.system
def test_farm_ends_with_its_starter() -> None:
    if why := refused():
        pytest.skip(why)
    said = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    starter = subprocess.Popen(
        [sys.executable, "-c", said, *apart("sh", "-c", "echo it runs; sleep 10; echo it goes on")],
        stdout=subprocess.PIPE,
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == b"it runs\n"
    starter.kill()
    starter.wait()
    assert starter.stdout.read() == b""
    starter.stdout.close()
