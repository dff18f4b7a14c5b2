"""The workspace of builds: locks, scratch folders, cleaning, shells."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from building_kit import Kit
from waiting import until

from fabric.building.builder import ELSEWHERE, build
from fabric.building.disk_space import by_age, mark_used
from fabric.building.log import Log
from fabric.building.reaper import Reaper
from fabric.building.shell import shell
from fabric.building.workspace import Workspace
from fabric.errors import BuildFailed, Cancelled, FabricError
from fabric.host.cancel import CancelToken
from fabric.jobs import Job


class TestLocks:
    def test_lock_wait_ends_when_it_is_cancelled(self, kit: Kit) -> None:
        cancel = CancelToken()
        threading.Timer(0.05, cancel.set).start()
        with (
            kit.workspace.session.locked("x"),
            pytest.raises(Cancelled),
            kit.workspace.session.locked("x", cancel),
        ):
            pass

    def test_lock_wait_ends_when_the_lock_is_free(self, kit: Kit) -> None:
        released: list[float] = []

        def hold() -> None:
            with kit.workspace.session.locked("x"):
                ready.set()
                time.sleep(0.2)
                released.append(time.monotonic())

        ready = threading.Event()
        thread = threading.Thread(target=hold)
        thread.start()
        ready.wait()
        with kit.workspace.session.locked("x", CancelToken()):
            assert released
        thread.join()


class TestOpening:
    def test_workspace_may_be_made_by_many_at_once(self, kit: Kit) -> None:
        def open_it(root: Path) -> None:
            together.wait()
            with Workspace(root, kit.store, kit.sources) as workspace:
                opened.append(workspace.root)

        opened: list[Path] = []
        for number in range(10):
            together = threading.Barrier(8)
            root = kit.root / f"fresh-{number}"
            threads = [threading.Thread(target=open_it, args=(root,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(opened) == 80


class TestScratch:
    def test_scratch_is_removed_only_for_dead_processes(self, kit: Kit) -> None:
        dead = kit.workspace.root / "tmp/123-dead"
        (dead / "5/up").mkdir(parents=True)
        alive = kit.workspace.session.scratch()
        with Workspace(kit.workspace.root, kit.store, kit.sources):
            assert not dead.exists()
            assert alive.exists()

    def test_scratch_is_used_again_by_the_next_build(self, kit: Kit) -> None:
        job = kit.chunk("one", build=["touch /tmp/x; chmod 500 /tmp; chmod 0 ."])
        kit.build(job)
        kit.build(kit.chunk("two", build=['test -z "$(ls -A /tmp; ls -A .)"; stat -c %a . /tmp']))
        assert "\n755\n1777\n" in kit.log_text
        numbered = {path.name for path in kit.workspace.session.path.iterdir()} - {"trash"}
        assert len(numbered) == 1

    @pytest.mark.parametrize(("pause", "late", "busy"), [(0.05, 60, False), (60, 0.05, True)])
    def test_reaper_removes_trash_in_pauses_or_after_a_while(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float, late: float, busy: bool
    ) -> None:
        monkeypatch.setattr("fabric.building.reaper._PAUSE", pause)
        monkeypatch.setattr("fabric.building.reaper._LATE", late)
        reaper = Reaper(tmp_path / "trash")
        if busy:
            reaper.enter()
        (tmp_path / "trash/one").mkdir()
        reaper.wake()
        deadline = time.monotonic() + 60
        while (tmp_path / "trash/one").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not (tmp_path / "trash/one").exists()
        reaper.close()

    def test_reaper_waits_while_builds_follow_each_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fabric.building.reaper._PAUSE", 0.05)
        reaper = Reaper(tmp_path / "trash")
        reaper.enter()
        (tmp_path / "trash/one").mkdir()
        reaper.wake()
        time.sleep(0.2)
        assert (tmp_path / "trash/one").exists()
        reaper.close()

    def test_workspace_closed_at_once_leaves_trash_to_the_next(self, kit: Kit) -> None:
        scratch = kit.workspace.session.scratch()
        for number in range(20):
            (scratch / f"{number}/deep").mkdir(parents=True)
        kit.workspace.close(patience=0)
        session = kit.workspace.session.path
        assert session.exists()
        with Workspace(kit.workspace.root, kit.store, kit.sources) as other:
            assert not session.exists()
        assert not other.session.path.exists()


class TestCleaning:
    def test_clean_keeps_wanted_layers(self, kit: Kit) -> None:
        jobs = [kit.chunk(name, build=[":"]) for name in ("one", "two")]
        for job in jobs:
            kit.build(job)
        assert kit.workspace.clean(keep={jobs[0].key})
        left = {path.name for path in (kit.workspace.root / "layers").iterdir()}
        assert left == {jobs[0].key}

    def test_trim_keeps_layers_that_builds_hold(self, kit: Kit) -> None:
        """Trimming begins with the layers used longest ago and stops once there is room."""
        job, blobs = kit.chunk("one", build=[":"]), kit.root / "copies"
        layers, held = kit.workspace.root / "layers", kit.base.key
        kit.build(job)
        blobs.mkdir()
        (blobs / "old").write_text("a copy")
        (blobs / ".fetch-new").write_text("under way")
        with kit.workspace.using():
            kit.workspace.session.hold(held)
            with Workspace(kit.workspace.root, kit.store, kit.sources) as other:
                other.trim(1 << 62, [blobs])
            assert {path.name for path in layers.iterdir()} == {held}
        assert [path.name for path in blobs.iterdir()] == [".fetch-new"]
        kit.workspace.trim(0)
        assert (layers / held).exists(), "there is room enough"
        kit.workspace.trim(1 << 62)
        assert list(layers.iterdir()) == []
        kit.build(kit.chunk("two", build=["ls /bin"]))
        assert (layers / held).exists(), "it has come back"

    def test_trim_keeps_layers_of_the_last_build_of_another_worker(self, kit: Kit) -> None:
        layer = kit.workspace.root / "layers" / kit.base.key
        kit.build(kit.chunk("one", build=[":"]))
        with Workspace(kit.workspace.root, kit.store, kit.sources) as other:
            other.trim(1 << 62)
            assert layer.exists()
            kit.workspace.trim(1 << 62)
            assert not layer.exists()
            kit.build(kit.chunk("two", build=[":"]))
            kit.workspace.close()
            other.trim(1 << 62)
            assert not layer.exists()

    def test_trim_order_is_by_last_use(self, tmp_path: Path) -> None:
        for number in (3, 1, 2):
            (tmp_path / f"tree-{number}").mkdir()
            os.utime(tmp_path / f"tree-{number}", (number, 5))
        assert mark_used(tmp_path / "tree-1")
        assert (tmp_path / "tree-1").stat().st_mtime == 5
        assert [path.name[-1] for path in by_age([tmp_path, tmp_path / "none"])] == ["2", "3", "1"]
        assert [path.name[-1] for path in by_age([tmp_path], {"tree-3": 1.0})] == ["3", "2", "1"]
        assert not mark_used(tmp_path / "none")

    def test_clean_does_nothing_during_a_build(self, kit: Kit) -> None:
        with kit.workspace.using():
            assert not kit.workspace.clean()

    @pytest.mark.parametrize("stamp", [b"another boot\n", b"", b"\xff\xc1"])
    def test_layers_are_removed_after_a_reboot(self, kit: Kit, stamp: bytes) -> None:
        job = kit.chunk(build=[":"])
        kit.build(job)
        root = kit.workspace.root
        with Workspace(root, kit.store, kit.sources):
            assert (root / "layers" / job.key).exists()
        (root / "boot").write_bytes(stamp)
        with Workspace(root, kit.store, kit.sources):
            assert not (root / "layers" / job.key).exists()

    def test_workspace_may_be_opened_by_many_at_once(self, kit: Kit, tmp_path: Path) -> None:
        def start(number: int, barrier: threading.Barrier) -> None:
            barrier.wait()
            Workspace(tmp_path / f"new-{number}", kit.store, kit.sources).close()

        with ThreadPoolExecutor(4) as pool:
            for number in range(50):
                barrier = threading.Barrier(4)
                list(pool.map(start, [number] * 4, [barrier] * 4))

    def test_workspace_is_private(self, kit: Kit) -> None:
        assert kit.workspace.root.stat().st_mode & 0o777 == 0o700


class TestShell:
    def test_shell_opens_the_tree_of_a_failed_build(
        self, kit: Kit, capfd: pytest.CaptureFixture[str]
    ) -> None:
        job = kit.chunk(
            source=kit.tree(file="text"),
            build=["echo made > made", "grep -q fixed file", "echo built"],
            install=["mkdir -p $DESTDIR/usr"],
        )
        with pytest.raises(BuildFailed):
            kit.build(job)
        script = "pwd; cat made; echo $MAKEFLAGS; echo fixed > file; sh /dev/steps build-commands"
        assert shell(job, kit.workspace, jobs=3, argv=["sh", "-c", script]) == 0
        output = capfd.readouterr().out
        assert output.startswith("/thing.build\nmade\n-j3\n### BUILD-COMMANDS ###\n")
        assert output.endswith("built\n")
        assert "INSTALL" not in output
        # changes in the tree are still there the next time
        assert shell(job, kit.workspace, jobs=3, argv=["sh", "/dev/steps"]) == 0
        assert "### INSTALL-COMMANDS ###" in capfd.readouterr().out

    def test_shell_opens_a_fresh_tree(self, kit: Kit, capfd: pytest.CaptureFixture[str]) -> None:
        job = kit.chunk(source=kit.tree(file="text"), build=["echo built > file; exit 3"])
        assert shell(job, kit.workspace, jobs=1, argv=["cat", "file"]) == 0
        assert capfd.readouterr().out == "text"
        assert shell(job, kit.workspace, jobs=1, argv=["sh", "/dev/steps"]) == 3
        assert not list((kit.workspace.root / "failed").iterdir())

    def test_shell_is_for_chunks_only(self, kit: Kit) -> None:
        job = Job(key="0", kind="stratum", name="s", arch="x86_64", log="", artifacts=())
        with pytest.raises(FabricError, match="s is a stratum"):
            shell(job, kit.workspace, jobs=1)


class TestSharedJob:
    """Two processes with one workspace build the same job."""

    def test_job_of_two_processes_is_built_once(self, kit: Kit) -> None:
        job = kit.chunk("slow", build=["echo begun; sleep 1; echo done"])
        phases: list[str] = []
        with (
            Workspace(kit.root / "work", kit.store, kit.sources) as other,
            ThreadPoolExecutor() as pool,
        ):
            first = pool.submit(kit.build, job)
            until(lambda: "build" in kit.phases)
            with Log(kit.root / "its-log") as log:
                second = build(job, other, log, CancelToken(), jobs=1, phase=phases.append)
                assert log.blob() == first.result().log, "it has that log"
        assert second == first.result()
        assert phases == [ELSEWHERE]

    @pytest.mark.parametrize("how", ["killed", "failed"])
    def test_job_is_built_here_if_the_other_process_ends(self, kit: Kit, how: str) -> None:
        job = kit.chunk("thing", install=["touch $DESTDIR/thing"])
        code = f"""
            import sys
            from pathlib import Path
            from fabric.host.locks import Locks
            held = Locks(Path({str(kit.root / "work/lock")!r})).take("job-{job.key}")
            print(flush=True)
            sys.stdin.read()
        """
        with (
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as other,
            ThreadPoolExecutor() as pool,
        ):
            assert other.stdin
            assert other.stdout
            other.stdout.readline()
            building = pool.submit(kit.build, job)
            until(lambda: kit.phases)
            assert kit.phases == [ELSEWHERE]
            if how == "killed":
                other.kill()
            other.stdin.close()
            assert building.result().name == "thing"
        assert kit.phases[1:] == ["fetch", "install", "store"]
