"""Runs the fabric of one machine: a broker and workers as child processes, connected over ipc.

It uses the same programs and messages as a farm, but the processes end with the initiator that
started them, however it ends.

Starting an interpreter and loading a program takes a tenth of a second of CPU time.  Therefore the
initiator forks one process, the zygote, before it has threads.  The zygote loads the programs
while the initiator still reads definitions, and forks a broker and workers on request.  It then
supervises them: it replaces a worker that dies, and ends all of them at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fabric.client.running import ALIVE, announce, link_to, withdraw
from fabric.config import Settings
from fabric.errors import NO_ROOM, FabricError, MachineFault

if TYPE_CHECKING:
    from fabric.host.jobserver import Jobserver

#: Prefix of the folder of a fabric.
_PREFIX = "fabric-"
#: Seconds that children have to end by themselves: workers remove their sandboxes.
GRACE = 10.0
#: Seconds between two checks for ended children.
LOOK_EVERY = 0.1
#: The zygote's standard error.
_ERRORS = "zygote.err"
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: What the zygote loads for its children: also modules that they load when they need them.
_LOADED = ("fabric.broker", "fabric.worker", "fabric.trove.sources.export", "ctypes")
_LOADED_TO_SIGN = "nacl.signing"


class EmbeddedFabric:
    """Loads the programs on entering, and stops on leaving; ``directory`` contains the sockets."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._zygote = 0  # its process id
        self._started = False

    def __enter__(self) -> EmbeddedFabric:
        # paths of sockets are limited to about 107 bytes, so the user's directories may be too deep
        try:
            self.directory, self._alive = new_folder()
            errors = _open_errors(self.directory / _ERRORS)
        except OSError as error:
            raise FabricError(
                f"no temporary folder for the sockets of this build: {error.strerror}; free some"
                " space there, or set TMPDIR to another directory"
            ) from error
        self._link = link_to(self._settings.state_dir, self.directory)
        announce(self._link, self.directory)
        orders, self._orders = os.pipe()
        self._news, news = os.pipe()
        os.set_blocking(self._news, False)

        def zygote() -> int:
            os.close(self._orders)
            os.close(self._news)
            return Zygote(self._settings, self.directory, orders, news).run()

        self._zygote = _fork(errors, zygote)
        os.close(orders)
        os.close(news)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, steps: int, tools: str = "") -> None:
        """Start the broker and the workers: no more than there are ``steps`` to build.

        ``tools``: digest of this machine's tools, which only bootstrap and test chunks need.
        Another call with more steps starts more workers.
        """
        self._started = True
        count = max(1, min(steps, self._settings.worker_count))
        with contextlib.suppress(BrokenPipeError):  # it died: `check` raises
            os.write(self._orders, f"{count} {tools}\n".encode())

    def check(self) -> str:
        """A text about workers that died and were replaced since the last call; "" if none did.

        MachineFault if the broker has ended, or workers die as soon as they start.
        """
        with contextlib.suppress(BlockingIOError):
            news = os.read(self._news, 65536).decode(errors="replace")
            if not news.endswith("\n"):  # the zygote has ended
                said = (self.directory / _ERRORS).read_text(errors="replace").strip()
                raise MachineFault(f"the embedded {news or f'fabric ended: {said}'}")
            return news.strip()
        return ""

    def stop(self) -> None:
        """End all children and remove the directory.

        After an interruption by Ctrl-C, another call completes it.
        """
        if self._zygote:
            self._orders = _closed(self._orders)
            if not self._started:  # it has no children yet, and may be loading
                os.kill(self._zygote, signal.SIGKILL)
            os.waitpid(self._zygote, 0)
            self._zygote = 0
            self._news = _closed(self._news)
        withdraw(self._link)
        shutil.rmtree(self.directory, ignore_errors=True)
        self._alive = _closed(self._alive)


