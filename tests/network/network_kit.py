"""A farm on one machine: real programs, CURVE over loopback TCP, a bare trove, a store."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from small_definitions import SYSTEM, git, lay_out, remember_host_tools, write_chunks
from waiting import until


class Program:
    """A running program, and its output."""

    def __init__(self, command: list[str], cwd: Path, environ: dict[str, str], name: str) -> None:
        self.name = name
        self.output = cwd / f"{name}.{secrets.token_hex(2)}.out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def says(self, text: str, seconds: float = 30) -> None:
        """Wait until its output has a text."""
        end = time.monotonic() + seconds
        while text not in self.said():
            ended = self.process.poll() is not None
            assert text in self.said() or not ended, f"{self.name} ended, and said {self.said()}"
            assert time.monotonic() < end, f"{self.name} did not say {text!r}, but {self.said()}"
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait()

    def ends(self, seconds: float = 60) -> tuple[int, str]:
        """Its exit code and its output."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end; it said {self.said()}") from None
        return self.process.returncode, self.said()


class Definitions:
    """Definitions in a git repository: one stratum, built with this machine's tools."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root.parent / "source"
        lay_out(root, self.source)
        (root / "sources").mkdir()
        git(root, "init", "-q", "-b", "main")

    def write(self, **chunks: str | tuple[str, str]) -> None:
        """Write a chunk for each argument: its install command, or (dependencies, command)."""
        write_chunks(self.root, self.source, chunks)

    def by_lorry(self) -> None:
        """Make the chunks use the source thing 1.0 of a lorry."""
        git(self.source, "tag", "1.0")
        stratum = self.root / "strata/things.morph"
        text = re.sub(r"repo: .*", "repo: upstream:thing", stratum.read_text())
        stratum.write_text(text.replace("ref: main", "ref: '1.0'"))
        lorry = {"thing": {"type": "git", "url": f"file://{self.source}"}}
        (self.root / "sources/thing.lorry").write_text(json.dumps(lorry))


class Workstation:
    """A developer's machine: settings, keys, definitions, and a folder for logs."""

    def __init__(self, farm: Farm, name: str) -> None:
        self.farm = farm
        self.name = name
        self.home = farm.root / name
        self.here = self.home / "here"
        self.here.mkdir(parents=True)
        self.keys = farm.make_keys("initiator", name)
        self.config = self.home / "distbuild.toml"
        self.configure()
        self.definitions = Definitions(self.home / "definitions")

    def configure(self, **settings: str) -> None:
        values = {
            "cache": str(self.home / "cache"),
            "controller": self.farm.address,
            "keys": str(self.keys),
            "trove": self.farm.trove_url,
            "artifacts": self.farm.store_url,
            **self.farm.ssh,
            **self.farm.trust(self.name),
            **settings,
        }
        self.config.write_text("".join(f'{k} = "{v}"\n' for k, v in values.items()))

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "FABRIC_CONFIG": str(self.config), "HOME": str(self.home)}

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "fabric.initiator", *args]

    def run(
        self, *args: str, cwd: Path | None = None, timeout: float = 90
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args),
            cwd=cwd or self.here,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ask(self, *args: str) -> Any:
        """The answer to a command, as JSON."""
        done = self.run(*args, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *args: str, cwd: Path | None = None) -> Program:
        """A command that runs beside the test."""
        where = cwd or self.here
        return self.farm.start(self.command(*args), where, self.environ, f"{self.name}-{args[0]}")

    def build(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.run("build", f"../definitions/{SYSTEM}", *args)

    def start_build(self, *args: str) -> Program:
        return self.start("build", f"../definitions/{SYSTEM}", *args)

    def detach(self, *args: str) -> str:
        """Order a detached build; returns its id."""
        done = self.build("--detach", "--json", *args)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout.splitlines()[-1])["request"])

    def log(self, name: str, where: Path | None = None) -> str:
        return ((where or self.here) / f"build-step-{name}-misc.log").read_text(errors="replace")


