"""Searches files and processes for keys and passwords of a cluster.

Run as a program in a world: ``walk`` tells of files, ``watch`` of processes, until standard input
ends.  What is looked for comes by standard input, since arguments are there for all to see.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PIECE = 8 << 20


def secrets_of(state: Path, *more: str) -> list[str]:
    """Return a part of each secret in a cluster's folder and in the texts ``more`` of key files."""
    texts = [file.read_text() for file in (state / "ssh").rglob("*") if _is_private(file)]
    texts += [file.read_text() for file in (*state.glob("tls/*.key"), *state.glob("web/cert*.key"))]
    found = [text.splitlines()[-3 if "OPENSSH" in text else 2] for text in (*texts, *more)]
    found += [file.read_text().splitlines()[1] for file in state.glob("signing/*.key")]
    for file in state.glob("*/*.key_secret"):
        found += re.findall(r'secret-key = "(.*)"', file.read_text())
    for name in ("artifacts/builder", "artifacts/reader", "web/password"):
        found.append((state / name).read_text().strip().partition(":")[2])
    found.append((state / "web/token").read_text().strip())
    found.append((state / "web/htpasswd").read_text().strip().rpartition("$")[2])
    assert all(len(secret) > 30 for secret in found), "so long that nothing else is like it"
    return found


def _is_private(file: Path) -> bool:
    return file.is_file() and "PRIVATE KEY" in file.read_text()


def holding(
    secrets: list[bytes], roots: list[str], since: float = 0.0
) -> Iterator[tuple[str, int]]:
    """Yield path and mode of each file below ``roots`` that contains a secret.  Skips holes.

    Files that did not change after ``since``, in Unix time, are not read: they are too old.
    """
    pending = list(roots)
    while pending:  # os.walk is recursive, and some trees are deeper than Python's stack
        folder = pending.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        pending.append(entry.path)
                    elif not stat.S_ISREG(found.st_mode) or found.st_ctime < since:
                        continue
                    elif _holds(entry.path, found.st_size, secrets):
                        yield entry.path, stat.S_IMODE(found.st_mode)
                except OSError:
                    continue  # it was removed, or cannot be read


def _holds(path: str, size: int, secrets: list[bytes]) -> bool:
    longest = max(map(len, secrets))
    with open(path, "rb") as file:  # noqa: PTH123
        position = 0
        while position < size:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                return False  # a hole up to the end
            piece = os.pread(file.fileno(), _PIECE + longest, position)
            if any(secret in piece for secret in secrets):
                return True
            position += _PIECE
    return False


def start_watch(start: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Start to watch processes; ``start`` is that of a world, or Popen."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return start(sys.executable, __file__, "watch", **pipes)


def end_watch(watch: subprocess.Popen[str]) -> list[str]:
    """Stop watching and return the command lines that existed."""
    lines: list[str] = json.loads(watch.communicate()[0])
    return lines


def _watch() -> None:
    """Collect the command lines of all processes until standard input ends."""
    os.set_blocking(0, False)
    seen: set[bytes] = set()
    over = False
    while not over:
        over = sys.stdin.buffer.read(1) is not None
        for process in Path("/proc").glob("[0-9]*"):
            try:
                seen.add((process / "cmdline").read_bytes())
            except OSError:
                continue
        time.sleep(0.02)
    print(json.dumps(sorted(line.decode("latin-1") for line in seen)))


def _walk(roots: list[str]) -> None:
    given = json.load(sys.stdin)
    secrets = [text.encode() for text in given["secrets"]]
    print(json.dumps(list(holding(secrets, roots, given["since"]))))


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        _watch()
    else:
        _walk(sys.argv[2:])
