"""The fabric of one machine: a broker and workers as child processes, talking over ipc.

The same programs with the same messages as on a farm; only that they end with the initiator
that started them, however it ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from fabric.config import Settings
from fabric.errors import MachineFault

#: Seconds that children get to end by themselves: workers take down their sandboxes meanwhile.
GRACE = 10.0


class EmbeddedFabric:
    """Starts on entering, stops on leaving; ``directory`` holds the sockets."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._workers = 0
        self.directory = Path()

    def __enter__(self) -> EmbeddedFabric:
        # socket paths are limited to about 107 bytes, so no deep directory of the user's
        self.directory = Path(tempfile.mkdtemp(prefix="fabric-"))
        try:
            self._start("broker", "fabric.broker", "--state", str(self._settings.state_dir))
            for _ in range(self._settings.worker_count):
                self.add_worker()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def add_worker(self) -> None:
        """One more worker."""
        self._workers += 1
        name = f"worker-{self._workers}"
        self._start(name, "fabric.worker", "--name", name)

    def check(self) -> str:
        """Replaces workers that died; returns news of that, "" if there is none.

        MachineFault if the broker is gone, or workers die as soon as they start.
        """
        for name, child in list(self._children.items()):
            if child.poll() is None:
                continue
            if name == "broker" or self._workers >= 3 * self._settings.worker_count + 3:
                raise MachineFault(f"the embedded {name} ended ({_how(child)}):\n{self.said(name)}")
            del self._children[name]
            self.add_worker()
            return f"{name} ended ({_how(child)}), another takes its place"
        return ""

    def said(self, name: str) -> str:
        """The last that a child wrote on its standard error."""
        try:
            return (self.directory / f"{name}.err").read_text(errors="replace")[-2000:].strip()
        except OSError:
            return ""

    def stop(self) -> None:
        """Ends all children and removes the directory."""
        children, self._children = list(self._children.values()), {}
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, name: str, module: str, *args: str) -> None:
        settings = self._settings
        environ = os.environ | {
            "FABRIC_CACHE": str(settings.cache_dir),
            "FABRIC_ARTIFACTS": settings.store_url,
            "FABRIC_MAX_JOBS": str(settings.jobs),
            "FABRIC_BUILD_TIMEOUT": str(settings.build_timeout),
            "FABRIC_LOG_LIMIT": str(settings.log_limit),
        }
        common = ("--directory", str(self.directory), "--parent", str(os.getpid()))
        with (self.directory / f"{name}.err").open("wb") as errors:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", module, *common, *args],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=environ,
                start_new_session=True,  # Ctrl-C is the initiator's to handle
            )


def _how(child: subprocess.Popen[bytes]) -> str:
    code = child.returncode
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
