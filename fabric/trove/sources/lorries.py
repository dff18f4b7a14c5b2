"""Parses lorries: files ``sources/*.lorry`` of the definitions, which name origins of sources.

A lorry file is a YAML mapping; each key names a repository (``zlib`` is ``upstream:zlib``, other
aliases are written out), each value is what to import there::

    zlib:
      type: debian-source          # the orig tarball of a Debian source package
      package: zlib                # default: the key
      version: 1.3.dfsg+really1.3.1   # upstream's part of the Debian version
      sha256: ...                  # of the orig tarball
      components: {doc: ...}       # further orig tarballs and their sha256, if any
      tree: ...                    # the git tree that an import makes
      ref: 1.3.1                   # the `ref` of strata; default: the version
    busybox:
      type: debian-source
      version: 1.37.0-6            # Debian's whole version but for an epoch
      sha256: ...
      debian-patches: true         # apply debian/patches/series; or a list of those to apply
      debian-sha256: ...           # of the archive with them
      patches: [patches/busybox/0001-fix.patch]    # then these, of the lorry's folder
    lua:     {type: tarball, url: "https://...", version: 5.4.7, sha256: ..., tree: ...}
    gcc:
      type: tarball
      url: "https://..."           # an archive that contains the real one:
      inner: gcc-*.tar.xz
      version: 14.2.0
      sha256: ...
      components:                  # in folders of the same tree
        gmp: {url: "https://...", sha256: ...}
        zlib: {lorry: zlib}        # all that the lorry zlib brings
    ply:     {type: pypi, package: ply, version: "3.11", sha256: ..., tree: ...}
    musl:    {type: git, url: "https://..."}      # all its branches and tags
    itself:  {type: git, url: ".."}               # a path is relative to the lorry's folder;
                                 # ref HEAD of that repository is the definitions' own commit
    toolchain:
      type: debian-packages        # binary packages, with all they depend on
      packages: [gcc, libc6-dev]
      exclude: [debconf]           # assumed installed: left out, with their own dependencies
      architecture: amd64          # default: amd64
      version: "13"
    python-modules:
      type: pypi-wheels            # built distributions, with all they need
      packages: [pyzmq==27.3.0, rich]
      python: "3.13"               # the version of CPython that imports them
      architecture: x86_64         # default: x86_64
      version: "1"

The pins are in the lorry, or, for sets of packages, in a lock file beside it (``toolchain.lock``,
see `fabric.trove.sources.lock_files`).  An update fills in missing fields of version, sha256 and
tree, and renews them (`fabric.trove.importers.updates`, `fabric.trove.sources.pins`).

`fabric.trove.sources.lorry_fields` validates each field before it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fabric import bounds
from fabric.definitions.fields import Fields, Findings, listing
from fabric.definitions.located_yaml import Map, parse
from fabric.digest import Digest
from fabric.errors import DefinitionsError, SourceError, command, in_line, suggest
from fabric.host.files import real
from fabric.trove.sources import lorry_vex
from fabric.trove.sources.aliases import is_url
from fabric.trove.sources.lock_files import Lock, Locked, read_lock, read_plain
from fabric.trove.sources.lorry_fields import check_entry, last_part
from fabric.trove.sources.lorry_parts import Component, Patch, component, read_patches

#: Increases when the same pins make another commit.
IMPORT_FORMAT = 1


@dataclass(frozen=True)
class Lorry:
    """An entry of a lorry file.  Fields that its type lacks are empty."""

    name: str
    type: str
    file: Path
    where: str  # "sources/zlib.lorry:1", for messages
    lines: Mapping[str, int] = field(compare=False)  # of each field in the file
    ref: str = ""
    version: str = ""
    url: str = ""
    package: str = ""
    sha256: Digest | None = None
    debian_patches: bool | tuple[str, ...] = False  # all, or those that fit one of these
    debian_sha256: Digest | None = None
    inner: str = ""
    components: Mapping[str, Digest] = field(default_factory=dict)  # further orig tarballs
    parts: Mapping[str, Component] = field(default_factory=dict)  # folder -> other components
    patches: tuple[Patch, ...] = ()
    tree: str = ""  # that an import must make; for a set of packages, the lock has it
    packages: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    architecture: str = ""
    python: str = ""
    licenses: Mapping[str, str] = field(default_factory=dict)  # package -> expression
    license: str = ""  # this and the next four are for SBOMs, as is `licenses`
    purl: str = ""
    cpe: str = ""
    supplier: str = ""
    vex: tuple[lorry_vex.Statement, ...] = ()
    others: Lorries | None = field(default=None, compare=False, repr=False)

    @property
    def is_set(self) -> bool:
        """Whether it is a set of packages, pinned by a lock file."""
        return self.type in ("debian-packages", "pypi-wheels")

    @property
    def repo(self) -> str:
        """The repository that it fills, as named in definitions."""
        return self.name if ":" in self.name else f"upstream:{self.name}"

    @property
    def full_ref(self) -> str:
        """The full name of its ref: a branch for a set of packages, which moves, else a tag."""
        kind = "heads" if self.is_set else "tags"
        return f"refs/{kind}/{self.ref}"

    def brings(self, ref: str) -> bool:
        """Whether an import makes the ref ``ref`` of strata."""
        full = self.full_ref
        return self.type != "git" and ref in (self.ref, full, full.removeprefix("refs/"))

    @property
    def is_own(self) -> bool:
        """Whether it brings the definitions' own repository."""
        return self.type == "git" and real(self.file).is_relative_to(self.url)

    @property
    def missing(self) -> tuple[str, ...]:
        """Missing fields that are needed for a pin, and that an update fills in."""
        if self.type == "git" or self.is_set:
            return ()
        needed = {"version": self.version, "sha256": self.sha256}
        if self.debian_patches:
            needed["debian-sha256"] = self.debian_sha256
        for path, part in self.parts.items():
            needed[f"sha256 of {path}"] = part.sha256 or part.lorry
        return tuple(name for name, value in needed.items() if not value)

    @property
    def is_derived(self) -> bool:
        """Whether its tree may change although its own pins do not."""
        return bool(self.patches) or any(part.lorry for part in self.parts.values())

    @cached_property
    def series(self) -> list[tuple[Patch, bytes]]:
        """Its patches with their contents.  SourceError if one cannot be read."""
        return read_patches(self.file.parent, self.name, self.patches)

    def brought(self, part: Component) -> Lorry:
        """The lorry that a component names."""
        assert self.others is not None
        return self.others.named(part.lorry)

    @property
    def digests(self) -> dict[str, Digest]:
        """Component ("": the main tarball) -> digest.  SourceError if none is pinned."""
        if self.sha256 is None or self.missing:
            raise self.incomplete()
        return {"": self.sha256, **self.components}

    def incomplete(self) -> SourceError:
        """The error for `missing` fields."""
        return SourceError(
            f"{self.where}: {self.name} has no {' and no '.join(self.missing)} yet;"
            f" `{command('lorry', 'update', self.name)}` fills in what is offered"
        )

    @property
    def lock_file(self) -> Path:
        """The file that pins the packages (sets of packages only)."""
        return self.file.parent / (re.sub("[:/]", "_", self.name) + ".lock")

    @cached_property
    def lock(self) -> Lock:
        """The content of the lock file.  SourceError if a line is wrong."""
        return read_lock(self.lock_file, self.type, self.name) if self.is_set else Lock()

    @property
    def recorded_tree(self) -> str:
        """The git tree that an import must make; "" if none is recorded."""
        return self.lock.tree if self.is_set else self.tree

    def with_lock(self, lock: Lock) -> Lorry:
        """The same lorry with another lock."""
        made = replace(self)
        vars(made)["lock"] = lock
        return made

    def with_patches(self, paths: Iterable[str]) -> Lorry:
        """The same lorry with these patches."""
        return replace(self, patches=tuple(Patch(path, self.where) for path in paths))

    def with_tree(self, tree: str) -> Lorry:
        """The same lorry with another recorded tree."""
        if self.is_set:
            return self.with_lock(replace(self.lock, tree=tree))
        return replace(self, tree=tree)

    def import_key(self) -> str:
        """64 hex digits that change if the imported tree may change; "" for git, which has commits.

        SourceError if nothing is pinned, or a patch cannot be read.
        """
        return "" if self.type == "git" else self._import_key

    @cached_property
    def _import_key(self) -> str:
        pins: list[object] = [IMPORT_FORMAT]
        if self.is_set:
            pins += [self.type, *map(str, self.lock.packages)]
        else:
            pins += ["tarball", self.digests[""], sorted(self.components.items())]
            pins += self._derivation()
        return hashlib.sha256(json.dumps(pins).encode()).hexdigest()

    def _derivation(self) -> Iterator[object]:
        """The pins of what is done with the tarballs; none for most lorries."""
        if self.inner:
            yield ["inner", self.inner]
        for path, part in sorted(self.parts.items()):
            key = self.brought(part).import_key() if part.lorry else part.sha256
            yield ["component", path, bool(part.lorry), key, part.inner]
        if self.debian_patches:
            chosen = [] if self.debian_patches is True else [self.debian_patches]
            yield ["debian-patches", self.debian_sha256, *chosen]
        for _, content in self.series:
            yield ["patch", hashlib.sha256(content).hexdigest()]

    def locked(self) -> tuple[Locked, ...]:
        """The packages of the lock file, in its order; none if there is no lock file."""
        return self.lock.packages


