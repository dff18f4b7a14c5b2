"""Validates the fields of an entry in a lorry file, by its type.

Definitions are untrusted, and the fields become arguments of git, apt and pip, and names of refs
and files.  So each field has a strict pattern.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec

from fabric import bounds
from fabric.definitions.fields import Fields, kind_of, listing
from fabric.definitions.located_yaml import Map, Seq
from fabric.errors import in_line, suggest
from fabric.trove.sources import lorry_vex
from fabric.trove.sources.aliases import is_git_url
from fabric.trove.sources.lock_files import DEBIAN_ARCHITECTURE, DEBIAN_NAME, TREE


class _Check(Protocol):
    """Reports what is wrong with the field ``key`` of an entry."""

    def __call__(self, fields: Fields, entry: Map, key: str, name: str) -> None: ...


class _Text(msgspec.Struct, frozen=True):
    """A field of text that has a pattern."""

    pattern: str
    meaning: str

    def __call__(self, fields: Fields, entry: Map, key: str, name: str) -> None:
        value = fields.text(entry, key, name)
        if value and not self.fits(value):
            fields.report(entry.lines[key], f"{name}: {key!r} must be {self.meaning}")

    def fits(self, value: str) -> bool:
        return value.isprintable() and re.fullmatch(self.pattern, value) is not None


class _Texts(msgspec.Struct, frozen=True):
    """A list of texts that have a pattern."""

    pattern: str
    wrong: str

    def __call__(self, fields: Fields, entry: Map, key: str, name: str) -> None:
        for one in fields.texts(entry, key, name):
            if not re.fullmatch(self.pattern, one):
                fields.report(entry.lines[key], f"{name}: {key!r}: {one!r} {self.wrong}")


class _Components(msgspec.Struct, frozen=True):
    """A mapping from paths in the tree to what comes there."""

    origs: bool  # whether a digest is that of a further orig tarball

    def __call__(self, fields: Fields, entry: Map, key: str, name: str) -> None:
        given = fields.mapping(entry[key], entry.lines[key], f"{name}: {key!r}")
        for path in given or ():
            assert given is not None
            what, line = f"{name}: component {path!r}", given.lines[path]
            if isinstance(given[path], Map):
                if not _PATH.fits(path):
                    fields.report(line, f"{what} must be named by {_PATH.meaning}")
                _component(fields, given[path], line, what)
            elif self.origs:
                if not re.fullmatch("[A-Za-z0-9-]+", path):
                    fields.report(line, f"{name}: {path!r} is no name of an orig tarball")
                _sha256(fields, given, path, name)
            else:
                fields.mapping(given[path], line, what)


def _component(fields: Fields, given: Map, line: int, what: str) -> None:
    """A component: an archive of its own, or what another lorry brings."""
    if ("url" in given) == ("lorry" in given):
        fields.report(line, f"{what} needs either 'url' or 'lorry'")
    allowed = _LORRY_COMPONENT if "lorry" in given else _URL_COMPONENT
    fields.known(given, what, allowed)
    for key in given.keys() & allowed.keys():
        allowed[key](fields, given, key, what)


def _debian_patches(fields: Fields, entry: Map, key: str, name: str) -> None:
    """Whether all of Debian's patches are applied, or a list of those that are."""
    value = entry[key]
    if isinstance(value, Seq) and value:
        _different(fields, entry, key, name, _DEBIAN_PATCH)
    elif not isinstance(value, bool):
        found = "an empty list" if value == [] else kind_of(value)
        message = f"{name}: {key!r} must be true, false or a list of patches, not {found}"
        fields.report(entry.lines[key], message)


def _patches(fields: Fields, entry: Map, key: str, name: str) -> None:
    _different(fields, entry, key, name, _PATH)


def _different(fields: Fields, entry: Map, key: str, name: str, kind: _Text) -> None:
    """A list of different texts of that kind."""
    seen = set()
    given = fields.items(entry, key, name)
    if len(given) > bounds.PATCHES:
        message = f"{name}: {key!r} has more than {bounds.PATCHES:,} files, the limit"
        fields.report(entry.lines[key], message)
        return
    for line, one in given:
        if not isinstance(one, str) or not kind.fits(one):
            shown = repr(one) if isinstance(one, str) else kind_of(one)
            fields.report(line, f"{name}: {key!r}: {shown} must be {kind.meaning}")
        elif one in seen:
            fields.report(line, f"{name}: {key!r}: {one} is there twice: it applies only once")
        else:
            seen.add(one)


