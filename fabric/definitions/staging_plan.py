"""Plans the contents of strata, systems and staging areas, and makes the steps of the graph."""

from __future__ import annotations

from itertools import compress

from fabric.definitions.fields import listing
from fabric.definitions.graph import Graph, Step
from fabric.definitions.graph_builder import Chunk, GraphBuilder
from fabric.definitions.morphs import StrataEntry, StratumMorph
from fabric.definitions.splitting import Splitter, artifact_names, with_defaults
from fabric.errors import suggest

_BITS = bytes.maketrans(b"01", b"\0\1")
_Lists = dict[str, list[tuple[str, str]]]  # stratum artifact -> (chunk id, artifact)


def bits(mask: int) -> bytes:
    """One byte, 0 or 1, for each bit, the lowest first: selectors for `itertools.compress`."""
    return bin(mask)[:1:-1].encode().translate(_BITS)


class StagingPlanner:
    """Makes steps of the builder's nodes.  A set of chunks is an int: bit i is the i-th chunk.

    Call `fill_strata`, `fill_system`, and then `graph`.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self.builder = builder
        self.loaded = builder.loaded
        self.findings = builder.findings
        self.order = builder.ordered()
        self.chunks = [builder.chunks[node] for node in self.order if node in builder.chunks]
        self.index = {chunk.id: number for number, chunk in enumerate(self.chunks)}
        self.lists: dict[str, _Lists] = {}  # by stratum path
        self.contents: list[tuple[str, str]] = []  # of the system: (stratum id, artifact)
        #: ids of bootstrap chunks that are built with import chunks, not with the machine's tools
        self.seeded: set[str] = set()
        self.build_only: dict[tuple[str, ...], int] = {}  # by the strata they are in
        for number, chunk in enumerate(self.chunks):
            if chunk.spec.build_only:
                home = tuple(chunk.strata)
                self.build_only[home] = self.build_only.get(home, 0) | 1 << number
        self.taken: set[str] = set()  # ids of its strata, and of chunks with artifacts in it

    # -- contents ----------------------------------------------------------------------------

    def fill_strata(self) -> None:
        """Assign chunk artifacts to stratum artifacts."""
        names: dict[str, str] = {}
        owners: dict[str, str] = {}
        for path, stratum in self.loaded.strata.items():
            self.lists[path] = lists = self._lists(path, stratum)
            other = names.setdefault(stratum.name, path)
            if other != path:
                self.findings.error(
                    path, stratum.line, f"{other} has the name {stratum.name!r}, too: rename one"
                )
                continue
            for artifact in lists:
                if owners.setdefault(artifact, path) != path:
                    self.findings.error(
                        path,
                        stratum.line,
                        f"stratum {stratum.name} makes the artifact {artifact!r}, which"
                        f" {owners[artifact]} makes too: rename one",
                    )

    def _lists(self, path: str, stratum: StratumMorph) -> _Lists:
        targets = (target for spec in stratum.chunks for _, target, _ in spec.artifacts)
        defaults = self.builder.defaults.stratum_rules
        rules = with_defaults(stratum.products, defaults, stratum.name)
        splitter = Splitter(rules)
        lists: _Lists = {artifact: [] for artifact in (*targets, *artifact_names(rules))}
        members = []
        for spec in stratum.chunks:
            if chunk := self.builder.by_spec.get((path, spec.name)):
                members.append((self.index[chunk.id], chunk, spec))
        for _, chunk, spec in sorted(members, key=lambda member: member[0]):
            direct: dict[str, str] = {}
            for artifact, target, line in spec.artifacts:
                direct[artifact] = target
                if artifact not in chunk.artifacts:
                    hint = suggest(artifact, chunk.artifacts)
                    self.findings.error(
                        path,
                        line,
                        f"chunk {spec.name}: {artifact!r} is not an artifact of it"
                        + (hint or f"; it has {listing(chunk.artifacts)}"),
                    )
            for artifact in chunk.artifacts:
                stratum_artifact = direct.get(artifact) or splitter.artifact(artifact)
                if stratum_artifact is None:
                    continue
                chunk.used = True
                if not spec.build_only:
                    lists[stratum_artifact].append((chunk.id, artifact))
        return lists

    def fill_system(self) -> None:
        """Collect the stratum artifacts of the system."""
        system = self.loaded.system
        for entry in system.strata:
            stratum = self.loaded.strata.get(entry.morph.path)
            if stratum is None:
                continue
            if entry.name and stratum.name and entry.name != stratum.name:
                self.findings.error(
                    system.file,
                    entry.name_line,
                    f"system {system.name}: the stratum in {entry.morph.path} is called"
                    f" {stratum.name!r}, not {entry.name!r}",
                )
            self._take(entry, stratum.name)
        specs = [spec for stratum in self.loaded.strata.values() for spec in stratum.chunks]
        named = bool(system.name)  # else it stands for a stratum
        if named and self.loaded.whole and specs and all(spec.build_only for spec in specs):
            self.findings.error(
                system.file,
                system.line,
                f"system {system.name}: all its chunks are build-only or bootstrap chunks, which"
                " are in no system: there is nothing to build",
            )

    def _take(self, entry: StrataEntry, name: str) -> None:
        lists = self.lists[entry.morph.path]
        node = f"stratum:{entry.morph.path}"
        self.taken.add(node)
        for artifact, line in entry.artifacts or ():
            if artifact in lists:
                continue
            # Existing systems name artifacts that never existed: a warning.  A typo is an error.
            slip = suggest(artifact, lists, 0.8)
            report = self.findings.error if slip else self.findings.warn
            report(
                self.loaded.system.file,
                line,
                f"system {self.loaded.system.name}: stratum {name} has no artifact {artifact!r}"
                + (slip or f", so nothing is taken by that name; it has {listing(lists)}"),
            )
        wanted = None if entry.artifacts is None else {artifact for artifact, _ in entry.artifacts}
        for artifact, content in lists.items():
            if (wanted is None or artifact in wanted) and (node, artifact) not in self.contents:
                self.contents.append((node, artifact))
                self.taken.update(chunk for chunk, _ in content)

    # -- steps -------------------------------------------------------------------------------

    def graph(self) -> Graph:
        """The whole graph.  Valid without cycles."""
        system = self.loaded.system
        ids = [chunk.id for chunk in self.chunks]
        reach = self._reach()
        prefixes: dict[str, int] = {}
        bootstrap = 0  # those built with the machine's tools
        for number, chunk in enumerate(self.chunks):
            prefix = chunk.spec.prefix
            prefixes[prefix] = prefixes.get(prefix, 0) | 1 << number
            if chunk.spec.mode == "bootstrap" and chunk.id not in self.seeded:
                bootstrap |= 1 << number
        steps: list[Step] = []
        for node in self.order:
            if node not in self.builder.chunks:
                steps.append(self._stratum(node))
                continue
            chunk = self.builder.chunks[node]
            seen = reach[node]
            staged = seen & ~self._hidden(chunk)
            on_path = staged | seen & bootstrap
            steps.append(
                self._chunk(
                    chunk,
                    tuple(compress(ids, bits(staged))),
                    tuple(sorted(prefix for prefix, mask in prefixes.items() if mask & on_path)),
                )
            )
        steps.append(self._system())
        return Graph(
            system.name,
            system.arch,
            system.file,
            self.loaded.version,
            tuple(steps),
            tuple(sorted(self.findings.warnings)),
        )

    def _reach(self) -> dict[str, int]:
        """Chunks that are reachable from each node; fills `seeded` in.

        Only bootstrap chunks reach the chunks that a seeded one is built with.
        """
        reach: dict[str, int] = {}
        imports = 0
        for number, one in enumerate(self.chunks):
            imports |= (one.spec.mode == "import") << number
        for node in self.order:
            mask = 0
            mine = self.builder.chunks.get(node)
            bootstrap = mine if mine is not None and mine.spec.mode == "bootstrap" else None
            for below in self.builder.edges[node]:
                if bootstrap is not None or below not in self.seeded:
                    mask |= reach[below]
                chunk = self.builder.chunks.get(below)
                if chunk is not None and (chunk.used or node in self.builder.chunks):
                    mask |= 1 << self.index[below]
            reach[node] = mask
            if bootstrap is not None and mask & imports & ~self._hidden(bootstrap):
                self.seeded.add(node)
        return reach

    def _hidden(self, chunk: Chunk) -> int:
        """The build-only chunks of other strata, which a chunk does not see."""
        hidden = sum(self.build_only.values())
        return hidden & ~self.build_only.get(tuple(chunk.strata), 0)

    def _chunk(self, chunk: Chunk, staged: tuple[str, ...], path_prefixes: tuple[str, ...]) -> Step:
        spec = chunk.spec
        return Step(
            id=chunk.id,
            kind="chunk",
            name=spec.name,
            artifacts=chunk.artifacts,
            depends=tuple(self.builder.edges[chunk.id]),
            morph=chunk.morph.file if chunk.morph else "",
            description=chunk.morph.description if chunk.morph else "",
            where=f"{chunk.file}:{spec.lines.get('ref', spec.line)}",
            unpetrify_ref=spec.unpetrify_ref,
            not_reproducible=chunk.morph.not_reproducible if chunk.morph else "",
            strata=tuple(self.loaded.strata[path].name for path in chunk.strata),
            source_name=chunk.source_name,
            repo=spec.repo,
            ref=spec.ref,
            build_system=spec.build_system,
            mode="staging" if chunk.id in self.seeded else spec.mode,
            build_only=spec.build_only,
            seeded=chunk.id in self.seeded,
            prefix=spec.prefix,
            staged=staged,
            path_prefixes=path_prefixes,
            recipe=chunk.recipe,
            in_system=chunk.id in self.taken,
        )

    def _stratum(self, node: str) -> Step:
        path = node.partition(":")[2]
        stratum = self.loaded.strata[path]
        return Step(
            id=node,
            kind="stratum",
            name=stratum.name,
            artifacts=tuple(self.lists[path]),
            depends=tuple(self.builder.edges[node]),
            morph=path,
            description=stratum.description,
            in_system=node in self.taken,
            lists={artifact: tuple(content) for artifact, content in self.lists[path].items()},
        )

    def _system(self) -> Step:
        system = self.loaded.system
        return Step(
            id=f"system:{system.file}",
            kind="system",
            name=system.name,
            artifacts=(f"{system.name}-rootfs",),
            depends=tuple(dict.fromkeys(f"stratum:{one.morph.path}" for one in system.strata)),
            morph=system.file,
            description=system.description,
            in_system=True,
            contents=tuple(self.contents),
        )
