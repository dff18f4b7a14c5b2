"""Source distributions from the Python package index that pip is configured to use.

pip itself is not asked to download: for an sdist ``pip download`` runs the project's own build
code to learn its metadata, even with ``--no-deps``.  So pip only tells which index it would use,
and the index page is read here (PEP 503 and PEP 691); nothing downloaded is ever run.
"""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from typing import Any

import msgspec

from fabric.errors import SourceError, command
from fabric.trove.importers import archive
from fabric.trove.importers.commit import Tree
from fabric.trove.importers.debian import MovedError
from fabric.trove.importers.download import Downloads, fetch_text, shown
from fabric.trove.lorries import Lorry

_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_SDIST = (".tar.gz", ".tar.bz2", ".tar.xz", ".zip")
_ASK_PIP = """
import json
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args([])
print(json.dumps({"indexes": [options.index_url, *options.extra_index_urls], "ca": options.cert}))
"""


class Sdist(msgspec.Struct, frozen=True):
    """A source distribution that an index offers."""

    version: str
    url: str
    sha256: str
    headers: Mapping[str, str]
    ca: str | None


def import_sdist(lorry: Lorry, downloads: Downloads) -> list[tuple[str, Tree]]:
    """The tree of a pinned sdist.  MovedError if no index offers it."""
    file = downloads.find(lorry.sha256)
    if file is None:
        offered = offered_sdists(lorry.package)
        for sdist in offered:
            if sdist.sha256 == lorry.sha256:
                file = downloads.get(sdist.sha256, sdist.url, sdist.headers, ca=sdist.ca)
                break
        else:
            same = [sdist.sha256 for sdist in offered if sdist.version == lorry.version]
            now = f"with the digest {same[0]}" if same else "not at all"
            raise MovedError(
                f"{lorry.where}: {lorry.name} pins {lorry.package} {lorry.version} with the"
                f" digest {lorry.sha256}, which the index offers {now};"
                f" run `{command('lorry', 'update', lorry.name)}` to take what is offered"
            )
    return [("", archive.read(file, f"{lorry.package} {lorry.version}"))]


def offered_sdists(package: str) -> list[Sdist]:
    """All sdists of a project, in the order of pip's indexes."""
    found: list[Sdist] = []
    settings = _pip_settings()
    failures = []
    for index in settings["indexes"]:
        url, headers = _without_password(f"{index.rstrip('/')}/{_normal(package)}/")
        try:
            text, kind, final = fetch_text(url, {**headers, "Accept": _ACCEPT}, settings["ca"])
        except OSError as error:
            failures.append(f"{shown(url)}: {error}")
            continue
        for link, sha256 in _links(text, kind):
            name = urllib.parse.unquote(link.rpartition("/")[2])
            version = _version(name, package)
            if version and sha256:
                full = urllib.parse.urljoin(final, link)
                found.append(Sdist(version, full, sha256, headers, settings["ca"]))
    if not found:
        reason = "; ".join(failures) or "the index has no source distribution of it"
        raise SourceError(f"{package}: cannot be had from the Python package index: {reason}")
    return found


def newest(sdists: list[Sdist]) -> Sdist:
    """The one of the highest final version (a pre-release only if there is nothing else)."""

    def rank(sdist: Sdist) -> tuple[bool, list[int]]:
        final = re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", sdist.version) is not None
        return final, [int(number) for number in re.findall(r"\d+", sdist.version)]

    return max(sdists, key=rank)


def _pip_settings() -> dict[str, Any]:
    """pip's indexes and certificates, as its files, the environment and its defaults say."""
    for python in (sys.executable, "python3"):
        asked = subprocess.run(
            [python, "-P", "-c", _ASK_PIP], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            settings: dict[str, Any] = json.loads(asked.stdout)
            return settings
    raise SourceError(
        "pip is not installed for python3, so there is no telling which package index to use:"
        " install it (Debian: python3-pip)"
    )


def _links(text: str, kind: str) -> list[tuple[str, str]]:
    """(URL, sha256 or "") of all files on an index page."""
    if kind == "application/vnd.pypi.simple.v1+json":
        return [(one["url"], one["hashes"].get("sha256", "")) for one in json.loads(text)["files"]]
    parser = _Anchors()
    parser.feed(text)
    links = []
    for link in parser.links:
        url, _, fragment = link.partition("#")
        links.append((url, dict(urllib.parse.parse_qsl(fragment)).get("sha256", "")))
    return links


class _Anchors(html.parser.HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(file: str, package: str) -> str | None:
    """The version in an sdist's file name; None if it is no sdist of that project."""
    for suffix in _SDIST:
        stem = file.removesuffix(suffix)
        if stem != file:
            for cut in re.finditer("-", stem):
                name, version = stem[: cut.start()], stem[cut.end() :]
                if _normal(name) == _normal(package) and version[:1].isdigit():
                    return version
    return None


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """A URL without user and password, and the header that says them instead."""
    import base64

    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return url, {}
    user = urllib.parse.unquote(parts.username)
    secret = urllib.parse.unquote(parts.password or "")
    token = base64.b64encode(f"{user}:{secret}".encode()).decode()
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {token}"}