def _licenses(fields: Fields, entry: Map, key: str, name: str) -> None:
    """A mapping from packages to their licenses."""
    what = f"{name}: {key!r}"
    given = fields.mapping(entry[key], entry.lines[key], what)
    for package in given or ():
        assert given is not None
        _license(fields, given, package, what)


def _license(fields: Fields, entry: Map, key: str, name: str) -> None:
    value = fields.text(entry, key, name)
    if not value:
        return
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        proper = canonicalize_license_expression(value)
    except InvalidLicenseExpression as error:
        wrong = f"{key!r} must be an SPDX license expression: {str(error) or 'not one'}"
        fields.report(entry.lines[key], f"{name}: {in_line(wrong)}")
    else:
        if proper != value:
            fields.report(entry.lines[key], f"{name}: {key!r}: write it as SPDX does: {proper}")


def _git_url(fields: Fields, entry: Map, key: str, name: str) -> None:
    value = fields.text(entry, key, name)
    if value and not is_git_url(value):
        fields.report(entry.lines[key], f"{name}: {key!r} must be like a git URL")


_PROJECT = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
#: pip treats a name with such an ending as a file in its current folder.
_NO_FILE = r"(?!.*\.(?:zip|whl|tar|tgz|tbz|txz|tlz|tar\.[a-z0-9]+)$)"
_REQUIREMENT = rf"(?i:{_NO_FILE}){_PROJECT}(?:(?:==|>=|<=|~=)[0-9][0-9A-Za-z.]*)?"
_package = _Text(DEBIAN_NAME, "a Debian package's name")
_packages = _Texts(DEBIAN_NAME, "is no package name")
_requirements = _Texts(_REQUIREMENT, "is not like NAME or NAME==VERSION")
_version = _Text(r"[0-9A-Za-z][0-9A-Za-z.+~_-]*", "like 1.2.3")
_ref = _Text(
    r"(?!.*(?:\.\.|//|/\.|\.lock/))[0-9A-Za-z][0-9A-Za-z.+_/-]*(?<!\.lock)(?<![./])",
    "the name of a git tag",
)
_url = _Text(r"https?://[!-~]+|file://\S+", "like https://host/file.tar.gz")
_sha256 = _Text("[0-9a-f]{64}", "the 64 hex digits of a SHA-256")
_tree = _Text(TREE, "the 40 hex digits of a git tree")
_PATH = _Text(
    r"(?!.*(?:^|/)(?:\.\.?|(?i:\.git))(?:/|$))[0-9A-Za-z_.+~=-]+(?:/[0-9A-Za-z_.+~=-]+)*",
    "a path like a/b, without .. and spaces",
)
_STARRED = r"(?!.*(?:^|/)\.\.?(?:/|$))[!-.0-~]+(?:/[!-.0-~]+)*"
_inner = _Text(_STARRED, "a path like src/thing-*.tar.gz, without .. and spaces")
_DEBIAN_PATCH = _Text(_STARRED, "a name like fixes/CVE-*, without .. and spaces")
_lorry = _Text(r"[a-z0-9A-Z_+~][0-9A-Za-z_+.~:/-]*", "the name of a lorry")
SUPPLIER = _Text(r"[^<>]+ <(?:https?://[^<>\s]+|[^<>\s@]+@[^<>\s@]+)>", "like NAME <EMAIL or URL>")
#: Fields of every lorry that an SBOM takes over (`fabric.sbom`).  They change no import.
ABOUT: dict[str, _Check] = {
    "license": _license,
    "purl": _Text(
        r"pkg:[a-z][a-z0-9.+-]*(?:/[A-Za-z0-9._~%+:-]+)+(?:@[A-Za-z0-9._~%+:-]+)?"
        r"(?:\?[A-Za-z0-9._~%+:/,=&-]+)?(?:#[A-Za-z0-9._~%+/-]+)?",
        "a package URL like pkg:github/madler/zlib",
    ),
    "cpe": _Text(
        r"(?:[aoh]:)?[a-z0-9._+-]+:[a-z0-9._+-]+",
        "like VENDOR:PRODUCT, as the CPE dictionary has them",
    ),
    "supplier": SUPPLIER,
    "vex": lorry_vex.check,
}
_URL_COMPONENT: dict[str, _Check] = {
    **{"url": _url, "sha256": _sha256, "inner": _inner, "version": _version},
    **ABOUT,
}
_LORRY_COMPONENT: dict[str, _Check] = {"lorry": _lorry}

