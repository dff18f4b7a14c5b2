"""A virtual machine with a serial console to talk to, by software emulation."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self


class ConsoleError(AssertionError):
    """The machine did not print the expected text in time; has its last output."""


class Machine:
    """QEMU with a disk image that does not change: writes of the machine are discarded.

    A context manager, which ends the machine in any state. ``network`` is the argument of QEMU's
    -nic. The console is searched forward only: each `wait_for` begins behind the match before it.
    """

    def __init__(
        self,
        image: Path,
        *,
        memory: str = "512M",
        disk: Literal["virtio", "nvme"] = "virtio",
        network: str = "none",
        arguments: Sequence[str] = (),
        format: str = "raw",
    ) -> None:
        self._command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1"]
        self._command += ["-m", memory, "-nic", network, "-display", "none", "-monitor", "none"]
        self._command += ["-no-reboot", "-serial", "stdio"]
        self._command += ["-device", "virtio-rng-pci"]
        device = {"virtio": "virtio-blk-pci", "nvme": "nvme,serial=1"}[disk]
        self._command += ["-device", f"{device},drive=disk"]
        self._command += ["-drive", f"file={image},format={format},if=none,id=disk,snapshot=on"]
        self._command += arguments
        self._said = bytearray()
        self._position = 0
        self._news = threading.Condition()
        self._ended = False

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # errors of QEMU belong to the output
            bufsize=0,
        )
        self._reader = threading.Thread(target=self._read, name="console", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    @property
    def console(self) -> str:
        """All output so far, without escape sequences."""
        with self._news:
            return _plain(bytes(self._said))

    def wait_for(self, pattern: str, timeout: float) -> re.Match[bytes]:
        """The next match of ``pattern`` on the console.  ConsoleError after ``timeout`` seconds."""
        wanted = re.compile(pattern.encode(), re.MULTILINE)
        deadline = time.monotonic() + timeout
        with self._news:
            while (match := wanted.search(self._said, self._position)) is None:
                left = deadline - time.monotonic()
                if self._ended:
                    raise ConsoleError(self._story(f"the machine ended before it said {pattern!r}"))
                if left <= 0:
                    raise ConsoleError(self._story(f"no {pattern!r} in {timeout:.0f} seconds"))
                self._news.wait(left)
            self._position = match.end()
        return match

    def send(self, line: str) -> None:
        """Type ``line`` and Enter."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def run(self, command: str, timeout: float) -> tuple[int, str]:
        """Run a command in the shell that is logged in: its exit code and what it printed."""
        # the words are split so that the echo of the typed line does not match
        self.send(f"echo be''gin; {command}; echo e''nd $?")
        start = self.wait_for(r"begin\r?\n", timeout).end()
        match = self.wait_for(r"end (\d+)\r?$", timeout)
        with self._news:
            printed = bytes(self._said[start : match.start()])
        return int(match[1]), _plain(printed).replace("\r\n", "\n").rstrip()

    def wait_end(self, timeout: float) -> None:
        """Wait until the machine has switched itself off."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ConsoleError(self._story(f"still on after {timeout:.0f} seconds")) from None
        self._reader.join()
        if code:
            raise ConsoleError(self._story(f"QEMU ended with exit code {code}"))

    def _read(self) -> None:
        assert self._process.stdout is not None
        while piece := self._process.stdout.read(65536):
            with self._news:
                self._said += piece
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _story(self, what: str) -> str:
        last = "\n".join(_plain(bytes(self._said)).splitlines()[-40:])
        return f"{what}; the last of its console:\n{last}"


def _plain(said: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[78cM]", "", said.decode("utf-8", "replace"))
