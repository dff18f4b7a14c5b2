"""Damage on the disk of a machine is noticed, never used, and repaired by a build."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from initiator_kit import Project
from small_definitions import git

from fabric import bounds
from fabric.host.files import recall, remember

pytestmark = pytest.mark.long

SYSTEM = "../systems/small.morph"


class Cache(NamedTuple):
    """A cache with a system that is built."""

    top: Path
    keys: dict[str, str]  # name of a step -> its cache key
    blobs: dict[str, str]  # name of a step -> digest of its first archive

    def manifest(self, name: str) -> Path:
        return self.top / "artifacts/manifests" / self.keys[name]

    def blob(self, name: str) -> Path:
        digest = self.blobs[name]
        return self.top / "artifacts/blobs" / digest[:2] / digest

    def layer(self, name: str) -> Path:
        return self.top / "work/layers" / self.keys[name]

    def keep(self, *names: str) -> None:
        """Delete the manifests of all other steps."""
        for name in self.keys.keys() - set(names):
            self.manifest(name).unlink()


def flip(file: Path) -> None:
    """Flip one bit without a change that `ls -l` shows."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(before.st_mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def another_manifest(it: Cache) -> None:
    replace(it.manifest("small"), it.manifest("one").read_bytes())


def a_path_for_a_digest(it: Cache) -> None:
    content = it.manifest("small").read_bytes()
    replace(it.manifest("small"), content.replace(it.blobs["small"].encode(), b"../../x"))


def bit_of_a_chunk(it: Cache) -> None:
    flip(it.blob("one"))
    it.keep("one", "two")


def no_archive_of_a_chunk(it: Cache) -> None:
    it.blob("one").unlink()
    shutil.rmtree(it.layer("one"), ignore_errors=True)  # a worker that was replaced made none
    it.keep("one")


def rubbish_of_a_chunk(it: Cache) -> None:
    replace(it.manifest("one"), b"\xff\0")
    shutil.rmtree(it.layer("one"), ignore_errors=True)  # a worker that was replaced made none
    it.keep("one")


def bit_of_a_layer(it: Cache) -> None:
    flip(it.layer("one") / "big")
    it.keep("one")


def bit_of_a_source(it: Cache) -> None:
    for file in (it.top / "trove/trees").rglob("file-7"):
        flip(file)
    it.keep()