#: As `TYPES`, without the fields that all have.
_OWN: dict[str, tuple[dict[str, _Check], dict[str, _Check]]] = {
    "git": ({"url": _git_url}, {}),
    "tarball": (
        {"url": _url, "version": _version},
        {
            **{"sha256": _sha256, "tree": _tree, "ref": _ref, "inner": _inner},
            **{"components": _Components(origs=False), "patches": _patches},
        },
    ),
    "debian-source": (
        {},
        {
            **{"version": _version, "sha256": _sha256, "debian-sha256": _sha256},
            **{"tree": _tree, "ref": _ref, "package": _package, "inner": _inner},
            **{"components": _Components(origs=True), "debian-patches": _debian_patches},
            "patches": _patches,
        },
    ),
    "pypi": (
        {},
        {
            **{"version": _version, "sha256": _sha256, "tree": _tree, "ref": _ref},
            **{"package": _Text(_PROJECT, "a project's name"), "inner": _inner},
            **{"components": _Components(origs=False), "patches": _patches},
        },
    ),
    "debian-packages": (
        {"packages": _packages, "version": _version},
        {
            "exclude": _packages,
            "architecture": _Text(DEBIAN_ARCHITECTURE, "like amd64"),
            "ref": _ref,
            "licenses": _licenses,
        },
    ),
    "pypi-wheels": (
        {
            "packages": _requirements,
            "python": _Text(r"3\.[0-9]{1,3}", "like 3.13"),
            "version": _version,
        },
        {
            "architecture": _Text(r"[a-z0-9_]+", "like x86_64"),
            "ref": _ref,
            "licenses": _licenses,
        },
    ),
}

#: type -> (required fields, optional ones), each with its check.  Fields that an update fills in
#: are optional.
TYPES = {kind: (required, optional | ABOUT) for kind, (required, optional) in _OWN.items()}

_SET = {
    "version": "any name for this set of packages",
    "ref": "the branch that an import makes; default: the version, with `_` for `~`",
}
#: Field, or type.field, -> its meaning, as docs/reference/lorries.md shows it.
MEANINGS = {
    "url": "where the tarball is: `https:`, `http:` or `file:`",
    "git.url": "a git URL, or a path from the folder of the lorry file; all branches and tags are"
    " mirrored",
    "version": "upstream's version",
    "debian-source.version": "upstream's version; with `debian-patches`, Debian's without epoch",
    "ref": "the tag that an import makes, and strata name; default: the version, with `_` for `~`",
    **{
        f"{kind}.{name}": text
        for kind in ("debian-packages", "pypi-wheels")
        for name, text in _SET.items()
    },
    "sha256": "the digest of the tarball, the orig tarball or the source distribution",
    "tree": "the git tree that an import must give",
    "package": "the package's name; default: the last part of the repository's name",
    "inner": "the path of an archive in the downloaded one: only that is imported; `*` stands for"
    " any text without `/`; the top folder may be left out",
    "components": "folder -> what is imported into it, as below",
    "debian-source.components": "folder -> what is imported into it, as below; or name -> SHA-256"
    " of a further orig tarball",
    "patches": "files, by their paths from the folder of the lorry file, applied in this order by"
    " `git apply`",
    "debian-patches": "`true`: apply Debian's own patches first (source format `3.0 (quilt)`); or a"
    " list of those to apply, by their names in `debian/patches`; `*` stands for any text without"
    " `/`",
    "debian-sha256": "the digest of the archive of Debian's patches, `*.debian.tar.*`",
    "license": "the SPDX license expression of what is imported, for the SBOM",
    "licenses": "package of the lock file -> its SPDX license expression, for the SBOM; default:"
    " what the package says",
    "purl": "upstream's package URL, for the SBOM; the version is added; default: `pkg:deb` for"
    " Debian's packages, `pkg:pypi` for Python's, else `pkg:generic`",
    "cpe": "vendor and product, as `zlib:zlib`, or for an operating system, as"
    " `o:linux:linux_kernel`, for the SBOM; the version is added",
    "supplier": "who supplies it, as `NAME <EMAIL or URL>`, for the SBOM; default: Debian for its"
    " packages and sources, else unknown",
    "vex": "statements about vulnerabilities, as below; they count for what the lorry brings, with"
    " the packages and components in it",
    "component.version": "upstream's version, for the SBOM",
    "component.url": "where the archive is, as for `tarball`",
    "component.sha256": "the digest of the archive",
    "component.inner": "as above",
    "component.lorry": "the name of a lorry of type `tarball`, `debian-source` or `pypi`: what it"
    " brings, with its patches and components",
    "packages": "names of packages; their dependencies come along",
    "pypi-wheels.packages": "projects, also as `rich>=14`; their dependencies come along",
    "exclude": "packages that do not come along",
    "architecture": "default `amd64`",
    "pypi-wheels.architecture": "default `x86_64`",
    "python": 'the version of CPython that imports the wheels, such as `"3.13"`',
}
#: Fields that `lorry update` fills in.
FILLED_IN = ("version", "sha256", "debian-sha256", "tree")
#: Fields that are lists of texts.
LISTS = ("packages", "exclude", "patches", "debian-patches")
#: The fields of a component that is no orig tarball: either `lorry`, or the others.
COMPONENT: dict[str, _Check] = {**_URL_COMPONENT, **_LORRY_COMPONENT}

