"""`fabric-initiator build` with the whole fabric on one machine."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from initiator_kit import Project
from waiting import until

import fabric
from fabric import config
from fabric.client.embedded import EmbeddedFabric
from fabric.config import load_settings
from fabric.errors import FabricError
from fabric.host.locks import Locks
from fabric.worker import NICE

ADD = "mkdir -p $DESTDIR/usr/share/{0}; cp hello.txt $DESTDIR/usr/share/{0}/"


def test_build_writes_logs_and_reports_its_result(project: Project) -> None:
    project.write(one=ADD.format("one"), two=("one", f"echo two says hello; {ADD.format('two')}"))
    done = project.build()
    assert done.returncode == 0, done.stderr
    assert "small is built: 4 built in" in done.stdout
    assert "fabric-initiator checkout ../systems/small.morph --to DIRECTORY" in done.stdout
    assert "two says hello" in project.log("two-misc")
    assert "+ cp hello.txt" in project.log("one-misc")
    again = project.build()
    assert again.returncode == 0
    assert "small is built: all 4 steps cached" in again.stdout
    out = project.run("checkout", "../systems/small.morph", "--to", "tree")
    assert out.returncode == 0, out.stderr
    assert (project.logs / "tree/usr/share/two/hello.txt").read_text() == "hello\n"
    assert (project.logs / "tree/baserock/two-misc.meta").exists()
    assert not project.processes()


def test_build_repeats_only_changed_steps(project: Project) -> None:
    project.write(one=ADD.format("one"), two=ADD.format("two"), three=("one", "true"))
    assert project.build().returncode == 0
    project.write(one=ADD.format("one"), two=ADD.format("zwei"), three=("one", "true"))
    done = project.build()
    assert "two: built" in done.stdout
    assert "one: built" not in done.stdout
    assert "three: built" not in done.stdout


def test_build_of_one_chunk(project: Project) -> None:
    project.write(one="true", two=("one", "true"), three="true")
    done = project.build("two")
    assert done.returncode == 0, done.stderr
    assert "two is built: 2 built" in done.stdout
    assert not (project.logs / "build-step-three-misc.log").exists()
    wrong = project.build("tow")
    assert wrong.returncode == 1
    assert "tow" in wrong.stderr
    assert "two" in wrong.stderr


def test_failed_build_shows_log_command_and_next_steps(project: Project) -> None:
    project.write(good="sleep 0.1", bad="echo about to fail\nfalse\necho never", after=("bad", ":"))
    done = project.build()
    assert done.returncode == 3
    assert "  | about to fail" in done.stdout
    assert "never" not in project.log("bad-misc").replace("echo never", "")
    assert "  install-commands:\n    echo about to fail\n    false\n" in done.stdout
    assert f"log:   {project.logs}/build-step-bad-misc.log" in done.stdout
    assert "shell: fabric-initiator shell bad --system ../systems/small.morph" in done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not (project.logs / "build-step-after-misc.log").exists()


def test_failed_build_cuts_a_long_command(project: Project) -> None:
    project.write(bad=f"false  # {'x' * 100_000}")
    done = project.build()
    assert done.returncode == 3, done.stderr
    assert "x ... (cut: it has 100,010 characters)" in done.stdout
    assert len(done.stdout) < 50_000
    assert "x" * 10_000 in project.log("bad-misc")


def test_failed_build_shows_a_name_that_is_not_utf8(project: Project) -> None:
    odd = """"$DESTDIR/$(printf '\\377')\""""
    project.write(one=f"mkdir {odd}", two=("one", f"ln -s one {odd}"))
    done = project.build()
    assert done.returncode == 3, done.stderr
    assert "has a symlink at /\\xff" in done.stdout.replace("\\udcff", "\\xff")


def test_keep_going_builds_all_that_can_be_built(project: Project) -> None:
    chunks = {f"c{i}": ("", f"echo {i}") for i in range(6)}
    project.write(bad="false", after=("bad", "true"), **chunks)
    done = project.build("--keep-going")
    assert done.returncode == 3
    assert all(f"c{i}: built" in done.stdout for i in range(6))
    assert "after: built" not in done.stdout


def test_failed_build_finishes_what_runs(project: Project) -> None:
    project.write(bad="sleep 0.5; false", slow="sleep 3", later="sleep 0.1")
    done = project.build("--workers", "2")
    assert done.returncode == 3
    assert "slow: built" in done.stdout
    assert "later: built" not in done.stdout
    assert done.stdout.index("bad failed") > done.stdout.index("slow: built")


