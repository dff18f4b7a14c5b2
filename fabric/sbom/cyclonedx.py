"""Writes a bill of materials as CycloneDX 1.6, in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model import component as model
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import (
    Commit,
    ComponentScope,
    ComponentType,
    Diff,
    PatchClassification,
    Pedigree,
)
from cyclonedx.model.contact import OrganizationalContact, OrganizationalEntity
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.impact_analysis import ImpactAnalysisJustification, ImpactAnalysisState
from cyclonedx.model.license import LicenseAcknowledgement, LicenseExpression
from cyclonedx.model.lifecycle import LifecyclePhase, PredefinedLifecycle
from cyclonedx.model.vulnerability import BomTarget, Vulnerability, VulnerabilityAnalysis
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from fabric.sbom.bill import Archive, Bill, Component, Download, ImageFile, Party
from fabric.trove.sources.lorry_vex import Statement

_Kind = ExternalReferenceType
_STATES = {
    "not_affected": ImpactAnalysisState.NOT_AFFECTED,
    "affected": ImpactAnalysisState.EXPLOITABLE,
    "fixed": ImpactAnalysisState.RESOLVED,
    "under_investigation": ImpactAnalysisState.IN_TRIAGE,
}
#: Words of OpenVEX that CycloneDX has, too; the others are in the detail only.
_JUSTIFICATIONS = {
    "component_not_present": ImpactAnalysisJustification.CODE_NOT_PRESENT,
    "vulnerable_code_not_present": ImpactAnalysisJustification.CODE_NOT_PRESENT,
    "vulnerable_code_not_in_execute_path": ImpactAnalysisJustification.CODE_NOT_REACHABLE,
    "inline_mitigations_already_exist": (
        ImpactAnalysisJustification.PROTECTED_BY_MITIGATING_CONTROL
    ),
}
#: References that no component has: their names have no "/" in front.
_SYSTEM, _TOOL = "/system", "/tool"


def write(bill: Bill) -> bytes:
    """The document."""
    root = _system(bill)
    phase = LifecyclePhase.BUILD if bill.complete else LifecyclePhase.DESIGN
    entity = _entity(bill.author)
    bom = Bom(
        serial_number=UUID(bill.namespace),
        metadata=BomMetaData(
            timestamp=datetime.fromtimestamp(bill.created, UTC),
            component=root,
            manufacturer=entity,
            supplier=entity,
            lifecycles=[PredefinedLifecycle(phase)],
        ),
        components=[_component(one, bill) for one in bill.components],
        dependencies=_dependencies(bill),
        vulnerabilities=[
            _vulnerability(one, statement) for one in bill.components for statement in one.vex
        ],
    )
    bom.metadata.tools.components.add(
        model.Component(
            name="distbuild", version=bill.tool, type=ComponentType.APPLICATION, bom_ref=_TOOL
        )
    )
    document = JsonV1Dot6(bom).output_as_string(indent=1)
    return (_with_files(document, bill) if bill.files else document).encode() + b"\n"


def _with_files(document: str, bill: Bill) -> str:
    """The document with the files of the image, each below the component that it comes from.

    They are not given to the library, which takes quadratic time.
    """
    data = json.loads(document)
    for one in (data["metadata"]["component"], *data["components"]):
        ref = one["bom-ref"]
        if files := bill.files_of("" if ref == _SYSTEM else ref):
            one["components"] = list(map(_file, files))
    return json.dumps(data, indent=1)


def _file(one: ImageFile) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"/file/{one.ref}",
        "name": f"/{one.path}",
        "hashes": [{"alg": "SHA-256", "content": one.sha256}],
    }


def _entity(party: Party | None) -> OrganizationalEntity | None:
    if party is None:
        return None
    if party.is_email:
        contact = OrganizationalContact(name=party.name, email=party.contact)
        return OrganizationalEntity(name=party.name, contacts=[contact])
    return OrganizationalEntity(
        name=party.name, urls=[XsUri(party.contact)] if party.contact else None
    )


def _system(bill: Bill) -> model.Component:
    archives = [bill.archive] if bill.archive else []
    return model.Component(
        name=bill.system,
        version=bill.version,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=_SYSTEM,
        description=bill.description or None,
        supplier=_entity(bill.author),
        manufacturer=_entity(bill.author),
        licenses=_licenses(bill.license, ""),
        hashes=_hashes(*archives[:1]) if archives else None,
        external_references=[_reference(_Kind.DISTRIBUTION, one) for one in archives],
        properties=_properties(archives),
    )


def _component(one: Component, bill: Bill) -> model.Component:
    delivered: tuple[Archive | Download, ...] = (
        one.downloads
        if one.kind == "package"
        else (bill.by_ref[one.within] if one.within else one).archives
    )
    references = [_reference(_Kind.DISTRIBUTION, file) for file in delivered]
    if one.kind != "package":
        references += [_reference(_Kind.SOURCE_DISTRIBUTION, file) for file in one.downloads]
    if one.repository:
        references.append(ExternalReference(type=_Kind.VCS, url=XsUri(one.repository)))
    entity = _entity(one.supplier)
    return model.Component(
        name=one.name,
        version=one.version or None,
        type=ComponentType.LIBRARY,
        bom_ref=one.ref,
        purl=PackageURL.from_string(one.purl) if one.purl else None,
        cpe=one.cpe or None,
        scope=None if one.in_image else ComponentScope.EXCLUDED,
        supplier=entity,
        manufacturer=entity,
        licenses=_licenses(one.license, one.found_license),
        hashes=_hashes(delivered[0]) if len(delivered) == 1 else None,
        external_references=references,
        pedigree=_pedigree(one),
        properties=[*_properties(delivered), *_more(one)],
    )


def _licenses(concluded: str, declared: str) -> list[LicenseExpression]:
    """One expression: CycloneDX has room for no more."""
    if concluded:
        acknowledged = LicenseAcknowledgement.CONCLUDED
        return [LicenseExpression(concluded, acknowledgement=acknowledged)]
    if declared:
        acknowledged = LicenseAcknowledgement.DECLARED
        return [LicenseExpression(declared, acknowledgement=acknowledged)]
    return []


def _hashes(file: Archive | Download) -> list[HashType]:
    pairs = ((HashAlgorithm.SHA_256, file.sha256), (HashAlgorithm.SHA_512, file.sha512))
    return [HashType(alg=algorithm, content=value) for algorithm, value in pairs if value]


def _reference(kind: ExternalReferenceType, file: Archive | Download) -> ExternalReference:
    """A reference to a file; without a URL, by its digest."""
    url = file.url if isinstance(file, Download) else ""
    return ExternalReference(
        type=kind,
        url=XsUri(url or f"urn:sha256:{file.sha256}"),
        comment=file.name,
        hashes=_hashes(file),
    )


def _pedigree(one: Component) -> Pedigree | None:
    patches = [
        model.Patch(
            type=PatchClassification.UNOFFICIAL,
            diff=Diff(url=XsUri(f"{patch.path}#sha256={patch.sha256}")),
        )
        for patch in one.patches
    ]
    commits = [Commit(uid=one.commit)] if one.commit else []
    notes = "\n".join(one.remarks)
    if not patches and not commits and not notes:
        return None
    return Pedigree(patches=patches, commits=commits, notes=notes or None)


def _properties(files: Iterable[Archive | Download]) -> list[Property]:
    """What TR-03183-2 wants to know of the files in which a component is delivered."""
    names = sorted(file.name for file in files)
    if not names:
        return []
    kinds = {
        "archive": "archive",
        "executable": "non-executable",
        "structured": "structured",
    }
    return [
        *(Property(name="bsi:component:filename", value=name) for name in names),
        *(Property(name=f"bsi:component:{key}", value=value) for key, value in kinds.items()),
    ]


def _more(one: Component) -> Iterator[Property]:
    if one.origin:
        yield Property(name="distbuild:source-package", value=one.origin)
    if not one.found_license:
        for file in one.license_files:
            yield Property(name="distbuild:license-file", value=file)


def _vulnerability(one: Component, statement: Statement) -> Vulnerability:
    return Vulnerability(
        bom_ref=f"/vex/{statement.vulnerability}/{one.ref}",
        id=statement.vulnerability,
        affects=[BomTarget(ref=one.ref)],
        analysis=VulnerabilityAnalysis(
            state=_STATES[statement.status],
            justification=_JUSTIFICATIONS.get(statement.justification),
            detail=statement.why or None,
        ),
    )


def _dependencies(bill: Bill) -> list[Dependency]:
    """For the system, its chunks; for a chunk, what it was built with and what it contains."""
    leaves = {ref: Dependency(BomRef(ref)) for ref in (_SYSTEM, *bill.by_ref)}
    below: dict[str, set[str]] = {ref: set() for ref in leaves}
    for one in bill.components:
        below[one.ref].update(one.needs)
        if one.within:
            below[one.within].add(one.ref)
        elif one.in_image:
            below[_SYSTEM].add(one.ref)
    return [
        Dependency(leaves[ref].ref, dependencies=[leaves[other] for other in others])
        for ref, others in below.items()
    ]
