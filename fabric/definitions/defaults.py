"""Reads ``VERSION`` and ``DEFAULTS``, which apply to a whole definitions repository.

Without DEFAULTS, or with an empty one, the only build system is ``manual``, and one split rule
assigns all paths to an artifact with the name of the chunk or stratum.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fabric import bounds
from fabric.definitions.environment import FLAGS
from fabric.definitions.fields import Fields, Findings, kind_of, listing
from fabric.definitions.graph import PHASES, Rule
from fabric.definitions.located_yaml import Map, parse
from fabric.definitions.morphs import few, split_rule
from fabric.definitions.system_morph import ARCHITECTURES, similar
from fabric.errors import command, suggest

SUPPORTED = (7, 8)

_BUILD_COMMANDS = tuple(f"{phase}-commands" for phase in PHASES if phase != "test")
#: In ``hardening``: all architectures.
EVERY = "all"
_EVERYTHING = (Rule("", (".*",)),)


class Defaults(msgspec.Struct, frozen=True):
    """Build systems {name: {step: commands}}, and default split rules: ``artifact`` is a suffix.

    ``hardening``: {architecture, or `EVERY`: {variable: flags}}.
    """

    build_systems: Mapping[str, Mapping[str, tuple[str, ...]]]
    chunk_rules: tuple[Rule, ...]
    stratum_rules: tuple[Rule, ...]
    hardening: Mapping[str, Mapping[str, str]] = {}

    def flags(self, arch: str) -> dict[str, str]:
        """The variables with flags in the environment of chunks for an architecture."""
        parts = [self.hardening.get(one, {}) for one in (EVERY, arch)]
        names = sorted(parts[0].keys() | parts[1].keys())
        return {name: " ".join(part[name] for part in parts if name in part) for name in names}


def declared(data: bytes | None, findings: Findings) -> tuple[int, int] | None:
    """The version that VERSION declares, from 0 to the newest, and its line; 0 without the file.

    None if it is not a version, which is reported.
    """
    fields = Fields("VERSION", findings)
    if data is None:
        return 0, 1
    before = len(findings.errors)
    given = parse(data, "VERSION", findings.errors)
    if len(findings.errors) > before:
        return None
    if not isinstance(given, Map) or "version" not in given:
        fields.report(1, "must hold a mapping with the format's number, like 'version: 8'")
        return None
    fields.known(given, "VERSION", ("version",))
    number = given["version"]
    line = given.lines["version"]
    if type(number) is not int:
        fields.report(line, f"'version' must be a number, like 8, not {kind_of(number)}")
    elif 0 <= number <= SUPPORTED[-1]:
        return number, line
    else:
        fields.report(
            line,
            f"version {number} of the definitions format is unknown, only 7 and 8 are supported:"
            " use a release of this tool that supports it",
        )
    return None


def version(data: bytes | None, findings: Findings) -> int | None:
    """The version of the definitions format; None if it is not supported, which is reported."""
    found = declared(data, findings)
    if found is None or found[0] in SUPPORTED:
        return found and found[0]
    number, line = found
    which = f"version {number} of the definitions format is not supported"
    if data is None:
        which = "there is no such file at the root of the definitions, so they are of version 0"
    findings.error("VERSION", line, f"{which}: `{command('migrate')}` brings them to version 8")
    return None


def defaults(data: bytes | None, findings: Findings) -> Defaults | None:
    """The contents of DEFAULTS; None if it has mistakes, which are reported."""
    before = len(findings.errors)
    given = None if data is None else parse(data, "DEFAULTS", findings.errors)
    fields = Fields("DEFAULTS", findings)
    if given is None:
        given = Map(1)
    elif not isinstance(given, Map):
        fields.report(1, f"must hold a mapping, not {kind_of(given)}")
        return None
    fields.known(given, "DEFAULTS", ("build-systems", "hardening", "split-rules"))
    made = Defaults(
        _build_systems(fields, given), *_rules(fields, given), _hardening(fields, given)
    )
    return made if len(findings.errors) == before else None


def _build_systems(fields: Fields, given: Map) -> dict[str, dict[str, tuple[str, ...]]]:
    """The build systems.  They have no pre- and post- commands, which only chunks have."""
    made: dict[str, dict[str, tuple[str, ...]]] = {"manual": {}}
    entries = given.get("build-systems")
    if entries is None:
        return made
    table = fields.mapping(entries, given.lines["build-systems"], "'build-systems'")
    for name in table or ():
        what = f"build system {name}"
        entry = fields.mapping(entries[name], entries.lines[name], what)
        if entry is None:
            continue
        for step in entry:
            if step not in _BUILD_COMMANDS:
                only = f"; a build system has only {listing(_BUILD_COMMANDS)}"
                hint = suggest(step, _BUILD_COMMANDS) or only
                fields.report(entry.lines[step], f"{what}: unknown field {step!r}{hint}")
        made[name] = {
            step: fields.commands(entry, step, what) for step in _BUILD_COMMANDS if step in entry
        }
    return made


def _hardening(fields: Fields, given: Map) -> dict[str, dict[str, str]]:
    """The flags of compilers, by architecture; ``false`` means none."""
    made: dict[str, dict[str, str]] = {}
    entries = given.get("hardening", False)
    if entries is False:
        return made
    table = fields.mapping(entries, given.lines["hardening"], "'hardening'")
    if table is None:
        return made
    for place in table:
        what = f"'hardening' of {place}"
        if place != EVERY and place not in ARCHITECTURES:
            hint = similar(place) or f"; it has {EVERY!r} and architectures, like 'x86_64'"
            fields.report(table.lines[place], f"'hardening': unknown field {place!r}{hint}")
            continue
        entry = fields.mapping(table[place], table.lines[place], what)
        if entry is None:
            continue
        fields.known(entry, what, sorted(FLAGS))
        made[place] = {name: " ".join(fields.text(entry, name, what, "").split()) for name in entry}
        for name, flags in made[place].items():
            if len(flags.encode(errors="replace")) > bounds.FLAGS or not flags.isprintable():
                message = f"must be printable, and at most {bounds.FLAGS:,} bytes"
                fields.report(entry.lines[name], f"{what}: {name!r} {message}")
    return made


def _rules(fields: Fields, given: Map) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """The default split rules of chunks and of strata."""
    entries = given.get("split-rules")
    if entries is None:
        return _EVERYTHING, _EVERYTHING
    table = fields.mapping(entries, given.lines["split-rules"], "'split-rules'")
    if table is None:
        return _EVERYTHING, _EVERYTHING
    fields.known(table, "'split-rules'", ("chunk", "stratum"))
    made = []
    for kind in ("chunk", "stratum"):
        rules = []
        for line, item in fields.items(table, kind, "'split-rules'"):
            entry = fields.mapping(item, line, f"{kind} split rule")
            if entry is not None:
                rules.append(split_rule(fields, entry, f"{kind} split rule", suffix=True))
        made.append(few(fields, rules, table, kind, "'split-rules'") or _EVERYTHING)
    return made[0], made[1]
