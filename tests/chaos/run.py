"""Build two systems on a farm while it is broken again and again; see that nothing comes of it.

Runs in namespaces of its own: ``make chaos FAULTS=N SEED=S`` makes them.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from farm import Build, Farm
from hosts import DISK

from fabric.jobs import Manifest

Undo = Callable[[], object]


class Faults:
    """What can be broken, by name; each returns how it is mended, or None if nothing was there."""

    def __init__(self, farm: Farm, builds: list[Build], random: random.Random) -> None:
        self.farm = farm
        self.builds = builds
        self.random = random
        self.undone: list[tuple[float, str, Undo]] = []  # due, what, how
        self.count: collections.Counter[str] = collections.Counter()

    def one(self) -> None:
        kinds = [self.kill, self.kill, self.kill, self.cut, self.slow, self.fill, self.jump,
                 self.hang]  # fmt: skip
        self.random.choice(kinds)()

    def mend(self, now: float) -> None:
        for each in [each for each in self.undone if each[0] <= now]:
            self.undone.remove(each)
            each[2]()

    def _did(self, what: str, seconds: float = 0.0, undo: Undo | None = None) -> None:
        self.count[what] += 1
        print(f"{time.monotonic():9.1f} {what}", flush=True)
        if undo is not None:
            self.undone.append((time.monotonic() + seconds, what, undo))

    def _busy(self, kind: str, host: str) -> bool:
        return any(what == f"{kind} {host}" for _, what, _ in self.undone)

    def kill(self) -> None:
        services = self.farm.supervisor.services
        build = self.random.choice(self.builds)
        name = self.random.choice([*services, "initiator"])
        if name == "initiator":
            if build.process is not None and build.process.poll() is None:
                build.process.kill()
                self._did(f"kill initiator of {build.host.name}")
        elif services[name].signal(signal.SIGKILL):
            self._did(f"kill {name}")

    def hang(self) -> None:
        services = self.farm.supervisor.services
        name = self.random.choice(list(services))
        if not self._busy("hang", name) and services[name].signal(signal.SIGSTOP):
            process = services[name].process
            assert process is not None
            self._did(
                f"hang {name}",
                self.random.uniform(0.5, 6),
                lambda: process.send_signal(signal.SIGCONT),  # which nobody may be there to hear
            )

    def cut(self) -> None:
        host = self.random.choice(self.farm.hosts)
        if not self._busy("cut", host.name):
            host.cut()
            self._did(f"cut {host.name}", self.random.uniform(0.5, 8), host.mend)

    def slow(self) -> None:
        host = self.random.choice(self.farm.hosts)
        if not self._busy("slow", host.name):
            host.slow(self.random.choice(["200kbit", "1mbit"]))
            self._did(f"slow {host.name}", self.random.uniform(1, 6), host.hasten)

    def fill(self) -> None:
        host = self.random.choice([*self.farm.workers, self.farm.trove])
        if not self._busy("fill", host.name):
            host.fill()
            self._did(f"fill {host.name}", self.random.uniform(1, 5), host.empty)

    def jump(self) -> None:
        host = self.random.choice(self.farm.hosts)
        if not self._busy("jump", host.name):
            host.clock(self.random.choice(["+1d", "-1d"]))
            self._did(f"jump {host.name}", self.random.uniform(2, 10), lambda: host.clock("+0"))


def manifests(store: Path) -> dict[str, Manifest]:
    """All manifests of a store of files, by key."""
    found = {}
    for path in store.rglob("*"):
        if path.is_file() and len(path.name.split(".")[0]) == 64:
            try:
                manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            found[manifest.key] = manifest
    return found


def undisturbed(farm: Farm, where: Path) -> dict[str, Manifest]:
    """What a machine by itself makes of the same definitions."""
    user = farm.users[0]
    config = user.write(
        "etc/alone.toml",
        f'cache = "{DISK}/alone"\n[aliases]\nupstream = "file://{DISK}/sources/%s"\n',
    )
    environment = user.environment({"FABRIC_CONFIG": str(config)})
    for system in ("small", "wide"):
        command = [sys.executable, "-m", "fabric.initiator", "build"]
        command.append(f"{DISK}/definitions/systems/{system}.morph")
        enter = [
            word.replace(f"--wdns={DISK}", f"--wdns={DISK}/tmp") for word in user.inside(command)
        ]
        with (where / "alone.log").open("ab") as log:
            subprocess.run(enter, check=True, env=environment, stdout=log, stderr=log)
    return manifests(user.disk / "alone/artifacts")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--faults", type=int, default=60)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--workers", type=int, default=3)
    options.add_argument("--patience", type=float, default=300, help="seconds for all of it")
    options.add_argument("logs", type=Path)
    given = options.parse_args()
    farm = Farm(given.logs, given.workers)
    alone = undisturbed(farm, given.logs)
    print(f"undisturbed: {len(alone)} manifests", flush=True)
    dice = random.Random(given.seed)
    builds = [Build(farm, host, s) for host, s in zip(farm.users, ("wide", "small"), strict=True)]
    faults = Faults(farm, builds, dice)
    began = time.monotonic()
    waiting = list(builds)
    next_fault = began + 1
    while waiting or faults.undone:
        now = time.monotonic()
        if now - began > given.patience:
            print(f"not over: {[build.host.name for build in waiting]}")
            return 1
        if waiting and faults.count.total() < given.faults and now > next_fault:
            faults.one()
            next_fault = now + dice.uniform(0.05, 1.0)
        faults.mend(now)
        waiting = [build for build in waiting if not build.over()]
        time.sleep(0.05)
    took = time.monotonic() - began
    deaf = farm.supervisor.stop()
    there = manifests(farm.artifacts)
    wrong = [
        manifest.name
        for key, manifest in alone.items()
        if key not in there or there[key].artifacts != manifest.artifacts
    ]
    logs, spoilt = check_logs(farm, there)
    left = [pid for host in farm.hosts for pid in host.processes()]
    for text in (*wrong, *spoilt):
        print("differs:", text)
    for pid in left:
        print("left:", Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:200])
    ends = {each.name: each.ends for each in farm.supervisor.services.values() if each.ends}
    codes = {build.host.name: build.codes for build in builds}
    print(f"{faults.count.total()} faults in {took:.0f} s: {dict(sorted(faults.count.items()))}")
    print(f"exit codes {codes}; services that ended by themselves {ends}, or did not {deaf}")
    print(
        f"{len(alone)} steps, {len(wrong)} differ; {logs} logs, {len(spoilt)} differ;"
        f" {len(left)} processes left"
    )
    return 1 if wrong or spoilt or left or deaf else 0


def check_logs(farm: Farm, there: dict[str, Manifest]) -> tuple[int, list[str]]:
    """How many logs the users have, and which are not those of the store."""
    known = {manifest.log_name: manifest.log for manifest in there.values()}
    count, spoilt = 0, []
    for user in farm.users:
        for path in (user.disk / "here").glob("build-step-*.log"):
            count += 1
            log = known.get(path.name)
            if log is None or log.sha256 != hashlib.sha256(path.read_bytes()).hexdigest():
                spoilt.append(f"{path.name} of {user.name}")
    return count, spoilt


if __name__ == "__main__":
    sys.exit(main())
