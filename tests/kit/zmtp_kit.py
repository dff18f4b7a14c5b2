"""ZeroMQ's protocol (ZMTP 3.0) without libzmq, for invalid messages.

libzmq aborts the process if a connection ends within a message of several frames: decision 11.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4


def _frame(flags: int, data: bytes) -> bytes:
    return struct.pack("!BQ", flags | _LONG, len(data)) + data


class RawSocket:
    """A connection to the ipc socket at ``path`` from a socket of the type ``kind``: b"DEALER".

    Messages from the other side are not read.
    """

    def __init__(self, path: Path, kind: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20.0)
        self._socket.connect(str(path))
        ready = b"\x05READY\x0bSocket-Type" + struct.pack("!I", len(kind)) + kind
        self._socket.sendall(_GREETING + _frame(_COMMAND, ready))
        said = b""
        while b"READY" not in said:
            said += self._socket.recv(4096)

    def send(self, *frames: bytes, end: bool = True) -> None:
        """Send one message, or its beginning."""
        *some, last = frames
        data = [*(_frame(_MORE, each) for each in some), _frame(0 if end else _MORE, last)]
        self._socket.sendall(b"".join(data))

    def close(self) -> None:
        self._socket.close()
