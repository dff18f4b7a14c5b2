"""``certify``: builds once more under other conditions, and compares the results."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from initiator_kit import Project

from fabric import bounds
from fabric.building.certificate import KIND, Certificate
from fabric.commands.shared.byte_differences import byte_differences
from fabric.trust.seal import Seal
from fabric.trust.signing import TrustedKeys

SYSTEM = "../systems/small.morph"
SHARE = "mkdir -p $DESTDIR/usr/bin; cp hello.txt $DESTDIR/usr/bin/{0}"
#: Its result depends on the name of the host.
NAMED = f"{SHARE}; uname -n >$DESTDIR/usr/bin/{{0}}-name"
REASON = "not-reproducible: Upstream writes the host's name.\n"


def mark(project: Project, chunk: str) -> None:
    morph = project.root / f"strata/{chunk}.morph"
    morph.write_text(morph.read_text() + REASON)


def certificate(project: Project, *chunks: str, code: int = 0) -> Certificate:
    done = project.run("certify", SYSTEM, *chunks, "--json")
    assert done.returncode == code, done.stderr
    events: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    [last] = [one["certificate"] for one in events if one["event"] == "certified"]
    found = msgspec.convert(last, Certificate)
    assert json.loads(found.json()) == last
    return found


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if re.match(rf"{name} +(chunk|system) ", line))


def test_system_is_certified_if_all_of_it_is_the_same(project: Project) -> None:
    project.write(one=SHARE.format("one"), two=("one", SHARE.format("two")))
    done = project.run("certify", SYSTEM)  # which builds what is not there, too
    assert done.returncode == 0, done.stderr
    for name in ("one", "two", "small"):
        assert row(done.stdout, name).endswith(" identical")
    assert done.stdout.endswith("small: certified: 3 identical\n")
    assert "another worker" not in done.stdout, "all are of one machine"
    conditions = "host-name, clock, locale, cpus, directory, file-order"
    if len(os.sched_getaffinity(0)) == 1:
        conditions = conditions.replace("cpus, ", "")
    assert f"other conditions: {conditions}\n" in done.stdout
    assert "all 4 steps cached" in project.build().stdout, "a rebuild replaces nothing"


def test_certificate_is_written_and_signed(project: Project, tmp_path: Path) -> None:
    project.write(one=SHARE.format("one"), two=NAMED.format("two"))
    file, trusted = tmp_path / "certificate", tmp_path / "trusted"
    refused = project.run("certify", SYSTEM, "one", "--to", str(file))
    assert refused.returncode == 1
    assert "trusted-keys" in refused.stderr

    nowhere = project.run("certify", SYSTEM, "--to", str(tmp_path / "none/certificate"))
    assert nowhere.stderr.endswith(f"no file can be written in {tmp_path}/none\n")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/own.key").write_text("no key")
    useless = project.run(
        "certify", SYSTEM, "--to", str(file),
        environ={"FABRIC_TRUSTED_KEYS": str(tmp_path / "keys")},
    )  # fmt: skip
    assert useless.returncode == 1
    assert f"{tmp_path}/keys/own.key" in useless.stderr
    assert not list((project.cache / "artifacts").glob("manifests/*")), "that is known at once"

    def certify(*chunks: str) -> int:
        return project.run(
            "certify", SYSTEM, *chunks, "--to", str(file),
            environ={"FABRIC_TRUSTED_KEYS": str(trusted)},
        ).returncode  # fmt: skip

    assert certify("two") == 3
    assert not file.exists(), "it is not certified"
    assert certify("one") == 0
    content = Seal(TrustedKeys(trusted)).open(KIND, file.read_bytes())
    found = msgspec.json.decode(content, type=Certificate)
    assert [(one.name, one.verdict) for one in found.steps] == [("one", "identical")]


def test_difference_fails_and_is_shown(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_diffoscope(project, monkeypatch)
    project.write(one=SHARE.format("one"), two=NAMED.format("two"))
    assert project.build().returncode == 0
    done = project.run("certify", SYSTEM)
    assert done.returncode == 3
    assert row(done.stdout, "one").endswith(" identical")
    assert row(done.stdout, "two").endswith(" differs    1 file")
    assert row(done.stdout, "small").endswith(" identical"), "it has the first builds"
    old, new = (name.encode()[:16].hex(" ") for name in ("localhost\n", "elsewhere.invalid\n"))
    assert (
        "two:\n"
        "  ~ /usr/bin/two-name: content, 10 B -> 18 B\n"
        f"  /usr/bin/two-name: from byte 0: {old} -> {new}\n"
        "  compare  fabric-initiator diff "
    ) in done.stdout
    assert "small: not certified, because of two: 2 identical, 1 differs\n" in done.stderr
    done = project.run("certify", SYSTEM, "one")
    assert done.returncode == 0
    assert done.stdout.endswith("1 step of small: certified: 1 identical\n")


def test_reason_in_the_definitions_is_accepted(project: Project) -> None:
    project.write(one=SHARE.format("one"), two=NAMED.format("two"))
    assert project.build().returncode == 0
    mark(project, "two")
    assert "all 4 steps cached" in project.build().stdout, "a reason rebuilds nothing"
    done = project.run("certify", SYSTEM)
    assert done.returncode == 0, done.stderr
    line = row(done.stdout, "two")
    assert line.endswith(" known to differ  1 file: Upstream writes the host's name.")
    assert "small: certified: 2 identical, 1 known to differ\n" in done.stdout


def test_reason_that_is_not_needed_is_said(project: Project) -> None:
    project.write(one=SHARE.format("one"))
    mark(project, "one")
    done = project.run("certify", SYSTEM, "one")
    assert done.returncode == 0, done.stderr
    note = "the morph's `not-reproducible` may go: Upstream writes the host's name."
    assert row(done.stdout, "one").endswith(f" identical  {note}")


def test_rebuild_that_fails_is_not_compared(project: Project) -> None:
    project.write(
        one="test $(uname -n) = localhost", two=("one", SHARE.format("two")), three="false"
    )
    done = project.run("certify", SYSTEM)
    assert done.returncode == 3
    assert " not compared  its rebuild is not built: install-co" in row(done.stdout, "one")
    assert row(done.stdout, "two").endswith(" identical"), "it needs the first build only"
    assert " not compared  it is not built: install-co" in row(done.stdout, "three")
    assert " not compared  it is not built: needs three" in row(done.stdout, "small")
    assert done.stderr.endswith("because of one, three, small: 1 identical, 3 not compared\n")


def test_certificate_as_json(project: Project) -> None:
    project.write(one=SHARE.format("one"), two=NAMED.format("two"))
    found = certificate(project, code=3)
    assert (found.system, found.arch, found.morph) == ("small", "x86_64", "systems/small.morph")
    assert found.whole
    assert {one.name: one.verdict for one in found.steps} == {
        "one": "identical", "two": "differs", "small": "identical",
    }  # fmt: skip
    one, two, small = found.steps
    assert one.first.artifacts == one.again.artifacts
    assert set(one.first.artifacts) == {"one-bins", "one-misc"}
    assert one.first.key != one.again.key
    assert two.first.artifacts != two.again.artifacts
    assert [file.path for file in two.files] == ["/usr/bin/two-name"]
    assert "host-name" in two.perturbed
    assert found.key == small.first.key
    assert one.again.builder.startswith("worker-")
    part = certificate(project, "one", "small")
    assert not part.whole
    assert part.steps[0].first == one.first


def test_steps_without_certificate(project: Project) -> None:
    project.write(one="true")
    done = project.run("certify", SYSTEM, "things")
    assert done.returncode == 1
    assert "things is a stratum, which is a list: nothing is built for it" in done.stderr
    done = project.run("certify", SYSTEM, "onf")
    assert "did you mean 'one'?" in done.stderr


def test_damaged_build_is_not_compared(project: Project) -> None:
    project.write(two=f"{NAMED.format('two')}; head -c 9000 /dev/urandom >$DESTDIR/usr/bin/big")
    assert project.build().returncode == 0
    for file in (project.cache / "artifacts/blobs").glob("*/*"):
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = project.run("certify", SYSTEM, "two")
    assert done.returncode == 3
    assert " not compared  " in row(done.stdout, "two")
    assert "Traceback" not in done.stderr


# -- the contents of files -------------------------------------------------------------------------


def _without_diffoscope(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give commands a PATH without diffoscope."""
    tools = project.cache / "tools"
    tools.mkdir()
    for folder in filter(None, os.environ["PATH"].split(":")):
        for program in Path(folder).glob("*"):
            link = tools / program.name
            if program.name != "diffoscope" and not os.path.lexists(link):
                link.symlink_to(program)
    monkeypatch.setenv("PATH", str(tools))


