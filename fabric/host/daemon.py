"""Provides what the daemons share: options, and checks of free disk and memory."""

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
    """The options of a daemon whose settings are in ``file``, and those of an embedded one."""
    top = argparse.ArgumentParser(prog=program, description=description.splitlines()[0])
    top.add_argument(
        "--config", type=Path, default=file, metavar="FILE", help=f"its settings (default {file})"
    )
    top.add_argument("--check-config", action="store_true", help="say what it understood, and end")
    top.add_argument("--directory", type=Path, help="embedded: where the broker's sockets are")
    top.add_argument("--parent", type=int, metavar="PID", help="embedded: end when this one does")
    return top


def run(main: Callable[[], int]) -> NoReturn:
    """Run a daemon, and end as soon as it has.

    Python would wait for threads that wait for a store which does not answer: for minutes.
    """
    try:
        code = main()
    except SystemExit as end:  # of the parser of arguments
        code = end.code if isinstance(end.code, int) else 2
    except BaseException:  # noqa: BLE001  as Python does it
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def free_memory() -> int:
    """Bytes of memory that this machine has left for programs; 0 if it does not say."""
    with contextlib.suppress(OSError), open("/proc/meminfo", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def free_disk(where: Path, least: int) -> tuple[int, str]:
    """Bytes left on a disk, and what is wrong with that; "" if they are ``least`` or more."""
    try:
        free = shutil.disk_usage(where).free
    except OSError as error:
        return 0, f"{where}: {error.strerror}"
    if free >= least:
        return free, ""
    return free, f"{where}: {free / GIB:.1f} GiB free, fewer than {least / GIB:.1f}"
