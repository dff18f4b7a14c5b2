"""Turns recorded graphs of real systems back into definitions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).parent / "data" / "oracle.jsonl.gz"

_CHUNK_RULES = {
    "-bins": ["(usr/)?s?bin/.*"],
    "-libs": [r"(usr/)?lib(32|64)?/lib[^/]*\.so(\.\d+)*", "(usr/)libexec/.*"],
    "-devel": ["(usr/)?include/.*", r"(usr/)?lib(32|64)?/lib.*\.a"],
    "-doc": ["(usr/)?share/doc/.*", "(usr/)?share/man/.*"],
    "-locale": ["(usr/)?share/locale/.*"],
    "-misc": [".*"],
}
_STRATUM_RULES = {
    "-devel": [".*-devel", ".*-debug", ".*-doc"],
    "-runtime": [".*-bins", ".*-libs", ".*-locale", ".*-misc", ".*"],
}
_COMMANDS = {
    "configure-commands": ['./configure --prefix="$PREFIX" --sysconfdir=/etc'],
    "build-commands": ["make"],
    "install-commands": ['make DESTDIR="$DESTDIR" install'],
}


def rows() -> Iterator[dict[str, Any]]:
    """The recorded systems, described in data/README.md."""
    with gzip.open(_FILE, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def definitions(row: dict[str, Any]) -> dict[str, bytes]:
    """Definitions, as {path: content}, with the graph in ``row``."""
    files: dict[str, Any] = {
        "VERSION": {"version": 8},
        "DEFAULTS": _defaults({one.get("build_system", "manual") for one in row["chunks"]}),
        row["file"]: {
            "name": row["name"],
            "kind": "system",
            "arch": row["arch"],
            "strata": [
                {key: one[key] for key in ("name", "morph", "artifacts") if key in one}
                for one in row["strata"]
                if one["in_system"]
            ],
        },
    }
    for number, stratum in enumerate(row["strata"]):
        members = [one for one in row["chunks"] if number in one["strata"]]
        files[stratum["morph"]] = {
            "name": stratum["name"],
            "kind": "stratum",
            "build-depends": [{"morph": row["strata"][one]["morph"]} for one in stratum["deps"]],
            "products": [
                {"artifact": name, "include": ["nothing, as the specs say what is in it"]}
                for name in _extra(stratum)
            ],
            "chunks": [_spec(row, number, one) for one in members],
        }
        for chunk in members:
            if "morph" in chunk:
                files[chunk["morph"]] = _chunk(row, chunk)
    dump = yaml.CSafeDumper
    return {path: yaml.dump(value, Dumper=dump).encode() for path, value in files.items()}


def _defaults(build_systems: set[str]) -> dict[str, Any]:
    return {
        "build-systems": dict.fromkeys(sorted(build_systems | {"manual"}), _COMMANDS),
        "split-rules": {
            kind: [{"artifact": name, "include": include} for name, include in rules.items()]
            for kind, rules in (("chunk", _CHUNK_RULES), ("stratum", _STRATUM_RULES))
        },
    }


def _extra(stratum: dict[str, Any]) -> list[str]:
    """Stratum artifacts that do not exist by default."""
    usual = {stratum["name"] + suffix for suffix in _STRATUM_RULES}
    return [name for name in stratum["produces"] if name not in usual]


def _spec(row: dict[str, Any], number: int, chunk: dict[str, Any]) -> dict[str, Any]:
    inside = [row["chunks"][one] for one in chunk["deps"]]
    spec: dict[str, Any] = {
        key: chunk[key] for key in ("name", "repo", "ref", "morph") if key in chunk
    }
    if "build_system" in chunk:
        spec["build-system"] = chunk["build_system"]
    if chunk["mode"] != "staging":
        spec["build-mode"] = chunk["mode"]
    if chunk["prefix"] != "/usr":
        spec["prefix"] = chunk["prefix"]
    if depends := [one["name"] for one in inside if number in one["strata"]]:
        spec["build-depends"] = depends
    stratum = row["strata"][number]
    special = [name for name in stratum.get("artifacts", ()) if name in _extra(stratum)]
    if special and row["chunks"].index(chunk) in _numbers(row["image"]):
        spec["artifacts"] = dict.fromkeys(_artifacts(row, chunk, missing=False), special[0])
    return spec


def _chunk(row: dict[str, Any], chunk: dict[str, Any]) -> dict[str, Any]:
    usual = _artifacts(row, chunk, missing=None)
    own = [name for name in _missing(row, chunk) if name not in usual]
    return {
        "name": chunk.get("source_name", chunk["name"]),
        "kind": "chunk",
        **_COMMANDS,
        "products": [{"artifact": name, "include": [f"opt/{name}/.*"]} for name in own],
    }


def _artifacts(row: dict[str, Any], chunk: dict[str, Any], *, missing: bool | None) -> list[str]:
    """A chunk's default artifacts; without ``missing`` only those in the image."""
    name = chunk.get("source_name", chunk["name"]).removesuffix(".morph")
    names = [name + suffix for suffix in _CHUNK_RULES]
    return names if missing is None else [one for one in names if one not in _missing(row, chunk)]


def _missing(row: dict[str, Any], chunk: dict[str, Any]) -> list[str]:
    listed = row.get("image_missing_artifacts", {}).get(chunk["name"], [])
    return [name.replace(".morph-", "-") for name in listed]


def _numbers(ranges: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
