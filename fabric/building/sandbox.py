"""Runs a script under bubblewrap, within limits, and leaves no process behind.

All processes of a sandbox are in a PID namespace whose process 1 is the script's own shell.  When
that ends or is killed, the kernel ends all others before it reports the end: no daemon of a build
survives, and nothing writes into a tree that is already being packed.
"""

from __future__ import annotations

import fcntl
import functools
import os
import select
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from fabric import bounds
from fabric.building import devices, seccomp
from fabric.building.build_script import StatusPipe
from fabric.building.conditions import USUAL, Conditions
from fabric.building.disk_space import full, oom_kills
from fabric.building.log import Log
from fabric.errors import BuildFailed, MachineFault
from fabric.host.cancel import TICK, CancelToken
from fabric.host.files import walk
from fabric.host.process import pass_niceness_on

#: Capabilities that root needs to install software, inside its own user namespace.
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "SYS_CHROOT")

#: No network, own processes, uid 0 in a user namespace, a clean environment.
_ISOLATION = (
    *("--unshare-all", "--unshare-user", "--die-with-parent", "--as-pid-1", "--clearenv"),
    *("--uid", "0", "--gid", "0", "--cap-drop", "ALL"),
    *(word for name in _CAPABILITIES for word in ("--cap-add", f"CAP_{name}")),
)

#: Bytes that a build may print before it has to wait for the worker.
_PIPE = 1 << 20

_ADVICE = """\
Unprivileged user namespaces must be allowed. Look at these settings (sysctl):
  user.max_user_namespaces                      more than 0
  kernel.unprivileged_userns_clone              1, where it exists (Debian)
  kernel.apparmor_restrict_unprivileged_userns  0, where it exists (Ubuntu), or an AppArmor
                                                profile for bwrap that allows `userns`
In a container, the container must be allowed to make them."""

#: Seconds of waiting for more output: waking up for each line costs more than moving the lines.
_GATHER = 0.005
#: Above so many bytes at once there is no waiting for more: a pipe holds 65536.
_MUCH = 16384

_MISSING = (
    "The tools that make sandboxes are missing: install bubblewrap, version 0.11 or newer, and"
    " util-linux (for unshare and mount)"
)


class Limits(msgspec.Struct, frozen=True):
    """The limits of a step: seconds of wall time, bytes of log, a jobserver.  None: no limit."""

    seconds: float | None = None
    log_bytes: int | None = None
    jobserver: Path | None = None  # its socket
    until: float | None = None  # when the seconds end (monotonic), once they count

    def begun(self) -> Limits:
        """The same limits, with the seconds counting from now unless they count already."""
        if self.seconds is None or self.until is not None:
            return self
        return msgspec.structs.replace(self, until=time.monotonic() + self.seconds)

    def check(self, doing: str) -> None:
        """BuildFailed if the time is over."""
        if self.until is not None and time.monotonic() > self.until:
            raise _over(doing, f"ran longer than {self.seconds:g} s", "build-timeout")

    def check_log(self, doing: str, size: int) -> None:
        """BuildFailed if a log of ``size`` bytes is too long."""
        if self.log_bytes is not None and size > self.log_bytes:
            raise _over(doing, f"printed more than {self.log_bytes} bytes", "log-limit")


NO_LIMITS = Limits()


class Ended(msgspec.Struct, frozen=True):
    """The end of a script: its exit status, and the command that ran last."""

    status: int
    list: str
    number: int


class Box(msgspec.Struct, frozen=True):
    """A sandbox to run a script in."""

    mounts: tuple[str, ...]  # arguments of bwrap
    read_only: tuple[str, ...]  # made read-only after all mounts
    environment: Mapping[str, str]
    cwd: str
    script: str  # its text
    path: str  # the script's path in the sandbox
    launcher: tuple[str, ...] = ()  # a command that runs bwrap in a namespace it has made
    conditions: Conditions = USUAL

    def command(
        self, files: tuple[int, int], options: Sequence[str], argv: Sequence[str]
    ) -> list[str]:
        """The bwrap command line that runs ``argv``, with descriptors as `files` gives them."""
        script, calls = map(str, files)
        isolation = (*_ISOLATION, *_no_more_namespaces(), "--seccomp", calls)
        words = [*self.launcher, "bwrap", *options, *isolation]
        words += ["--hostname", self.conditions.host_name, *self.mounts]
        words += ["--perms", "0755", "--file", script, self.path]
        for path in (*self.read_only, "/dev"):
            words += ["--remount-ro", path]
        for name, value in self.environment.items():
            words += ["--setenv", name, value]
        return [*words, "--chdir", self.cwd, "--", *argv]

    @contextmanager
    def files(self) -> Iterator[tuple[int, int]]:
        """Descriptors of the script's text, and of the filter of its system calls."""
        script = self.script.encode("utf-8", "surrogateescape")
        with _memory("steps", script) as steps, _memory("calls", seccomp.program()) as calls:
            yield steps, calls


