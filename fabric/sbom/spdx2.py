"""Writes a bill of materials as SPDX 2.3, in JSON."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from license_expression import LicenseExpression, get_spdx_licensing
from spdx_tools.spdx.jsonschema.document_converter import DocumentConverter
from spdx_tools.spdx.model import (
    Actor,
    ActorType,
    Checksum,
    ChecksumAlgorithm,
    CreationInfo,
    Document,
    ExternalPackageRef,
    ExternalPackageRefCategory,
    ExtractedLicensingInfo,
    File,
    Package,
    PackagePurpose,
    PackageVerificationCode,
    Relationship,
    RelationshipType,
    SpdxNoAssertion,
)

from fabric.sbom.bill import Bill, Component, ImageFile, Party
from fabric.sbom.identifiers import safe

_DOCUMENT, _SYSTEM = "SPDXRef-DOCUMENT", "SPDXRef-system"
_REFERENCE = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")
_Category = ExternalPackageRefCategory
_Type = RelationshipType


def write(bill: Bill) -> bytes:
    """The document."""
    creators = [Actor(ActorType.TOOL, f"distbuild-{bill.tool}")]
    if bill.author is not None:
        creators.insert(0, _actor(bill.author))
    licensing = _Licensing()
    document = Document(
        CreationInfo(
            spdx_version="SPDX-2.3",
            spdx_id=_DOCUMENT,
            name=f"SBOM of {bill.system}",
            document_namespace=bill.namespace,
            creators=creators,
            created=datetime.fromtimestamp(bill.created, UTC).replace(tzinfo=None),
        ),
        packages=[
            _system(bill, licensing),
            *(_package(one, licensing, bill) for one in bill.components),
        ],
        files=[_file(one) for one in bill.files],
        relationships=list(_relationships(bill)),
    )
    document.extracted_licensing_info = licensing.references()
    data = DocumentConverter().convert(document)  # type: ignore[no-untyped-call]
    for package in data["packages"]:
        for reference in package.get("externalRefs", ()):
            # The library writes SPDX 2.2's words, which the schema of 2.3 does not have.
            reference["referenceCategory"] = reference["referenceCategory"].replace("_", "-")
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


class _Licensing:
    """Parses expressions, and keeps the references to licenses that SPDX does not list."""

    def __init__(self) -> None:
        self._licensing = get_spdx_licensing()
        self._parsed: dict[str, LicenseExpression | SpdxNoAssertion] = {"": SpdxNoAssertion()}
        self._where: dict[str, set[str]] = {}  # reference -> names of components

    def parse(self, expression: str, name: str) -> LicenseExpression | SpdxNoAssertion:
        for reference in _REFERENCE.findall(expression):
            self._where.setdefault(reference, set()).add(name)
        if expression not in self._parsed:
            self._parsed[expression] = self._licensing.parse(expression)
        return self._parsed[expression]

    def references(self) -> list[ExtractedLicensingInfo]:
        return [
            ExtractedLicensingInfo(
                license_id=reference,
                license_name=reference.removeprefix("LicenseRef-").removeprefix("debian-"),
                extracted_text=f"The text is in the copyright files of: {', '.join(sorted(names))}",
            )
            for reference, names in sorted(self._where.items())
        ]


def _actor(party: Party) -> Actor:
    if party.is_email:
        return Actor(ActorType.ORGANIZATION, party.name, party.contact)
    contact = f" ({party.contact})" if party.contact else ""
    return Actor(ActorType.ORGANIZATION, f"{party.name}{contact}")


def _system(bill: Bill, licensing: _Licensing) -> Package:
    checksums = []
    if bill.archive is not None:
        checksums = _checksums(bill.archive.sha256, bill.archive.sha512)
    return Package(
        spdx_id=_SYSTEM,
        name=bill.system,
        version=bill.version,
        download_location=SpdxNoAssertion(),
        file_name=bill.archive.name if bill.archive else None,
        supplier=_actor(bill.author) if bill.author else SpdxNoAssertion(),
        **_analyzed(bill.files_of("")),
        checksums=checksums,
        license_concluded=licensing.parse(bill.license, bill.system),
        license_declared=SpdxNoAssertion(),
        copyright_text=SpdxNoAssertion(),
        description=bill.description or None,
        primary_package_purpose=PackagePurpose.OPERATING_SYSTEM,
    )


def _analyzed(files: tuple[ImageFile, ...]) -> dict[str, Any]:
    """What a package says of its files; one that has any needs a code of their digests."""
    if not files:
        return {"files_analyzed": False}
    together = "".join(sorted(one.sha1 for one in files)).encode()
    code = hashlib.sha1(together, usedforsecurity=False).hexdigest()
    return {"files_analyzed": True, "verification_code": PackageVerificationCode(code)}


def _file(one: ImageFile) -> File:
    return File(
        name=f"./{one.path}",
        spdx_id=_file_id(one),
        checksums=[
            Checksum(ChecksumAlgorithm.SHA1, one.sha1),
            Checksum(ChecksumAlgorithm.SHA256, one.sha256),
        ],
    )


def _file_id(one: ImageFile) -> str:
    return f"SPDXRef-file-{one.ref}"


def _package(one: Component, licensing: _Licensing, bill: Bill) -> Package:
    first = one.downloads[0] if one.downloads else None
    place: str | SpdxNoAssertion = SpdxNoAssertion()
    if one.repository:
        kind = "" if one.repository.startswith("git") else "git+"
        place = f"{kind}{one.repository}" + (f"@{one.commit}" if one.commit else "")
    elif first is not None and first.url:
        place = first.url
    references = []
    if one.purl:
        references.append(ExternalPackageRef(_Category.PACKAGE_MANAGER, "purl", one.purl))
    if one.cpe:
        references.append(ExternalPackageRef(_Category.SECURITY, "cpe23Type", one.cpe))
    files = ", ".join(one.license_files)
    return Package(
        spdx_id=_id(one.ref),
        name=one.name,
        version=one.version or None,
        download_location=place,
        file_name=first.name if first else None,
        supplier=_actor(one.supplier) if one.supplier else SpdxNoAssertion(),
        **_analyzed(bill.files_of(one.ref)),
        checksums=_checksums(first.sha256, first.sha512) if first else [],
        source_info="\n".join(_origin(one)) or None,
        license_concluded=licensing.parse(one.concluded_license, one.name),
        license_declared=licensing.parse(one.declared_license, one.name),
        license_comment=f"Files that speak of it: {files}" if files else None,
        copyright_text=SpdxNoAssertion(),
        comment="\n".join(one.remarks) or None,
        external_references=references,
    )


def _origin(one: Component) -> Iterator[str]:
    """Lines about what a package was made of and where it is, beside its first file."""
    if one.origin:
        yield f"built from {one.origin}"
    for download in one.downloads[1:]:
        yield f"also from {download.name}, sha256 {download.sha256}"
    for patch in one.patches:
        yield f"with the patch {patch.path}, sha256 {patch.sha256}"
    for archive in one.archives:
        yield f"delivered in {archive.name}, sha256 {archive.sha256}, sha512 {archive.sha512}"


def _checksums(sha256: str, sha512: str) -> list[Checksum]:
    pairs = ((ChecksumAlgorithm.SHA256, sha256), (ChecksumAlgorithm.SHA512, sha512))
    return [Checksum(algorithm, value) for algorithm, value in pairs if value]


def _relationships(bill: Bill) -> Iterator[Relationship]:
    yield Relationship(_DOCUMENT, _Type.DESCRIBES, _SYSTEM)
    for file in bill.files:
        package = _id(file.chunk) if file.chunk else _SYSTEM
        yield Relationship(package, _Type.CONTAINS, _file_id(file))
    for one in bill.components:
        me = _id(one.ref)
        if not one.within:
            if one.in_image:
                yield Relationship(_SYSTEM, _Type.CONTAINS, me)
        elif one.in_image == bill.by_ref[one.within].in_image:
            yield Relationship(_id(one.within), _Type.CONTAINS, me)
        else:
            yield Relationship(_id(one.within), _Type.GENERATED_FROM, me)
        for ref in one.needs:
            if one.in_image and bill.by_ref[ref].in_image:
                yield Relationship(me, _Type.DEPENDS_ON, _id(ref))
            else:
                yield Relationship(_id(ref), _Type.BUILD_TOOL_OF, me)


def _id(ref: str) -> str:
    return f"SPDXRef-{safe(ref)}"
