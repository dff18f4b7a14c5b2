"""Imports of tarballs and git repositories are deterministic, verified, resumed and confined."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from servers_kit import free_port, running
from sources_kit import Files, git, outputs_at_once, repository, tarball

from fabric.errors import SourceError
from fabric.jobs import Source
from fabric.trove.configured import open_importer
from fabric.trove.importers.download import WrongDigest
from fabric.trove.sources.resolve import Sources

CONTENT: dict[str, bytes | str | tarfile.TarInfo] = {
    "thing-1.0/configure": b"#!/bin/sh\n",
    "thing-1.0/src/main.c": b"int main;\n",
    "thing-1.0/src/link.c": "main.c",
}
EXPECTED = {
    "configure": ("100755", b"#!/bin/sh\n"),
    "src/main.c": ("100644", b"int main;\n"),
    "src/link.c": ("120000", b"main.c"),
}


class Trove:
    """A trove whose lorries are in one folder. Every use is like a new process."""

    def __init__(self, top: Path, name: str = "trove") -> None:
        self.root = top / name
        self.folder = top / "sources"
        self.folder.mkdir(exist_ok=True)
        self.said: list[str] = []

    def lorry(self, url: str, data: bytes | str, version: str = "1.0", more: str = "") -> None:
        """Write the lorry of upstream:thing."""
        sha256 = data if isinstance(data, str) else hashlib.sha256(data).hexdigest()
        (self.folder / "thing.lorry").write_text(
            f'thing:\n  type: tarball\n  url: {url}\n  version: "{version}"\n'
            f"  sha256: {sha256}  # pinned\n{more}"
        )

    def sources(self) -> Sources:
        return Sources(
            self.root, {}, self.folder, importer=open_importer, progress=self.said.append
        )

    def resolve(self, ref: str = "1.0") -> Source:
        return self.sources().resolve("upstream:thing", ref)

    def files(self, ref: str = "1.0") -> dict[str, tuple[str, bytes]]:
        """Path -> (mode, content) of the imported files."""
        source = self.resolve(ref)
        tree = self.sources().export(source)
        bare = self.root / "git/upstream/thing.git"
        found = {}
        for line in git(bare, "ls-tree", "-r", "-z", source.commit).split("\0"):
            if line:
                head, _, path = line.partition("\t")
                file = tree / path
                content = str(file.readlink()).encode() if file.is_symlink() else file.read_bytes()
                found[path] = (head.split()[0], content)
        return found


@pytest.fixture
def trove(tmp_path: Path) -> Trove:
    return Trove(tmp_path)


def zipped(members: dict[str, bytes | str | tarfile.TarInfo]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("thing-1.0/", (2020, 9, 13, 12, 26, 40)), b"")
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (2020, 9, 13, 12, 26, 40))
            link = isinstance(content, str)
            data = content.encode() if isinstance(content, str) else content
            assert isinstance(data, bytes)
            info.external_attr = (0o120777 if link else 0o755 if data[:2] == b"#!" else 0o644) << 16
            archive.writestr(info, data)
    return raw.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "tar": lambda: tarball(CONTENT, ""),
    "gz": lambda: tarball(CONTENT, "gz"),
    "bz2": lambda: tarball(CONTENT, "bz2"),
    "xz": lambda: tarball(CONTENT, "xz"),
    "zst": lambda: zstandard.ZstdCompressor().compress(tarball(CONTENT, "")),
    "zip": lambda: zipped(CONTENT),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_import_gives_the_same_tree_for_every_format(trove: Trove, files: Files, kind: str) -> None:
    data = FORMATS[kind]()
    trove.lorry(files.put("thing", data), data)
    assert trove.files() == EXPECTED
    said = "\n".join(trove.said)
    assert "thing: importing 1.0" in said
    assert "thing: downloading" in said


def test_import_is_deterministic_and_happens_once(files: Files, tmp_path: Path) -> None:
    data = tarball(CONTENT)
    one, other = Trove(tmp_path, "one"), Trove(tmp_path, "other")
    one.lorry(files.put("thing.tar.gz", data), data)
    commit = one.resolve().commit
    assert len(files.requests) == 1
    assert one.resolve().commit == commit
    assert len(files.requests) == 1, "it is in the trove"
    assert other.resolve().commit == commit
    bare = one.root / "git/upstream/thing.git"
    assert git(bare, "log", "-1", "--format=%at %ct %an", commit) == (
        "1600000000 1600000000 Fabric trove"
    )
    assert git(bare, "rev-parse", "refs/tags/1.0") == commit


def test_import_moves_the_ref_with_the_pins(trove: Trove, files: Files) -> None:
    old, new = tarball(CONTENT), tarball({"thing-1.0/file": b"new"})
    trove.lorry(files.put("old", old), old)
    first = trove.resolve()
    trove.lorry(files.put("new", new), new)
    second = trove.resolve()
    assert second.tree != first.tree
    trove.lorry(f"{files.url}/elsewhere-now", old)
    assert trove.resolve() == first, "from the downloads, by digest"


def test_import_ref_may_differ_from_the_version(trove: Trove, files: Files) -> None:
    data = tarball(CONTENT)
    trove.lorry(files.put("thing", data), data, more="  ref: stable/one\n")
    assert trove.files("stable/one") == EXPECTED
    with pytest.raises(SourceError, match=r"no ref 1.0: its lorry .sources/thing.lorry:1. brings"):
        trove.resolve("1.0")


def test_import_from_a_file_url(trove: Trove, tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(data := tarball(CONTENT))
    trove.lorry((tmp_path / "a file").as_uri(), data)
    assert trove.files() == EXPECTED
    trove.lorry("file:///no/such/file", "ab" * 32)
    with pytest.raises(SourceError, match="file:///no/such/file: cannot be downloaded"):
        trove.resolve()


# -- contents of archives --------------------------------------------------------------------


def test_import_strips_a_single_top_folder_only(trove: Trove, files: Files) -> None:
    data = tarball({"./a/b": b"1", "./c": b"2"})
    trove.lorry(files.put("thing", data), data)
    assert set(trove.files()) == {"a/b", "c"}


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname, info.devmajor = kind, target, 1
    return info


def test_import_omits_files_that_git_cannot_hold(trove: Trove, files: Files) -> None:
    data = tarball(
        {
            "t/file": b"#! content",
            "t/hard": special(tarfile.LNKTYPE, "t/file"),
            "t/device": special(tarfile.CHRTYPE),
            "t/pipe": special(tarfile.FIFOTYPE),
            "t/empty": special(tarfile.DIRTYPE),
            "t/.git/config": b"evil",
            "t/sub/.GIT/config": b"evil",
            "t/.gitattributes": b"* eol=crlf\n",
            't/odd "name\\\n': b"odd",
            "t/" + "long/" * 60 + "end": b"long",
            "t/outside": "/etc/passwd",
        }
    )
    trove.lorry(files.put("thing", data), data)
    assert trove.files() == {
        "file": ("100755", b"#! content"),
        "hard": ("100755", b"#! content"),
        ".gitattributes": ("100644", b"* eol=crlf\n"),
        'odd "name\\\n': ("100644", b"odd"),
        "long/" * 60 + "end": ("100644", b"long"),
        "outside": ("120000", b"/etc/passwd"),
    }


@pytest.mark.parametrize("name", ["../evil", "/evil", "t/../../evil", "t/.."])
def test_import_rejects_paths_out_of_the_archive(trove: Trove, files: Files, name: str) -> None:
    data = tarball({"t/a": b"1", name: b"gotcha"})
    trove.lorry(files.put("thing", data), data)
    with pytest.raises(SourceError, match=r"refused: its member .*: it leads out of the archive"):
        trove.resolve()
    assert trove.sources().repository("thing").find("1.0") is None


def test_import_rejects_a_hard_link_to_nothing(trove: Trove, files: Files) -> None:
    data = tarball({"t/a": b"1", "t/hard": special(tarfile.LNKTYPE, "t/b")})
    trove.lorry(files.put("thing", data), data)
    with pytest.raises(SourceError, match="t/hard is a hard link to t/b, which is not there"):
        trove.resolve()


@pytest.mark.parametrize(
    "data",
    [b"", b"no archive at all", b"\x1f\x8b" + b"x" * 50, b"PK\x03\x04" + b"x" * 50]
    + [kind()[: min(515, len(kind()) // 3)] for kind in FORMATS.values()],
    ids=["empty", "text", "no-gzip", "no-zip", *(f"half-{kind}" for kind in FORMATS)],
)
def test_import_rejects_damaged_archives(trove: Trove, files: Files, data: bytes) -> None:
    trove.lorry(files.put("thing", data), data)
    with pytest.raises(SourceError, match=r"cannot be read|ends early"):
        trove.resolve()
    with pytest.raises(SourceError, match=r"cannot be read|ends early"):
        trove.resolve()


# -- downloads -------------------------------------------------------------------------------


def test_import_rejects_a_wrong_digest(trove: Trove, files: Files) -> None:
    data = tarball(CONTENT)
    trove.lorry(files.put("thing.tgz", data), "ab" * 32)
    with pytest.raises(SourceError) as caught:
        trove.resolve()
    found = hashlib.sha256(data).hexdigest()
    assert str(caught.value) == (
        "sources/thing.lorry:1: thing: the offered file is not the pinned one, so it is refused\n"
        f"  pinned:  SHA-256 {'ab' * 32}\n"
        f"  offered: SHA-256 {found}\n"
        f"  by:      {files.url}/thing.tgz\n"
        "Either a mirror, a proxy or somebody on the way has changed it, or upstream has released"
        " other files under the same version. Compare the digest with one that upstream publishes"
        " elsewhere, in a signed announcement for example. Only if the offered one is right, remove"
        " the old digest and tree, and `fabric-initiator lorry update` pins what is offered."
    )
    assert list((trove.root / "downloads").iterdir()) == []


def test_download_resumes_after_a_broken_connection(trove: Trove, files: Files) -> None:
    data = tarball({"t/noise": hashlib.shake_128(b"noise").digest(300_000)})
    files.break_after, files.breaks = 100_000, 2
    trove.lorry(files.put("thing", data), data)
    assert trove.files()["noise"][1] == hashlib.shake_128(b"noise").digest(300_000)
    assert [wanted for _, wanted in files.requests] == ["", "bytes=100000-", "bytes=200000-"]


def test_download_resumes_in_a_later_import(trove: Trove, files: Files) -> None:
    data = tarball({"t/noise": hashlib.shake_128(b"noise").digest(300_000)})
    files.break_after, files.breaks = 50_000, 4
    trove.lorry(files.put("thing", data), data)
    with pytest.raises(SourceError, match="the partial file is kept; try again"):
        trove.resolve()
    trove.resolve()
    assert files.requests[-1][1] == "bytes=200000-"


def test_download_discards_a_partial_file_that_is_too_long(trove: Trove, files: Files) -> None:
    data = tarball(CONTENT)
    trove.lorry(files.put("thing", data), data)
    (trove.root / "downloads").mkdir(parents=True)
    partial = trove.root / "downloads" / f"{hashlib.sha256(data).hexdigest()}.part"
    partial.write_bytes(b"x" * (len(data) + 10))
    assert trove.files() == EXPECTED


def test_gc_keeps_downloads_in_progress(trove: Trove) -> None:
    (trove.root / "downloads").mkdir(parents=True)
    coming, left = (trove.root / "downloads" / f"{name}.part" for name in ("coming", "left"))
    for partial in (coming, left):
        partial.write_bytes(b"x" * 1000)
        os.utime(partial, (1, 1))
    with coming.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sum(trove.sources().gc(3600).values()) == 1000
    assert coming.exists()
    assert not left.exists()


def test_download_that_is_damaged_is_repeated(files: Files, tmp_path: Path) -> None:
    data = tarball(CONTENT)
    trove = Trove(tmp_path)
    trove.lorry(files.put("thing", data), data)
    trove.resolve()
    (kept,) = (trove.root / "downloads").iterdir()
    kept.write_bytes(b"rotten")
    (trove.root / "git").rename(tmp_path / "away")
    assert trove.files() == EXPECTED


def test_download_error_hides_secrets_of_its_url(trove: Trove, files: Files) -> None:
    trove.lorry(f"{files.url}/user:secret@/nothing.tgz?token=secret", "ab" * 32)
    with pytest.raises(SourceError, match="cannot be downloaded: the server says 404") as caught:
        trove.resolve()
    assert "token" not in str(caught.value)


def test_import_by_several_processes_happens_once(trove: Trove, files: Files) -> None:
    data = tarball(CONTENT)
    trove.lorry(files.put("thing", data), data)
    code = f"""
        from pathlib import Path
        from fabric.trove.configured import open_importer
        from fabric.trove.sources.resolve import Sources
        sources = Sources(Path({str(trove.root)!r}), {{}}, Path({str(trove.folder)!r}),
                          importer=open_importer)
        print(sources.resolve("upstream:thing", "1.0").commit)
    """
    assert len(outputs_at_once(code)) == 1
    assert len(files.requests) == 1


def test_import_can_be_interrupted(trove: Trove, files: Files, tmp_path: Path) -> None:
    """Two imports run, one in Python, one in git; only the parent process gets the signal."""
    data = tarball({"t/noise": hashlib.shake_128(b"noise").digest(300_000)})
    files.stalls = True
    trove.lorry(files.put("thing", data), data)
    port = free_port()
    (tmp_path / "silent.py").write_text(
        "import socket, sys, time\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "peers = [listener.accept() for _ in range(9)]\n"
    )
    code = f"""
        from pathlib import Path
        from fabric.trove.configured import open_importer
        from fabric.trove.sources.resolve import Sources
        aliases = {{"silent": "git://127.0.0.1:{port}/%s"}}
        sources = Sources(Path({str(trove.root)!r}), aliases, Path({str(trove.folder)!r}),
                          importer=open_importer,
                          progress=lambda text: print(text, flush=True))
        try:
            sources.resolve_all([("upstream:thing", "1.0", ()), ("silent:x", "main", ())])
        except KeyboardInterrupt:
            print("interrupted")
    """
    silent = [sys.executable, str(tmp_path / "silent.py"), str(port)]
    with (
        running(silent, tmp_path / "log", port),
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        ) as child,
    ):
        assert child.stdout
        said: list[str] = []
        while not any("downloading" in line for line in said):
            said.append(child.stdout.readline())
            assert said[-1], said
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        began = time.monotonic()
        rest, _ = child.communicate(timeout=60)
        assert rest.splitlines()[-1] == "interrupted"
        assert time.monotonic() - began < 10
    files.stalls = False
    assert len(trove.files()["noise"][1]) == 300_000


# -- git and pins ----------------------------------------------------------------------------


def test_git_lorry_mirrors_all_refs(trove: Trove, tmp_path: Path) -> None:
    first = repository(tmp_path / "origin", {"a": "1"}, tag="v1")
    (trove.folder / "thing.lorry").write_text(f"thing: {{type: git, url: {tmp_path}/origin}}\n")
    assert trove.resolve("v1").commit == first
    second = repository(tmp_path / "origin", {"a": "2"})
    assert trove.resolve("main").commit == second
    with pytest.raises(SourceError, match=r"no ref v9 at .*/origin, where its lorry"):
        trove.resolve("v9")
    assert trove.sources().run_lorry("thing")[0].commit == second
    (tmp_path / "origin").rename(tmp_path / "gone")
    assert trove.resolve("main").commit == second, "as it was last seen"
    assert any("going on with main as it was last seen" in line for line in trove.said)
    with pytest.raises(SourceError, match=r"git cannot fetch from it.*see sources/thing.lorry:1"):
        trove.sources().run_lorry("thing")


def test_lorry_update_accepts_no_other_tarball_for_its_digest(trove: Trove, files: Files) -> None:
    old, new = tarball(CONTENT), tarball({"t/file": b"new"})
    trove.lorry(files.put("thing", old), old)
    (line,) = trove.sources().update_lorry("thing")
    assert line.startswith("tree (none) -> ")
    assert trove.sources().update_lorry("thing") == []
    files.put("thing", new)
    before = (trove.folder / "thing.lorry").read_text()
    with pytest.raises(WrongDigest, match=r"thing 1\.0: the offered file is not the pinned one"):
        trove.sources().update_lorry("thing")
    assert (trove.folder / "thing.lorry").read_text() == before


@pytest.mark.parametrize("kept", ["", "  ref: stable\n"])
def test_lorry_update_adds_missing_pins(trove: Trove, files: Files, kept: str) -> None:
    data = tarball(CONTENT)
    digest = hashlib.sha256(data).hexdigest()
    file = trove.folder / "thing.lorry"
    head = f"# mine\nthing:\n  type: tarball\n  url: {files.put('thing', data)}  # there\n"
    file.write_text(head + '  version: "1.0"\n' + kept)
    with pytest.raises(SourceError, match=r"thing has no sha256 yet; `fabric-initiator lorry upd"):
        trove.resolve("stable" if kept else "1.0")
    changes = trove.sources().update_lorry("thing")
    source = trove.resolve("stable" if kept else "1.0")
    assert changes == [
        f"sha256 (none) -> {digest[:12]}",
        f"tree (none) -> {source.tree[:12]}",
    ]
    assert file.read_text() == (
        f'{head}  version: "1.0"\n  sha256: {digest}\n  tree: {source.tree}\n{kept}'
    )
