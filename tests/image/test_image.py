"""Disk images made of small archives, read back with e2fsprogs and mtools."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from fabric.building import image_disk
from fabric.building.image import (
    File,
    Image,
    ImageError,
    files_below,
    make_archive,
    make_image,
)

MIB = 1024 * 1024
SIZE = 96 * MIB
DEEP = "/".join(["deep"] + [f"{n:02}" * 20 for n in range(10)])


class Archive:
    """Builds a system artifact."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(  # noqa: SIM115
            fileobj=self.bytes, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
        )

    def add(
        self,
        name: str,
        kind: bytes = tarfile.REGTYPE,
        mode: int = 0o644,
        data: bytes = b"",
        link: str = "",
        owner: tuple[int, int] = (0, 0),
        device: tuple[int, int] = (0, 0),
    ) -> Archive:
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.linkname = kind, mode, link
        member.uid, member.gid = owner
        member.devmajor, member.devminor = device
        member.size, member.mtime = len(data), 1_000_000_000
        self.tar.addfile(member, io.BytesIO(data))
        return self

    def folder(self, name: str, mode: int = 0o755) -> Archive:
        return self.add(name, tarfile.DIRTYPE, mode)

    def symlink(self, name: str, target: str) -> Archive:
        return self.add(name, tarfile.SYMTYPE, 0o777, link=target)

    def write(self, to: Path) -> Path:
        self.tar.close()
        to.write_bytes(zstandard.ZstdCompressor().compress(self.bytes.getvalue()))
        return to


def small() -> Archive:
    """The smallest system that makes an image."""
    archive = Archive().folder("boot").folder("etc").folder("usr").folder("usr/bin")
    archive.symlink("bin", "usr/bin")
    archive.add("boot/vmlinuz-6.12", data=b"kernel 6.12")
    return archive.add("etc/hostname", data=b"before\n")


@pytest.mark.parametrize(
    "name", ["-x/it", "a:b/it", "a@@1/it", "nbd:x/it.qcow2", "json:{}/it.qcow2", "a@@1", "x" * 255]
)
def test_image_may_have_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rootfs = small().write(tmp_path / "rootfs.tar.zst")
    monkeypatch.chdir(tmp_path)
    to = Path(name)
    to.parent.mkdir(exist_ok=True)
    image = make_image(rootfs, to, size=SIZE, format="qcow2" if to.suffix else "raw")
    assert (image.path, to.exists()) == (to, True)
    assert list(to.parent.glob(".*")) == []


def test_an_archive_has_the_system_and_the_files_over_it(tmp_path: Path) -> None:
    rootfs = small().write(tmp_path / "rootfs.tar.zst")
    to = tmp_path / "it"
    files = {"/bin/new": File(b"new\n", 0o755), "/srv/a/b": File(b"b", uid=7)}
    written = make_archive(rootfs, to, hostname="after", files=files)
    assert (written, to.stat().st_mode & 0o777) == (to.stat().st_size, 0o600)
    with tarfile.open(to) as archive:
        found = {member.name: member for member in archive}
        names = archive.getnames()
        content = archive.extractfile("etc/hostname")
        assert content is not None
        assert content.read() == b"after\n"
    assert len(found) == len(names)
    assert found["boot/vmlinuz-6.12"].size == 11
    assert (found["usr/bin/new"].mode, found["srv/a/b"].uid) == (0o755, 7)
    assert names.index("srv/a") < names.index("srv/a/b")
    assert found["bin"].issym()
    again = tmp_path / "again"
    make_archive(rootfs, again, hostname="after", files=files)
    assert again.read_bytes() == to.read_bytes()
    with pytest.raises(ImageError, match="exists already"):
        make_archive(rootfs, to)
    make_archive(rootfs, to, force=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again", "it", "rootfs.tar.zst"]


def root_of(image: Image) -> str:
    """The root filesystem as e2fsprogs address it."""
    with image.path.open("rb") as disk:
        table = disk.read(512)[446:]
    first = struct.unpack("<I", table[16 + 8 : 16 + 12])[0]
    return f"{image.path}?offset={first * 512}"


def debugfs(image: Image, request: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", request, root_of(image)],
        capture_output=True,
        check=True,
        env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "DEBUGFS_PAGER": "cat"},
    )
    return done.stdout.decode("latin-1")