@contextmanager
def _memory(name: str, data: bytes) -> Iterator[int]:
    fd = os.memfd_create(name)
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@functools.cache
def _no_more_namespaces() -> tuple[str, ...]:
    """The option that forbids more user namespaces, in which a build could mount host cgroups.

    bubblewrap implements it by writing to /proc/sys, which may be read-only in a container; there,
    only the container's own restrictions apply.
    """
    read_only = os.statvfs("/proc/sys/user").f_flag & os.ST_RDONLY
    return () if read_only else ("--disable-userns",)


#: Folders of /proc that bubblewrap itself makes read-only.
_SAFE = ("bus", "irq")


def _settings(proc: Path) -> list[str]:
    """Folders of /proc with writable files, such as sys, scsi, acpi or dynamic_debug."""
    found = ["sys"]
    for folder in sorted(proc.iterdir()):
        if folder.name.isdigit() or folder.name in (*found, *_SAFE) or folder.is_symlink():
            continue
        with suppress(OSError):
            for inner, name, _ in walk(folder):
                mode = os.stat(name, dir_fd=inner, follow_symlinks=False).st_mode
                if stat.S_ISREG(mode) and mode & 0o222:
                    found.append(folder.name)
                    break
    return found


#: The kernel's file systems.  To the kernel, a build of a worker that is root is that root: it
#: can write the files of root, as in /proc/sys, without any capability.
KERNEL = (
    *("--proc", "/proc"),
    *(
        word
        for name in _settings(Path("/proc"))
        for word in ("--ro-bind-try", f"/proc/{name}", f"/proc/{name}")
    ),
    *("--dev", "/dev"),
    *("--perms", "1777", "--size", str(bounds.SANDBOX_SHM), "--tmpfs", "/dev/shm"),
)


def overlay(lower: Sequence[Path], *how: str) -> list[str]:
    """Arguments of bwrap that mount an overlay, lowest layer first; ``how``: the mount option."""
    return [*(word for path in lower for word in ("--overlay-src", str(path))), *how]


def run(
    box: Box,
    log: Log,
    cancel: CancelToken,
    *,
    limits: Limits = NO_LIMITS,
    started: Callable[[str], None] = lambda list_: None,  # noqa: ARG005
    disk: Path | None = None,
) -> Ended:
    """Run the script of ``box``; its output goes to ``log``.

    ``started`` is called with the name of each command list as it begins.  BuildFailed past a
    limit, Cancelled.  MachineFault if the sandbox cannot be made or is killed from outside, if it
    fails and memory was short, and if the disk of ``disk`` was full at any moment: a `configure`
    may then have concluded that something cannot be compiled, and have gone on.
    """
    before = log.size()
    ended_before = oom_kills()
    limits = limits.begun()
    crowded = False

    def look() -> None:
        nonlocal crowded
        crowded = crowded or (disk is not None and full(disk))

    status, told = os.pipe2(os.O_CLOEXEC)
    output, printed = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(output, False)
    with suppress(PermissionError):  # the user has too many pipes: this one stays small
        fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _PIPE)
    try:
        try:
            process = _start(box, told, printed)
        finally:
            os.close(told)
            os.close(printed)
        progress = StatusPipe(status, started)
        try:
            _watch(process, progress, output, log, cancel, limits, look)
        finally:
            _end(process, progress)
            log.take(output, 2 * _PIPE)  # all that the pipe can hold
    finally:
        os.close(status)
        os.close(output)
    if not progress.started:
        raise _cannot_start(log.read(before, 4096).decode("utf-8", "replace"))
    look()
    if crowded:
        raise MachineFault(f"The disk of {disk} was full; free some room there")
    if process.returncode and (short := oom_kills() - ended_before) > 0:
        raise MachineFault(
            f"This machine ran out of memory, and its kernel ended {short} process"
            f"{'es' * (short > 1)}. Fewer at a time need less: see the settings `max-jobs` and"
            " `workers`, and the field `max-jobs` of a chunk"
        )
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise MachineFault(f"The sandbox was killed by {name}")
    return Ended(process.returncode, progress.list, progress.number)


