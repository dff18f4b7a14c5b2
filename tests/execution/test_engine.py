"""Chunks built by a real engine: their artifacts are those of a build on this machine."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from building_kit import Kit, key_of
from engine_kit import Casd, is_running, running
from faulty import Proxy
from msgspec.structs import replace
from waiting import until

from fabric.errors import BuildFailed, Cancelled
from fabric.execution.engine import RemoteEngine
from fabric.jobs import Job, Staged
from fabric.reapi.access import Access

#: Installs one of each kind of file.
INSTALL = """\
mkdir -p $DESTDIR/bin $DESTDIR/include $DESTDIR/empty
cp README $DESTDIR/include/a
ln $DESTDIR/include/a $DESTDIR/include/b
echo '#!/bin/sh' > $DESTDIR/bin/raised
chmod 4711 $DESTDIR/bin/raised
echo secret > $DESTDIR/secret
chmod 400 $DESTDIR/secret
chmod 1777 $DESTDIR/empty
ln -s ../include/a $DESTDIR/bin/link
ln -s /nowhere/at/all $DESTDIR/bin/dangling
mkfifo $DESTDIR/pipe
mkdir -p $DESTDIR/$LONG
echo deep > $DESTDIR/$LONG/$LONG
echo odd > "$DESTDIR/$(printf 'a\\nb\\377')"
"""


def step(kit: Kit, staged: Staged, name: str = "thing", /, **fields: Any) -> Job:
    """A chunk that the engine can build."""
    return kit.chunk(name, staged=(staged,), **fields)


def test_artifacts_are_those_of_a_local_build(
    kit: Kit, staged: Staged, engine: RemoteEngine, casd: Casd
) -> None:
    job = kit.chunk(
        build=["pwd; env; id -u; cat README"],
        install=[INSTALL],
        staged=(staged,),
        source=kit.tree(README="read me\n"),
    )
    job.environment["LONG"] = "x" * 120
    here = kit.build(job)
    log = kit.log_text
    there = kit.build(replace(job, key=key_of("there")), engine=engine)
    assert here.artifacts == there.artifacts
    assert all(each.blob for each in here.artifacts)
    assert kit.log_text == f"{log}### executed at {casd.host}\n"


def test_failing_command_is_the_chunks_own_fault(
    kit: Kit, staged: Staged, engine: RemoteEngine
) -> None:
    job = step(kit, staged, build=["true", "echo out; echo err >&2; (exit 7)"], install=["true"])
    with pytest.raises(BuildFailed) as told:
        kit.build(job, engine=engine)
    failed = told.value
    assert (
        str(failed) == "build-commands failed with exit status 7: echo out; echo err >&2; (exit 7)"
    )
    assert (failed.step, failed.command) == (
        "build-commands",
        "echo out; echo err >&2; (exit 7)",
    )
    assert "\nout\n+ echo err\nerr\n" in kit.log_text
    assert not (kit.workspace.root / "failed" / job.key).exists()  # it is at the engine
    assert "The build tree is kept" not in kit.log_text


def test_killed_command_is_named(kit: Kit, staged: Staged, engine: RemoteEngine) -> None:
    with pytest.raises(BuildFailed, match=r"status 137 \(killed by signal 9\): kill -9 \$\$"):
        kit.build(step(kit, staged, install=["kill -9 $$"]), engine=engine)


WRITE = "mkdir $DESTDIR/bin; echo 1 > $DESTDIR/bin/it; chmod 444 $DESTDIR/bin/it; {}"


def test_step_that_needs_capabilities_is_built(
    kit: Kit, staged: Staged, engine: RemoteEngine, tmp_path: Path
) -> None:
    """`strip` writes to libraries that their chunk installs read-only."""
    job = step(kit, staged, install=[WRITE.format("echo 22 > $DESTDIR/bin/it")])
    here = kit.build(job, engine=engine)
    assert "executed at" in kit.log_text
    with running(tmp_path / "engine", weak=True) as one:
        weak = RemoteEngine(Access(one.host), kit.workspace.root / "indexes")
        there = kit.build(replace(job, key=key_of("there")), engine=weak)
        assert (
            f"### executed at {one.host}\n### This step runs on the worker, not on its engine: it"
            " failed there, where root has no capabilities\n"
        ) in kit.log_text
        assert here.artifacts == there.artifacts
        kit.build(step(kit, staged, "other", install=[WRITE.format("true")]), engine=weak)
        assert kit.log_text.endswith(f"### executed at {one.host}\n")
        with pytest.raises(BuildFailed, match="failed with exit status 3"):
            kit.build(step(kit, staged, "wrong", install=["exit 3"]), engine=weak)
        weak.close()


def test_step_without_tar_runs_on_the_worker(kit: Kit, engine: RemoteEngine) -> None:
    kit.build(kit.chunk(install=["mkdir $DESTDIR/bin"]), engine=engine)
    assert kit.log_text.startswith(
        "### This step runs on the worker, not on its engine: no chunk that it is built with brings"
        " `tar`\n"
    )
    assert "executed at" not in kit.log_text


def test_name_that_is_not_text_keeps_a_step_on_the_worker(
    kit: Kit, staged: Staged, engine: RemoteEngine
) -> None:
    source = kit.tree(**{"od\udcffd": "x"})
    kit.build(step(kit, staged, install=["cat od*"], source=source), engine=engine)
    assert "is not UTF-8" in kit.log_text
    assert "executed at" not in kit.log_text


def test_steps_that_need_this_machine_run_on_it(
    kit: Kit, staged: Staged, engine: RemoteEngine
) -> None:
    bootstrap = step(kit, staged, "one", install=["true"], mode="bootstrap")
    kit.build(bootstrap, engine=engine)
    assert "executed at" not in kit.log_text
    again = replace(step(kit, staged, "two", install=["true"]), rebuild_of=key_of("two"))
    kit.build(replace(again, key=key_of("again")), engine=engine)
    assert "executed at" not in kit.log_text


def test_limits_are_those_of_a_local_build(kit: Kit, staged: Staged, engine: RemoteEngine) -> None:
    slow = step(kit, staged, "slow", install=["sleep 60"])
    began = time.monotonic()
    with pytest.raises(BuildFailed, match="ran longer than 1 s, which is the limit"):
        kit.build(slow, engine=engine, timeout=1)
    assert time.monotonic() - began < 8
    assert not (kit.workspace.root / "failed" / slow.key).exists()  # it is at the engine
    long = step(kit, staged, "long", install=["seq 1 10000"])
    with pytest.raises(BuildFailed, match="printed more than 5000 bytes"):
        kit.build(long, engine=engine, log_limit=5000)


def test_cancelled_step_ends_at_the_engine(
    kit: Kit, staged: Staged, broken: RemoteEngine, proxy: Proxy
) -> None:
    def cancel() -> None:
        until(lambda: is_running("sleep 4321"))
        kit.cancel.set()

    job = step(kit, staged, install=["sleep 4321"])
    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        kit.build(job, engine=broken)
    thread.join()
    assert "CancelOperation" in proxy.names()
    until(lambda: not is_running("sleep 4321"))
