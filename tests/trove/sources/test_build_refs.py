"""A work tree becomes a commit in the trove, and the user's repository does not change."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_definitions import git

from fabric.errors import SourceError
from fabric.trove.sources.build_refs import KEEP, PUSHED, Builds, new_request, ref_of, stale
from fabric.trove.sources.farm_remote import Trove, TroveError
from fabric.trove.sources.git import Repository


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A repository of definitions, two files committed."""
    root = tmp_path / "definitions"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    write(root, VERSION="version: 8\n", strata__a_morph="name: a\n", strata__b_morph="name: b\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


@pytest.fixture
def ours(tmp_path: Path) -> Builds:
    return Builds(tmp_path / "cache/builds.git")


@pytest.fixture
def trove(tmp_path: Path) -> Trove:
    git(tmp_path, "init", "-q", "--bare", "trove.git")
    return Trove(str(tmp_path / "trove.git"))


def pushed(ours: Builds, trove: Trove, root: Path) -> dict[str, str]:
    """Push a snapshot of ``root`` to the trove; returns the files that arrive."""
    ref = ref_of(new_request())
    ours.push(ours.snapshot(root), trove, ref, print)
    there = Path(trove.url)
    names = git(there, "ls-tree", "-r", "--name-only", "-z", ref).split("\0")[:-1]
    return {name: git(there, "show", f"{ref}:{name}") for name in names}


def shown(ours: Builds, root: Path, path: str) -> str:
    """The content of a file in a snapshot of ``root``."""
    build = ours.snapshot(root)
    done = subprocess.run(
        ["git", "--git-dir", str(ours.repository.path), "show", f"{build.commit}:{path}"],
        env=os.environ | build.environ,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def state(root: Path) -> dict[str, bytes]:
    """Every byte and time of the user's git directory."""
    return {
        str(file): file.read_bytes() + str(file.stat().st_mtime_ns).encode()
        for file in sorted((root / ".git").rglob("*"))
        if file.is_file()
    }


def test_snapshot_holds_the_work_tree_without_ignored_files(
    user: Path, ours: Builds, trove: Trove
) -> None:
    write(user, strata__a_morph="name: changed\n", strata__new_morph="name: new\n")
    (user / "strata/b.morph").unlink()
    (user / "secret.key").write_text("do not tell")
    (user / ".gitignore").write_text("*.key\n")
    (user / "build-step-zlib-misc.log").write_text("a log")
    (user / "ein ümlaut\nund zwei Zeilen").write_text("odd name")
    git(user, "add", "strata/new.morph")
    write(user, strata__new_morph="name: newer than the index\n")
    before = state(user)
    there = pushed(ours, trove, user)
    assert state(user) == before
    assert there.pop("strata/a.morph") == "name: changed\n"
    assert there.pop("strata/new.morph") == "name: newer than the index\n"
    assert there.pop("ein ümlaut\nund zwei Zeilen") == "odd name"
    assert sorted(there) == [".gitignore", "VERSION"]


def test_snapshot_runs_no_hooks(user: Path, ours: Builds, trove: Trove) -> None:
    for hook in ("pre-commit", "post-index-change", "pre-push", "reference-transaction"):
        script = user / ".git/hooks" / hook
        script.write_text(f"#!/bin/sh\ntouch {user.parent}/hooked\n")
        script.chmod(0o755)
    write(user, strata__a_morph="name: changed\n")
    pushed(ours, trove, user)
    assert not (user.parent / "hooked").exists()


def test_snapshot_of_a_folder_inside_a_repository(user: Path, ours: Builds, trove: Trove) -> None:
    write(user, inner__VERSION="version: 8\n", inner__x_morph="name: x\n")
    assert sorted(pushed(ours, trove, user / "inner")) == ["VERSION", "x.morph"]
    git(user, "add", "inner")
    git(user, "commit", "-qm", "second")
    write(user, inner__x_morph="name: y\n")
    assert pushed(ours, trove, user / "inner")["x.morph"] == "name: y\n"


def test_snapshot_of_a_linked_work_tree(user: Path, ours: Builds, trove: Trove) -> None:
    git(user, "worktree", "add", "-q", "../other")
    other = user.parent / "other"
    write(other, strata__a_morph="name: other\n")
    assert pushed(ours, trove, other)["strata/a.morph"] == "name: other\n"


def test_snapshot_outside_any_repository(tmp_path: Path, ours: Builds, trove: Trove) -> None:
    root = tmp_path / "plain"
    write(root, VERSION="version: 8\n", a_morph="name: a\n")
    (root / ".gitignore").write_text("*.o\n")
    (root / "a.o").write_text("")
    assert sorted(pushed(ours, trove, root)) == [".gitignore", "VERSION", "a.morph"]
    write(root, a_morph="name: b\n")
    (root / ".gitignore").unlink()
    assert pushed(ours, trove, root) == {
        "VERSION": "version: 8\n",
        "a.morph": "name: b\n",
        "a.o": "",
    }
    assert not (root / ".git").exists()


def test_snapshot_of_a_folder_that_its_repository_ignores(
    user: Path, ours: Builds, trove: Trove
) -> None:
    (user / ".gitignore").write_text("/mine\n")
    write(user, mine__VERSION="version: 8\n", mine__a_morph="name: a\n")
    assert sorted(pushed(ours, trove, user / "mine")) == ["VERSION", "a.morph"]


def test_snapshot_without_any_commit(tmp_path: Path, ours: Builds, trove: Trove) -> None:
    root = tmp_path / "young"
    root.mkdir()
    git(root, "init", "-q")
    write(root, VERSION="version: 8\n")
    assert pushed(ours, trove, root) == {"VERSION": "version: 8\n"}


def test_snapshot_does_not_read_unchanged_files(user: Path, ours: Builds) -> None:
    """A file with the time and size of its index entry counts as unchanged."""
    path = user / "strata/a.morph"
    os.utime(path, (1, 1))
    git(user, "update-index", "--refresh")
    path.write_text("name: A\n")  # as long as before
    os.utime(path, (1, 1))
    git(user, "config", "core.trustctime", "false")
    git(user, "config", "core.checkStat", "minimal")
    assert shown(ours, user, "strata/a.morph") == "name: a\n"


def test_snapshot_sees_changes_as_young_as_the_index(user: Path, ours: Builds) -> None:
    for number in range(20):
        write(user, strata__a_morph=f"name: {number:02}\n")
        git(user, "add", ".")
        write(user, strata__a_morph=f"name: {number + 50:02}\n")
        assert shown(ours, user, "strata/a.morph") == f"name: {number + 50:02}\n"


def test_push_sends_no_objects_that_the_trove_has(user: Path, ours: Builds, trove: Trove) -> None:
    (user / "large").write_text(os.urandom(1_500_000).hex())
    git(user, "add", ".")
    git(user, "commit", "-qm", "large")
    pushed(ours, trove, user)
    held = sum(file.stat().st_size for file in Path(trove.url).rglob("*") if file.is_file())
    write(user, strata__a_morph="name: changed\n")
    pushed(ours, trove, user)
    more = sum(file.stat().st_size for file in Path(trove.url).rglob("*") if file.is_file())
    assert more - held < 100_000


@pytest.mark.bound("SNAPSHOT_FILE")
@pytest.mark.parametrize("name", ["crypt", "a=b.c"])
@pytest.mark.parametrize("kind", ["clean", "process"])
def test_snapshot_runs_no_filters(user: Path, ours: Builds, name: str, kind: str) -> None:
    """The configuration of a repository may name any program as a filter."""
    ran = user.parent / "ran"
    git(user, "config", f"filter.{name}.{kind}", f"touch {ran}; cat")
    git(user, "config", f"filter.{name}.required", "true")
    (user / ".gitattributes").write_text(f"*.txt filter={name}\n")
    (user / "plain.txt").write_text("committed")
    blob = git(user, "hash-object", "-w", "--no-filters", "plain.txt").strip()
    git(user, "update-index", "--add", "--cacheinfo", f"100644,{blob},plain.txt")
    ran.unlink(missing_ok=True)
    assert shown(ours, user, "plain.txt") == "committed"
    (user / "plain.txt").write_text("the secret")
    with pytest.raises(SourceError) as caught:
        ours.snapshot(user)
    assert str(caught.value) == (
        f"{user}/plain.txt: it has changed, and is to go through the filter {name!r} of"
        " .gitattributes, which is not run here: `git add` it, and submit the build again"
    )
    assert not ran.exists()


@pytest.mark.bound("SNAPSHOT_FILE")
def test_snapshot_rejects_a_large_file(user: Path, ours: Builds) -> None:
    with (user / "disk.img").open("w") as file:
        file.truncate(200_000_000)
    with pytest.raises(SourceError, match=r"disk\.img: 200 MB are too much .*\.gitignore"):
        ours.snapshot(user)


def test_build_refs_are_removed_once_they_are_old(user: Path, ours: Builds, trove: Trove) -> None:
    def request(age: float) -> str:
        return f"{int((time.time() - age) * 1000):012x}" + os.urandom(10).hex()

    build = ours.snapshot(user)
    fresh, over, live = request(60), request(7200), request(7200)
    ancient = request(400 * 86400)  # or by a clock that is ahead
    for one in (fresh, over, live, ancient):
        ours.push(build, trove, ref_of(one), print)
    other = f"refs/builds/somebody-else/{request(7200)}"
    ours.push(build, trove, other, print)
    assert ours.untidy()
    assert ours.tidy(trove, {live, ancient}) == 1
    assert not ours.untidy()
    left = git(Path(trove.url), "for-each-ref", "--format=%(refname)").split()
    assert sorted(left) == sorted([ref_of(fresh), ref_of(live), ref_of(ancient), other])
    assert list(stale(["refs/builds/x/by-hand"], (), time.time())) == []


@pytest.mark.parametrize("around", [True, False])
def test_build_repository_does_not_grow_for_ever(
    user: Path, ours: Builds, trove: Trove, around: bool
) -> None:
    """Objects of old builds only are removed, and later snapshots are complete."""
    if not around:
        shutil.rmtree(user / ".git")
    stays = {"VERSION": "version: 8\n", "strata/b.morph": "name: b\n"}
    sizes = []
    for day in range(4):
        for order in range(5):
            write(user, strata__a_morph=f"name: {day}{order}\n")
            there = pushed(ours, trove, user)
            assert there == stays | {"strata/a.morph": f"name: {day}{order}\n"}
        objects = ours.repository.path / "objects"
        for file in objects.glob("??/*"):  # a day passes
            os.utime(file, (time.time() - 90_000,) * 2)
        before = sum(file.stat().st_size for file in objects.glob("??/*"))
        would = ours.prune(PUSHED, dry_run=True)
        assert ours.prune(0) == would > 0
        sizes.append(sum(file.stat().st_size for file in objects.glob("??/*")))
        assert sizes[-1] == before - would
    assert max(sizes) < 2000
    git(ours.repository.path, "fsck", "--strict")
    for index in ours.repository.path.glob("index-of-*"):
        os.utime(index, (time.time() - KEEP - 60,) * 2)
    ours.prune(0)
    assert not list(objects.glob("??/*"))
    assert pushed(ours, trove, user).keys() == {*stays, "strata/a.morph"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Host key verification failed.", "host whose key is not known"),
        ("git@h: Permission denied (publickey).", "does not accept /k"),
        ("ssh: connect to host h port 22: Connection refused", "cannot be reached: is h up"),
        ("ssh: Could not resolve hostname h: Name or service not known", "cannot be reached"),
        ("error: remote unpack failed: No space left on device", "no space left on its disk"),
        ("'/srv/t' does not appear to be a git repository", "is the setting `trove` right"),
    ],
)
def test_push_error_explains_the_output_of_ssh(said: str, told: str) -> None:
    problem = Trove("ssh://git@h:2222/srv/t", "/k").problem(said)
    assert told in str(problem)
    assert said in str(problem)


def test_push_to_a_missing_trove_is_an_error(user: Path, ours: Builds, tmp_path: Path) -> None:
    build = ours.snapshot(user)
    with pytest.raises(TroveError, match="is no git repository: is the setting `trove` right"):
        ours.push(build, Trove(str(tmp_path / "nowhere.git")), ref_of(new_request()), print)


def test_repository_is_made_once_by_many_at_once(tmp_path: Path) -> None:
    path = tmp_path / "trove/builds.git"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Repository(path).create(), range(8)))
    assert git(path, "config", "gc.auto") == "0\n"
    assert [one.name for one in path.parent.glob("*.git")] == ["builds.git"]
    assert not list(path.parent.glob("making-*"))
