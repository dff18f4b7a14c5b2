"""Builds a chunk under strace, and finds the staged chunks that the build used.

A build uses a chunk if a file or symlink of it is opened, run, or found by ``stat`` and the like:
its presence may change the result.  Failed calls and listed directories do not count.  The kernel
opens interpreters itself, so these are read from the programs that are run.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from msgspec.structs import replace

from fabric.building import chunk, sandbox, staging_area
from fabric.building.build_script import PATH
from fabric.building.log import Log
from fabric.building.staged_files import StagedFiles
from fabric.building.workspace import Workspace
from fabric.errors import BuildFailed, FabricError, MachineFault
from fabric.host.cancel import TICK, CancelToken
from fabric.jobs import Job

#: Calls that open or look at a file by its path.  Some machines lack those marked `?`.
_CALLS = (
    *("?open", "openat", "?openat2", "execve", "?execveat", "?readlink", "readlinkat", "statx"),
    *("?stat", "?lstat", "?newfstatat", "?fstatat64", "?stat64", "?lstat64"),
    *("?access", "faccessat", "?faccessat2"),
)
_STRACE = (
    *("strace", "--follow-forks", "--seccomp-bpf", "--successful-only", "--quiet=all"),
    *("--decode-fds=path", "--signal=none", "--string-limit=16", f"--trace={','.join(_CALLS)}"),
)
_TEXT = rb'"((?:[^"\\]|\\.)*)"'
#: A line of strace: process, call, current or named directory, path, the rest.
_LINE = re.compile(
    rb"(\d+) +(\w+)\((?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?(?:\(deleted\))?, )?" + _TEXT + rb"(.*)"
)
#: The path of the file that was opened, at the end of a line.
_OPENED = re.compile(rb" = \d+<([^>]*)>$")
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)")
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f"}
#: The call that begins the script in the sandbox.
_BEGIN = f', ["sh", "{PATH}", "--report"]'.encode()
#: Bytes read at once, and processes that wait for their current directory.
_PIECE, _WAITING = 1 << 20, 10_000
#: Bytes of the log that an error shows.
_TAIL = 1500


def observe(
    job: Job,
    workspace: Workspace,
    cancel: CancelToken,
    *,
    jobs: int,
    limits: sandbox.Limits,
    phase: Callable[[str], None],
) -> dict[str, str]:
    """Build a chunk; return the keys of the staged chunks that it used, each with a file of it.

    Nothing is stored.

    FabricError without strace; otherwise as `fabric.building.builder.build`.
    """
    require_strace()
    scratch = workspace.session.scratch()
    needed = {job.key, *(staged.key for staged in job.staged)}
    try:
        with workspace.using(needed), Log(scratch / "log") as log:
            try:
                return _observe(job, workspace, scratch, log, cancel, jobs, limits, phase)
            except BuildFailed as error:
                tail = log.read(max(0, log.size() - _TAIL), _TAIL).decode("utf-8", "replace")
                lines = "\n".join(f"  | {line}" for line in tail.splitlines()[-10:])
                raise BuildFailed(f"{job.name}, built under strace: {error}\n{lines}") from error
    finally:
        workspace.session.discard(scratch)


def require_strace() -> None:
    """FabricError if strace is not installed."""
    if shutil.which("strace") is None:
        raise FabricError(
            "strace is not installed, and without it no build can be observed: install it"
            " (on Debian: apt install strace)"
        )


def _observe(
    job: Job,
    workspace: Workspace,
    scratch: Path,
    log: Log,
    cancel: CancelToken,
    jobs: int,
    limits: sandbox.Limits,
    phase: Callable[[str], None],
) -> dict[str, str]:
    phase("fetch")
    area = staging_area.prepare(job, workspace, scratch, log, cancel, jobs, limits)
    base = os.fsencode(area.base)
    build, inst = (base + os.fsencode(f"/{job.source_name}.{end}") for end in ("build", "inst"))
    kernel = dict.fromkeys((b"/proc", b"/dev"), ())
    below = sorted(scratch.glob("low*"))
    files = StagedFiles(
        workspace.layers.laid(job.staged, cancel),
        base,
        {
            build: (scratch / "up", *below),
            inst: (scratch / "inst",),
            b"/tmp": (scratch / "tmp",),
            **kernel,
        },
    )
    with _Trace(scratch / "trace", files) as trace:
        launcher = (*_STRACE, f"--output={trace.path}", "--", *area.box.launcher)
        traced = replace(area, box=replace(area.box, launcher=launcher))
        chunk.run(job, traced, log, cancel, limits.begun(), phase)
    return {key: os.fsdecode(path) for key, path in trace.used.items()}


class _Trace:
    """Reads what strace writes into a FIFO, in a thread, so that nothing of it is kept."""

    def __init__(self, path: Path, files: StagedFiles) -> None:
        self.path = path
        self.used: dict[str, bytes] = {}  # key of a chunk -> the first path of it
        self._files = files
        self._begun = False  # the script in the sandbox
        self._waiting: dict[bytes, bytes] = {}  # process -> the program it runs, a relative path
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="trace", daemon=True)

    def __enter__(self) -> _Trace:
        os.mkfifo(self.path, 0o600)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None and self._error is not None:
            raise MachineFault(f"The output of strace cannot be read: {self._error}")

    def _read(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001  raised at the end
            self._error = error
        finally:
            os.close(self._fd)  # ends strace, if it still writes

    def _follow(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        rest = b""
        while True:
            ended = self._ended.is_set()  # before looking: all that is written is read
            if not poll.poll(0 if ended else TICK * 1000):
                if ended:
                    return
                continue
            data = os.read(self._fd, _PIECE)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        if not self._begun:
            self._begun = _BEGIN in line
            if not self._begun:
                return
        found = _LINE.match(line)
        if found is None:
            return
        process, call, directory, path, more = found.groups()
        if not path:
            return  # of an open file
        directory = _unescaped(directory) if directory else b""
        path = _unescaped(path)
        if directory and (program := self._waiting.pop(process, None)):
            self._use(self._files.executed(directory + b"/" + program))
        if not path.startswith(b"/"):
            if call == b"execve":
                if len(self._waiting) == _WAITING:
                    self._waiting.clear()
                self._waiting[process] = path
                return
            path = os.path.normpath(directory + b"/" + path)
        if call in (b"execve", b"execveat"):
            self._use(self._files.executed(path))
            return
        self._use(self._files.chunks(path))
        if opened := _OPENED.search(more):
            self._use(self._files.chunks(_unescaped(opened[1])))

    def _use(self, chunks: Mapping[str, bytes]) -> None:
        for key, path in chunks.items():
            self.used.setdefault(key, path)


def _unescaped(text: bytes) -> bytes:
    """A path as strace prints it, without its escapes."""
    if b"\\" not in text:
        return text
    return _ESCAPE.sub(
        lambda one: (
            bytes([int(one[1], 8) & 255]) if one[1].isdigit() else _LETTERS.get(one[1], one[1])
        ),
        text,
    )
