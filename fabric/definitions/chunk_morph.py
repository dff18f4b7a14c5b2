"""Reads and validates chunk morphs.

Existing definitions rely on these rules:

- A command list replaces that of the build system, even if it is empty.
- ``build-mode`` and ``prefix`` are ignored with a warning, because the stratum sets them.
- ``max-jobs`` may be a number in quotes; ``system-integration`` may be null.
"""

from __future__ import annotations

from typing import Any, cast

from fabric.definitions.fields import Fields, bad_name, is_name, kind_of
from fabric.definitions.graph import COMMAND_STEPS, Device
from fabric.definitions.located_yaml import Map
from fabric.definitions.morphs import COMMON, ChunkMorph, Fieldset, products

_IGNORED = ("build-mode", "prefix")
CHUNK = COMMON | {
    "build-system": ("name", "a build system of DEFAULTS; default `manual`, which has no commands"),
    **dict.fromkeys(
        COMMAND_STEPS,
        ("list of commands", "the commands of this step; they replace those of the build system"),
    ),
    "max-jobs": ("number", "the most jobs that `make` runs at once; default: the worker's"),
    "hardening": (
        "truth value",
        "false: without the flags for compilers that `hardening` of DEFAULTS sets",
    ),
    "not-reproducible": (
        "text",
        "why the chunk may give other bytes each time it is built: `certify` accepts that; no part"
        " of the cache key",
    ),
    "products": ("list", "split rules that come before those of DEFAULTS"),
    "devices": ("list", "device nodes that are made after installing"),
    "system-integration": (
        "mapping",
        "artifact -> name -> commands that run in each system with the artifact, in the order of"
        " the names over all chunks",
    ),
}
_NUMBERS = {
    "major": ("number, required", "the device's major number"),
    "minor": ("number, required", "the device's minor number"),
    "uid": ("number, required", "its owner"),
    "gid": ("number, required", "its group"),
}
DEVICE: Fieldset = {
    "filename": ("path, required", "the node's path in the system"),
    "type": ("word, required", "`c` or `b`"),
    "permissions": ("text, required", "an octal number such as `'0644'`"),
    **_NUMBERS,
}

#: Fields about building, which an import chunk may not have.
BUILDING = ("build-system", *COMMAND_STEPS, "max-jobs", "hardening", "not-reproducible")

_Integration = dict[str, dict[str, tuple[str, ...]]]


def chunk(fields: Fields, given: Map) -> ChunkMorph:
    """The chunk morph in ``given``; mistakes are reported to ``fields``."""
    name = fields.name(given, "name", "chunk")
    what = f"chunk {name}".rstrip()
    fields.known(given, what, CHUNK, but=_IGNORED)
    fields.ignored(given, what, _IGNORED)
    integration, lines = _integration(fields, given, what)
    return ChunkMorph(
        file=fields.file,
        name=name,
        description=fields.description(given, what),
        build_system=fields.text(given, "build-system", what, "manual"),
        build_system_line=given.lines.get("build-system", given.line),
        commands={
            step: fields.commands(given, step, what) for step in COMMAND_STEPS if step in given
        },
        built={field: given.lines[field] for field in BUILDING if field in given},
        products=products(fields, given, what),
        max_jobs=_max_jobs(fields, given, what),
        not_reproducible=_reason(fields, given, what),
        hardening=fields.truth(given, "hardening", what, default=True),
        devices=_devices(fields, given, what),
        integration=integration,
        integration_lines=lines,
    )


def imported(what: str, field: str) -> str:
    """The mistake of an import chunk that has a field about building."""
    return (
        f"{what}: it is imported as it is, and nothing is run: remove {field!r}, or"
        " 'build-mode: import' from its stratum"
    )


def _max_jobs(fields: Fields, given: Map, what: str) -> int | None:
    value = given.get("max-jobs")
    if value is None:
        return None
    quoted = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 6
    number = int(value) if quoted else value
    if type(number) is int and 0 < number < 100_000:
        return number
    fields.report(
        given.lines["max-jobs"],
        f"{what}: 'max-jobs' must be a number from 1 up, not {kind_of(value)}",
    )
    return None


def _reason(fields: Fields, given: Map, what: str) -> str:
    """The field ``not-reproducible`` in one line; "" without it."""
    key = "not-reproducible"
    if key not in given:
        return ""
    text = fields.text(given, key, what)
    if text.isspace():
        fields.report(given.lines[key], f"{what}: {key!r} is empty: give it a reason")
    return " ".join(text.split())


def _devices(fields: Fields, given: Map, what: str) -> tuple[Device, ...]:
    made = []
    for line, item in fields.items(given, "devices", what):
        entry = fields.mapping(item, line, f"{what}: an entry of 'devices'")
        if entry is not None and (device := _device(fields, entry, f"{what}: device")):
            made.append(device)
    return tuple(made)


def _device(fields: Fields, entry: Map, what: str) -> Device | None:
    before = len(fields.findings.errors)
    filename = fields.text(entry, "filename", what)
    what = f"{what} {filename}".rstrip()
    fields.known(entry, what, DEVICE)
    if ".." in filename.split("/"):
        fields.report(entry.lines["filename"], f"{what}: leave '..' out of its path")
    elif filename and not {"", "."}.isdisjoint(filename.strip("/").split("/")):
        fields.report(entry.lines["filename"], f"{what}: 'filename' must be a path like /dev/null")
    kind = fields.text(entry, "type", what)
    if kind not in ("c", "b", ""):
        fields.report(entry.lines["type"], f"{what}: 'type' is c or b, not {kind!r}")
    for key in _NUMBERS:
        value = entry.get(key)
        if type(value) is not int or not 0 <= value < 2**32:
            line = entry.lines.get(key, entry.line)
            fields.report(line, f"{what}: {key!r} must be a whole number, not {kind_of(value)}")
    permissions = fields.text(entry, "permissions", what)
    if permissions and (set(permissions) - set("01234567") or len(permissions) > 5):
        fields.report(
            entry.lines["permissions"],
            f"{what}: {permissions!r} is not an octal number like '0644'",
        )
    if len(fields.findings.errors) > before:
        return None
    numbers = {key: entry[key] for key in _NUMBERS}
    return Device(filename, cast(Any, kind), int(permissions, 8), **numbers)


def _integration(fields: Fields, given: Map, what: str) -> tuple[_Integration, dict[str, int]]:
    """The field ``system-integration``, and its lines; null and an empty list mean none."""
    value = given.get("system-integration")
    if value is None or value == []:
        return {}, {}
    what = f"{what}: system-integration"
    table = fields.mapping(value, given.lines["system-integration"], what)
    made: _Integration = {}
    for artifact, entry in (table or {}).items():
        inside = f"{what} of {artifact}"
        prefixes = fields.mapping(entry, table.lines[artifact] if table else 0, inside)
        made[artifact] = commands = {}
        for prefix in prefixes or ():
            if prefixes is not None:
                if not is_name(prefix):
                    fields.report(prefixes.lines[prefix], f"{inside}: {bad_name(prefix)}")
                commands[prefix] = fields.commands(prefixes, prefix, inside)
    return made, table.lines if table is not None else {}
