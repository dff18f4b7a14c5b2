"""``sbom``: writes what is in a system, as SPDX or CycloneDX."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fabric.commands.shared.arguments import add_locked
from fabric.commands.shared.bills import (
    FORMATS,
    add_author,
    built_bill,
    planned_bill,
    save,
    written,
)
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    add_locked(parser)
    add = parser.add_argument
    add("system", metavar="SYSTEM", help="system morph")
    add(
        "--format",
        choices=tuple(FORMATS),
        default="spdx-json",
        help="SPDX 3.0.1 (the default), SPDX 2.3, CycloneDX 1.6, or OpenVEX 0.2.0: only the"
        " statements about vulnerabilities",
    )
    add("--to", metavar="FILE", type=Path, help="write it to a file (default: print it)")
    add(
        "--planned",
        action="store_true",
        help="say what the definitions name; the system need not be built, and files have no"
        " digests",
    )
    add_author(parser)


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    make = planned_bill if options.planned else built_bill
    bill = make(settings, options.system, options.author, locked=options.locked)
    document = written(bill, options.format)
    if options.to is None:
        sys.stdout.buffer.write(document)
        return 0
    save(document, options.to)
    inside = sum(one.in_image for one in bill.components)
    print(f"{options.to}: {inside} components of {bill.system}")
    print(f"  built with  {len(bill.components) - inside} others")
    unknown = [one.name for one in bill.components if one.in_image and not one.declared_license]
    if unknown:
        print(f"  no license  {len(unknown)} of them")
    return 0
