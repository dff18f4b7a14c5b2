"""Makes a disk image that boots from a system artifact, or an archive of it.

Ordinary tools write into an ordinary file, without root rights, loop devices or mounts.  The same
input gives the same bytes with the same versions of these tools.  Unwritten parts are holes of the
file.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from fabric.building.image_disk import MIB, Disk, check_tools, run
from fabric.building.image_rootfs import File, ImageError, files_below, overlay, survey, write_tar
from fabric.errors import NO_ROOM
from fabric.host.files import beside
from fabric.host.progress import Progress, silent

__all__ = [
    "MACHINES",
    "File",
    "Image",
    "ImageError",
    "Machine",
    "files_below",
    "make_archive",
    "make_image",
]

#: The rest of the kernel's command line: consoles on the screen and the serial line.  The last one
#: gets init's output.
KERNEL_ARGUMENTS = "console=tty0 console=ttyS0,115200"


class Machine(msgspec.Struct, frozen=True):
    """The machines of an architecture."""

    qemu: str = ""  # QEMU's program for it, and a machine with virtio devices; "": not known
    loader: bool = False  # whether the boot loader of images can start them
    arguments: str = ""  # of the kernel; "": the firmware names the console


_X86 = Machine("qemu-system-x86_64", loader=True, arguments=KERNEL_ARGUMENTS)
_ARM = Machine("qemu-system-aarch64 -M virt -cpu cortex-a57")
#: By architecture.
MACHINES = {"x86_64": _X86, "x86_32": _X86, "aarch64": _ARM, "armv8l64": _ARM}


class Image(msgspec.Struct, frozen=True):
    """A finished image."""

    path: Path
    size: int  # of the disk, in bytes
    used: int  # bytes of disk that the file takes
    uuid: str  # of the root filesystem
    kernel: str  # path in the system: "/boot/vmlinuz-6.12"
    initrd: str  # path in the system, "" if it has none
    arguments: str  # the kernel's command line


def make_image(
    rootfs: Path,
    to: Path,
    *,
    size: int,
    label: str = "system",
    hostname: str | None = None,
    files: Mapping[str, File] | None = None,
    kernel_args: str = KERNEL_ARGUMENTS,
    loader: bool = True,
    format: Literal["raw", "qcow2"] = "raw",
    force: bool = False,
    progress: Progress = silent,
) -> Image:
    """Make a bootable disk of ``size`` bytes at ``to`` from ``rootfs``, a system's tar.zst.

    ``label`` names the root filesystem (1 to 16 bytes); ``files`` are laid over the system by
    path, before the first boot, and ``hostname`` is one more of them.  The kernel is
    /boot/vmlinuz, else the newest /boot/vmlinuz-VERSION, with the initrd of its version if there
    is one; without one it must have the disk's driver and ext4 built in.  ``kernel_args`` follow
    ``root=... rw`` on its command line.  Without ``loader``, the disk has no boot loader: whatever
    starts the machine needs the kernel and its command line.

    The image appears under its name only when it is whole, with mode 0600, since it contains files
    that only root of the system may read.  ImageError if ``to`` exists (unless ``force``), if the
    disk is too small (the error has the size needed) or full, or if a tool is missing.
    """
    check_tools(loader=loader, qcow2=format == "qcow2")
    _refuse_existing(to, force)
    if not re.fullmatch(r"[\w.+-]{1,16}", label, re.ASCII):
        raise ImageError(f"label {label!r}: 1 to 16 letters, digits, and . _ + -")
    if not kernel_args.isprintable():
        raise ImageError(f"kernel arguments {kernel_args!r} are not one line of text")
    laid = _with_hostname(files or {}, hostname)
    with _scratch(to) as scratch:
        progress("reading the files of the system")
        found = survey(rootfs, scratch)
        disk = Disk.plan(found, overlay(laid, found), size, label, kernel_args, loader=loader)
        image = scratch / "disk.raw"
        disk.write_table(image)
        progress(f"writing the root filesystem, {found.entries} files and folders")
        disk.write_root(rootfs, image, scratch)
        progress(f"installing {'the boot loader and ' if loader else ''}{disk.kernel}")
        disk.write_boot(image, scratch)
        run(scratch, "fallocate", "--dig-holes", image.name)
        if format == "qcow2":
            progress("converting to qcow2")
            raw, image = image, scratch / "disk.qcow2"
            convert = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2")
            run(scratch, *convert, raw.name, image.name)
        _place(image, to, force)
    used = to.stat().st_blocks * 512
    return Image(to, disk.size, used, disk.uuid, disk.kernel, disk.initrd, disk.arguments)


def make_archive(
    rootfs: Path,
    to: Path,
    *,
    hostname: str | None = None,
    files: Mapping[str, File] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> int:
    """Make a plain tar of ``rootfs`` with ``files`` over it; see `make_image`.  Return its size."""
    _refuse_existing(to, force)
    laid = _with_hostname(files or {}, hostname)
    with _scratch(to) as scratch:
        progress("reading the files of the system")
        found = survey(rootfs, scratch)
        progress(f"writing {found.entries} files and folders")
        archive = scratch / "system.tar"
        archive.touch(0o600)
        with archive.open("wb") as out:
            write_tar(rootfs, overlay(laid, found), out)
        _place(archive, to, force)
    return to.stat().st_size


def _with_hostname(files: Mapping[str, File], hostname: str | None) -> dict[str, File]:
    if hostname is None:
        return dict(files)
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", hostname):
        raise ImageError(f"host name {hostname!r}: letters, digits, and - . within, at most 64")
    return {**files, "/etc/hostname": File(f"{hostname}\n".encode())}


@contextmanager
def _scratch(to: Path) -> Iterator[Path]:
    """A folder beside ``to``, so that the image can be renamed; removed at the end.

    ImageError if the system gives an error.
    """
    try:
        path = Path(tempfile.mkdtemp(prefix=beside(to), dir=to.parent.absolute()))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        if error.errno in NO_ROOM:
            free = shutil.disk_usage(to.parent).free // MIB
            raise ImageError(
                f"no space left for {to}: {free} MiB are free in {to.parent};"
                " make room there or write the image elsewhere"
            ) from error
        raise ImageError(f"cannot make {to}: {error}") from error


def _place(image: Path, to: Path, force: bool) -> None:
    """Give a whole image its name."""
    with image.open("rb") as whole:
        os.fsync(whole.fileno())
    _refuse_existing(to, force)
    image.replace(to)


def _refuse_existing(to: Path, force: bool) -> None:
    if to.is_dir():
        raise ImageError(f"{to} is a folder: name the image's file")
    if to.exists() and not to.is_file():
        raise ImageError(f"{to} is not an ordinary file: write the image elsewhere and copy it")
    if to.exists() and not force:
        raise ImageError(f"{to} exists already: remove it, or force its replacement")
