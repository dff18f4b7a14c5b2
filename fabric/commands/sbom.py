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
    written,
)
from fabric.commands.shared.output import save
from fabric.commands.shared.signals import interrupt_on_signals
from fabric.config import Settings
from fabric.errors import FabricError


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
    add(
        "--files",
        action="store_true",
        help="list every file of the image, with its SHA-256 and the chunk that it comes from",
    )
    add_author(parser)


def run(options: argparse.Namespace, settings: Settings) -> int:
    interrupt_on_signals()
    system, author, locked = options.system, options.author, options.locked
    if options.files and (options.planned or options.format == "openvex-json"):
        other = "--planned" if options.planned else "--format openvex-json"
        raise FabricError(f"--files: with {other} there are no files to list: leave one out")
    if options.planned:
        bill = planned_bill(settings, system, author, locked=locked)
    else:
        bill = built_bill(settings, system, author, locked=locked, files=options.files)
    document = written(bill, options.format)
    if options.to is None:
        sys.stdout.buffer.write(document)
        return 0
    save(document, options.to, "the SBOM")
    if options.format == "openvex-json":
        statements = {each for one in bill.components if one.in_image for each in one.vex}
        many = "s" * (len(statements) != 1)
        print(f"{options.to}: {len(statements)} statement{many} about {bill.system}")
        return 0
    inside = sum(one.in_image for one in bill.components)
    print(f"{options.to}: {inside} components of {bill.system}")
    print(f"  built with  {len(bill.components) - inside} others")
    if options.files:
        print(f"  files       {len(bill.files)}, {len(bill.files_of(''))} of them the system's own")
    unknown = [one.name for one in bill.components if one.in_image and not one.declared_license]
    if unknown:
        print(f"  no license  {len(unknown)} of them")
    return 0
