"""Builds that fail, hang, print much, fork, are cancelled, or find damaged artifacts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from typing import Any

import pytest
from building_kit import Kit, key_of, processes_naming

from fabric.building import sandbox
from fabric.building.builder import build
from fabric.building.log import Log
from fabric.errors import BuildFailed, Cancelled, MachineFault
from fabric.host.cancel import CancelToken
from fabric.jobs import Job, Staged


def heartbeat_stops(kit: Kit) -> bool:
    """Whether no process in a sandbox still writes `/tmp/beat`, here a file in a scratch folder."""
    beats = list(kit.workspace.root.glob("**/beat"))
    sizes = [beat.stat().st_size for beat in beats]
    time.sleep(0.25)
    return [beat.stat().st_size for beat in beats] == sizes


BEAT = "(while :; do echo x >> /tmp/beat; sleep 0.05; done) & "


class TestFailure:
    def test_failed_build_names_its_list_command_and_status(self, kit: Kit) -> None:
        job = kit.chunk(
            configure=["true", "true"],
            build=["echo one", "echo two\nexit 7\necho three", "echo four"],
            install=["echo five"],
        )
        with pytest.raises(BuildFailed) as caught:
            kit.build(job)
        assert caught.value.step == "build-commands"
        assert caught.value.command == "echo two\nexit 7\necho three"
        assert str(caught.value) == "build-commands failed with exit status 7: echo two"
        assert "four" not in kit.log_text
        assert kit.store.manifest(job.key) is None
        assert kit.phases == ["fetch", "configure", "build"]

    def test_failed_line_of_a_command_fails_the_build(self, kit: Kit) -> None:
        with pytest.raises(BuildFailed, match="exit status 1"):
            kit.build(kit.chunk(build=["false_is_not_here || grep x /dev/null\necho survived"]))
        assert "survived" not in kit.log_text

    def test_build_without_a_shell_fails(self, kit: Kit) -> None:
        with pytest.raises(BuildFailed, match="no shell"):
            kit.build(kit.chunk(build=[":"], staged=()))

    def test_failed_build_keeps_its_tree_until_it_succeeds(self, kit: Kit) -> None:
        flag = kit.tree(flag="")
        job = kit.chunk(build=["echo was here > made; test -s flag"], source=flag)
        with pytest.raises(BuildFailed):
            kit.build(job)
        kept = kit.workspace.root / "failed" / job.key
        assert (kept / "up/made").read_text() == "was here\n"
        assert f"The build tree is kept on {os.uname().nodename}, in {kept}\n" in kit.log_text
        with pytest.raises(BuildFailed):
            kit.build(job)
        assert list(kept.parent.iterdir()) == [kept]
        (kit.sources.trees[flag.tree] / "flag").write_text("now")
        kit.build(job)
        assert not kept.exists()


class TestLimits:
    def test_daemon_of_a_build_neither_delays_nor_outlives_it(self, kit: Kit) -> None:
        job = kit.chunk(install=[BEAT + "setsid sleep 1000 & sleep 0.2; touch $DESTDIR/done"])
        began = time.monotonic()
        kit.build(job)
        assert time.monotonic() - began < 10
        assert heartbeat_stops(kit)

    def test_log_may_hold_binary_output(self, kit: Kit) -> None:
        kit.build(kit.chunk(build=["dd if=/dev/urandom bs=65536 count=16; printf '@ build 9\\n'"]))
        assert len(kit.log_bytes) > 1 << 20

    def test_log_may_be_large(self, kit: Kit) -> None:
        job = kit.chunk(build=["set +x; yes 'a line of sixty-four bytes' | head -c 200000000"])
        manifest = kit.build(job)
        assert manifest.log is not None
        assert manifest.log.size > 200_000_000

    def test_log_limit_ends_a_build(self, kit: Kit) -> None:
        began = time.monotonic()
        with pytest.raises(BuildFailed, match=r"more than 1000000 bytes.*`log-limit`") as caught:
            kit.build(kit.chunk(build=["yes"]), log_limit=1_000_000)
        assert caught.value.step == "build-commands"
        assert time.monotonic() - began < 10

    def test_time_limit_ends_a_build(self, kit: Kit) -> None:
        began = time.monotonic()
        with pytest.raises(BuildFailed, match=r"longer than 3 s.*`build-timeout`") as caught:
            kit.build(kit.chunk(install=[BEAT + "sleep 1000"]), timeout=3)
        assert caught.value.step == "install-commands"
        assert time.monotonic() - began < 20
        assert heartbeat_stops(kit)

    def test_scratch_with_a_very_deep_tree_is_removed(self, kit: Kit) -> None:
        deep = "for i in 1 2 3 4 5 6 7 8 9; do for j in $(seq 99); do mkdir d; cd d; done; done"
        kit.build(kit.chunk(build=[f"cd /tmp; {deep}; touch end"]))
        kit.workspace.close(patience=100)
        assert not list((kit.workspace.root / "tmp").iterdir())

    def test_build_may_have_hundreds_of_long_commands(self, kit: Kit) -> None:
        commands = [f": {'x' * 1000} {number}" for number in range(300)]
        kit.build(kit.chunk(build=commands))
        assert f"+ : {'x' * 1000} 299\n" in kit.log_text


class TestBusyMachine:
    """A machine so busy that its sandboxes end before the worker reads from them."""

    @pytest.fixture(autouse=True)
    def busy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        start = sandbox._start

        def late(*args: Any) -> subprocess.Popen[bytes]:
            process = start(*args)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            return process

        monkeypatch.setattr(sandbox, "_start", late)

    def test_busy_machine_loses_no_report_and_no_output(self, kit: Kit) -> None:
        job = kit.chunk(configure=["true"], build=["true", "set +x; seq 9000; exit 7"])
        with pytest.raises(BuildFailed) as caught:
            kit.build(job)
        assert str(caught.value) == (
            "build-commands failed with exit status 7: set +x; seq 9000; exit 7"
        )
        assert caught.value.command == "set +x; seq 9000; exit 7"
        assert kit.phases == ["fetch", "configure", "build"]
        assert "\n8999\n9000\nThe build tree is kept " in kit.log_text

    def test_busy_machine_stores_the_artifacts(self, kit: Kit) -> None:
        kit.build(kit.chunk(install=["seq 9000; touch $DESTDIR/it"]))
        assert kit.log_text.endswith("\n8999\n9000\n+ touch /thing.inst/it\n")


class TestCancel:
    @pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.5])
    def test_cancel_ends_a_build_at_any_moment(self, kit: Kit, delay: float) -> None:
        source = kit.tree(**{f"file{number}": "" for number in range(50)})
        job = kit.chunk(build=[BEAT + "sleep 1000"], source=source)
        threading.Timer(delay, kit.cancel.set).start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            kit.build(job)
        assert time.monotonic() - began < 5
        assert heartbeat_stops(kit)
        assert processes_naming(kit.root) == []
        assert not list((kit.workspace.root / "failed").iterdir())

    def test_cancel_ends_waiting_for_another_builder(self, kit: Kit) -> None:
        with kit.workspace.session.locked(f"job-{key_of('thing')}"):
            threading.Timer(0.1, kit.cancel.set).start()
            with pytest.raises(Cancelled):
                kit.build(kit.chunk(build=[":"]))


class TestTwoBuilders:
    def test_builders_of_one_job_build_it_once(self, kit: Kit) -> None:
        job = kit.chunk(build=["sleep 0.5; echo $RANDOM$RANDOM"], install=["mkdir $DESTDIR/d"])
        manifests, logs = [], []

        def work(number: int) -> None:
            with Log(kit.root / f"log-of-{number}") as log:
                manifests.append(build(job, kit.workspace, log, CancelToken(), jobs=1))
                logs.append(log.read(0, 1000))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert manifests[0] == manifests[1] == manifests[2]
        assert logs[0] == logs[1] == logs[2], "that of the one who built it"

    def test_builders_may_unpack_one_layer_at_once(self, kit: Kit) -> None:
        lib = kit.chunk("lib", install=["for i in $(seq 500); do echo $i > $DESTDIR/$i; done"])
        kit.build(lib)
        kit.workspace.clean()
        staged = (kit.base, Staged(lib.key, "low"))
        command = "test $(ls / | grep -c 4) -gt 100"
        failures: list[BaseException] = []

        def work(job: Job) -> None:
            try:
                with Log(kit.root / job.log) as log:
                    build(job, kit.workspace, log, CancelToken(), jobs=1)
            except BaseException as error:  # noqa: BLE001 - told to the main thread
                failures.append(error)

        jobs = [kit.chunk(f"user-{one}", build=[command], staged=staged) for one in range(4)]
        threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


class TestDamage:
    def test_damaged_or_lost_artifact_is_named(self, kit: Kit) -> None:
        """The broker then has it built again, and does not fail the job that needs it."""
        lib = kit.chunk("lib", install=["head -c 9000 /dev/urandom > $DESTDIR/it"])
        kit.build(lib)
        user = kit.chunk("user", build=["test -s /it"], staged=(kit.base, Staged(lib.key, "low")))

        def damaged() -> tuple[str, ...]:
            kit.workspace.clean()
            with pytest.raises(MachineFault) as caught:
                kit.build(user)
            return caught.value.damaged

        kit.store.remove([lib.key])
        assert damaged() == (lib.key,), "lost"
        blob = next(one.blob for one in kit.build(lib).artifacts if one.blob)
        file = kit.store.path(blob)
        file.chmod(0o644)
        file.write_bytes(b"rubbish")
        assert damaged() == (lib.key,), "spoilt"
        kit.store.forget(lib.key)
        kit.build(lib)
        kit.build(user)
