"""Broker and worker as services: systemd, journald, metrics, signals."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from farm_kit import HOST, Farm
from waiting import until

from fabric.host.daemon import free_disk, free_memory
from fabric.host.event_log import EventLog
from fabric.host.sd_notify import Supervisor


class Listening:
    """A socket in place of systemd's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(20.0)

    def hear(self) -> bytes:
        return self._socket.recv(65536)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listening(directory: Path) -> Iterator[Listening]:
    made = Listening(directory / "systemd")
    yield made
    made.close()


def test_daemon_exit_waits_for_no_thread() -> None:
    """A thread may wait for a store that does not answer; systemd allows 15 seconds."""
    text = (
        "import threading, time; from fabric.host import daemon\n"
        "def main():\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    print('ended')\n"
        "    return 3\n"
        "daemon.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (3, b"ended\n")


# -- systemd and journald ------------------------------------------------------------------


def test_supervisor_notifies_systemd(listening: Listening) -> None:
    environ = {"NOTIFY_SOCKET": str(listening.path), "WATCHDOG_USEC": "4000000", "X": "y"}
    supervisor = Supervisor(environ)
    assert environ == {"X": "y"}, "children are not to be taken for us"
    supervisor.ready("here")
    for now in (10.0, 11.0, 12.0, 13.0, 14.5):
        supervisor.alive(now)
    supervisor.stopping()
    heard = [listening.hear() for _ in range(5)]
    assert heard == [b"READY=1\nSTATUS=here", *[b"WATCHDOG=1"] * 3, b"STOPPING=1"]


@pytest.mark.parametrize("name", ["user@1000/notify", "@fabric-test/a@b-%d"])
def test_supervisor_socket_is_abstract_only_after_an_at_sign(tmp_path: Path, name: str) -> None:
    at = name % os.getpid() if name.startswith("@") else str(tmp_path / name)
    (tmp_path / "user@1000").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{at[1:]}" if at.startswith("@") else at)
        heard.settimeout(20.0)
        Supervisor({"NOTIFY_SOCKET": at}).ready()
        assert heard.recv(100) == b"READY=1"


def test_supervisor_without_systemd_does_nothing() -> None:
    supervisor = Supervisor({})
    supervisor.ready()
    supervisor.alive(1.0)
    Supervisor({"NOTIFY_SOCKET": "/nowhere/at/all"}).ready()


def test_event_log_writes_fields_to_journald(listening: Listening, tmp_path: Path) -> None:
    program = (
        "import os, sys; from fabric.host.event_log import EventLog\n"
        "status = os.fstat(2); environ = {'JOURNAL_STREAM': f'{status.st_dev}:{status.st_ino}'}\n"
        f"note = EventLog('me', environ=environ, journald={str(listening.path)!r})\n"
        "note('two\\nlines', request=('r1', 'r2'), step='zlib', worker='')\n"
        "note.info('one')\n"
    )
    with (tmp_path / "err").open("wb") as errors:
        subprocess.run([sys.executable, "-c", program], stderr=errors, check=True)
    assert listening.hear() == (
        b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY=4\nSYSLOG_IDENTIFIER=me\n"
        b"FABRIC_REQUEST=r1\nFABRIC_REQUEST=r2\nFABRIC_STEP=zlib\n"
    )
    assert listening.hear() == b"MESSAGE=one\nPRIORITY=6\nSYSLOG_IDENTIFIER=me\n"
    assert (tmp_path / "err").read_bytes() == b""


def test_event_log_writes_to_stderr_without_journald(capsys: pytest.CaptureFixture[str]) -> None:
    EventLog("me", environ={})("a warning", worker="w1")
    EventLog("me", environ={}).info("hidden")
    EventLog("me", chatty=True, environ={"JOURNAL_STREAM": "1:2"}).info("shown")
    assert capsys.readouterr().err == "me: a warning\nme: shown\n"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
@pytest.mark.parametrize("program", ["fabric-broker", "fabric-worker", "fabric-web"])
def test_units_are_valid(tmp_path: Path, program: str) -> None:
    text = resources.files("fabric").joinpath(f"units/{program}.service").read_text()
    installed = Path(sys.executable).with_name(program)
    assert f"\nExecStart={program} " in text
    unit = tmp_path / f"{program}.service"
    unit.write_text(text.replace(f"ExecStart={program}", f"ExecStart={installed}"))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_unit_of_the_web_page_is_confined() -> None:
    """Of the units, only this one serves strangers.  The broker's has an exposure of 8.3."""
    with resources.as_file(resources.files("fabric").joinpath("units/fabric-web.service")) as unit:
        command = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_free_disk_and_memory_are_measured(tmp_path: Path) -> None:
    assert free_memory() > 0
    free, wrong = free_disk(tmp_path, 1)
    assert free > 0
    assert wrong == ""
    free, wrong = free_disk(tmp_path, 2**60)
    assert wrong.endswith(f"{free / 2**30:.1f} GiB free, fewer than {2**30}.0")
    assert "No such file" in free_disk(tmp_path / "x", 1)[1]


# -- the programs --------------------------------------------------------------------------


def test_broker_notifies_systemd_and_ends_cleanly(
    farm: Farm, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm.kill()
    monkeypatch.setenv("NOTIFY_SOCKET", str(listening.path))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    farm.start()
    assert listening.hear() == b"READY=1"
    assert listening.hear() == b"WATCHDOG=1"
    farm.child.terminate()
    while (heard := listening.hear()) == b"WATCHDOG=1":
        pass
    assert heard == b"STOPPING=1"
    assert farm.child.wait(10.0) == 0


def test_web_page_notifies_systemd_and_ends_cleanly(
    farm: Farm, listening: Listening, tmp_path: Path
) -> None:
    farm.key("viewer", "web-page")
    config = tmp_path / "web.toml"
    config.write_text(
        f'controller = "{HOST}"\nkeys = "{farm.directory}/web-page"\nlisten = "{HOST}"\nport = 0\n'
        f'cache = "{tmp_path}/cache"\nartifacts = "{farm.directory}/store"\n'
    )
    environ = os.environ | {"NOTIFY_SOCKET": str(listening.path), "WATCHDOG_USEC": "200000"}
    command = [sys.executable, "-m", "fabric.web.program", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True) as child:
        assert child.stdout is not None
        address = child.stdout.readline().strip()
        assert listening.hear() == b"READY=1"
        asked = urllib.request.Request(address.replace("?", "health?"))
        asked.add_header("Authorization", f"Bearer {address.partition('token=')[2]}")
        with urllib.request.urlopen(asked) as page:
            assert page.status == 200
        assert listening.hear() == b"WATCHDOG=1"
        child.terminate()
        while (heard := listening.hear()) == b"WATCHDOG=1":
            pass
        assert heard == b"STOPPING=1"
        assert child.wait(10.0) == 0


def test_broker_serves_metrics_for_prometheus(farm: Farm) -> None:
    farm.kill()
    text = farm.config.read_text().replace('metrics = ""', f'metrics = "{HOST}:7419"')
    farm.config.write_text(text)
    farm.start()
    worker = farm.worker("w1", slots=3)

    def told() -> str:
        try:
            with urllib.request.urlopen(f"http://{HOST}:7419/metrics") as page:
                return str(page.read().decode())
        except OSError:
            return ""

    until(lambda: 'fabric_worker_slots{worker="w1"} 3.0' in told())
    page = told()
    assert 'fabric_workers{state="idle"} 1.0' in page
    assert "process_resident_memory_bytes" in page
    assert "fabric_journal_writable 1.0" in page
    assert worker.error is None


@contextlib.contextmanager
def running(farm: Farm, listening: Listening, least: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Run a real worker that needs ``least`` bytes of free disk."""
    farm.key("worker", "w1")
    config = farm.directory / "worker.toml"
    config.write_text(
        f'controller = "{HOST}"\nkeys = "{farm.directory}/w1"\nslots = 2\n'
        f'cache = "{farm.directory}/cache"\nartifacts = "{farm.directory}/store"\n'
        f"min-free-disk = {least}\n"
    )
    environ = os.environ | {"NOTIFY_SOCKET": str(listening.path)}
    with (farm.directory / "worker.err").open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "fabric.worker", "--config", str(config)],
            stderr=errors, env=environ,
        )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def daemon(farm: Farm, listening: Listening) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker."""
    with running(farm, listening) as child:
        yield child


def test_worker_on_a_full_disk_removes_exports_from_before_a_reboot(
    farm: Farm, listening: Listening
) -> None:
    exported = farm.directory / "cache/trove/trees/the-boot-before/tree"
    exported.mkdir(parents=True)
    with running(farm, listening, least=1 << 60):
        until(lambda: not exported.exists())


def test_worker_survives_lost_brokers_and_rejected_keys_until_it_is_stopped(
    farm: Farm, daemon: subprocess.Popen[bytes], listening: Listening
) -> None:
    assert listening.hear() == b"READY=1"

    def said(text: str) -> bool:
        assert daemon.poll() is None
        return text in (farm.directory / "worker.err").read_text()

    farm.kill()
    until(lambda: said("cannot be reached"))
    farm.start()
    until(lambda: said("the broker answers again"))
    (farm.keys / "admitted" / "w1.key").unlink()
    until(lambda: said("does not admit the key of w1"))
    daemon.send_signal(signal.SIGTERM)
    assert listening.hear() == b"STOPPING=1"
    assert daemon.wait(10.0) == 0


def test_worker_reports_a_name_that_differs_from_its_key(farm: Farm) -> None:
    farm.key("worker", "w1")
    config = farm.directory / "worker.toml"
    config.write_text(
        f'controller = "{HOST}"\nkeys = "{farm.directory}/w1"\nname = "w2"\n'
        f'cache = "{farm.directory}/cache"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "fabric.worker", "--config", str(config)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "name: the settings say w2, but the key in" in done.stderr


def test_event_log_indents_further_lines_of_a_title(capsys: pytest.CaptureFixture[str]) -> None:
    EventLog("me", chatty=True, environ={}).info("request r1: a title\nme: request r2: failed")
    assert capsys.readouterr().err == "me: request r1: a title\n  me: request r2: failed\n"


def test_event_log_ignores_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        EventLog("me", environ={})("a warning")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
