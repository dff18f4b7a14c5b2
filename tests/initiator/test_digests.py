"""``build --write-digests`` and ``--check-digests``: artifacts compared with those of others."""

from __future__ import annotations

import json
import re

from initiator_kit import Project

SHARE = "mkdir -p $DESTDIR/usr/bin; cp hello.txt $DESTDIR/usr/bin/{0}"
TIMED = f"{SHARE}; date +%s%N >$DESTDIR/usr/bin/{{0}}-time"
FILE = "systems/small.digests"


def written(project: Project) -> list[str]:
    done = project.build("--write-digests")
    assert done.returncode == 0, done.stderr
    lines = (project.root / FILE).read_text().splitlines()
    assert f"{FILE} is written: {len(lines) - 3} artifacts\n" in done.stdout
    return lines


def test_digests_of_two_builds_are_compared(project: Project) -> None:
    project.write(one=SHARE.format("one"), timed=("one", TIMED.format("timed")))
    lines = written(project)
    compare = "fabric-initiator build systems/small.morph --check-digests"
    assert lines[1] == f"# Compare yours: {compare}", "as others may type it"
    assert re.fullmatch("key [0-9a-f]{64}", lines[2])
    assert re.fullmatch("one one-bins [0-9a-f]{64}", lines[3])
    assert len(lines) == 8
    done = project.build("--check-digests")
    assert done.returncode == 0, done.stderr
    assert f"{len(lines) - 3} artifacts are as in {FILE}\n" in done.stdout

    other = ("--cache", str(project.cache / "other"))
    done = project.build("--check-digests", "one", *other)
    assert done.returncode == 0, done.stderr
    assert f"2 artifacts are as in {FILE}\n" in done.stdout
    done = project.build("--check-digests", *other)
    assert done.returncode == 3
    assert f"2 of 5 artifacts are not as in {FILE}:\n  small-rootfs: " in done.stderr
    assert re.search("  timed-bins: [0-9a-f]{12} here, [0-9a-f]{12} there\n", done.stderr)
    assert "small.morph --rebuild small\n" in done.stderr


def test_digests_as_json(project: Project) -> None:
    project.write(timed=TIMED.format("timed"))
    written(project)
    done = project.build("--json", "--check-digests", "--cache", str(project.cache / "other"))
    assert done.returncode == 3
    [found] = [
        each for each in map(json.loads, done.stdout.splitlines()) if each["event"] == "digests"
    ]
    assert found["differ"] == ["small-rootfs", "timed-bins"]
    assert (found["same"], found["absent"], found["file"]) == (1, [], FILE)


def test_digests_of_other_definitions(project: Project) -> None:
    project.write(one=SHARE.format("one"))
    written(project)
    project.write(one=SHARE.format("two"), three="true")
    done = project.build("--check-digests")
    assert done.returncode == 3
    assert "  three-bins: - here, nothing there\n" in done.stderr
    assert "other definitions or sources: the system's key differs." in done.stderr


def test_digests_of_steps_that_are_gone(project: Project) -> None:
    project.write(one=SHARE.format("one"), two=SHARE.format("two"))
    written(project)
    assert project.run("artifact", "delete", "one").returncode == 0
    done = project.build("--check-digests")
    assert done.returncode == 0, done.stderr
    assert f"3 artifacts are as in {FILE}\n" in done.stdout
    assert "lacks them: one\n" in done.stdout
    done = project.build("--write-digests")
    assert done.returncode == 1
    assert "lacks one; build with an empty --cache" in done.stderr


def test_digests_are_written_after_the_last_edit_ended(project: Project) -> None:
    project.write(one=SHARE.format("one"))
    assert project.run("edit", "one").returncode == 0
    assert project.run("edit", "--close", "one").returncode == 0
    done = project.build("--write-digests")
    assert done.returncode == 0, done.stderr


def test_digests_that_cannot_be_used_are_refused_before_the_build(project: Project) -> None:
    project.write(one=SHARE.format("one"))
    done = project.build("--check-digests")
    assert done.returncode == 1
    assert f"{FILE}: there are no digests to compare with; write them: " in done.stderr
    (project.root / FILE).write_text(f"# a comment\n\nkey {'a' * 64}\none one-bins abc\n")
    done = project.build("--check-digests")
    assert done.returncode == 1
    assert f"{FILE}:4: 'one one-bins abc' is not of the form STEP ARTIFACT SHA256" in done.stderr
    (project.root / FILE).write_text("one one-bins -\n")
    assert "is not of the form key KEY" in project.build("--check-digests").stderr
    assert "name no chunks" in project.build("--write-digests", "one").stderr
    assert project.run("edit", "one").returncode == 0
    assert "end the edits" in project.build("--write-digests").stderr
    assert not list(project.logs.glob("*.log")), "nothing was built"
    assert project.build("--write-digests", "--clean").returncode == 0
