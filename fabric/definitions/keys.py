"""Cache keys: 64 hex digits that name what a step builds, before it is built.

A key covers all that can change the output, and nothing else.

- A chunk: architecture, name (of /NAME.build and the artifacts), mode, prefix, source tree,
  environment, commands, split rules, devices, max-jobs, system integration, and the keys of
  the staged chunks in the order they are layered.  In bootstrap and test mode the host's tools
  too.  Not where the source comes from (repo, ref: the tree is the source), descriptions, the
  stratum, or the file it is written in.
- A stratum: architecture, name and, for each of its artifacts, the keys and names of the chunk
  artifacts in it.
- A system: architecture, name, and the same of the stratum artifacts it has.  So it does not
  depend on chunks of a stratum it takes only in part.

Everything goes into SHA-256 as one MessagePack value, which has one encoding and no ambiguity
between neighbours.  `KEY_VERSION` stands for the build rules themselves: what the builder does
with the same input.  Whoever changes those, or what is in a key, raises it.
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

    ``trees``: chunk step id -> its source tree, submodules included, as any text that is equal
    when and only when the tree is.  ``host_tools``: the same for the tools of the machine that
    bootstrap and test chunks are built with.  A step gets no key if it, or something that is in
    it or staged for it, is a chunk without a tree.
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
    """What names a stratum artifact's contents, also when the rest of the stratum has no key.

    ``keys`` are those of the chunks in it, at least.
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