class Farm:
    """A controller with workers, a trove and an artifact store."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.token = secrets.token_hex(8)
        self.programs: list[Program] = []
        self.port = free_ports()
        self.address = f"127.0.0.1:{self.port}"
        self.trove = root / "trove.git"
        self.trove_url = str(self.trove)
        self.ssh: dict[str, str] = {}
        self.signs = False
        self.substituters: list[str] = []  # of workers that are made from now on
        self.store_url = str(root / "artifacts")
        git(root, "init", "-q", "--bare", str(self.trove))
        self.controller = root / "controller"
        self.keys("make", "broker", "--to", str(self.controller / "keys"))
        self.broker_config = self.controller / "broker.toml"

    # -- its parts -------------------------------------------------------------------------

    def keys(self, *args: str) -> None:
        command = [sys.executable, "-m", "fabric.controller.keytool", *args]
        subprocess.run(command, check=True, capture_output=True)

    def make_keys(self, role: str, name: str) -> Path:
        """Make and admit a key for a peer."""
        theirs, ours = self.root / name / "keys", self.controller / "keys"
        self.keys("make", role, name, "--to", str(theirs))
        self.keys("admit", str(theirs / f"{name}.key"), "--keys", str(ours))
        shutil.copy(ours / "broker.key", theirs)
        return theirs

    def trusted(self, name: str) -> Path:
        """Where a machine has the keys of signatures that count for it."""
        return self.root / name / "trusted"

    def trust(self, name: str) -> dict[str, str]:
        """The setting for signatures of a machine."""
        return {"trusted-keys": str(self.trusted(name))} if self.signs else {}

    def sign(self, *machines: str, readers: Sequence[str] = ()) -> None:
        """Have these machines sign; they, and ``readers``, trust each other's keys."""
        self.signs = True
        for name in machines:
            self.keys("renew", "--trusted", str(self.trusted(name)))
        for reader in (*machines, *readers):
            for name in set(machines) - {reader}:
                public = str(self.trusted(name) / "own.pub")
                self.keys("trust", public, "--name", name, "--trusted", str(self.trusted(reader)))

    def revoke(self, name: str) -> None:
        self.keys("revoke", name, "--keys", str(self.controller / "keys"))

    def broker(self, inside: Callable[[list[str]], list[str]] = list) -> Program:
        """Start the broker; ``inside`` changes its command line."""
        values = {
            "cache": str(self.controller / "cache"),
            "state": str(self.controller / "state"),
            "keys": str(self.controller / "keys"),
            "listen": "127.0.0.1",
            "trove": self.trove_url,
            "artifacts": self.store_url,
            "metrics": "",
            **self.ssh,
            **self.trust("controller"),
        }
        text = "".join(f'{k} = "{v}"\n' for k, v in values.items())
        self.broker_config.write_text(text + f"port = {self.port}\nlease = 4.0\n")
        return self._daemon("broker", self.broker_config, inside=inside)

    def worker(
        self,
        name: str,
        slots: int = 1,
        jobs: int = 1,
        inside: Callable[[list[str]], list[str]] = list,
        **settings: str | list[str],
    ) -> Program:
        """Start a worker, as ``broker`` does; makes its key and settings, if it is new."""
        home = self.root / name
        config = home / "worker.toml"
        if not config.exists():
            keys = self.make_keys("worker", name)
            remember_host_tools(home / "cache")
            values = {
                "cache": str(home / "cache"),
                "controller": self.address,
                "keys": str(keys),
                "trove": self.trove_url,
                "artifacts": self.store_url,
                **self.ssh,
                **self.trust(name),
                **settings,
            }
            text = "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
            text += f"slots = {slots}\nmin-free-disk = 0\nmax-jobs = {jobs}\n"
            config.write_text(f"{text}substituters = {self.substituters}\n")
        return self._daemon("worker", config, name, inside)

    def workstation(self, name: str) -> Workstation:
        return Workstation(self, name)

    def _daemon(
        self,
        program: str,
        config: Path,
        name: str = "",
        inside: Callable[[list[str]], list[str]] = list,
    ) -> Program:
        command = [sys.executable, "-m", f"fabric.{program}", "--config", str(config)]
        return self.start(inside(command), config.parent, dict(os.environ), name or program)

    def start(self, command: list[str], cwd: Path, environ: dict[str, str], name: str) -> Program:
        environ = {**environ, "FARM": self.token}
        program = Program(command, cwd, environ, name)
        self.programs.append(program)
        return program

    def close(self) -> None:
        """End all processes, and their descendants."""
        for program in self.programs:
            if program.process.poll() is None:
                program.process.terminate()
        for program in self.programs:
            with suppress(subprocess.TimeoutExpired):
                program.process.wait(15)
            if program.process.poll() is None:
                program.kill()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """All our processes but sandboxes, whose environment is clean."""
        return list(_processes("environ", f"FARM={self.token}"))

    # -- builds that wait ------------------------------------------------------------------

    def held(self, name: str) -> str:
        """A command for a chunk that waits until `release`."""
        wait = "while [ ! -e /tmp/go ]; do sleep 0.02; done"
        return f"echo {name} begins; : held-{name}-{self.token}\n{wait}; : held-{name}-{self.token}"

    def holding(self, name: str) -> list[int]:
        """The processes of waiting builds."""
        return list(_processes("cmdline", f"held-{name}-{self.token}"))

    def release(self, name: str) -> None:
        """Release a waiting build."""

        def gone_on() -> bool:
            waiting = self.holding(name)
            for pid in waiting:
                with suppress(OSError):  # it may be just ending
                    Path(f"/proc/{pid}/root/tmp/go").touch()
            return not waiting

        until(lambda: self.holding(name), what=f"for {name} to wait")
        until(gone_on, what=f"for {name} to go on")


def _processes(what: str, mark: str) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                if mark.encode() in (folder / what).read_bytes():
                    yield int(folder.name)


def free_ports() -> int:
    """The first of three consecutive free ports."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        try:
            for number in range(3):
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", port + number))
        except OSError:
            continue
        return port
