"""Resolves one build order into a build graph.  The broker starts a child process for each.

The process reads an encoded `BuildOrder` from standard input, fetches that commit of the
definitions and their sources from the trove, computes steps and cache keys, and writes an encoded
`BuildGraph` to standard output.  If this fails, the exit code is not 0, and standard error
contains the text for the user: ``FILE:LINE: message`` for mistakes in the definitions.

Definitions are untrusted: they are read from git objects, nothing in them is executed, and the
process has bounds of time and memory.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from fabric import bounds, config
from fabric.building.host_tools import host_tools
from fabric.config import BrokerSettings
from fabric.definitions.load import load
from fabric.definitions.select import find, find_built
from fabric.digest import Digest
from fabric.errors import (
    NO_ROOM,
    Cancelled,
    DefinitionsError,
    FabricError,
    MachineFault,
    SourceError,
    StoreError,
)
from fabric.host.cancel import CancelToken
from fabric.host.files import recall, remember
from fabric.host.key_files import NAME
from fabric.host.locks import locked
from fabric.host.process import die_with_parent
from fabric.host.progress import silent
from fabric.host.shared_files import scratch
from fabric.plan import Plan, make_plan, wanted_sources
from fabric.trove.artifacts.store import unsaid
from fabric.trove.configured import open_sources, open_store, open_trove
from fabric.trove.sources.committed import Committed
from fabric.trove.sources.farm_remote import Trove
from fabric.trove.sources.git import REF, Repository
from fabric.trust.signing import SigningProblem
from fabric.wire.messages import PROTOCOL, BuildGraph, BuildOrder

#: Bytes of free disk below which every failure counts as the machine's: git reports a full disk
#: in many ways.
ROOM = 16 << 20
#: Fetches after which the local copy of the trove's build refs is made anew.
PACKS = 100


def resolve(build_order: BuildOrder, settings: BrokerSettings, tools: str) -> BuildGraph:
    """The build graph of a build order.

    ``tools``: digest of the tools on the workers' hosts; "": as on this one.
    DefinitionsError or SourceError if the order cannot be resolved, FabricError if a component is
    not in the system.
    """
    trove = open_trove(settings)
    if trove is None:
        raise SourceError("this controller has no trove to fetch from: set `trove` in its settings")
    repository = _fetch(build_order, trove, settings.trove_dir)
    with (
        scratch(settings.cache_dir / "tmp", "resolving-") as folder,
        Committed(repository, build_order.commit) as definitions,
    ):
        graph = load(definitions.read, build_order.system)
        if not tools and graph.needs_host_tools:
            tools = host_tools(settings.cache_dir / "host-tools")
        goals = dict.fromkeys(goal for name in build_order.components for goal in find(graph, name))
        again = find_built(graph, build_order.rebuild)
        if again:
            goals |= dict.fromkeys((*(() if goals else (graph.root.id,)), *again))
        definitions.copy("sources", folder)
        sources = open_sources(settings, folder / "sources", imports=False, head=build_order.commit)
        wanted = wanted_sources(graph, tuple(goals) or (graph.root.id,))
        if build_order.locked:
            sources.require_pins(wanted.values())
            if build_order.edits:
                raise SourceError("an order that is locked has no edited chunks")
        by_name = {graph[id].name: source for id, source in wanted.items()}
        edited = {
            edit.chunk: sources.resolve_edit(by_name[edit.chunk], edit.repo, edit.commit)
            for edit in build_order.edits
            if edit.chunk in by_name
        }
        plan = make_plan(graph, goals, sources, tools, edited)
        return _build_graph(build_order, plan, again, _builders(plan, again, settings))


def _fetch(build_order: BuildOrder, trove: Trove, directory: Path) -> Repository:
    """The local repository, with the commit of the order."""
    repository = Repository(directory / "orders.git")
    if not (build_order.ref.startswith("refs/") and REF.fullmatch(build_order.ref)):
        raise SourceError(f"{build_order.ref!r} is not the name of a build ref")
    with locked(directory / "locks" / "orders"):
        if len(list(repository.path.glob("objects/pack/*.pack"))) > PACKS:
            shutil.rmtree(repository.path)  # a cache: needed objects are fetched again
        repository.create(cache=True)
        if repository.find(build_order.commit) is None:
            copy = f"refs/orders/{build_order.commit}"
            trove.fetch(repository, [f"+{build_order.ref}:{copy}"], silent, CancelToken())
            found = repository.find(copy)
            if found is None or found[0] != build_order.commit:
                raise SourceError(
                    f"{build_order.ref} of the trove {trove.url} is"
                    f" {found[0] if found else 'no commit'}, and {build_order.commit} was ordered"
                )
    return repository


def _builders(plan: Plan, again: Sequence[str], settings: BrokerSettings) -> dict[str, str]:
    """The workers that built steps which are built once more, by key, as far as known."""
    if not again:
        return {}
    keys = [plan.keys[id] for id in again]
    with contextlib.suppress(StoreError, SigningProblem):  # any worker may build it, then
        store = open_store(settings, said=unsaid)
        found = store.each(store.whole_manifest, keys)
        known = {key: one.builder for key, one in zip(keys, found, strict=True) if one is not None}
        # a manifest is anybody's, and one name that is too long would fail the whole order
        return {key: name for key, name in known.items() if NAME.match(name)}
    return {}


def _build_graph(
    build_order: BuildOrder, plan: Plan, again: Sequence[str], builders: Mapping[str, str]
) -> BuildGraph:
    rebuilds = plan.rebuilds(again, build_order.request, builders)
    return BuildGraph(
        protocol=PROTOCOL,
        request=build_order.request,
        title=build_order.title,
        steps=(*plan.step_specs(), *rebuilds),
        goals=(*plan.goal_keys, *(step.key for step in rebuilds)),
        along=plan.along,
        keep_going=build_order.keep_going,
        fail_fast=build_order.fail_fast,
        priority=build_order.priority,
        detach=build_order.detach,
        requester=build_order.requester,
    )


def _tools(given: str | None, settings: BrokerSettings) -> str:
    """The given digest, which is remembered; without one, the last, else ""."""
    memory = settings.cache_dir / "workers-tools"
    if given:
        if _recalled(memory) != given:
            remember(memory, given.encode())
        return given
    return _recalled(memory)


def _recalled(memory: Path) -> str:
    """The digest in a file; "" if it has none."""
    try:
        return Digest(recall(memory).decode())
    except ValueError:
        return ""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="fabric-resolver", description=__doc__)
    top.add_argument("--config", type=Path, default=config.BROKER_FILE, metavar="FILE")
    top.add_argument(
        "--host-tools",
        metavar="DIGEST",
        help="digest of the tools on the workers, for keys of bootstrap chunks (default: as in the"
        " last call, else of this machine)",
    )
    top.add_argument(
        "--seconds",
        type=int,
        default=bounds.RESOLVE_TIME,
        metavar="N",
        help="time limit (default: %(default)s)",
    )
    return top


def confine(seconds: int) -> None:
    """Bound the time and memory of this process and its children; end with the broker."""
    resource.setrlimit(resource.RLIMIT_DATA, (bounds.RESOLVE_MEMORY, bounds.RESOLVE_MEMORY))
    with contextlib.suppress(OSError):  # the kernel kills this process before the broker
        Path("/proc/self/oom_score_adj").write_text("500")
    signal.signal(signal.SIGTERM, _on_sigterm)
    die_with_parent(os.getppid())

    def late(number: int, frame: object) -> None:  # noqa: ARG001
        raise FabricError(f"resolving took more than {seconds} s; order it again")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Resolve one build order; returns the exit code."""
    options = parser().parse_args(argv)
    confine(options.seconds)
    settings: BrokerSettings | None = None
    try:
        settings = config.load(BrokerSettings, options.config)
        tools = _tools(options.host_tools, settings)
        build_order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=BuildOrder)
        sys.stdout.buffer.write(msgspec.msgpack.encode(resolve(build_order, settings, tools)))
        sys.stdout.flush()
    except FabricError as error:
        print(error, file=sys.stderr)
        mistake = isinstance(error, DefinitionsError) or not _is_full(error, settings)
        return error.exit_code if mistake else MachineFault.exit_code
    except MemoryError:
        print(f"resolving takes more than {bounds.RESOLVE_MEMORY:,} bytes", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - definitions are untrusted
        print(f"it cannot be resolved: {type(error).__name__}: {error}", file=sys.stderr)
        return MachineFault.exit_code if _is_full(error, settings) else 1
    return 0


def _is_full(error: Exception, settings: BrokerSettings | None) -> bool:
    """Whether this machine's disk is full, as far as known."""
    if getattr(error, "errno", 0) in NO_ROOM or os.strerror(errno.ENOSPC) in str(error):
        return True
    try:
        return settings is not None and shutil.disk_usage(settings.cache_dir).free < ROOM
    except OSError:
        return False


def _on_sigterm(number: int, frame: object) -> None:  # noqa: ARG001
    raise Cancelled("not wanted any more")  # ends git, too


if __name__ == "__main__":
    sys.exit(main())
