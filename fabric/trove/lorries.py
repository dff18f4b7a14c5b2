"""Lorries: files ``sources/*.lorry`` of the definitions that say where sources come from.

A lorry file is a YAML mapping; each key names a repository (``zlib`` is ``upstream:zlib``, any
other alias is written out), each value says what to import there::

    zlib:
      type: debian-source          # the orig tarball of a Debian source package
      package: zlib                # default: the key
      version: 1.3.dfsg+really1.3.1   # upstream's part of the Debian version
      sha256: ...                  # of the orig tarball
      components: {doc: ...}       # further orig tarballs and their sha256, if any
      ref: 1.3.1                   # what strata name as `ref`; default: the version
    lua:     {type: tarball, url: "https://...", version: 5.4.7, sha256: ...}
    ply:     {type: pypi, package: ply, version: "3.11", sha256: ...}
    musl:    {type: git, url: "https://..."}      # all its branches and tags
    itself:  {type: git, url: ".."}               # a path is meant from the lorry's folder;
                                 # of that repository, ref HEAD is what the definitions are at
    toolchain:
      type: debian-packages        # binary packages, with all they depend on
      packages: [gcc, libc6-dev]
      exclude: [debconf]           # taken as installed: left out, with what only they need
      architecture: amd64          # default: amd64
      version: "13"
    python-modules:
      type: pypi-wheels            # built distributions, with all they need
      packages: [pyzmq==27.3.0, rich]
      python: "3.13"               # the CPython that is to import them
      architecture: x86_64         # default: x86_64
      version: "1"

What a lorry pins is in the lorry, or, for sets of packages, in a lock file beside it
(``toolchain.lock``).  `fabric.trove.pins` renews pins.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.definitions.marked import Map, parse
from fabric.errors import DefinitionsError, Problem, SourceError, command

#: Counts up when the same pins would make another commit.
IMPORT_FORMAT = 1

_NAME = re.compile(r"([a-z][a-z0-9-]+:)?[A-Za-z0-9_+.~-]+(/[A-Za-z0-9_+.~-]+)*")


@dataclass(frozen=True, slots=True)
class Lorry:
    """One entry of a lorry file.  Fields that its type lacks are empty."""

    name: str
    type: str
    file: Path
    where: str  # "sources/zlib.lorry:1", for messages
    lines: Mapping[str, int] = field(compare=False)  # of each field in the file
    ref: str = ""
    version: str = ""
    url: str = ""
    package: str = ""
    sha256: str = ""
    components: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    architecture: str = ""
    python: str = ""

    @property
    def is_set(self) -> bool:
        """Whether it is a set of packages, which a lock file pins."""
        return self.type in ("debian-packages", "pypi-wheels")

    @property
    def repo(self) -> str:
        """The repository it fills, as definitions name it."""
        return self.name if ":" in self.name else f"upstream:{self.name}"

    @property
    def full_ref(self) -> str:
        """A set of packages moves, so it is a branch; everything else is a tag."""
        kind = "heads" if self.is_set else "tags"
        return f"refs/{kind}/{self.ref}"

    @property
    def is_own(self) -> bool:
        """Whether it brings the repository that these definitions are in."""
        return self.type == "git" and self.file.resolve().is_relative_to(self.url)

    @property
    def lock_file(self) -> Path:
        """Where the packages are pinned (sets of packages only)."""
        return self.file.parent / (re.sub("[:/]", "_", self.name) + ".lock")

    def import_key(self) -> str:
        """64 hex digits that change when the imported tree may; "" for git, which has commits."""
        pins: list[object] = [IMPORT_FORMAT]
        if self.type == "git":
            return ""
        if self.is_set:
            pins += [self.type, *map(str, self.locked())]
        else:
            pins += ["tarball", self.sha256, sorted(self.components.items())]
        return hashlib.sha256(json.dumps(pins).encode()).hexdigest()

    def locked(self) -> tuple[Locked, ...]:
        """The packages of the lock file, in its order; none if there is no lock file yet."""
        try:
            lines = self.lock_file.read_text().splitlines()
        except FileNotFoundError:
            return ()
        found = []
        for number, line in enumerate(lines, 1):
            if line and not line.startswith("#"):
                match line.split():
                    case [name, version, architecture, sha256, size] if size.isdigit():
                        found.append(Locked(name, version, architecture, sha256, int(size)))
                    case _:
                        raise SourceError(
                            f"{self.lock_file}:{number}: not a line of a lock file; make it again"
                            f" with `{command('lorry', 'update', self.name)}`"
                        )
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Locked:
    """A pinned Debian binary package, or wheel (``architecture`` is then its tag).

    ``size`` is that of the file in bytes.
    """

    name: str
    version: str
    architecture: str
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.name} {self.version} {self.architecture} {self.sha256} {self.size}"

    @property
    def file_name(self) -> str:
        """The .deb's name as Debian gives it, with the epoch's colon escaped."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


