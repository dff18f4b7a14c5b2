"""The artifact store in a directory: damage, crashes, full disks, concurrent writers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest
from children import child_environment
from small_disk import on_small_disk
from store_kit import blob, key, step

from fabric.errors import DamagedError, StoreError
from fabric.trove.artifacts.directory import Directory
from fabric.trove.artifacts.store import Store

DAY = 86400.0


@pytest.fixture
def directory(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), tmp_path / "scratch")


def damage(store: Store, data: bytes, by: bytes) -> None:
    file = store.path(blob(data))
    file.chmod(0o644)
    file.write_bytes(by)


@pytest.mark.parametrize("by", [b"intacT", b"inta", b""])
def test_blob_that_is_damaged_is_noticed_and_forgotten_with_its_step(
    directory: Store, tmp_path: Path, by: bytes
) -> None:
    for number, data in enumerate((b"intact", b"intact", b"other"), 1):
        directory.put(*step(number, data))
        assert directory.inspect(key(number))
    assert not directory.inspect(key(4)), "what is not there"
    damage(directory, b"intact", by)
    damaged = blob(b"intact")
    fetch = partial(directory.fetch, to=tmp_path / "x")
    for reading in (directory.read, directory.path, fetch):
        with pytest.raises(DamagedError, match=f"blob {damaged.sha256} is damaged"):
            reading(damaged)
    with pytest.raises(DamagedError) as caught:
        directory.path(damaged, key(1))
    assert caught.value.keys == (key(1),)
    assert not Path("/x").exists()
    assert [directory.inspect(key(number)) for number in (1, 2, 3)] == [False, False, True]

    directory.forget(key(1))

    assert directory.has(map(key, (1, 2, 3))) == {key(2), key(3)}
    assert not directory.inspect(key(2)), "it has lost its blob"
    directory.put(*step(1, b"intact"))
    assert directory.read(damaged) == b"intact"
    assert directory.inspect(key(2)), "and has it again"
    directory.forget(key(9))


def test_blob_without_an_end_is_damaged(directory: Store, tmp_path: Path) -> None:
    """It costs neither time nor space beyond its size."""
    directory.put(*step(1, b"intact"))
    file = directory.path(blob(b"intact"))
    file.unlink()
    with file.open("xb") as made:
        made.truncate(1 << 42)
    fetch = partial(directory.fetch, to=tmp_path / "x")
    for reading in (directory.read, directory.path, directory.verify, fetch):
        began = time.monotonic()
        with pytest.raises(DamagedError, match="it has more"):
            reading(blob(b"intact"))
        assert time.monotonic() - began < 5
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("folder", ["blobs", "tmp", "reserved", "hints", "manifests"])
def test_files_of_others_are_not_removed(directory: Store, tmp_path: Path, folder: str) -> None:
    """A link in a shared store may lead anywhere."""
    directory.put(*step(1, b"data"))
    directory.put_hints({key(8): key(1)})
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    for name in ("letter", "below/other"):
        (home / name).write_text("mine")
    there = Path(directory.url) / folder
    if there.exists():
        there.rename(tmp_path / "aside")
    there.symlink_to(home)
    directory.sweep()
    directory.gc(set(), now=lambda: time.time() + 2 * DAY)
    assert (home / "letter").exists()
    assert (home / "below/other").exists()


@pytest.mark.parametrize("folder", ["blobs", "manifests", "hints"])
def test_pipe_in_a_store_does_not_block(directory: Store, folder: str) -> None:
    directory.put(*step(1, b"data"))
    directory.put_hints({key(8): key(1)})
    file = {
        "blobs": directory.path(blob(b"data")),
        "manifests": Path(directory.url) / "manifests" / key(1),
        "hints": Path(directory.url) / "hints" / key(8),
    }[folder]
    file.unlink()
    os.mkfifo(file)
    for read in {
        "blobs": (
            lambda: directory.read(blob(b"data")),
            lambda: directory.verify(blob(b"data")),
            lambda: directory.read(blob(b"data"), 1, 2),
            lambda: directory.path(blob(b"data")),
        ),
        "manifests": (lambda: directory.manifest(key(1)),),
        "hints": (lambda: directory.hint(key(8)),),
    }[folder]:
        with pytest.raises(StoreError):
            read()


def test_blob_that_is_torn_is_repaired_by_put(directory: Store) -> None:
    directory.put(*step(1, b"intact"))
    damage(directory, b"intact", b"\0" * 6)
    directory.put(*step(2, b"intact"))
    assert directory.read(blob(b"intact")) == b"intact"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 5}'])
def test_manifest_that_is_torn_is_noticed(directory: Store, content: str) -> None:
    directory.put(*step(1, b"data"))
    file = Path(directory.url) / "manifests" / key(1)
    file.chmod(0o644)
    file.write_text(content)
    with pytest.raises(DamagedError, match=f"manifest {key(1)} is damaged.*built again") as caught:
        directory.manifest(key(1))
    assert caught.value.keys == (key(1),)
    assert not directory.inspect(key(1))
    assert directory.gc(set(), now=lambda: time.time() + 2 * DAY).manifests == 1


def test_manifest_under_another_key_is_noticed(directory: Store) -> None:
    directory.put(*step(1, b"data"))
    manifests = Path(directory.url) / "manifests"
    (manifests / key(1)).rename(manifests / key(2))
    with pytest.raises(DamagedError, match=f"it is that of {key(1)}"):
        directory.manifest(key(2))


def test_store_layout_is_as_documented(directory: Store) -> None:
    manifest, files = step(1, b"data")
    directory.put(manifest, files)
    root = Path(directory.url)
    sha256 = blob(b"data").sha256
    assert (root / "blobs" / sha256[:2] / sha256).read_bytes() == b"data"
    stored = json.loads((root / "manifests" / key(1)).read_bytes().splitlines()[0])
    assert stored["name"] == "chunk-1"
    assert stored["artifacts"][0]["blob"] == {"sha256": sha256, "size": 4}
    assert list((root / "tmp").iterdir()) == []


def test_gc_keeps_blobs_used_again_meanwhile(directory: Store) -> None:
    directory.put(*step(1, b"data"))
    old = time.time() - 3 * DAY
    for file in Path(directory.url).rglob("*"):
        if file.is_file():
            os.utime(file, (old, old))
    objects = Directory(Path(directory.url))
    entries = list(objects.list("blobs"))
    directory.put(*step(2, b"data"))  # finds the blob there
    assert objects.delete_unused(entries) == [
        entry for entry in entries if not entry.path.endswith(blob(b"data").sha256)
    ]
    assert directory.read(blob(b"data")) == b"data"


def test_put_syncs_everything_before_it_returns(directory: Store, tmp_path: Path) -> None:
    """Checks the order of the system calls that a put makes."""
    directory.put(*step(1, b"first"))
    trace = tmp_path / "trace"
    code = f"""
        from pathlib import Path
        from store_kit import step
        from fabric.trove.artifacts.store import Store
        Store({directory.url!r}, Path({str(tmp_path)!r})).put(*step(2, b"second"))
    """
    calls = "openat,rename,link,linkat,renameat,fsync,close"
    subprocess.run(
        [
            *("strace", "-f", "-y", "-o", str(trace), "-e", f"trace={calls}"),
            *(sys.executable, "-c", textwrap.dedent(code)),
        ],
        check=True,
        env=child_environment(),
    )
    lines = [line for line in trace.read_text().splitlines() if directory.url in line]
    blobs = [blob(b"second").sha256, blob(b"log of 2\n").sha256]
    named = next(i for i, line in enumerate(lines) if "link" in line and key(2) in line)
    synced = [line.split("<")[1].split(">")[0] for line in lines[:named] if "fsync(" in line]
    for sha256 in blobs:
        assert any(path.endswith(sha256) for path in synced)
        assert any(path.endswith(f"blobs/{sha256[:2]}") for path in synced)
    assert any("/tmp/" in path.removeprefix(str(tmp_path)) for path in synced), "the manifest"
    last = [line for line in lines[named:] if "fsync(" in line]
    assert any("/manifests>" in line for line in last)


@pytest.mark.parametrize("same", [True, False])
def test_put_does_not_copy_a_file_of_the_same_disk(
    directory: Store, tmp_path: Path, same: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path if same else "/dev/shm") as folder:
        file = Path(folder, "archive")
        file.write_bytes(b"content")
        os.utime(file, (1, 1))
        if not same and file.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is one disk only")
        manifest, files = step(1, b"content")
        directory.put(manifest, files | {blob(b"content").sha256: file})
        stored = directory.path(blob(b"content"))
        assert stored.samefile(file) == same
    assert stored.read_bytes() == b"content"
    assert stored.stat().st_mode & 0o777 == 0o444
    assert stored.stat().st_mtime > time.time() - 60, "it is in use now, whenever it was made"


def test_store_reports_a_full_disk(tmp_path: Path) -> None:
    """In a mount namespace of its own, on a file system of one MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    code = f"""
        import os
        from pathlib import Path
        from store_kit import step, key, blob
        from fabric.errors import StoreError
        from fabric.trove.artifacts.store import Store
        store = Store({str(mount / "store")!r}, Path({str(tmp_path)!r}))
        store.put(*step(1, b"fits"))
        try:
            store.put(*step(2, os.urandom(2_000_000)))
        except StoreError as error:
            print(error)
        assert store.has([key(1), key(2)]) == {{key(1)}}
        assert store.read(blob(b"fits")) == b"fits"
        assert not list(Path({str(mount / "store" / "tmp")!r}).iterdir())
        store.put(*step(3, b"fits, too"))
        data = os.urandom(500_000)
        elsewhere = Store({str(tmp_path / "other")!r}, Path({str(tmp_path)!r}))
        elsewhere.put(*step(4, data, os.urandom(1_000_000)))
        elsewhere.fetch(blob(data), Path({str(mount / "copy")!r}))
        try:
            elsewhere.fetch(elsewhere.manifest(key(4)).artifacts[1].blob, Path({str(mount)!r}, "b"))
        except StoreError as error:
            print(error)
        assert sorted(os.listdir({str(mount)!r})) == ["copy", "store"]
    """
    first, second = on_small_disk("1m", mount, code)
    assert "chunk-2 cannot be stored: No space left on device" in first
    assert "the disk is full: free some room" in first
    assert "cannot be fetched to" in second
    assert "the disk is full" in second


