"""Provides the options and the exit of a daemon, and checks of free disk and memory."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

GIB = 2**30


def parser(program: str, description: str, file: Path) -> argparse.ArgumentParser:
    """The parser of a daemon's options; its settings are in ``file`` by default."""
    top = argparse.ArgumentParser(prog=program, description=description.splitlines()[0])
    top.add_argument(
        "--config", type=Path, default=file, metavar="FILE", help=f"settings file (default {file})"
    )
    top.add_argument(
        "--check-config", action="store_true", help="print the settings as understood, and exit"
    )
    top.add_argument(
        "--directory", type=Path, help="embedded: the directory of the broker's sockets"
    )
    top.add_argument(
        "--parent", type=int, metavar="PID", help="embedded: exit when this process does"
    )
    return top


def run(main: Callable[[], int]) -> NoReturn:
    """Run a daemon, and exit with its code.

    Python's own exit waits for all threads, and one that waits for a store may do so for minutes.
    """
    try:
        code = main()
    except SystemExit as end:  # raised by the parser of arguments
        code = end.code if isinstance(end.code, int) else 2
    except BaseException:  # noqa: BLE001  as Python does it
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def free_memory() -> int:
    """Bytes of memory available on this machine; 0 if unknown."""
    with contextlib.suppress(OSError), open("/proc/meminfo", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def free_disk(where: Path, least: int) -> tuple[int, str]:
    """Bytes free on a disk, and an error message if they are fewer than ``least``, else ""."""
    try:
        free = shutil.disk_usage(where).free
    except OSError as error:
        return 0, f"{where}: {error.strerror}"
    if free >= least:
        return free, ""
    return free, f"{where}: {free / GIB:.1f} GiB free, fewer than {least / GIB:.1f}"