def test_failed_build_with_fail_fast_cancels_what_runs(project: Project) -> None:
    project.write(bad="sleep 0.5; false", slow="sleep 1000")
    done = project.build("--workers", "2", "--fail-fast")
    assert done.returncode == 3
    assert "slow: built" not in done.stdout
    assert "not allowed with argument" in project.build("--fail-fast", "--keep-going").stderr


def test_json_reports_steps_and_result(project: Project) -> None:
    project.write(one="sleep 0.5")  # a short step may be reported only at its end
    done = project.build("--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    states = [(e["name"], e["state"]) for e in events if e["event"] == "step"]
    assert ("one", "running") in states
    assert ("one", "done") in states
    assert events[-1]["event"] == "built"
    assert len(events[-1]["artifacts"]["small-rootfs"]) == 64
    times = [datetime.fromisoformat(event["time"]) for event in events]
    assert times == sorted(times)
    assert times[0].utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("morph", "code", "message"),
    [
        ("small", 3, "small is not built: bad failed"),
        ("smell", 1, "../systems/smell.morph: no such system in {}; did you mean"),
    ],
)
def test_json_ends_with_the_reason_of_a_failure(
    project: Project, morph: str, code: int, message: str
) -> None:
    project.write(bad="false")
    done = project.run("build", f"../systems/{morph}.morph", "--json")
    last = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, last["event"], last["exit_code"]) == (code, "failed", code)
    assert last["message"].startswith(message.format(project.root))


def test_json_ends_with_an_interruption(project: Project) -> None:
    project.write(slow="sleep 1000")
    child = project.start("--json")
    until((project.logs / "build-step-slow-misc.log").exists)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("interrupted", 130)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_leaves_nothing_and_goes_on(project: Project, number: int) -> None:
    project.write(one="echo one", slow=("one", "sleep 1000"))
    child = project.start()
    until((project.logs / "build-step-slow-misc.log").exists)
    began = time.monotonic()
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert child.returncode == 130, err
    assert "interrupted" in out
    assert not project.processes()
    project.write(one="echo one", slow=("one", "sleep 0.1"))
    done = project.build()
    assert done.returncode == 0
    assert "one: built" not in done.stdout, "it was stored before"


@pytest.mark.parametrize("tenths", range(0, 30, 2))
def test_interrupted_build_leaves_nothing_at_any_moment(project: Project, tenths: int) -> None:
    """While it loads, resolves, builds or ends."""
    project.write(one="sleep 0.2", two=("one", "sleep 1"))
    child = project.start(program=[str(Path(sys.executable).with_name("fabric-initiator"))])
    time.sleep(tenths / 20)
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = child.communicate(timeout=60)
    took = time.monotonic() - began
    ours = rf"{re.escape(str(Path(fabric.__file__).parent))}/(?!__init__|__main__)"
    assert not re.search(ours, err), err
    while_python_starts = child.returncode == -signal.SIGINT or "Traceback" in err
    assert child.returncode in (0, 130) or while_python_starts, out + err
    assert "unexpected" not in err
    assert took < 10, "far from the seconds that children get"
    until(lambda: not project.processes())
    assert str(project.cache) not in Path("/proc/self/mounts").read_text()
    assert project.build().returncode == 0


@pytest.mark.parametrize(
    ("victim", "said"),
    [("fabric-broker", "the embedded broker ended (signal SIGKILL)"), ("", "fabric ended")],
)
def test_build_reports_a_killed_broker(project: Project, victim: str, said: str) -> None:
    project.write(slow="sleep 1000")
    child = project.start()
    until((project.logs / "build-step-slow-misc.log").exists)
    names = project.processes()
    victim = victim or names[child.pid]  # the zygote is a fork of it
    [killed] = [pid for pid, name in names.items() if name == victim and pid != child.pid]
    os.kill(killed, signal.SIGKILL)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 4
    assert said in err
    assert "Traceback" not in err
    until(lambda: not project.processes())


def test_build_ends_with_its_killed_initiator(project: Project) -> None:
    project.write(slow="sleep 1000")
    child = project.start()
    until((project.logs / "build-step-slow-misc.log").exists)
    assert len(project.processes()) > 3
    said = [Path(f"/proc/{pid}/fd/2").readlink() for pid in project.processes()]
    [sockets] = {path.parent for path in said if path.name == "broker.err"}
    child.kill()
    until(lambda: not project.processes())
    assert not sockets.exists()