class Zygote:
    """Starts broker and workers, and supervises them until the pipe ``orders`` is closed."""

    def __init__(self, settings: Settings, directory: Path, orders: int, news: int) -> None:
        self._settings = settings
        self._directory = directory
        self._orders = orders
        self._news = news
        self._children: dict[int, str] = {}  # names by process id
        self._workers = 0  # started so far
        self._replaced = 0  # of these, those that took the place of one that died
        self._tools = ""  # digest of this machine's tools

    def run(self) -> int:
        """The zygote's main function; returns its exit code."""
        for number in _ENDING:
            # The closed pipe ends it.  Not SIG_IGN, because builds would inherit that.
            signal.signal(number, lambda *_: None)
        gc.disable()  # what is loaded stays
        for module in _LOADED:
            importlib.import_module(module)
        if self._settings.trusted_keys:
            with contextlib.suppress(ImportError):  # the program that signs reports it
                importlib.import_module(_LOADED_TO_SIGN)
        sweep()
        gc.freeze()  # children share the objects that exist now
        gc.enable()
        order = self._order()
        code = self._serve(order) if order else 0
        if code == 0:  # the initiator has ended, maybe without cleaning up
            withdraw(link_to(self._settings.state_dir, self._directory))
            shutil.rmtree(self._directory, ignore_errors=True)
        return code

    def _order(self) -> int:
        """The number of workers that are wanted; 0 once the initiator wants no fabric any more."""
        orders = os.read(self._orders, 1000).decode().splitlines()
        if not orders:
            return 0
        count, _, self._tools = orders[-1].partition(" ")
        return int(count)

    def _serve(self, workers: int) -> int:
        from fabric.host.jobserver import NAME, Jobserver  # a cached build needs none

        jobserver = Jobserver(self._directory / NAME, self._settings.shared_jobs)
        try:
            self._start("broker")
            self._start_workers(workers)
            return self._watch(jobserver)
        finally:
            self._stop()

    def _start_workers(self, wanted: int) -> None:
        """Start workers until there are so many."""
        while self._workers - self._replaced < wanted:
            self._start_worker()

    def _start_worker(self) -> None:
        self._workers += 1
        name = f"worker-{self._workers}"
        self._start(name, name, self._tools)

    def _start(self, name: str, *args: str) -> None:
        program = name.partition("-")[0]
        parent = os.getpid()

        def main() -> int:
            from fabric.host.process import die_with_parent

            os.closerange(3, 1 << 16)  # the pipes, whose closing means the zygote's end
            die_with_parent(parent)
            Path("/proc/self/comm").write_text(f"fabric-{program}")  # the name in `ps`
            run = importlib.import_module(f"fabric.{program}").run_embedded
            code: int = run(self._settings, self._directory, *args)
            return code

        self._children[_fork(_open_errors(self._errors(name)), main)] = name

    def _watch(self, jobserver: Jobserver) -> int:
        poller = select.poll()
        poller.register(self._orders)
        poller.register(jobserver, select.POLLIN)
        while True:
            ready = poller.poll(1000 * min(LOOK_EVERY, jobserver.wait))
            if any(fd == self._orders for fd, _ in ready):
                if not (workers := self._order()):
                    return 0
                self._start_workers(workers)
            jobserver.step()
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                continue
            name = self._children.pop(child)
            ended = f"{name} ended ({_how(os.waitstatus_to_exitcode(status))})"
            if name == "broker" or self._workers >= 3 * self._settings.worker_count + 3:
                said = self._errors(name).read_text(errors="replace")[-2000:].strip()
                self._tell(f"{ended}:\n{said}" if said else ended)
                return 4
            self._replaced += 1
            self._start_worker()
            self._tell(f"{ended}, another takes its place\n")

    def _tell(self, news: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._news, news.encode())

    def _stop(self) -> None:
        broker = [child for child, name in self._children.items() if name == "broker"]
        workers = self._children.keys() - broker
        for children in (workers, broker):  # workers report their ends to the broker
            until = time.monotonic() + GRACE
            for child in children:
                os.kill(child, signal.SIGTERM)
            for child in children:
                handle = os.pidfd_open(child)
                ended, _, _ = select.select([handle], [], [], max(0.0, until - time.monotonic()))
                if not ended:
                    os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                os.close(handle)

    def _errors(self, name: str) -> Path:
        """The file of a child's standard error."""
        return self._directory / f"{name}.err"


def _closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1


def new_folder() -> tuple[Path, int]:
    """A new folder, and a descriptor that locks it until all processes that inherited it end."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(folder / ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return folder, lock
        os.close(lock)  # `sweep` removed the folder before it was locked


def sweep() -> None:
    """Remove the folders of killed fabrics: those of this user that are not locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / ALIVE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _open_errors(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _fork(errors: int, main: Callable[[], int]) -> int:
    """Run ``main`` in a child process, in a session of its own; returns the process id.

    In its own session, the child does not get Ctrl-C.  ``errors`` becomes its standard output and
    error, and is closed here.  Signals end the child until it installs handlers: inherited ones
    would swallow the signal that is meant to end it.
    """
    sys.stdout.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    child = os.fork()
    if child:
        os.close(errors)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return child
    code = 4
    try:
        os.setsid()
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for standard, file in enumerate((nothing, errors, errors)):
            os.dup2(file, standard)
        os.close(nothing)
        os.close(errors)
        code = main()
    except BaseException as error:  # noqa: BLE001 - the initiator's code must not go on in the child
        if isinstance(error, OSError) and (error.filename or error.errno in NO_ROOM):
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
    finally:
        os._exit(code)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
