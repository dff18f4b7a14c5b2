"""Loads a user's definitions, and gives access to their trove and artifact store."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric import bounds
from fabric.client.memory import memory
from fabric.config import Settings
from fabric.definitions.graph import Graph
from fabric.errors import DefinitionsError, FabricError, Problem, SourceError, command, suggest
from fabric.host.files import real, recall, remember
from fabric.plan import Plan, make_plan, wanted_sources
from fabric.trove.artifacts.store import Store
from fabric.trove.configured import open_sources, open_store
from fabric.trove.sources.resolve import Sources

if TYPE_CHECKING:
    from fabric.client.edits import Edits
    from fabric.jobs import Source


class Project:
    """The definitions below the folder ``root``."""

    def __init__(self, root: Path, settings: Settings, progress: Callable[[str], None]) -> None:
        self.root = root
        self.settings = settings
        self._progress = progress
        self._warned: set[str] = set()
        #: Whether edited chunks are built in kept trees; their results are not shared.
        self.keeps_trees = not settings.controller and not settings.artifacts

    @classmethod
    def find(cls, start: Path, settings: Settings, progress: Callable[[str], None]) -> Project:
        """The project that contains ``start``, a file or directory.  FabricError if there is none.

        Its root is the nearest folder with a VERSION file; without one, with system morphs.
        """
        folders = (start, *start.parents)
        # definitions of version 0 have no VERSION, and older ones no folders
        for known in ("VERSION", "systems/*.morph", "*.morph"):
            for folder in folders:
                if any(found.is_file() for found in folder.glob(known)):
                    return cls(folder, settings, progress)
        raise FabricError(
            f"{start}: no definitions here: neither this folder nor one above it has a VERSION"
            " file; change to the definitions' folder, or name a system in one"
        )

    def read(self, path: str) -> bytes | None:
        """The content of a file, by its path from the root; None if there is no such file.

        DefinitionsError if it cannot be read, is too large, or is a link that leads out of the
        definitions.
        """
        if path.startswith("/") or ".." in path.split("/"):
            return None
        try:
            return self._read(path)
        except ValueError:  # the path contains a NUL
            return None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                return None
            raise DefinitionsError(
                [Problem(path, 1, f"cannot be read: {error.strerror}")]
            ) from None

    def _read(self, path: str) -> bytes | None:
        # opening must not wait: the path may be a FIFO
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        handle = os.open(f"{self.root}/{path}", flags)
        try:
            facts = os.fstat(handle)
            where = os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115
            if stat.S_ISDIR(facts.st_mode):
                return None
            if not where.startswith(self._inside):
                wrong = f"is a link that leads out of the definitions, to {where}"
            elif not stat.S_ISREG(facts.st_mode):
                wrong = "is not a regular file"
            elif facts.st_size > bounds.DEFINITIONS_FILE:
                most = f"files of definitions have {bounds.DEFINITIONS_FILE:,} at most"
                wrong = f"has {facts.st_size:,} bytes: {most}"
            else:
                return os.read(handle, facts.st_size)
        finally:
            os.close(handle)
        raise DefinitionsError([Problem(path, 1, wrong)])

    @cached_property
    def _inside(self) -> str:
        return os.path.join(os.path.realpath(self.root), "")  # noqa: PTH118

    @cached_property
    def sources(self) -> Sources:
        return open_sources(self.settings, self.root / "sources", progress=self._progress)

    @cached_property
    def store(self) -> Store:
        return open_store(self.settings)

    def systems(self) -> list[str]:
        """All system morphs, as paths from the root."""
        return sorted(
            str(file.relative_to(self.root)) for file in self.root.glob("systems/**/*.morph")
        )

    def morphs(self) -> list[str]:
        """All morphs, as paths from the root; not those of other definitions inside."""
        found: list[str] = []
        for folder, below, files in os.walk(self.root):
            if "VERSION" in files and Path(folder) != self.root:
                below.clear()
                continue
            below[:] = [name for name in below if not name.startswith(".")]
            found += (os.path.join(folder, name) for name in files if name.endswith(".morph"))  # noqa: PTH118
        return sorted(os.path.relpath(path, self.root) for path in found)

    def locate(self, named: str, cwd: Path) -> str:
        """The system that a user named, as a path from the root.  FabricError if there is none."""
        for file in (cwd / named, self.root / named, self.root / "systems" / named):
            for candidate in (file, file.with_name(file.name + ".morph")):
                if candidate.is_file() and real(candidate).is_relative_to(real(self.root)):
                    return str(real(candidate).relative_to(real(self.root)))
        hint = suggest(named, self.systems(), 0.5, most=3)
        raise FabricError(f"{named}: no such system in {self.root}{hint}")

    def graph(self, system: str, read: Callable[[str], bytes | None] | None = None) -> Graph:
        """The build graph of a system.  DefinitionsError if the definitions are wrong.

        ``read`` replaces reading files from the disk.
        """
        from fabric.definitions.load import load

        graph = load(read, system) if read else load(self.read, system, self.morphs)
        for warning in graph.warnings:
            shown = str(Problem(warning.file, warning.line, f"warning: {warning.message}"))
            if shown not in self._warned:  # systems share strata
                self._warned.add(shown)
                self._progress(shown)
        return graph

    def plan(
        self,
        graph: Graph,
        goals: Iterable[str] = (),
        tools: str = "",
        sources: Sources | None = None,
    ) -> Plan:
        """The graph with every source pinned; ``goals`` are step ids, by default the system.

        ``tools``: digest of the tools that build bootstrap chunks, by default this machine's.
        ``sources``: those of other lorries than in the files here.
        Sources that the trove lacks are imported.  SourceError if that fails.
        """
        if not tools and graph.needs_host_tools:
            from fabric.building.host_tools import host_tools

            tools = host_tools(self.settings.host_tools_file)
        edited = {} if sources else self.edited(graph, goals)
        return make_plan(graph, goals, sources or self.sources, tools, edited)

    def edited(self, graph: Graph, goals: Iterable[str] = ()) -> dict[str, Source]:
        """Name -> the present source of the chunks that the goals need, if they are edited."""
        if not self.edits:
            return {}
        from fabric.definitions.select import needed

        ids = needed(graph, tuple(goals) or (graph.root.id,))
        chunks = {s.name: s for s in graph.steps if s.kind == "chunk" and s.id in ids}
        kept = {name for name, step in chunks.items() if step.mode != "import"}
        return self.edits.sources(chunks, kept if self.keeps_trees else ())

    @cached_property
    def edits(self) -> Edits | None:
        """The edits of these definitions; None if there are none."""
        if not memory(self.settings, "edits", self.root).exists():
            return None
        from fabric.client.edits import Edits

        edits = Edits(self.settings, self.root)
        return edits if edits.by_name else None

    def unpinned(self, graph: Graph, goals: Iterable[str] = ()) -> list[str]:
        """The sources of the goals whose content the definitions do not pin."""
        chosen = tuple(goals) or (graph.root.id,)
        edited = self.edits.by_name if self.edits else ()
        return self.sources.unpinned(wanted_sources(graph, chosen, edited).values())

    def require_pins(self, graph: Graph, goals: Iterable[str] = ()) -> None:
        """SourceError unless the definitions pin the content of every source of the goals."""
        for name in self.edited(graph, goals):
            raise SourceError(
                f"--locked: {name} is edited, so the definitions do not pin its source;"
                f" `{command('edit', '--close', name)}` ends the edit"
            )
        chosen = tuple(goals) or (graph.root.id,)
        self.sources.require_pins(wanted_sources(graph, chosen).values())

    def push_missing(self, graph: Graph, goals: Iterable[str] = ()) -> None:
        """Push sources of the goals that the trove lacks.  SourceError if that fails."""
        chosen = tuple(goals) or (graph.root.id,)
        self.sources.push_missing(wanted_sources(graph, chosen).values())

    def remember(self, system: str, tree: str = "", built: Mapping[str, str] | None = None) -> None:
        """Record the system built last, which is the default of `logs` and `shell`.

        ``built``: kind and name of a step -> its key, if a farm built the files that ``tree``
        identifies, so that this machine need not compute the keys.
        """
        memory = {"system": system, "tree": tree, "keys": dict(built or {})}
        with contextlib.suppress(OSError):  # a convenience: no build fails without it
            remember(self._memory(), json.dumps(memory).encode())

    def last_system(self) -> str | None:
        """The system last built from these definitions, if its morph is still there."""
        system = self._last().get("system")
        return system if system and (self.root / system).is_file() else None

    def last_keys(self, system: str, tree: str) -> dict[str, str]:
        """Kind and name of a step -> its key, if ``system`` of this ``tree`` was built last."""
        last = self._last()
        same = (last.get("system"), last.get("tree")) == (system, tree)
        return dict(last.get("keys", {})) if same else {}

    def _memory(self) -> Path:
        return memory(self.settings, "last-systems", self.root)

    def _last(self) -> dict[str, Any]:
        try:
            last = json.loads(recall(self._memory()))
        except ValueError:
            return {}
        return last if isinstance(last, dict) else {}