def test_build_removes_leftovers_of_a_killed_one(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (temporary / "fabric-of-another-program").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    project.write(one="echo begun\nsleep 60")
    child = project.start()
    log = project.logs / "build-step-one-misc.log"
    until(lambda: log.exists() and "\nbegun\n" in log.read_text())
    for process in (child.pid, *project.processes()):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    child.wait()
    until(lambda: not project.processes())
    assert len(list(temporary.iterdir())) == 2
    killed = {file.name for file in (project.cache / "work/tmp").iterdir()}
    assert killed
    project.write(one="true")
    assert project.build().returncode == 0
    assert [file.name for file in temporary.iterdir()] == ["fabric-of-another-program"]
    # A slow machine leaves something of the build that has just ended to the next one.
    assert killed.isdisjoint(file.name for file in (project.cache / "work/tmp").iterdir())
    assert list((project.cache / "artifacts/reserved").iterdir()) == []


def test_build_reports_an_unusable_temporary_folder(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(one="true")
    monkeypatch.setenv("TMPDIR", "/proc/self/fdinfo")
    monkeypatch.setattr("tempfile.tempdir", "/proc/self/fdinfo")
    with pytest.raises(FabricError, match="no temporary folder for the sockets of this build: "):
        EmbeddedFabric(load_settings()).__enter__()


def test_build_replaces_a_killed_worker(project: Project) -> None:
    project.write(slow="touch /tmp/begun; sleep 3; echo made it")
    child = project.start("--workers", "1")
    until((project.logs / "build-step-slow-misc.log").exists)
    workers = [pid for pid, command in project.processes().items() if command == "fabric-worker"]
    os.kill(min(workers), signal.SIGKILL)  # others are children that are about to be bwrap
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, out + err
    assert "worker-1 ended (signal SIGKILL), another takes its place" in out
    assert "made it" in project.log("slow-misc")


def test_build_does_not_warn_while_its_workers_start(project: Project) -> None:
    project.write(one=ADD.format("one"))
    work = project.cache / "work"
    work.mkdir(parents=True)
    busy = Locks(work / "lock").take("sessions")  # without which no worker starts
    assert busy is not None
    child = project.start("--workers", "1")
    until(lambda: "one is ready" in project.run("why", "one").stdout)
    time.sleep(2)  # it polls every second
    os.close(busy)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, out + err
    assert "no worker" not in out + err


def test_build_fails_if_its_workers_cannot_start(project: Project) -> None:
    project.write(one=ADD.format("one"))
    (project.cache / "work").write_text("no folder\n")
    done = project.build("--workers", "1")
    assert done.returncode == 4, done.stdout
    assert "worker-6 ended (exit code 4):\nfabric-worker: " in done.stderr
    assert "no worker" not in done.stdout + done.stderr


def test_builds_in_one_folder_have_logs_of_their_own(project: Project) -> None:
    project.write(slow="echo one line; sleep 2; echo another")
    children = [project.start(), project.start()]
    for child in children:
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, out + err
    logs = [project.log("slow-misc"), project.log("slow-misc.2")]
    assert logs[0] == logs[1], "both have the whole log"
    assert logs[0].endswith("another\n")


def test_build_ends_its_daemons(project: Project) -> None:
    project.write(forks="(sleep 1000 &) ; setsid sleep 1000 & echo forked")
    done = project.build()
    assert done.returncode == 0, done.stderr
    assert not project.processes()


def test_build_commands_are_niced(project: Project) -> None:
    project.write(polite="nice; sleep 1000")
    child = project.start("--workers", "1", within=("nice", "-n", "7"))
    until((project.logs / "build-step-polite-misc.log").exists)
    until(lambda: "sleep" in project.log("polite-misc"))
    ours = [pid for pid, name in project.processes().items() if name != "bwrap"]
    levels = {os.getpriority(os.PRIO_PROCESS, pid) for pid in ours}
    own = os.getpriority(os.PRIO_PROCESS, 0) + 7
    if Path("/proc/self/autogroup").exists():  # the kernel shares processors among sessions first
        [bwrap] = [pid for pid, name in project.processes().items() if name == "bwrap"]
        [build] = Path(f"/proc/{bwrap}/task/{bwrap}/children").read_text().split()
        until(lambda: f" nice {own}\n" in Path(f"/proc/{build}/autogroup").read_text())
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert f"\n{own + NICE}\n" in project.log("polite-misc"), "the build is niced"
    assert levels == {own}, "and nothing else is"


def test_build_needs_few_descriptors(project: Project) -> None:
    project.write(**{f"c{n}": "echo here" for n in range(40)})
    built = project.start("--workers", "4", within=["prlimit", "--nofile=256:256"])
    said, errors = built.communicate(timeout=240)
    assert built.returncode == 0, said + errors
    assert all("here\n" in project.log(f"c{n}-misc") for n in range(40))


def test_build_timeout_ends_a_build(project: Project) -> None:
    project.write(slow="echo begins; sleep 1000")
    done = project.build("--build-timeout", "1")
    assert done.returncode == 3
    assert "begins" in project.log("slow-misc")
    assert "build-timeout" in done.stdout


def test_log_may_be_large_and_binary(project: Project) -> None:
    project.write(noise="head -c 30000000 /dev/urandom; yes 0123456789 | head -c 20000000")
    done = project.build()
    assert done.returncode == 0, done.stderr
    assert (project.logs / "build-step-noise-misc.log").stat().st_size > 50_000_000
    assert "not complete" not in done.stdout


def test_definitions_error_has_its_file_and_line(project: Project) -> None:
    project.write(one="true")
    morph = project.root / "strata/one.morph"
    morph.write_text(morph.read_text() + "bananas: 3\n")
    done = project.build()
    assert done.returncode == 1
    assert done.stderr.startswith("strata/one.morph:6: ")
    assert "bananas" in done.stderr


def test_build_reports_an_unwritable_log(project: Project) -> None:
    project.write(one="true")
    (project.logs / "build-step-one-misc.log").mkdir()
    done = project.build()
    assert done.returncode == 1
    assert "build-step-one-misc.log: cannot write the log there" in done.stderr
    assert not project.processes()


def test_build_reports_a_full_disk(project: Project, tmp_path: Path) -> None:
    """In a mount namespace of its own, with a store of one MiB."""
    project.write(small="echo small", big=("small", "head -c 3000000 /dev/urandom > $DESTDIR/big"))
    store = tmp_path / "store"
    store.mkdir()
    script = f'mount -t tmpfs -o size=1m none {store} && exec "$0" "$@"'
    namespace = ("unshare", "--map-root-user", "--mount", "sh", "-c", script)
    child = project.start("--artifacts", str(store), within=namespace)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 4, out + err
    assert "small: built" in out
    assert "big cannot be stored: No space left on device" in out
    assert "the disk is full: free some room" in out
    assert "Traceback" not in out + err
    assert not project.processes()
    assert project.build().returncode == 0


def test_build_reports_an_unwritable_store(project: Project, tmp_path: Path) -> None:
    project.write(one="true")
    (tmp_path / "file").write_text("")
    done = project.run(
        "build", "../systems/small.morph", "--artifacts", str(tmp_path / "file/store")
    )
    assert done.returncode in (1, 3, 4)
    assert str(tmp_path / "file") in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_build_rejects_an_architecture_that_is_not_configured(project: Project) -> None:
    project.write(one="true", two=("one", "true"))
    morph = project.root / "systems/small.morph"
    morph.write_text(morph.read_text().replace("arch: x86_64", "arch: ppc64"))
    done = project.build()
    here = config.native_architectures()
    named = ", ".join(f'"{each}"' for each in (*here, "ppc64"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "fabric-initiator: systems/small.morph: one has to be built for ppc64, and this machine"
        f" builds {' and '.join(here)}. Build it on a farm that has a worker for"
        " ppc64: --controller HOST. If programs for ppc64 run here, set in /dev/null:"
        f" architectures = [{named}]"
    )
    settings = project.root / "settings.toml"
    settings.write_text('architectures = ["x86_64", "ppc64"]')
    done = project.run("build", "../systems/small.morph", environ={"FABRIC_CONFIG": str(settings)})
    assert done.returncode == 0, done.stderr


def test_build_for_x86_32_sees_such_a_machine(project: Project) -> None:
    if "x86_32" not in config.native_architectures():
        pytest.skip("this kernel runs no programs for x86_32")
    project.write(one="uname -m")
    morph = project.root / "systems/small.morph"
    morph.write_text(morph.read_text().replace("arch: x86_64", "arch: x86_32"))
    done = project.build()
    assert done.returncode == 0, done.stderr
    assert "\ni686\n" in project.log("one-misc")


def test_build_reports_replaced_files_in_one_line(project: Project) -> None:
    """Also if all is cached."""
    both = "mkdir -p $DESTDIR/etc; for name in a b; do echo {} > $DESTDIR/etc/$name; done"
    project.write(one=both.format(1), two=both.format(2))
    for _ in range(2):
        done = project.build()
        assert done.returncode == 0, done.stderr
        notes = [line for line in done.stdout.splitlines() if line.startswith("  note ")]
        assert notes == [
            "  note   /etc/a of one-misc is replaced by that of two-misc, and 1 more file"
            " likewise: its log names them"
        ]
