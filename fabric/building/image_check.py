"""Compares a disk image with the system artifact that it should have been made of.

Nothing is mounted, and no rights are needed: e2fsck, debugfs and mtools read the image, which is
opened for reading only, and only a piece of a file is in memory at a time.  Times are not compared,
nor the boot loader and its settings, which are not the system's.
"""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from fabric import bounds
from fabric.building.image_disk import debug_tools, environment
from fabric.building.image_rootfs import ImageError, members, normal
from fabric.errors import in_line

_SECTOR = 512
_PIECE = 1 << 20
_LONGEST = 1024  # more than a line of debugfs about an entry, whose name has at most 255 bytes
_ROOT = 2  # inode of a root directory
#: A line of ``ls -l -p``: /inode/mode/uid/gid/name/size/
_LINE = re.compile(rb"/(\d+)/([0-7]+)/(\d+)/(\d+)/(.*)/(\d*)/\n\Z", re.DOTALL)
#: Offset and size of a superblock, and the offset in it of the number that ext4 begins with.
_SUPERBLOCK, _MAGIC = 1024, 0x38
#: (offset in a superblock, bits) that tell of work which a mount would finish: a journal to be
#: replayed, the first file to be removed, more of these in a file.
_UNFINISHED = ((0x60, 0x4), (0xE8, 0xFFFFFFFF), (0x64, 0x10000))
#: Symbolic links up to this length are in their inode.
_FAST = 60
#: Made by mke2fs.
_OURS = "lost+found"
#: Names on the boot partition that are copies of files of the system: name -> what they begin with.
_BOOT = {"vmlinuz": "boot/vmlinuz", "initrd.img": "boot/initrd"}
#: The boot loader's own files there.  It could start another kernel, if there were one.
_LOADER = {"ldlinux.sys", "ldlinux.c32", "syslinux.cfg"}
#: Types of the four partitions in an MBR: FAT16, Linux, none.
_PARTITIONS = (0x0E, 0x83, 0, 0)


class Node(msgspec.Struct, frozen=True):
    """A file, folder or other entry of a file system."""

    inode: int
    mode: int  # as in ``stat``
    uid: int
    gid: int
    size: int


class Differences(msgspec.Struct):
    """The paths at which an image is not the system, each sorted."""

    entries: int = 0  # that were compared
    changed: dict[str, str] = {}  # path -> what differs: "content", "owner" ...
    missing: list[str] = []
    added: list[str] = []

    @property
    def all(self) -> dict[str, str]:
        """Path -> what is wrong there."""
        found = dict.fromkeys(self.missing, "it is missing") | dict.fromkeys(self.added, "added")
        return dict(sorted({**found, **self.changed}.items()))


def compare_image(image: Path, rootfs: Path) -> Differences:
    """Compare a raw image with ``rootfs``, a system's tar.zst.

    ImageError if it is no such image, cannot be read, or a tool is missing.
    """
    debug_tools()
    with tempfile.TemporaryDirectory(prefix="fabric-image-") as folder:
        reader = _Reader(image.absolute(), Path(folder))
        found = Differences()
        nodes = reader.walk()
        digests = _compare(rootfs, nodes, reader, found)
        reader.find_attributes(nodes, found)
        for name in reader.boot_files() - _BOOT.keys() - _LOADER:
            found.added.append(f"{name} on the boot partition")
        for name, prefix in _BOOT.items():
            content = reader.boot_file(name)
            theirs = {digest for path, digest in digests.items() if path.startswith(prefix)}
            if content is None and name == "vmlinuz":
                found.missing.append(f"{name} on the boot partition")
            if content is not None and content not in theirs:
                found.changed[f"{name} on the boot partition"] = "content"
        found.missing.sort()
        found.added.sort()
        return found


def _compare(
    rootfs: Path, nodes: Mapping[str, Node], reader: _Reader, found: Differences
) -> dict[str, str]:
    """Compare all entries; returns the digests of the system's kernels and initrds by path."""
    seen: set[str] = set()
    files: list[tuple[str, Node]] = []  # whose contents are to be compared, in the archive's order
    with members(rootfs) as each:
        for member, _ in each:
            path = normal(member.name)
            seen.add(path)
            found.entries += 1
            node = nodes.get(path)
            if node is None:
                found.missing.append(path)
                continue
            if member.islnk():
                target = nodes.get(normal(member.linkname))
                if target is not None and target.inode != node.inode:
                    found.changed[path] = "it is no hard link"
                continue
            if what := _difference(member.type, member.mode, member.uid, member.gid, node):
                found.changed[path] = what
            elif not member.isdir() and not member.isfifo():
                size = len(member.linkname.encode("utf-8", "surrogateescape"))
                if not member.ischr() and not member.isblk():
                    size = member.size if member.isreg() else size
                    if size != node.size:
                        found.changed[path] = "size"
                        continue
                files.append((path, node))
    made = {path[:end] for path in seen for end in _slashes(path)} | {"."}
    others = {path: (0o755, nodes[path]) for path in made - seen if path in nodes}
    if _OURS in nodes and _OURS not in seen:
        others[_OURS] = 0o700, nodes[_OURS]
    for path, (mode, node) in others.items():
        if what := _difference(tarfile.DIRTYPE, mode, 0, 0, node):
            found.changed[path] = what
    found.added = list(nodes.keys() - seen - others.keys())
    return _compare_contents(rootfs, files, reader, found)


