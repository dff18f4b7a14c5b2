"""Writes a bill of materials as SPDX 3.0.1, in JSON-LD."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeVar

from spdx_python_model.bindings import v3_0_1 as spdx

from fabric.sbom.bill import Archive, Bill, Component, Download, ImageFile, Party
from fabric.sbom.identifiers import safe

E = TypeVar("E", bound=spdx.Element)
R = TypeVar("R", bound=spdx.Relationship)

_Relation = spdx.RelationshipType
_Purpose = spdx.software_SoftwarePurpose
#: Status -> what relates a vulnerability to a package, and how it is called.
_ASSESSMENTS: dict[str, tuple[type[spdx.security_VexVulnAssessmentRelationship], str]] = {
    "not_affected": (
        spdx.security_VexNotAffectedVulnAssessmentRelationship,
        _Relation.doesNotAffect,
    ),
    "affected": (spdx.security_VexAffectedVulnAssessmentRelationship, _Relation.affects),
    "fixed": (spdx.security_VexFixedVulnAssessmentRelationship, _Relation.fixedIn),
    "under_investigation": (
        spdx.security_VexUnderInvestigationVulnAssessmentRelationship,
        _Relation.underInvestigationFor,
    ),
}
_Why = spdx.security_VexJustificationType
_JUSTIFICATIONS = {
    "component_not_present": _Why.componentNotPresent,
    "vulnerable_code_not_present": _Why.vulnerableCodeNotPresent,
    "vulnerable_code_not_in_execute_path": _Why.vulnerableCodeNotInExecutePath,
    "vulnerable_code_cannot_be_controlled_by_adversary": (
        _Why.vulnerableCodeCannotBeControlledByAdversary
    ),
    "inline_mitigations_already_exist": _Why.inlineMitigationsAlreadyExist,
}


def write(bill: Bill) -> bytes:
    """The document."""
    document = _Document(bill)
    document.add_all()
    data = spdx.JSONLDSerializer().serialize_data(document.objects, force_at_graph=True)
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


class _Document:
    """A document that is being made."""

    def __init__(self, bill: Bill) -> None:
        self._bill = bill
        self.objects = spdx.SHACLObjectSet()
        created = datetime.fromtimestamp(bill.created, UTC)
        self._creation = spdx.CreationInfo(_id="_:creation", specVersion="3.0.1", created=created)
        self.objects.add(self._creation)
        self._parties: dict[Party, spdx.Agent] = {}
        self._licenses: dict[str, spdx.simplelicensing_LicenseExpression] = {}
        self._files: dict[str, spdx.software_File] = {}
        self._packages: dict[str, spdx.software_Package] = {}
        self._vulnerabilities: dict[str, spdx.security_Vulnerability] = {}
        self._relations = 0
        self._elements: dict[str, spdx.Element] = {}

    def add_all(self) -> None:
        bill = self._bill
        tool = self._element(spdx.Tool, "tool", f"distbuild {bill.tool}")
        self._creation.createdUsing.append(tool)
        if bill.author is not None:
            self._creation.createdBy.append(self._party(bill.author))
        else:
            self._creation.createdBy.append(
                self._element(spdx.SoftwareAgent, "agent", f"distbuild {bill.tool}")
            )
        system = self._system()
        for one in bill.components:
            self._packages[one.ref] = self._package(one)
        for one in bill.components:
            self._relate_component(one)
            self._assess(one)
        inside = [self._packages[c.ref] for c in bill.components if c.in_image and not c.within]
        self._relate(system, _Relation.contains, inside, complete=bill.complete)
        for ref, package in (("", system), *self._packages.items()):
            files = [self._image_file(one) for one in bill.files_of(ref)]
            # a chunk may have other files, in artifacts that are not in the image
            self._relate(package, _Relation.contains, files, complete=not ref)
        sbom = self._element(spdx.software_Sbom, "sbom", f"SBOM of {bill.system}")
        types = spdx.software_SbomType
        sbom.software_sbomType.append(types.build if bill.complete else types.design)
        sbom.rootElement.append(system)
        document = spdx.SpdxDocument(
            _id=bill.namespace, creationInfo=self._creation, name=f"SBOM of {bill.system}"
        )
        self.objects.add(document)
        document.rootElement.append(sbom)
        profiles = ["core", "software", "simpleLicensing"]
        if self._vulnerabilities:
            profiles.append("security")
        for profile in profiles:
            document.profileConformance.append(getattr(spdx.ProfileIdentifierType, profile))
        everything = [self._elements[id] for id in sorted(self._elements)]
        document.element.extend(everything)
        sbom.element.extend(one for one in everything if one is not sbom)

    def _element(self, kind: type[E], name: str, title: str) -> E:
        where = f"{self._bill.namespace}#{name}"
        made = kind(_id=where, creationInfo=self._creation, name=title)
        self.objects.add(made)
        self._elements[where] = made
        return made

    def _system(self) -> spdx.software_Package:
        bill = self._bill
        made = self._element(spdx.software_Package, "system", bill.system)
        made.software_packageVersion = bill.version
        made.software_primaryPurpose = _Purpose.operatingSystem
        if bill.description:
            made.description = bill.description
        if bill.author is not None:
            made.suppliedBy = self._party(bill.author)
            made.originatedBy.append(made.suppliedBy)
        if bill.archive is not None:
            self._delivered(made, [bill.archive])
        self._licensed(made, bill.license, "")
        return made

    def _package(self, one: Component) -> spdx.software_Package:
        made = self._element(spdx.software_Package, safe(one.ref), one.name)
        made.software_packageVersion = one.version or None
        if one.in_image:
            # scanners skip packages without it
            made.software_primaryPurpose = _Purpose.install
        if one.purl:
            made.software_packageUrl = one.purl
            self._identified(made, spdx.ExternalIdentifierType.packageUrl, one.purl)
        if one.cpe:
            self._identified(made, spdx.ExternalIdentifierType.cpe23, one.cpe)
        if one.origin:
            made.software_sourceInfo = f"built from {one.origin}"
        if one.supplier is not None:
            made.suppliedBy = self._party(one.supplier)
            made.originatedBy.append(made.suppliedBy)
        if one.repository:
            reference = spdx.ExternalRef(externalRefType=spdx.ExternalRefType.vcs)
            reference.locator.append(one.repository)
            made.externalRef.append(reference)
            made.software_downloadLocation = one.repository
        elif one.downloads and one.downloads[0].url:
            made.software_downloadLocation = one.downloads[0].url
        if one.commit:
            revision = spdx.software_ContentIdentifier(
                software_contentIdentifierType=spdx.software_ContentIdentifierType.gitoid,
                software_contentIdentifierValue=f"gitoid:commit:sha1:{one.commit}",
            )
            made.software_contentIdentifier.append(revision)
        if remarks := [*one.remarks, *_license_remarks(one)]:
            made.comment = "\n".join(remarks)
        return made

    def _relate_component(self, one: Component) -> None:
        made = self._packages[one.ref]
        self._licensed(made, one.concluded_license, one.declared_license)
        if one.kind == "package":
            self._delivered(made, one.downloads)
        else:
            for download in one.downloads:
                self._relate(self._source(download), _Relation.generates, [made])
            chunk = self._bill.by_ref[one.within] if one.within else one
            self._delivered(made, chunk.archives)
        if one.patches:
            patches = [self._file(f"patch:{p.sha256}", p.path, p.sha256) for p in one.patches]
            for file in patches:
                file.software_primaryPurpose = _Purpose.patch
            self._relate(made, _Relation.patchedBy, patches)
        inside = self._bill.inside(one.ref)
        alike = [self._packages[c.ref] for c in inside if c.in_image == one.in_image]
        self._relate(made, _Relation.contains, alike)
        for other in inside:
            if other.in_image != one.in_image:
                self._relate(self._packages[other.ref], _Relation.generates, [made])
        needs = [self._bill.by_ref[ref] for ref in one.needs]
        runs = [self._packages[c.ref] for c in needs if one.in_image and c.in_image]
        self._relate(made, _Relation.dependsOn, runs)
        tools = [self._packages[c.ref] for c in needs if not (one.in_image and c.in_image)]
        self._relate(made, _Relation.usesTool, tools, scope=True)

    def _assess(self, one: Component) -> None:
        """Relate a component to the vulnerabilities that the definitions speak of."""
        package = self._packages[one.ref]
        found = [self._vulnerability(statement.vulnerability) for statement in one.vex]
        self._relate(package, _Relation.hasAssociatedVulnerability, found)
        for vulnerability, statement in zip(found, one.vex, strict=True):
            form, kind = _ASSESSMENTS[statement.status]
            made = self._relation(form, vulnerability, kind, [package])
            if isinstance(made, spdx.security_VexAffectedVulnAssessmentRelationship):
                made.security_actionStatement = statement.statement
            elif statement.statement:
                made.security_statusNotes = statement.statement
            if isinstance(made, spdx.security_VexNotAffectedVulnAssessmentRelationship):
                made.security_justificationType = _JUSTIFICATIONS[statement.justification]

    # -- elements that several components share ----------------------------------------------

    def _party(self, party: Party) -> spdx.Agent:
        if party not in self._parties:
            name = hashlib.sha256(repr(party).encode()).hexdigest()[:16]
            made = self._element(spdx.Organization, f"party-{name}", party.name)
            kind = spdx.ExternalIdentifierType
            self._identified(made, kind.email if party.is_email else kind.urlScheme, party.contact)
            self._parties[party] = made
        return self._parties[party]

    def _identified(self, element: spdx.Element, kind: str, value: str) -> None:
        if value:
            element.externalIdentifier.append(
                spdx.ExternalIdentifier(externalIdentifierType=kind, identifier=value)
            )

    def _vulnerability(self, name: str) -> spdx.security_Vulnerability:
        if name not in self._vulnerabilities:
            made = self._element(spdx.security_Vulnerability, f"vulnerability-{name}", name)
            kinds = spdx.ExternalIdentifierType
            is_cve = name.upper().startswith("CVE-")
            self._identified(made, kinds.cve if is_cve else kinds.securityOther, name)
            self._vulnerabilities[name] = made
        return self._vulnerabilities[name]

    def _licensed(self, element: spdx.Element, concluded: str, declared: str) -> None:
        for kind, expression in (
            (_Relation.hasConcludedLicense, concluded),
            (_Relation.hasDeclaredLicense, declared),
        ):
            if expression:
                self._relate(element, kind, [self._license(expression)])
            else:
                nothing = spdx.expandedlicensing_IndividualLicensingInfo
                self._relate(element, kind, [nothing.NoAssertionLicense])

    def _license(self, expression: str) -> spdx.simplelicensing_LicenseExpression:
        if expression not in self._licenses:
            name = hashlib.sha256(expression.encode()).hexdigest()[:16]
            made = self._element(
                spdx.simplelicensing_LicenseExpression, f"license-{name}", expression
            )
            made.simplelicensing_licenseExpression = expression
            self._licenses[expression] = made
        return self._licenses[expression]

    def _delivered(
        self, package: spdx.software_Package, files: Iterable[Archive | Download]
    ) -> None:
        """Relate a package to the files in which it is delivered."""
        made = []
        for one in files:
            file = self._file(f"file:{one.name}:{one.sha256}", one.name, one.sha256, one.sha512)
            if not file.software_additionalPurpose:
                file.software_primaryPurpose = _Purpose.archive
                file.software_additionalPurpose.extend([_Purpose.archive, _Purpose.container])
            made.append(file)
        self._relate(package, _Relation.hasDistributionArtifact, made)

    def _source(self, one: Download) -> spdx.software_File:
        file = self._file(f"source:{one.name}:{one.sha256}", one.name, one.sha256, one.sha512)
        file.software_primaryPurpose = _Purpose.source
        if one.url and not file.externalRef:
            reference = spdx.ExternalRef(externalRefType=spdx.ExternalRefType.sourceArtifact)
            reference.locator.append(one.url)
            file.externalRef.append(reference)
        return file

    def _file(self, ref: str, name: str, sha256: str, sha512: str = "") -> spdx.software_File:
        if ref not in self._files:
            self._files[ref] = self._element(spdx.software_File, safe(ref), name)
        made = self._files[ref]
        known = {one.algorithm for one in made.verifiedUsing if isinstance(one, spdx.Hash)}
        kinds = spdx.HashAlgorithm
        # one who only built may know less of a file than one in the image
        for algorithm, value in ((kinds.sha256, sha256), (kinds.sha512, sha512)):
            if value and algorithm not in known:
                made.verifiedUsing.append(spdx.Hash(algorithm=algorithm, hashValue=value))
        return made

    def _image_file(self, one: ImageFile) -> spdx.software_File:
        made = self._element(spdx.software_File, f"path-{one.ref}", f"/{one.path}")
        made.verifiedUsing.append(
            spdx.Hash(algorithm=spdx.HashAlgorithm.sha256, hashValue=one.sha256)
        )
        return made

    def _relate(
        self,
        one: spdx.Element,
        kind: str,
        others: Iterable[spdx.Element | str],
        *,
        complete: bool = True,
        scope: bool = False,
    ) -> None:
        """Relate an element to others; nothing without any."""
        others = list(others)
        if not others:
            return
        if scope:
            scoped = self._relation(spdx.LifecycleScopedRelationship, one, kind, others)
            scoped.scope = spdx.LifecycleScopeType.build
            return
        made = self._relation(spdx.Relationship, one, kind, others)
        if kind in (_Relation.contains, _Relation.dependsOn):
            levels = spdx.RelationshipCompleteness
            made.completeness = levels.complete if complete else levels.incomplete

    def _relation(
        self, form: type[R], one: spdx.Element, kind: str, others: list[spdx.Element | str]
    ) -> R:
        self._relations += 1
        where = f"{self._bill.namespace}#r{self._relations}"
        made = form(_id=where, creationInfo=self._creation)
        made.from_ = one
        made.relationshipType = kind
        made.to.extend(others)
        self.objects.add(made)
        self._elements[where] = made
        return made


def _license_remarks(one: Component) -> list[str]:
    if one.found_license or not one.license_files:
        return []
    return [f"Files that speak of its license: {', '.join(one.license_files)}"]
