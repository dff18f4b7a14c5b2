"""Finds the license of a source: in Debian's copyright files, package metadata, and license files.

Nothing is guessed.  A file whose text is no license that the detector knows, or that leaves open
whether later versions of a GNU license apply, gives no expression, and is named instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from email.parser import HeaderParser

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from fabric import bounds

#: Files at the top of a source that say what its license is.
_NAMES = re.compile(
    r"(?:un)?licen[cs]e(?:[._-].*)?|copying(?:[._-].*)?|copyright(?:[._-].*)?", re.IGNORECASE
)
#: The folder of REUSE: a file for each license, with the SPDX identifier as its name.
_REUSE = re.compile(r"LICENSES/([A-Za-z0-9.+-]+)\.txt")
#: In Debian's own programs, and in sources with Debian's patches.
_DEBIANS = "debian/copyright"
_CODE = re.compile(r".*\.(?:c|h|py|pl|sh|go|rs|html?|png|patch)", re.IGNORECASE)
#: GNU licenses without "only" or "or later".
_OPEN = re.compile(r"(?:A?GPL|LGPL|GFDL)-[0-9.]+")

_GNU = re.compile(r"(a?gpl|lgpl|gfdl)(-niv)?(?:-v?([0-9])(?:\.([0-9]))?)?(\+)?")
_DEBIAN = {
    "apache": "LicenseRef-debian-apache",
    "artistic": "Artistic-1.0-Perl",
    "artistic-1": "Artistic-1.0-Perl",
    "artistic-2": "Artistic-2.0",
    "expat": "MIT",
    "perl": "Artistic-1.0-Perl OR GPL-1.0-or-later",
    "psf-2": "PSF-2.0",
}
_EXCEPTIONS = {
    "autoconf": "Autoconf-exception-generic",
    "bison": "Bison-exception-2.2",
    "font": "Font-exception-2.0",
    "gcc": "GCC-exception-3.1",
    "gcc-runtime": "GCC-exception-3.1",
    "libtool": "Libtool-exception",
}


def speaks(path: str) -> bool:
    """Whether a file of a source, by its path, may say what its license is."""
    if "/" in path:
        return path == _DEBIANS or bool(_REUSE.fullmatch(path))
    return path == "PKG-INFO" or bool(_NAMES.fullmatch(path) and not _CODE.fullmatch(path))


def found(files: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The expression of a source's files (path -> text), and the files that speak of licenses.

    "" if the files leave it open.
    """
    named = tuple(sorted(path for path in files if path != "PKG-INFO"))
    if "PKG-INFO" in files and (stated := of_metadata(files["PKG-INFO"])):
        return stated, named
    if stated := of_debian_copyright(files.get(_DEBIANS, "")):
        return stated, named
    if reuse := [match[1] for path in named if (match := _REUSE.fullmatch(path))]:
        return _joined(map(canonical, reuse)), named
    return _joined(_identified(files[path]) for path in named if path != _DEBIANS), named


def _identified(text: str) -> str:
    """The expression of a license's text; "" if it is not known for certain."""
    from licenseclassifier import identify_license

    ids = {one.id for one in identify_license(text)}
    return "" if any(_OPEN.fullmatch(one) for one in ids) else _joined(map(canonical, ids))


def of_metadata(text: str) -> str:
    """The expression in the metadata of a Python distribution (PEP 639); "" without one."""
    return canonical(HeaderParser().parsestr(text).get("License-Expression", ""))


def canonical(expression: str) -> str:
    """An SPDX expression in its canonical form; "" if it is none."""
    if not expression or len(expression) > bounds.SBOM_LICENSE:
        return ""
    try:
        return canonicalize_license_expression(expression)
    except (InvalidLicenseExpression, RecursionError):
        return ""


def _joined(expressions: Iterable[str]) -> str:
    """All of the expressions together; "" if one is "", there are none, or they are too long."""
    return canonical(together(expressions))


def together(expressions: Iterable[str]) -> str:
    """All of the expressions, each once; "" if one is "", or there are none."""
    parts = set()
    for one in expressions:
        parts |= {one} if "(" in one or " OR " in one else set(one.split(" AND "))
    if "" in parts or len(parts) == 1:
        return "" if "" in parts else parts.pop()
    grouped = (f"({one})" if " OR " in one or "(" in one else one for one in parts)
    return " AND ".join(sorted(grouped))


# -- Debian's copyright files ----------------------------------------------------------------


def of_debian_copyright(text: str) -> str:
    """The expression of a machine-readable copyright file (DEP-5); "" if it is none.

    Files of the packaging, ``debian/*``, do not count.  A name that SPDX lacks becomes
    ``LicenseRef-debian-NAME``; a text without a name, ``LicenseRef-debian-unnamed``.
    """
    from debian.deb822 import Deb822

    if not text.startswith("Format:"):
        return ""
    names = set()
    try:
        for paragraph in Deb822.iter_paragraphs(text, use_apt_pkg=False):
            files = paragraph.get("Files", "").split()
            if files and not all(one.startswith("debian/") for one in files):
                names.add(paragraph.get("License", "").partition("\n")[0].strip())
    except ValueError:
        return ""
    return _joined(term for name in names for term in _debian_terms(name))


def _debian_terms(synopsis: str) -> list[str]:
    """The licenses of ``GPL-2+ or Artistic, and BSD-3-clause`` that apply together.

    "and" binds more than "or", and less after a comma.
    """
    text = " ".join(synopsis.split()).replace(", or ", " or ")
    terms: list[str] = []
    for group in re.split(r",\s+and\s+", text):
        choices = [
            [_debian_license(one) for one in re.split(r"\s+and\s+", choice)]
            for choice in re.split(r"\s+or\s+", group)
        ]
        if len(choices) == 1:
            terms += choices[0]
        else:
            joined = (" AND ".join(f"({x})" if " OR " in x else x for x in c) for c in choices)
            terms.append(" OR ".join(f"({one})" if " AND " in one else one for one in joined))
    return terms


def _debian_license(name: str) -> str:
    plain, _, exception = name.lower().partition(" with ")
    plain = plain.strip().rstrip(",")
    if known := _DEBIAN.get(plain):
        license = known
    elif gnu := _GNU.fullmatch(plain):
        family, invariants, major, minor, later = gnu.groups()
        if major is None:  # no version is named: any will do
            major, later = ("2" if family == "lgpl" else "1"), "+"
        license = f"{family.upper()}-{major}.{minor or 0}"
        license += "-no-invariants" if invariants else ""
        license += "-or-later" if later else "-only"
    else:
        license = plain
    if exception:
        added = _EXCEPTIONS.get(exception.removesuffix(" exception").strip())
        license = f"{license} WITH {added}" if added else ""
    if proper := canonical(license):
        return proper
    return f"LicenseRef-debian-{re.sub('[^A-Za-z0-9.]+', '-', name).strip('-') or 'unnamed'}"
