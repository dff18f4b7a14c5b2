"""SPDX and CycloneDX: valid by the official schemas, the same bytes each time, and not misled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sbom_kit as kit
from msgspec.structs import replace

from fabric.commands.shared.bills import FORMATS, written
from fabric.sbom.bill import Bill, Party
from fabric.sbom.identifiers import safe

#: The formats of SBOMs.
EACH = pytest.mark.parametrize("form", [form for form in FORMATS if form != "openvex-json"])
#: Texts that are not to reach a terminal or a page as they are.
HOSTILE = "<script>alert(1)</script>\x1b]52;c;x\x07\x00\u202e'\"\\ https://h.example/ \U0001f600"


def packages(form: str, document: bytes) -> dict[str, Any]:
    """The packages of a document, each by its name."""
    data = json.loads(document)
    if form == "cyclonedx-json":
        found = data["components"]
    elif form == "spdx-2.3-json":
        found = data["packages"]
    else:
        found = [one for one in data["@graph"] if one["type"] == "software_Package"]
    return {one["name"]: one for one in found}


@EACH
@pytest.mark.parametrize("planned", [False, True])
def test_documents_are_valid(tmp_path: Path, form: str, *, planned: bool) -> None:
    document = written(kit.bill(tmp_path / "definitions", planned=planned), form)
    assert kit.problems(form, document, tmp_path) == []
    assert document.endswith(b"}\n")


@EACH
def test_a_broken_document_is_not_valid(tmp_path: Path, form: str) -> None:
    data = json.loads(written(kit.bill(tmp_path / "definitions"), form))
    if form == "cyclonedx-json":
        data["components"][0]["scope"] = "sometimes"
    elif form == "spdx-2.3-json":
        data["packages"][0]["externalRefs"] = [{"referenceCategory": "PACKAGE_MANAGER"}]
    else:
        del next(one for one in data["@graph"] if one["type"] == "Relationship")["from"]
    assert kit.problems(form, json.dumps(data).encode(), tmp_path)


@EACH
def test_a_system_has_the_same_bytes_in_every_process(tmp_path: Path, form: str) -> None:
    script = (
        "import sys, sbom_kit; from pathlib import Path\n"
        "from fabric.commands.shared.bills import written\n"
        "bill = sbom_kit.bill(Path(sys.argv[1]))\n"
        "sys.stdout.buffer.write(written(bill, sys.argv[2]))\n"
    )
    here = Path(__file__).parent
    documents = {
        subprocess.run(
            [sys.executable, "-c", script, tmp_path / seed, form],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(here)},
            cwd=here.parents[1],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(documents) == 1
    assert b"Zlib" in documents.pop()


@EACH
def test_another_bill_has_another_namespace(tmp_path: Path, form: str) -> None:
    bill = kit.bill(tmp_path)
    later = replace(bill, created=bill.created + 1)
    assert later.namespace != bill.namespace
    assert later.namespace.encode() in written(later, form)


def test_all_that_tr_03183_requires_is_there(tmp_path: Path) -> None:
    found = kit.bsi(written(kit.bill(tmp_path / "a"), "spdx-json"), tmp_path)
    further = ("(Warning)", "(Optional)")
    required = {name: passed for name, passed in found.items() if not name.endswith(further)}
    assert len(required) == 12
    assert all(required.values()), required


def test_a_file_has_all_digests_that_anyone_knows(tmp_path: Path) -> None:
    bill = kit.bill(tmp_path / "a")
    libc = bill.by_ref["libc/libc6"]
    [file] = libc.downloads
    tool = replace(libc, ref="a", in_image=False, within="", downloads=(replace(file, sha512=""),))
    document = written(replace(bill, components=(tool, *bill.components)), "spdx-json")
    assert kit.problems("spdx-json", document, tmp_path) == []
    assert kit.bsi(document, tmp_path)["Deployable Component Hashes"]


@pytest.mark.parametrize(
    ("lacking", "test"),
    [
        ("  license: BSD-2-Clause\n", "Distribution Licenses"),
        ("  supplier: Mark Adler <zlib@gzip.org>\n", "Component Creators"),
    ],
)
def test_what_the_definitions_lack_is_not_invented(tmp_path: Path, lacking: str, test: str) -> None:
    assert lacking in kit.LORRIES
    bill = kit.bill(tmp_path / "a", lorries=kit.LORRIES.replace(lacking, ""))
    assert not kit.bsi(written(bill, "spdx-json"), tmp_path)[test]


@EACH
def test_tools_are_told_from_components(tmp_path: Path, form: str) -> None:
    document = written(kit.bill(tmp_path), form)
    data, found = json.loads(document), packages(form, document)
    edges: set[tuple[str, str, str | None]]
    if form == "cyclonedx-json":
        excluded = {one["name"] for one in found.values() if one.get("scope") == "excluded"}
        assert excluded == {"gcc", "gmp", "gcc-14"} | ({"zlib"} & excluded)
        below = {one["ref"]: set(one.get("dependsOn", ())) for one in data["dependencies"]}
        assert below["/system"] == {"libc", "zlib", "oniguruma", "wheel", "python", "mirrored"}
        assert below["zlib"] == {"gcc", "libc"}
    elif form == "spdx-2.3-json":
        edges = {
            (one["spdxElementId"], one["relationshipType"], one["relatedSpdxElement"])
            for one in data["relationships"]
        }
        assert ("SPDXRef-system", "CONTAINS", "SPDXRef-c-zlib") in edges
        assert ("SPDXRef-c-gcc", "BUILD_TOOL_OF", "SPDXRef-c-zlib") in edges
        assert ("SPDXRef-c-zlib", "DEPENDS_ON", "SPDXRef-c-libc") in edges
        gcc = {kind for one, kind, other in edges if "SPDXRef-c-gcc" in (one, other)}
        assert gcc == {"BUILD_TOOL_OF", "CONTAINS"}
        assert ("SPDXRef-system", "CONTAINS", "SPDXRef-c-gcc") not in edges
    else:
        types = ("software_Package",)
        names = {one["spdxId"]: one["name"] for one in data["@graph"] if one["type"] in types}
        edges = {
            (names[one["from"]], one["relationshipType"], names.get(to))
            for one in data["@graph"]
            if one["type"].endswith("Relationship") and one["from"] in names
            for to in one["to"]
        }
        assert ("s", "contains", "zlib") in edges
        assert ("s", "contains", "gcc") not in edges
        assert ("zlib", "usesTool", "gcc") in edges
        assert ("zlib", "dependsOn", "libc") in edges
        assert ("libc", "contains", "libc6") in edges
        assert ("gcc-14", "generates", "libc") in edges
        installed = {
            one["spdxId"].partition("#")[2]
            for one in data["@graph"]
            if one.get("software_primaryPurpose") == "install"
        }
        chunks = ("libc", "zlib", "oniguruma", "wheel", "python", "mirrored")
        packages_in_them = ("libc/libc6", "python/rich")
        assert installed == {safe(ref) for ref in (*chunks, *packages_in_them)}


@EACH
def test_digests_and_identifiers_reach_the_document(tmp_path: Path, form: str) -> None:
    document = written(kit.bill(tmp_path), form).decode()
    for text in (
        "cpe:2.3:a:zlib:zlib:1.3.1:*:*:*:*:*:*:*",
        "pkg:github/madler/zlib@1.3.1",
        "https://gcc.example/gcc-14.2.0.tar.xz",
        kit.sha(2),
        kit.sha(99),
        "cd" * 64,
        "sources/patches/zlib.patch",
        "pkg:deb/debian/glibc@2.41-12?arch=source",
        "usr/share/doc/gcc/copyright",
        "GPL-2.0-or-later",
    ):
        assert text in document, text
    assert "secret" not in document
    assert str(tmp_path) not in document


def hostile(bill: Bill) -> Bill:
    """The bill with hostile text wherever a stranger's text may stand."""
    party = Party(HOSTILE, "https://h.example/<b>")
    worse = tuple(
        replace(
            one,
            name=f"{one.name}{HOSTILE}",
            version=HOSTILE,
            supplier=party,
            license_files=(HOSTILE,),
            remarks=(HOSTILE,),
            downloads=tuple(replace(file, name=HOSTILE) for file in one.downloads),
            patches=tuple(replace(patch, path=HOSTILE) for patch in one.patches),
            found_license="",
        )
        for one in bill.components
    )
    return replace(bill, components=worse, system=HOSTILE, description=HOSTILE, author=party)


