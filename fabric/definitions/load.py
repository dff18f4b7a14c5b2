"""Loads a system: reads the files that it needs, validates them, and resolves the build graph.

Files come from a function ``read(path)``, with the path from the definitions' root.  It returns
None if there is no such file, and raises `DefinitionsError` if it cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from fabric import bounds
from fabric.definitions import defaults as repository
from fabric.definitions.chunk_morph import chunk as chunk_morph
from fabric.definitions.defaults import Defaults
from fabric.definitions.fields import Fields, Findings, kind_of, listing
from fabric.definitions.graph import Graph
from fabric.definitions.graph_builder import Loaded
from fabric.definitions.located_yaml import Map, parse
from fabric.definitions.morphs import (
    ChunkMorph,
    Reference,
    StrataEntry,
    StratumMorph,
    SystemMorph,
    morph_path,
)
from fabric.definitions.resolve import resolve
from fabric.definitions.stratum_morph import stratum as stratum_morph
from fabric.definitions.system_morph import system as system_morph
from fabric.errors import DefinitionsError, suggest

Read = Callable[[str], bytes | None]
#: All morphs, for hints.
List = Callable[[], Iterable[str]]

#: Missing files for which a similar one is looked for.
_HINTS = 20
_KINDS = ("system", "stratum", "chunk", "cluster")


def load(read: Read, system: str, morphs: List = list) -> Graph:
    """The build graph of the system in the file ``system``.

    The suffix ``.morph`` may be left out of a file at the root.  DefinitionsError has all mistakes
    in the files that the system needs, with hints among ``morphs()``.
    """
    findings = Findings()
    loader = open_loader(Files(read, findings, morphs))
    loaded = loader.system(morph_path(system))
    graph = resolve(loaded, findings) if loaded is not None else None
    if findings.errors or graph is None:
        raise DefinitionsError(findings.errors, findings.warnings)
    return graph


def open_loader(files: Files) -> Loader:
    """A loader of definitions with a valid VERSION.  DefinitionsError if it is not."""
    number = repository.version(files.read("VERSION"), files.findings)
    if number is None:
        raise DefinitionsError(files.findings.errors)
    defaults = repository.defaults(files.read("DEFAULTS"), files.findings)
    return Loader(files, number, defaults, files.findings)


class Files:
    """Reads each morph once; ``morphs`` lists all, for hints."""

    def __init__(self, read: Read, findings: Findings, morphs: List = list) -> None:
        self.read = read
        self._morphs = morphs
        self.findings = findings
        self.known: dict[str, Map | None] = {}  # by path; None: missing or broken
        self.missing: set[str] = set()

    @cached_property
    def morphs(self) -> tuple[str, ...]:
        return tuple(self._morphs())

    def get(self, path: str, kind: str, referrer: str, line: int, what: str) -> Map | None:
        """The mapping in the file; None if it has mistakes, or is of another kind.

        Mistakes are reported.  A missing file, or one of another kind, is reported at ``line`` of
        the file ``referrer``, where ``what`` names it; ``what`` is "" if the user did.
        """
        given = self.any(path)
        if path in self.missing:
            self.findings.error(referrer, line, self._absent(path, what))
        elif given is not None and given["kind"] != kind:
            line = line if what else given.lines["kind"]
            self.findings.error(referrer, line, _other_kind(path, given["kind"], kind, what))
            return None
        return given

    def any(self, path: str) -> Map | None:
        """The mapping in the file, of any kind; None if it has mistakes, or there is no file."""
        if path not in self.known:
            self.known[path] = self._read(path)
        return self.known[path]

    def _read(self, path: str) -> Map | None:
        try:
            data = self.read(path)
        except DefinitionsError as error:  # it exists, but cannot be read
            self.findings.errors += error.problems
            return None
        if data is None:
            self.missing.add(path)
            return None
        return self._parsed(path, data)

    def _absent(self, path: str, what: str) -> str:
        if not what:
            return "there is no such file in the definitions"
        suffixed = f"{path}.morph"
        near = not path.endswith(".morph") and self.read(suffixed) is not None
        hint = f"; did you mean {suffixed!r}?" if near else ""
        if not hint and len(self.missing) <= _HINTS:
            hint = suggest(path, self.morphs)
        return f"{what} names the file {path}, which does not exist{hint}"

    def _parsed(self, path: str, data: bytes) -> Map | None:
        before = len(self.findings.errors)
        given = parse(data, path, self.findings.errors)
        fields = Fields(path, self.findings)
        if not isinstance(given, Map):
            if len(self.findings.errors) == before:
                what = f"a morph is a mapping with 'name' and 'kind', not {kind_of(given)}"
                fields.report(1, what)
            return None
        kind = fields.text(given, "kind", "morph")
        if kind and kind not in _KINDS:
            hint = suggest(kind, _KINDS) or f"; known are {listing(_KINDS)}"
            fields.report(given.lines["kind"], f"unknown kind {kind!r}{hint}")
        return given if kind in _KINDS else None


def _other_kind(path: str, kind: str, wanted: str, what: str) -> str:
    if what:
        return f"{what} names the file {path}, which is a {kind}, not a {wanted}"
    if kind == "cluster":
        return "this is a cluster, which is deployed, not built: name one of its systems"
    if wanted == "cluster":
        return f"this is a {kind}, not a cluster"
    return (
        f"this is a {kind}, not a system: name a system that contains it,"
        f" and after it the {kind} if that is all you want"
    )


class Loader:
    """Follows references from a system, or from a stratum, down to its chunks."""

    def __init__(
        self, files: Files, version: int, defaults: Defaults | None, findings: Findings
    ) -> None:
        self.files = files
        self.version = version
        self.defaults = defaults
        self.findings = findings
        self.chunks: dict[str, ChunkMorph] = {}

    def system(self, path: str) -> Loaded | None:
        """The system and all that it needs; files with mistakes are reported and left out."""
        given = self.files.get(path, "system", path, 1, "")
        if given is None:
            return None
        return self._follow(system_morph(Fields(path, self.findings), given))

    def stratum(self, path: str) -> Loaded | None:
        """A stratum and all that it needs, as the only one of a system without a name."""
        entry = StrataEntry("", Reference(path, 1), None, 1)
        return self._follow(SystemMorph(path, 1, "", "", "", (entry,)))

    def _follow(self, system: SystemMorph) -> Loaded | None:
        path = system.file
        strata: dict[str, StratumMorph] = {}
        tried: set[str] = set()
        wanted = [(entry.morph, path, f"system {system.name}") for entry in system.strata]
        for reference, referrer, what in wanted:  # grows in the loop: breadth first
            if not reference.path or reference.path in tried:
                continue
            tried.add(reference.path)
            if len(tried) > bounds.STRATA:
                message = f"system {system.name}: more than {bounds.STRATA:,} strata"
                self.findings.error(path, system.line, message)
                return None
            stratum = self._stratum(reference.path, referrer, reference.line, what, system.arch)
            if stratum is not None:
                strata[reference.path] = stratum
                what = f"stratum {stratum.name}"
                wanted += [(below, reference.path, what) for below in stratum.depends]
                wanted += [
                    (entry.stratum, reference.path, f"chunk {spec.name}")
                    for spec in stratum.chunks
                    for entry in spec.elsewhere
                ]
        whole = len(strata) == len(tried)
        return Loaded(system, strata, self.chunks, self.defaults, self.version, whole)

    def _stratum(
        self, path: str, referrer: str, line: int, what: str, arch: str
    ) -> StratumMorph | None:
        given = self.files.get(path, "stratum", referrer, line, what)
        if given is None:
            return None
        stratum = stratum_morph(Fields(path, self.findings), given, self.version, arch)
        for spec in stratum.chunks:
            if spec.morph is not None and spec.morph.path:
                self.chunk(spec.morph.path, path, spec.morph.line, f"chunk {spec.name}")
            elif spec.build_system:
                self._build_system(spec.build_system, path, spec.lines["build-system"], spec.name)
        return stratum

    def chunk(self, path: str, referrer: str, line: int, what: str) -> None:
        """Read a chunk's morph, which the file ``referrer`` names."""
        given = self.files.get(path, "chunk", referrer, line, what)
        if given is None or path in self.chunks:
            return
        chunk = chunk_morph(Fields(path, self.findings), given)
        self.chunks[path] = chunk
        self._build_system(chunk.build_system, path, chunk.build_system_line, chunk.name)

    def _build_system(self, name: str, file: str, line: int, chunk: str) -> None:
        known = self.defaults.build_systems if self.defaults is not None else None
        if known is not None and name not in known:
            hint = suggest(name, known) or ": add it to DEFAULTS, or use 'manual' with commands"
            message = f"chunk {chunk}: unknown build system {name!r}{hint}"
            self.findings.error(file, line, message)