def _diffoscope(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in its place."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "diffoscope").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "diffoscope").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def lines(project: Project, command: str) -> list[str]:
    """The lines about the contents of a chunk whose install command is this."""
    from fabric.commands.shared.rebuilt import differing
    from fabric.trove.artifacts.store import Store

    project.write(one=command)
    found = certificate(project, "one", code=3)
    folder = project.cache / "tmp"
    folder.mkdir(exist_ok=True)
    store = Store(str(project.cache / "artifacts"), folder)
    first, again = store.manifests([found.steps[0].first.key, found.steps[0].again.key])
    assert first is not None
    assert again is not None
    made = list(byte_differences(store, first, again, differing(store, first, again), folder))
    assert not list(folder.glob("comparing-*")), "the copies are gone"
    return made


def test_first_differing_bytes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_diffoscope(project, monkeypatch)
    found = lines(
        project,
        "cd $DESTDIR; name=$(uname -n)\n"
        "{ head -c 3000000 /dev/zero; echo $name; } >far\n"
        "printf $name >short; test $name = localhost || : >short; ln far far2\n"
        "if test $name = localhost; then echo >gone; else echo >come; fi; ln -s $name link",
    )
    local, other = b"localhost\n".hex(" "), b"elsewhere.invalid"[:16].hex(" ")
    assert found == [
        f"/far: from byte 3000000: {local} -> {other}",
        f"/short: from byte 0: {b'localhost'.hex(' ')} -> the end",
    ]


def test_diffoscope_shows_the_contents(project: Project) -> None:
    """The real one."""
    text = "\n".join(lines(project, "uname -n >$DESTDIR/name; gzip -n $DESTDIR/name"))
    assert "-localhost" in text
    assert "+elsewhere.invalid" in text
    assert "stat" not in text, "the files are copies"


def test_diffoscope_can_write_nothing_and_send_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = project.cache / "tools"
    script = f"touch {tools}/x; touch $TMPDIR/x && echo fine; ls -d {tools}/x; cat /proc/net/dev"
    _diffoscope(tools, monkeypatch, f"{{ {script}; }} 2>&1; exit 1")
    text = "\n".join(lines(project, "uname -n >$DESTDIR/name"))
    assert "Read-only file system" in text
    assert "fine" in text
    assert not (tools / "x").exists()
    there = {one.name for one in Path("/sys/class/net").iterdir()} - {"lo"}
    assert "lo:" in text
    assert not {line.split(":")[0].strip() for line in text.splitlines()} & there


@pytest.mark.bound("DIFFOSCOPE")
@pytest.mark.bound("DIFFOSCOPE_TEXT")
@pytest.mark.bound("DIFFOSCOPE_FILES")
@pytest.mark.bound("DIFFOSCOPE_MEMORY")
@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sleep 60 & sleep 60", "it took longer than 1 s"),
        ("yes", "it printed more than 2000 bytes"),
        ("head -c 100000 /dev/zero >$TMPDIR/x || exit 7", "No space left on device"),
        ('python3 -c "bytearray(1 << 30)" || exit 7', "MemoryError"),
        ("echo no such option >&2; exit 2", "no such option"),
        ("exit 0", "it found no difference"),
    ],
)
def test_diffoscope_that_goes_wrong_is_left_out(
    project: Project, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    for bound, limit in (
        ("DIFFOSCOPE", 1 if "sleep" in script else 60),
        ("DIFFOSCOPE_TEXT", 1000),
        ("DIFFOSCOPE_FILES", 4096),
        ("DIFFOSCOPE_MEMORY", 512 << 20),
    ):
        monkeypatch.setattr(bounds, bound, limit)
    _diffoscope(project.cache / "tools", monkeypatch, script)
    note, first = lines(project, "uname -n >$DESTDIR/name")
    assert note == f"diffoscope is not used: {note.partition(': ')[2]}"
    assert why in note
    assert first.startswith("/name: from byte 0: ")


@pytest.mark.bound("COMPARED")
def test_contents_past_the_bound_are_not_shown(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_diffoscope(project, monkeypatch)
    monkeypatch.setattr(bounds, "COMPARED", 50)
    found = lines(project, "cd $DESTDIR; for i in 1 2 3; do uname -n >$i; done")
    assert [line.partition(":")[0] for line in found] == [
        "/1",
        "the contents of 2 more files are too large to be shown",
    ]