def _difference(kind: bytes, mode: int, uid: int, gid: int, node: Node) -> str:
    if _KINDS.get(kind) != node.mode >> 12:
        return "kind"
    if (uid, gid) != (node.uid, node.gid):
        return "owner"
    return "mode" if mode & 0o7777 != node.mode & 0o7777 else ""


#: Types of tar members -> the bits of a mode that tell the type.
_KINDS = {b"0": 0o10, b"\0": 0o10, b"2": 0o12, b"3": 0o02, b"4": 0o06, b"5": 0o04, b"6": 0o01}


def _compare_contents(
    rootfs: Path, files: Sequence[tuple[str, Node]], reader: _Reader, found: Differences
) -> dict[str, str]:
    digests: dict[str, str] = {}
    commands = [_content_command(node) for _, node in files]
    wanted = iter(files)
    following = next(wanted, None)
    with reader.debug(commands) as output, members(rootfs) as each:
        for member, content in each:
            if following is None:
                break
            path, node = following
            if normal(member.name) != path or member.islnk():
                continue
            following = next(wanted, None)
            _echo(output, _content_command(node))
            if member.isreg():
                same, digest = _same(output, content(), member.size)
                if path.startswith("boot/"):
                    digests[path] = digest
            elif member.issym():
                target = member.linkname.encode("utf-8", "surrogateescape")
                fast = b'Fast link dest: "%b"\n' % target
                short = len(target) < _FAST
                same = (
                    _answer(output).endswith(fast) if short else output.read(len(target)) == target
                )
            else:
                number = f"Device major/minor number: {member.devmajor:02d}:{member.devminor:02d} "
                same = number.encode() in _answer(output)
            if not same:
                found.changed[path] = "device" if member.ischr() or member.isblk() else "content"
    return digests


def _content_command(node: Node) -> str:
    inline = (node.mode >> 12 == 0o12 and node.size < _FAST) or node.mode >> 12 in (0o02, 0o06)
    return f"{'stat' if inline else 'cat'} <{node.inode}>"


def _echo(output: IO[bytes], command: str) -> None:
    """Read what debugfs prints before the answer to a command."""
    expected = f"debugfs: {command}\n".encode()
    if output.read(len(expected)) != expected:
        raise _unexpected()


def _unexpected() -> ImageError:
    return ImageError("debugfs gave another answer than expected: the file system is damaged")


def _answer(output: IO[bytes]) -> bytes:
    """The answer of ``stat``, up to its last line."""
    lines = b""
    while len(lines) < _PIECE and (line := output.readline(_PIECE)):
        lines += line
        if line.startswith((b"Fast link dest: ", b"Device major/minor number: ")):
            break
    return lines


def _same(output: IO[bytes], content: IO[bytes], size: int) -> tuple[bool, str]:
    """Whether the next ``size`` bytes are those of ``content``; and the digest of the latter."""
    same, digest = True, hashlib.sha256()
    while size:
        theirs = content.read(min(size, _PIECE))
        digest.update(theirs)
        same = output.read(len(theirs)) == theirs and same
        size -= len(theirs)
    return same, digest.hexdigest()


def _slashes(path: str) -> Iterator[int]:
    return (place for place, letter in enumerate(path) if letter == "/")


