"""Computes cache keys: 64 hex digits that name the output of a step before it is built.

A key covers all input that can change the output, and nothing else.

- A chunk: architecture, name (of /NAME.build and the artifacts), mode, prefix, source tree,
  environment, commands, split rules, devices, max-jobs, system integration, and the keys of
  the staged chunks in the order of their layers.  In bootstrap and test mode also the host's
  tools.  Not the origin of the source (repo, ref), descriptions, the stratum, or the morph's file.
- A stratum: architecture, name and, for each of its artifacts, the keys and names of the chunk
  artifacts in it.
- A system: architecture, name, the environment of integration scripts, and the same for each
  stratum artifact that it takes.  Chunks in other artifacts of a stratum do not change its key.

The input is encoded as one MessagePack value, which is unambiguous, and hashed with SHA-256.
`KEY_VERSION` stands for the build rules: raise it when they change, or the input of keys does.

The *recipe* of a chunk or system is the digest of the same input without the keys of other steps:
of a system also of its description and its file, which are part of its metadata.  Two steps with
one recipe that are made from equal contents have equal outputs, whatever their keys
(`fabric.trove.artifacts.contents`).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

import msgspec

from fabric.definitions.environment import INTEGRATION, environment
from fabric.definitions.graph import COMMAND_STEPS, HOST_MODES, Graph, Step

KEY_VERSION = 2

_encode = msgspec.msgpack.Encoder().encode


class Digests(NamedTuple):
    """Digests by step id, as hex digits."""

    keys: dict[str, str]
    recipes: dict[str, str]  # of chunks and systems


def cache_keys(graph: Graph, trees: Mapping[str, str], host_tools: str) -> dict[str, str]:
    """The key of each step by id; arguments as for `digests`."""
    return digests(graph, trees, host_tools).keys


def digests(graph: Graph, trees: Mapping[str, str], host_tools: str) -> Digests:
    """The keys and recipes of all steps.

    ``trees``: chunk step id -> a text that identifies its source tree, submodules included.
    ``host_tools``: a text that identifies the machine's tools that build bootstrap and test chunks.
    A step has no key if it needs the key of a chunk without a tree.
    """
    raw: dict[str, bytes] = {}
    keys: dict[str, str] = {}
    recipes: dict[str, str] = {}
    for step in graph.steps:
        start = [KEY_VERSION, step.kind, graph.arch]
        try:
            if step.kind == "chunk":
                staged = b"".join(map(raw.__getitem__, step.staged))
                parts = _chunk(step, graph.arch, trees[step.id], host_tools)
                recipe = sha256(_encode([*start, *parts]))
                recipes[step.id] = recipe.hexdigest()
                digest = sha256(recipe.digest() + staged)
            elif step.kind == "stratum":
                lists = [_list(name, step.lists[name], raw) for name in step.lists]
                digest = sha256(_encode([*start, step.name, lists]))
            else:
                taken = [_list(name, graph[one].lists[name], raw) for one, name in step.contents]
                digest = sha256(_encode([*start, step.name, sorted(INTEGRATION.items()), taken]))
                recipes[step.id] = sha256(_encode([*start, *_system(step, graph)])).hexdigest()
        except KeyError:
            continue
        raw[step.id] = digest.digest()
        keys[step.id] = digest.hexdigest()
    return Digests(keys, recipes)


def _list(
    artifact: str, content: tuple[tuple[str, str], ...], raw: Mapping[str, bytes]
) -> list[object]:
    return [artifact, [(raw[chunk], name) for chunk, name in content]]


def _system(step: Step, graph: Graph) -> list[object]:
    parts = [
        (graph[stratum].name, artifact, [name for _, name in graph[stratum].lists[artifact]])
        for stratum, artifact in step.contents
    ]
    return [step.name, step.description, step.morph, sorted(INTEGRATION.items()), parts]


def _chunk(step: Step, arch: str, tree: str, host_tools: str) -> list[object]:
    recipe = step.recipe
    assert recipe is not None, step.id
    return [
        step.source_name,
        step.mode,
        host_tools if step.mode in HOST_MODES else "",
        step.prefix,
        tree,
        sorted(environment(step, arch).items()),
        [(name, recipe.commands[name]) for name in COMMAND_STEPS if recipe.commands.get(name)],
        [(rule.artifact, rule.include) for rule in recipe.rules],
        [
            (one.filename, one.type, one.permissions, one.major, one.minor, one.uid, one.gid)
            for one in recipe.devices
        ],
        recipe.max_jobs,
        [
            (artifact, sorted(commands.items()))
            for artifact, commands in sorted(recipe.integration.items())
        ],
    ]
