"""Validates the fields of an entry in a lorry file, by its type.

Definitions are untrusted, and the fields become arguments of git, apt and pip, and names of refs
and files.  Therefore each field has a strict pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from fabric.definitions.located_yaml import Map
from fabric.trove.sources.aliases import is_git_url
from fabric.trove.sources.locks import DEBIAN_ARCHITECTURE, DEBIAN_NAME, TREE

_Check = Callable[[Any], str | None]  # what is wrong with a value, or None


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be text: put it in quotes"
    return None if value.strip() and value.isprintable() else "must not be empty"


def _hex(what: str, pattern: str) -> _Check:
    def check(value: Any) -> str | None:
        fine = isinstance(value, str) and re.fullmatch(pattern, value)
        return None if fine else f"must be the {what}"

    return check


def _matching(pattern: str, example: str) -> _Check:
    def check(value: Any) -> str | None:
        fine = isinstance(value, str) and re.fullmatch(pattern, value)
        return _text(value) or (None if fine else f"must be like {example}")

    return check


def _list(what: str, pattern: str, wrong: str) -> _Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            return f"must be a list of {what}"
        return next((f"{one!r} {wrong}" for one in value if not re.fullmatch(pattern, one)), None)

    return check


def _digests(value: Any) -> str | None:
    if not isinstance(value, dict) or not all(_sha256(one) is None for one in value.values()):
        return "must map names of orig tarballs to their SHA-256"
    wrong = [one for one in value if not re.fullmatch("[A-Za-z0-9-]+", one)]
    return f"{wrong[0]!r} is no name of an orig tarball" if wrong else None


def _git_url(value: Any) -> str | None:
    return _text(value) or (None if is_git_url(value) else "must be like a git URL")


_PROJECT = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
#: pip takes what ends so for a file in its current folder.
_NO_FILE = r"(?!.*\.(?:zip|whl|tar|tgz|tbz|txz|tlz|tar\.[a-z0-9]+)$)"
_REQUIREMENT = rf"(?i:{_NO_FILE}){_PROJECT}(?:(?:==|>=|<=|~=)[0-9][0-9A-Za-z.]*)?"
_package = _matching(DEBIAN_NAME, "a Debian package's name")
_packages = _list("package names", DEBIAN_NAME, "is no package name")
_requirements = _list("projects' names", _REQUIREMENT, "is not like NAME or NAME==VERSION")
_version = _matching(r"[0-9A-Za-z][0-9A-Za-z.+~_-]*", "1.2.3")
_ref = _matching(
    r"(?!.*(?:\.\.|//|/\.|\.lock/))[0-9A-Za-z][0-9A-Za-z.+_/-]*(?<!\.lock)(?<![./])",
    "the name of a git tag",
)
_url = _matching(r"https?://[!-~]+|file://\S+", "https://host/file.tar.gz")
_sha256 = _hex("64 hex digits of a SHA-256", "[0-9a-f]{64}")
_tree = _hex("40 hex digits of a git tree", TREE)

#: type -> (required fields, optional ones), each with its check.  What an update fills in is
#: optional.
TYPES: dict[str, tuple[dict[str, _Check], dict[str, _Check]]] = {
    "git": ({"url": _git_url}, {}),
    "tarball": (
        {"url": _url, "version": _version},
        {"sha256": _sha256, "tree": _tree, "ref": _ref},
    ),
    "debian-source": (
        {},
        {
            **{"version": _version, "sha256": _sha256, "tree": _tree, "ref": _ref},
            **{"package": _package, "components": _digests},
        },
    ),
    "pypi": (
        {},
        {
            **{"version": _version, "sha256": _sha256, "tree": _tree, "ref": _ref},
            "package": _matching(_PROJECT, "a project's name"),
        },
    ),
    "debian-packages": (
        {"packages": _packages, "version": _version},
        {
            "exclude": _packages,
            "architecture": _matching(DEBIAN_ARCHITECTURE, "amd64"),
            "ref": _ref,
        },
    ),
    "pypi-wheels": (
        {
            "packages": _requirements,
            "python": _matching(r"3\.[0-9]{1,3}", "3.13"),
            "version": _version,
        },
        {"architecture": _matching(r"[a-z0-9_]+", "x86_64"), "ref": _ref},
    ),
}

_SET = {
    "version": "any name for this set of packages",
    "ref": "the branch that an import makes; default: the version",
}
#: Field, or type.field, -> its meaning, as docs/reference/lorries.md shows it.
MEANINGS = {
    "url": "where the tarball is: `https:`, `http:` or `file:`",
    "git.url": "a git URL, or a path from the folder of the lorry file; all branches and tags are"
    " mirrored",
    "version": "upstream's version",
    "ref": "the tag that an import makes, and strata name; default: the version",
    **{
        f"{kind}.{name}": text
        for kind in ("debian-packages", "pypi-wheels")
        for name, text in _SET.items()
    },
    "sha256": "the digest of the tarball, the orig tarball or the source distribution",
    "tree": "the git tree that an import must give",
    "package": "the package's name; default: the last part of the repository's name",
    "components": "name -> SHA-256 of further orig tarballs, imported into folders of these names",
    "packages": "names of packages; their dependencies come along",
    "pypi-wheels.packages": "projects, also as `rich>=14`; their dependencies come along",
    "exclude": "packages that do not come along",
    "architecture": "default `amd64`",
    "pypi-wheels.architecture": "default `x86_64`",
    "python": 'the version of CPython that imports the wheels, such as `"3.13"`',
}
#: Fields that `lorry update` fills in.
FILLED_IN = ("version", "sha256", "tree")

_SEGMENT = r"[A-Za-z0-9_+~][A-Za-z0-9_+.~-]*"
_NAME = re.compile(rf"([a-z][a-z0-9-]+:)?{_SEGMENT}(/{_SEGMENT})*")


def mistakes(name: str, entry: Any, line: int, text: list[str]) -> Iterator[tuple[int, str]]:
    """All that is wrong with an entry, each with its line.  ``text``: the file's lines."""
    if not _NAME.fullmatch(name) or ".." in name:
        yield line, "this is no name of a repository"
    if not isinstance(entry, Map):
        yield line, "must be a mapping with a `type`"
        return
    kind = entry.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        yield entry.lines.get("type", line), f"`type` must be one of {', '.join(TYPES)}"
        return
    required, optional = TYPES[kind]
    for missing in required.keys() - entry.keys():
        yield line, f"a lorry of type {kind} needs `{missing}`"
    for key, value in entry.items():
        at = entry.lines[key]
        check = required.get(key) or optional.get(key)
        if check is None and key != "type":
            yield at, f"`{key}` means nothing in a lorry of type {kind}"
        elif check and (wrong := check(value)):
            yield at, f"`{key}` {_misread(key, value, text[at - 1], check) or wrong}"
    default = optional.get("package")
    if default and "package" not in entry and default(last_part(name)):
        yield line, f"needs `package`, as no package is called {last_part(name)!r}"


def _misread(key: str, value: Any, line: str, check: _Check) -> str | None:
    """What to write instead of a number, date or truth value that was meant as text."""
    written = re.search(rf"\b{key}['\"]?\s*:\s*([^\s,#\]}}]+)", line)
    if isinstance(value, str | list | dict) or not written or check(written[1]):
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    read = f"the number {value}" if number else str(value)
    return f'must be text, and YAML reads {written[1]} as {read}: write {key}: "{written[1]}"'


def last_part(name: str) -> str:
    """What follows the alias and the folders in a repository's name."""
    return name.rpartition(":")[2].rpartition("/")[2]
