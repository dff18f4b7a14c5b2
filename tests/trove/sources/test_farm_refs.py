"""The trove of a farm passes sources from the users who import them to the workers."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources_kit import Farm, Files, Sshd, git, repository, tarball

from fabric.errors import SourceError
from fabric.jobs import Source
from fabric.trove.sources import farm_remote as reach
from fabric.trove.sources import git_process as our_git
from fabric.trove.sources.farm_remote import Trove, TroveError
from fabric.trove.sources.lorries import Lorries
from fabric.trove.sources.resolve import Sources

DATA = tarball({"thing-1.0/a": b"1"})
OTHER = tarball({"thing-1.0/a": b"2"})


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet", "--bare", "a trove.git")
    return tmp_path / "a trove.git"


@pytest.fixture
def farm(tmp_path: Path, bare: Path) -> Farm:
    return Farm(tmp_path, Trove(str(bare)), bare)


@pytest.fixture(params=["path", "file", "ssh", "git_ssh"])
def any_farm(request: pytest.FixtureRequest, tmp_path: Path, bare: Path) -> Farm:
    if "ssh" in request.param:
        ssh: Sshd = request.getfixturevalue(request.param)
        trove = Trove(ssh.url(bare), str(ssh.key), str(ssh.known_hosts))
    else:
        trove = Trove(str(bare) if request.param == "path" else bare.as_uri().replace("%20", " "))
    return Farm(tmp_path, trove, bare)


# -- from one machine to another -------------------------------------------------------------


def test_import_of_one_user_is_there_for_all(any_farm: Farm, files: Files) -> None:
    farm = any_farm
    farm.tarball("ann", files.put("thing-1.0.tar.gz", DATA), DATA)
    with pytest.raises(SourceError, match="`fabric-initiator lorry import thing` brings it there"):
        farm.resolver("ann").resolve("upstream:thing", "1.0")
    source = farm.initiator("ann").resolve("upstream:thing", "1.0")
    with pytest.raises(SourceError, match="push it there, then submit the build again"):
        farm.worker().export(source)

    farm.initiator("ann").publish([source])

    shutil.rmtree(files.folder)
    assert farm.resolver("ann").resolve("upstream:thing", "1.0") == source
    assert (farm.worker().export(source) / "a").read_text() == "1"
    farm.tarball("bob", "http://127.0.0.1:9/gone", DATA)
    assert farm.initiator("bob").resolve("upstream:thing", "1.0") == source, "no need to import"
    before = farm.refs()
    farm.initiator("bob").publish([source])
    assert farm.refs() == before
    assert "refs/tags/upstream/thing.git/1.0" in before


def test_patched_import_is_shared_under_its_pin(farm: Farm, files: Files) -> None:
    url, digest = files.put("thing-1.0.tar.gz", DATA), hashlib.sha256(DATA).hexdigest()
    entry = {"type": "tarball", "url": url, "version": "1.0", "sha256": digest}
    for who, word in (("ann", "ann"), ("bob", "bob")):
        patched = {**entry, "patches": ["a.patch"], "components": {"sub": {"lorry": "part"}}}
        farm.lorries(who, thing=patched, part=entry)
        patch = f"--- a/a\n+++ b/a\n@@ -1 +1 @@\n-1\n\\ No newline at end of file\n+{word}\n"
        (farm.folder / who / "sources/a.patch").write_text(patch)
    source = farm.initiator("ann").resolve("upstream:thing", "1.0")
    farm.initiator("ann").publish([source])
    assert farm.resolver("ann").resolve("upstream:thing", "1.0") == source
    exported = farm.worker().export(source)
    assert (exported / "a").read_text() == "ann\n"
    assert (exported / "sub/a").read_text() == "1"
    with pytest.raises(SourceError, match="lorry import thing` brings it there"):
        farm.resolver("bob").resolve("upstream:thing", "1.0")
    other = farm.initiator("bob").resolve("upstream:thing", "1.0")
    assert other.tree != source.tree


def test_fetch_takes_only_the_wanted_ref(farm: Farm, tmp_path: Path) -> None:
    for name in ("thing", "other"):
        work = tmp_path / name
        for tag in ("1.0", "2.0"):
            repository(work, {"a": tag}, tag=tag)
            ref = f"{tag}:refs/tags/upstream/{name}.git/{tag}"
            git(work, "push", "--quiet", str(farm.bare), ref)
    worker = farm.worker()
    worker.resolve("upstream:thing", "2.0")
    found = git(worker.repository("upstream:thing").path, "for-each-ref", "--format=%(refname)")
    assert found == "refs/tags/2.0"


def test_pins_of_two_users_may_differ_under_one_name(farm: Farm, files: Files) -> None:
    sources = {}
    for who, data in (("ann", DATA), ("bob", OTHER), ("ann", DATA)):
        farm.tarball(who, files.put(f"{who}.tar.gz", data), data)
        sources[who] = farm.initiator(who).resolve("upstream:thing", "1.0")
        farm.initiator(who).publish([sources[who]])
    assert sources["ann"].tree != sources["bob"].tree
    for who in ("ann", "bob", "ann"):
        assert farm.resolver(who).resolve("upstream:thing", "1.0") == sources[who]
        assert farm.worker(f"worker-{who}").export(sources[who])


def pinned(farm: Farm, who: str, url: str, data: bytes, tree: str) -> Lorries:
    """Write a lorry for the thing that records a tree ("" for none)."""
    sha256 = hashlib.sha256(data).hexdigest()
    entry = {"type": "tarball", "url": url, "version": "1.0", "sha256": sha256}
    farm.lorries(who, thing={**entry, "tree": tree} if tree else entry)
    return Lorries(farm.folder / who / "sources")


def swap(farm: Farm, key: str, annotated: bool = False) -> str:
    """Push another tree under a pin, as any user may; return it."""
    work = farm.folder / "mallory"
    repository(work, {"a": "evil"})
    git(work, "commit", "--quiet", "--amend", "--message", f"thing 1.0\n\nImport-Key: {key}")
    pushed = "HEAD"
    if annotated:
        git(work, "tag", "--annotate", "--force", "--message", "x", "x")
        pushed = "refs/tags/x"
    names = (f"refs/pins/upstream/thing.git/{key}", "refs/tags/upstream/thing.git/1.0")
    specs = [f"{pushed}:{name}" for name in names]
    git(work, "push", "--quiet", "--force", str(farm.bare), *specs)
    return git(work, "rev-parse", "HEAD^{tree}")


@pytest.mark.parametrize("annotated", [False, True])
def test_pin_that_is_swapped_in_the_trove_is_not_used(
    farm: Farm, files: Files, annotated: bool
) -> None:
    url = files.put("thing-1.0.tar.gz", DATA)
    pinned(farm, "ann", url, DATA, "")
    honest = farm.initiator("ann").resolve("upstream:thing", "1.0")
    key = pinned(farm, "ann", url, DATA, honest.tree).named("thing").import_key()
    pinned(farm, "bob", url, DATA, honest.tree)
    found = swap(farm, key, annotated)

    expected = (
        "sources/all.lorry:1: thing 1.0: the trove has another tree than is pinned, so it is not"
        " used\n"
        f"  pinned: tree {honest.tree}\n"
        f"  found:  tree {found}\n"
        f"  where:  refs/pins/upstream/thing.git/{key} of {farm.bare}\n"
        "Either somebody pushed something else there, or the recorded tree is wrong."
        " `fabric-initiator lorry import thing` imports it anew from where it is pinned, compares,"
        " and puts it in the trove in place of that."
    )
    for who in (farm.resolver("ann"), farm.initiator("bob"), farm.resolver("ann")):
        with pytest.raises(SourceError) as caught:
            who.resolve("upstream:thing", "1.0")
        assert str(caught.value) == expected

    mended, changes = farm.initiator("bob").run_lorry("thing")
    farm.initiator("bob").publish([mended])
    assert (mended, changes) == (honest, [])
    assert farm.resolver("ann").resolve("upstream:thing", "1.0") == honest
    assert farm.initiator("bob").resolve("upstream:thing", "1.0") == honest


@pytest.mark.parametrize("object", ["HEAD^{tree}", "HEAD:a", "refs/tags/tree", "refs/tags/file"])
def test_pin_that_is_no_commit_is_ignored(farm: Farm, files: Files, object: str) -> None:
    url = files.put("thing-1.0.tar.gz", DATA)
    pinned(farm, "ann", url, DATA, "")
    honest = farm.initiator("ann").resolve("upstream:thing", "1.0")
    key = pinned(farm, "ann", url, DATA, honest.tree).named("thing").import_key()
    pinned(farm, "bob", url, DATA, honest.tree)
    work = farm.folder / "mallory"
    repository(work, {"a": "evil"})
    for name, what in (("tree", "HEAD^{tree}"), ("file", "HEAD:a")):
        git(work, "tag", "--annotate", "--message", "x", name, what)
    pushed = git(work, "rev-parse", object)
    name = f"refs/pins/upstream/thing.git/{key}"
    git(work, "push", "--quiet", "--force", str(farm.bare), f"{pushed}:{name}")
    with pytest.raises(SourceError, match=r"`fabric-initiator lorry import thing` brings it there"):
        farm.resolver("ann").resolve("upstream:thing", "1.0")
    mended = farm.initiator("bob").resolve("upstream:thing", "1.0")
    assert mended == honest
    farm.initiator("bob").publish([mended])
    assert farm.resolver("ann").resolve("upstream:thing", "1.0") == honest


def test_pin_comes_before_a_tag_of_the_same_name(farm: Farm, tmp_path: Path) -> None:
    """A set of packages is a branch, and another user pushed a tag of its name."""
    repository(tmp_path / "work", {"a": "evil"}, tag="1")
    git(tmp_path / "work", "push", "--quiet", str(farm.bare), "1:refs/tags/upstream/set.git/1")
    sources = farm.initiator("ann")
    assert sources.resolve("upstream:set", "1"), "so it is here, too"
    (farm.folder / "ann/sources").mkdir()
    (farm.folder / "ann/sources/all.lorry").write_text(
        'set: {type: debian-packages, version: "1", packages: [gcc]}'
    )
    (farm.folder / "ann/sources/set.lock").write_text(f"gcc 1.0 amd64 {'ab' * 32} 5\n")
    with pytest.raises(SourceError, match=r"`fabric-initiator lorry import set` brings it there"):
        farm.resolver("ann").resolve("upstream:set", "1")
    assert farm.initiator("ann")._repositories.at_hand("upstream:set", "1") is None


def test_pin_with_another_tree_than_the_import_is_an_error(farm: Farm, files: Files) -> None:
    url = files.put("thing-1.0.tar.gz", DATA)
    pinned(farm, "ann", url, DATA, "12" * 20)
    for act in (
        lambda: farm.initiator("ann").resolve("upstream:thing", "1.0"),
        lambda: farm.initiator("ann").run_lorry("thing"),
    ):
        with pytest.raises(SourceError) as caught:
            act()
        lines = str(caught.value).splitlines()
        assert lines[1] == f"  recorded: tree {'12' * 20}"
        assert lines[2].startswith("  imported: tree ")
        assert "Without it, `fabric-initiator lorry import thing` records" in lines[3]


def test_pins_that_are_missing_are_listed(farm: Farm, files: Files) -> None:
    url = files.put("thing-1.0.tar.gz", DATA)
    sha256 = hashlib.sha256(DATA).hexdigest()
    entry = {"type": "tarball", "url": url, "version": "1", "sha256": sha256}
    farm.lorries(
        "ann",
        bare=entry,
        whole={**entry, "tree": "12" * 20},
        own={"type": "git", "url": ".."},
        git={"type": "git", "url": "https://host/x"},
    )
    sources = farm.initiator("ann")
    wanted = [
        ("upstream:bare", "1", ()),
        ("upstream:whole", "1", ()),
        ("upstream:own", "HEAD", ()),
        ("upstream:git", "main", ()),
        ("upstream:git", "main", ()),
        ("upstream:git", "34" * 20, ()),
        ("baserock:other", "v1", ()),
    ]
    expected = [
        "upstream:bare 1 (sources/all.lorry:1 records no tree)",
        "upstream:git main (a name, which can be moved)",
        "baserock:other v1 (a name, which can be moved)",
    ]
    assert sources.unpinned(wanted) == expected
    with pytest.raises(SourceError) as caught:
        sources.require_pins(wanted)
    assert str(caught.value) == (
        "--locked: the definitions do not pin what these sources contain:\n"
        + "".join(f"  {one}\n" for one in expected)
        + "A commit (40 hex digits) as `ref` pins it; `fabric-initiator lorry import NAME` records"
        " the tree of a lorry."
    )
    sources.require_pins(wanted[1:3])


def test_branches_follow_the_trove_and_tags_stay(any_farm: Farm, tmp_path: Path) -> None:
    farm, work = any_farm, tmp_path / "work"

    def push(*refs: str) -> None:
        specs = [f"{ref}:refs/{ref}" for ref in refs]
        specs = [spec.replace(":refs/heads/", ":refs/heads/baserock/thing.git/") for spec in specs]
        specs = [spec.replace(":refs/tags/", ":refs/tags/baserock/thing.git/") for spec in specs]
        git(work, "push", "--quiet", "--force", str(farm.bare), *specs)

    first = repository(work, {"a": "1"}, tag="v1")
    push("heads/main", "tags/v1")
    assert farm.worker().resolve("baserock:thing", "main").commit == first
    second = repository(work, {"a": "2"})
    git(work, "tag", "--force", "v1")
    push("heads/main", "tags/v1")
    assert farm.worker().resolve("baserock:thing", "main").commit == second
    assert farm.worker().resolve("baserock:thing", "refs/heads/main").commit == second
    assert farm.worker().resolve("baserock:thing", second).commit == second
    git(farm.bare, "update-ref", "-d", "refs/heads/baserock/thing.git/main")
    with pytest.raises(SourceError, match="has no ref main of it"):
        farm.worker("newer").resolve("baserock:thing", "main")


def test_commit_that_no_ref_reaches_is_resolved(farm: Farm, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = repository(work, {"a": "1"})
    repository(work, {"a": "2"})
    git(work, "push", "--quiet", str(farm.bare), "main:refs/heads/x.git/main")
    assert farm.worker().resolve("x", first).commit == first
    with pytest.raises(SourceError, match=f"has no ref {'1' * 40} of it"):
        farm.worker().resolve("x", "1" * 40)


def test_git_lorry_reaches_the_farm_by_the_trove(farm: Farm, tmp_path: Path) -> None:
    """A user who can reach the origin pushes the objects that a build needs."""
    inner = repository(tmp_path / "inner", {"deep": "1"})
    work = tmp_path / "work"
    repository(work, {"a": "1"}, tag="v1")
    git(work, "submodule", "--quiet", "add", "../inner", "inner")
    farm.lorries(
        "ann",
        thing={"type": "git", "url": str(work)},
        inner={"type": "git", "url": str(tmp_path / "inner")},
    )
    for content in ("2", "3", "2"):  # there and back again
        if content == "2" and "heads" in " ".join(farm.refs()):
            git(work, "reset", "--quiet", "--hard", "HEAD^")
        else:
            repository(work, {"a": content})
        source = farm.initiator("ann").resolve("upstream:thing", "main")
        farm.initiator("ann").publish([source])
        assert farm.resolver("ann").resolve("upstream:thing", "main").commit == source.commit
    ((_, module),) = source.submodules
    assert module.commit == inner
    shutil.rmtree(work)
    assert (farm.worker().export(source) / "a").read_text() == "2"


def test_export_rejects_a_source_with_another_tree(farm: Farm, tmp_path: Path) -> None:
    work = tmp_path / "work"
    good = repository(work, {"a": "good"}, tag="1")
    bad = repository(work, {"a": "bad"}, tag="2")
    git(work, "push", "--quiet", str(farm.bare), "1:refs/tags/x.git/1", "2:refs/tags/x.git/2")
    trees = [git(work, "rev-parse", f"{commit}^{{tree}}") for commit in (good, bad)]
    with pytest.raises(SourceError, match=f"has the tree {trees[1]}, and not {trees[0]}"):
        farm.worker().export(Source("x", "1", bad, trees[0]))
    assert (farm.worker().export(Source("x", "1", good, trees[0])) / "a").read_text() == "good"


def test_push_of_the_same_import_by_many_at_once(any_farm: Farm, files: Files) -> None:
    farm = any_farm
    url = files.put("thing-1.0.tar.gz", DATA)
    code = f"""
        import sys
        from pathlib import Path
        from fabric.trove.configured import open_importer
        from fabric.trove.sources.farm_remote import Trove
        from fabric.trove.sources.resolve import Sources
        root = Path(sys.argv[1])
        sources = Sources(root / "cache", {{}}, root / "sources", trove={farm.trove!r},
                          importer=open_importer)
        source = sources.resolve("upstream:thing", "1.0")
        print(source.commit, flush=True)
        sys.stdin.read()
        sources.publish([source])
    """
    children = []
    for number in range(4):
        farm.tarball(f"user-{number}", url, DATA)
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code), str(farm.folder / f"user-{number}")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[3],
            )
        )
    commits = {child.stdout.readline() for child in children if child.stdout}
    for child in children:  # now, all together
        assert child.stdin
        child.stdin.close()
    for child in children:
        with child:
            assert child.wait() == 0
    assert len(commits) == 1
    assert farm.worker().resolve("upstream:thing", "1.0").commit == commits.pop().strip()


# -- the definitions' own repository ---------------------------------------------------------


@pytest.fixture
def own(farm: Farm) -> Path:
    """Definitions in git, with a lorry for themselves."""
    farm.lorries("ann", **{"baserock:definitions": {"type": "git", "url": ".."}})
    root = farm.folder / "ann"
    (root / ".gitignore").write_text("cache\n")
    repository(root, {"VERSION": "version: 8\n"})
    return root


def test_head_is_the_commit_of_the_definitions(farm: Farm, own: Path) -> None:
    def head() -> str:
        return farm.initiator("ann").resolve("baserock:definitions", "HEAD").commit

    first = repository(own, {"a": "1"})
    assert head() == first
    git(own, "checkout", "--quiet", "-b", "topic")
    second = repository(own, {"a": "2"})
    assert head() == second
    git(own, "checkout", "--quiet", "--detach", first)
    assert head() == first
    third = repository(own, {"a": "3"})
    assert head() == third, "on no branch at all"
    work = farm.folder / "bob"
    git(own, "worktree", "add", "--quiet", str(work), "topic")
    assert farm.initiator("bob").resolve("baserock:definitions", "HEAD").commit == second


def test_head_in_a_farm_is_the_submitted_commit(farm: Farm, own: Path) -> None:
    commit = repository(own, {"a": "1"})
    git(own, "push", "--quiet", str(farm.bare), f"{commit}:refs/builds/ann/1")
    source = farm.resolver("ann", head=commit).resolve("baserock:definitions", "HEAD")
    assert source.commit == commit
    farm.initiator("ann", head=commit).publish([source])
    assert farm.refs() == {"refs/builds/ann/1"}, "it is there already"
    assert (farm.worker().export(source) / "a").read_text() == "1"


def test_head_outside_a_repository_is_an_error(farm: Farm, own: Path) -> None:
    shutil.rmtree(own / ".git")
    with pytest.raises(SourceError, match=r"all.lorry:1: .* is no git repository with a commit"):
        farm.initiator("ann").resolve("baserock:definitions", "HEAD")


# -- errors ----------------------------------------------------------------------------------


def test_trove_out_of_reach_is_explained(bare: Path, ssh: Sshd, tmp_path: Path) -> None:
    url, key, hosts = ssh.url(bare), str(ssh.key), str(ssh.known_hosts)
    for trove, advice in {
        Trove(url, key, "/dev/null"): "compare what `ssh-keyscan",
        Trove(url, str(ssh.stranger), hosts): f"does not accept {ssh.stranger}",
        Trove(url + "x", key, hosts): "is the setting `trove` right",
        Trove("ssh://127.0.0.1:9/x", key, hosts): "is 127.0.0.1 up",
        Trove(str(bare) + "x"): "is the setting `trove` right",
    }.items():
        with pytest.raises(TroveError) as caught:
            Sources(tmp_path / "cache", {}, trove=trove).resolve("upstream:thing", "1.0")
        assert advice in str(caught.value)
        assert "\n" not in str(caught.value)


def test_trove_sessions_run_only_git(ssh: Sshd) -> None:
    done = subprocess.run(
        ["ssh", "-F", "none", "-i", str(ssh.key), "-o", f'UserKnownHostsFile="{ssh.known_hosts}"',
         "-o", "BatchMode=yes", "-p", str(ssh.port), "127.0.0.1", "id"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode
    assert "unrecognized command" in done.stderr


def test_push_is_atomic(farm: Farm, tmp_path: Path) -> None:
    """A tag without its pin would count as complete in the next search."""
    work = tmp_path / "work"
    commit = repository(work, {"a": "1"}, tag="1.0")
    farm.lorries("ann", thing={"type": "git", "url": str(work)})
    lock = farm.bare / f"refs/pins/upstream/thing.git/{commit}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    wanted = [("upstream:thing", "1.0", ())]
    with pytest.raises(TroveError, match="is locked by another push"):
        farm.initiator("ann").push_missing(wanted)
    assert farm.refs() == set()
    lock.unlink()
    farm.initiator("ann").push_missing(wanted)
    assert f"refs/pins/upstream/thing.git/{commit}" in farm.refs()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_trove_that_never_answers_is_given_up(
    silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "PATIENCE", 1)
    monkeypatch.setattr(our_git, "SILENCE", 1.0)
    for url in (f"ssh://127.0.0.1:{silent}/trove.git", f"git://127.0.0.1:{silent}/trove.git"):
        sources = Sources(tmp_path / "cache", {}, trove=Trove(url))
        with pytest.raises(TroveError, match=r"cannot be reached: is 127\.0\.0\.1 up"):
            sources.resolve("upstream:thing", "1.0")


def test_trove_on_a_full_disk_is_reported(tmp_path: Path) -> None:
    """A push that does not fit reports it and changes nothing in the trove."""
    mount = tmp_path / "full"
    mount.mkdir()
    work = tmp_path / "work"
    noise = hashlib.shake_256(b"noise").digest(3_000_000)
    repository(work, {"big": noise}, tag="1")
    code = f"""
        import subprocess
        from pathlib import Path
        from fabric.jobs import Source
        from fabric.trove.sources.farm_remote import Trove, TroveError
        from fabric.trove.sources.resolve import Sources
        bare = {str(mount / "trove.git")!r}
        subprocess.run(["git", "init", "--quiet", "--bare", bare], check=True)
        aliases = {{}}
        here = Path({str(tmp_path / "cache")!r})
        subprocess.run(["git", "clone", "--quiet", "--bare", {str(work)!r}, here / "git/x.git"],
                       check=True)
        source = Sources(here, {{}}).resolve("x", "1")
        try:
            Sources(here, {{}}, trove=Trove(bare)).publish([source])
        except TroveError as error:
            print(error)
        listing = ["git", "-C", bare, "for-each-ref"]
        assert subprocess.run(listing, capture_output=True, check=True).stdout == b""
        try:
            Sources(Path({str(mount / "cache")!r}), {{}}, trove=Trove({str(work)!r})).resolve(
                "x", {git(work, "rev-parse", "HEAD")!r})
        except TroveError as error:
            print(error)
    """
    script = f'mount -t tmpfs -o size=2m none {mount} && exec "$0" -c "$1"'
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--mount", "sh", "-c", script),
            *(sys.executable, textwrap.dedent(code)),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    push, fetch = done.stdout.splitlines()
    assert "has no space left on its disk" in push
    assert "disk" in fetch
