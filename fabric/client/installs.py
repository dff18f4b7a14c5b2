"""Installs artifacts in a running machine over ssh, and takes them away again.

The machine needs a POSIX shell and tar, as busybox has them.  The files arrive below the folder
``/var/lib/distbuild/edits/ID``; the machine changes only when all are there.  A file is replaced by
renaming, so that no program sees half of it, and what it replaces is kept in the same folder until
`undo`::

    old/        the replaced files
    added       the files that replaced none
    folders     the folders that were made
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import zstandard

from fabric.building import archive
from fabric.building.archive import FILE, Entry
from fabric.errors import FabricError, MachineFault

#: The two blocks that end an archive.
_END = bytes(1024)
_PIECE = 1 << 20
#: The last entry: an archive without it is not whole.
_WHOLE = b".distbuild-whole"

_START = """\
set -eu
umask 022
root={root}
here=$root/var/lib/distbuild/edits/{id}
put() {{
    rm -f "$root/${{1%/*}}/.distbuild-new"
    cp -a "$1" "$root/${{1%/*}}/.distbuild-new"
    [ ! -L "$root/$1" ] || rm -f "$root/$1"  # mv goes into a folder that a link leads to
    mv -f "$root/${{1%/*}}/.distbuild-new" "$root/$1"
}}
"""
_INSTALL = """\
rm -rf "$here/new"
mkdir -p "$here/new" "$here/old"
touch "$here/added" "$here/folders"
tar -xpf - -C "$here/new"
cd "$here/new"
[ -e .distbuild-whole ] || { echo 'the connection broke off' >&2; exit 1; }
rm .distbuild-whole
find . -type d | sort | while IFS= read -r path; do
    [ -d "$root/$path" ] && continue
    mkdir -p "$root/$path"
    echo "$path" >> "$here/folders"
done
find . ! -type d | sort | while IFS= read -r path; do
    if [ -e "$here/old/$path" ] || [ -L "$here/old/$path" ]; then
        echo "replaced ${path#.}"
    elif grep -qxF "$path" "$here/added"; then
        echo "added ${path#.}"
    elif [ -e "$root/$path" ] || [ -L "$root/$path" ]; then
        [ ! -d "$root/$path" ] || [ -L "$root/$path" ] || {
            echo "${path#.} is a folder there" >&2; exit 1; }
        mkdir -p "$here/old/${path%/*}"
        cp -a "$root/$path" "$here/old/$path"
        echo "replaced ${path#.}"
    else
        echo "$path" >> "$here/added"
        echo "added ${path#.}"
    fi
    put "$path"
done
cd /
rm -rf "$here/new"
"""
_UNDO = """\
[ -d "$here" ] || { echo 'nothing of it is installed there' >&2; exit 1; }
cd "$here/old"
find . ! -type d | sort | while IFS= read -r path; do
    put "$path"
    echo "restored ${path#.}"
done
while IFS= read -r path; do
    rm -f "$root/$path"
    echo "removed ${path#.}"
done < "$here/added"
sort -r "$here/folders" | while IFS= read -r path; do
    rmdir "$root/$path" 2>/dev/null || :
done
cd /
rm -rf "$here"
"""
#: Libraries are found through the cache of ldconfig, where a machine has one.
_LAST = """\
if [ -e "$root/etc/ld.so.cache" ]; then
    if [ -n "$root" ]; then chroot "$root" ldconfig; else ldconfig; fi
fi
"""


class Machine(NamedTuple):
    """A machine, or a folder of one that is the root of a system."""

    host: str  # as ssh takes it
    root: str = ""  # "": the machine's own

    @classmethod
    def parse(cls, text: str) -> Machine:
        """The machine of USER@HOST, USER@HOST:/FOLDER or ssh://USER@HOST:PORT/FOLDER.

        FabricError for anything else.
        """
        url = re.fullmatch(r"(ssh://[^/\s]+)(/.*)?", text)
        found = url or re.fullmatch(r"([^-/:\s][^/:\s]*)(?::(/(?!/).*))?", text)
        if found is None:
            raise FabricError(f"{text!r} is no machine: give USER@HOST, or USER@HOST:/FOLDER")
        return cls(found[1], (found[2] or "").rstrip("/"))

    def install(self, id: str, archives: Iterable[Callable[[], BinaryIO]]) -> list[str]:
        """Install archives (tar.zst); returns lines: "replaced /usr/bin/x", "added ...".

        MachineFault if the machine cannot be reached, or a command there fails.
        """
        return self._run(_INSTALL + _LAST, id, _joined(archives))

    def undo(self, id: str) -> list[str]:
        """Take away what `install` brought; returns lines: "restored ...", "removed ..."."""
        return self._run(_UNDO + _LAST, id, ())

    def _run(self, script: str, id: str, data: Iterable[bytes]) -> list[str]:
        start = _START.format(root=shlex.quote(self.root), id=shlex.quote(id))
        command = ["ssh", "-T", "--", self.host, f"sh -c {shlex.quote(start + script)}"]
        if shutil.which("ssh") is None:
            raise FabricError("ssh is missing on this machine: install openssh-client")
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as ssh:
            assert ssh.stdin is not None
            try:
                for piece in data:
                    ssh.stdin.write(piece)
            except BrokenPipeError:  # ssh tells why
                pass
            printed, complaints = ssh.communicate()
        if ssh.returncode:
            said = complaints.decode(errors="replace").strip() or f"exit status {ssh.returncode}"
            raise MachineFault(f"{self.host}: {said}")
        return printed.decode(errors="replace").splitlines()


def _joined(archives: Iterable[Callable[[], BinaryIO]]) -> Iterator[bytes]:
    """One tar archive with the entries of all; its last is the mark that it is whole."""
    for open_archive in archives:
        tail = b""
        with open_archive() as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
            while piece := stream.read(_PIECE):
                whole = tail + piece
                yield whole[: -len(_END)]
                tail = whole[-len(_END) :]
        if tail != _END:
            raise MachineFault("an archive has another end than ours have")
    yield archive.header(Entry(_WHOLE, FILE), _WHOLE) + _END
