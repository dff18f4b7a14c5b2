"""Damaged repositories, here or at their origin, and missing refs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_definitions import SYSTEM, lay_out
from sources_kit import git, repository

from fabric.client.project import Project
from fabric.config import load_settings
from fabric.errors import SourceError
from fabric.trove.configured import open_importer
from fabric.trove.sources.git import Repository
from fabric.trove.sources.resolve import Sources


def no_head(path: Path) -> None:
    (path / "HEAD").unlink()


def empty_head(path: Path) -> None:
    (path / "HEAD").write_bytes(b"")


def rubbish_head(path: Path) -> None:
    (path / "HEAD").write_bytes(b"\0\xff" * 20)


def rubbish_refs(path: Path) -> None:
    (path / "packed-refs").write_bytes(b"\xff\xfe" * 40)


def other_refs(path: Path) -> None:
    (path / "packed-refs").write_text("zzzz refs/heads/main\n")


DAMAGE = [
    (no_head, "HEAD is missing"),
    (empty_head, "HEAD has something other than a ref"),
    (rubbish_head, "HEAD has something other than a ref"),
    (rubbish_refs, "packed-refs is no text"),
    (other_refs, "packed-refs has something other than refs"),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
def test_mirror_that_is_damaged_is_fetched_again_once(
    tmp_path: Path, damage: Callable[[Path], None], why: str
) -> None:
    commit = repository(tmp_path / "thing", {"file": "content"})
    said: list[str] = []

    def opened() -> Sources:
        return Sources(tmp_path / "trove", {"up": f"{tmp_path}/%s"}, progress=said.append)

    opened().resolve("up:thing", "main")
    [mirror] = (tmp_path / "trove/git/mirrors").glob("*.git")
    git(mirror, "pack-refs", "--all")
    damage(mirror)
    source = opened().resolve_all([("up:thing", "main", ())])[0]
    assert source.commit == commit
    mended = f"{mirror}: a damaged repository: {why}: removing it, and fetching its source again"
    assert said.count(f"warning: {mended}") == 1
    assert (opened().export(source) / "file").read_text() == "content"
    damage(mirror)
    shutil.rmtree(tmp_path / "trove/trees")
    assert (opened().export(source) / "file").read_text() == "content"
    assert said.count(f"warning: {mended}") == 2


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
def test_repository_without_an_origin_is_kept_if_it_is_damaged(
    tmp_path: Path, damage: Callable[[Path], None], why: str
) -> None:
    only = tmp_path / "trove/git/only.git"
    repository(tmp_path / "thing", {"file": "content"})
    git(tmp_path, "clone", "--quiet", "--bare", str(tmp_path / "thing"), str(only))
    damage(only)
    with pytest.raises(SourceError) as caught:
        Sources(tmp_path / "trove", {}).resolve("only", "main")
    assert str(caught.value) == (
        f"{only}: a damaged repository: {why}; it has no other origin, so repair it, or push it"
        f" to {only}"
    )
    assert (only / "objects").exists()


@pytest.mark.parametrize(("damage", "why"), DAMAGE[:3])
def test_git_cache_is_made_again(tmp_path: Path, damage: Callable[[Path], None], why: str) -> None:
    cache = Repository(tmp_path / "cache.git")
    cache.create(cache=True)
    damage(cache.path)
    with pytest.raises(SourceError, match=why):
        cache.create()
    cache.create(cache=True)
    assert cache.exists
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == ["cache.git"]


def test_mirror_of_a_damaged_origin_gets_the_wanted_commit_alone(tmp_path: Path) -> None:
    """One object of another branch cannot be read at the origin."""
    origin = tmp_path / "thing"
    wanted = repository(origin, {"file": "content"})
    git(origin, "checkout", "--quiet", "-b", "broken")
    repository(origin, {"other": "is lost"})
    lost = git(origin, "rev-parse", "HEAD:other")
    (origin / ".git/objects" / lost[:2] / lost[2:]).unlink()
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    said: list[str] = []
    sources = Sources(tmp_path / "trove", {"up": f"{tmp_path}/%s"}, progress=said.append)
    source = sources.resolve("up:thing", wanted)
    assert (sources.export(source) / "file").read_text() == "content"
    assert any(line.endswith(f"; going on with {wanted} alone") for line in said)
    with pytest.raises(SourceError, match="git cannot fetch from it"):
        sources.resolve("up:thing", "broken")


@pytest.mark.skipif(os.getuid() != 0, reason="needs somebody else's repository")
def test_repository_needs_safe_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    definitions = tmp_path / "definitions"
    lorry = "baserock:itself: {type: git, url: '..'}\n"
    commit = repository(definitions, {"sources/itself.lorry": lorry})
    for path in (definitions, definitions / ".git"):
        os.chown(path, 1234, 1234)
    config = tmp_path / "gitconfig"
    config.touch()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))

    def resolved() -> str:
        sources = Sources(tmp_path / "trove", {}, definitions / "sources", importer=open_importer)
        return sources.resolve("baserock:itself", "HEAD").commit

    with pytest.raises(SourceError, match="dubious ownership"):
        resolved()
    config.write_text(f"[safe]\n\tdirectory = {definitions}\n\tdirectory = {definitions}/.git\n")
    assert resolved() == commit


# -- damage that shows only on reading -------------------------------------------------------


def flipped(file: Path, at: int) -> None:
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[at] ^= 0x41
    file.write_bytes(content)


def damaged_pack(path: Path) -> None:
    for pack in path.glob("objects/pack/*.pack"):
        flipped(pack, pack.stat().st_size // 2)


def damaged_head(path: Path) -> None:
    for pack in path.glob("objects/pack/*.pack"):
        flipped(pack, 30)


def missing_pack(path: Path) -> None:
    for pack in path.glob("objects/pack/*.pack"):
        pack.unlink()


def other_index(path: Path) -> None:
    for index in path.glob("objects/pack/*.idx"):
        flipped(index, 1100)


def rubbish_tag(path: Path) -> None:
    (path / "refs/tags").mkdir(exist_ok=True)
    (path / "refs/tags/v1").write_bytes(b"\xff" * 41)


def other_tag(path: Path) -> None:
    (path / "refs/tags").mkdir(exist_ok=True)
    (path / "refs/tags/v1").write_text("z" * 40 + "\n")


def tag_to_nothing(path: Path) -> None:
    (path / "refs/tags").mkdir(exist_ok=True)
    (path / "refs/tags/v1").write_text("1" * 40 + "\n")


def other_facts(path: Path) -> None:
    """Change a digit of the id of the tree."""
    facts = path / "facts"
    content = facts.read_text()
    tree = re.findall("[0-9a-f]{40}", content)[1]
    facts.write_text(content.replace(tree, tree[:-1] + ("0" if tree[-1] != "0" else "1")))


@pytest.mark.parametrize("facts", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        damaged_pack,
        damaged_head,
        missing_pack,
        other_index,
        rubbish_tag,
        other_tag,
        tag_to_nothing,
        other_facts,
    ],
)
def test_mirror_damage_does_not_change_a_source(
    tmp_path: Path, damage: Callable[[Path], None], facts: bool
) -> None:
    files = {f"file-{number}": f"content {number}\n" * 50 for number in range(20)}
    commit = repository(tmp_path / "thing", files, tag="v1")

    def opened() -> Sources:
        return Sources(tmp_path / "trove", {"up": f"{tmp_path}/%s"})

    before = opened().resolve("up:thing", "v1")
    [mirror] = (tmp_path / "trove/git/mirrors").glob("*.git")
    damage(mirror)
    if not facts:
        (mirror / "facts").unlink()
    [source] = opened().resolve_all([("up:thing", "v1", ())])
    assert source == before
    assert source.commit == commit
    tree = opened().export(source)
    assert {file.name: file.read_text() for file in tree.iterdir()} == files


def test_mirror_is_kept_if_its_origin_is_damaged(tmp_path: Path) -> None:
    """The mirror is compared with the refs of its origin."""
    origin = tmp_path / "thing"
    repository(origin, {"file": "content"})

    def opened() -> Sources:
        return Sources(tmp_path / "trove", {"up": f"{tmp_path}/%s"})

    before = opened().resolve("up:thing", "main")
    [mirror] = (tmp_path / "trove/git/mirrors").glob("*.git")
    kept = (mirror / "HEAD").stat().st_ino
    (origin / ".git/refs/heads/main").write_bytes(b"\xff" * 41)
    assert opened().resolve("up:thing", "main") == before
    assert (mirror / "HEAD").stat().st_ino == kept


# -- errors by chunk -----------------------------------------------------------------------


def definitions(root: Path, specs: str) -> Project:
    lay_out(root / "definitions", root / "source")
    (root / "definitions/strata/things.morph").write_text(
        f"name: things\nkind: stratum\nchunks:\n{specs}"
    )
    settings = load_settings({}, {"cache": str(root / "cache")})
    return Project(root / "definitions", settings, print)


def spec(name: str, repo: str, ref: str, more: str = "") -> str:
    return (
        f"- name: {name}\n  repo: {repo}\n  ref: {ref}\n  build-system: manual\n"
        f"  build-mode: test\n{more}"
    )


def problem(project: Project) -> str:
    with pytest.raises(SourceError) as caught:
        project.plan(project.graph(SYSTEM), tools="x")
    return str(caught.value)


def test_missing_ref_is_reported_with_its_chunk(tmp_path: Path) -> None:
    gone = "7cfc" + "0" * 36
    url = f"file://{tmp_path}/source"
    project = definitions(
        tmp_path,
        spec("one", url, gone, "  unpetrify-ref: master\n") + spec("two", url, "v9"),
    )
    assert problem(project).splitlines() == [
        f"strata/things.morph:6: chunk one: {url}: it has no commit {gone}; its unpetrify-ref is"
        " master",
        f"strata/things.morph:12: chunk two: {url}: it has no ref v9; `git ls-remote {url}` lists"
        " its refs",
    ]


def test_source_errors_that_are_many_and_alike_are_reported_together(tmp_path: Path) -> None:
    project = definitions(
        tmp_path, "".join(spec(f"c{n}", f"upstream:c{n}", "v1") for n in range(400))
    )
    first, *lines, last = problem(project).splitlines()
    assert first == (
        "400 sources: no such repository, and no lorry for it: add lorries to the folder sources of"
        f" the definitions, push repositories to {tmp_path}/cache/trove/git, or configure aliases"
        " to be URLs:"
    )
    assert len(lines) == 5
    assert all(line.startswith("  strata/things.morph:") for line in lines)
    assert last == "  and 395 more"


def test_source_errors_that_are_few_are_reported_one_by_one(tmp_path: Path) -> None:
    project = definitions(tmp_path, spec("a", "upstream:a", "v1") + spec("b", "upstream:b", "v1"))
    lines = problem(project).splitlines()
    assert [line.partition(": no such")[0] for line in sorted(lines)] == [
        "strata/things.morph:11: chunk b: upstream:b",
        "strata/things.morph:6: chunk a: upstream:a",
    ]
