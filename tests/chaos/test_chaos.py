"""A farm that is broken again and again builds what it would have built in peace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
@pytest.mark.timeout(900)
def test_nothing_comes_of_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if why := refused():
        pytest.skip(why)
    faults, seed = (os.environ.get(name, default) for name, default in DEFAULTS)
    run = [sys.executable, str(Path(__file__).with_name("run.py")), str(tmp_path)]
    command = ["unshare", *NAMESPACES, "--mount-proc", *INIT, *run]
    command += [f"--faults={faults}", f"--seed={seed}", f"--patience={300 + 2 * int(faults)}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    with capsys.disabled():
        said = done.stdout.splitlines()
        print("", *(line for line in said if line.startswith("WRONG")), *said[-3:], sep="\n")
    assert done.returncode == 0, done.stdout


DEFAULTS = (("FAULTS", "60"), ("SEED", "1"))
