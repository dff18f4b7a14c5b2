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
#: The line that a machine prints once it is connected; then it waits for another, and the archive.
_READY = "ready"
#: The last entry: an archive without it is not whole.
_WHOLE = b".distbuild-whole"

#: Loops use what the shell itself can do: in an emulated guest a process takes a tenth of a second.
_START = """\
set -eu
echo {ready}
IFS= read -r _ || exit 1  # nothing is to be installed
umask 022
root={root}
here=$root/var/lib/distbuild/edits/{id}
libraries=
put() {{
    fresh=$root/${{1%/*}}/.distbuild-new
    [ ! -e "$fresh" ] && [ ! -L "$fresh" ] || rm -f "$fresh"
    cp -a "$1" "$fresh"
    [ ! -L "$root/$1" ] || rm -f "$root/$1"  # mv goes into a folder that a link leads to
    mv -f "$fresh" "$root/$1"
    look "$1"
}}
look() {{
    case $1 in *.so | *.so.* | */ld.so.conf*) libraries=1 ;; esac
}}
"""
_INSTALL = """\
[ ! -e "$here/new" ] || rm -rf "$here/new"
mkdir -p "$here/new" "$here/old"
: >> "$here/added"
: >> "$here/folders"
tar -xpf - -C "$here/new"
cd "$here/new"
[ -e .distbuild-whole ] || { echo 'the connection broke off' >&2; exit 1; }
end='
'
added=$end
while IFS= read -r path; do added=$added$path$end; done < "$here/added"
find . > "$here/list"
while IFS= read -r path; do  # a folder precedes what is in it
    if [ -d "$path" ] && [ ! -L "$path" ]; then
        [ -d "$root/$path" ] && continue
        mkdir -p "$root/$path"
        echo "$path" >> "$here/folders"
        continue
    fi
    [ "$path" != ./.distbuild-whole ] || continue
    case $added in *"$end$path$end"*) known=1 ;; *) known= ;; esac
    if [ -e "$here/old/$path" ] || [ -L "$here/old/$path" ]; then
        echo "replaced ${path#.}"
    elif [ -n "$known" ]; then
        echo "added ${path#.}"
    elif [ -e "$root/$path" ] || [ -L "$root/$path" ]; then
        [ ! -d "$root/$path" ] || [ -L "$root/$path" ] || {
            echo "${path#.} is a folder there" >&2; exit 1; }
        [ -d "$here/old/${path%/*}" ] || mkdir -p "$here/old/${path%/*}"
        cp -a "$root/$path" "$here/old/$path"
        echo "replaced ${path#.}"
    else
        echo "$path" >> "$here/added"
        echo "added ${path#.}"
    fi
    put "$path"
done < "$here/list"
cd /
rm -rf "$here/new" "$here/list"
"""
_UNDO = """\
[ -d "$here" ] || { echo 'nothing of it is installed there' >&2; exit 1; }
cd "$here/old"
find . ! -type d > "$here/list"
while IFS= read -r path; do
    put "$path"
    echo "restored ${path#.}"
done < "$here/list"
while IFS= read -r path; do
    rm -f "$root/$path"
    look "$path"
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
if [ -n "$libraries" ] && [ -e "$root/etc/ld.so.cache" ]; then
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

    def undo(self, id: str) -> list[str]:
        """Take away what `Installation.install` brought: "restored /usr/bin/x", "removed ...".

        MachineFault if the machine cannot be reached, or a command there fails.
        """
        return self.finish(self.start(_UNDO + _LAST, id), ())

    def start(self, script: str, id: str, *options: str) -> subprocess.Popen[bytes]:
        """Start an ssh that runs a script, which waits for `finish`; ``options`` are ssh's."""
        start = _START.format(root=shlex.quote(self.root), id=shlex.quote(id), ready=_READY)
        command = ["ssh", "-T", *options, "--", self.host, f"sh -c {shlex.quote(start + script)}"]
        if shutil.which("ssh") is None:
            raise FabricError("ssh is missing on this machine: install openssh-client")
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

    def finish(self, ssh: subprocess.Popen[bytes], data: Iterable[bytes]) -> list[str]:
        """Give ``data`` to the script; returns the lines that it prints.  MachineFault."""
        with ssh:
            assert ssh.stdin is not None
            try:
                ssh.stdin.write(b"\n")
                for piece in data:
                    ssh.stdin.write(piece)
            except BrokenPipeError:  # ssh tells why
                pass
            printed, complaints = ssh.communicate()
        if ssh.returncode:
            said = complaints.decode(errors="replace").strip() or f"exit status {ssh.returncode}"
            raise MachineFault(f"{self.host}: {said}")
        lines = printed.decode(errors="replace").splitlines()
        begin = lines.index(_READY) + 1 if _READY in lines else 0  # a shell may greet before
        return sorted(lines[begin:], key=_place)


class Installation:
    """Installs archives in a machine, with a connection that is made before they are ready.

    Use it as a context manager: the machine changes only in `install`.
    """

    def __init__(self, machine: Machine, id: str) -> None:
        self._machine = machine
        self._id = id
        # A build draws on the terminal meanwhile, so ssh must ask nothing; and it may be long.
        options = ("-oBatchMode=yes", "-oServerAliveInterval=15")
        self._early = machine.start(_INSTALL + _LAST, id, *options)

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *_: object) -> None:
        self._early.kill()
        with self._early:
            pass

    def install(self, archives: Iterable[Callable[[], BinaryIO]]) -> list[str]:
        """Install archives (tar.zst); returns lines: "replaced /usr/bin/x", "added ...".

        MachineFault if the machine cannot be reached, or a command there fails.
        """
        ssh = self._early
        assert ssh.stdout is not None
        if f"{_READY}\n".encode() not in ssh.stdout:  # it has ended, or would ask something
            ssh = self._machine.start(_INSTALL + _LAST, self._id)
        return self._machine.finish(ssh, _joined(archives))


def _place(line: str) -> tuple[bool, str]:
    """The order of lines: removed files are last."""
    what, _, path = line.partition(" ")
    return what == "removed", path


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
