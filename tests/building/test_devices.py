"""Programs that are started where the device nodes are read-only."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

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
