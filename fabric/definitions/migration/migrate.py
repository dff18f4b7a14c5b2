"""Migrates morphs, VERSION and DEFAULTS to version 8 of the format.

Files keep their meaning, their comments and the order of their fields.  What needs a decision is a
note, or stays a mistake that loading the result reports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import msgspec
import yaml

from fabric.definitions.defaults import declared
from fabric.definitions.fields import Findings, is_name
from fabric.definitions.load import Read
from fabric.definitions.located_yaml import Map, Seq, parse
from fabric.definitions.migration.edits import Edits, Path
from fabric.definitions.migration.old_tool import DEFAULTS, detected
from fabric.definitions.morphs import morph_path
from fabric.definitions.stratum_morph import DEPENDENCY, SPEC
from fabric.definitions.system_morph import ENTRY, OBSOLETE
from fabric.definitions.yaml_scalar import scalar
from fabric.errors import DefinitionsError, Problem, suggest

TARGET = 8
#: Fields that are known, and had no effect.
_REMARKS = ("repo", "ref")
_TYPES = ("type", "upgrade-type")


class Source(Protocol):
    """The files of a source, as of the ref that the definitions name."""

    @property
    def names(self) -> frozenset[str]:
        """Names at its top."""

    def read(self, name: str) -> bytes | None:
        """The content of a file at its top; None if it has none."""


#: Repository, ref -> its files; None if they are not at hand.
Look = Callable[[str, str], Source | None]


class Migrated(msgspec.Struct):
    """``files``: path -> new content, of those that change; ``notes`` have lines in these."""

    version: int
    files: dict[str, bytes]
    notes: list[Problem]


def migrate(read: Read, morphs: Iterable[str], look: Look) -> Migrated:
    """Migrate the definitions whose morphs have the paths ``morphs``.

    DefinitionsError if VERSION cannot be read.
    """
    findings = Findings()
    data = read("VERSION")
    found = declared(data, findings)
    if found is None:
        raise DefinitionsError(findings.errors)
    version, _ = found
    made = Migrated(version, {}, [])
    if version < TARGET:
        made.files["VERSION"] = _with_version(data)
    if version < 7 and read("DEFAULTS") is None:
        made.files["DEFAULTS"] = DEFAULTS.encode()
    elif version < 7:
        text = "versions before 7 ignored this file, and it counts now: check that it has all build"
        made.notes.append(Problem("DEFAULTS", 1, f"{text} systems that the chunks name"))
    todo = sorted(morphs)
    present = frozenset(todo)
    for path in todo:  # grows in the loop by morphs that were in sources
        content = made.files.get(path) or _readable(read, path)
        if content is not None:
            todo += _Morph(path, content, made, present, look).migrate()
    return made


def _readable(read: Read, path: str) -> bytes | None:
    try:
        return read(path)
    except DefinitionsError:  # loading reports it
        return None


def _with_version(data: bytes | None) -> bytes:
    text, count = re.subn(rb"(?m)^(\s*version\s*:\s*)\d+", rb"\g<1>%d" % TARGET, data or b"")
    return text if count == 1 else b"version: %d\n" % TARGET


class _Morph:
    """Migrates one file."""

    def __init__(
        self, file: str, data: bytes, made: Migrated, present: Collection[str], look: Look
    ) -> None:
        self.file = file
        self.data = data
        self.made = made
        self.present = present
        self.look = look
        self.found: list[str] = []  # morphs that were in sources
        self.notes: list[tuple[int, str]] = []
        self.opened: Edits | None = None

    def migrate(self) -> list[str]:
        """Migrate it; returns the paths of new morphs."""
        problems: list[Problem] = []
        given = parse(self.data, self.file, problems)
        work = {"stratum": self._stratum, "system": self._system, "cluster": self._cluster}
        work["chunk"] = self._chunk
        if problems or not isinstance(given, Map) or given.get("kind") not in work:
            return []  # loading reports it
        try:
            if not isinstance(given.get("description", ""), str | None):
                self._comment(given, (), "description", "")
            work[given["kind"]](given)
        except (yaml.YAMLError, UnicodeDecodeError):  # not YAML to the parser that edits it
            return []
        if self.opened:
            self.made.files[self.file] = self.opened.text().encode()
        for line, text in self.notes:
            moved = self.opened.moved(line) if self.opened else line
            self.made.notes.append(Problem(self.file, moved, text))
        return self.found

    @property
    def edits(self) -> Edits:
        if self.opened is None:
            self.opened = Edits(self.data.decode())
        return self.opened

    def _comment(self, given: Map, path: Path, key: str, note: str) -> None:
        if self.edits.comment_out([*path, key]) and note:
            self.notes.append((given.lines[key], note))

    def _remarks(
        self, given: Map, path: Path, what: str, known: Collection[str], but: Collection[str] = ()
    ) -> None:
        """Make fields comments that the old tool did not look at."""
        for key in given:
            if key in but:
                self._comment(given, path, key, "")
            elif key not in known:
                hint = suggest(key, known)
                self._comment(
                    given, path, key, f"{what}: {key!r} had no effect and is a comment now{hint}"
                )

    def _chunk(self, given: Map) -> None:
        self._remarks(given, (), "", given, ("build-mode", "prefix"))

    def _system(self, given: Map) -> None:
        self._remarks(given, (), "", given, OBSOLETE)
        for path, entry in _entries(given, "strata"):
            self._remarks(entry, path, "an entry of 'strata'", ENTRY, _REMARKS)
            morph = entry.get("morph")
            if "name" not in entry and isinstance(morph, str):
                name = morph.rpartition("/")[2].removesuffix(".morph")
                added = self.edits.add(path, "morph", f"name: {scalar(name)}")
                if added and name != morph:  # the old tool compared the stratum's name with both
                    text = (
                        f"stratum {name}: without 'name', it was not in the system, and now it is"
                    )
                    self.notes.append((entry.line, f"{text}: remove the entry if that is right"))
        self._extensions(given, (), "configuration-extensions")

    def _cluster(self, given: Map, path: Path = (), key: str = "systems") -> None:
        for place, entry in _entries(given, key, path):
            deploy = entry.get("deploy")
            tables: list[tuple[Path, object]] = [
                (("deploy-defaults",), entry.get("deploy-defaults"))
            ]
            tables += (
                [(("deploy", name), deploy[name]) for name in deploy]
                if isinstance(deploy, Map)
                else []
            )
            for below, table in tables:
                for field in _TYPES:
                    if isinstance(table, Map):
                        self._extension(table.get(field), [*place, *below, field])
            self._cluster(entry, place, "subsystems")

    def _extensions(self, given: Map, path: Path, key: str) -> None:
        listed = given.get(key)
        for index, one in enumerate(listed if isinstance(listed, Seq) else ()):
            self._extension(one, [*path, key, index])

    def _extension(self, name: object, path: Path) -> None:
        """Since version 5, extensions are named by their paths."""
        if self.made.version < 5 and isinstance(name, str) and name and "/" not in name:
            self.edits.replace(path, f"extensions/{name}")

    def _stratum(self, given: Map) -> None:
        for path, entry in _entries(given, "build-depends"):
            self._remarks(entry, path, "an entry of 'build-depends'", DEPENDENCY, _REMARKS)
        for path, entry in _entries(given, "chunks"):
            name = entry.get("name")
            self._remarks(entry, path, f"chunk {name}", SPEC)
            morph = entry.get("morph")
            if isinstance(morph, str):
                lost = self.made.version < 2 and morph_path(morph) not in self.present
            else:
                lost = not entry.keys() & {"morph", "build-system"}
                lost = lost and entry.get("build-mode") != "import"
            if lost and isinstance(name, str) and is_name(name):
                self._instructions(entry, path, name)

    def _instructions(self, entry: Map, path: Path, name: str) -> None:
        """Say how a chunk is built, as the old tool found out in its source."""
        repo, ref = entry.get("repo", name), entry.get("ref")
        source = self.look(repo, ref) if isinstance(repo, str) and isinstance(ref, str) else None
        if source is None:
            return  # loading reports that nothing says how it is built
        content = source.read(f"{name}.morph")
        system = detected(source.names)
        if content is not None:
            morph = f"{self.file.removesuffix('.morph')}/{name}.morph"
            if self.made.files.get(morph, content) != content or morph in self.present:
                text = f"chunk {name}: the morph in its source, {name}.morph of {repo}, is not"
                self.notes.append((entry.line, f"{text} {morph}: compare them and name one"))
                return
            self.made.files[morph] = content
            self.found.append(morph)
            added = f"morph: {scalar(morph)}"
        elif system:
            added = f"build-system: {system}"
        else:
            text = f"chunk {name}: no file in its source, {repo} {ref}, tells how it is built: name"
            self.notes.append((entry.line, f"{text} a 'build-system', or its file as 'morph'"))
            return
        if "morph" in entry:
            self._comment(entry, path, "morph", "")
        self.edits.add(path, "name", added)


def _entries(given: Map, key: str, path: Path = ()) -> list[tuple[Path, Map]]:
    """The mappings in a list, and the ways to them."""
    listed = given.get(key)
    return [
        ((*path, key, index), one)
        for index, one in enumerate(listed if isinstance(listed, Seq) else ())
        if isinstance(one, Map)
    ]
