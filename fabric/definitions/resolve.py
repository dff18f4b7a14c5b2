"""Resolves the build graph of a system whose files are loaded.

Dependencies:

- A chunk that two strata list with the same repo, ref and morph (or name, with a build system) is
  one step with the dependencies of both.  Its build mode and prefix must be the same in both.
- A chunk depends on the chunks that its spec lists, and on all chunks of every stratum on which its
  stratum build-depends.  Its staging area has all chunks that are reachable from there, but no
  build-only chunks of other strata.  So a chunk of two strata has the build-only chunks of neither,
  and chunks of the same stratum that its spec does not list are not staged.
- An import chunk depends on nothing.
- A chunk whose spec lists chunks of other strata depends on just what it lists, instead of the
  strata on which its stratum build-depends.  Its lists must be the same in all its strata.  The
  strata that lists name are below the stratum like those on which it build-depends, so lists across
  strata cannot form a cycle, even if no chunk needs itself: the order of layers needs that.
- Build-only chunks are in no stratum artifact, and so in no system.  Bootstrap chunks always are.
- Chunks, and artifacts of chunks, that match no split rule of their stratum are in no artifact.
- Two chunks with the same name are two steps if one has a morph and one a build system, or if
  their morphs differ but repo and ref do not.  Otherwise they are an error.

The order of steps, and so the order of layers in a staging area, depends on the definitions and not
on the system.  Strata are ordered by height (the longest chain of strata below) and path, chunks as
their stratum lists them, but each after its dependencies.  So a chunk has the same staging area and
cache key in every system.
"""

from __future__ import annotations

from fabric import bounds
from fabric.definitions.fields import Findings
from fabric.definitions.graph import Graph
from fabric.definitions.graph_builder import GraphBuilder, Loaded
from fabric.definitions.staging_plan import StagingPlanner


def resolve(loaded: Loaded, findings: Findings) -> Graph | None:
    """The graph; None if the files have mistakes, which are in ``findings``."""
    if loaded.defaults is None:
        return None
    builder = GraphBuilder(loaded, loaded.defaults, findings)
    builder.merge_chunks()
    if len(builder.chunks) > bounds.CHUNKS:  # staging areas grow with their square
        system = loaded.system
        message = f"system {system.name}: more than {bounds.CHUNKS:,} chunks"
        findings.error(system.file, system.line, message)
        return None
    builder.check_names()
    sound = builder.connect()
    planner = StagingPlanner(builder)
    planner.fill_strata()
    planner.fill_system()
    if findings.errors or not sound:
        return None
    return planner.graph()
