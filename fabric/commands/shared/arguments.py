"""Options that several sub-commands have."""

from __future__ import annotations

import argparse
from typing import Any


def add_common(parser: argparse.ArgumentParser, **default: Any) -> None:
    """Add the options of every command, with this ``default`` or their own."""
    add = parser.add_argument
    add("--debug", action="store_true", help="print tracebacks of errors", **default)
    add("--cache", metavar="DIR", help="directory of all local files", **default)
    add("--artifacts", metavar="URL", help="artifact store: a directory or a URL", **default)
    text = 'farm to build on; "" builds on this machine'
    add("--controller", metavar="HOST[:PORT]", help=text, **default)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the limits of a build on this machine."""
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of workers on this machine"
    )
    parser.add_argument(
        "-j", "--max-jobs", type=int, metavar="N", help="most jobs of make (-j) in a build step"
    )
    parser.add_argument(
        "--build-timeout", type=float, metavar="SECONDS", help="end a build step after this time"
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print the logs of steps as they grow"
    )


def add_locked(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--locked",
        action="store_true",
        help="reject sources whose content the definitions do not pin",
    )


def add_system(parser: argparse.ArgumentParser) -> None:
    """Add the system of a chunk that is named alone."""
    parser.add_argument(
        "--system",
        metavar="SYSTEM",
        help="system with this chunk (default: the last one built here, else the smallest with it)",
    )
