"""The workers of one machine, which are processes, share its cores."""

from __future__ import annotations

import os
import signal
from collections import Counter

from initiator_kit import Project
from jobs_kit import at_once, morph
from waiting import until

JOBS = (os.cpu_count() or 1) + 2


def write(project: Project, *names: str) -> None:
    project.write(**dict.fromkeys(names, "true"))
    for name in names:
        (project.root / f"strata/{name}.morph").write_text(morph(name, 8 * JOBS, 0.2))


def test_workers_share_the_cores(project: Project) -> None:
    write(project, "one", "two")
    done = project.build("--workers", "2", f"-j{JOBS}")
    assert done.returncode == 0, done.stderr
    counts = at_once(project.log("one-misc"), project.log("two-misc"))
    assert JOBS <= max(counts) <= JOBS + 1


def test_tokens_of_a_killed_worker_come_back(project: Project) -> None:
    write(project, "one", "two")
    build = project.start("--workers", "2", f"-j{JOBS}")

    def log(name: str) -> str:
        path = project.logs / f"build-step-{name}-misc.log"
        return path.read_text() if path.exists() else ""

    until(lambda: "make" in log("one") and "make" in log("two"))
    worker = max(pid for pid, name in project.processes().items() if name == "fabric-worker")
    os.kill(worker, signal.SIGKILL)
    output, error = build.communicate(timeout=100)
    assert build.returncode == 0, error
    assert "another takes its place" in output + error
    counts = Counter(at_once(project.log("one-misc"), project.log("two-misc")))
    assert max(counts) >= JOBS
