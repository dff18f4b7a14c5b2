"""Checks all morphs of definitions: systems, and strata and chunks that no system needs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fabric.definitions.fields import Findings
from fabric.definitions.load import Files, Read, open_loader
from fabric.definitions.resolve import resolve


class Survey(msgspec.Struct):
    """The morphs of each kind, as paths, and the mistakes and warnings in them."""

    findings: Findings
    system: list[str] = []
    stratum: list[str] = []
    chunk: list[str] = []
    cluster: list[str] = []


def survey(read: Read, morphs: Sequence[str]) -> Survey:
    """Check the files ``morphs``, and what they name; clusters are only listed.

    DefinitionsError if VERSION is wrong.
    """
    findings = Findings()
    files = Files(read, findings, lambda: morphs)
    loader = open_loader(files)
    found = Survey(findings)
    for path in morphs:
        given = files.any(path)
        if given is not None:
            getattr(found, given["kind"]).append(path)
    seen: set[str] = set()
    for path in (*found.system, *found.stratum):
        if path not in seen:
            loaded = (loader.system if path in found.system else loader.stratum)(path)
            if loaded is not None:
                resolve(loaded, findings)
                seen.update(loaded.strata)
    for path in found.chunk:
        loader.chunk(path, path, 1, "")
    return found
