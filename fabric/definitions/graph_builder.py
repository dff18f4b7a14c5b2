"""Builds and checks the nodes and edges of the build graph: chunks, strata, dependencies."""

from __future__ import annotations

import msgspec

from fabric.definitions.chunk_morph import imported
from fabric.definitions.defaults import Defaults
from fabric.definitions.fields import Findings, listing
from fabric.definitions.graph import COMMAND_STEPS, Recipe
from fabric.definitions.morphs import (
    ChunkMorph,
    ChunkSpec,
    Reference,
    StratumMorph,
    SystemMorph,
)
from fabric.definitions.splitting import artifact_names, with_defaults
from fabric.definitions.walk import cycles, postorder
from fabric.errors import suggest


class Loaded(msgspec.Struct):
    """A system and the files it needs.  ``whole`` is False if strata are missing."""

    system: SystemMorph
    strata: dict[str, StratumMorph]  # by path, breadth first from the system
    chunks: dict[str, ChunkMorph]  # by path
    defaults: Defaults | None
    version: int
    whole: bool


class Chunk(msgspec.Struct):
    """A chunk that is to become a step."""

    id: str
    spec: ChunkSpec  # in the first stratum that lists it
    file: str  # of that stratum
    morph: ChunkMorph | None
    source_name: str
    recipe: Recipe
    artifacts: tuple[str, ...]
    strata: list[str] = []  # paths
    depends: list[str] = []  # nodes that its spec lists
    used: bool = False  # a stratum artifact has an artifact of it


class _List(msgspec.Struct, frozen=True):
    """The nodes that a chunk needs by its spec in the stratum ``path``."""

    path: str
    spec: ChunkSpec
    needs: frozenset[str]


def _named_strata(stratum: StratumMorph) -> list[Reference]:
    """The strata that a stratum and the lists of its chunks name."""
    return [
        *stratum.depends,
        *(entry.stratum for spec in stratum.chunks for entry in spec.elsewhere),
    ]