class Lorries:
    """All lorries of one ``sources/`` directory.  DefinitionsError if any is wrong."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._all: dict[str, Lorry] = {}
        findings = Findings()
        for file in _files(directory) if directory else ():
            shown = in_line(f"{file.parent.name}/{file.name}")
            for lorry in _read(file, Fields(shown, findings)):
                if lorry.repo in self._all:
                    first = self._all[lorry.repo].where
                    line = int(lorry.where.rpartition(":")[2])
                    findings.error(shown, line, f"{lorry.repo} is already in {first}")
                self._all[lorry.repo] = replace(lorry, others=self)
        counts: dict[str, int] = {}
        if not findings.errors:  # an entry with a mistake is not missing
            for lorry in self._all.values():
                self._count(lorry, (), counts, findings)
        self._counts = counts
        if findings.errors:
            raise DefinitionsError(findings.errors)

    def __iter__(self) -> Iterator[Lorry]:
        return iter(self._all.values())

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Names of lorries, those before others that have them as components."""

        def rank(name: str) -> tuple[int, str]:
            lorry = self.get(name)
            return (self._counts[lorry.repo] if lorry else 0), name

        return sorted(names, key=rank)

    def _count(
        self, lorry: Lorry, above: tuple[str, ...], counts: dict[str, int], findings: Findings
    ) -> int:
        """The number of archives in a lorry's tree; mistakes in its components are reported.

        ``above``: the lorries that have it as a component.
        """
        if lorry.repo in counts:
            return counts[lorry.repo]
        count = 1 + len(lorry.components)
        for path, part in lorry.parts.items():
            other = self.get(part.lorry) if part.lorry else None
            wrong = ""
            if not part.lorry:
                count += 1
            elif other is None:
                wrong = f"there is no lorry {part.lorry}"
                if not findings.errors:  # it is slow with many names
                    wrong += suggest(part.lorry, [one.name for one in self])
            elif other.repo in (lorry.repo, *above):
                wrong = f"the lorry {part.lorry} contains this one"
            elif other.type == "git" or other.is_set:
                wrong = f"the lorry {part.lorry} is of type {other.type}, and brings no archive"
            elif len(above) < bounds.SOURCE_PARTS:
                count += self._count(other, (*above, lorry.repo), counts, findings)
            if count > bounds.SOURCE_PARTS or len(above) >= bounds.SOURCE_PARTS:
                wrong = f"with it there are more than {bounds.SOURCE_PARTS} archives, the limit"
            if wrong:
                file, _, line = part.where.rpartition(":")
                findings.error(file, int(line), f"{lorry.name}: component {path!r}: {wrong}")
                count = 1
                break
        counts[lorry.repo] = count
        return count

    def get(self, repo: str) -> Lorry | None:
        """The lorry that fills the repository ``repo``, as named in definitions."""
        repo = repo.removesuffix(".git")
        return self._all.get(repo if ":" in repo else f"upstream:{repo}")

    def named(self, name: str) -> Lorry:
        """The lorry of that name.  SourceError if there is none."""
        lorry = self.get(name)
        if lorry is None:
            known = sorted(one.name for one in self._all.values())
            hint = suggest(name, [*known, *self._all]) or f"; there are: {listing(known)}"
            raise SourceError(f"{name}: no such lorry in {self.directory}{hint}")
        return lorry


