"""Reads the statements of a lorry about vulnerabilities (VEX): whether they affect what it brings.

The words are those of OpenVEX 0.2.0.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fabric import bounds
from fabric.definitions.fields import Fields, kind_of, listing
from fabric.definitions.located_yaml import Map

#: The id of a vulnerability, as CVE-2024-3094 or GHSA-jfh8-c2jp-5v3q.
ID = re.compile(
    r"(?:CVE|GHSA|DSA|DLA|DEBIAN-CVE|PYSEC|OSV|UBUNTU-CVE|USN|GO|RUSTSEC)-[A-Za-z0-9-]{1,64}", re.I
)
STATUSES = ("not_affected", "affected", "fixed", "under_investigation")
JUSTIFICATIONS = (
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
)
#: Field -> its meaning, as docs/reference/lorries.md shows it.
MEANINGS = {
    "vulnerability": "its id, as `CVE-2024-3094`",
    "status": ", ".join(f"`{one}`" for one in STATUSES),
    "justification": "why, if the status is `not_affected`: "
    + ", ".join(f"`{one}`" for one in JUSTIFICATIONS),
    "statement": "text: more about it; if the status is `affected`, what users can do",
}
REQUIRED = ("vulnerability", "status")


class Statement(msgspec.Struct, frozen=True):
    """Whether a vulnerability affects a component."""

    vulnerability: str  # its id
    status: str  # one of STATUSES
    justification: str = ""  # one of JUSTIFICATIONS if it is not affected, else ""
    statement: str = ""

    @property
    def clears(self) -> bool:
        """Whether the vulnerability does no harm."""
        return self.status in ("not_affected", "fixed")

    @property
    def why(self) -> str:
        """Justification and statement, as one text; may be ""."""
        return ": ".join(filter(None, (self.justification, self.statement)))


def statements(entry: Map) -> tuple[Statement, ...]:
    """The statements of a valid entry."""
    return tuple(
        Statement(**{**one, "statement": _one_line(one.get("statement", ""))})
        for one in entry.get("vex", ())
    )


def check(fields: Fields, entry: Map, key: str, name: str) -> None:
    """Report all mistakes in the field ``key``, a list of statements."""
    given = fields.items(entry, key, name)
    if len(given) > bounds.VEX_STATEMENTS:
        most = f"{bounds.VEX_STATEMENTS:,} statements"
        fields.report(entry.lines[key], f"{name}: {key!r} has more than {most}, the limit")
        return
    seen: set[str] = set()
    for line, one in given:
        what = f"{name}: a statement of {key!r}"
        statement = fields.mapping(one, line, what)
        if statement is not None:
            _check_statement(fields, statement, what, seen)


def _check_statement(fields: Fields, given: Map, what: str, seen: set[str]) -> None:
    fields.known(given, what, MEANINGS)
    vulnerability = fields.text(given, "vulnerability", what)
    if vulnerability and not ID.fullmatch(vulnerability):
        wrong = f"{vulnerability!r} is no id of a vulnerability like CVE-2024-3094"
        fields.report(given.lines["vulnerability"], f"{what}: {wrong}")
    elif vulnerability:
        what = f"{what} about {vulnerability}"
        if vulnerability.upper() in seen:
            fields.report(given.line, f"{what}: there is another one")
        seen.add(vulnerability.upper())
    status = _word(fields, given, "status", STATUSES, what)
    if status == "not_affected":
        if "justification" not in given:
            words = listing(JUSTIFICATIONS)
            fields.report(given.line, f"{what} needs 'justification', which is one of: {words}")
        else:
            _word(fields, given, "justification", JUSTIFICATIONS, what)
    elif "justification" in given:
        wrong = "'justification' is for the status not_affected: remove it"
        fields.report(given.lines["justification"], f"{what}: {wrong}")
    if "statement" in given:
        _check_text(fields, given, what)
    elif status == "affected":
        fields.report(given.line, f"{what} needs 'statement': what users can do")


def _word(fields: Fields, given: Map, key: str, words: tuple[str, ...], what: str) -> str:
    """The word in a field; "" if it is none of ``words``, which is reported."""
    value = fields.text(given, key, what)
    if value in words:
        return value
    if value:
        wrong = f"{key!r} must be one of {listing(words)}, not {kind_of(value)}"
        fields.report(given.lines[key], f"{what}: {wrong}")
    return ""


def _check_text(fields: Fields, given: Map, what: str) -> None:
    text: Any = fields.text(given, "statement", what)
    line = given.lines["statement"]
    if len(text.encode(errors="replace")) > bounds.VEX_TEXT:
        most = f"{bounds.VEX_TEXT:,} bytes"
        fields.report(line, f"{what}: 'statement' has more than {most}, the limit")
    elif not _one_line(text).isprintable():
        fields.report(line, f"{what}: 'statement' has characters that cannot be printed")


def _one_line(text: str) -> str:
    return " ".join(text.split())
