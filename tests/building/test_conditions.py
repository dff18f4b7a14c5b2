"""Rebuilds under other conditions: each of them shows a chunk that depends on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from building_kit import Kit, copy_tools, key_of
from msgspec.structs import replace

from fabric.building import clock, conditions
from fabric.building.archive import pack
from fabric.building.conditions import NAMES, OTHER, USUAL, reorder
from fabric.building.tree import scan
from fabric.jobs import Job, Manifest

#: A condition, its field, and a command whose output depends on that alone.
LEAKS = {
    "host-name": ("host_name", "uname -n"),
    "clock": ("ahead", "date +%Y"),
    "cpus": ("cpus", "nproc"),
    "jobs": ("jobs", "echo $MAKEFLAGS"),
    "directory": ("folder", "grep ' /thing.inst ' /proc/self/mountinfo | cut -d' ' -f4"),
    "file-order": ("reordered", "ls -U"),
}


def leaking(kit: Kit, tmp_path: Path, command: str) -> Job:
    """A chunk that installs the output of a command, which may use date and nproc."""
    copy_tools(tmp_path / "more", ("date", "nproc"))
    archive = pack(scan(tmp_path / "more").values(), tmp_path / "more.tar.zst")
    more = kit.stored("more", {"more-misc": archive})
    files = {f"file{number}": str(number) for number in range(9)}
    return kit.chunk(
        build=[f"{{ {command}; }} > $DESTDIR/out"],
        source=kit.tree(**files),
        staged=(kit.base, more),
    )


def rebuild(kit: Kit, job: Job, name: str = "again") -> Manifest:
    return kit.build(replace(job, key=key_of(name), rebuild_of=job.key))


@pytest.mark.parametrize("name", LEAKS)
def test_each_condition_shows_its_leak_and_no_other_does(
    kit: Kit, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "cpus" and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("one CPU cannot be fewer")
    field, command = LEAKS[name]
    job = leaking(kit, tmp_path, command)
    first = kit.build(job)
    found = rebuild(kit, job)
    assert found.artifacts != first.artifacts
    assert (first.perturbed, found.perturbed) == ((), NAMES)
    monkeypatch.setattr(conditions, "OTHER", replace(OTHER, **{field: getattr(USUAL, field)}))
    missed = rebuild(kit, job, "once more")
    assert missed.artifacts == first.artifacts, "another condition than this one shows it"
    assert missed.perturbed == tuple(one for one in NAMES if one != name)


def test_order_of_staged_files_is_another(kit: Kit, tmp_path: Path) -> None:
    job = leaking(kit, tmp_path, "ls -U /bin /lib/*/")
    first, again = kit.build(job), rebuild(kit, job)
    assert first.artifacts != again.artifacts
    texts = [kit.entries(each, "thing-misc")["out"].data.split() for each in (first, again)]
    assert sorted(texts[0]) == sorted(texts[1]), "only their order"


def test_variables_of_the_builder_reach_no_build(kit: Kit, tmp_path: Path) -> None:
    job = leaking(kit, tmp_path, "tr '\\0' '\\n' </proc/1/environ")
    first, again = kit.build(job), rebuild(kit, job)
    texts = [kit.entries(each, "thing-misc")["out"].data.decode() for each in (first, again)]
    mine, other = (dict(line.split("=", 1) for line in text.splitlines()) for text in texts)
    assert "locale" in again.perturbed
    assert mine.items() <= other.items()
    assert other.keys() - mine.keys() == {
        *("LD_PRELOAD", "FAKETIME", "FAKE_UTIME", "NO_FAKE_STAT"),
        *("FAKETIME_DONT_FAKE_MONOTONIC", "FAKETIME_DISABLE_SHM"),
    }, "those of the clock"


def test_files_and_times_of_sources_are_the_same(kit: Kit, tmp_path: Path) -> None:
    """What the key covers: contents, modes, times.  Files are in the order of their making."""
    job = leaking(
        kit,
        tmp_path,
        "for i in file*; do stat -c '%n %a %s %y' $i; cat $i; done; stat -c '%a %Y' .\n"
        "touch x; sleep 0.02; : >y; sleep 0.02; touch z\n"
        "test x -nt file1; test y -nt x; test z -nt y; echo right",
    )
    for count in (3, 40):  # the first is copied in any case
        source = kit.tree(**{f"file{n}": "x" * n for n in range(count)})
        each = replace(job, key=key_of(f"{count}"), source=source)
        first, again = kit.build(each), rebuild(kit, each, f"{count} again")
        assert first.artifacts == again.artifacts
        assert kit.entries(first, "thing-misc")["out"].data.endswith(b"right\n")
        assert "clock" in again.perturbed


def test_jobs_are_never_more_than_a_chunk_allows(kit: Kit, tmp_path: Path) -> None:
    job = leaking(kit, tmp_path, "echo $MAKEFLAGS")
    texts = []
    for most in (1, 2, 3):
        again = rebuild(kit, replace(job, max_jobs=most), f"again {most}")
        texts.append(kit.entries(again, "thing-misc")["out"].data)
        assert ("jobs" in again.perturbed) == (most > 1)
    assert texts == [b"-j1\n", b"-j1\n", b"-j2\n"]


def test_clock_that_cannot_be_changed_is_not_said_to_be(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without libfaketime, with one that programs cannot load, and without a `date`."""
    job = leaking(kit, tmp_path, "date +%Y")
    first = kit.build(job)
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"")
    for library in (None, str(broken)):
        monkeypatch.setattr(clock, "_library", lambda library=library: library)
        again = rebuild(kit, job, f"with {library}")
        assert again.artifacts == first.artifacts
        assert "clock" not in again.perturbed
        assert "preload" not in kit.log_text
    monkeypatch.undo()
    job = replace(kit.chunk(build=["true"]), key=key_of("dateless"))
    kit.build(job)
    assert "clock" not in rebuild(kit, job, "dateless again").perturbed


def test_reordering_hides_no_file(tmp_path: Path) -> None:
    """Only names of files and folders that the tree has."""
    tree, names = tmp_path / "tree", tmp_path / "names"
    (tree / "a/b").mkdir(parents=True)
    names.mkdir()
    for number in range(5):
        (tree / f"a/b/{number}").write_text("x")
    (tree / "a/link").symlink_to("b")
    reorder([tree], names)
    made = {path.relative_to(names) for path in names.rglob("*")}
    assert {path for path in made if (names / path).is_dir()} == {Path("a"), Path("a/b")}
    files = {path for path in made if (names / path).is_file()}
    assert len(files) == 2
    assert all((tree / path).is_file() for path in files)


def test_thread_has_its_cpus_again() -> None:
    before = os.sched_getaffinity(0)
    with OTHER.fewer_cpus():
        assert len(os.sched_getaffinity(0)) == max(1, len(before) - 1)
    assert os.sched_getaffinity(0) == before
