"""Options that several sub-commands have."""

from __future__ import annotations

import argparse
from typing import Any


def add_common(parser: argparse.ArgumentParser, **default: Any) -> None:
    """Options of every command.  ``default``: the value of those that are not given."""
    add = parser.add_argument
    add("--debug", action="store_true", help="show tracebacks of errors", **default)
    add("--cache", metavar="DIR", help="where everything local is kept", **default)
    add("--artifacts", metavar="URL", help="the artifact store", **default)
    text = 'of the farm to use; "" for this machine alone'
    add("--controller", metavar="HOST[:PORT]", help=text, **default)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Settings of a build on this machine."""
    parser.add_argument("--workers", type=int, metavar="N", help="workers on this machine")
    parser.add_argument("--max-jobs", type=int, metavar="N", help="make's -j in a build step")
    parser.add_argument(
        "--build-timeout", type=float, metavar="SECONDS", help="end a build step after this long"
    )


def add_locked(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--locked",
        action="store_true",
        help="refuse if the definitions do not pin what each source contains",
    )


def add_system(parser: argparse.ArgumentParser) -> None:
    """The system of a chunk that is named alone."""
    parser.add_argument(
        "--system",
        metavar="SYSTEM",
        help="the system it is part of (default: the last one built here, or the first that fits)",
    )