def _start(box: Box, told: int, printed: int) -> subprocess.Popen[bytes]:
    # Open for reading, too: if this worker is killed now, the pipe has no other reader.  A failed
    # write would end bwrap between making its child and releasing it, and the child would wait for
    # ever.  So the script begins, and ends at its first report: by then bwrap has closed this.
    info = os.open(f"/proc/self/fd/{told}", os.O_RDWR | os.O_CLOEXEC)
    try:
        with box.files() as files:
            options = ["--new-session", "--info-fd", str(info)]
            # The script's end of the status pipe is its standard input, since only that descriptor
            # has a known number; its commands get /dev/null.
            command = box.command(files, options, ["sh", box.path, "--report"])

            def start() -> subprocess.Popen[bytes]:
                with box.conditions.fewer_cpus():
                    return subprocess.Popen(
                        command,
                        executable=_found(command[0], os.environ.get("PATH")),
                        env={**os.environ, **box.conditions.variables},
                        stdin=told,
                        stdout=printed,
                        stderr=printed,
                        pass_fds=(info, *files),
                    )

            return devices.starting(start)
    except FileNotFoundError as error:
        raise MachineFault(_MISSING) from error
    finally:
        os.close(info)


@functools.cache
def _found(program: str, path: str | None) -> str | None:
    """The path of a program, cached so that PATH is searched once; None if there is none."""
    return shutil.which(program, path=path)


def _watch(
    process: subprocess.Popen[bytes],
    progress: StatusPipe,
    output: int,
    log: Log,
    cancel: CancelToken,
    limits: Limits,
    look: Callable[[], None],
) -> None:
    """Return when the sandbox has ended; raise when it must be ended."""
    handle = os.pidfd_open(process.pid)
    try:
        end, news = select.poll(), select.poll()
        end.register(handle, select.POLLIN)
        news.register(handle, select.POLLIN)
        news.register(output, select.POLLIN)
        grown, niced = 0, False
        while process.poll() is None:
            printed = any(fd == output for fd, _ in news.poll(TICK * 1000))
            if printed:
                if grown < _MUCH:
                    end.poll(_GATHER * 1000)
                size = log.size()
                if not log.take(output, bounds.LOG_AT_ONCE):
                    news.unregister(output)
                grown = log.size() - size
            progress.catch_up()
            if not niced and progress.started and progress.child is not None:
                niced = pass_niceness_on(progress.child)
            look()
            cancel.check()
            limits.check(progress.list)
            limits.check_log(progress.list, log.size())
    finally:
        os.close(handle)


def _over(doing: str, what: str, setting: str) -> BuildFailed:
    return BuildFailed(f"{doing}: {what}, which is the limit (setting `{setting}`)", step=doing)


def _end(process: subprocess.Popen[bytes], progress: StatusPipe) -> None:
    """End all processes of the sandbox, and read the rest of its reports."""
    if process.poll() is not None:
        progress.catch_up()
        return
    # Process 1 of the sandbox first: the kernel reports its end only after that of all others in
    # the namespace.  After killing bwrap alone, they could go on writing for a moment.
    while progress.child is None and progress.read():
        pass
    if progress.child is not None:
        with suppress(ProcessLookupError):
            os.kill(progress.child, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _cannot_start(said: str) -> BuildFailed | MachineFault:
    """The error for a sandbox that did not start, by the output of bwrap."""
    tools = ("bwrap: ", "unshare: ", "mount: ")
    line = next((line for line in said.splitlines() if line.startswith(tools)), said.strip())
    if shutil.which("bwrap") is None:
        return MachineFault(_MISSING)
    if "execvp" in line:
        return BuildFailed(
            f"There is no shell to run commands with ({line}): one of the chunks that are staged"
            " or make up the system must bring /bin/sh"
        )
    if any(word in line for word in ("symlink destination", "symbolic links", "Not a directory")):
        return BuildFailed(
            f"A chunk has something else where the sandbox puts a directory of its own ({line})"
        )
    if "Unknown option" in line:
        return MachineFault(f"{line}: bubblewrap is too old, version 0.11 or newer is needed")
    if any(word in line for word in ("namespace", "uid map", "unshare", "Operation not permitted")):
        return MachineFault(f"{line}\n{_ADVICE}")
    return MachineFault(f"The sandbox could not be started: {line or 'it printed nothing'}")
