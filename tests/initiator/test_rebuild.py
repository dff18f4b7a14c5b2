"""``build --rebuild``, and the short options of ``build``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from initiator_kit import Project

SYSTEM = "../systems/small.morph"
SHARE = "mkdir -p $DESTDIR/usr/bin; cp hello.txt $DESTDIR/usr/bin/{0}"
#: Two builds differ in one file.
TIMED = f"{SHARE}; date +%s%N >$DESTDIR/usr/bin/{{0}}-time"


def events(project: Project, *args: str) -> list[dict[str, Any]]:
    done = project.build("--json", *args)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def manifests(project: Project) -> dict[str, bytes]:
    folder = project.cache / "artifacts/manifests"
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def hints(project: Project) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in (project.cache / "artifacts/hints").iterdir()}


def test_rebuild_compares_and_keeps_the_first_result(project: Project) -> None:
    project.write(same=SHARE.format("same"), timed=("same", TIMED.format("timed")))
    assert project.build().returncode == 0
    before, known = manifests(project), hints(project)
    done = project.build("--rebuild", "same", "--rebuild", "timed")
    assert done.returncode == 0, done.stderr
    assert "small is built: 2 built, " in done.stdout
    assert "same: built once more, with the same result\n" in done.stdout
    head = "timed: built once more, with another result; the first one stays\n"
    line = "  ~ /usr/bin/timed-time: content, 20 B -> 20 B\n"
    assert head + line + "  compare  fabric-initiator diff " in done.stdout
    after = manifests(project)
    assert len(after) == len(before) + 2
    assert {key: after[key] for key in before} == before
    assert hints(project) == known, "a rebuild is nobody's equal"
    assert (project.logs / "build-step-timed-misc.rebuild.log").exists()
    assert (project.logs / "build-step-timed-misc.log").exists()
    compare = next(each for each in done.stdout.splitlines() if each.startswith("  compare"))
    different = project.run(*compare.split()[2:]).stdout
    assert line.strip() in different
    listed = project.run("artifact", "list", "timed").stdout
    first = compare.split()[3]
    assert f"rebuild of {first}\n" in listed
    assert "all 4 steps cached" in project.build().stdout


def test_rebuild_as_json(project: Project) -> None:
    project.write(timed=TIMED.format("timed"))
    events(project)
    [found] = [one for one in events(project, "--rebuild", "timed") if one["event"] == "rebuilt"]
    assert found["same"] is False
    assert [one["path"] for one in found["files"]] == ["/usr/bin/timed-time"]
    keys = manifests(project)
    assert {found["key"], found["rebuild"]} <= keys.keys()
    assert json.loads(keys[found["rebuild"]].splitlines()[0])["rebuild_of"] == found["key"]


def test_rebuild_of_a_system_and_of_what_is_not_cached(project: Project) -> None:
    project.write(one=SHARE.format("one"), two=("one", SHARE.format("two")))
    done = project.build("--rebuild", "two")
    assert "4 built" in done.stdout, done.stderr
    assert "once more" not in done.stdout, "it is built only once"
    done = project.build("--rebuild", "small")
    assert "small: built once more, with the same result\n" in done.stdout
    project.write(one=f"true; {SHARE.format('one')}", two=("one", SHARE.format("two")))
    done = project.build("two", "--rebuild", "small", "--rebuild", "two")
    assert done.returncode == 0, done.stderr
    assert "small is built" in done.stdout


def test_rebuild_that_fails_or_is_unknown(project: Project) -> None:
    project.write(one="true")
    morph = project.root / "strata/one.morph"
    morph.write_text("name: one\nkind: chunk\nbuild-commands:\n- test $MAKEFLAGS != -j3\n")
    assert project.build("-j2").returncode == 0
    before = manifests(project)
    done = project.build("--rebuild", "one", "-j2")  # which has one more
    assert done.returncode == 3
    assert "one failed: build-commands failed" in done.stdout
    assert manifests(project) == before
    done = project.build("--rebuild", "things")
    assert done.returncode == 1
    assert "things is a stratum, which is a list: nothing is built for it" in done.stderr
    done = project.build("--rebuild", "onf")
    assert "did you mean 'one'?" in done.stderr


def test_verbose_prints_logs_after_the_names_of_steps(project: Project) -> None:
    late = "printf 'begun, '; sleep 0.3; echo ended; printf '10%%\\r20%%\\r'; printf tail"
    project.write(one="echo first; echo ''", two=("one", f'sh -c "{late}"'))
    done = project.build("-v")
    lines = done.stdout.splitlines()
    ours = [line for line in lines if " | " in line and "+ " not in line and "things" not in line]
    # the logs of two steps come by themselves; each is in order
    for step, texts in {"one": ["first", ""], "two": ["begun, ended", "tail"]}.items():
        theirs = [line.removeprefix(f"{step} | ") for line in ours if line.startswith(f"{step} |")]
        assert theirs == ["### INSTALL-COMMANDS ###", *texts], done.stdout + done.stderr
    assert len(ours) == 6, ours
    assert " | " not in project.build("--rebuild", "one").stdout


def test_short_options(project: Project) -> None:
    project.write(jobs="true", bad="false", good="true")
    morph = project.root / "strata/jobs.morph"
    morph.write_text("name: jobs\nkind: chunk\nbuild-commands:\n- echo flags $MAKEFLAGS\n")
    done = project.build("-k", "-j3", "-v")
    assert done.returncode == 3
    assert "jobs | flags -j3\n" in done.stdout
    assert "good: built in" in done.stdout


def test_rebuild_of_an_edited_chunk_is_clean(project: Project) -> None:
    project.write(one="true")
    install = "mkdir -p $DESTDIR/bin; cp made $DESTDIR/bin"
    (project.root / "strata/one.morph").write_text(
        "name: one\nkind: chunk\nbuild-commands:\n- test -e made || date +%s%N >made\n"
        f"install-commands:\n- {install}\n"
    )
    opened = project.run("edit", "one")
    assert opened.returncode == 0, opened.stderr
    for text in ("1", "2"):
        (project.logs / "one/hello.txt").write_text(text)
        done = project.build()
        assert done.returncode == 0, done.stderr
    assert "goes on in the tree of the last build" in project.log("one-misc")
    done = project.build("--rebuild", "one")
    assert "one: built once more, with another result; the first one stays\n" in done.stdout
