"""Services that are restarted when they end, as by systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hosts import Host, descendants

#: Seconds until a service that ended is started again, as in the units.
RESTART_AFTER = 1.0
#: Seconds that a service has to end by itself, as in the units.
PATIENCE = 15.0


class Stopped:
    """A stopped process with its descendants.

    It holds their descriptors, so that `go_on` affects no other process with a reused id.
    """

    def __init__(self, leader: int) -> None:
        self._known: dict[int, int] = {}
        while fresh := descendants(leader) - self._known.keys():
            for pid in fresh:
                with suppress(ProcessLookupError):
                    self._known[pid] = os.pidfd_open(pid)
                    signal.pidfd_send_signal(self._known[pid], signal.SIGSTOP)

    def __len__(self) -> int:
        return len(self._known)

    def go_on(self) -> None:
        for handle in self._known.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            os.close(handle)
        self._known.clear()


@dataclass
class Service:
    """A program of a host, with its log."""

    name: str
    host: Host
    command: Sequence[str | Path]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    starts: int = 0
    killed: int = 0
    due: float = 0.0
    told: bool = False  # to end, so that it is right to do so
    deaf: int = 0  # how often it did not
    ends: list[int] = field(default_factory=list)  # unexpected exit codes

    def start(self) -> None:
        self.told = False
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.host.booted(*self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.host.environment(self.environment),
                start_new_session=True,
            )
        self.starts += 1
        self.wanted = True

    def signal(self, number: int) -> bool:
        """Send it a signal; False if it does not run."""
        process = self.process
        if process is None or process.poll() is not None:
            return False
        with suppress(ProcessLookupError):
            process.send_signal(number)
        if number == signal.SIGKILL:
            self.killed += 1
        return True

    def stop(self) -> Stopped | None:
        """Stop it with its descendants; None if it does not run."""
        process = self.process
        if process is None or process.poll() is not None:
            return None
        return Stopped(process.pid)

    def end(self) -> Callable[[], None] | None:
        """Ask it to end; returns a function that kills it if needed. None if it does not run."""
        process, self.told = self.process, True
        if not self.signal(signal.SIGTERM):
            return None

        def kill() -> None:
            if process is self.process and self.signal(signal.SIGKILL):
                self.deaf += 1

        return kill

    def as_told(self) -> bool:
        """Whether it ended by a signal to end, also by one before it handled signals."""
        assert self.process is not None
        return self.told and self.process.returncode in (0, -signal.SIGTERM)

    def lacks_room(self) -> bool:
        """Whether it ended because its disk is full, and reported that."""
        assert self.process is not None
        said = self.log.read_text(errors="replace").rstrip()
        return self.process.returncode == 4 and said.endswith("make room on that disk")

    def group_dies(self) -> None:
        """Kill the processes that it left."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Supervisor:
    """Starts and restarts services."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def add(self, service: Service) -> Service:
        service.start()
        self.services[service.name] = service
        return service

    def stop(self) -> list[str]:
        """Ask all to end; returns the names of those that did not."""
        self._over.set()
        self._thread.join()
        deaf = []
        services = list(self.services.values())
        for service in services:
            service.wanted = False
            service.signal(signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        for service in services:
            if service.process is None:
                continue
            try:
                service.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                deaf.append(service.name)
                service.signal(signal.SIGKILL)
                service.process.wait()
        return deaf

    def _run(self) -> None:
        while not self._over.wait(0.05):
            now = time.monotonic()
            for service in list(self.services.values()):
                process = service.process
                if process is None or process.poll() is None:
                    continue
                if not service.due:
                    killed = process.returncode == -signal.SIGKILL
                    if not (killed or service.as_told() or service.lacks_room()):
                        service.ends.append(process.returncode)
                    service.due = now + RESTART_AFTER
                elif now >= service.due:
                    service.group_dies()
                    service.due = 0.0
                    service.start()
