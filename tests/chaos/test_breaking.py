"""The faults of the chaos test do what their names say."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from farm import Farm
from faults import ENOUGH, Faults
from hosts import descendants
from services import Stopped
from waiting import until


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_stopped_process_stops_with_its_descendants() -> None:
    script = "sleep 1000 & sh -c 'sleep 1000 & wait' & wait"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as leader:
        try:
            until(lambda: len(descendants(leader.pid)) == 4)
            everybody = descendants(leader.pid)
            stopped = Stopped(leader.pid)
            assert len(stopped) == 4
            until(lambda: {state(pid) for pid in everybody} == {"T"})
            stopped.go_on()
            until(lambda: {state(pid) for pid in everybody} == {"S"})
        finally:
            os.killpg(leader.pid, signal.SIGKILL)


def test_faults_that_never_happened_are_named() -> None:
    services = dict.fromkeys(("broker", "nginx", "sshd"))
    farm: Any = SimpleNamespace(
        supervisor=SimpleNamespace(services=services), controller=None, trove=None
    )
    faults = Faults(cast(Farm, farm), [], random.Random(1))
    assert len(faults.deck) == ENOUGH
    faults.count.update(kind for kind, _ in faults.deck)
    assert faults.missing() == []
    del faults.count["stop broker"]
    assert faults.missing() == [], "so few need not be of each kind"
    faults.count["kill"] += 1
    assert faults.missing() == ["stop broker"]