class _Reader:
    """Reads an image by programs."""

    def __init__(self, image: Path, scratch: Path) -> None:
        self._image = image
        self._scratch = scratch
        (scratch / "image").symlink_to(image)  # tools see no drive or option in its path
        with image.open("rb") as file:
            head = file.read(_SECTOR)
        if head.startswith(b"QFI\xfb"):
            raise ImageError(
                f"{image} is a qcow2: convert it: qemu-img convert -O raw {image.name} FILE"
            )
        if len(head) < _SECTOR or head[510:] != b"\x55\xaa":
            raise ImageError(f"{image} is not a raw disk image: it has no partition table")
        parts = [struct.unpack_from("<B3xB3xII", head, 446 + 16 * n) for n in range(4)]
        if tuple(part[1] for part in parts) != _PARTITIONS:
            raise ImageError(f"{image} has other partitions than images of `image`")
        if image.stat().st_size < max(part[2] + part[3] for part in parts) * _SECTOR:
            raise ImageError(f"{image} is shorter than its partitions: it is not whole")
        self._boot, self._root = (part[2] * _SECTOR for part in parts[:2])
        self._demand_whole()

    def _demand_whole(self) -> None:
        """ImageError if the kernel might find other files than debugfs in the root file system."""
        with self._image.open("rb") as file:
            file.seek(self._root + _SUPERBLOCK)
            block = file.read(_SUPERBLOCK)
        if len(block) < _SUPERBLOCK or block[_MAGIC : _MAGIC + 2] != b"\x53\xef":
            raise ImageError(
                f"{self._image}: its second partition is no ext4 file system; an encrypted one"
                " cannot be compared"
            )
        if any(struct.unpack_from("<I", block, at)[0] & bits for at, bits in _UNFINISHED):
            raise ImageError(
                f"{self._image}: its root file system was in use when the image was copied: to"
                " mount it changes files"
            )
        # names with "/", folders in themselves, blocks of two files: nothing below expects them
        code, said = self._ask("e2fsck", "-f", "-n", f"image?offset={self._root}")
        if code:
            why = next((line for line in said if line and not line.startswith("Pass ")), "")
            raise ImageError(
                f"{self._image}: its root file system is damaged, says e2fsck: {in_line(why)}"
            )

    def walk(self) -> dict[str, Node]:
        """All entries of the root file system by path; the root is "."."""
        found: dict[str, Node] = {}
        level = {_ROOT: ""}
        while level:
            below: dict[int, str] = {}
            for inode, node, name in self._list(level):
                path = level[inode] + name
                if name == ".":
                    if inode == _ROOT:
                        found["."] = node
                    continue
                if name == "..":
                    continue
                if path in found:  # the kernel may open the other one
                    raise ImageError(f"{self._image} has /{in_line(path)} twice")
                found[path] = node
                if node.mode >> 12 == 0o04:
                    below[node.inode] = f"{path}/"
                if len(found) > bounds.IMAGE_ENTRIES:
                    raise ImageError(
                        f"{self._image} has more than {bounds.IMAGE_ENTRIES:,} files and folders"
                    )
            level = below
        return found

    def _list(self, folders: Iterable[int]) -> Iterator[tuple[int, Node, str]]:
        """(inode of a folder, entry, its name) of all entries in these folders."""
        names = list(folders)
        with self.debug([f"ls -l -p <{inode}>" for inode in names]) as output:
            for inode in names:
                _echo(output, f"ls -l -p <{inode}>")
                while (line := output.readline(_PIECE)) != b"\n":
                    while (match := _LINE.match(line)) is None and len(line) < _LONGEST:
                        more = output.readline(_PIECE)  # names may have newlines
                        if not more:
                            break
                        line += more
                    if match is None:
                        raise ImageError(f"{self._image}: debugfs cannot list a folder of it")
                    number, mode, uid, gid, name, size = match.groups()
                    node = Node(int(number), int(mode, 8), int(uid), int(gid), int(size or b"0"))
                    if node.inode:  # else unused
                        yield inode, node, name.decode("utf-8", "surrogateescape")

    @contextmanager
    def debug(self, commands: Sequence[str]) -> Iterator[IO[bytes]]:
        """The output of debugfs for commands, which it prints before each answer."""
        script = self._scratch / "commands"
        script.write_text("".join(f"{command}\n" for command in commands))
        process = self._start("debugfs", "-f", script.name, f"image?offset={self._root}")
        assert process.stdout is not None
        try:
            with process.stdout as output:
                yield output
        finally:
            process.kill()
            process.wait()

    def find_attributes(self, nodes: Mapping[str, Node], found: Differences) -> None:
        """Note the entries with extended attributes: images have none, and one may be a right."""
        entries = [(path, f"ea_list <{node.inode}>") for path, node in nodes.items()]
        with self.debug([command for _, command in entries]) as output:
            line = output.readline(_PIECE)
            for path, command in entries:
                if line != f"debugfs: {command}\n".encode():
                    raise _unexpected()
                line = output.readline(_PIECE)
                if line and not line.startswith(b"debugfs: "):
                    found.changed.setdefault(path, "extended attributes")
                while line and not line.startswith(b"debugfs: "):
                    line = output.readline(_PIECE)

    def boot_files(self) -> set[str]:
        """The names of the files and folders on the boot partition, in lower case."""
        _, lines = self._ask("mdir", "-a", "-b", "-i", f"image@@{self._boot}", "::")
        return {in_line(line.removeprefix("::/")).lower() for line in lines}

    def _ask(self, *command: str) -> tuple[int, list[str]]:
        """The exit code of a tool, and the first lines that it prints."""
        with self._start(*command) as process:
            assert process.stdout is not None
            said = process.stdout.read(_PIECE)
            if len(said) == _PIECE:
                process.kill()  # it may go on for ever
        return process.returncode, said.decode(errors="replace").splitlines()

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        """A tool that reads the image, which is the file ``image`` in its folder."""
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._scratch,
            env=environment(self._scratch),
        )

    def boot_file(self, name: str) -> str | None:
        """The digest of a file on the boot partition; None if there is none."""
        digest = hashlib.sha256()
        with self._start("mcopy", "-i", f"image@@{self._boot}", f"::{name}", "-") as process:
            assert process.stdout is not None
            while piece := process.stdout.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest() if process.returncode == 0 else None