_SEGMENT = r"[A-Za-z0-9_+~][A-Za-z0-9_+.~-]*"
_NAME = re.compile(rf"([a-z][a-z0-9-]+:)?{_SEGMENT}(/{_SEGMENT})*")


def check_entry(fields: Fields, name: str, entry: Any, line: int, text: list[str]) -> None:
    """Report all mistakes in an entry.  ``text``: the file's lines."""
    if not _NAME.fullmatch(name) or ".." in name:
        fields.report(line, f"{name}: this is no name of a repository")
    given = fields.mapping(entry, line, name)
    if given is None:
        return
    kind = fields.text(given, "type", name)
    if kind not in TYPES:
        if kind:
            hint = suggest(kind, TYPES) or f"; known are {listing(TYPES)}"
            fields.report(given.lines["type"], f"{name}: unknown type {kind!r}{hint}")
        return
    required, optional = TYPES[kind]
    others = [field for field in ("patches", "components") if field not in optional]
    for key in others:
        if key in given:
            able = listing(one for one, (_, fields_) in TYPES.items() if key in fields_)
            message = f"{name}: a lorry of type {kind} has no {key!r}: only {able} have"
            if kind == "git":
                message += "; commit the change in the repository, or import a release"
            fields.report(given.lines[key], message)
    fields.known(given, name, {"type", *required, *optional}, but=others)
    if "debian-sha256" in given and not given.get("debian-patches"):
        message = f"{name}: 'debian-sha256' is for 'debian-patches': remove it"
        fields.report(given.lines["debian-sha256"], message)
    for key in required.keys() - given.keys():
        fields.report(line, f"{name}: a lorry of type {kind} needs {key!r}")
    for key in given.keys() - {"type"}:
        check = required.get(key) or optional.get(key)
        if check is None:
            continue
        if misread := _misread(key, given[key], text[given.lines[key] - 1], check):
            fields.report(given.lines[key], f"{name}: {misread}")
        else:
            check(fields, given, key, name)
    default = optional.get("package")
    if isinstance(default, _Text) and "package" not in given and not default.fits(last_part(name)):
        wrong = f"needs 'package', as no package is called {last_part(name)!r}"
        fields.report(line, f"{name}: {wrong}")


def _misread(key: str, value: Any, line: str, check: _Check) -> str | None:
    """The message about a number, date or truth value that was meant as text."""
    written = re.search(rf"\b{key}['\"]?\s*:\s*([^\s,#\]}}]+)", line)
    if isinstance(value, str | list | dict) or not isinstance(check, _Text) or not written:
        return None
    if not check.fits(written[1]):
        return None
    return (
        f"{key!r} must be text, and YAML reads {written[1]} as {kind_of(value)}: write"
        f' {key}: "{written[1]}"'
    )


def last_part(name: str) -> str:
    """The last part of a repository's name, behind alias and folders."""
    return name.rpartition(":")[2].rpartition("/")[2]
