"""An image of Debian's kernel and a static busybox boots, without anything built here."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from qemu import Machine

from fabric.building.image import File, make_image
from fabric.config import load_settings
from fabric.trove.configured import open_sources

ROOT = Path(__file__).parents[2]
INITTAB = b"""\
::sysinit:/bin/mount -t devtmpfs dev /dev
::sysinit:/bin/mount -t proc proc /proc
::sysinit:/bin/hostname -F /etc/hostname
ttyS0::respawn:/bin/getty -L 115200 ttyS0 vt100
::shutdown:/bin/umount -a -r
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A system of one program, with Debian's kernel."""
    settings = load_settings()
    sources = open_sources(settings, ROOT / "sources")
    [pinned] = [lorry for lorry in sources.lorries if lorry.name == "debian-linux"]
    packages = sources.export(sources.resolve(pinned.repo, pinned.ref))
    [package] = packages.glob("linux-image-*.deb")
    unpacked = tmp_path / "kernel"
    subprocess.run(["dpkg-deb", "--extract", str(package), str(unpacked)], check=True)
    [kernel] = (unpacked / "boot").glob("vmlinuz-*")
    busybox = shutil.which("busybox")
    assert busybox, "install the Debian package busybox-static"

    archive = tmp_path / "rootfs.tar.zst"
    with (
        archive.open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):

        def add(name: str, data: bytes, mode: int = 0o644) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))

        for name in ("bin", "boot", "dev", "etc", "proc", "root", "sbin"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        add(f"boot/{kernel.name}", kernel.read_bytes())
        add("bin/busybox", Path(busybox).read_bytes(), 0o755)
        applets = ("cat", "getty", "hostname", "login", "mount", "poweroff", "sh", "stat", "umount")
        for name in applets:
            member = tarfile.TarInfo(f"bin/{name}")
            member.type, member.linkname = tarfile.LNKTYPE, "bin/busybox"
            member.mode = 0o755
            tar.addfile(member)
        member = tarfile.TarInfo("sbin/init")
        member.type, member.linkname = tarfile.SYMTYPE, "../bin/busybox"
        tar.addfile(member)
        add("etc/inittab", INITTAB)
        add("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    return archive


@pytest.mark.system
@pytest.mark.timeout(900)
def test_image_boots_without_an_initrd(rootfs: Path, tmp_path: Path) -> None:
    image = make_image(
        rootfs,
        tmp_path / "disk.img",
        size=128 * 1024 * 1024,
        label="handmade",
        hostname="handmade-1",
        files={"root/laid-over": File(b"before the first boot\n", 0o600, 12, 34)},
    )
    # the kernel has ext4 and NVMe built in, and so needs no initrd
    assert image.initrd == ""
    with Machine(image.path, disk="nvme", memory="256M") as machine:
        machine.wait_for(r"handmade-1 login: ", 600)
        machine.send("root")
        machine.wait_for(r"# ", 60)
        assert machine.run("cat /root/laid-over", 60) == (0, "before the first boot")
        assert machine.run("stat -c '%u %g %a' /root/laid-over", 60) == (0, "12 34 600")
        assert image.arguments in machine.run("cat /proc/cmdline", 60)[1]
        assert machine.run("echo written > /root/file && cat /root/file", 60) == (0, "written")
        machine.send("poweroff")
        machine.wait_end(120)