def mode_of(image: Image, path: str) -> tuple[int, int, int, int]:
    """(type and permissions, uid, gid, links) of a file in the image."""
    told = debugfs(image, f'stat "{path}"')
    words = told.replace(":", " ").split()

    def after(word: str, base: int = 10) -> int:
        return int(words[words.index(word) + 1], base)

    kinds = {
        "Type: regular": stat.S_IFREG,
        "Type: directory": stat.S_IFDIR,
        "Type: symlink": stat.S_IFLNK,
        "Type: character": stat.S_IFCHR,
        "Type: block": stat.S_IFBLK,
        "Type: FIFO": stat.S_IFIFO,
    }
    [kind] = [value for text, value in kinds.items() if text in told]
    return kind | after("Mode", 8), after("User"), after("Group"), after("Links")


def content(image: Image, path: str) -> str:
    return debugfs(image, f'cat "{path}"')


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Image]:
    def call(archive: Archive, **options: object) -> Image:
        rootfs = archive.write(tmp_path / "rootfs.tar.zst")
        settings: dict[str, object] = {"size": SIZE, **options}
        return make_image(rootfs, tmp_path / "disk.img", **settings)  # type: ignore[arg-type]

    return call


def test_image_holds_everything_in_the_archive(make: Callable[..., Image]) -> None:
    archive = small()
    archive.folder("dev").folder("root", 0o700).folder("tmp", 0o1777)
    archive.add("usr/bin/su", mode=0o4755, data=b"x" * 5000)
    archive.add("usr/bin/su-again", tarfile.LNKTYPE, 0o4755, link="usr/bin/su")
    archive.add("etc/owned", mode=0o640, data=b"mine", owner=(1000, 42))
    archive.add("dev/console", tarfile.CHRTYPE, 0o600, device=(5, 1))
    archive.add("dev/disk", tarfile.BLKTYPE, 0o660, device=(254, 300))
    archive.add("dev/pipe", tarfile.FIFOTYPE, 0o600)
    for depth in range(1, DEEP.count("/") + 2):
        archive.folder("/".join(DEEP.split("/")[:depth]))
    archive.add(f"{DEEP}/{'f' * 255}", data=b"deep")
    archive.symlink("far", f"/{DEEP}")
    archive.add("gr\u00fc\u00df-\u540d", data=b"unicode")
    archive.add("latin-\udce9", data=b"no unicode")
    archive.add("big", data=bytes(range(256)) * 40_000)
    image = make(archive)

    assert mode_of(image, "/usr/bin/su") == (stat.S_IFREG | 0o4755, 0, 0, 2)
    assert mode_of(image, "/usr/bin/su-again") == (stat.S_IFREG | 0o4755, 0, 0, 2)
    assert mode_of(image, "/etc/owned") == (stat.S_IFREG | 0o640, 1000, 42, 1)
    assert mode_of(image, "/dev/console")[0] == stat.S_IFCHR | 0o600
    assert "major/minor number: 254:300" in debugfs(image, "stat /dev/disk")
    assert mode_of(image, "/dev/pipe")[0] == stat.S_IFIFO | 0o600
    assert mode_of(image, "/tmp")[0] == stat.S_IFDIR | 0o1777
    assert mode_of(image, "/root")[0] == stat.S_IFDIR | 0o700
    assert mode_of(image, "/bin")[0] == stat.S_IFLNK | 0o777
    assert content(image, f"/{DEEP}/{'f' * 255}") == "deep"
    assert f"/{DEEP}" in content(image, "/far")
    listing = debugfs(image, "ls -l /")
    assert "gr\\xc3\\xbc\\xc3\\x9f-\\xe5\\x90\\x8d" in listing
    assert "latin-\\xe9" in listing
    assert content(image, "/big").encode("latin-1") == bytes(range(256)) * 40_000
    check = ["e2fsck", "-fn", root_of(image)]
    environment = {"PATH": "/usr/sbin:/sbin"}
    subprocess.run(check, check=True, capture_output=True, env=environment)


