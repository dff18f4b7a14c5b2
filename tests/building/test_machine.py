"""Workers on full or restricted machines, and killed workers, each as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from building_kit import processes_naming
from children import child_environment

from fabric.building.archive import Packed
from fabric.errors import MachineFault

SCENARIO = Path(__file__).with_name("scenario.py")
#: The id of an ordinary user, for tests that run as root.
NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that an ordinary user can reach and write to."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "root").mkdir()
        yield path


def scenario(
    name: str,
    place: Path,
    base: Packed,
    *,
    within: str = "",
    uid: int | None = None,
    path: str = os.environ["PATH"],
) -> list[str]:
    """The command line that plays a scenario, ``within`` a shell command that ends in `exec`."""
    archive = place / "base.tar.zst"
    archive.unlink(missing_ok=True)
    if isinstance(base.content, bytes):
        archive.write_bytes(base.content)
    else:
        archive.write_bytes(base.content.read_bytes())
    argv = [sys.executable, "-W", "error", str(SCENARIO), name, str(place / "root"), str(archive)]
    if uid is not None and os.geteuid() == 0:
        os.chown(place / "root", uid, uid)
        argv.append(str(uid))
    return ["sh", "-c", f'{within} exec "$@"', "sh", "env", f"PATH={path}", *argv]


def play(argv: list[str], unshare: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run a scenario; returns its exit status and output."""
    if unshare and os.geteuid() != 0:
        unshare = ("--user", "--map-root-user", *unshare)
    prefix = ["unshare", *unshare] if unshare else []
    environment = child_environment()
    done = subprocess.run(
        [*prefix, *argv], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("uid", [None, NOBODY])
def test_worker_builds_as_an_ordinary_user(place: Path, base: Packed, uid: int | None) -> None:
    status, output = play(scenario("everything", place, base, uid=uid))
    assert status == 0, output
    lines = output.splitlines()
    assert lines == [
        "usr 5 755 0",
        "usr/bin 5 755 0",
        "usr/bin/dark 5 0 0",
        "usr/bin/dark/in 0 644 3",
        lines[4],
        "usr/bin/other 1 4111 0",
        "usr/bin/shut 0 0 2",
        "left:",
    ]
    assert lines[4].startswith("usr/bin/it 0 4111 ")


@pytest.mark.parametrize("uid", [None, NOBODY])
def test_worker_removes_nested_folders_without_permissions(
    place: Path, base: Packed, uid: int | None
) -> None:
    status, output = play(scenario("shut", place, base, uid=uid))
    assert (status, output) == (0, "left:\n")


def test_workers_of_several_users_share_no_file(base: Packed) -> None:
    """A file that they shared would let one delay or deceive another."""
    for uid in (None, NOBODY, NOBODY - 1):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
            own = Path(name)
            own.chmod(0o755)
            (own / "root").mkdir()
            status, output = play(scenario("ldconfig", own, base, uid=uid))
            assert status == 0, output


class TestFullDisk:
    MOUNT = "mount -t tmpfs -o size=40m none {0} && chmod 777 {0} &&"

    @pytest.mark.parametrize("name", ["fill", "almost-fill", "was-full", "was-full-and-well"])
    def test_full_disk_is_a_machine_fault_and_leaves_nothing(
        self, place: Path, base: Packed, name: str
    ) -> None:
        within = self.MOUNT.format(place / "root")
        status, output = play(scenario(name, place, base, within=within), ("--mount",))
        assert status == MachineFault.exit_code, output
        assert "MachineFault: thing:" in output or "MachineFault: The disk of" in output
        assert "full" in output
        assert output.splitlines()[-1] == "left:"

    def test_full_disk_keeps_the_tree_of_a_failed_build(self, place: Path, base: Packed) -> None:
        within = self.MOUNT.format(place / "root")
        status, output = play(scenario("look-inside", place, base, within=within), ("--mount",))
        assert (status, output) == (
            0,
            "build-commands failed with exit status 1: echo half > made; false\nhalf\n",
        )


class TestSandboxCannotStart:
    def test_sandbox_reports_forbidden_user_namespaces(self, place: Path, base: Packed) -> None:
        within = "echo 0 > /proc/sys/user/max_user_namespaces &&"
        argv = scenario("plain", place, base, within=within)
        status, output = play(argv, ("--user", "--map-root-user"))
        assert status == MachineFault.exit_code, output
        assert "MachineFault: bwrap: " in output
        assert "user.max_user_namespaces" in output

    def test_sandbox_reports_missing_bubblewrap(self, place: Path, base: Packed) -> None:
        status, output = play(scenario("plain", place, base, path="/nowhere"))
        assert status == MachineFault.exit_code
        assert "install bubblewrap" in output

    def test_sandbox_reports_old_bubblewrap(self, place: Path, base: Packed) -> None:
        (place / "bwrap").write_text(
            "#!/bin/sh\necho 'bwrap: Unknown option --overlay-src' >&2; exit 1\n"
        )
        (place / "bwrap").chmod(0o755)
        argv = scenario("plain", place, base, path=f"{place}:{os.environ['PATH']}")
        status, output = play(argv)
        assert status == MachineFault.exit_code
        assert "0.11 or newer" in output


def test_sandbox_ends_with_its_killed_worker(place: Path, base: Packed) -> None:
    argv = scenario("beat", place, base)
    environment = child_environment()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment) as worker:
        deadline = time.monotonic() + 60
        while not (beats := list(place.glob("root/**/beat"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        worker.kill()
    deadline = time.monotonic() + 60
    while processes_naming(place) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_naming(place) == []
    size = beats[0].stat().st_size
    time.sleep(0.2)
    assert beats[0].stat().st_size == size
    # the next worker removes what it left
    status, output = play(scenario("plain", place, base))
    assert status == 0, output
    assert output.splitlines()[-1] == "left:"


def test_sandbox_ends_if_its_worker_is_killed_before_bubblewrap_runs(
    place: Path, base: Packed
) -> None:
    """bubblewrap then requests too late to be killed with its parent."""
    slow = place / "bwrap"
    slow.write_text(
        f"#!/bin/sh\n: > {place}/starting\nwhile [ ! -e {place}/killed ]; do sleep 0.01; done\n"
        f'exec {shutil.which("bwrap")} "$@"\n'
    )
    slow.chmod(0o755)
    argv = scenario("beat", place, base, path=f"{place}:{os.environ['PATH']}")
    environment = child_environment()
    deadline = time.monotonic() + 60
    with subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    ) as worker:
        while not (place / "starting").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        worker.kill()
    try:
        assert processes_naming(place) != []
        (place / "killed").touch()
        while processes_naming(place) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_naming(place) == []
        assert list(place.glob("root/**/beat")) == [], "no command has run"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
