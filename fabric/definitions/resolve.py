"""The build graph of a system whose files are loaded: which chunk needs which, and sees what.

What depends on what:

- A chunk that two strata list with one repo, ref and morph (or name, by build system) is one
  step with the dependencies of both.  It must be built alike in both: where the old tool took
  the mode and prefix of whichever stratum it came to last, this is an error.
- A chunk needs the chunks its spec lists and, as its stratum does, all of every stratum that
  the stratum build-depends on.  What it sees is all that is reachable from there, except
  bootstrap chunks of other strata.  So a chunk shared by two strata loses the bootstrap chunks
  of both, and siblings that are not listed are not seen.
- Bootstrap chunks are in no stratum artifact, so never in a system.
- Chunks, and artifacts of chunks, that no split rule of their stratum takes are nowhere.
- Two chunks of one name are two steps when one has a morph and one a build system, or when
  their morphs differ but repo and ref do not; otherwise it is an error, as it was.

The order of steps, and with it the order in which staged chunks cover each other, comes from
the definitions alone and not from the system: strata by height (the longest chain of strata
below them) and path, inside a stratum as it lists its chunks, but each after what it needs.
So the same chunk has the same staging area, and cache key, in every system.
"""

from __future__ import annotations

from fabric import bounds
from fabric.definitions.fields import Findings
from fabric.definitions.graph import Graph
from fabric.definitions.graph_builder import GraphBuilder, Loaded
from fabric.definitions.staging_plan import StagingPlanner


def resolve(loaded: Loaded, findings: Findings) -> Graph | None:
    """The graph; None, and ``findings`` tell why, if the files do not fit together."""
    if loaded.defaults is None:
        return None
    builder = GraphBuilder(loaded, loaded.defaults, findings)
    builder.merge_chunks()
    if len(builder.chunks) > bounds.CHUNKS:  # what each of them sees grows with their square
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