@EACH
def test_hostile_text_stays_text(tmp_path: Path, form: str) -> None:
    document = written(hostile(kit.bill(tmp_path / "a")), form)
    assert kit.problems(form, document, tmp_path) == []
    assert document.isascii()
    assert not any(byte < 0x20 and byte != 0x0A for byte in document), "no control characters"
    texts = packages(form, document)
    assert f"zlib{HOSTILE}" in texts


@EACH
def test_references_to_licenses_that_spdx_lacks_are_explained(tmp_path: Path, form: str) -> None:
    reference = "LicenseRef-debian-Spencer AND MIT"
    bill = kit.bill(tmp_path / "a")
    some = tuple(
        replace(one, found_license=reference) if one.ref == "libc/libc6" else one
        for one in bill.components
    )
    document = written(replace(bill, components=some), form)
    assert kit.problems(form, document, tmp_path) == []
    assert reference in document.decode()
    if form == "spdx-2.3-json":
        [explained] = json.loads(document)["hasExtractedLicensingInfos"]
        assert explained["licenseId"] == "LicenseRef-debian-Spencer"
        assert "libc6" in explained["extractedText"]


@EACH
def test_a_chunk_may_be_called_as_what_documents_have_anyway(tmp_path: Path, form: str) -> None:
    bill = kit.bill(tmp_path / "a")
    names = {"zlib": "system", "wheel": "tool", "mirrored": "SPDXRef-DOCUMENT"}
    some = tuple(
        replace(
            one,
            ref=names.get(one.ref, one.ref),
            needs=tuple(names.get(ref, ref) for ref in one.needs),
        )
        for one in bill.components
    )
    document = written(replace(bill, components=some), form)
    assert kit.problems(form, document, tmp_path) == []
    if form == "cyclonedx-json":
        data = json.loads(document)
        meta = data["metadata"]
        all_ = [meta["component"], *meta["tools"]["components"], *data["components"]]
        assert len({one["bom-ref"] for one in all_}) == len(all_)
    assert len(packages(form, document)) == len({one.name for one in some}) + (
        form != "cyclonedx-json"
    )


@EACH
def test_nested_licenses_are_written(tmp_path: Path, form: str) -> None:
    deep = "(" * 60 + "MIT OR ISC" + ")" * 60
    bill = kit.bill(
        tmp_path / "a", lorries=kit.LORRIES.replace("license: Zlib", f"license: {deep}")
    )
    assert kit.problems(form, written(bill, form), tmp_path) == []