def test_put_that_is_killed_leaves_no_damage(directory: Store, tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from store_kit import step
        from fabric.trove.artifacts.store import Store
        store = Store(sys.argv[1], Path(sys.argv[2]))
        print(flush=True)
        for number in range(10**6):
            store.put(*step(number, b"%d" % number * 50_000, os.urandom(100_000)))
    """
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), directory.url, str(tmp_path)],
            stdout=subprocess.PIPE,
            env=child_environment(),
        ) as writer:
            assert writer.stdout
            writer.stdout.readline()
            time.sleep(0.3)
            writer.send_signal(signal.SIGKILL)
    keys = set(directory.keys())
    assert keys
    for one in keys:
        manifest = directory.manifest(one)
        assert manifest
        for part in manifest.blobs():
            directory.read(part)
    (Path(directory.url) / "tmp" / ("5" * 32)).write_text("half of it")
    directory.sweep()
    assert list((Path(directory.url) / "tmp").iterdir()) == []


def test_store_may_be_written_by_many_at_once(directory: Store, tmp_path: Path) -> None:
    """Several processes put the same artifacts while another runs gc."""
    code = """
        import sys
        from pathlib import Path
        from store_kit import step
        from fabric.trove.artifacts.store import Store
        store = Store(sys.argv[1], Path(sys.argv[2]))
        for number in range(40):
            store.put(*step(number, b"%d" % number * 1000, b"the same"))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), directory.url, str(tmp_path)]
    writers = [subprocess.Popen(command, env=child_environment()) for _ in range(4)]
    while any(writer.poll() is None for writer in writers):
        directory.gc(set(map(key, range(40))))
    assert [writer.returncode for writer in writers] == [0] * 4
    assert directory.has(map(key, range(40))) == set(map(key, range(40)))
    for number in range(40):
        manifest = directory.manifest(key(number))
        assert manifest == step(number, b"%d" % number * 1000, b"the same")[0]
        assert [directory.read(part) for part in manifest.blobs()]
    assert list((Path(directory.url) / "tmp").iterdir()) == []


def test_store_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(str(tmp_path / "file" / "store"), tmp_path)
    with pytest.raises(StoreError, match="chunk-1 cannot be stored: Not a directory"):
        store.put(*step(1))
    assert store.has([key(1)]) == set()


def test_store_rejects_a_key_that_is_a_path(directory: Store) -> None:
    with pytest.raises(StoreError, match="is no cache key"):
        directory.manifest("../../etc/passwd")
