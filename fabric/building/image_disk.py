"""Lays out the disk of an image, and runs the tools that write it.

The disk has an MBR and two partitions: a small FAT16 with syslinux, kernel and initrd, and an ext4
with the root filesystem.  Only machines of x86 can run syslinux: a disk for others has no boot
loader, and a virtual machine gets the kernel and its command line otherwise.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import struct
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import msgspec

from fabric.building.image_rootfs import BLOCK, EPOCH, File, ImageError, Survey, write_tar

MIB = 1024 * 1024
#: The umask under which tools write parts of an image.
PRIVATE = 0o077
_SECTOR = 512
_START = MIB  # of the boot partition
_LARGEST = _SECTOR << 32  # a partition table has 32 bits for a number of sectors
_INODE = 256
_NAMESPACE = uuid.UUID("6e0f8f6e-5c1c-5e0b-9d0c-1f0d8ad6a5b5")
# so that this machine's own mke2fs.conf has no effect
_MKE2FS = f"""[defaults]
 base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
 default_mntopts = acl,user_xattr
 enable_periodic_fsck = 0
 blocksize = {BLOCK}
 inode_size = {_INODE}
 inode_ratio = 32768
[fs_types]
 ext4 = {{
  features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
 }}
"""
_PACKAGES = {
    "fallocate": "util-linux",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.fat": "dosfstools",
    "qemu-img": "qemu-utils",
    "syslinux": "syslinux",
}
_MBR_CODE = (Path("/usr/lib/syslinux/mbr/mbr.bin"), Path("/usr/share/syslinux/mbr.bin"))
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The layout of a disk.  Offsets and sizes are in bytes, multiples of a MiB."""

    size: int
    boot_size: int  # of the FAT partition
    root_offset: int
    root_size: int
    inodes: int
    journal: int
    label: str  # of the root filesystem
    identity: str  # digest of all inputs of the image; the UUIDs come from it
    kernel: str  # its path in the system
    initrd: str  # its path in the system, or ""
    boot: tuple[tuple[str, Path], ...]  # name on the boot partition, a copy of the file
    more_arguments: str
    loader: bool  # whether it has a boot loader
    placed: Mapping[str, File]  # laid over the system

    @classmethod
    def plan(
        cls,
        found: Survey,
        placed: Mapping[str, File],
        size: int,
        label: str,
        arguments: str,
        *,
        loader: bool,
    ) -> Disk:
        """Choose a kernel and lay out the disk.  ImageError: no kernel, or a disk too small or
        too large.
        """
        kernel, initrd = choose_kernel(found)
        boot = [("vmlinuz", found.boot[kernel])]
        if initrd:
            boot.append(("initrd.img", found.boot[initrd]))
        boot_size = max(16 * MIB, _mib(sum(file.stat().st_size for _, file in boot) + 2 * MIB))
        size = size // MIB * MIB
        root_offset = _START + boot_size
        root_size = size - root_offset
        entries = found.entries + 2 * len(placed)
        blocks = found.blocks + sum(1 + -(-len(file.data) // BLOCK) for file in placed.values())
        journal = 64 * MIB if root_size >= 2048 * MIB else 16 * MIB
        inodes = max(root_size // 32768, entries * 5 // 4 + 64)
        content = blocks * BLOCK + entries * 5 // 4 * _INODE + journal
        needed = root_offset + _mib(content * 103 // 100 + 6 * MIB)
        if size < needed:
            raise _too_small(size, needed)
        if size > _LARGEST:
            raise ImageError(
                f"a disk of {size // MIB} MiB is too large for its partition table: at most"
                f" {_LARGEST // MIB} MiB (2T)"
            )
        everything = (found.sha256, sorted(placed.items()), size, label, arguments)
        return cls(
            size=size,
            boot_size=boot_size,
            root_offset=root_offset,
            root_size=root_size,
            inodes=inodes,
            journal=journal,
            label=label,
            identity=hashlib.sha256(repr(everything).encode("utf-8", "replace")).hexdigest(),
            kernel=f"/{kernel}",
            initrd=f"/{initrd}" if initrd else "",
            boot=tuple(boot),
            more_arguments=arguments,
            loader=loader,
            placed=placed,
        )

    @property
    def uuid(self) -> str:
        return str(uuid.uuid5(_NAMESPACE, self.identity))

    @property
    def signature(self) -> int:
        """The MBR's disk signature: 32 bits, never 0."""
        return int(self.identity[:8], 16) or 1

    @property
    def arguments(self) -> str:
        """The kernel's command line."""
        # without an initrd, the kernel finds partitions, but no filesystems
        root = f"UUID={self.uuid}" if self.initrd else f"PARTUUID={self.signature:08x}-02"
        return f"root={root} rw {self.more_arguments}".strip()

    def write_table(self, image: Path) -> None:
        """A new file: the empty disk with its partition table, and boot code if any."""

        def entry(active: int, kind: int, offset: int, size: int) -> bytes:
            far = b"\xfe\xff\xff"  # cylinders and heads: out of range
            first, count = offset // _SECTOR, size // _SECTOR
            return struct.pack("<B3sB3sII", active, far, kind, far, first, count)

        code = b""
        if self.loader:
            code = next(path for path in _MBR_CODE if path.exists()).read_bytes()
        table = entry(0x80, 0x0E, _START, self.boot_size)
        table += entry(0, 0x83, self.root_offset, self.root_size)
        with private_file(image) as disk:
            disk.truncate(self.size)
            disk.write(code.ljust(440, b"\0"))
            disk.write(struct.pack("<IH", self.signature, 0) + table.ljust(64, b"\0") + b"\x55\xaa")

    def write_root(self, rootfs: Path, image: Path, scratch: Path) -> None:
        """The root filesystem, streamed from the archive through mke2fs onto the disk."""
        config = scratch / "mke2fs.conf"
        config.write_text(_MKE2FS)
        options = (
            f"offset={self.root_offset},root_owner=0:0,nodiscard,"
            f"hash_seed={uuid.uuid5(_NAMESPACE, f'hash {self.identity}')},"
            "lazy_itable_init=0,lazy_journal_init=0"  # otherwise the first boot does it
        )
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", self.label, "-U", self.uuid]
        command += ["-m", "1", "-N", str(self.inodes), "-J", f"size={self.journal // MIB}"]
        command += ["-E", options, "-d", "-", image.name, f"{self.root_size // 1024}k"]
        variables = environment(scratch) | {"MKE2FS_CONFIG": str(config)}
        with (scratch / "mke2fs.err").open("w+") as complaints:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                cwd=scratch,
                env=variables,
                umask=PRIVATE,
            )
            assert process.stdin is not None
            try:
                with process.stdin as pipe:
                    write_tar(rootfs, self.placed, pipe)
            except BrokenPipeError:
                pass  # mke2fs has ended, and its error is reported below
            except BaseException:
                process.kill()
                raise
            finally:
                process.wait()
            if process.returncode:
                complaints.seek(0)
                raise self._explain(complaints.read().strip())

    def write_boot(self, image: Path, scratch: Path) -> None:
        """The boot partition: FAT16, boot loader, kernel, initrd."""
        config = scratch / "syslinux.cfg"
        lines = ["SERIAL 0 115200", "DEFAULT linux", "PROMPT 0", "LABEL linux", " LINUX vmlinuz"]
        lines += [" INITRD initrd.img"] if self.initrd else []
        config.write_text("\n".join([*lines, f" APPEND {self.arguments}", ""]))
        # FAT16 has 4085 to 65524 clusters
        cluster = 4 if self.boot_size < 100 * MIB else 32
        make = ["mkfs.fat", "-F", "16", "-s", str(cluster), "-n", "BOOT", "--invariant"]
        make += ["-i", self.identity[8:16], "--offset", str(_START // _SECTOR)]
        make += ["-h", str(_START // _SECTOR), image.name, str(self.boot_size // 1024)]
        run(scratch, *make)
        files = list(self.boot)
        if self.loader:
            run(scratch, "syslinux", "--install", "--offset", str(_START), image.name)
            files.append(("syslinux.cfg", config))
        for name, file in files:
            os.utime(file, (EPOCH, EPOCH))
            run(scratch, "mcopy", "-m", "-i", f"{image.name}@@{_START}", file.name, f"::{name}")

    def _explain(self, complaint: str) -> ImageError | OSError:
        if "libarchive" in complaint:
            return ImageError(
                "mke2fs cannot read archives: install the Debian package libarchive13t64"
                f" (it says: {complaint})"
            )
        if os.strerror(errno.ENOSPC) in complaint:
            return OSError(errno.ENOSPC, complaint)
        if "allocate" in complaint:
            return _too_small(self.size, self.size * 5 // 4)
        return ImageError(f"mke2fs could not make the root filesystem: {complaint}")


def choose_kernel(found: Survey) -> tuple[str, str]:
    """The kernel's and the initrd's path in the system ("" for none).  ImageError: no kernel."""
    kernel = found.follow("boot/vmlinuz") if "boot/vmlinuz" in found.kinds else ""
    if kernel not in found.boot:
        kernels = [path for path in found.boot if path.startswith("boot/vmlinuz-")]
        kernel = max(kernels, key=_version, default="")
    if not kernel:
        raise ImageError(
            "the system has no kernel: an image needs a file /boot/vmlinuz or /boot/vmlinuz-VERSION"
        )
    version = kernel.removeprefix("boot/vmlinuz")
    for name in (f"boot/initrd.img{version}", f"boot/initrd{version}", "boot/initrd.img"):
        initrd = found.follow(name) if name in found.kinds else ""
        if initrd in found.boot:
            return kernel, initrd
    return kernel, ""


def check_tools(*, loader: bool, qcow2: bool) -> None:
    """ImageError, with the Debian packages to install, if a tool is missing."""
    unused = {"syslinux": not loader, "qemu-img": not qcow2}
    tools = [tool for tool in _PACKAGES if not unused.get(tool)]
    missing = {_PACKAGES[tool]: tool for tool in tools if shutil.which(tool, path=_PATH) is None}
    if loader and not any(path.exists() for path in _MBR_CODE):
        missing["syslinux-common"] = "mbr.bin"
    if missing:
        raise ImageError(
            f"disk images need {', '.join(missing.values())}:"
            f" install the Debian packages {' '.join(sorted(missing))}"
        )


def debug_tools() -> None:
    """ImageError if a tool is missing that reads images."""
    packages = {"debugfs": "e2fsprogs", "e2fsck": "e2fsprogs", "mcopy": "mtools", "mdir": "mtools"}
    if missing := [tool for tool in packages if shutil.which(tool, path=_PATH) is None]:
        names = " ".join(sorted({packages[tool] for tool in missing}))
        raise ImageError(
            f"to read a disk image needs {', '.join(missing)}: install the Debian packages {names}"
        )


def private_file(path: Path) -> IO[bytes]:
    """A new file of mode 0600, since an image has host keys and password hashes."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b")


def run(scratch: Path, *command: str) -> None:
    """Run a tool, reproducibly.  ImageError, with the tool's output, if it fails.

    All files are named relative to ``scratch``: in a path of the user's, mtools and QEMU would see
    drives, offsets and protocols.  Other users cannot read the files that it makes.
    """
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=scratch,
        env=environment(scratch),
        umask=PRIVATE,
        check=False,
    )
    if result.returncode:
        said = (result.stderr or result.stdout).strip()
        if os.strerror(errno.ENOSPC) in said:
            raise OSError(errno.ENOSPC, said)
        raise ImageError(f"{command[0]} failed with exit code {result.returncode}: {said}")


def environment(scratch: Path) -> dict[str, str]:
    """The whole environment of a tool."""
    return {
        "PATH": _PATH,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LC_ALL": "C.UTF-8",  # file names are taken as they are
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "E2FSPROGS_FAKE_TIME": str(EPOCH),
        "MTOOLS_SKIP_CHECK": "1",
        "UNIX_IO_NOZEROOUT": "1",  # mke2fs: write zeros, which then become holes
    }


def _too_small(size: int, needed: int) -> ImageError:
    return ImageError(
        f"a disk of {size // MIB} MiB is too small for this system:"
        f" it needs at least {_mib(needed) // MIB} MiB, and room to work in"
    )


def _version(path: str) -> list[tuple[int, int, str]]:
    """Sorts 6.9 before 6.12."""
    parts = re.findall(r"\d+|\D+", path)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _mib(size: int) -> int:
    """``size`` rounded up to whole MiB."""
    return -(-size // MIB) * MIB
