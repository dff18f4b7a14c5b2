"""Turns a build graph into jobs: each step gets its cache key and its sources' commits.

`fabric.definitions` provides the graph, and the trove resolves refs to commits.  A `Plan` combines
both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping
from functools import cached_property

import msgspec
from msgspec.structs import replace

from fabric.definitions.environment import INTEGRATION, environment
from fabric.definitions.graph import COMMAND_STEPS, HOST_MODES, Graph, Step
from fabric.definitions.keys import Digests, digests
from fabric.definitions.select import needed
from fabric.errors import SourceError, SourcesError, without_secrets
from fabric.jobs import HOST_TOOLS, Content, Job, Part, Source, Staged
from fabric.trove.sources.resolve import Sources, Wanted
from fabric.wire.messages import StepSpec

_encode = msgspec.msgpack.Encoder().encode
#: Sources that an error names, of those with the same failure.
FEW = 5


class Plan(msgspec.Struct, frozen=True, dict=True):
    """A graph whose sources are resolved.  ``goals`` are the ids of the requested steps."""

    graph: Graph
    goals: tuple[str, ...]
    wanted: frozenset[str]  # ids of the goals and all that they need
    sources: Mapping[str, Source]  # id of a wanted chunk -> its source
    host_tools: str  # digest of the tools that bootstrap and test chunks use
    known: Mapping[str, str] | None = None  # keys, if they are known already

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """Cache key of each step by id."""
        return self._digests.keys if self.known is None else self.known

    @cached_property
    def _digests(self) -> Digests:
        trees = {step: _tree_of(source) for step, source in self.sources.items()}
        return digests(self.graph, trees, self.host_tools)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The goals and the steps that they need, each after its dependencies."""
        return tuple(step for step in self.graph.steps if step.id in self.wanted)

    @cached_property
    def log_names(self) -> dict[str, str]:
        """File name of each step's log by cache key: "build-step-zlib-misc.log"."""
        names: dict[str, str] = {}
        for step in self.steps:
            key = self.keys[step.id]
            name = log_name(step.artifacts[-1])
            if name in names.values() and key not in names:  # two chunks of one name
                name = log_name(f"{step.artifacts[-1]}.{key[:8]}")
            names.setdefault(key, name)
        return names

    def depends(self, step: Step) -> tuple[str, ...]:
        """Keys of the steps that must be in the store before this step can be built.

        The step's own key covers them, so steps with equal keys have equal dependencies.
        """
        if step.kind == "chunk":
            return tuple(self.keys[chunk] for chunk in step.staged)
        if step.kind == "stratum":
            inside = (chunk for content in step.lists.values() for chunk, _ in content)
            return tuple(dict.fromkeys(self.keys[chunk] for chunk in inside))
        return tuple(dict.fromkeys(content.key for content in self._contents(step)))

    def job(self, step: Step) -> Job:
        """The job of a step."""
        job = Job(
            key=self.keys[step.id],
            kind=step.kind,
            name=step.name,
            arch=self.graph.arch,
            log=self.log_names[self.keys[step.id]],
            artifacts=step.artifacts,
            recipe=self._digests.recipes.get(step.id, ""),
            metadata=self._metadata(step),
        )
        if step.kind == "chunk":
            return self._with_recipe(job, step)
        if step.kind == "stratum":
            lists = tuple((artifact, self.contents(step, artifact)) for artifact in step.lists)
            return replace(job, lists=lists)
        return replace(
            job,
            environment=INTEGRATION,
            lists=((step.artifacts[0], self._contents(step)),),
            strata=tuple(self._part(stratum, artifact) for stratum, artifact in step.contents),
        )

    def step_specs(self) -> tuple[StepSpec, ...]:
        """All steps for a build graph, each key once."""
        unique = {self.keys[step.id]: step for step in reversed(self.steps)}
        return tuple(self._spec(step, self.job(step)) for step in reversed(unique.values()))

    def rebuilds(
        self, ids: Iterable[str], request: str, builders: Mapping[str, str] = {}
    ) -> tuple[StepSpec, ...]:
        """Steps of a request that build these chunks and systems once more.

        They have keys of their own, so that neither a result replaces another, nor a step above
        takes the new one.  They come after the steps that they build once more, and so on another
        worker; ``builders`` has the workers of those that are built, by key.
        """
        unique = {self.keys[id]: self.graph[id] for id in ids}
        specs = []
        for key, step in unique.items():
            log = f"{self.log_names[key].removesuffix('.log')}.rebuild.log"
            job = replace(self.job(step), key=rebuild_key(key, request), log=log, rebuild_of=key)
            if job.source is not None:  # an edited chunk is built in a clean tree
                job = replace(job, source=replace(job.source, edit=""))
            spec = self._spec(step, job)
            depends = (*spec.depends, key) if step.id in self.wanted else spec.depends
            built_by = builders.get(key, "")
            specs.append(replace(spec, depends=depends, again=key, built_by=built_by))
        return tuple(specs)

    def _spec(self, step: Step, job: Job) -> StepSpec:
        return StepSpec(
            key=job.key,
            name=step.name,
            kind=step.kind,
            arch=self.graph.arch,
            job=msgspec.Raw(_encode(job)),
            log=job.log,
            depends=self.depends(step),
            needs=self._needs(step),
        )

    @property
    def goal_keys(self) -> tuple[str, ...]:
        """Cache keys of the goals."""
        return tuple(self.keys[goal] for goal in self.goals)

    @property
    def along(self) -> tuple[str, ...]:
        """Keys that are built besides the goals: strata of which a system takes all artifacts."""
        strata = (step for step in self.steps if step.kind == "stratum")
        return tuple(dict.fromkeys(self.keys[s.id] for s in strata if s.id not in self.goals))

    def _needs(self, step: Step) -> tuple[str, ...]:
        return (HOST_TOOLS + self.host_tools,) if step.mode in HOST_MODES else ()

    def _contents(self, system: Step) -> tuple[Content, ...]:
        """All chunk artifacts of a system, each once, in the order of unpacking."""
        found: dict[Content, None] = {}
        for stratum, artifact in system.contents:
            found |= dict.fromkeys(self.contents(self.graph[stratum], artifact))
        return tuple(found)

    def contents(self, stratum: Step, artifact: str) -> tuple[Content, ...]:
        """The chunk artifacts in a stratum artifact."""
        return tuple(Content(self.keys[chunk], name) for chunk, name in stratum.lists[artifact])

    def _part(self, stratum: str, artifact: str) -> Part:
        step = self.graph[stratum]
        return Part(artifact, step.name, self.contents(step, artifact))

    def _metadata(self, step: Step) -> dict[str, str]:
        facts = {"description": step.description, "morph": step.morph}
        if source := self.sources.get(step.id):
            facts |= {
                "repo": without_secrets(source.repo),
                "ref": source.ref,
                "sha1": source.commit,
            }
        return {name: value for name, value in facts.items() if value}

    def _with_recipe(self, job: Job, step: Step) -> Job:
        recipe = step.recipe
        assert recipe is not None
        return replace(
            job,
            source_name=step.source_name,
            source=self.sources[step.id],
            mode=step.mode,
            host_tools=self.host_tools if self._needs(step) else "",
            prefix=step.prefix,
            environment=environment(step, self.graph.arch),
            commands=tuple(
                (name, recipe.commands[name]) for name in COMMAND_STEPS if recipe.commands.get(name)
            ),
            max_jobs=recipe.max_jobs,
            rules=recipe.rules,
            devices=recipe.devices,
            integration=tuple(
                (artifact, prefix, commands)
                for artifact, prefixes in recipe.integration.items()
                for prefix, commands in prefixes.items()
            ),
            staged=tuple(
                Staged(self.keys[chunk], self.graph[chunk].strata[0]) for chunk in step.staged
            ),
        )


