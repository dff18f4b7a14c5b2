"""Servers as child processes, their ports, and connections that fail."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def running(
    command: list[str], output: Path, port: int, *, path: str = "", seconds: float = 20
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as a child process in the block, which begins once its port answers."""
    search = f"{os.environ['PATH']}:{path}"
    program = shutil.which(command[0], path=search)
    assert program, f"the tests need {command[0]}"
    with output.open("wb") as log:
        process = subprocess.Popen([program, *command[1:]], stdout=log, stderr=log)
    try:
        until = time.monotonic() + seconds
        while not answers(port):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < until, output.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def free_port(above: int = 1024) -> int:
    """An unused port; with ``above``, one from there to 55000 with port + 10,000 unused too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if above == 1024:
            return port
        if above < port < 55000 and not answers(port + 10000):
            return port


class Cable:
    """A TCP proxy to a server, whose connections can be cut.

    ``breaks`` connections are cut after ``after`` bytes of the server's (or with ``up`` of the
    client's); ``rate`` limits uploads, in bytes per second; ``stalls`` lets nothing through.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self.after = self.breaks = self.rate = 0
        self.up = self.stalls = False
        self.cut = 0  # connections that were
        self.passed = 0  # bytes of the server's
        self._stalled: list[socket.socket] = []  # nobody reads them, nobody closes them
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Cable:
        self._accepting.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for one in self._stalled:
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.stalls:
                    self._stalled.append(client)
                    continue
                server = socket.create_connection(("127.0.0.1", self._to))
                for pair in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                sink.sendall(data)
                passed += len(data)
                self.passed += 0 if up else len(data)
                if up and self.rate:
                    time.sleep(len(data) / self.rate)
                if self.breaks and up == self.up and passed >= self.after:
                    self.breaks -= 1
                    self.cut += 1
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