def cut_records(it: Cache) -> None:
    for record in (it.top / "work/indexes").iterdir():
        os.truncate(record, record.stat().st_size // 2)
    it.keep("one")


#: (name, how it is done, words of the build)
DAMAGE: list[tuple[str, Callable[[Cache], None], str]] = [
    ("a bit of the goal", lambda it: flip(it.blob("small")), "small is built again: "),
    ("no archive of the goal", lambda it: it.blob("small").unlink(), "small is built again: "),
    ("half of the goal", lambda it: replace(it.blob("small"), b"half"), "small is built again: "),
    ("an empty manifest", lambda it: replace(it.manifest("small"), b""), "1 built"),
    ("half a manifest", lambda it: replace(it.manifest("small"), b'{"key":'), "small is built ag"),
    ("another's manifest", another_manifest, "small is built again: "),
    ("a path for a digest", a_path_for_a_digest, "small is built again: "),
    ("a bit of a chunk", bit_of_a_chunk, "built"),
    ("no archive of a chunk", no_archive_of_a_chunk, "built"),
    ("rubbish for the manifest of a chunk", rubbish_of_a_chunk, "built"),
    ("a bit of a layer", bit_of_a_layer, "built"),
    ("a bit of a source", bit_of_a_source, "built"),
    ("half of all records", cut_records, "built"),
]


@pytest.mark.parametrize(("what", "damage", "said"), DAMAGE, ids=[one[0] for one in DAMAGE])
def test_damage_is_repaired_by_the_next_build(
    project: Project,
    tmp_path: Path,
    what: str,  # noqa: ARG001
    damage: Callable[[Cache], None],
    said: str,
) -> None:
    for number in range(30):  # so many are not copied
        (project.source / f"file-{number}").write_text(f"{number}\n")
    git(project.source, "add", ".")
    git(project.source, "commit", "-qm", "second")
    # too large for a manifest: 9 kB that do not compress
    project.write(
        one="head -c 9000 /dev/urandom > $DESTDIR/big; cp file-7 $DESTDIR/seven",
        two=("one", "cp file-7 $DESTDIR/also-seven"),
    )
    assert project.build().returncode == 0
    assert "all 4 steps cached" in project.build().stdout, "and looked at"
    whole = contents(project, tmp_path / "whole")
    steps = json.loads(project.run("show", SYSTEM, "--json").stdout)
    cache = Cache(
        project.cache,
        {step["name"]: step["key"] for step in steps},
        {
            step["name"]: next(each["sha256"] for each in step["artifacts"] if each.get("sha256"))
            for step in steps
            if any(each.get("sha256") for each in step["artifacts"])
        },
    )
    damage(cache)
    done = project.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "all 4 steps cached" in project.build().stdout
    again = contents(project, tmp_path / "again")
    assert again.keys() == whole.keys()
    assert again["seven"] == whole["seven"] == b"7\n"
    assert again["also-seven"] == b"7\n"


def contents(project: Project, to: Path) -> dict[str, bytes]:
    done = project.run("checkout", SYSTEM, "--to", str(to))
    assert done.returncode == 0, done.stderr
    return {
        str(path.relative_to(to)): path.read_bytes() for path in to.rglob("*") if path.is_file()
    }


def test_checkout_of_damage_names_the_repair_command(project: Project, tmp_path: Path) -> None:
    project.write(one="head -c 9000 /dev/urandom > $DESTDIR/big")
    assert project.build().returncode == 0
    blobs = [file for file in (project.cache / "artifacts/blobs").rglob("*") if file.is_file()]
    for blob in blobs:
        before = blob.stat()
        flip(blob)
        assert before.st_ino == blob.stat().st_ino
    for record in (project.cache / "tmp/sound").iterdir():  # as if the disk had changed by itself
        record.unlink()
    done = project.run("checkout", SYSTEM, "--to", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "is damaged: its digest is " in done.stderr
    assert done.stderr.endswith(
        "what needs it is to be built again: fabric-initiator build systems/small.morph\n"
    )
    assert not (tmp_path / "out").exists()
    assert project.build().returncode == 0
    assert project.run("checkout", SYSTEM, "--to", str(tmp_path / "out")).returncode == 0


def test_cache_check_reads_everything_and_repairs(project: Project) -> None:
    for number in range(30):
        (project.source / f"file-{number}").write_text(f"{number}\n")
    git(project.source, "add", ".")
    git(project.source, "commit", "-qm", "second")
    project.write(
        one="head -c 9000 /dev/urandom > $DESTDIR/big; cp file-7 $DESTDIR/seven",
        two=("one", "cp file-7 $DESTDIR/also-seven"),
    )
    assert project.build().returncode == 0
    done = project.run("cache", "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("read: 4 steps, ")
    assert done.stdout.endswith("\nnothing is damaged\n")
    steps = json.loads(project.run("show", SYSTEM, "--json").stdout)
    keys = {step["name"]: step["key"] for step in steps}
    layers, trees = project.cache / "work/layers", project.cache / "trove/trees"
    record = project.cache / "work/indexes" / keys["one"]
    before = record.read_bytes()
    flip(layers / keys["one"] / "big")
    [tree] = list(trees.rglob("file-7"))
    flip(tree)
    [mirror] = (project.cache / "trove/git/mirrors").glob("*source*.git")
    for pack in mirror.glob("objects/pack/*.pack"):
        flip(pack)
    pushed = project.cache / "trove/git/pushed.git"
    shutil.copytree(mirror, pushed)
    for file in (project.cache / "artifacts/manifests").iterdir():
        if file.name == keys["small"]:
            replace(file, b"rubbish")
    blobs = [file for file in (project.cache / "artifacts/blobs").rglob("*") if file.is_file()]
    done = project.run("cache", "check", "--json")
    assert done.returncode == 4, done.stderr
    report = json.loads(done.stdout)
    found = {(each["kind"], each["name"]) for each in report["damaged"]}
    assert found == {
        ("step", keys["small"]),
        ("layer", keys["one"]),
        ("source tree", tree.parent.name),
        ("repository", f"mirrors/{mirror.name}"),
        ("repository", "pushed.git"),
    }
    assert not mirror.exists()
    aside = pushed.with_suffix(".damaged")
    assert (aside / "HEAD").exists()
    assert f"it is put aside as {aside}; import its lorry, or push it, again" in done.stdout
    assert report["read"]["layers"] == 2
    assert record.read_bytes() != before
    assert json.loads(project.run("cache", "check", "--json").stdout)["damaged"] == []
    for blob in blobs:
        flip(blob)
    done = project.run("cache", "check")
    assert done.returncode == 4
    assert " steps are built again by the next build that needs them\n" in done.stdout
    assert "Traceback" not in done.stderr
    assert project.build().returncode == 0
    assert project.run("cache", "check").returncode == 0


#: Files that hold a machine's records between two commands, below its cache.
MEMORIES = (
    "host-tools.json",
    "state/failures/*",
    "state/last-systems/*",
    "tmp/sound/*",
    "trove/git/mirrors/*/facts",
    "trove/tables/*",
    "work/boot",
    "work/cleaned",
    "work/indexes/*",
)


def a_folder(file: Path) -> None:
    file.mkdir()
    (file / "inside").write_text("")


#: Replacements of a file.
OTHERS: dict[str, Callable[[Path], object]] = {
    "a folder": a_folder,
    "nothing": lambda _: None,
    "an empty file": Path.touch,
    "garbage": lambda file: file.write_bytes(b"\xff\0{[garbage\n\x1b" * 9),
    "much": lambda file: file.write_bytes(b"[" * 100_000),
    "nobody's to read": lambda file: file.touch(0o000),
    "a link to nothing": lambda file: file.symlink_to("/nowhere/at/all"),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to a device": lambda file: file.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("other", OTHERS)
def test_cache_records_that_are_damaged_are_made_again(project: Project, other: str) -> None:
    for number in range(30):
        (project.source / f"file-{number}").write_text(f"{number}\n")
    git(project.source, "add", ".")
    git(project.source, "commit", "-qm", "second")
    project.write(one="head -c 9000 /dev/urandom > $DESTDIR/big", two=("one", "false"))
    assert project.build().returncode == 3
    project.write(one="head -c 9000 /dev/urandom > $DESTDIR/big", two=("one", "cp file-7 $DESTDIR"))
    assert project.build().returncode == 0
    files = [file for pattern in MEMORIES for file in sorted(project.cache.glob(pattern))]
    assert len(files) >= len(MEMORIES)
    for file in files:
        file.unlink()
        OTHERS[other](file)
    for args in (("show", SYSTEM), ("build", SYSTEM), ("cache", "check"), ("logs", "two")):
        done = project.run(*args)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
    project.write(three="cp file-7 $DESTDIR", two=("three", "false"))
    assert project.build().returncode == 3
    assert project.run("gc", "--keep-days", "0").returncode == 0
    assert project.run("show", SYSTEM).returncode == 0
    left = [file for file in files if os.path.lexists(file) and file.parent.name != "failures"]
    assert [file for file in left if file.is_symlink() or not file.is_file()] == []


@pytest.mark.bound("MEMORY")
def test_cache_record_past_the_bound_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "it"
    remember(file, b"this")
    assert recall(file) == b"this"
    os.truncate(file, bounds.MEMORY + 1)
    assert recall(file) == b""
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize("lock", ["work/lock", "work/held", "artifacts/lock"])
@pytest.mark.parametrize("other", ["a folder", "a link to itself", "a link to nothing"])
def test_lock_that_is_not_a_file_is_named(project: Project, lock: str, other: str) -> None:
    """It is not replaced: a process may hold it."""
    project.write(one="true")
    assert project.build().returncode == 0
    file = project.cache / lock
    file.unlink()
    OTHERS[other](file)
    project.write(one="echo new")
    for args in (("build", SYSTEM), ("gc", "--keep-days", "0")):
        done = project.run(*args)
        said = done.stdout + done.stderr
        assert done.returncode in (1, 4), args
        assert str(file) in said
        assert "Traceback" not in said
        assert "fault of distbuild" not in said