def rebuild_key(key: str, request: str) -> str:
    """The key of a step of a request that builds the step ``key`` once more."""
    return hashlib.sha256(f"rebuild {key} {request}".encode()).hexdigest()


def make_plan(
    graph: Graph,
    goals: Iterable[str],
    sources: Sources,
    host_tools: str,
    edited: Mapping[str, Source] | None = None,
) -> Plan:
    """The plan of a graph; ``goals`` are step ids, by default that of the system.

    ``edited``: name of a chunk -> its source, in place of that in the definitions.
    Missing sources are fetched or imported.  SourceError if that fails.
    """
    chosen = tuple(goals) or (graph.root.id,)
    edited = edited or {}
    wanted = wanted_sources(graph, chosen, edited)
    try:
        found = dict(zip(wanted, sources.resolve_all(wanted.values()), strict=True))
    except SourcesError as error:
        raise _explained(graph, wanted, error) from None
    ids = needed(graph, chosen)
    for step in graph.steps if edited else ():
        if step.kind == "chunk" and step.name in edited and step.id in ids:
            found[step.id] = edited[step.name]
    return Plan(graph, chosen, ids, found, host_tools)


def _explained(graph: Graph, wanted: Mapping[str, Wanted], error: SourcesError) -> SourceError:
    """An error that names the chunks of failed sources, grouped by failure."""
    failures = dict(error.failures)
    groups: dict[str, list[tuple[Step, SourceError]]] = {}
    for id, (repo, ref, _) in wanted.items():
        if failure := failures.pop((repo, ref), None):
            groups.setdefault(failure.alike, []).append((graph[id], failure))
    lines = []
    for alike, failed in groups.items():
        if alike and len(failed) > FEW:
            lines.append(f"{len(failed)} sources: {alike}:")
            lines += [f"  {one.where}: {one.repo} {one.ref}" for one, _ in failed[:FEW]]
            lines.append(f"  and {len(failed) - FEW} more")
            continue
        for one, failure in failed:
            note = f"; its unpetrify-ref is {one.unpetrify_ref}" if one.unpetrify_ref else ""
            lines.append(f"{one.where}: chunk {one.name}: {failure}{note}")
    explained = SourceError("\n".join(dict.fromkeys(lines)))
    explained.exit_code = error.exit_code
    return explained


def wanted_sources(
    graph: Graph, goals: Iterable[str], edited: Container[str] = ()
) -> dict[str, Wanted]:
    """The sources that the goals need: id of a chunk -> source, as in the definitions.

    Those of chunks with the names ``edited`` are left out.
    """
    ids = needed(graph, goals)
    return {
        step.id: (step.repo, step.ref, step.recipe.submodules if step.recipe else ())
        for step in graph.steps
        if step.kind == "chunk" and step.id in ids and step.name not in edited
    }


def log_name(artifact: str) -> str:
    """The file name of an artifact's log; unusual characters become "_"."""
    safe = "".join(c if c.isalnum() or c in "+-._@" else "_" for c in artifact)
    return f"build-step-{safe[:200]}.log"


def _tree_of(source: Source) -> str:
    """The text that identifies a source, submodules included, in cache keys."""
    tree = f"{source.tree}+{source.edit}" if source.edit else source.tree
    if not source.submodules:
        return tree
    inside = ",".join(f"{path}={_tree_of(one)}" for path, one in sorted(source.submodules))
    return f"{tree}({inside})"
