"""Archives keep their entries, are reproducible, and unpack nothing outside their root."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import tarfile
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fabric import bounds
from fabric.building import archive
from fabric.building.archive import (
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    HARD_LINK,
    MTIME,
    SYMLINK,
    Entry,
    Packed,
    pack,
    read,
)
from fabric.building.tree import Clash, Unpacker, normalize, remove, scan, with_links
from fabric.errors import BuildFailed, Cancelled, MachineFault

names = st.binary(min_size=1, max_size=300).map(
    lambda raw: b"/".join(part for part in raw.replace(b"\0", b"x").split(b"/") if part.strip(b"."))
)
entries = st.builds(
    lambda name, mode, data: Entry(name, FILE, mode, len(data), data=data),
    names.filter(bool),
    st.integers(0, 0o7777),
    st.binary(max_size=1500),
)


def content(packed: Packed) -> bytes:
    data = packed.content
    return data if isinstance(data, bytes) else data.read_bytes()


def unpacked(packed: Packed) -> list[Entry]:
    """The entries of an archive, with their contents."""
    return [
        entry._replace(data=b"".join(contents.pieces()))
        for entry, contents in read(io.BytesIO(content(packed)))
    ]


class TestFormat:
    @given(st.lists(entries, max_size=8))
    def test_archive_gives_back_its_entries(self, wanted: list[Entry]) -> None:
        packed = pack(wanted, Path("/unused"))
        assert unpacked(packed) == wanted
        assert hashlib.sha256(content(packed)).hexdigest() == packed.blob.sha256
        assert len(content(packed)) == packed.blob.size

    def test_archive_can_be_read_by_other_programs(self, tmp_path: Path) -> None:
        long = b"a" * 90 + b"/" + b"b" * 90
        wanted = [
            Entry(b"dir", DIRECTORY, 0o1777),
            Entry(b"dev", CHARACTER, 0o600, major=5, minor=300, uid=3, gid=4),
            Entry(b"fifo", FIFO, 0o640),
            Entry(long, FILE, 0o4755, 5, data=b"hello"),
            Entry(long + b"2", HARD_LINK, 0o4755, link=long),
            Entry(b"link", SYMLINK, 0o777, link=b"c" * 150),
        ]
        data = (
            zstandard.ZstdDecompressor()
            .decompressobj()
            .decompress(content(pack(wanted, tmp_path / "spill")))
        )
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = {member.name: member for member in tar}
            assert {member.mtime for member in members.values()} == {MTIME}
            hello = members[long.decode()]
            assert (hello.mode, hello.size, hello.uid, hello.uname) == (0o4755, 5, 0, "")
            extracted = tar.extractfile(hello)
            assert extracted is not None
            assert extracted.read() == b"hello"
        assert members["dir"].isdir()
        assert members[long.decode() + "2"].islnk()
        assert members[long.decode() + "2"].linkname == long.decode()
        assert members["link"].linkname == "c" * 150
        assert members["fifo"].isfifo()
        device = members["dev"]
        assert device.ischr()
        assert (device.devmajor, device.devminor, device.uid, device.gid) == (5, 300, 3, 4)

    def test_archive_holds_large_sizes(self) -> None:
        header = archive.header(Entry(b"x", FILE, size=1 << 40), b"x")
        assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == 1 << 40

    def test_archive_holds_large_device_and_owner_numbers(self) -> None:
        """Other programs read them too."""
        device = Entry(
            b"dev", CHARACTER, 0o600, major=4095, minor=1 << 22, uid=1 << 21, gid=1 << 31
        )
        packed = pack([device, Entry(b"next", FILE, size=1, data=b"x")], Path("/unused"))
        assert [entry.name for entry in unpacked(packed)] == [b"dev", b"next"]
        assert unpacked(packed)[0] == device
        data = zstandard.ZstdDecompressor().decompressobj().decompress(content(packed))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            member = tar.getmember("dev")
        assert (member.uid, member.gid, member.devminor) == (1 << 21, 1 << 31, 1 << 22)

    @pytest.mark.parametrize(
        ("entry", "why"),
        [
            (Entry(b"", FILE), "its path is ''"),
            (Entry(b"a//b", FILE), "its path is 'a//b'"),
            (Entry(b"a/./b", FILE), "its path is 'a/./b'"),
            (Entry(b"a\0b", FILE), r"its path is 'a\x00b'"),
            (Entry(b"x" * 3000, FILE), "its path is longer than 2048 bytes"),
            (Entry(b"x", HARD_LINK, link=b"../y"), "the path it is a link to is '../y'"),
            (Entry(b"x", SYMLINK, link=b""), "a symlink's target has 0 bytes"),
            (Entry(b"x", CHARACTER, major=1 << 60), "int too big to convert"),
        ],
        ids=range(8),
    )
    def test_archive_is_not_written_with_an_unreadable_entry(self, entry: Entry, why: str) -> None:
        with pytest.raises(BuildFailed, match=f"cannot be archived: {re.escape(why)}"):
            pack([entry], Path("/unused"))

    @pytest.mark.parametrize("size", [1 << 10, (1 << 20) + 5, 5 << 20, 70 << 20])
    def test_archive_has_the_same_bytes_for_the_same_file(self, tmp_path: Path, size: int) -> None:
        block = hashlib.sha256(b"seed").digest() * 2048
        (tmp_path / "file").write_bytes((block * (size // len(block) + 1))[:size])
        os.truncate(tmp_path / "file", size)
        entry = Entry(b"file", FILE, size=size, source=os.fsencode(tmp_path / "file"))
        one, two = (pack([entry], tmp_path / name) for name in ("one", "two"))
        assert one.blob == two.blob
        assert unpacked(one)[0].data == (tmp_path / "file").read_bytes()

    def test_archive_of_a_changing_file_is_a_fault(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("four")
        for size in (3, 5):
            entry = Entry(b"file", FILE, size=size, source=os.fsencode(tmp_path / "file"))
            with pytest.raises(MachineFault, match="changed while it was archived"):
                pack([entry], tmp_path / "spill")


class TestDamage:
    @pytest.mark.parametrize("cut", [0, 1, 20, -5])
    def test_archive_cut_short_is_damaged(self, cut: int) -> None:
        whole = content(pack([Entry(b"x", FILE, size=3000, data=b"y" * 3000)], Path("/unused")))
        with pytest.raises(MachineFault, match="Damaged archive"):
            list(read(io.BytesIO(whole[:cut])))

    @pytest.mark.parametrize("name", [b"/etc/passwd", b"../out", b"a/../../out", b"", b"a/.."])
    def test_archive_with_a_path_out_of_it_is_damaged(self, name: bytes) -> None:
        header = archive.header(Entry(b"x", FILE), name)
        data = zstandard.ZstdCompressor().compress(header + bytes(1024))
        with pytest.raises(MachineFault, match="Damaged archive: its path is"):
            list(read(io.BytesIO(data)))

    def test_archive_without_a_tar_header_is_damaged(self) -> None:
        data = zstandard.ZstdCompressor().compress(b"x" * 2048)
        with pytest.raises(MachineFault, match="not a tar header"):
            list(read(io.BytesIO(data)))


def unpack(root: Path, *archives: list[Entry]) -> Unpacker:
    """Unpack archives of those entries, owners "0", "1" ..., into a new directory."""
    root.mkdir()
    unpacker = Unpacker(root)
    for number, items in enumerate(archives):
        packed = pack(items, root.with_name("spill"))
        unpacker.add(io.BytesIO(content(packed)), str(number))
    unpacker.finish()
    return unpacker


def text(name: bytes, data: str = "") -> Entry:
    return Entry(name, FILE, 0o644, len(data), data=data.encode())


class TestUnpacking:
    def test_unpacker_gives_back_the_tree(self, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "sub/deep").mkdir(parents=True)
        (tree / "sub/file").write_text("text")
        (tree / "sub/file").chmod(0o4111)
        os.link(tree / "sub/file", tree / "again")
        (tree / "sub/link").symlink_to("../nowhere")
        os.mkfifo(tree / "fifo")
        (tree / "sub/deep").chmod(0o500)
        (tree / "sub").chmod(0o3555)
        found = scan(tree)
        result = tmp_path / "result"
        unpack(result, list(with_links(found.values())))
        normalize(tree, found)
        for path in found:
            there, here = ((root / os.fsdecode(path)).lstat() for root in (tree, result))
            assert here.st_mode == there.st_mode
            assert (here.st_mtime, here.st_nlink) == (MTIME, there.st_nlink)
        again = scan(result)  # scan opens directories that an ordinary user may not read
        assert list(again) == list(found)
        for path, entry in again.items():
            assert entry._replace(source=None, inode=None) == found[path]._replace(
                source=None, inode=None
            )
        remove(tree)
        assert not tree.exists()

    def test_unpacker_replaces_earlier_files(self, tmp_path: Path) -> None:
        unpacker = unpack(
            tmp_path / "root",
            [text(b"a", "one"), Entry(b"b", SYMLINK, link=b"a"), text(b"c", "see")],
            [text(b"b", "two"), Entry(b"a", SYMLINK, link=b"c")],
        )
        assert (tmp_path / "root/b").read_text() == "two"
        assert (tmp_path / "root/a").read_text() == "see"
        assert unpacker.replaced == [(b"b", "0", "1"), (b"a", "0", "1")]

    def test_unpacker_follows_symlinks_inside_the_root_only(self, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        unpack(
            tmp_path / "root",
            [
                Entry(b"up", SYMLINK, link=b"../outside"),
                Entry(b"abs", SYMLINK, link=b"/outside"),
                Entry(b"far", SYMLINK, link=os.fsencode(tmp_path / "outside")),
            ],
            [text(b"up/x"), text(b"abs/y"), text(b"far/z"), Entry(b"abs", DIRECTORY)],
        )
        assert not list((tmp_path / "outside").iterdir())
        assert sorted(p.name for p in (tmp_path / "root/outside").iterdir()) == ["x", "y"]

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (Entry(b"it", DIRECTORY), text(b"it")),
            (Entry(b"it", DIRECTORY), Entry(b"it", SYMLINK, link=b"x")),
            (text(b"it"), Entry(b"it", DIRECTORY)),
            (text(b"it"), text(b"it/inside")),
            (Entry(b"it", SYMLINK, link=b"nowhere"), Entry(b"it", DIRECTORY)),
        ],
    )
    def test_unpacker_raises_for_a_clash(self, tmp_path: Path, first: Entry, second: Entry) -> None:
        with pytest.raises(Clash, match=r"1 has a .* at /it, where 0 has a "):
            unpack(tmp_path / "root", [first], [second])

    def test_unpacker_records_devices(self, tmp_path: Path) -> None:
        device = Entry(b"dev/null", CHARACTER, 0o666, major=1, minor=3)
        unpacker = unpack(tmp_path / "root", [device])
        assert unpacker.devices == {b"dev/null": device}
        assert not (tmp_path / "root/dev/null").exists()

    @pytest.mark.parametrize("keep", [True, False])
    def test_unpacker_drops_setuid_and_setgid_unless_kept(self, tmp_path: Path, keep: bool) -> None:
        unpacker = Unpacker(tmp_path, keep_raising=keep)
        for name, type_, mode in ((b"dir", DIRECTORY, 0o2755), (b"it", FILE, 0o6755)):
            unpacker.put(Entry(name, type_, mode), [], "it")
        unpacker.finish(0o700)
        modes = [path.stat().st_mode & 0o7777 for path in (tmp_path, *sorted(tmp_path.iterdir()))]
        assert modes == [0o700, 0o2755, 0o6755 if keep else 0o755]
        assert unpacker.raising == keep


class TestScanning:
    def test_scan_rejects_sockets(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "it"))
            with pytest.raises(BuildFailed) as caught:
                scan(tmp_path)
        assert str(caught.value) == (
            "/it is a socket, and no artifact may hold one: the commands that make it must"
            " remove it"
        )

    @pytest.mark.slow
    @pytest.mark.bound("ARTIFACT_FILES")
    def test_scan_rejects_too_many_files(self) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            first = f"{name}/first"
            Path(first).touch()
            for number in range(bounds.ARTIFACT_FILES):
                os.link(first, f"{name}/{number}")
            with pytest.raises(BuildFailed) as caught:
                scan(Path(name))
        assert str(caught.value) == "More than 1,000,000 files are too many for an artifact"

    def test_scan_can_be_cancelled(self, tmp_path: Path) -> None:
        (tmp_path / "a/b/c").mkdir(parents=True)
        checks = iter((None, None, Cancelled()))

        def check() -> None:
            if (error := next(checks)) is not None:
                raise error

        with pytest.raises(Cancelled):
            scan(tmp_path, check)


class TestNormalize:
    def test_normalize_removes_extended_attributes(self, tmp_path: Path) -> None:
        """Also from read-only files and from the top folder."""
        (tmp_path / "dir").mkdir()
        (tmp_path / "dir/file").touch()
        for path in (tmp_path, tmp_path / "dir", tmp_path / "dir/file"):
            os.setxattr(path, "user.overlay.opaque", b"y")
        os.setxattr(tmp_path / "dir/file", "user.remark", b"of mine")
        (tmp_path / "dir/file").chmod(0o400)
        (tmp_path / "dir").chmod(0o500)
        normalize(tmp_path, scan(tmp_path))
        for path in (tmp_path, tmp_path / "dir", tmp_path / "dir/file"):
            assert os.listxattr(path) == []
        assert (tmp_path / "dir/file").stat().st_mode & 0o7777 == 0o400
        assert (tmp_path / "dir").stat().st_mode & 0o7777 == 0o500
