"""Hostile patches: each fails only its own import, and writes nothing beside git's objects."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sources_kit import git, repository, tarball

from fabric import bounds
from fabric.errors import DefinitionsError, SourceError
from fabric.trove.configured import open_importer
from fabric.trove.sources.resolve import Sources


class Thing:
    """A source with one patch, whose import is expected to fail."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.folder = top / "sources"
        self.folder.mkdir()
        self.outside = top / "outside"
        self.outside.mkdir()
        self.patch = self.folder / "p.patch"
        self.content: dict[str, bytes | str] = {"thing/main.c": b"1\n"}
        self.component = ""

    def sources(self) -> Sources:
        data = tarball({**self.content, "thing/link": str(self.outside)})
        (self.top / "a.tar").write_bytes(data)
        entry = {
            **{"type": "tarball", "version": "1", "url": (self.top / "a.tar").as_uri()},
            **{"sha256": hashlib.sha256(data).hexdigest(), "patches": ["p.patch"]},
        }
        lorries: dict[str, object] = {"thing": entry}
        if self.component:
            lorries = {
                "thing": {**entry, "patches": [], "components": {self.component: {"lorry": "low"}}},
                "low": entry,
            }
        (self.folder / "all.lorry").write_text(json.dumps(lorries))
        return Sources(self.top / "trove", {}, self.folder, importer=open_importer)

    def refusal(self, patch: bytes | None = None) -> str:
        if patch is not None:
            self.patch.write_bytes(patch)
        before = self.files()
        with pytest.raises(SourceError) as caught:
            self.sources().resolve("upstream:thing", "1")
        assert self.files() == before
        bare = self.top / "trove/git/upstream/thing.git"
        if bare.exists():
            assert not git(bare, "for-each-ref"), "neither the patched tree nor the other"
            assert not list(bare.glob("patching-*"))
        return str(caught.value)

    def files(self) -> set[Path]:
        """Everything but the trove, also beside the test's folder."""
        found = {*self.top.parent.iterdir(), *Path("/").iterdir(), *self.top.iterdir()}
        return found | {*self.outside.iterdir(), *self.folder.iterdir()} - {self.top / "trove"}


@pytest.fixture
def thing(tmp_path: Path) -> Thing:
    thing = Thing(tmp_path)
    (tmp_path / "trove").mkdir()
    (tmp_path / "a.tar").touch()
    (thing.folder / "all.lorry").touch()
    return thing


def new(name: str, mode: str = "100644", content: str = "evil") -> bytes:
    """A patch that makes a file."""
    return (
        f"diff --git a/{name} b/{name}\nnew file mode {mode}\n--- /dev/null\n+++ b/{name}\n"
        f"@@ -0,0 +1 @@\n+{content}\n"
    ).encode()


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (new("../evil"), "invalid path '../evil'"),
        (new("a/../../evil"), "invalid path 'a/../../evil'"),
        (new("/evil"), "invalid path '/evil'"),
        (b"--- /dev/null\n+++ x/../../evil\n@@ -0,0 +1 @@\n+evil\n", "invalid path '../../evil'"),
        (new("link/evil"), "affected file 'link/evil' is beyond a symbolic link"),
        (
            new("l", "120000", "/\n\\ No newline at end of file") + new("l/evil"),
            "affected file 'l/evil' is beyond a symbolic link",
        ),
        (
            b"diff --git a/main.c b/../evil\nsimilarity index 100%\n"
            b"rename from main.c\nrename to ../evil\n",
            "invalid path '../evil'",
        ),
        (new(".git/config"), "invalid path '.git/config'"),
        (new("a/.GIT/hooks/pre-commit"), "invalid path 'a/.GIT/hooks/pre-commit'"),
        (new(".gitmodules", "120000"), "invalid path '.gitmodules'"),
        (new("sub", "160000", f"Subproject commit {'1' * 40}"), "makes sub a submodule"),
        (new("disk", "060000"), "does not apply: "),
        (new("d/" * bounds.TREE_DEPTH + "x"), "makes a file with a path of 401 bytes"),
        (new("d" * (bounds.SOURCE_NAME + 1)), "makes a file with a path of 256 bytes"),
        (new(f"{'d' * 200}/" * 18 + "x"), "makes a file with a path of 3,619 bytes"),
        (bytes(1000), "has no changes"),
        (b"--- a/main.c\n+++ b/main.c\n@@ -1,99999999 +1,99999999 @@\n 1\n", "corrupt patch"),
        (b"\x1b]0;x\x07--- a/main.c\n+++ b/\x1b[2J\n@@ -9 +9 @@\n-\n+\n", "does not apply: "),
    ],
)
def test_patch_cannot_leave_the_tree(thing: Thing, patch: bytes, reason: str) -> None:
    assert reason in thing.refusal(patch)


