"""Builds in sandboxes share the cores: real make and ninja, several at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ninja
import pytest
from building_kit import Kit, key_of
from jobs_kit import MAKEFILE, RECIPE, at_once, most
from waiting import until

from fabric.building.builder import build
from fabric.building.log import Log
from fabric.building.shell import shell
from fabric.errors import BuildFailed, Cancelled
from fabric.host.cancel import CancelToken
from fabric.host.jobserver import Jobserver
from fabric.jobs import Job

CORES = 4
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": "/tmp"}


class Slots:
    """A worker's slots: builds at a time, with one jobserver."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.address = kit.root / "jobserver"
        self.server = Jobserver(self.address, CORES)
        self._stopped = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._pool = ThreadPoolExecutor(8)
        self._cancels: list[CancelToken] = []

    def start(self, job: Job, jobs: int = CORES) -> Future[str]:
        """Begin a build; its result is its log."""
        number = len(self._cancels)
        cancel = CancelToken()
        self._cancels.append(cancel)

        def work() -> str:
            with Log(self.kit.root / f"slot-{number}") as log:
                build(
                    job, self.kit.workspace, log, cancel, jobs=jobs, jobserver=self.address,
                    timeout=60,
                )  # fmt: skip
                return log.read(0, 1 << 20).decode()

        return self._pool.submit(work)

    def cancel(self, number: int) -> None:
        self._cancels[number].set()

    def close(self) -> None:
        for cancel in self._cancels:
            cancel.set()
        self._pool.shutdown()
        self._stopped = True
        self._thread.join()
        self.server.close()

    def _run(self) -> None:
        while not self._stopped:
            self.server.step(min(self.server.wait, 0.1))


@pytest.fixture
def slots(kit: Kit) -> Iterator[Slots]:
    made = Slots(kit)
    yield made
    made.close()


def chunk(kit: Kit, name: str, build: str, **fields: Any) -> Job:
    """A chunk built with this machine's tools, whose log has the file ``times``."""
    files = fields.pop("files", {"Makefile": MAKEFILE.format(16, 0.1)})
    given = {"mode": "test", "staged": (), "environment": ENVIRONMENT, "source": kit.tree(**files)}
    return kit.chunk(name, build=[build, "cat times"], **(given | fields))


def test_make_has_all_cores_when_it_is_alone(kit: Kit, slots: Slots) -> None:
    log = slots.start(chunk(kit, "a", "make -s")).result()
    assert most(log) == CORES
    assert "warning" not in log


def test_makes_of_two_slots_share_the_cores(kit: Kit, slots: Slots) -> None:
    files = {"Makefile": MAKEFILE.format(40, 0.1)}
    both = [slots.start(chunk(kit, name, "make -s", files=files)) for name in "ab"]
    logs = [one.result() for one in both]
    counts = at_once(*logs)
    assert CORES <= max(counts) <= CORES + 1
    assert min(most(log) for log in logs) >= 2


def test_makes_in_a_make_share_the_cores(kit: Kit, slots: Slots) -> None:
    files = {
        "Makefile": "all: one two\none two:\n\t+@$(MAKE) -s -f inner P=$@\n",
        "inner": MAKEFILE.format(12, 0.1).replace("t,", "$P-,").replace("t%", "$P-%"),
    }
    log = slots.start(chunk(kit, "a", "make -s", files=files)).result()
    assert most(log) == CORES


def test_limits_of_a_chunk_and_of_the_worker_hold(kit: Kit, slots: Slots) -> None:
    assert most(slots.start(chunk(kit, "a", "make -s", max_jobs=1)).result()) == 1
    assert most(slots.start(chunk(kit, "b", "make -s", max_jobs=2)).result()) == 2
    assert most(slots.start(chunk(kit, "c", "make -s"), jobs=3).result()) == 3
    assert most(slots.start(chunk(kit, "d", "make -s"), jobs=1).result()) == 1
    assert most(slots.start(chunk(kit, "e", "make -s -j6 2>&1")).result()) == 6


