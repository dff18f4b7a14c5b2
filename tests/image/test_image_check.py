"""A disk image is compared with the system that it should have been made of."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_image import SIZE, Archive, small

from fabric import bounds
from fabric.building import image_check
from fabric.building.image import File, ImageError, make_image
from fabric.building.image_check import compare_image
from fabric.building.image_disk import MIB

LONG = "../" * 40 + "usr"
ROOT = 17 * MIB


def system() -> Archive:
    archive = small()
    archive.folder("dev").folder("tmp", 0o1777)
    archive.add("usr/bin/su", mode=0o4755, data=b"#!/bin/sh\n" * 1000, owner=(0, 7))
    archive.add("usr/bin/su2", tarfile.LNKTYPE, 0o4755, link="usr/bin/su", owner=(0, 7))
    archive.add("dev/null", tarfile.CHRTYPE, 0o666, device=(1, 3))
    archive.add("dev/sda", tarfile.BLKTYPE, 0o660, device=(8, 0))
    archive.add("dev/pipe", tarfile.FIFOTYPE, 0o600)
    archive.add("usr/two\nlines", data=b"a").add("usr/empty").add("usr/caf\udce9", data=b"x")
    archive.add("usr/holes", data=bytes(100_000) + b"end")
    return archive.symlink("usr/long", LONG).symlink("usr/short", "bin")


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    """An image and its system."""
    rootfs = system().write(tmp_path / "rootfs.tar.zst")
    image = tmp_path / "a=b,c.img"
    make_image(rootfs, image, size=SIZE)
    return image, rootfs


def change(
    image: Path, *commands: str, options: Sequence[str] = (), script: Path | None = None
) -> None:
    """Let debugfs change the root file system by commands, or by those in a file."""
    where = f"disk?offset={ROOT}"
    (image.parent / "disk").symlink_to(image)
    for command in commands:
        how = ["-f", str(script)] if script else ["-R", command]
        done = subprocess.run(
            ["/usr/sbin/debugfs", "-w", *options, *how, where],
            cwd=image.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "not found" not in done.stderr, done.stderr


def test_image_of_the_system_is_right(paths: tuple[Path, Path]) -> None:
    found = compare_image(*paths)
    assert found.all == {}
    assert found.entries == 20


def test_files_that_were_laid_over_the_system_are_named(tmp_path: Path) -> None:
    rootfs = system().write(tmp_path / "rootfs.tar.zst")
    image = tmp_path / "disk.img"
    files = {"/srv/new/file": File(b"new"), "/usr/empty": File(b"full")}
    make_image(rootfs, image, size=SIZE, hostname="after", files=files)
    assert compare_image(image, rootfs).all == {
        "etc/hostname": "size" if len("after\n") != len("before\n") else "content",
        "srv": "added",
        "srv/new": "added",
        "srv/new/file": "added",
        "usr/empty": "size",
    }


@pytest.mark.parametrize(
    ("commands", "found"),
    [
        (["sif usr/bin/su uid 5"], {"usr/bin/su": "owner", "usr/bin/su2": ""}),
        (["sif usr/bin/su mode 0100755"], {"usr/bin/su": "mode"}),
        (["rm usr/empty"], {"usr/empty": "it is missing"}),
        (["rm usr/short", "symlink usr/short bun"], {"usr/short": "content"}),
        (["rm usr/long", f"symlink usr/long {LONG[:-1]}x"], {"usr/long": "content"}),
        (["rm dev/null", "cd dev", "mkdir dev/null"], {"dev/null": "kind"}),
        (["sif dev/null block[0] 0x0105"], {"dev/null": "device"}),
        (["rm etc/hostname", "write evil etc/hostname"], {"etc/hostname": "content"}),
        (["write evil usr/bin/evil"], {"usr/bin/evil": "added"}),
        (["rm usr/bin/su2", "write evil usr/bin/su2"], {"usr/bin/su2": "it is no hard link"}),
        (["ea_set usr/empty security.capability cap"], {"usr/empty": "extended attributes"}),
        (
            ["ea_set usr/bin user.x y", "ea_set dev/null user.x y"],
            {"usr/bin": "extended attributes", "dev/null": "extended attributes"},
        ),
        (["sif / mode 040777"], {".": "mode"}),
        (["sif lost+found uid 1000"], {"lost+found": "owner"}),
        (["rmdir lost+found", "write evil lost+found"], {"lost+found": "kind"}),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_each_difference_is_named(
    paths: tuple[Path, Path], commands: list[str], found: dict[str, str]
) -> None:
    image, rootfs = paths
    (image.parent / "evil").write_bytes(b"Before\n")
    change(image, *commands)
    wrong = compare_image(image, rootfs).all
    assert {path: wrong.get(path, "") for path in found} == found
    assert len(wrong) == sum(bool(what) for what in found.values()), wrong


def test_kernel_on_the_boot_partition_is_compared(paths: tuple[Path, Path]) -> None:
    image, rootfs = paths
    where = f"{image.name}@@{MIB}"
    (image.parent / "link").symlink_to(image)
    (image.parent / "evil").write_bytes(b"evil kernel")
    subprocess.run(
        ["mcopy", "-o", "-i", f"link@@{MIB}", "evil", "::vmlinuz"], cwd=image.parent, check=True
    )
    assert compare_image(image, rootfs).all == {"vmlinuz on the boot partition": "content"}, where
    subprocess.run(["mdel", "-i", f"link@@{MIB}", "::vmlinuz"], cwd=image.parent, check=True)
    assert compare_image(image, rootfs).all == {"vmlinuz on the boot partition": "it is missing"}


def test_other_files_on_the_boot_partition_are_named(paths: tuple[Path, Path]) -> None:
    """The boot loader could start another kernel than the one that is compared."""
    image, rootfs = paths
    (image.parent / "link").symlink_to(image)
    (image.parent / "evil").write_bytes(b"evil kernel")
    boot = ["-i", f"link@@{MIB}"]
    subprocess.run(["mmd", *boot, "::folder"], cwd=image.parent, check=True)
    for name in ("Another Kernel", "folder/evil"):
        subprocess.run(["mcopy", *boot, "evil", f"::{name}"], cwd=image.parent, check=True)
    subprocess.run(["mattrib", *boot, "+h", "+s", "::Another Kernel"], cwd=image.parent, check=True)
    assert compare_image(image, rootfs).all == {
        "another kernel on the boot partition": "added",
        "folder/ on the boot partition": "added",
    }


def further_partition(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(446 + 2 * 16 + 4)
        file.write(b"\x83")


def journal(image: Path) -> None:
    (image.parent / "evil").write_bytes(b"e" * 4096)
    script = image.parent / "script"
    script.write_text("jo\njw -b 5000 evil\njc\n")
    change(image, "cd /", script=script)


def orphan(image: Path) -> None:
    change(image, "ssv last_orphan 12")


def slash_in_a_name(image: Path) -> None:
    """The answer of debugfs looks like one about two files."""
    change(image, "cd usr", "mkdir usr/x", "write /dev/null usr/x/fake_4_name", "mkdir usr/x/other")
    data = image.read_bytes()
    assert data.count(b"fake_4_name") == 1
    image.write_bytes(data.replace(b"fake_4_name", b"fake/4/\nnam"))
    (image.parent / "disk").unlink()
    change(image, "rmdir usr/x/other", options=["-n"])  # which writes a right checksum


def cut(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(ROOT + MIB)


def qcow2(image: Path) -> None:
    image.write_bytes(b"QFI\xfb" + bytes(1000))


def no_table(image: Path) -> None:
    image.write_bytes(bytes(1000))


def other_table(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(446 + 4)
        file.write(b"\x83")


def noise(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(ROOT)
        file.write(b"noise" * MIB)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, "is shorter than its partitions: it is not whole"),
        (qcow2, "is a qcow2: convert it: qemu-img convert -O raw a=b,c.img FILE"),
        (no_table, "is not a raw disk image: it has no partition table"),
        (other_table, "has other partitions than images of `image`"),
        (noise, "its second partition is no ext4 file system; an encrypted one cannot be compared"),
        (further_partition, "has other partitions than images of `image`"),
        (journal, "its root file system was in use when the image was copied"),
        (orphan, "its root file system was in use when the image was copied"),
        (slash_in_a_name, "is damaged, says e2fsck: Entry .* has illegal characters in its name"),
    ],
)
def test_what_is_no_image_is_an_error(
    paths: tuple[Path, Path], spoil: Callable[[Path], None], said: str
) -> None:
    image, rootfs = paths
    spoil(image)
    with pytest.raises(ImageError, match=said):
        compare_image(image, rootfs)


def test_folder_with_one_name_twice_is_an_error(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may open the other one."""
    listed = image_check._Reader._list

    def doubled(self: image_check._Reader, folders: Iterable[int]) -> Iterator[Any]:
        for one in listed(self, folders):
            yield from [one] * (1 + (one[2] == "short"))

    monkeypatch.setattr(image_check._Reader, "_list", doubled)
    with pytest.raises(ImageError, match="has /usr/short twice"):
        compare_image(*paths)


@pytest.mark.bound("IMAGE_ENTRIES")
def test_image_with_too_many_files_is_not_compared(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "IMAGE_ENTRIES", 5)
    with pytest.raises(ImageError, match="has more than 5 files and folders"):
        compare_image(*paths)
