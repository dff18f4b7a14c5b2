"""`diff` of systems, commits and artifacts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from initiator_kit import INITIATOR, Project
from small_definitions import git

SYSTEM = "../systems/small.morph"
INSTALL = "mkdir -p $DESTDIR/usr/bin; cp hello.txt $DESTDIR/usr/bin/{0}"
OLD = """\
cd $DESTDIR; mkdir -p usr/bin dir; chmod 755 dir
echo old > usr/bin/tool; ln usr/bin/tool usr/bin/alias; echo 1 > gone; echo same > same
ln -s old link; mkfifo kind; echo 1 > mode; chmod 644 mode usr/bin/tool; mkdir dir/moved
"""
NEW = """\
cd $DESTDIR; mkdir -p usr/bin dir; chmod 700 dir
echo newer > usr/bin/tool; ln usr/bin/tool usr/bin/alias; echo 12 > come; echo same > same
ln -s new link; ln -s to kind; echo 1 > mode; chmod 4755 mode; chmod 644 usr/bin/tool
"""


def commit(project: Project, message: str) -> None:
    if not (project.root / ".git").exists():
        git(project.root, "init", "-q", "-b", "main")
        (project.root / ".gitignore").write_text("/here\n/source\n")
    git(project.root, "add", ".")
    git(project.root, "commit", "-qm", message)


def first(project: Project) -> None:
    """Build and commit the first of two versions."""
    project.write(
        one=OLD, two=("one", INSTALL.format("two")), three=INSTALL.format("three"), four="true"
    )
    commit(project, "first")
    assert project.build().returncode == 0


def second(project: Project) -> None:
    """The second version: a chunk more, a chunk less, and changes."""
    project.write(
        one=NEW, two=("one", INSTALL.format("two")), five=INSTALL.format("five"), four="true"
    )


def keys(project: Project) -> dict[str, str]:
    shown = json.loads(project.run("show", SYSTEM, "--json").stdout)
    return {step["name"]: step["key"] for step in shown}


def diff(project: Project, old: str, new: str) -> list[str]:
    done = project.run("diff", old, new)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


CHUNKS = [
    "  ~ no longer has three-bins, three-misc (systems/small.morph:4);"
    " now has five-bins, five-misc (systems/small.morph:4)",
    "chunks: 1 added, 1 gone, 2 changed",
    "  + five main",
    "  ~ one main: install-commands changed (strata/one.morph:3)",
    "  - three main",
    "  ~ two main: because of one: install-commands changed",
]
FILES = [
    "  + /come: 3 B",
    "  ~ /dir: mode 755 -> 700",
    "  - /dir/moved: directory",
    "  - /gone: 2 B",
    "  ~ /kind: FIFO -> symlink to to",
    "  ~ /link: target old -> new",
    "  ~ /mode: mode 644 -> 4755",
    "  ~ /usr/bin/alias: content, 4 B -> 6 B",
    "  ~ /usr/bin/tool: content, 4 B -> 6 B",
]


@pytest.mark.parametrize("old", ["HEAD", "main", "built"])
def test_diff_of_history_and_files(project: Project, old: str) -> None:
    first(project)
    before = keys(project)
    second(project)
    after = keys(project)
    head = f"system small: {before['small'][:12]} -> {after['small'][:12]}"
    missing = [
        f"files: not compared, because the store has no build of {SYSTEM}",
        f"  run: fabric-initiator build {SYSTEM}",
    ]
    assert diff(project, f"{SYSTEM}@{old}", SYSTEM) == [head, *CHUNKS, *missing]
    if old == "built":
        return
    assert project.build().returncode == 0
    lines = diff(project, f"{SYSTEM}@{old}", SYSTEM)
    assert lines[: len(CHUNKS) + 1] == [head, *CHUNKS]
    named = [line for line in lines if re.match("  . /(?!baserock)", line)]
    assert named == sorted(
        [*FILES, "  + /usr/bin/five: 6 B", "  - /usr/bin/three: 6 B"],
        key=lambda one: one[4:].partition(":")[0],
    )
    assert "  + /baserock/five-bins.meta: " in "\n".join(lines)
    assert re.fullmatch(
        r"size: [\d.]+ kB -> [\d.]+ kB \([+-]\d+ B\) in \d+ -> \d+ files,"
        r" [\d.]+ kB -> [\d.]+ kB \([+-]\d+ B\) in the store",
        lines[-1],
    ), lines[-1]


def test_diff_of_artifacts_of_a_chunk(project: Project) -> None:
    first(project)
    before = keys(project)["one"]
    second(project)
    assert project.build().returncode == 0
    after = keys(project)["one"]
    assert diff(project, before[:12], after) == [
        f"chunk one: {before[:12]} -> {after[:12]}",
        "chunks: 1 changed",
        "  ~ one main: install-commands changed",
        "files: 1 added, 2 gone, 6 changed",
        *FILES,
        "size: 13 B -> 16 B (+3 B) in 11 -> 10 files,"
        + diff(project, before, after)[-1].partition(",")[2],
    ]
    assert diff(project, after, after)[:2] == [
        f"chunk one: the same, {after[:12]}",
        "files: no difference",
    ]


def test_diff_of_builds_needs_no_definitions(project: Project) -> None:
    first(project)
    before = keys(project)["small"]
    second(project)
    assert project.build().returncode == 0
    after = keys(project)["small"]
    shutil.rmtree(project.root / "systems")
    (project.root / "VERSION").unlink()
    lines = diff(project, before[:12], after[:12])
    assert [line for line in lines if line.startswith("  ~ one") or line.startswith("  ~ two")] == [
        "  ~ one main: install-commands changed",
        "  ~ two main: because of one: install-commands changed",
    ]
    assert set(FILES) < set(lines)


def test_diff_of_a_source(project: Project) -> None:
    project.write(one="true")
    git(project.source, "tag", "1.0")
    (project.source / "hello.txt").write_text("hello again\n")
    git(project.source, "commit", "-qam", "second")
    git(project.source, "tag", "2.0")
    stratum = project.root / "strata/things.morph"
    stratum.write_text(stratum.read_text().replace("ref: main", "ref: '1.0'"))
    commit(project, "first")
    stratum.write_text(stratum.read_text().replace("ref: '1.0'", "ref: '2.0'"))
    lines = diff(project, f"{SYSTEM}@HEAD", SYSTEM)
    assert "  ~ one 1.0 -> 2.0: source 1.0 -> 2.0 (strata/things.morph:7)" in lines
    commit(project, "second")
    assert diff(project, f"{SYSTEM}@HEAD~", f"{SYSTEM}@HEAD")[1:-1] == lines[1:-2]


def test_diff_of_a_system_that_was_moved(project: Project) -> None:
    first(project)
    (project.root / "systems/small.morph").rename(project.root / "systems/tiny.morph")
    lines = diff(project, f"{SYSTEM}@HEAD", "../systems/tiny.morph")
    assert re.fullmatch(r"system small: the same, \w{12}", lines[0])
    assert lines[1] == "files: no difference"
    assert diff(project, "small@HEAD", "tiny") == lines


def test_diff_of_definitions_in_a_folder_of_a_repository(project: Project, tmp_path: Path) -> None:
    project.write(one="true")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", "definitions/VERSION", "definitions/DEFAULTS", "definitions/systems")
    git(tmp_path, "add", "definitions/strata")
    git(tmp_path, "commit", "-qm", "first")
    assert diff(project, f"{SYSTEM}@main", SYSTEM)[0].startswith("system small: the same, ")


def test_diff_as_data(project: Project) -> None:
    first(project)
    before = keys(project)
    second(project)
    unbuilt = json.loads(project.run("diff", f"{SYSTEM}@HEAD", SYSTEM, "--json").stdout)
    assert (unbuilt["files"], unbuilt["not_built"]) == (None, [SYSTEM])
    assert project.build().returncode == 0
    after = keys(project)
    found = json.loads(project.run("diff", f"{SYSTEM}@HEAD", SYSTEM, "--json").stdout)
    assert found["old"]["key"] == before["small"]
    assert found["new"]["given"] == SYSTEM
    assert found["new"]["size"]["files"] > 10
    chunks = {one["name"]: one for one in found["chunks"]}
    assert chunks.keys() == {"one", "two", "three", "five"}
    assert chunks["five"]["old"] is None
    assert chunks["one"]["new"] == {"key": after["one"], "version": "main"}
    assert chunks["two"]["changes"] == chunks["one"]["changes"]
    files = {one["path"]: one for one in found["files"]}
    assert files["/mode"]["what"] == ["mode"]
    assert files["/mode"]["new"]["mode"] == "4755"
    assert files["/link"]["old"]["target"] == "old"
    assert files["/come"]["what"] == ["added"]


@pytest.mark.parametrize(
    ("operand", "error"),
    [
        ("ffffff", "ffffff: the store STORE has no key that begins so"),
        (f"{'f' * 64}", f"{'f' * 64}: the store STORE does not have it"),
        (f"{SYSTEM}@nope", f"{SYSTEM}@nope: ROOT has no commit 'nope'"),
        (f"{SYSTEM}@--all", f"{SYSTEM}@--all: ROOT has no commit '--all'"),
        (f"{SYSTEM}@", f"{SYSTEM}@: ROOT has no commit ''"),
        ("nothing@HEAD", "nothing@HEAD: no such system in commit COMMIT"),
        ("../../x@HEAD", "../../x@HEAD: no such system in commit COMMIT"),
        ("nothing", "nothing: no such system in ROOT"),
        ("KEY", "KEY is a chunk, and ../systems/small.morph a system: compare two of one kind"),
        (f"{SYSTEM}@broken", "commit BROKEN of the definitions cannot be compared:\n"
         "systems/small.morph:1: morph: 'kind' is"),
    ],
)  # fmt: skip
def test_diff_rejects(project: Project, operand: str, error: str) -> None:
    project.write(one="true")
    commit(project, "first")
    assert project.build().returncode == 0
    system = project.root / "systems/small.morph"
    text = system.read_text()
    system.write_text("kind: 3\n")
    commit(project, "second")
    git(project.root, "tag", "broken")
    system.write_text(text)
    heads = git(project.root, "rev-parse", "HEAD").strip()
    key = keys(project)["one"]
    done = project.run("diff", operand.replace("KEY", key), SYSTEM)
    assert done.returncode == 1
    for name, value in (
        ("STORE", f"{project.cache}/artifacts"), ("ROOT", str(project.root)),
        ("COMMIT", heads[:12]), ("BROKEN", heads[:12]), ("KEY", key),
    ):  # fmt: skip
        error = error.replace(name, value)
    assert done.stderr.startswith(f"fabric-initiator: {error}"), done.stderr


def test_diff_rejects_history_that_is_not_there(project: Project) -> None:
    project.write(one="true")
    done = project.run("diff", f"{SYSTEM}@HEAD", SYSTEM)
    where = f"{SYSTEM}@HEAD: {project.root} is in no git repository, so it has no commits"
    assert done.stderr == f"fabric-initiator: {where}\n"
    done = project.run("diff", f"{SYSTEM}@built", SYSTEM)
    store = f"{project.cache}/artifacts"
    assert done.stderr.endswith(f"{SYSTEM}@built: the store {store} has no build of it\n")


def test_diff_of_damaged_archives(project: Project) -> None:
    big = "head -c 20000 /dev/urandom > $DESTDIR/big"
    project.write(one=big)
    assert project.build().returncode == 0
    before = keys(project)["one"]
    project.write(one=f"{big}; touch $DESTDIR/x")
    assert project.build().returncode == 0
    after = keys(project)["one"]
    for blob in (project.cache / "artifacts/blobs").rglob("*"):
        if blob.is_file():
            blob.chmod(0o600)
            blob.write_bytes(b"x" * blob.stat().st_size)
    done = project.run("diff", before, after)
    assert done.returncode == 1
    where = re.escape(f"{before}: one-misc: {project.cache}/artifacts: blob ")
    assert re.match(rf"fabric-initiator: {where}\w+ is damaged: its digest is", done.stderr)


def test_diff_ends_with_its_reader(project: Project) -> None:
    many = 'i=0; while [ $i -lt 3000 ]; do : > "$DESTDIR/a-long-name-{}-$i"; i=$((i+1)); done'
    project.write(one=many.format("a"))
    assert project.build().returncode == 0
    project.write(one=many.format("b"))
    assert project.build().returncode == 0
    command = " ".join([*INITIATOR, "diff", f"{SYSTEM}@built", SYSTEM])
    commit(project, "second")
    project.write(one=many.format("a"))
    command = " ".join([*INITIATOR, "diff", f"{SYSTEM}@HEAD", SYSTEM])
    done = subprocess.run(
        ["sh", "-c", f"{command} | head -n 9"],
        cwd=project.logs, env=project.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 9
    assert "files: 3000 added, 3000 gone" in done.stdout
    assert done.stderr == ""


def test_diff_reads_the_lorries_of_each_commit(project: Project) -> None:
    project.write(one="true")
    git(project.source, "tag", "1.0")
    stratum = project.root / "strata/things.morph"
    plain = stratum.read_text().replace("ref: main", "ref: '1.0'")
    stratum.write_text(re.sub(r"repo: .*", "repo: upstream:thing", plain))
    lorry = project.root / "sources/thing.lorry"
    lorry.parent.mkdir()
    lorry.write_text(json.dumps({"thing": {"type": "git", "url": f"file://{project.source}"}}))
    commit(project, "first")
    lorry.unlink()
    stratum.write_text(plain)
    assert diff(project, f"{SYSTEM}@HEAD", SYSTEM)[0].startswith("system small: the same, ")


def test_diff_of_the_definitions_own_source(project: Project) -> None:
    """The ref HEAD is the commit that is named, also for definitions of before."""
    project.write(one="true")
    stratum = project.root / "strata/things.morph"
    text = stratum.read_text().replace("ref: main", "ref: HEAD")
    stratum.write_text(re.sub(r"repo: .*", "repo: upstream:own", text))
    lorry = project.root / "sources/own.lorry"
    lorry.parent.mkdir()
    lorry.write_text(json.dumps({"own": {"type": "git", "url": ".."}}))
    commit(project, "first")
    first = git(project.root, "rev-parse", "HEAD").strip()
    (project.root / "more.txt").write_text("more\n")
    commit(project, "second")
    second = git(project.root, "rev-parse", "HEAD").strip()
    lines = diff(project, f"{SYSTEM}@{first}", SYSTEM)
    where = "strata/things.morph:7"
    assert f"  ~ one HEAD: source HEAD: {first[:12]} -> {second[:12]} ({where})" in lines
