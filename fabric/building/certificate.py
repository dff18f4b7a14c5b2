"""Defines certificates: whether the steps of a system give the same bytes when built once more.

A certificate is plain data; its JSON is the same for the same certificate, so that it can be
signed.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fabric.building.compare import FileChange
from fabric.definitions.graph import Kind
from fabric.jobs import Manifest

#: "known": it differs, and the definitions say why.
Verdict = Literal["identical", "differs", "known", "not-compared"]
#: The type of a certificate, in its envelope.
KIND = "application/vnd.distbuild.certificate+json"
#: Differing files of a step that a certificate lists.
FILES = 20


class Build(msgspec.Struct, frozen=True):
    """One of the two builds of a step."""

    key: str
    builder: str = ""  # name of the worker
    built: float = 0.0  # Unix time
    #: artifact -> SHA-256 of its archive; "" if it has no files
    artifacts: dict[str, str] = {}


class CertifiedStep(msgspec.Struct, frozen=True):
    """The comparison of two builds of a chunk or system."""

    kind: Kind
    name: str
    verdict: Verdict
    first: Build
    again: Build
    #: of a difference: as the definitions say; without a comparison: why there is none
    reason: str = ""
    expected: str = ""  # why the definitions say that it may differ, though it does not
    perturbed: tuple[str, ...] = ()  # as in `Manifest`
    differing: int = 0  # files that differ
    files: tuple[FileChange, ...] = ()  # the first `FILES` of them


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """The comparisons of a system, or of some of its steps."""

    format: int = 1
    system: str
    arch: str
    morph: str  # path of the system morph
    key: str  # of the system; "" if it is not among the steps
    whole: bool  # the steps are all that are built for the system
    steps: tuple[CertifiedStep, ...]

    @property
    def failed(self) -> tuple[CertifiedStep, ...]:
        """The steps that differ without a reason, or are not compared."""
        return tuple(one for one in self.steps if one.verdict in ("differs", "not-compared"))

    def json(self) -> bytes:
        """The certificate as JSON, in one line."""
        return msgspec.json.encode(self, order="deterministic")


def build_of(manifest: Manifest) -> Build:
    """The record of a build that is in the store."""
    artifacts = {one.name: one.blob.sha256 if one.blob else "" for one in manifest.artifacts}
    return Build(manifest.key, manifest.builder, manifest.built, artifacts)


def compared(
    first: Manifest, again: Manifest, files: tuple[FileChange, ...], reason: str
) -> CertifiedStep:
    """The comparison of two builds; ``files`` differ between them.

    ``reason``: why the definitions say that they may; "" if they must not.
    """
    one, other = build_of(first), build_of(again)
    same = one.artifacts == other.artifacts
    return CertifiedStep(
        kind=first.kind,
        name=first.name,
        verdict="identical" if same else "known" if reason else "differs",
        first=one,
        again=other,
        reason="" if same else reason,
        expected=reason if same else "",
        perturbed=again.perturbed,
        differing=len(files),
        files=files[:FILES],
    )