def test_patch_of_a_component_cannot_leave_its_folder(thing: Thing) -> None:
    thing.component = "a/b"
    assert "invalid path 'a/b/../main.c'" in thing.refusal(new("../main.c"))
    assert "sources/all.lorry:1: low: the patch sources/p.patch" in thing.refusal(new("../../x"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "cannot be read: a symbolic link"),
        (lambda path: path.symlink_to("../outside"), "cannot be read: a symbolic link"),
        (os.mkfifo, "cannot be read: it is not an ordinary file"),
        (Path.mkdir, "cannot be read: it is not an ordinary file"),
        (lambda _: None, "cannot be read: No such file or directory"),
        (
            lambda path: path.write_bytes(bytes(bounds.PATCH + 1)),
            "cannot be read: it has more than 8,388,608 bytes",
        ),
    ],
)
def test_patch_is_a_file_of_the_definitions(
    thing: Thing, make: Callable[[Path], object], reason: str
) -> None:
    make(thing.patch)
    start = "sources/all.lorry:1: thing: the patch sources/p.patch "
    assert thing.refusal() == start + reason


def test_patch_is_not_behind_a_link(thing: Thing, tmp_path: Path) -> None:
    (tmp_path / "outside/x.patch").write_bytes(new("x"))
    (thing.folder / "patches").symlink_to("../outside")
    thing.sources()
    file = thing.folder / "all.lorry"
    file.write_text(file.read_text().replace("p.patch", "patches/x.patch"))
    sources = Sources(thing.top / "trove", {}, thing.folder, importer=open_importer)
    with pytest.raises(SourceError) as caught:
        sources.resolve("upstream:thing", "1")
    assert str(caught.value) == (
        "sources/all.lorry:1: thing: the patch sources/patches/x.patch is behind a symbolic link"
        " that leads out of sources"
    )


def test_too_many_patches_are_not_read(thing: Thing, monkeypatch: pytest.MonkeyPatch) -> None:
    thing.patch.write_bytes(new("x"))
    monkeypatch.setattr(bounds, "LORRIES_SIZE", 10)
    assert "thing: its patches have more than 10 bytes" in thing.refusal()
    monkeypatch.setattr(bounds, "PATCHES", 0)
    with pytest.raises(DefinitionsError, match="thing: 'patches' has more than 0 files, the limit"):
        thing.sources().resolve("upstream:thing", "1")


@pytest.mark.bound("PATCH_MEMORY")
def test_patch_that_expands_past_the_bound_is_refused(
    thing: Thing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 MB of zeros are a patch of 1.1 MB."""
    work = tmp_path / "work"
    first = repository(work, {"a": b""})
    (work / "zeros").write_bytes(bytes(200_000_000))
    git(work, "add", "zeros")
    patch = subprocess.run(
        ["git", "diff", "--binary", "--cached", first], cwd=work, capture_output=True, check=True
    ).stdout
    (work / "zeros").unlink()
    assert len(patch) < 2_000_000
    monkeypatch.setattr(bounds, "PATCH_MEMORY", 100_000_000)
    assert "Out of memory" in thing.refusal(patch)


@pytest.mark.bound("PATCH_TIME")
def test_patch_that_takes_too_long_is_refused(
    thing: Thing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hunk claims the beginning of a file, and fits its end."""
    numbers = range(20_000)
    tail = "".join(f"a{n}\nb{n}\nc{n}\n" for n in numbers)
    thing.content["thing/main.c"] = b"x\n" * 300_000 + tail.encode()
    hunks = "".join(f"@@ -2,3 +2,3 @@\n a{n}\n-b{n}\n+d{n}\n c{n}\n" for n in numbers).encode()
    monkeypatch.setattr(bounds, "PATCH_TIME", 1)
    start = time.monotonic()
    text = thing.refusal(b"--- a/main.c\n+++ b/main.c\n" + hunks)
    assert "does not apply: git needs more than 1 seconds for it." in text
    assert time.monotonic() - start < 60
