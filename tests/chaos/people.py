"""Users of the farm, who type a killed command again."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from farm import Farm, program
from hosts import DISK, Host
from services import Stopped

from fabric.client.request import OVER

#: Seconds between two builds of a user who builds regularly.
PAUSE = 3.0


class User:
    """Builds a system, and types the command again if it was killed.

    Only commands that the harness killed are typed again. All others have to succeed: ``wrong``
    lists those that did not.
    """

    def __init__(
        self, farm: Farm, host: Host, system: str, parts: Sequence[str] = (), name: str = ""
    ) -> None:
        self.farm = farm
        self.name = name or host.name
        self.parts = parts
        self.host = host
        self.system = system
        self.wrong: list[str] = []
        self.commands = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._was_killed = False
        self._next()

    @property
    def definitions(self) -> str:
        return f"{DISK}/definitions/systems/{self.system}.morph"

    def killed(self) -> bool:
        """Kill the command by SIGKILL; False if none runs."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.kill()
        self._was_killed = True
        return True

    def stop(self) -> Stopped | None:
        """Stop the command; None if none runs."""
        if self._process is None or self._process.poll() is not None:
            return None
        return Stopped(self._process.pid)

    def over(self) -> bool:
        """Whether the system is built."""
        if self._process is None:
            return True
        code = self._process.poll()
        if code is None:
            return False
        killed, self._was_killed = self._was_killed, False
        if code == 0:
            self._process = None
            return self._went_well()
        if not (killed and code == -signal.SIGKILL):
            self.wrong.append(f"{self.name}: {self.typed} ended with exit code {code}")
        self._next()
        return False

    def again(self) -> None:
        """Build the system once more."""
        self._next()

    def look_back(self) -> None:
        """Query the build once more at the end, where it was followed."""
        for host, folder in self.places():
            command = [*program("initiator"), "build", self.definitions, *self.parts]
            code = self._start(command, host, folder).wait()
            if code:
                self.wrong.append(f"{self.name}: the build in {folder} of {host.name} is {code}")

    def places(self) -> list[tuple[Host, str]]:
        """The hosts and folders that hold its logs."""
        return [(self.host, "here")]

    def _next(self) -> None:
        self._type("build", self.definitions, self.host, "here", *self.parts)

    def _went_well(self) -> bool:
        return True

    def _type(self, what: str, about: str, host: Host, folder: str, *more: str) -> None:
        self.typed = f"{what} {about} in {folder} of {host.name}"
        self._process = self._start([*program("initiator"), what, about, *more], host, folder)
        self.commands += 1

    def _start(self, command: list[str], host: Host, folder: str) -> subprocess.Popen[bytes]:
        self.output = self.farm.logs / f"{self.name}.{self.commands}.out"
        with self.output.open("wb") as output:
            return subprocess.Popen(
                host.inside(command, DISK / folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.farm.environment(host),
                start_new_session=True,
            )


class Roamer(User):
    """Submits a detached build, and attaches to it from another machine each time."""

    def __init__(self, farm: Farm, host: Host, system: str, elsewhere: Host) -> None:
        self._request = ""
        self._hosts = [elsewhere, host]
        super().__init__(farm, host, system)

    def places(self) -> list[tuple[Host, str]]:
        return [(host, "attached") for host in self._hosts]

    def _next(self) -> None:
        if not self._request:
            self._type("build", self.definitions, self.host, "here", "--detach", "--json")
        else:
            self._hosts.reverse()
            self._type("attach", self._request, self._hosts[0], "attached")

    def again(self) -> None:
        self._request = ""
        super().again()

    def _went_well(self) -> bool:
        if self._request:
            return True
        [self._request] = ordered(self.output)
        self._next()
        return False


class Regular(User):
    """Submits the same detached build regularly, and remembers the accepted requests."""

    def __init__(self, farm: Farm, host: Host, system: str) -> None:
        self.accepted: list[str] = []
        self.content = False  # submit nothing more
        self._due = 0.0
        super().__init__(farm, host, system, name=f"{host.name}-again")

    def over(self) -> bool:
        if super().over() and not self.content and time.monotonic() > self._due:
            self._next()
        return self.content and super().over()

    def forgotten(self) -> list[str]:
        """Accepted requests that are not built although the farm is idle."""
        until = time.monotonic() + 60
        while True:
            known = {one["request"]: one["state"] for one in self._list()}
            if OVER.issuperset(known.values()) or time.monotonic() > until:
                break
            time.sleep(0.5)
        states = {request: known.get(request, "forgotten") for request in self.accepted}
        return [f"{name} is {state}" for name, state in states.items() if state != "done"]

    def places(self) -> list[tuple[Host, str]]:
        return []

    def look_back(self) -> None:
        pass

    def _next(self) -> None:
        self._type("build", self.definitions, self.host, "here", "--detach", "--json")

    def _went_well(self) -> bool:
        self.accepted += ordered(self.output)
        self._due = time.monotonic() + PAUSE
        return True

    def _list(self) -> list[dict[str, str]]:
        command = self.host.inside([*program("initiator"), "list", "--json"])
        done = subprocess.run(
            command, env=self.farm.environment(self.host), stdout=subprocess.PIPE, check=True
        )
        told: list[dict[str, str]] = json.loads(done.stdout)
        return told


def ordered(output: Path) -> list[str]:
    """The requests that a command reports as submitted."""
    lines = output.read_text().splitlines()
    return [json.loads(line)["request"] for line in lines if '"ordered"' in line]


def logs(user: User) -> list[Path]:
    """All logs that a user has."""
    return [
        path
        for host, folder in user.places()
        for path in sorted((host.disk / folder).glob("build-step-*.log"))
    ]
