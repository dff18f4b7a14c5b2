"""The other sub-commands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from initiator_kit import INITIATOR, Project
from small_definitions import git
from waiting import until

from fabric.bounds import FAILURES
from fabric.client.failures import Failure, Failures
from fabric.digest import Digest

SYSTEM = "../systems/small.morph"
SHARE = "mkdir -p $DESTDIR/usr/bin; cp hello.txt $DESTDIR/usr/bin/{0}"


def built(project: Project) -> Project:
    project.write(one=SHARE.format("one"), two=("one", f"echo two is here; {SHARE.format('two')}"))
    done = project.build()
    assert done.returncode == 0, done.stderr + done.stdout
    return project


def test_graph_offline_needs_no_repository(project: Project) -> None:
    project.write(one="true", two=("one", "true"))
    shutil.rmtree(project.source)
    done = project.run("graph", SYSTEM, "--json", "--offline")
    assert done.returncode == 0, done.stderr
    graph = json.loads(done.stdout)
    assert (graph["system"], graph["arch"]) == ("small", "x86_64")
    steps = {step["name"]: step for step in graph["steps"]}
    assert steps["two"]["depends"] == [steps["one"]["id"]]
    assert steps["two"]["staged"] == [steps["one"]["id"]]
    assert steps["two"]["strata"] == ["things"]
    assert steps["small"]["in_system"] is True
    assert set(steps["one"]) >= {
        *("id", "kind", "name", "strata", "repo", "ref", "morph", "build_system", "mode"),
        *("prefix", "depends", "staged", "path_prefixes", "in_system"),
    }
    assert [file.name for file in project.cache.iterdir()] == ["host-tools.json"]


def test_graph_prints_a_tree_and_graphviz(project: Project) -> None:
    project.write(one="true", two=("one", "true"))
    tree = project.run("graph", SYSTEM)
    assert "two  (" in tree.stdout
    assert "digraph" in project.run("graph", SYSTEM, "--dot").stdout


def test_show_lists_cached_steps_and_reasons_of_others(project: Project) -> None:
    built(project)
    project.write(one=SHARE.format("one"), two=("one", "echo changed"))
    rows = {line.split()[2]: line for line in project.run("show", SYSTEM).stdout.splitlines()}
    assert rows["one"].endswith("cached")
    assert rows["two"].endswith("  install-commands changed (strata/two.morph:3)")
    assert rows["small"].endswith("  because of two: install-commands changed (strata/two.morph:3)")
    details = project.run("show", SYSTEM, "one").stdout
    assert "artifact  one-bins: " in details
    assert "file://" in details
    facts = json.loads(project.run("show", SYSTEM, "--json").stdout)
    assert {fact["name"]: fact["cached"] for fact in facts} == {
        "one": True,
        "two": False,
        "things": False,
        "small": False,
    }


def test_show_reports_time_and_log_of_a_failed_step(project: Project) -> None:
    project.write(one="true", bad="false")
    assert project.build().returncode == 3
    rows = {line.split()[2]: line for line in project.run("show", SYSTEM).stdout.splitlines()}
    when = r"failed \d{4}-\d\d-\d\d \d\d:\d\d: install-commands failed with exit status 1: false"
    assert re.search(when, rows["bad"]), rows["bad"]
    log = project.logs / "build-step-bad-misc.log"
    details = project.run("show", SYSTEM, "bad").stdout
    assert re.search(rf"state +{when}\nlog +{re.escape(str(log))}\n", details), details
    [fact] = json.loads(project.run("show", SYSTEM, "bad", "--json").stdout)
    assert fact["failed"]["log"] == str(log)
    assert datetime.fromisoformat(fact["failed"]["at"]).utcoffset() == timedelta(0)
    log.unlink()
    assert f"{log} (gone)\n" in project.run("show", SYSTEM, "bad").stdout
    project.write(one="true", bad="true")
    assert project.build().returncode == 0
    assert "failed" not in project.run("show", SYSTEM).stdout


@pytest.mark.bound("FAILURES")
def test_failures_past_the_bound_are_forgotten_oldest_first(tmp_path: Path) -> None:
    failures = Failures(tmp_path)
    for number in range(FAILURES + 1):
        failure = Failure(datetime.now(UTC), "it failed", f"/{number}")
        failures.note(Digest(f"{number:064x}"), failure)
        os.utime(tmp_path / f"{number:064x}", (number, number))
    assert failures.of(Digest(f"{0:064x}")) is None
    newest = failures.of(Digest(f"{FAILURES:064x}"))
    assert newest is not None
    assert newest.log == f"/{FAILURES}"
    assert len(list(tmp_path.iterdir())) == FAILURES


def test_logs_are_stored_with_their_artifacts(project: Project) -> None:
    built(project)
    live = project.log("two-misc")
    for name in ("two", "two-misc", "two-bins"):
        assert project.run("logs", name).stdout == live
    assert "two is here" in json.loads(project.run("logs", "two", "--json").stdout)["log"]
    wrong = project.run("logs", "three")
    assert wrong.returncode == 1
    assert "name the system with --system" in wrong.stderr
    wrong = project.run("logs", "tow")
    assert wrong.stderr == (
        f"fabric-initiator: tow: no system in {project.root / 'systems'} has a chunk of that name;"
        " did you mean 'two'?\n"
    )
    (project.root / "strata/one.morph").write_text("kind: chunk\n")
    wrong = project.run("logs", "two")
    assert wrong.returncode == 1
    assert "some systems have mistakes:\nstrata/one.morph:" in wrong.stderr


def test_chunk_named_alone_is_of_the_last_system_built_else_of_the_smallest(
    project: Project,
) -> None:
    project.write(one="true", two=("one", "true"), three="true")
    stratum = project.root / "strata/things.morph"
    things, three = stratum.read_text().split("- name: three")
    stratum.write_text(things)
    header = "name: more\nkind: stratum\nchunks:\n- name: three"
    (project.root / "strata/more.morph").write_text(header + three)
    small = (project.root / "systems/small.morph").read_text()
    for name, text in {
        "arm": small.replace("x86_64", "aarch64"),
        "big": small + "- {name: more, morph: strata/more.morph}\n",
    }.items():
        text = text.replace("name: small", f"name: {name}")
        (project.root / f"systems/{name}.morph").write_text(text)

    def system_of(chunk: str) -> str:
        missing = project.run("artifact", "show", chunk).stderr
        return missing.split("run: fabric-initiator build systems/")[1].split(".morph")[0]

    assert [system_of(chunk) for chunk in ("one", "three")] == ["small", "big"]
    done = project.run("build", "../systems/big.morph", "three")
    assert done.returncode == 0, done.stderr
    assert system_of("one") == "big"


def test_checkout_of_a_stratum_that_the_system_takes_in_part(project: Project) -> None:
    project.write(one=SHARE.format("one"), two=SHARE.format("two"))
    (project.root / "systems/small.morph").write_text(
        "name: small\nkind: system\narch: x86_64\nstrata:\n"
        "- name: things\n  morph: strata/things.morph\n  artifacts: [things-runtime]\n"
    )
    stratum = project.root / "strata/things.morph"
    stratum.write_text(
        f"{stratum.read_text()}products:\n"
        "- artifact: things-devel\n  include: ['.*-misc']\n"
        "- artifact: things-runtime\n  include: ['.*-bins']\n"
    )
    assert project.build().returncode == 0
    assert "cached" in project.build().stdout
    for name in ("things", "things-runtime", "things-devel"):
        done = project.run("checkout", SYSTEM, name, "--to", name)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (project.logs / "things/usr/bin").iterdir()} == {"one", "two"}
    shutil.rmtree(project.cache / "artifacts")
    done = project.run("checkout", SYSTEM, "things-runtime", "--to", "again")
    assert done.stderr == (
        "fabric-initiator: one-bins: not built yet with these inputs;"
        " run: fabric-initiator build systems/small.morph things\n"
    )


def test_hints_name_the_program_as_it_was_called(project: Project) -> None:
    project.write(one="true")
    program = os.path.relpath(Path(sys.executable).with_name("fabric-initiator"), project.logs)
    path = os.environ["PATH"].replace(str(Path(sys.executable).parent), "/nowhere")
    environ = {**project.environ, "PATH": path}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=project.logs, env=environ, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert f"files  {program} checkout {SYSTEM} --to DIRECTORY\n" in run(program, "build", SYSTEM)
    environ["PATH"] = f"{Path(sys.executable).parent}:{path}"
    for called in ("fabric-initiator", program):
        assert "files  fabric-initiator checkout" in run(called, "build", SYSTEM)


def test_checkout_to_a_directory_and_to_tars(project: Project) -> None:
    built(project)
    done = project.run("checkout", SYSTEM, "one-bins", "--to", "one")
    assert done.returncode == 0, done.stderr
    assert (project.logs / "one/usr/bin/one").read_text() == "hello\n"
    assert not (project.logs / "one/usr/bin/two").exists()
    assert project.run("checkout", SYSTEM, "--to", "small.tar").returncode == 0
    with tarfile.open(project.logs / "small.tar") as tar:
        assert "usr/bin/two" in tar.getnames()
        assert all((m.uid, m.gid) == (0, 0) for m in tar.getmembers())
    refused = project.run("checkout", SYSTEM, "--to", "small.tar")
    assert refused.returncode == 1
    assert "--force replaces it" in refused.stderr
    assert project.run("checkout", SYSTEM, "--to", "small.tar", "--force").returncode == 0


SETUID = """\
mkdir -p "$DESTDIR"/usr/bin; cd "$DESTDIR"/usr/bin
for mode in 4755 2755 755; do echo x > it-$mode; chmod $mode it-$mode; done
ln it-4755 again
"""


def test_checkout_gives_no_user_rights_of_another(project: Project) -> None:
    project.write(one=SETUID)
    assert project.run("build", SYSTEM).returncode == 0
    done = project.run("checkout", SYSTEM, "one-bins", "--to", "there")
    assert done.returncode == 0, done.stderr
    there = project.logs / "there"
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (there / "usr/bin").iterdir()}
    if os.geteuid() == 0:
        assert modes == {"it-4755": 0o4755, "again": 0o4755, "it-2755": 0o2755, "it-755": 0o755}
        assert there.stat().st_mode & 0o7777 == 0o700
        assert done.stderr == (
            "there: only root can enter it, because it has setuid programs;"
            " `chmod 755 there` opens it to others\n"
        )
    else:
        assert set(modes.values()) == {0o755}
        assert there.stat().st_mode & 0o7777 == 0o755


def test_checkout_replaces_files_only_once_it_is_complete(project: Project) -> None:
    built(project)
    kept = project.logs / "kept.tar"
    kept.write_text("kept")
    os.mkfifo(project.logs / "pipe")
    (project.logs / "link").symlink_to(kept)
    for to, said in (
        (".", f".: not replaced, because it holds {project.logs}"),
        ("..", f"..: not replaced, because it holds {project.logs}"),
        ("../strata/..", f"not replaced, because it holds {project.logs}"),
        (str(project.cache), f"not replaced, because it holds {project.cache}"),
        ("pipe", "pipe: neither a folder nor an ordinary file"),
        ("/proc/nothing", "/proc/nothing cannot be written: "),
        ("/proc/nothing.tar", "/proc/nothing.tar cannot be written: "),
    ):
        done = project.run("checkout", SYSTEM, "--to", to, "--force")
        assert done.returncode == 1
        assert said in done.stderr
    # two archives do not fit one tar
    assert project.run("checkout", SYSTEM, "one", "--to", "kept.tar", "--force").returncode == 1
    assert kept.read_text() == "kept"
    for _ in range(2):
        assert project.run("checkout", SYSTEM, "--to", "link", "--force").returncode == 0
    assert (project.logs / "link/usr/bin/two").read_text() == "hello\n"
    assert not list(project.logs.glob(".link*"))
    assert kept.read_text() == "kept"


def test_shell_opens_the_sandbox_of_a_failed_build(project: Project) -> None:
    project.write(one="echo left behind > trace; false")
    assert project.build().returncode == 3
    done = project.run("shell", "one", "--", "sh", "-c", "cat trace; pwd; id -u")
    assert done.returncode == 0, done.stderr
    assert "left behind" in done.stdout
    assert "/one.build" in done.stdout
    assert done.stdout.splitlines()[-1] == "0"


def test_gc_removes_old_steps_and_keeps_named_ones(project: Project) -> None:
    built(project)
    young = json.loads(project.run("gc", "--json").stdout)
    assert young["steps"] == 0
    assert young["left"]["steps"] == 4
    kept = project.run("gc", "--keep-days", "0", "--keep", SYSTEM)
    assert kept.returncode == 0, kept.stderr
    assert "all 4 steps cached" in project.build().stdout
    gone = json.loads(project.run("gc", "--json", "--keep-days", "0").stdout)
    assert gone["steps"] == 4
    assert "4 built" in project.build().stdout


def files_of(folder: Path) -> dict[str, int]:
    """Paths and sizes of the files below a folder, without locks and records of processes."""
    return {
        str(path.relative_to(folder)): path.lstat().st_size
        for path in folder.rglob("*")
        if not path.is_dir() and path.lstat().st_size and "/work/tmp/" not in str(path)
    }


def test_gc_reports_freed_bytes_by_kind_as_does_dry_run(project: Project) -> None:
    project.write(one='head -c 300000 /dev/urandom > "$DESTDIR"/big', two=("one", "true"))
    assert project.build().returncode == 0
    for blob in (project.cache / "artifacts/blobs").rglob("*"):
        os.utime(blob, (1e9, 1e9))  # they are young for a second
    before = files_of(project.cache)
    planned = json.loads(project.run("gc", "--dry-run", "--json", "--keep-days", "0").stdout)
    assert files_of(project.cache) == before, "nothing is removed"
    said = project.run("gc", "--dry-run", "--keep-days", "0").stdout.splitlines()
    assert files_of(project.cache) == before, "nothing is removed"
    gone = json.loads(project.run("gc", "--json", "--keep-days", "0").stdout)
    after = files_of(project.cache)
    assert gone == {**planned, "dry_run": False, "left": {"steps": 0, "bytes": 0}}
    assert [line.split()[0] for line in said[:11]] == [
        *("copies", "logs", "facts", "orders", "source", "downloads", "repositories", "layers"),
        *("scratch", "artifacts", "blobs"),
    ]
    assert said[11].startswith(
        f"{gone['steps']} steps and {gone['blobs']} blobs would be removed, "
    )
    assert said[11].endswith(" would be freed")
    assert gone["freed"]["layers"] > 300000
    assert gone["freed"]["blobs"] > 300000
    freed = sum(before.values()) - sum(after.values())
    assert abs(gone["bytes"] - freed) < 1000, "beside a few small notes of ours"


def test_gc_keeps_all_that_a_live_build_needs(project: Project) -> None:
    for number in range(30):  # so many are overlaid, not copied
        (project.source / f"file-{number}").write_text(f"{number}\n")
    git(project.source, "add", ".")
    git(project.source, "commit", "-qm", "second")
    hold = f"sleep 1000.{os.getpid()}"
    project.write(one='touch "$DESTDIR"/one', two=("one", f"echo begun\n{hold} || :\ncat file-29"))
    child = project.start()
    log = project.logs / "build-step-two-misc.log"
    until(lambda: log.exists() and "\nbegun\n" in log.read_text())
    during = json.loads(project.run("gc", "--json", "--keep-days", "0").stdout)
    assert during["freed"]["source trees"] == 0
    assert during["layers_in_use"] > 0
    assert (during["steps"], during["left"]["steps"]) == (0, 1)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().split(b"\0")[:2] == hold.encode().split():
                os.kill(int(folder.name), signal.SIGTERM)
    assert child.wait(60) == 0, child.communicate()
    assert "\n29\n" in project.log("two-misc")
    after = json.loads(project.run("gc", "--json", "--keep-days", "0").stdout)
    assert after["freed"]["source trees"] > 0
    assert after["left"]["steps"] == 0


@pytest.mark.parametrize("days", ["-1", "nan"])
def test_gc_rejects_invalid_days(project: Project, days: str) -> None:
    done = project.run("gc", "--keep-days", days)
    assert done.returncode == 1
    assert f"--keep-days {days}: give a number of days, or 0" in done.stderr


@pytest.mark.parametrize("place", ["/dev/null/cache", "/proc/cache"])
@pytest.mark.parametrize("command", ["build", "show", "gc"])
def test_cache_must_be_writable(project: Project, command: str, place: str) -> None:
    project.write(one="true")
    system = () if command == "gc" else (SYSTEM,)
    done = project.run(command, *system, "--cache", place)
    assert done.returncode == 1
    assert f"; everything local is kept in {place}, which must be a writable folder" in done.stderr
    assert "--cache or FABRIC_CACHE names another" in done.stderr


def test_image_needs_a_built_system_with_a_kernel(project: Project) -> None:
    project.write(one="true")
    done = project.run("image", SYSTEM, "--to", "disk.img")
    assert done.returncode == 1
    assert "run: fabric-initiator build" in done.stderr
    assert project.build().returncode == 0
    done = project.run("image", SYSTEM, "--to", "disk.img")
    assert done.returncode == 1
    assert "/boot/vmlinuz" in done.stderr
    done = project.run("image", SYSTEM, "--to", "disk.img", "--size", "much")
    assert "'much' is not a size" in done.stderr
    assert not list(project.logs.glob("*disk.img*"))


@pytest.mark.parametrize(
    ("arch", "qemu"),
    [
        ("x86_32", "qemu-system-x86_64"),
        ("armv8l64", "qemu-system-aarch64 -M virt -cpu cortex-a57"),
        ("ppc64", ""),
    ],
)
def test_image_prints_how_to_start_it(project: Project, arch: str, qemu: str) -> None:
    """On machines that the boot loader cannot start, with the kernel beside the disk."""
    project.write(one="mkdir $DESTDIR/boot; cp hello.txt $DESTDIR/boot/vmlinuz")
    system = project.logs / SYSTEM
    system.write_text(system.read_text().replace("x86_64", arch))
    (project.logs / "settings.toml").write_text(f'architectures = ["{arch}"]\n')
    environ = {"FABRIC_CONFIG": "settings.toml"}
    done = project.run("build", SYSTEM, environ=environ)
    assert done.returncode == 0, done.stderr
    done = project.run("image", SYSTEM, "--to", "disk.img", "--size", "100M", environ=environ)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[3:]
    drive = "-m 512 -nographic -nic user,model=virtio-net-pci -drive file=disk.img,format=raw"
    if arch == "x86_32":
        assert lines == [f"  try it  {qemu} {drive},if=virtio"]
        return
    [kernel, *hint] = lines
    start = "  kernel  /boot/vmlinuz, started with: "
    assert re.fullmatch(re.escape(start) + r"root=PARTUUID=[0-9a-f]{8}-02 rw", kernel)
    copy = "mcopy -i disk.img@@1M ::vmlinuz vmlinuz"
    arguments = f"-kernel vmlinuz -append '{kernel.removeprefix(start)}'"
    assert hint == [f"  try it  {copy} && {qemu} {arguments} {drive},if=virtio"] * bool(qemu)


def test_image_that_is_interrupted_leaves_nothing(project: Project) -> None:
    project.write(one="mkdir $DESTDIR/boot; cp hello.txt $DESTDIR/boot/vmlinuz")
    assert project.build().returncode == 0
    there = set(project.logs.iterdir())
    child = subprocess.Popen(
        [*INITIATOR, "image", SYSTEM, "--to", "disk.img", "--size", "1T"],
        cwd=project.logs, env=project.environ, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    project.children.append(child)
    assert child.stderr is not None
    assert any("writing the root filesystem" in line for line in child.stderr)
    assert set(project.logs.iterdir()) > there
    child.terminate()
    assert child.wait(20) == 130
    assert set(project.logs.iterdir()) == there


def test_lorry_list_shows_lorries_and_errors(project: Project) -> None:
    project.write(one="true")
    folder = project.root / "sources"
    folder.mkdir()
    assert project.run("lorry", "list").stdout == ""
    (folder / "a.lorry").write_text(f"thing:\n  type: git\n  url: file://{project.source}\n")
    assert "upstream:thing" in project.run("lorry", "list").stdout
    (folder / "a.lorry").write_text("thing:\n  type: carrier-pigeon\n")
    wrong = project.run("lorry", "list")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("sources/a.lorry:2: ")


def test_system_that_is_missing_is_an_error_with_a_suggestion(project: Project) -> None:
    done = project.run("graph", "/nowhere/x.morph")
    assert done.returncode == 1
    assert "no such system" in done.stderr
    project.write(one="true")
    typo = project.run("graph", "../systems/smal.morph")
    assert "did you mean 'systems/small.morph'?" in typo.stderr


def test_help_lists_the_exit_codes(project: Project) -> None:
    done = project.run("--help")
    assert done.returncode == 0
    assert "3  something failed to build" in done.stdout
    assert project.run("build").returncode == 2
