"""Programs that are started where the device nodes are read-only."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from children import child_environment
from waiting import until

from fabric import config
from fabric.building import devices, personality


def machine() -> str:
    """The machine that a program sees which this thread starts."""
    return devices.starting(lambda: subprocess.check_output(["uname", "-m"], text=True)).strip()


def test_children_see_the_architecture_of_the_thread_that_asks() -> None:
    if "x86_32" not in config.native_architectures():
        pytest.skip("this kernel runs no programs for x86_32")

    def other() -> str:
        personality.take("x86_32")
        return machine()

    with ThreadPoolExecutor(1) as pool:
        found = [machine(), pool.submit(other).result(), machine()]
    assert found == ["x86_64", "i686", "x86_64"]


def test_children_are_as_nice_as_the_thread_that_asks() -> None:
    def niceness() -> int:
        return int(devices.starting(lambda: subprocess.check_output(["nice"], text=True)))

    def nicer() -> int:
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 3)
        return niceness()

    before = niceness()
    assert before == os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(nicer).result() == before + 3


#: Starts a command where /dev has all nodes but one.
WITHOUT_ZERO = (
    "unshare", "--mount", "sh", "-euc",
    "mount -t tmpfs dev /dev; make() { mknod -m 666 /dev/$1 c $2 $3; };"
    " make null 1 3; make full 1 7; make random 1 8; make urandom 1 9; make tty 5 0;"
    ' exec "$0" "$@"',
)  # fmt: skip
SAID = (
    "builds could change device nodes of this machine: /dev/zero: mount: No such file or directory."
    "  Run this program as another user than root\n"
)

of_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who owns the nodes")


@of_root
def test_node_that_cannot_be_protected_leaves_the_others_protected() -> None:
    script = (
        "import subprocess; from fabric.building import devices\n"
        "print(devices.unprotected(), flush=True)\n"
        "change = 'for node in null urandom; do chmod 666 /dev/$node; done'\n"
        "devices.starting(lambda: subprocess.run(['sh', '-c', change]))\n"
    )
    done = subprocess.run(
        [*WITHOUT_ZERO, sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == SAID
    assert done.stderr.count("Read-only file system") == 2


@of_root
def test_worker_reports_the_nodes_that_it_cannot_protect(directory: Path) -> None:
    command = [sys.executable, "-m", "fabric.worker", "--directory", str(directory)]
    command += ["--name", "w", "--host-tools", "x"]
    environment = child_environment(FABRIC_CONFIG="/dev/null", FABRIC_CACHE=str(directory))
    log = directory / "log"
    with (
        log.open("w") as to,
        subprocess.Popen([*WITHOUT_ZERO, *command], stderr=to, env=environment) as worker,
    ):
        try:
            until(lambda: SAID in log.read_text(), what="for the report")
        finally:
            worker.terminate()
    assert log.read_text().count(SAID) == 1


@of_root
def test_nothing_is_reported_if_all_nodes_are_protected() -> None:
    assert devices.unprotected() == ""
