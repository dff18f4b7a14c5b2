"""Sources from git: refs, mirrors, submodules, and errors of missing ones."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from servers_kit import free_port, running
from sources_kit import git, outputs_at_once, repository

from fabric.definitions.graph import Submodule
from fabric.errors import SourceError
from fabric.jobs import Source
from fabric.trove.sources.aliases import Aliases
from fabric.trove.sources.resolve import Sources

Make = Callable[..., Sources]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the sources of one trove with the given aliases, as a new process would."""

    def sources(**aliases: str) -> Sources:
        return Sources(tmp_path / "trove", aliases, None, progress=progress.append)

    progress: list[str] = []
    return sources


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of repositories for aliases."""
    return tmp_path / "elsewhere"


@pytest.fixture
def without_git(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after whose call no process can be started."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError(f"started {args} {options}")

    return lambda: monkeypatch.setattr(subprocess, "Popen", refuse)


def files(tree: Path) -> dict[str, bytes | str]:
    """Path -> content, or the target of a symlink."""
    return {
        str(path.relative_to(tree)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in tree.rglob("*")
        if path.is_symlink() or path.is_file()
    }


# -- refs ------------------------------------------------------------------------------------


def test_resolve_tags_branches_and_commits(make: Make, elsewhere: Path) -> None:
    first = repository(elsewhere / "zlib", {"a": "1"}, tag="v1")
    second = repository(elsewhere / "zlib", {"a": "2"})
    git(elsewhere / "zlib", "branch", "topic/one", first)
    git(elsewhere / "zlib", "tag", "light", first)
    sources = make(up=f"{elsewhere}/%s")
    for ref, commit in {
        "v1": first,
        "light": first,
        "topic/one": first,
        "main": second,
        "refs/heads/main": second,
        "refs/tags/v1": first,
        first: first,
        second: second,
    }.items():
        source = sources.resolve("up:zlib", ref)
        assert (source.repo, source.ref, source.commit) == ("up:zlib", ref, commit)
        assert source.tree == git(elsewhere / "zlib", "rev-parse", f"{commit}^{{tree}}")
    assert sources.resolve("up:zlib.git", "v1").commit == first


def test_resolve_in_a_warm_trove_starts_no_process(
    make: Make, elsewhere: Path, without_git: Callable[[], None]
) -> None:
    wanted = []
    for number in range(5):
        commit = repository(elsewhere / f"r{number}", {"a": str(number)}, tag="v1")
        wanted += [(f"up:r{number}", "v1", ()), (f"up:r{number}", commit, ())]
        wanted += [(f"up:r{number}", "main", ())]
    before = make(up=f"{elsewhere}/%s").resolve_all(wanted)
    without_git()
    assert make(up=f"{elsewhere}/%s").resolve_all(wanted) == before


def test_resolve_reads_packed_refs_and_annotated_tags_without_git(
    make: Make, tmp_path: Path, without_git: Callable[[], None]
) -> None:
    commit = repository(tmp_path / "work", {"a": "1"}, tag="v1")
    bare = tmp_path / "trove/git/upstream/zlib.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(tmp_path / "work"), str(bare))
    git(bare, "pack-refs", "--all")
    git(bare, "update-ref", "refs/heads/loose", commit)
    git(bare, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    refs = ("v1", "main", "loose", "alias")
    assert {make().resolve("upstream:zlib", ref).commit for ref in refs} == {commit}
    without_git()
    assert {make().resolve("upstream:zlib", ref).commit for ref in refs} == {commit}


def test_resolve_sees_pushes_to_the_trove_at_once(make: Make, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = repository(work, {"a": "1"})
    bare = tmp_path / "trove/git/baserock/thing.git"
    git(tmp_path, "init", "--quiet", "--bare", str(bare))
    sources = make()
    git(work, "push", "--quiet", str(bare), "main")
    assert sources.resolve("baserock:thing", "main").commit == first
    second = repository(work, {"a": "2"})
    git(work, "push", "--quiet", str(bare), "main")
    assert sources.resolve("baserock:thing", "main").commit == second


def test_resolve_follows_branches_but_not_tags_of_a_mirror(make: Make, elsewhere: Path) -> None:
    first = repository(elsewhere / "zlib", {"a": "1"})
    git(elsewhere / "zlib", "tag", "v1")
    aliases = {"up": f"file://{elsewhere}/"}
    assert make(**aliases).resolve("up:zlib", "main").commit == first
    assert make(**aliases).resolve("up:zlib", "v1").commit == first
    second = repository(elsewhere / "zlib", {"a": "2"})
    assert make(**aliases).resolve("up:zlib", "main").commit == second
    assert make(**aliases).resolve("up:zlib", "v1").commit == first


def test_resolve_fetches_a_commit_that_no_ref_reaches(make: Make, elsewhere: Path) -> None:
    repository(elsewhere / "zlib", {"a": "1"})
    lost = repository(elsewhere / "zlib", {"a": "2"})
    git(elsewhere / "zlib", "reset", "--quiet", "--hard", "HEAD^")
    git(elsewhere / "zlib", "config", "uploadpack.allowAnySHA1InWant", "true")
    assert make(up=f"{elsewhere}/%s").resolve("up:zlib", lost).commit == lost


def test_resolve_ignores_a_torn_fact_file(make: Make, elsewhere: Path) -> None:
    commit = repository(elsewhere / "zlib", {"a": "1"}, tag="v1")
    source = make(up=f"{elsewhere}/%s").resolve("up:zlib", "v1")
    (facts,) = (make().root / "git").rglob("facts")
    whole = facts.read_bytes()
    for torn in (whole[: len(whole) // 2], b"\xff\x00{[", b'["commit", 5]\n[]\n{}\nnull\n', b""):
        facts.write_bytes(torn)
        assert make(up=f"{elsewhere}/%s").resolve("up:zlib", "v1") == source
        assert make(up=f"{elsewhere}/%s").resolve("up:zlib", commit).tree == source.tree


# -- over a network --------------------------------------------------------------------------


def test_resolve_over_the_git_protocol(make: Make, elsewhere: Path, tmp_path: Path) -> None:
    first = repository(elsewhere / "zlib", {"a": "1"}, tag="v1")
    port = free_port()
    command = ["git", "daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}"]
    command += ["--export-all", f"--base-path={elsewhere}", str(elsewhere)]
    url = f"git://127.0.0.1:{port}/%s"
    with running(command, tmp_path / "log", port):
        assert make(up=url).resolve("up:zlib", "main").commit == first
        second = repository(elsewhere / "zlib", {"a": "2"})
        assert make(up=url).resolve("up:zlib", "main").commit == second
        with pytest.raises(SourceError, match=r"up:zlib: git://127.*/zlib has no ref v9"):
            make(up=url).resolve("up:zlib", "v9")
    said: list[str] = []
    offline = Sources(make().root, {"up": url}, None, progress=said.append)
    assert offline.resolve("up:zlib", "v1").commit == first, "a tag needs no server"
    assert offline.resolve("up:zlib", "main").commit == second, "as it was last seen"
    assert any("warning" in line and "Connection refused" in line for line in said)
    with pytest.raises(SourceError, match="the alias up leads there; check it") as caught:
        make(up=url).resolve("up:other", "main")
    assert "Connection refused" in str(caught.value)


# -- submodules ------------------------------------------------------------------------------


def test_submodules_are_resolved_recursively(make: Make, elsewhere: Path) -> None:
    inner = repository(elsewhere / "inner", {"deep": "1"})
    middle_path = elsewhere / "middle"
    repository(middle_path, {"a": "1"})
    git(middle_path, "submodule", "--quiet", "add", "../inner", "in side")
    middle = repository(middle_path, {"b": "1"})
    outer_path = elsewhere / "outer"
    repository(outer_path, {"a": "1"})
    git(outer_path, "submodule", "--quiet", "add", str(middle_path), "lib/middle")
    outer = repository(outer_path, {"b": "1"}, tag="v1")

    source = make(up=f"{elsewhere}/%s").resolve("up:outer", "v1")

    assert source.commit == outer
    ((path, found),) = source.submodules
    assert (path, found.repo, found.commit) == ("lib/middle", str(middle_path), middle)
    ((path, found),) = found.submodules
    assert (path, found.commit) == ("in side", inner)
    assert found.repo == str(elsewhere / "inner"), "relative to the one it is in"


def test_submodule_urls_are_replaced_by_definitions(make: Make, elsewhere: Path) -> None:
    inner = repository(elsewhere / "inner", {"deep": "1"})
    outer_path = elsewhere / "outer"
    repository(outer_path, {"a": "1"})
    git(outer_path, "submodule", "--quiet", "add", str(elsewhere / "inner"), "inner")
    repository(outer_path, {"b": "1"}, tag="v1")
    shutil.move(elsewhere / "inner", elsewhere / "moved")
    sources = make(up=f"{elsewhere}/%s")
    with pytest.raises(SourceError, match="elsewhere/inner"):
        sources.resolve("up:outer", "v1")
    source = sources.resolve("up:outer", "v1", (Submodule("inner", "up:moved"),))
    assert source.submodules == (("inner", sources.resolve("up:moved", inner)),)
    with pytest.raises(SourceError, match="up:outer has no submodule other at v1"):
        sources.resolve("up:outer", "v1", (Submodule("other", "up:moved"),))


def test_submodule_without_a_url_stays_empty(elsewhere: Path, tmp_path: Path) -> None:
    commit = repository(elsewhere / "odd", {"a": "1"})
    git(elsewhere / "odd", "update-index", "--add", "--cacheinfo", f"160000,{commit},gone")
    git(elsewhere / "odd", "commit", "--quiet", "--message", "odd")
    said: list[str] = []
    sources = Sources(tmp_path / "trove", {"up": f"{elsewhere}/%s"}, None, progress=said.append)
    source = sources.resolve("up:odd", "main")
    assert source.submodules == ()
    assert any("does not say where gone is from" in line for line in said)
    assert list((sources.export(source) / "gone").iterdir()) == []


# -- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "directory", "url"),
    [
        ("upstream:zlib", "upstream/zlib.git", None),
        ("upstream:gnome/glib.git", "upstream/gnome/glib.git", None),
        ("zlib", "zlib.git", None),
        ("in:x", "folder/x.git", None),
        ("suffix:x", None, "https://host/x"),
        ("pattern:a/b", None, "ssh://git@host/a/b.git"),
        ("https://host/x.git", None, "https://host/x.git"),
        ("git@host:x", None, "git@host:x"),
        ("host:x/y", None, "host:x/y"),
        ("/some/where", None, "/some/where"),
        ("file:///some/where", None, "file:///some/where"),
    ],
)
def test_aliases_locate_repositories(repo: str, directory: str | None, url: str | None) -> None:
    aliases = {"in": "folder", "suffix": "https://host/", "pattern": "ssh://git@host/%s.git"}
    location = Aliases(Path("/trove"), aliases).locate(repo)
    assert location.url == url
    if directory:
        assert location.directory == Path("/trove/git") / directory
    else:
        assert location.directory.parent == Path("/trove/git/mirrors")


@pytest.mark.parametrize("repo", ["../x", "upstream:../x", "upstream:a/../../x", "", "a b", "x/"])
def test_aliases_reject_invalid_names(repo: str) -> None:
    with pytest.raises(SourceError, match=r"is no name of a repository.*baserock, upstream"):
        Aliases(Path("/trove"), {}).locate(repo)


@pytest.mark.parametrize("url", ["ext::sh -c id", "https://host/a\nb", "-x:y"])
def test_resolve_rejects_invalid_urls(url: str, make: Make) -> None:
    with pytest.raises(SourceError):
        make().resolve(url, "main")


@pytest.mark.parametrize(
    ("repo", "url", "target"),
    [
        ("up:a/b", "../c", "up:a/c"),
        ("up:a", "./b", "up:a/b"),
        ("https://host/a/b.git", "../../c.git", "https://host/c.git"),
        ("/some/a", "../b", "/some/b"),
        ("up:a", "https://host/x", "https://host/x"),
    ],
)
def test_submodule_urls_may_be_relative(repo: str, url: str, target: str) -> None:
    assert Aliases(Path("/trove"), {}).relative(repo, url) == target


def test_submodule_url_cannot_lead_out() -> None:
    with pytest.raises(SourceError, match="leads out of"):
        Aliases(Path("/trove"), {}).relative("up:a", "../../b")


# -- missing sources -------------------------------------------------------------------------


def test_missing_repository_is_explained(make: Make) -> None:
    with pytest.raises(SourceError) as caught:
        make().resolve("upstream:zlib", "1.3")
    text = str(caught.value)
    assert "upstream:zlib: no such repository" in text
    assert "add sources/zlib.lorry to the definitions" in text
    assert "trove/git/upstream/zlib.git" in text


@pytest.mark.parametrize(
    "ref", ["nothing", "-v", "a..b", "../HEAD", "x" * 3000, "main~1", "\0", "0" * 40, "HEAD.lock"]
)
def test_missing_ref_is_explained(make: Make, tmp_path: Path, ref: str) -> None:
    repository(tmp_path / "work", {"a": "1"})
    bare = tmp_path / "trove/git/upstream/zlib.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(tmp_path / "work"), str(bare))
    with pytest.raises(SourceError, match=r"no ref .* and no lorry that could bring it"):
        make().resolve("upstream:zlib", ref)


def test_unknown_alias_is_explained(make: Make) -> None:
    with pytest.raises(SourceError, match="upstraem is taken for the name of a host") as caught:
        make(other="x").resolve("upstraem:zlib", "1.3")
    assert "none of the aliases baserock, other, upstream" in str(caught.value)


def test_missing_sources_are_reported_together(make: Make, elsewhere: Path) -> None:
    repository(elsewhere / "there", {"a": "1"}, tag="v1")
    wanted = [("upstream:a", "1", ()), ("up:there", "v1", ()), ("upstream:b", "2", ())]
    with pytest.raises(SourceError) as caught:
        make(up=f"{elsewhere}/%s").resolve_all(wanted)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["a", "b"]


# -- several processes -----------------------------------------------------------------------


def test_export_by_several_processes_happens_once(elsewhere: Path, tmp_path: Path) -> None:
    repository(elsewhere / "zlib", {f"d{i}/f{j}": "x" * 1000 for i in range(20) for j in range(20)})
    code = f"""
        from pathlib import Path
        from fabric.trove.sources.resolve import Sources
        sources = Sources(Path({str(tmp_path / "trove")!r}), {{"up": "{elsewhere}/%s"}}, None)
        source = sources.resolve("up:zlib", "main")
        path = sources.export(source)
        assert len([file for file in path.rglob("*") if file.is_file()]) == 400
        print(source.commit, path)
    """
    assert len(outputs_at_once(code)) == 1
    assert len(list((tmp_path / "trove" / "trees").glob("*/*"))) == 1


def test_sources_that_are_there_need_no_lorries(
    make: Make, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker exports and compares them without loading yaml."""
    repository(elsewhere / "tool", {"file": "one"})
    source = make(at=f"{elsewhere}/").resolve("at:tool", "main")
    repository(elsewhere / "tool", {"file": "two"})
    newer = make(at=f"{elsewhere}/").resolve("at:tool", "main")
    monkeypatch.delattr("fabric.trove.sources.lorries.Lorries")
    sources = make(at=f"{elsewhere}/")
    assert [change.path for change in sources.changes(newer, source.tree)] == ["file"]
    assert (sources.export(newer) / "file").read_text() == "two"


def test_export_fetches_missing_commits(make: Make, elsewhere: Path) -> None:
    """A worker exports a source that another machine resolved."""
    commit = repository(elsewhere / "zlib", {"a": "1"}, tag="v1")
    tree = git(elsewhere / "zlib", "rev-parse", "v1^{tree}")
    worker = make(up=f"{elsewhere}/%s")
    assert files(worker.export(Source("up:zlib", "v1", commit, tree))) == {"a": b"1"}
    shutil.rmtree(elsewhere)
    with pytest.raises(SourceError):
        worker.export(Source("up:zlib", "v2", "1" * 40, "2" * 40))
    with pytest.raises(SourceError, match=r"commit 1{40} .v2. is not in .*push it to"):
        worker.export(Source("upstream:zlib", "v2", "1" * 40, "2" * 40))