class Lorries:
    """All lorries of one ``sources/`` directory.  DefinitionsError if any is wrong."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._all: dict[str, Lorry] = {}
        problems: list[Problem] = []
        files = sorted(directory.glob("*.lorry")) if directory else []
        for file in files:
            shown = f"{file.parent.name}/{file.name}"
            for lorry in _read(file, shown, problems):
                if lorry.repo in self._all:
                    first = self._all[lorry.repo].where
                    line = int(lorry.where.rpartition(":")[2])
                    problems.append(Problem(shown, line, f"{lorry.repo} is already in {first}"))
                self._all[lorry.repo] = lorry
        if problems:
            raise DefinitionsError(problems)

    def __iter__(self) -> Iterator[Lorry]:
        return iter(self._all.values())

    def get(self, repo: str) -> Lorry | None:
        """The lorry that fills the repository ``repo``, as definitions name it."""
        repo = repo.removesuffix(".git")
        return self._all.get(repo if ":" in repo else f"upstream:{repo}")

    def named(self, name: str) -> Lorry:
        """The lorry of that name.  SourceError if there is none."""
        lorry = self.get(name)
        if lorry is None:
            known = ", ".join(sorted(one.name for one in self._all.values())) or "none"
            raise SourceError(f"{name}: no such lorry in {self.directory}; there are: {known}")
        return lorry


# -- reading and checking --------------------------------------------------------------------

_Check = Callable[[Any], str | None]  # what is wrong with a value, or None


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be text: put it in quotes"
    return None if value.strip() and value.isprintable() else "must not be empty"


def _sha256(value: Any) -> str | None:
    fine = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return None if fine else "must be the 64 hex digits of a SHA-256"


def _matching(pattern: str, example: str) -> _Check:
    def check(value: Any) -> str | None:
        fine = isinstance(value, str) and re.fullmatch(pattern, value)
        return _text(value) or (None if fine else f"must be like {example}")

    return check


def _names(value: Any) -> str | None:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        return "must be a list of package names"
    wrong = [one for one in value if not re.fullmatch(_PACKAGE, one)]
    return f"{wrong[0]!r} is no package name" if wrong else None


def _requirements(value: Any) -> str | None:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        return "must be a list of projects' names"
    wrong = [one for one in value if not re.fullmatch(_REQUIREMENT, one)]
    return f"{wrong[0]!r} is not like NAME or NAME==VERSION" if wrong else None


def _digests(value: Any) -> str | None:
    if not isinstance(value, dict) or not all(_sha256(one) is None for one in value.values()):
        return "must map names of orig tarballs to their SHA-256"
    return None


_PACKAGE = r"[a-z0-9][a-z0-9+.-]+"
_REQUIREMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*((==|>=|<=|~=)[0-9][0-9A-Za-z.]*)?"
_package = _matching(_PACKAGE, "a Debian package's name")
_version = _matching(r"[0-9A-Za-z][0-9A-Za-z.+~_-]*", "1.2.3")
_ref = _matching(r"[0-9A-Za-z][0-9A-Za-z.+_/-]*(?<!\.lock)(?<![./])", "the name of a git tag")
_url = _matching(r"(https?|file)://\S+", "https://host/file.tar.gz")

#: type -> (required fields, optional ones), each with its check
_TYPES: dict[str, tuple[dict[str, _Check], dict[str, _Check]]] = {
    "git": ({"url": _matching(r"[^-\s]\S*", "a git URL")}, {}),
    "tarball": ({"url": _url, "version": _version, "sha256": _sha256}, {"ref": _ref}),
    "debian-source": (
        {"version": _version, "sha256": _sha256},
        {"package": _package, "components": _digests, "ref": _ref},
    ),
    "pypi": (
        {"version": _version, "sha256": _sha256},
        {"package": _matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a project's name"), "ref": _ref},
    ),
    "debian-packages": (
        {"packages": _names, "version": _version},
        {"exclude": _names, "architecture": _matching(r"[a-z0-9-]+", "amd64"), "ref": _ref},
    ),
    "pypi-wheels": (
        {"packages": _requirements, "python": _matching(r"3\.\d+", "3.13"), "version": _version},
        {"architecture": _matching(r"[a-z0-9_]+", "x86_64"), "ref": _ref},
    ),
}


def _read(file: Path, shown: str, problems: list[Problem]) -> list[Lorry]:
    """The lorries of one file; what is wrong goes to ``problems``."""
    content = parse(file.read_bytes(), shown, problems)
    if content is None:
        return []
    if not isinstance(content, Map):
        problems.append(Problem(shown, 1, "a lorry file is a mapping of repositories"))
        return []
    found = []
    for name, entry in content.items():
        lorry = _lorry(file, shown, name, entry, content.lines[name], problems)
        if lorry is not None:
            found.append(lorry)
    return found


def _lorry(
    file: Path, shown: str, name: str, entry: Any, line: int, problems: list[Problem]
) -> Lorry | None:
    before = len(problems)

    def report(at: int, message: str) -> None:
        problems.append(Problem(shown, at, f"{name}: {message}"))

    if not _NAME.fullmatch(name) or ".." in name:
        report(line, "this is no name of a repository")
    if not isinstance(entry, Map):
        report(line, "must be a mapping with a `type`")
        return None
    if entry.get("type") not in _TYPES:
        types = ", ".join(_TYPES)
        report(entry.lines.get("type", line), f"`type` must be one of {types}")
        return None
    required, optional = _TYPES[entry["type"]]
    for missing in required.keys() - entry.keys():
        report(line, f"a lorry of type {entry['type']} needs `{missing}`")
    for key, value in entry.items():
        check = required.get(key) or optional.get(key)
        if check is None and key != "type":
            report(entry.lines[key], f"`{key}` means nothing in a lorry of type {entry['type']}")
        elif check and (wrong := check(value)):
            report(entry.lines[key], f"`{key}` {wrong}")
    if len(problems) > before:
        return None
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    values.setdefault("ref", values.get("version", ""))
    if values["type"] == "debian-packages":
        values.setdefault("architecture", "amd64")
    elif values["type"] == "pypi-wheels":
        values.setdefault("architecture", "x86_64")
    elif values["type"] == "git" and values["url"].startswith("."):
        values["url"] = str((file.parent / values["url"]).resolve())
    elif values["type"] in ("debian-source", "pypi"):
        values.setdefault("package", name.rpartition(":")[2].rpartition("/")[2])
    return Lorry(name=name, file=file, where=f"{shown}:{line}", lines=entry.lines, **values)