class GraphBuilder:
    """The nodes and edges of the graph.  Nodes are ids of steps: ``chunk:...``, ``stratum:...``.

    Call `merge_chunks`, `check_names`, `connect`, and then `ordered`.
    """

    def __init__(self, loaded: Loaded, defaults: Defaults, findings: Findings) -> None:
        self.loaded = loaded
        self.defaults = defaults
        self.findings = findings
        self.chunks: dict[str, Chunk] = {}  # by id
        self.by_spec: dict[tuple[str, str], Chunk] = {}  # by (stratum path, name)
        self.edges: dict[str, list[str]] = {}  # node -> what it depends on directly
        #: stratum -> the strata below it: those that it or the lists of its chunks name
        self.below: dict[str, list[str]] = {}
        self.plain = {
            name: {step: commands.get(step, ()) for step in COMMAND_STEPS}
            for name, commands in defaults.build_systems.items()
        }
        self.flags = defaults.flags(loaded.system.arch)

    # -- chunks ------------------------------------------------------------------------------

    def merge_chunks(self) -> None:
        """Make one chunk for each (repo, ref, morph or name), from all strata."""
        known: dict[tuple[str, str, str, str], Chunk] = {}
        for path, stratum in self.loaded.strata.items():
            for spec in stratum.chunks:
                morph = self.loaded.chunks.get(spec.morph.path) if spec.morph else None
                if spec.morph is not None and morph is None:
                    continue  # reported already
                same = (
                    spec.repo, spec.ref,
                    spec.morph.path if spec.morph else "", "" if spec.morph else spec.name,
                )  # fmt: skip
                chunk = known.get(same)
                if chunk is None:
                    chunk = known[same] = self._chunk(path, spec, morph)
                    self.chunks[chunk.id] = chunk
                else:
                    self._check_alike(chunk, path, spec)
                chunk.strata.append(path)
                self.by_spec[path, spec.name] = chunk

    def _chunk(self, path: str, spec: ChunkSpec, morph: ChunkMorph | None) -> Chunk:
        name = morph.name if morph else spec.name
        if name and spec.name and name != spec.name:
            self.findings.warn(
                path,
                spec.lines.get("name", spec.line),
                f"chunk {spec.name}: {morph.file if morph else path} calls it {name!r}, which names"
                f" its artifacts, as {name}-bins: give it one name",
            )
        build_system = morph.build_system if morph else spec.build_system
        commands = self.plain.get(build_system, self.plain["manual"])
        if spec.mode == "import":
            commands = {}
            if morph is not None:
                for field, line in morph.built.items():
                    self.findings.error(morph.file, line, imported(f"chunk {name}", field))
        rules = with_defaults(morph.products if morph else (), self.defaults.chunk_rules, name)
        artifacts = artifact_names(rules)
        if morph is not None and morph.commands:
            commands = {**commands, **morph.commands}
        hardened = any(commands.values()) and (morph is None or morph.hardening)
        flags = self.flags if hardened else {}
        if morph is None:
            recipe = Recipe(commands, rules, submodules=spec.submodules, flags=flags)
        else:
            recipe = Recipe(
                commands,
                rules,
                morph.max_jobs,
                morph.devices,
                self._integration(morph, artifacts),
                spec.submodules,
                flags,
            )
        return Chunk(f"chunk:{path}:{spec.name}", spec, path, morph, name, recipe, artifacts)

    def _integration(
        self, morph: ChunkMorph, artifacts: tuple[str, ...]
    ) -> dict[str, dict[str, tuple[str, ...]]]:
        """The integration commands of each artifact; warns of those for unknown artifacts."""
        for artifact in morph.integration:
            if artifact not in artifacts:
                hint = suggest(artifact, artifacts) or f"; it has {listing(artifacts)}"
                self.findings.warn(
                    morph.file,
                    morph.integration_lines[artifact],
                    f"chunk {morph.name}: its 'system-integration' for {artifact!r} is lost, as it"
                    f" has no such artifact{hint}",
                )
        return {one: morph.integration[one] for one in morph.integration if one in artifacts}

    def _check_alike(self, chunk: Chunk, path: str, spec: ChunkSpec) -> None:
        """Report differences between the specs of a chunk in two strata: it is built once."""
        first = chunk.spec
        for what, one, other in (
            ("build-mode", first.mode, spec.mode),
            ("build-only", first.build_only, spec.build_only),
            ("prefix", first.prefix, spec.prefix),
            ("build-system", first.build_system, spec.build_system),
            ("submodules", first.submodules, spec.submodules),
        ):
            if one != other:
                values = (
                    "" if what in ("build-only", "submodules") else f" ({other} here, {one} there)"
                )
                self.findings.error(
                    path,
                    spec.lines.get(what, spec.line),
                    f"chunk {spec.name}: {chunk.file}:{first.lines.get(what, first.line)} lists the"
                    f" same repo, ref and morph with another {what}{values}, but it is built only"
                    " once: make them equal, or give one of them another name and morph",
                )

    def check_names(self) -> None:
        """Report chunks whose artifacts have the same names, but that have different sources."""
        first: dict[tuple[bool, str], Chunk] = {}
        for chunk in self.chunks.values():
            other = first.setdefault((chunk.morph is None, chunk.source_name), chunk)
            if (other.spec.repo, other.spec.ref) != (chunk.spec.repo, chunk.spec.ref):
                self.findings.error(
                    chunk.file,
                    chunk.spec.line,
                    f"chunk {chunk.source_name}: {other.file}:{other.spec.line} has another chunk"
                    f" of that name ({other.spec.repo} {other.spec.ref}, here {chunk.spec.repo}"
                    f" {chunk.spec.ref}): give one of them another name, or both the same source",
                )

    # -- edges and order ---------------------------------------------------------------------

    def connect(self) -> bool:
        """Fill in ``edges``; False if they have cycles, which are reported."""
        strata = self.loaded.strata
        named = {path: _named_strata(stratum) for path, stratum in strata.items()}
        below = {
            path: list(dict.fromkeys(one.path for one in named[path] if one.path in strata))
            for path in strata
        }
        circles = cycles(below)
        for cycle in circles:
            line = next(one.line for one in named[cycle[0]] if one.path == cycle[1])
            names = " -> ".join(strata[path].name for path in cycle)
            self.findings.error(
                cycle[0],
                line,
                f"strata need each other in a cycle: {names}: remove one of these dependencies",
            )
        lists: dict[str, _List] = {}
        for path, stratum in strata.items():
            node = f"stratum:{path}"
            self.below[node] = [f"stratum:{one}" for one in below[path]]
            specs = [(spec, self.by_spec.get((path, spec.name))) for spec in stratum.chunks]
            needs = [f"stratum:{one.path}" for one in stratum.depends if one.path in strata]
            needs = list(dict.fromkeys(needs))
            self.edges[node] = needs + [chunk.id for _, chunk in specs if chunk is not None]
            for spec, chunk in specs:
                if chunk is None:
                    continue
                inside = [self.by_spec.get((path, name)) for name in spec.depends]
                listed = [one.id for one in inside if one] + self._elsewhere(path, spec, chunk)
                chunk.depends += [one for one in listed if one not in chunk.depends]
                edges = self.edges.setdefault(chunk.id, [])
                if not spec.elsewhere and spec.mode != "import":
                    edges += [one for one in needs if one not in edges]
                if len(chunk.strata) > 1:
                    mine = _List(path, spec, frozenset(listed))
                    self._check_lists(lists.setdefault(chunk.id, mine), mine)
        for chunk in self.chunks.values():
            self.edges[chunk.id] += chunk.depends
        return not circles and not self._shared_cycles()

    def _elsewhere(self, path: str, spec: ChunkSpec, chunk: Chunk) -> list[str]:
        """The nodes of other strata that a chunk lists; unknown ones are reported."""
        found: list[str] = []
        for entry in spec.elsewhere:
            stratum = self.loaded.strata.get(entry.stratum.path)
            if stratum is None:
                continue  # reported already
            if entry.chunks is None:
                found.append(f"stratum:{entry.stratum.path}")
            names = [one.name for one in stratum.chunks]
            for name, line in entry.chunks or ():
                other = self.by_spec.get((entry.stratum.path, name))
                wrong = ""
                if name not in names:
                    hint = suggest(name, names) or f"; it has {listing(names)}"
                    wrong = f"which is not a chunk of {entry.stratum.path}{hint}"
                elif other is chunk:
                    wrong = "which is this chunk itself: leave it out"
                elif other and other.spec.build_only and other.strata != chunk.strata:
                    wrong = (
                        "a build-only chunk, which only chunks of its own strata see: leave it out"
                    )
                if wrong:
                    message = f"chunk {spec.name}: it build-depends on {name!r}, {wrong}"
                    self.findings.error(path, line, message)
                elif other:
                    found.append(other.id)
        return found

    def _check_lists(self, first: _List, other: _List) -> None:
        """Report lists of a chunk in two strata that differ, if one names other strata.

        Names of chunks of the same stratum are joined.  With a list that names other strata, the
        chunk sees no more than that.
        """
        if not (first.spec.elsewhere or other.spec.elsewhere):
            return
        if bool(first.spec.elsewhere) == bool(other.spec.elsewhere) and first.needs == other.needs:
            return
        self.findings.error(
            other.path,
            other.spec.lines.get("build-depends", other.spec.line),
            f"chunk {other.spec.name}:"
            f" {first.path}:{first.spec.lines.get('build-depends', first.spec.line)} lists the same"
            " repo, ref and morph, and other chunks that it needs, but it is built only once: list"
            " the same in both, each with its stratum, or give one of them another name and morph",
        )

    def _shared_cycles(self) -> bool:
        """Report cycles through chunks of several strata; True if there are any."""
        found: set[str] = set()
        for cycle in cycles(self.edges):
            shared = [node for node in cycle if node in self.chunks]
            start = next((node for node in shared if len(self.chunks[node].strata) > 1), None)
            if start is None or start in found:
                continue  # within one stratum: reported when that was read
            found.add(start)
            at = cycle.index(start)
            turned = [*cycle[at:-1], *cycle[:at], start]
            chunk = self.chunks[start]
            self.findings.error(
                chunk.file,
                chunk.spec.line,
                f"chunk {chunk.spec.name} is in {listing(chunk.strata)} and so would need itself:"
                f" {' -> '.join(map(self._name, turned))}: leave it out of one of these strata",
            )
        return bool(found)

    def _name(self, node: str) -> str:
        if chunk := self.chunks.get(node):
            return chunk.spec.name
        return f"stratum {self.loaded.strata[node.partition(':')[2]].name}"

    def ordered(self) -> list[str]:
        """All chunks and strata, in the order described in `resolve`.  Valid without cycles."""
        level: dict[str, int] = {}
        above = {node: edges + self.below.get(node, []) for node, edges in self.edges.items()}
        for node in postorder(above, above)[0]:
            heights = [level.get(one, 0) + (one not in self.chunks) for one in above[node]]
            level[node] = max(heights, default=0)
        strata = [f"stratum:{path}" for path in self.loaded.strata]
        return postorder(self.edges, sorted(strata, key=lambda node: (level[node], node)))[0]