def test_image_makes_folders_that_the_archive_omits(make: Callable[..., Image]) -> None:
    archive = Archive().add("boot/vmlinuz", data=b"k").add("a/b/c", data=b"there")
    assert content(make(archive), "/a/b/c") == "there"


def test_image_is_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rootfs = small().write(tmp_path / "rootfs.tar.zst")
    digests = []
    for number, (zone, mask) in enumerate([("UTC", 0o022), ("Asia/Tokyo", 0o077)]):
        place = tmp_path / f"place{number}"
        place.mkdir()
        monkeypatch.setenv("TZ", zone)
        monkeypatch.setenv("LANG", "C")
        before = os.umask(mask)
        try:
            image = make_image(rootfs, place / "disk.img", size=SIZE, hostname="one")
        finally:
            os.umask(before)
        digests.append(hashlib.sha256(image.path.read_bytes()).hexdigest())
        # FAT keeps even seconds only
        subprocess.run(["sleep", "2.1"], check=True)
    assert digests[0] == digests[1]
    other = make_image(rootfs, tmp_path / "other.img", size=SIZE, hostname="two")
    assert other.uuid != image.uuid


def test_image_files_are_laid_over_the_system(make: Callable[..., Image]) -> None:
    image = make(
        small().add("etc/keep", data=b"kept").add("usr/bin/tool", mode=0o755, data=b"old"),
        hostname="machine-1",
        files={
            "/etc/new/folder/file": File(b"new", 0o600, 7, 8),
            "bin/tool": File(b"replaced through a symbolic link", 0o100755),
            "etc/link": File(b"../usr/bin/tool", 0o120777),
            "root/.ssh": File(mode=0o40700),
            "root/.ssh/authorized_keys": File(b"key", 0o600),
        },
    )
    assert content(image, "/etc/hostname") == "machine-1\n"
    assert content(image, "/etc/keep") == "kept"
    assert content(image, "/usr/bin/tool") == "replaced through a symbolic link"
    assert mode_of(image, "/etc/new/folder/file") == (stat.S_IFREG | 0o600, 7, 8, 1)
    assert mode_of(image, "/etc/new/folder")[0] == stat.S_IFDIR | 0o755
    assert mode_of(image, "/root/.ssh")[0] == stat.S_IFDIR | 0o700
    assert 'Fast link dest: "../usr/bin/tool"' in debugfs(image, "stat /etc/link")


def test_image_tree_is_laid_over_the_system(
    make: Callable[..., Image], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = tmp_path_factory.mktemp("tree")
    (tree / "root/.ssh").mkdir(parents=True)
    (tree / "root/.ssh").chmod(0o700)
    (tree / "bin").mkdir()
    (tree / "bin/tool").write_text("#!/bin/sh\n")
    (tree / "bin/tool").chmod(0o755)
    (tree / "root/secret").write_text("x")
    (tree / "root/secret").chmod(0o600)
    (tree / "etc").mkdir()
    (tree / "etc/link").symlink_to("nowhere")
    image = make(small().folder("root", 0o750), files=files_below(tree))
    # folders of the system keep their modes
    assert mode_of(image, "/root")[0] == stat.S_IFDIR | 0o750
    assert mode_of(image, "/root/.ssh") == (stat.S_IFDIR | 0o700, 0, 0, 2)
    assert mode_of(image, "/root/secret") == (stat.S_IFREG | 0o600, 0, 0, 1)
    assert mode_of(image, "/usr/bin/tool")[0] == stat.S_IFREG | 0o755
    assert 'Fast link dest: "nowhere"' in debugfs(image, "stat /etc/link")


def test_image_tree_may_hold_no_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="pipe: an image can take files, folders and symbolic"):
        files_below(tmp_path)
    with pytest.raises(ImageError, match="nowhere: No such file"):
        files_below(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"etc": File(b"x")}, "/etc is a folder in the system"),
        ({"etc/hostname": File(mode=0o40755)}, "/etc/hostname is no folder in the system"),
        ({"etc/hostname/x": File(b"")}, "/etc/hostname is no folder in the system"),
        ({"a": File(b""), "a/b": File(b"")}, "/a cannot be a file and the folder of /a/b"),
        ({"bin/x": File(b""), "usr/bin/x": File(b"")}, "/usr/bin/x is given twice"),
        ({"usr/bin/su": File(b"")}, "hard links"),
        ({"../etc/x": File(b"")}, "no path inside"),
        ({"loop/x": File(b"")}, "Too many levels of symlinks at /loop/x"),
        ({"etc/x": File(b"", 0o020600)}, "is no file, folder or symbolic link"),
    ],
)
def test_image_rejects_files_that_cannot_be_laid_over(
    make: Callable[..., Image], files: dict[str, File], said: str, tmp_path: Path
) -> None:
    archive = small().symlink("loop", "loop").add("usr/bin/su", data=b"x")
    archive.add("usr/bin/su2", tarfile.LNKTYPE, link="usr/bin/su")
    with pytest.raises(ImageError, match=said):
        make(archive, files=files)
    assert [file.name for file in tmp_path.iterdir()] == ["rootfs.tar.zst"]


