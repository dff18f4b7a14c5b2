"""Hosts on one machine: a network namespace each, joined by a bridge, with a disk of their own.

Only for a process in new namespaces (network, mounts, processes), as `test_chaos` makes them:
hosts are never removed, but end with the namespaces. A host's disk is a tmpfs at `DISK`; all its
other files are those of this machine, which no host writes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Where each host has its disk.
DISK = Path("/mnt")
#: The file of its wall clock, where there is room even if the disk is full.
CLOCK = Path("/run/clock")
_BRIDGE = "wire"


def sh(*command: str | Path) -> str:
    """Run a command that must succeed; returns its output."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
    return done.stdout


class Network:
    """The bridge and its hosts."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        sh("ip", "link", "set", "lo", "up")
        sh("ip", "link", "add", _BRIDGE, "type", "bridge")
        sh("ip", "link", "set", _BRIDGE, "up")

    def add(self, name: str, disk: int) -> Host:
        """Add a host with a disk of so many bytes."""
        host = self.hosts[name] = Host(name, f"10.77.0.{10 + len(self.hosts)}", disk)
        return host

    def name(self) -> None:
        """Give every host the names of all."""
        lines = [f"{host.address} {host.name}\n" for host in self.hosts.values()]
        for host in self.hosts.values():
            host.write("etc-hosts", "127.0.0.1 localhost\n" + "".join(lines))
            host.sh("mount", "--bind", DISK / "etc-hosts", "/etc/hosts")


class Host:
    """A machine, whose namespaces a process of their own holds."""

    def __init__(self, name: str, address: str, disk: int) -> None:
        self.name = name
        self.address = address
        self._size = disk
        self._since = 0  # its start by the monotonic clock
        holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "sh", "-c", "echo; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        self.holder = holder.pid
        sh("ip", "link", "add", name, "type", "veth", "peer", "eth0", "netns", str(self.holder))
        sh("ip", "link", "set", name, "master", _BRIDGE, "up")
        self.sh("ip", "link", "set", "lo", "up")
        self.sh("ip", "address", "add", f"{address}/24", "dev", "eth0")
        self.sh("ip", "link", "set", "eth0", "up")
        self.sh("hostname", name)
        self.sh("mount", "-t", "tmpfs", "-o", f"size={disk},mode=755", name, DISK)
        for place in ("/run", "/dev/shm"):
            self.sh("mount", "-t", "tmpfs", "-o", "mode=1777", name, place)
        for place in ("tmp", "home", "run/sshd"):
            self.sh("mkdir", "-p", DISK / place)
        self.sh("mkdir", "-p", "/run/sshd")
        # logins run no startup files of this machine's user: faults would kill those half-way too
        root = f"root:x:0:0:root:{DISK}/home:/bin/sh\n"
        users = Path("/etc/passwd").read_text().splitlines(keepends=True)
        others = (line for line in users if not line.startswith("root:"))
        self.write("etc-passwd", "".join([root, *others]))
        self.sh("mount", "--bind", DISK / "etc-passwd", "/etc/passwd")
        self.clock("+0")

    def done(self) -> None:
        """Mark the setup as complete: later mounts belong to programs."""
        self.mounted = self.mounts()

    @property
    def disk(self) -> Path:
        """The path of its disk from outside."""
        return Path(f"/proc/{self.holder}/root") / DISK.relative_to("/")

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Write a file to its disk; returns the path inside the host."""
        path = self.disk / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return DISK / name

    def inside(self, command: Sequence[str | Path], folder: Path = DISK) -> list[str]:
        """The command line that runs ``command`` on this host, as the process it makes."""
        enter = ["nsenter", f"--target={self.holder}", "--net", "--mount", "--uts"]
        return [*enter, f"--wdns={folder}", *map(str, command)]

    def sh(self, *command: str | Path) -> str:
        enter = ["nsenter", f"--target={self.holder}", "--net", "--mount", "--uts"]
        return sh(*enter, *command)

    def environment(self, more: Mapping[str, str] = {}) -> dict[str, str]:
        """The environment of programs here: a home on the disk, and the host's clock."""
        return {
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HOME": str(DISK / "home"),
            "TMPDIR": str(DISK / "tmp"),
            "LC_ALL": "C.UTF-8",
            **more,
        }

    def booted(self, *command: str | Path) -> list[str]:
        """The same for what this host is for: its clocks began when the host was started."""
        if not self._since:
            return self.inside(command)
        clocks = [f"--{clock}={-self._since}" for clock in ("monotonic", "boottime")]
        return self.inside(["unshare", "--time", *clocks, *command])

    # -- faults --------------------------------------------------------------------------------

    def clock(self, offset: str) -> None:
        """Shift the wall clock of its programs: "+1d"."""
        file = Path(f"/proc/{self.holder}/root") / CLOCK.relative_to("/")
        file.write_text(f"{offset}\n")

    def boot(self, uptime: int) -> None:
        """Have it run for so many seconds, as far as programs see that are started from now on."""
        self._since = int(time.monotonic()) - uptime

    def cut(self) -> None:
        """Disconnect it."""
        sh("ip", "link", "set", self.name, "down")

    def mend(self) -> None:
        sh("ip", "link", "set", self.name, "up")

    def slow(self, rate: str) -> None:
        """Let no more than ``rate`` ("500kbit") through to it, and lose what does not fit."""
        shape = ["tbf", "rate", rate, "burst", "16kb", "latency", "300ms"]
        sh("tc", "qdisc", "replace", "dev", self.name, "root", *shape)

    def hasten(self) -> None:
        sh("tc", "qdisc", "del", "dev", self.name, "root")

    def fill(self) -> None:
        """Fill its disk."""
        used = shutil.disk_usage(self.disk).used
        # files written at this moment keep it from shrinking further, so a little room may stay
        for room in (0, 1 << 20, 8 << 20):
            with contextlib.suppress(AssertionError):
                self._resize(used + room)
                break

    def empty(self) -> None:
        self._resize(self._size)

    def _resize(self, size: int) -> None:
        self.sh("mount", "-o", f"remount,size={size}", DISK)

    def processes(self) -> list[int]:
        """Its processes, without the holder and sandboxes, which have no network."""
        mine = network_of(self.holder)
        return [pid for pid in everybody() if pid != self.holder and network_of(pid) == mine]

    def mounts(self) -> set[str]:
        """All mount points."""
        text = Path(f"/proc/{self.holder}/mountinfo").read_text()
        return {line.split()[4] for line in text.splitlines()}


def everybody() -> list[int]:
    """All processes of this machine."""
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def descendants(pid: int) -> set[int]:
    """A process and its descendants."""
    parents = {}
    for each in everybody():
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{each}/stat").read_text(errors="replace")
            parents[each] = int(stat.rpartition(")")[2].split()[1])
    found, fresh = set[int](), {pid} & parents.keys()
    while fresh:
        found |= fresh
        fresh = {each for each, parent in parents.items() if parent in fresh}
    return found


def network_of(pid: int) -> str:
    """The network namespace of a process; "" if it has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def faketime() -> str:
    """The library that shifts the wall clock. Time namespaces shift only the others."""
    for path in sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")):
        return str(path)
    raise AssertionError("the tests need the Debian package faketime")
