"""Statements of lorries about vulnerabilities: what is taken, and what is a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric import bounds
from fabric.errors import DefinitionsError
from fabric.trove.sources.lorries import Lorries, Lorry
from fabric.trove.sources.lorry_vex import Statement

HEAD = (
    f"z:\n  type: tarball\n  url: https://h.example/z.tar\n  version: '1'\n  sha256: {'a' * 64}\n"
)
CVE = "vulnerability: CVE-2025-1"


def load(folder: Path, vex: str, head: str = HEAD) -> Lorry:
    folder.joinpath("sources").mkdir(exist_ok=True)
    folder.joinpath("sources/a.lorry").write_text(f"{head}  vex:{vex}\n")
    return Lorries(folder / "sources").named("z")


def test_statements_are_taken(tmp_path: Path) -> None:
    lorry = load(
        tmp_path,
        f"\n  - {{{CVE}, status: fixed}}\n"
        "  - vulnerability: GHSA-aaaa-bbbb-cccc\n    status: not_affected\n"
        "    justification: vulnerable_code_not_present\n"
        "    statement: |\n      Not\n      built.\n"
        "  - {vulnerability: CVE-2025-2, status: affected, statement: update}\n"
        "  - {vulnerability: CVE-2025-3, status: under_investigation}",
    )
    assert lorry.vex == (
        Statement("CVE-2025-1", "fixed"),
        Statement(
            "GHSA-aaaa-bbbb-cccc", "not_affected", "vulnerable_code_not_present", "Not built."
        ),
        Statement("CVE-2025-2", "affected", "", "update"),
        Statement("CVE-2025-3", "under_investigation"),
    )
    assert [one.clears for one in lorry.vex] == [True, True, False, False]
    assert lorry.vex[1].why == "vulnerable_code_not_present: Not built."


def test_a_component_has_its_own(tmp_path: Path) -> None:
    part = (
        f"{{url: 'https://h.example/g.tar', sha256: {'b' * 64}, vex: [{{{CVE}, status: fixed}}]}}"
    )
    lorry = load(tmp_path, f" []\n  components:\n    g: {part}")
    assert lorry.vex == ()
    assert lorry.parts["g"].vex == (Statement("CVE-2025-1", "fixed"),)


def test_statements_change_no_import(tmp_path: Path) -> None:
    assert load(tmp_path, f" [{{{CVE}, status: fixed}}]").import_key() == (
        load(tmp_path, " []").import_key()
    )


@pytest.mark.parametrize(
    ("vex", "problem"),
    [
        ("", "6: z: 'vex' must be a list, not nothing"),
        (" {}", "6: z: 'vex' must be a list, not a mapping"),
        (" [CVE-2025-1]", "6: z: a statement of 'vex' must be a mapping, not the text"),
        (" [{status: fixed}]", "a statement of 'vex': the field 'vulnerability' is missing"),
        (" [{vulnerability: zlib, status: fixed}]", "'zlib' is no id of a vulnerability like CVE-"),
        (" [{vulnerability: 'CVE-2025-1\\n', status: fixed}]", "is no id of a vulnerability like"),
        (f"\n  - {CVE}", "7: z: a statement of 'vex' about CVE-2025-1: the field 'status' is miss"),
        (
            f" [{{{CVE}, status: safe}}]",
            "about CVE-2025-1: 'status' must be one of not_affected, affected, fixed,"
            " under_investigation, not the text 'safe'",
        ),
        (
            f" [{{{CVE}, status: not_affected, statement: x}}]",
            "about CVE-2025-1 needs 'justification', which is one of: component_not_present, vuln",
        ),
        (
            f" [{{{CVE}, status: not_affected, justification: lazy}}]",
            "'justification' must be one of component_not_present, vulnerable_code_not_present",
        ),
        (
            f" [{{{CVE}, status: fixed, justification: component_not_present}}]",
            "'justification' is for the status not_affected: remove it",
        ),
        (f" [{{{CVE}, status: affected}}]", "needs 'statement': what users can do"),
        (f" [{{{CVE}, status: fixed, stat: x}}]", "unknown field 'stat'; did you mean 'status'?"),
        (f' [{{{CVE}, status: fixed, statement: "\\e[1m"}}]', "characters that cannot be printed"),
        (
            f"\n  - {{{CVE}, status: fixed}}\n  - {{vulnerability: cve-2025-1, status: fixed}}",
            "8: z: a statement of 'vex' about cve-2025-1: there is another one",
        ),
    ],
)
def test_a_mistake_has_its_line(tmp_path: Path, vex: str, problem: str) -> None:
    with pytest.raises(DefinitionsError) as caught:
        load(tmp_path, vex)
    assert str(caught.value).startswith("sources/a.lorry:")
    assert problem in str(caught.value)


@pytest.mark.bound("VEX_STATEMENTS")
def test_a_lorry_has_so_many_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = f" [{{{CVE}, status: fixed}}, {{vulnerability: CVE-2025-2, status: fixed}}]"
    monkeypatch.setattr(bounds, "VEX_STATEMENTS", 2)
    assert len(load(tmp_path, two).vex) == 2
    monkeypatch.setattr(bounds, "VEX_STATEMENTS", 1)
    with pytest.raises(DefinitionsError, match="'vex' has more than 1 statements, the limit"):
        load(tmp_path, two)


@pytest.mark.bound("VEX_TEXT")
def test_a_statement_has_a_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vex = f" [{{{CVE}, status: fixed, statement: äöü}}]"
    monkeypatch.setattr(bounds, "VEX_TEXT", 6)
    assert load(tmp_path, vex).vex[0].statement == "äöü"
    monkeypatch.setattr(bounds, "VEX_TEXT", 5)
    with pytest.raises(DefinitionsError, match="'statement' has more than 5 bytes, the limit"):
        load(tmp_path, vex)
