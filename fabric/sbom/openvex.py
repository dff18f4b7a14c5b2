"""Writes the statements of a bill about vulnerabilities as OpenVEX 0.2.0, in JSON.

The product is the system, named by its digest; its subcomponents are what statements are about.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from fabric.errors import FabricError
from fabric.sbom.bill import Bill, Component
from fabric.sbom.identifiers import generic, safe
from fabric.trove.sources.lorry_vex import Statement

#: Status -> the field that has the text of a statement.
_TEXT = {"affected": "action_statement"}


def write(bill: Bill) -> bytes:
    """The document.  FabricError if there is no statement: OpenVEX requires one."""
    about: dict[Statement, list[Component]] = {}
    for one in bill.components:
        for statement in one.vex if one.in_image else ():
            about.setdefault(statement, []).append(one)
    if not about:
        raise FabricError(
            f"{bill.system}: no lorry of what is in it has a statement about a vulnerability, and"
            " OpenVEX has no empty documents: add `vex` to one"
        )
    author, tool = bill.author, f"distbuild {bill.tool}"
    by = f"{author.name} <{author.contact}>" if author else tool
    document = {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": f"{bill.namespace}#vex",
        "author": by,
        "timestamp": datetime.fromtimestamp(bill.created, UTC).isoformat(),
        "version": 1,
        "tooling": tool,
        "statements": [_statement(bill, *each) for each in about.items()],
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _statement(bill: Bill, statement: Statement, about: list[Component]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "vulnerability": {"name": statement.vulnerability},
        "products": [_product(bill, about)],
        "status": statement.status,
    }
    if statement.justification:
        made["justification"] = statement.justification
    if statement.statement:
        made[_TEXT.get(statement.status, "status_notes")] = statement.statement
    return made


def _product(bill: Bill, about: list[Component]) -> dict[str, Any]:
    """The system, with the components that a statement is about."""
    archive = bill.archive
    product: dict[str, Any] = {
        "@id": generic(bill.system, bill.version, "", archive.sha256 if archive else "")
    }
    if archive is not None:
        product["hashes"] = {"sha-256": archive.sha256, "sha-512": archive.sha512}
    names = {one.purl or f"{bill.namespace}#{safe(one.ref)}": one.purl for one in about}
    product["subcomponents"] = [
        {"@id": name, **({"identifiers": {"purl": purl}} if purl else {})}
        for name, purl in sorted(names.items())
    ]
    return product
