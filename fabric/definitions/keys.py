"""Computes cache keys: 64 hex digits that name the output of a step before it is built.

A key covers all input that can change the output, and nothing else.

- A chunk: architecture, name (of /NAME.build and the artifacts), mode, prefix, source tree,
  environment, commands, split rules, devices, max-jobs, system integration, and the keys of
  the staged chunks in the order of their layers.  In bootstrap and test mode also the host's
  tools.  Not the origin of the source (repo, ref), descriptions, the stratum, or the morph's file.
- A stratum: architecture, name and, for each of its artifacts, the keys and names of the chunk
  artifacts in it.
- A system: architecture, name, and the same for each stratum artifact that it takes.  Chunks in
  other artifacts of a stratum do not change its key.

The input is encoded as one MessagePack value, which is unambiguous, and hashed with SHA-256.
`KEY_VERSION` stands for the build rules: raise it when they change, or the input of keys does.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import msgspec

from fabric.definitions.environment import environment
from fabric.definitions.graph import COMMAND_STEPS, Graph, Step

KEY_VERSION = 1

_encode = msgspec.msgpack.Encoder().encode


def cache_keys(graph: Graph, trees: Mapping[str, str], host_tools: str) -> dict[str, str]:
    """The key of each step by id.

    ``trees``: chunk step id -> a text that identifies its source tree, submodules included.
    ``host_tools``: a text that identifies the machine's tools that build bootstrap and test chunks.
    A step has no key if it needs the key of a chunk without a tree.
    """
    raw: dict[str, bytes] = {}
    keys: dict[str, str] = {}
    for step in graph.steps:
        try:
            if step.kind == "chunk":
                parts = _chunk(step, graph.arch, trees[step.id], host_tools, raw)
            elif step.kind == "stratum":
                parts = [step.name, [_list(name, step.lists[name], raw) for name in step.lists]]
            else:
                taken = [_list(name, graph[one].lists[name], raw) for one, name in step.contents]
                parts = [step.name, taken]
        except KeyError:
            continue
        digest = sha256(_encode([KEY_VERSION, step.kind, graph.arch, *parts]))
        raw[step.id] = digest.digest()
        keys[step.id] = digest.hexdigest()
    return keys


def list_key(keys: Mapping[str, str], stratum: Step, artifact: str) -> str:
    """The key of a stratum artifact's contents, even if the rest of the stratum has no key.

    ``keys`` must have those of the chunks in it.
    """
    raw = {chunk: bytes.fromhex(keys[chunk]) for chunk, _ in stratum.lists[artifact]}
    parts = [KEY_VERSION, "list", _list(artifact, stratum.lists[artifact], raw)]
    return sha256(_encode(parts)).hexdigest()


def _list(
    artifact: str, content: tuple[tuple[str, str], ...], raw: Mapping[str, bytes]
) -> list[object]:
    return [artifact, [(raw[chunk], name) for chunk, name in content]]


def _chunk(
    step: Step, arch: str, tree: str, host_tools: str, raw: Mapping[str, bytes]
) -> list[object]:
    recipe = step.recipe
    assert recipe is not None, step.id
    return [
        step.source_name,
        step.mode,
        "" if step.mode == "staging" else host_tools,
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
        b"".join(map(raw.__getitem__, step.staged)),
    ]
