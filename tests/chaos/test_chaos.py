"""A farm that is broken again and again builds what it would have built in peace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import example
import pytest
from systems_kit import MINIMAL

from fabric.daemon import free_memory

NAMESPACES = ("--net", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child")
#: Process 1 of the namespaces: it sees to whoever is orphaned.
INIT = ("sh", "-c", '"$@"; exit $?', "sh")


def refused() -> str:
    """Why there can be no hosts on this machine; "" if there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    try_it = "mount -t tmpfs probe /mnt && ip link add name probe type bridge"
    probe = ["unshare", *NAMESPACES, "sh", "-c", try_it]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"namespaces are not permitted here: {done.stderr}" if done.returncode else ""


@pytest.mark.system
@pytest.mark.timeout(3600)  # what is to be built is perhaps still to be built undisturbed
def test_nothing_comes_of_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if why := refused():
        pytest.skip(why)
    faults, seed, pace, parts = (os.environ.get(name) or told for name, told in DEFAULTS)
    run = [sys.executable, str(Path(__file__).with_name("run.py")), str(tmp_path)]
    command = ["unshare", *NAMESPACES, "--mount-proc", *INIT, *run]
    command += [f"--faults={faults}", f"--seed={seed}", f"--pace={pace}"]
    command += [f"--patience={(3600 if parts == 'all' else 900) + 2 * float(pace) * int(faults)}"]
    left_out = free_memory() < MEMORY
    if parts != "none" and not left_out:
        chosen = [] if parts == "all" else parts.split()
        example.prepare(tmp_path / "example", chosen)
        command += [f"--example={tmp_path}/example", f"--system={Path(MINIMAL).stem}"]
        command += [f"--part={part}" for part in chosen]
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environ)
    with capsys.disabled():
        said = done.stdout.splitlines()
        print("", *(line for line in said if line.startswith("WRONG")), *said[-3:], sep="\n")
        if left_out:
            print("nothing of the example system was built: its disks need more memory")
    assert done.returncode == 0, done.stdout


#: PACE: seconds between two faults.  PARTS of the example system: its chunks and strata, or all, or
#: none.
DEFAULTS = (("FAULTS", "60"), ("SEED", "1"), ("PACE", "2"), ("PARTS", "core-libs lua less"))
#: Bytes that the disks of a farm take that builds them: each worker unpacks the toolchain.
MEMORY = 5 << 30