def test_image_boots_the_newest_kernel_with_its_own_initrd(make: Callable[..., Image]) -> None:
    archive = small().add("boot/vmlinuz-6.9", data=b"kernel 6.9")
    archive.add("boot/initrd.img-6.9", data=b"x").add("boot/initrd.img-6.12", data=b"initrd 6.12")
    image = make(archive, kernel_args="quiet")
    assert (image.kernel, image.initrd) == ("/boot/vmlinuz-6.12", "/boot/initrd.img-6.12")
    assert image.arguments == f"root=UUID={image.uuid} rw quiet"

    def read(name: str) -> bytes:
        command = ["mtype", "-i", f"{image.path}@@1M", f"::{name}"]
        return subprocess.run(command, check=True, capture_output=True).stdout

    assert read("vmlinuz") == b"kernel 6.12"
    assert read("initrd.img") == b"initrd 6.12"
    assert f"APPEND {image.arguments}" in read("syslinux.cfg").decode()


def test_image_boots_a_linked_kernel_without_an_initrd(make: Callable[..., Image]) -> None:
    image = make(small().add("boot/vmlinuz-6.9", data=b"k").symlink("boot/vmlinuz", "vmlinuz-6.9"))
    assert (image.kernel, image.initrd) == ("/boot/vmlinuz-6.9", "")
    signature = struct.unpack("<I", image.path.read_bytes()[440:444])[0]
    assert image.arguments.startswith(f"root=PARTUUID={signature:08x}-02 rw ")


