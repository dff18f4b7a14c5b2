"""Checks all morphs of definitions, and collects their mistakes and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fabric.definitions.load import Read
from fabric.errors import DefinitionsError, Problem, in_line

_SINGULAR = {
    "systems": "system",
    "strata": "stratum",
    "chunks": "chunk",
    "clusters": "cluster",
    "lorries": "lorry",
}


class Checked:
    """The files that were checked, and the mistakes and warnings in them."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}  # kind, in the plural -> paths; names of lorries
        self.mistakes: set[Problem] = set()
        self.warnings: set[Problem] = set()

    def add(self, mistakes: Iterable[Problem], warnings: Iterable[Problem] = ()) -> None:
        self.mistakes.update(mistakes)
        self.warnings.update(warnings)

    def counts(self) -> str:
        """ "1 system, 3 strata"; the name of the only file."""
        found = {kind: paths for kind, paths in self.files.items() if paths}
        only = [path for paths in found.values() for path in paths]
        if len(only) == 1:
            return in_line(only[0])
        return ", ".join(
            f"{len(paths)} {kind if len(paths) > 1 else _SINGULAR[kind]}"
            for kind, paths in found.items()
        )


def check_morphs(read: Read, morphs: Sequence[str], checked: Checked) -> None:
    """Check the morphs ``morphs``, also those that no system needs.

    DefinitionsError if VERSION is wrong.
    """
    from fabric.definitions.survey import survey
    from fabric.deployment.cluster import load_cluster

    found = survey(read, morphs)
    checked.add(found.findings.errors, found.findings.warnings)
    checked.files |= {
        "systems": found.system,
        "strata": found.stratum,
        "chunks": found.chunk,
        "clusters": found.cluster,
    }
    for cluster in found.cluster:
        try:
            load_cluster(read, cluster, lambda: morphs)
        except DefinitionsError as error:
            checked.add(error.problems, error.warnings)
