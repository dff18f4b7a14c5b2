"""Loads cluster morphs: the systems to deploy, the locations, and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fabric.definitions import defaults
from fabric.definitions.fields import Fields, Findings
from fabric.definitions.load import Files, List, Read
from fabric.definitions.located_yaml import Map, Seq
from fabric.definitions.morphs import COMMON, Fieldset, morph_path, reference
from fabric.errors import DefinitionsError

CLUSTER = COMMON | {"systems": ("list, required", "the systems to deploy")}
CLUSTER_SYSTEM: Fieldset = {
    "morph": ("path, required", "the morph of the system"),
    "deploy-defaults": ("mapping", "settings that all its deployments have unless they differ"),
    "deploy": ("mapping, required", "name of a deployment -> its fields and settings"),
    "subsystems": ("list", "systems that are put into this one as tar archives"),
}
#: Fields of a deployment that are not settings of the deployed machine.
DEPLOYMENT: Fieldset = {
    "type": (
        "word, required",
        "`extensions/kvm`; `extensions/rawdisk` or `extensions/tar`, a file on the deploying"
        " machine; of a subsystem `extensions/tar`.  Others are left out, with a warning",
    ),
    "location": (
        "text, required",
        "`kvm+ssh://USER@HOST:PORT/GUEST/PATH/TO/IMAGE`, USER and PORT optional; of a file its path"
        " below the root of the definitions, or an absolute one that ends in `.img`, `.raw` or"
        " `.tar`, or begins with a variable; of a subsystem its path below `/`",
    ),
    "upgrade-type": ("word", "ignored, with a warning"),
    "upgrade-location": ("text", "ignored"),
    "partial-deploy-components": ("list of names", "refused"),
}
_TEXTS = ("type", "location", "upgrade-type", "upgrade-location")


class Deployment(msgspec.Struct, frozen=True):
    """One deployment of a system.

    ``settings`` are texts, as Baserock's deployment extensions get them: ``deploy-defaults``, and
    over them those of the deployment.  YAML's truth values become ``True`` and ``False`` (also
    ``yes`` and ``no``), null becomes "", and a list or mapping becomes Python's notation.
    """

    name: str
    type: str  # the extension: "extensions/kvm"; "" if there are only fields of upgrades
    location: str
    upgrade_type: str
    upgrade_location: str
    settings: Mapping[str, str]
    components: tuple[str, ...]  # of a partial deployment; empty: the whole system
    line: int
    lines: Mapping[str, int]  # of each of its fields and settings


class ClusterSystem(msgspec.Struct, frozen=True):
    """A system and its deployments; ``subsystems`` are deployed inside it."""

    morph: str
    deployments: tuple[Deployment, ...]
    subsystems: tuple[ClusterSystem, ...]
    extensions: Mapping[str, int] = {}  # configuration extension of its morph -> line there


class Cluster(msgspec.Struct, frozen=True):
    """A cluster morph, in the file ``path``."""

    path: str
    name: str
    description: str
    systems: tuple[ClusterSystem, ...]

    def deployments(self) -> dict[str, tuple[ClusterSystem, Deployment]]:
        """Name -> (system, deployment), without those of subsystems."""
        return {one.name: (system, one) for system in self.systems for one in system.deployments}


def load_cluster(read: Read, path: str, morphs: List = list) -> Cluster:
    """The cluster in the file ``path``.

    The systems that it names must exist, but are not loaded.  DefinitionsError has all mistakes in
    the cluster's file, with hints among ``morphs()``.
    """
    findings = Findings()
    number = defaults.version(read("VERSION"), findings)
    if number is None:
        raise DefinitionsError(findings.errors)
    path = morph_path(path)
    files = Files(read, findings, morphs)
    given = files.get(path, "cluster", path, 1, "")
    made = None if given is None else _Reader(Fields(path, findings), files).cluster(given)
    if findings.errors or made is None:
        raise DefinitionsError(findings.errors)
    return made


class _Reader:
    def __init__(self, fields: Fields, files: Files) -> None:
        self.fields = fields
        self.files = files
        self.names: dict[str, int] = {}  # of deployments -> line

    def cluster(self, given: Map) -> Cluster:
        name = self.fields.name(given, "name", "cluster")
        what = f"cluster {name}"
        self.fields.known(given, what, CLUSTER)
        if "systems" not in given:
            self.fields.report(given.line, f"{what}: the field 'systems' is missing")
        systems = self._systems(given, "systems", what)
        description = self.fields.description(given, what)
        return Cluster(self.fields.file, name, description, systems)

    def _systems(self, given: Map, key: str, what: str) -> tuple[ClusterSystem, ...]:
        made = []
        for line, item in self.fields.items(given, key, what):
            entry = self.fields.mapping(item, line, f"{what}: an entry of {key!r}")
            if entry is not None:
                made.append(self._system(entry, what))
        return tuple(made)

    def _system(self, given: Map, what: str) -> ClusterSystem:
        system = reference(self.fields, given, what)
        what = f"system {system.path}"
        self.fields.known(given, what, CLUSTER_SYSTEM)
        morph = None
        if system.path:
            where = (self.fields.file, system.line)
            morph = self.files.get(system.path, "system", *where, "the cluster")
        shared: Map | None = Map(given.line)
        if given.get("deploy-defaults") is not None:
            line = given.lines["deploy-defaults"]
            shared = self.fields.mapping(given["deploy-defaults"], line, f"{what}: deploy-defaults")
        table: Map | None = Map(given.line)
        if "deploy" not in given:
            self.fields.report(
                given.line, f"{what} is not deployed anywhere: name its deployments in 'deploy'"
            )
        else:
            line = given.lines["deploy"]
            table = self.fields.mapping(given["deploy"], line, f"{what}: 'deploy'")
        deployments = [
            self._deployment(name, table[name], table.lines[name], shared or Map(0))
            for name in table or ()
            if table is not None
        ]
        below = self._systems(given, "subsystems", what)
        made = tuple(one for one in deployments if one is not None)
        return ClusterSystem(system.path, made, below, _extensions(morph))

    def _deployment(self, name: str, value: Any, line: int, shared: Map) -> Deployment | None:
        what = f"deployment {name}"
        first = self.names.setdefault(name, line)
        if first != line:
            self.fields.report(line, f"{what} is there already in line {first}: rename one of them")
        own = self.fields.mapping(value, line, what)
        if own is None:
            return None
        merged = Map(line)
        for source in (shared, own):
            merged.update(source)
            merged.lines.update(source.lines)
        texts = {key: self.fields.text(merged, key, what, "") for key in _TEXTS}
        pairs = [(texts["type"], texts["location"])]
        pairs.append((texts["upgrade-type"], texts["upgrade-location"]))
        for prefix, (kind, location) in zip(("", "upgrade-"), pairs, strict=True):
            if bool(kind) != bool(location):
                lacking = "location" if kind else "type"
                self.fields.report(line, f"{what}: the field '{prefix}{lacking}' is missing")
        if not any(kind or location for kind, location in pairs):
            self.fields.report(line, f"{what}: the fields 'type' and 'location' are missing")
        return Deployment(
            name=name,
            type=texts["type"],
            location=texts["location"],
            upgrade_type=texts["upgrade-type"],
            upgrade_location=texts["upgrade-location"],
            settings={
                key: "" if setting is None else str(setting)
                for key, setting in merged.items()
                if key not in DEPLOYMENT
            },
            components=self.fields.texts(merged, "partial-deploy-components", what),
            line=line,
            lines=merged.lines,
        )


def _extensions(morph: Map | None) -> dict[str, int]:
    """The configuration extensions of a system, without their folder, and their lines."""
    listed = morph.get("configuration-extensions") if morph is not None else None
    if not isinstance(listed, Seq):
        return {}
    pairs = zip(listed, listed.lines, strict=True)
    return {one.rpartition("/")[2]: line for one, line in pairs if isinstance(one, str)}
