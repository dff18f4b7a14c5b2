"""Defines the build graph, as plain immutable data.

A *step* is one unit that is built: a chunk, a stratum (a list of chunk artifacts), or the system.
An *artifact* is one part of the output of a step (``zlib-bins``, ``core-runtime``,
``minimal-system-x86_64-rootfs``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import msgspec

from fabric.errors import Problem

Kind = Literal["chunk", "stratum", "system"]
Mode = Literal["staging", "bootstrap", "test", "import"]
#: Modes in which a chunk is built with the tools of the machine.
HOST_MODES = ("bootstrap", "test")

PHASES = ("configure", "build", "test", "install", "strip")
#: The fifteen command lists of a chunk, in the order they run.
COMMAND_STEPS = tuple(
    f"{when}{phase}-commands" for phase in PHASES for when in ("pre-", "", "post-")
)


class Rule(msgspec.Struct, frozen=True):
    """A split rule: paths that match one of ``include`` (``re.match``) belong to ``artifact``."""

    artifact: str
    include: tuple[str, ...]


class Device(msgspec.Struct, frozen=True):
    """A device node that a chunk adds to its artifact."""

    filename: str
    type: Literal["c", "b"]
    permissions: int
    major: int
    minor: int
    uid: int
    gid: int


class Submodule(msgspec.Struct, frozen=True):
    """A git submodule whose URL the definitions replace (version 8)."""

    path: str
    url: str
    submodules: tuple[Submodule, ...] = ()


class Recipe(msgspec.Struct, frozen=True):
    """How a chunk is built, merged from its morph, its build system and its spec."""

    commands: Mapping[str, tuple[str, ...]]  # COMMAND_STEPS name -> shell commands
    rules: tuple[Rule, ...]  # the first match wins
    max_jobs: int | None = None
    devices: tuple[Device, ...] = ()
    #: {artifact: {prefix: commands}} of `system-integration`
    integration: Mapping[str, Mapping[str, tuple[str, ...]]] = {}
    submodules: tuple[Submodule, ...] = ()
    flags: Mapping[str, str] = {}  # variables of its environment, from `hardening` of DEFAULTS


class Step(msgspec.Struct, frozen=True):
    """One node of the graph.  Fields of other kinds are empty."""

    id: str  # unique in the graph, stable, readable: "chunk:strata/core.morph:zlib"
    kind: Kind
    name: str  # for a chunk, the name in its stratum
    artifacts: tuple[str, ...]  # all artifact names, in split-rule order
    depends: tuple[str, ...]  # ids of direct dependencies, in definition order
    morph: str = ""  # file that describes it; "" for a chunk by build-system
    description: str = ""
    # chunks
    where: str = ""  # its place in its stratum: "strata/core.morph:12"
    unpetrify_ref: str = ""  # a remark: the branch from which its ref, a commit, is
    strata: tuple[str, ...] = ()  # names of the strata that contain it
    source_name: str = ""  # names /NAME.build, /NAME.inst and the artifacts
    repo: str = ""
    ref: str = ""
    build_system: str = ""
    mode: Mode = "staging"
    build_only: bool = False  # in no stratum artifact; other strata do not see it
    seeded: bool = False  # a bootstrap chunk on import chunks: what it is built with stays behind
    prefix: str = "/usr"
    #: ids of the chunks in its staging area, each after its dependencies; they are layered in
    #: this order, and a later one covers an earlier one
    staged: tuple[str, ...] = ()
    path_prefixes: tuple[str, ...] = ()  # prefixes whose bin/ is on its PATH, in that order
    recipe: Recipe | None = None
    not_reproducible: str = ""  # a remark: why another build may give other bytes
    in_system: bool = (
        False  # a chunk: an artifact of it is in the image; a stratum: the system lists it
    )
    # strata: stratum artifact -> its chunk artifacts as (chunk step id, artifact name)
    lists: Mapping[str, tuple[tuple[str, str], ...]] = {}
    # the system: its stratum artifacts as (stratum step id, artifact name), in image order
    contents: tuple[tuple[str, str], ...] = ()


class Graph(msgspec.Struct, frozen=True, dict=True):
    """A resolved system; each of ``steps`` is after its dependencies, and the last is the system.

    ``warnings`` are about fields without effect that existing definitions have.
    """

    system: str  # name
    arch: str
    path: str  # the system's morph file
    version: int  # of the definitions format
    steps: tuple[Step, ...]
    warnings: tuple[Problem, ...] = ()

    def __getitem__(self, step_id: str) -> Step:
        return self._by_id[step_id]

    @property
    def root(self) -> Step:
        return self.steps[-1]

    @property
    def needs_host_tools(self) -> bool:
        """Whether a chunk is built with the tools of the machine."""
        return any(step.mode in HOST_MODES for step in self.steps)

    @cached_property
    def _by_id(self) -> Mapping[str, Step]:
        return {step.id: step for step in self.steps}