def test_image_without_a_boot_loader_has_the_kernel_alone(make: Callable[..., Image]) -> None:
    image = make(small(), loader=False, kernel_args="")
    assert image.arguments.startswith("root=PARTUUID=")
    assert image.arguments.endswith("-02 rw")
    assert image.path.read_bytes()[:440] == bytes(440)
    command = ["mdir", "-a", "-b", "-i", f"{image.path}@@1M", "::"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert listed.split() == ["::/vmlinuz"]


def test_image_of_a_system_without_a_kernel_fails(make: Callable[..., Image]) -> None:
    with pytest.raises(ImageError, match="no kernel"):
        make(Archive().folder("boot").symlink("boot/vmlinuz", "/elsewhere"))


def test_image_too_small_reports_least_size(make: Callable[..., Image], tmp_path: Path) -> None:
    def archive() -> Archive:
        made = small()
        for number in range(3000):
            made.add(f"usr/{number:04}-{'n' * 40}", data=b"x" * (number * 7))
        return made

    with pytest.raises(ImageError, match="too small") as caught:
        make(archive(), size=40 * MIB)
    needed = int(str(caught.value).split("at least ")[1].split()[0])
    assert 60 < needed < 120
    assert [file.name for file in tmp_path.iterdir()] == ["rootfs.tar.zst"]
    image = make(archive(), size=needed * MIB)
    assert image.size == needed * MIB
    assert content(image, f"/usr/2999-{'n' * 40}") == "x" * (2999 * 7)


def test_image_too_large_for_its_partition_table_fails(make: Callable[..., Image]) -> None:
    with pytest.raises(ImageError, match=r"too large for its partition table: .* \(2T\)"):
        make(small(), size=(2 << 40) + MIB)


def test_image_is_replaced_only_by_force(make: Callable[..., Image], tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_text("precious")
    with pytest.raises(ImageError, match="exists already"):
        make(small())
    assert (tmp_path / "disk.img").read_text() == "precious"
    assert make(small(), force=True).path.stat().st_size == SIZE
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="is a folder"):
        make_image(tmp_path / "rootfs.tar.zst", tmp_path / "folder", size=SIZE, force=True)


def test_image_is_sparse(make: Callable[..., Image]) -> None:
    image = make(small(), size=5120 * MIB)
    assert image.path.stat().st_size == image.size == 5120 * MIB
    assert image.used < 8 * MIB


def test_image_as_qcow2_holds_the_same_disk(make: Callable[..., Image], tmp_path: Path) -> None:
    raw = make(small()).path.rename(tmp_path / "raw.img")
    image = make(small(), format="qcow2")
    with image.path.open("rb") as file:
        assert file.read(4) == b"QFI\xfb"
    subprocess.run(["qemu-img", "compare", str(raw), str(image.path)], check=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label": "longer-than-16-bytes"}, "label"),
        ({"label": ""}, "label"),
        ({"hostname": "-bad-"}, "host name"),
        ({"hostname": "a\nb"}, "host name"),
        ({"kernel_args": "quiet\nsplash"}, "one line"),
    ],
)
def test_image_rejects_bad_settings(
    make: Callable[..., Image], options: dict[str, str], said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        make(small(), **options)


@pytest.mark.parametrize("damage", ["cut", "garbage", "not compressed"])
def test_image_of_a_damaged_artifact_fails(tmp_path: Path, damage: str) -> None:
    rootfs = small().add("usr/big", data=os.urandom(MIB)).write(tmp_path / "rootfs.tar.zst")
    data = rootfs.read_bytes()
    rootfs.write_bytes({"cut": data[:500_000], "garbage": b"x" * 9000}.get(damage, bytes(10240)))
    with pytest.raises(ImageError, match="not a whole system artifact"):
        make_image(rootfs, tmp_path / "disk.img", size=SIZE)
    assert [file.name for file in tmp_path.iterdir()] == ["rootfs.tar.zst"]


def test_image_names_missing_tools_with_their_packages(
    make: Callable[..., Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_disk, "_PATH", "/nowhere")
    monkeypatch.setattr(image_disk, "_MBR_CODE", ())
    with pytest.raises(ImageError) as caught:
        make(small())
    for package in ("dosfstools", "e2fsprogs", "mtools", "syslinux", "syslinux-common"):
        assert package in str(caught.value)


def test_image_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    rootfs = small().add("usr/big", data=os.urandom(30 * MIB)).write(tmp_path / "rootfs.tar.zst")
    script = f"""
from pathlib import Path
from fabric.building.image import ImageError, make_image
to = Path("/mnt/disk.img")
try:
    make_image(Path({str(rootfs)!r}), to, size={SIZE})
except ImageError as error:
    print(error)
print(list(to.parent.iterdir()))
"""
    room = ["--size", str(20 * MIB), "--tmpfs", "/mnt"]
    command = ["bwrap", "--dev-bind", "/", "/", *room, "--", sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said, left = done.stdout.splitlines()
    assert "no space left for /mnt/disk.img" in said
    assert left == "[]"


def test_image_rejects_a_new_file_that_exists(make: Callable[..., Image]) -> None:
    with pytest.raises(ImageError, match="/etc/hostname is in the system already"):
        make(small(), files={"/etc/hostname": File(b"x", new=True)})
