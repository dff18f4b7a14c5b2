"""Statements about vulnerabilities in documents: OpenVEX, and within SPDX 3 and CycloneDX.

No package brings OpenVEX's JSON schema, so `WANTED` has what version 0.2.0 of the specification
requires, in the words of JSON schema.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import sbom_kit as kit
from msgspec.structs import replace

from fabric.commands.shared.bills import written
from fabric.errors import FabricError
from fabric.sbom.bill import Bill

VEX = """\
  vex:
  - {vulnerability: CVE-2025-1, status: fixed, statement: by the patch}
  - {vulnerability: CVE-2025-2, status: not_affected, justification: component_not_present}
  - vulnerability: CVE-2025-3
    status: not_affected
    justification: vulnerable_code_cannot_be_controlled_by_adversary
    statement: no input
  - {vulnerability: CVE-2025-4, status: affected, statement: do not open files}
  - {vulnerability: CVE-2025-5, status: under_investigation}
"""
PATCHED = "  patches: [patches/zlib.patch]\n"


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


_IRI = {"type": "string", "format": "uri"}
_TEXT = {"type": "string", "minLength": 1}
_PARTS = {
    "@id": _IRI,
    "identifiers": _object([], purl={"type": "string", "pattern": "^pkg:"}),
    "hashes": {"type": "object", "additionalProperties": {"pattern": "^[0-9a-f]{64,128}$"}},
}
_INSIDE = {"type": "array", "minItems": 1, "uniqueItems": True, "items": _object(["@id"], **_PARTS)}
_JUSTIFICATIONS = [
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
]


def _only(status: str, required: list[str], forbidden: list[str]) -> dict[str, Any]:
    return {
        "if": {"properties": {"status": {"const": status}}},
        "then": {
            "required": required,
            "not": {"anyOf": [{"required": [one]} for one in forbidden]},
        },
    }


_STATEMENT = {
    **_object(
        ["vulnerability", "status", "products"],
        vulnerability=_object(["name"], name=_TEXT),
        products={
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": _object(["@id", "subcomponents"], **_PARTS, subcomponents=_INSIDE),
        },
        status={"enum": ["not_affected", "affected", "fixed", "under_investigation"]},
        justification={"enum": _JUSTIFICATIONS},
        impact_statement=_TEXT,
        action_statement=_TEXT,
        status_notes=_TEXT,
    ),
    "allOf": [
        _only("not_affected", ["justification"], ["impact_statement", "action_statement"]),
        _only("affected", ["action_statement"], ["justification"]),
        _only("fixed", [], ["justification", "action_statement"]),
        _only("under_investigation", [], ["justification", "action_statement"]),
    ],
}
_CONTEXT = "https://openvex.dev/ns/v0.2.0"
WANTED = _object(
    ["@context", "@id", "author", "timestamp", "version", "statements"],
    **{"@context": {"const": _CONTEXT}, "@id": _IRI},
    author=_TEXT,
    timestamp={"type": "string", "format": "date-time"},
    version={"type": "integer", "minimum": 1},
    tooling=_TEXT,
    statements={"type": "array", "minItems": 1, "uniqueItems": True, "items": _STATEMENT},
)
_VALIDATOR = jsonschema_rs.validator_for(WANTED, validate_formats=True)


def test_an_archive_in_another_has_statements(tmp_path: Path) -> None:
    mine = "{vulnerability: CVE-2025-6, status: fixed}"
    lorries = kit.LORRIES.replace("cpe: 'gmplib:gmp'}", f"cpe: 'gmplib:gmp', vex: [{mine}]}}")
    gmp = kit.bill(tmp_path, lorries=lorries).by_ref["gcc/gmp"]
    assert [one.vulnerability for one in gmp.vex] == ["CVE-2025-6"]


def bill(root: Path) -> Bill:
    return kit.bill(root, lorries=kit.LORRIES.replace(PATCHED, PATCHED + VEX))


def openvex(root: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(written(bill(root), "openvex-json"))
    return document


def test_an_openvex_document_is_valid(tmp_path: Path) -> None:
    document = openvex(tmp_path)
    assert [error.message for error in _VALIDATOR.iter_errors(document)] == []
    assert {one["vulnerability"]["name"]: one["status"] for one in document["statements"]} == {
        "CVE-2025-1": "fixed",
        "CVE-2025-2": "not_affected",
        "CVE-2025-3": "not_affected",
        "CVE-2025-4": "affected",
        "CVE-2025-5": "under_investigation",
    }
    fixed, absent, uncontrolled, affected, _ = document["statements"]
    [product] = fixed["products"]
    assert product["hashes"]["sha-256"] == kit.sha(99), "the system"
    assert [one["@id"] for one in product["subcomponents"]] == ["pkg:github/madler/zlib@1.3.1"]
    assert fixed["status_notes"] == "by the patch"
    assert absent["justification"] == "component_not_present"
    assert uncontrolled["status_notes"] == "no input"
    assert affected["action_statement"] == "do not open files"
    assert document["author"] == "Example <https://example.com/>"


@pytest.mark.parametrize("fault", ["author", "@id", "action_statement", "justification", "twice"])
def test_the_check_of_openvex_finds_faults(tmp_path: Path, fault: str) -> None:
    document = deepcopy(openvex(tmp_path))
    if fault == "twice":
        document["statements"].append(document["statements"][0])
    elif fault in document:
        del document[fault]
    else:
        for one in document["statements"]:
            one.pop(fault, None)
    assert not _VALIDATOR.is_valid(document)


def test_a_component_that_is_there_twice_is_named_once(tmp_path: Path) -> None:
    made = bill(tmp_path)
    some = tuple(replace(one, in_image=True) for one in made.components)
    document = json.loads(written(replace(made, components=some), "openvex-json"))
    assert len(document["statements"]) == 5
    assert _VALIDATOR.is_valid(document)


def test_a_component_without_a_package_url_has_a_name_of_the_sbom(tmp_path: Path) -> None:
    made = bill(tmp_path)
    some = tuple(replace(one, purl="") for one in made.components)
    document = json.loads(written(replace(made, components=some), "openvex-json"))
    assert _VALIDATOR.is_valid(document)
    [one] = document["statements"][0]["products"][0]["subcomponents"]
    assert one["@id"].endswith("#c-zlib")


def test_a_system_without_statements_has_no_openvex_document(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="s: no lorry of what is in it has a statement about"):
        written(kit.bill(tmp_path), "openvex-json")


def test_cyclonedx_has_the_statements(tmp_path: Path) -> None:
    document = written(bill(tmp_path), "cyclonedx-json")
    assert kit.problems("cyclonedx-json", document, tmp_path) == []
    found = {
        (one["affects"][0]["ref"], one["id"]): one["analysis"]
        for one in json.loads(document)["vulnerabilities"]
    }
    assert found["zlib", "CVE-2025-1"] == {"state": "resolved", "detail": "by the patch"}
    assert found["zlib", "CVE-2025-2"] == {
        "state": "not_affected",
        "justification": "code_not_present",
        "detail": "component_not_present",
    }
    detail = "vulnerable_code_cannot_be_controlled_by_adversary: no input"
    assert found["zlib", "CVE-2025-3"] == {"state": "not_affected", "detail": detail}
    assert found["zlib", "CVE-2025-4"]["state"] == "exploitable"
    assert found["zlib", "CVE-2025-5"] == {"state": "in_triage"}
    assert {ref for ref, _ in found} == {"zlib", "gcc/zlib"}


def test_spdx_has_the_statements(tmp_path: Path) -> None:
    document = written(bill(tmp_path), "spdx-json")
    assert kit.problems("spdx-json", document, tmp_path) == []
    graph = json.loads(document)["@graph"]
    names = {one["spdxId"]: one["name"] for one in graph if "name" in one and "spdxId" in one}
    found = {
        names[one["from"]]: one
        for one in graph
        if one["type"].startswith("security_Vex") and one["to"][0].endswith("#c-zlib")
    }
    assert {name: one["relationshipType"] for name, one in found.items()} == {
        "CVE-2025-1": "fixedIn",
        "CVE-2025-2": "doesNotAffect",
        "CVE-2025-3": "doesNotAffect",
        "CVE-2025-4": "affects",
        "CVE-2025-5": "underInvestigationFor",
    }
    assert found["CVE-2025-1"]["security_statusNotes"] == "by the patch"
    assert found["CVE-2025-2"]["security_justificationType"] == "componentNotPresent"
    why = "vulnerableCodeCannotBeControlledByAdversary"
    assert found["CVE-2025-3"]["security_justificationType"] == why
    assert found["CVE-2025-3"]["security_statusNotes"] == "no input"
    assert found["CVE-2025-4"]["security_actionStatement"] == "do not open files"
    [zlib] = [
        one
        for one in graph
        if one.get("relationshipType") == "hasAssociatedVulnerability"
        and one["from"].endswith("#c-zlib")
    ]
    assert {names[one] for one in zlib["to"]} == found.keys()
    [whole] = [one for one in graph if one["type"] == "SpdxDocument"]
    assert "security" in whole["profileConformance"]
    assert kit.bsi(document, tmp_path)["Dependency Completeness"]


@pytest.mark.parametrize("form", ["openvex-json", "spdx-json", "cyclonedx-json"])
def test_the_same_statements_give_the_same_bytes(tmp_path: Path, form: str) -> None:
    assert written(bill(tmp_path / "a"), form) == written(bill(tmp_path / "b"), form)


def test_the_statement_of_a_chunk_goes_before_that_of_a_part(tmp_path: Path) -> None:
    made = bill(tmp_path)
    part = made.by_ref["gcc/zlib"]
    own = made.statement(part, {"CVE-2025-1"})
    assert own is not None
    assert own.status == "fixed"
    assert made.statement(part, {"CVE-2025-9"}) is None
    other = replace(own, status="affected")
    some = tuple(replace(c, vex=(other,)) if c.ref == "gcc" else c for c in made.components)
    assert replace(made, components=some).statement(part, {"CVE-2025-1"}) == other
