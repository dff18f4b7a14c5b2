"""Makes package URLs (purl), CPE names, and identifiers of the formats."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from urllib.parse import quote

from packageurl import PackageURL

from fabric.errors import without_secrets
from fabric.trove.sources.lock_files import Locked

_GITHUB = re.compile(
    r"(?:https?|git|ssh)://(?:[^/@]*@)?github\.com/([A-Za-z0-9-]+)/([A-Za-z0-9._-]+?)"
    r"(?:\.git|/(?:archive|releases)/.*)?/?"
)
#: What Debian adds to the version of a source that it made smaller.
_REPACKED = re.compile(r"[.+~-](?:dfsg|ds|repack|orig)[0-9.]*$")
_PUNCTUATION = re.compile(r"[^A-Za-z0-9]+")
#: What stands for itself in a URI (RFC 3986), beside letters and digits.
_URI = "-._~:/?#[]@!$&'()*+,;=%"
#: What a CPE name has without a backslash before it.
_PLAIN = re.compile(r"[^A-Za-z0-9_]")


def purl(
    kind: str, name: str, version: str, namespace: str = "", qualifiers: Mapping[str, str] = {}
) -> str:
    """A package URL, in its canonical form; "" if none can be made of these texts."""
    given = {key: value for key, value in qualifiers.items() if value}
    try:
        made = PackageURL(kind, namespace or None, name, version or None, given).to_string()
        PackageURL.from_string(made)
    except (TypeError, ValueError):  # a version of blanks is a TypeError
        return ""
    return made


def with_version(given: str, version: str) -> str:
    """A package URL of the definitions with a version, unless it has one.  ValueError."""
    parsed = PackageURL.from_string(given)
    if not parsed.version and version:
        parsed = parsed._replace(version=version)
    return parsed.to_string()


def is_ubuntus(version: str) -> bool:
    """Whether a package of that version is Ubuntu's."""
    return "ubuntu" in version


def debian(package: Locked) -> str:
    """The package URL of a Debian binary package."""
    vendor = "ubuntu" if is_ubuntus(package.version) else "debian"
    return purl("deb", package.name, package.version, vendor, {"arch": package.architecture})


def debian_source(name: str, version: str) -> str:
    """The package URL of a Debian source package."""
    vendor = "ubuntu" if is_ubuntus(version) else "debian"
    return purl("deb", name, version, vendor, {"arch": "source"})


def wheel(package: Locked) -> str:
    """The package URL of a distribution of Python's index."""
    return pypi(package.name, package.version)


def pypi(name: str, version: str) -> str:
    return purl("pypi", re.sub(r"[-_.]+", "-", name).lower(), version)


def generic(name: str, version: str, url: str = "", sha256: str = "") -> str:
    """The package URL of a tarball; of a release on GitHub, that of its project."""
    if found := _GITHUB.fullmatch(url):
        return purl("github", found[2], version, found[1])
    checksum = f"sha256:{sha256}" if sha256 else ""
    return purl("generic", name, version, "", {"download_url": url, "checksum": checksum})


def repository(name: str, version: str, url: str, commit: str) -> str:
    """The package URL of a git repository at a commit."""
    if found := _GITHUB.fullmatch(url):
        return purl("github", found[2], commit or version, found[1])
    place = f"git+{url}" if url else ""
    vcs = f"{place}@{commit}" if place and commit else place
    return purl("generic", name, version, "", {"vcs_url": vcs})


def upstream_version(version: str, *, revised: bool = False) -> str:
    """Upstream's version in that of a Debian source, as ``1.3.dfsg+really1.3.1-2``.

    ``revised``: the version has Debian's revision.
    """
    if revised:
        version = version.rpartition("-")[0] or version
    version = version.rpartition("+really")[2] or version
    return _REPACKED.sub("", version) or version


def as_spelled(version: str, other: str) -> str:
    """``other`` if it differs from ``version`` in punctuation only, else ``version``.

    Debian writes upstream's 6.5-20250216 as 6.5+20250216, which scanners take for 6.5.
    """
    alike = [_PUNCTUATION.sub(".", one) for one in (version, other)]
    return other if alike[0] == alike[1] else version


def public_url(url: str) -> str:
    """A URL without secrets, as RFC 3986 has them; "" for a path or file of this machine."""
    if "://" not in url or url.startswith("file:"):
        return ""
    return quote(without_secrets(url), safe=_URI)


def cpe(given: str, version: str) -> str:
    """The CPE 2.3 name of ``[PART:]VENDOR:PRODUCT``; without a part: of an application."""
    *part, vendor, product = given.split(":")
    parts = [*(part or ["a"]), escaped(vendor), escaped(product), escaped(version) or "*"]
    return f"cpe:2.3:{':'.join(parts)}:*:*:*:*:*:*:*"


def escaped(text: str) -> str:
    return _PLAIN.sub(lambda found: found[0] if found[0] in "-." else f"\\{found[0]}", text)


def safe(ref: str) -> str:
    """A ref as the identifiers of SPDX 2 allow it: different refs stay different."""
    plain = re.sub(r"[^A-Za-z0-9.-]", "-", ref)
    if plain == ref:
        return f"c-{ref}"
    return f"x-{plain}-{hashlib.sha256(ref.encode()).hexdigest()[:12]}"