def test_ninja_shares_the_cores(kit: Kit, slots: Slots) -> None:
    edges = "".join(f"build {number}: it\n" for number in range(30))
    files: dict[str, str | bytes] = {
        "build.ninja": f"rule it\n  command = {{ {RECIPE.format(0.1)}; }} >>times\n{edges}",
        "ninja": (Path(ninja.BIN_DIR) / "ninja").read_bytes(),
    }
    command = "cp ninja /tmp; chmod +x /tmp/ninja; /tmp/ninja"
    assert most(slots.start(chunk(kit, "alone", command, files=files)).result()) == CORES
    makefile = {"Makefile": MAKEFILE.format(30, 0.1)}
    both = [
        slots.start(chunk(kit, "a", command, files=files)),
        slots.start(chunk(kit, "b", "make -s", files=makefile)),
    ]
    logs = [one.result() for one in both]
    assert most(*logs) <= CORES + 1
    assert min(map(most, logs)) >= 2


@pytest.mark.parametrize(
    "attack",
    [
        "dd if=/dev/jobserver of=/dev/null bs=1",
        "yes >/dev/jobserver",
        "make -s -f endless & sleep 1; kill -9 $!; sleep 100",
        "set +e; rm -f /dev/jobserver; mv /dev/jobserver /tmp; chmod 0 /dev/jobserver; sleep 100",
    ],
)
def test_build_that_misuses_the_jobserver_harms_only_itself(
    kit: Kit, slots: Slots, attack: str
) -> None:
    files = {"endless": MAKEFILE.format(16, 100), "times": ""}
    bad = slots.start(chunk(kit, "bad", f"touch begun; {{ {attack}; }}", files=files))
    until(lambda: list(kit.root.glob("work/tmp/*/*/up/begun")), what="for the attack")
    time.sleep(1.5)
    assert not bad.done()
    log = slots.start(chunk(kit, "good", "make -s")).result()
    assert 1 <= most(log) <= CORES - 1
    slots.cancel(0)
    assert isinstance(bad.exception(), Cancelled)
    assert most(slots.start(chunk(kit, "after", "make -s")).result()) == CORES


def test_makeflags_name_the_jobserver_to_makes_that_know_it(kit: Kit, slots: Slots) -> None:
    """Before version 4.4, make ends when it is given a FIFO."""
    see = "env | grep ^MAKEFL"
    shared = "-j4 --jobserver-auth=fifo:/dev/jobserver"
    for version, flags in {
        "GNU Make 4.4.1": shared,
        "GNU Make 4.10": shared,
        "GNU Make 5.0": shared,
        "GNU Make 4.3": "-j4",
        "GNU Make 4.2.1": "-j4",
        "GNU Make 3.82": "-j4",
        "": "-j4",
    }.items():
        path = {"PATH": "/thing.build:/usr/bin:/bin"}
        job = kit.chunk(
            key=key_of(version), mode="test", staged=(), environment=path,
            source=kit.tree(make=f"#!/bin/sh\necho '{version}\nBuilt for this'\n"),
            commands=(
                ("configure-commands", (see, "chmod +x make")),
                ("build-commands", (see,)),
                ("install-commands", (see,)),
            ),
        )  # fmt: skip
        found = [line for line in slots.start(job).result().splitlines() if "MAKEFLAGS=" in line]
        assert found == ["MAKEFLAGS=-j1", f"MAKEFLAGS={flags}", "MAKEFLAGS=-j1"], version
    without = kit.chunk("without", build=[see])
    assert f"MAKEFLAGS={shared}\n" in slots.start(without).result()


def test_commands_that_name_makeflags_get_a_number_only(kit: Kit, slots: Slots) -> None:
    """They may give it to other programs: `scons $MAKEFLAGS`."""
    log = slots.start(kit.chunk(build=["echo of build: $MAKEFLAGS"])).result()
    assert "\nof build: -j4\n" in log


def test_failed_tree_has_no_jobserver(kit: Kit, slots: Slots) -> None:
    job = kit.chunk(build=["env | grep ^MAKEFL; test -e /tmp/fixed"])
    assert isinstance(slots.start(job).exception(), BuildFailed)
    assert not list(kit.root.glob("work/failed/*/jobserver"))
    command = ["sh", "-c", "touch /tmp/fixed; sh /dev/steps build-commands >/thing.build/log"]
    assert shell(job, kit.workspace, jobs=3, argv=command) == 0
    [log] = kit.root.glob("work/failed/*/up/log")
    assert "MAKEFLAGS=-j3\n" in log.read_text()
