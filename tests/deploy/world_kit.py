"""A disposable machine inside this one, made of namespaces.

Whatever is started, mounted, written or connected in a `World` is gone when it ends, also when
this process is killed: its PID 1 dies with us, and takes all with it.  Only the folders that it
was given last.  It reaches no network but its own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

_INIT = Path(__file__).with_name("world.sh")
_NAMESPACES = ("--net", "--mount", "--pid", "--ipc", "--uts", "--cgroup")
_TOOLS = ("libvirtd", "sshd", "systemd-nspawn", "virsh")


class Failed(AssertionError):
    """A command in the world failed.  The text contains its output."""


class World:
    """A context manager.  ``folders`` are shared with the outer machine, the rest is a copy."""

    def __init__(self, scratch: Path, *folders: Path) -> None:
        self._root = scratch / "world"
        self._folders = [str(folder) for folder in folders]
        self.environment: dict[str, str] = dict(os.environ)
        self._daemons: list[subprocess.Popen[str]] = []

    @staticmethod
    def refused() -> str:
        """Return why this machine cannot make a world, or "" if it can."""
        if os.geteuid() != 0:
            return "needs root, for namespaces with mounts and networks"
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing:
            return f"{', '.join(missing)} not installed: run make setup-deploy"
        tried = subprocess.run(
            ["unshare", *_NAMESPACES, "--fork", "mount", "-t", "tmpfs", "probe", "/mnt"],
            capture_output=True,
            text=True,
            check=False,
        )
        return f"namespaces are not permitted here: {tried.stderr}" if tried.returncode else ""

    def __enter__(self) -> Self:
        self._root.mkdir()
        self.cgroup = _cgroup2() / f"world-{os.getpid()}-{id(self)}"
        self.cgroup.mkdir()
        # the shell moves itself, so that all processes of the world belong to this cgroup
        enter = f"echo $$ > {self.cgroup}/cgroup.procs && exec "
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, "--fork"]
        command += ["--kill-child", str(_INIT), str(self._root), *self._folders]
        self._unshare = subprocess.Popen(
            ["sh", "-c", enter + shlex.join(command)], stdout=subprocess.PIPE, text=True
        )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != "ready\n":
            self.__exit__(None, None, None)
            raise Failed("the world was not made; what went wrong stands above")
        pid = self._unshare.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._enter = ["nsenter", "--target", children[0], *_NAMESPACES]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unshare.kill()
        self._unshare.wait()
        assert self._unshare.stdout is not None
        self._unshare.stdout.close()
        for daemon in self._daemons:
            daemon.wait()
        # The kernel may need minutes to discard the blocks of large disks.
        until(lambda: _removed(self.cgroup), 300, f"{self.cgroup}: processes of the world live on")
        shutil.rmtree(self._root, ignore_errors=True)

    def start(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> subprocess.Popen[str]:
        """Start ``command`` inside; ``env`` is added to the world's `environment`."""
        where = [f"--wdns={cwd}"] if cwd else []
        return subprocess.Popen(
            [*self._enter, *where, *map(str, command)],
            env={**self.environment, **(env or {})},
            text=True,
            **{"stdin": subprocess.DEVNULL, **popen},
        )

    def attempt(
        self, *command: str | Path, timeout: float = 60, input: str | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` inside to its end and return the completed process."""
        more |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if input is not None:
            more["stdin"] = subprocess.PIPE
        process = self.start(*command, start_new_session=True, **more)
        try:
            out, err = process.communicate(input, timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                what = f"not done after {timeout:.0f} s"
                raise Failed(_story(command, what, out, err)) from None
            raise
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def run(self, *command: str | Path, **more: Any) -> str:
        """Run ``command`` and return its output.  Raises Failed if it fails."""
        done = self.attempt(*command, **more)
        if done.returncode:
            raise Failed(_story(command, f"exit code {done.returncode}", done.stdout, done.stderr))
        return done.stdout

    def daemon(self, *command: str | Path, log: IO[str] | None = None, **more: Any) -> None:
        """Start ``command`` for as long as the world lasts."""
        to = log or subprocess.DEVNULL
        daemon = self.start(*command, stdout=to, stderr=subprocess.STDOUT if log else to, **more)
        self._daemons.append(daemon)


def until(
    true: Callable[[], bool], timeout: float, otherwise: str | Callable[[], str], step: float = 0.1
) -> None:
    """Wait until ``true()``.  Raises Failed with ``otherwise`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise Failed(otherwise if isinstance(otherwise, str) else otherwise())
        time.sleep(step)


def _story(command: Sequence[str | Path], what: str, out: str, err: str) -> str:
    return f"{shlex.join(map(str, command))}: {what}\n{out[-20000:]}\n{err[-8000:]}"


def _cgroup2() -> Path:
    """Return the mount point of the second version of control groups."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise Failed("no cgroup2 is mounted on this machine")


def _removed(cgroup: Path) -> bool:
    """Return whether ``cgroup`` and all below it could be removed."""
    try:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(folder)  # noqa: PTH106  rmtree would try the files
    except OSError:
        return False
    return True