def _files(directory: Path) -> list[Path]:
    """The lorry files of definitions.  SourceError if their folder is a link out of them."""
    if not real(directory).is_relative_to(real(directory.parent)):
        raise SourceError(
            f"{directory}: a symbolic link that leads out of the definitions; lorries are read,"
            " and written, in the definitions only"
        )
    return sorted(directory.glob("*.lorry"))


def _read(file: Path, fields: Fields) -> list[Lorry]:
    """The lorries of one file."""
    data = read_plain(file) or b""
    problems = fields.findings.errors
    content = parse(data, fields.file, problems)
    if content is None:
        return []
    if not isinstance(content, Map):
        fields.report(1, "a lorry file is a mapping of repositories")
        return []
    text = data.decode(errors="replace").split("\n")
    found = []
    for name, entry in content.items():
        before, line = len(problems), content.lines[name]
        check_entry(fields, name, entry, line, text)
        if len(problems) == before:
            found.append(_lorry(file, f"{fields.file}:{line}", name, entry))
    return found


def _lorry(file: Path, where: str, name: str, entry: Map) -> Lorry:
    """The lorry of a valid entry."""
    values: dict[str, Any] = {
        key.replace("-", "_"): tuple(value) if isinstance(value, list) else value
        for key, value in entry.items()
    }
    values["vex"] = lorry_vex.statements(entry)
    values.setdefault("ref", default_ref(values.get("version", "")))
    for key in values.keys() & {"sha256", "debian_sha256"}:
        values[key] = Digest(values[key])
    file_shown = where.rpartition(":")[0]
    if given := values.pop("components", None):
        values["components"] = {
            key: Digest(one) for key, one in given.items() if isinstance(one, str)
        }
        values["parts"] = {
            key: component(one, f"{file_shown}:{given.lines[key]}")
            for key, one in given.items()
            if isinstance(one, Map)
        }
    if patches := entry.get("patches"):
        values["patches"] = tuple(
            Patch(path, f"{file_shown}:{line}")
            for path, line in zip(patches, patches.lines, strict=True)
        )
    match values["type"]:
        case "debian-packages":
            values.setdefault("architecture", "amd64")
        case "pypi-wheels":
            values.setdefault("architecture", "x86_64")
        case "git" if not is_url(values["url"]):
            values["url"] = str(real(file.parent / values["url"]))
        case "debian-source" | "pypi":
            values.setdefault("package", last_part(name))
    return Lorry(name=name, file=file, where=where, lines=entry.lines, **values)


def default_ref(version: str) -> str:
    """The ref of a lorry that names none: git allows no ``~`` in it."""
    return version.replace("~", "_")
