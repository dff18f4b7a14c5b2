"""Imports source distributions from pip's configured package index.

Downloaded code never runs.  For an sdist, ``pip download`` runs the project's own build code to get
its metadata, even with ``--no-deps``.  So pip only prints its configured index, and the index page
is read here (PEP 503 and PEP 691).
"""

from __future__ import annotations

import contextlib
import html.parser
import json
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fabric.digest import Digest
from fabric.errors import SourceError, command
from fabric.trove.importers import archive
from fabric.trove.importers.commit import Tree
from fabric.trove.importers.debian import MovedError
from fabric.trove.importers.download import Downloads, WrongDigest, fetch_text, shown
from fabric.trove.sources.lorries import Lorry

_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_SDIST = (".tar.gz", ".tar.bz2", ".tar.xz", ".zip")
_ASK_PIP = """
import json
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args([])
print(json.dumps({"indexes": [options.index_url, *options.extra_index_urls], "ca": options.cert}))
"""


#: A version in PEP 440 and in file names of sdists.
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+_-]*")


class Sdist(msgspec.Struct, frozen=True):
    """A source distribution that an index offers."""

    version: str
    url: str
    sha256: Digest
    headers: Mapping[str, str]
    ca: str | None
    yanked: bool = False  # withdrawn by its authors: only existing pins may use it


def import_sdist(lorry: Lorry, downloads: Downloads) -> list[tuple[str, Tree]]:
    """The tree of a pinned sdist.  MovedError if no index offers it."""
    pinned = lorry.digests[""]
    file = downloads.find(pinned)
    if file is None:
        offered = offered_sdists(lorry.package, downloads.directory)
        where = f"{lorry.where}: {lorry.name}"
        same = [sdist for sdist in offered if sdist.version == lorry.version]
        for sdist in offered:
            if sdist.sha256 == pinned:
                if sdist.yanked:
                    downloads.progress(f"warning: {where}: {lorry.version} has been yanked")
                file = downloads.get(pinned, sdist.url, sdist.headers, ca=sdist.ca, pinned_by=where)
                break
        else:
            if same:
                raise WrongDigest(
                    f"{where}: {lorry.package} {lorry.version}",
                    pinned,
                    same[0].sha256,
                    shown(same[0].url),
                )
            raise MovedError(
                f"{where} pins {lorry.package} {lorry.version}, which the index does not offer;"
                f" `{command('lorry', 'update', lorry.name)}` takes the newest if it is newer"
            )
    return [("", archive.read(file, f"{lorry.package} {lorry.version}"))]


def offered_sdists(package: str, folder: Path) -> list[Sdist]:
    """All sdists of a project, in the order of pip's indexes.  ``folder``: see `pip_command`."""
    found: list[Sdist] = []
    settings = _pip_settings(folder)
    failures = []
    for index in settings["indexes"]:
        url, headers = _without_password(f"{index.rstrip('/')}/{_normal(package)}/")
        try:
            text, kind, final = fetch_text(url, {**headers, "Accept": _ACCEPT}, settings["ca"])
            links = _links(text, kind)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            failures.append(f"{shown(url)}: {error}")
            continue
        for link, sha256, yanked in links:
            name = urllib.parse.unquote(link.rpartition("/")[2])
            version = version_in(name, package)
            full = urllib.parse.urljoin(final, link)
            if version and sha256 and full.startswith(("http:", "https:")):
                # a password is for the index alone
                ours = headers if _host(full) == _host(url) else {}
                found.append(Sdist(version, full, sha256, ours, settings["ca"], yanked))
    if not found:
        reason = "; ".join(failures) or "the index has no source distribution of it"
        raise SourceError(f"{package}: cannot be had from the Python package index: {reason}")
    return found


def newest(sdists: list[Sdist]) -> Sdist | None:
    """The sdist with the highest final version (a pre-release only if there is no other).

    Yanked ones, and invalid versions, are skipped; None if nothing is left.
    """
    from packaging.version import InvalidVersion, Version

    def rank(sdist: Sdist) -> tuple[bool, Version]:
        version = Version(sdist.version)
        return not version.is_prerelease, version

    ranked = []
    for sdist in sdists:
        with contextlib.suppress(InvalidVersion):
            if not sdist.yanked:
                ranked.append((rank(sdist), sdist))
    return max(ranked, key=lambda one: one[0])[1] if ranked else None


def pip_command(folder: Path, *args: str) -> list[str]:
    """The command line of a Python that has pip; run it in ``folder``, which must be ours.

    Python imports modules, and pip finds packages, in the current folder, and a user's may have
    anybody's definitions.  SourceError if there is no pip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for python in (sys.executable, "python3"):
        asked = [python, "-P", "-c", "import pip"]
        if subprocess.run(asked, capture_output=True, cwd=folder, check=False).returncode == 0:
            return [python, "-P", *args]
    raise SourceError(
        "the Python package index is asked through pip: install it for python3 (Debian:"
        " python3-pip)"
    )


def _pip_settings(folder: Path) -> dict[str, Any]:
    """pip's indexes and certificates, from its files, the environment and its defaults."""
    asked = subprocess.run(
        pip_command(folder, "-c", _ASK_PIP),
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if asked.returncode:
        raise SourceError(f"pip does not print its settings: {asked.stderr.strip()[-400:]}")
    settings: dict[str, Any] = json.loads(asked.stdout)
    return settings


def _links(text: str, kind: str) -> list[tuple[str, Digest | None, bool]]:
    """(URL, SHA-256, whether it is yanked) of all files on an index page (PEP 503, 592, 691)."""
    if kind == "application/vnd.pypi.simple.v1+json":
        return [
            (str(one["url"]), _digest(one["hashes"].get("sha256")), bool(one.get("yanked")))
            for one in json.loads(text)["files"]
        ]
    parser = _Anchors()
    parser.feed(text)
    links = []
    for link, yanked in parser.links:
        url, _, fragment = link.partition("#")
        links.append((url, _digest(dict(urllib.parse.parse_qsl(fragment)).get("sha256")), yanked))
    return links


def _digest(text: object) -> Digest | None:
    with contextlib.suppress(ValueError):
        return Digest(str(text))
    return None


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]


class _Anchors(html.parser.HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []  # (URL, whether it is yanked)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and (link := given.get("href")):
            self.links.append((link, "data-yanked" in given))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def version_in(file: str, package: str) -> str | None:
    """The version in an sdist's file name; None if it is no sdist of that project."""
    for suffix in _SDIST:
        stem = file.removesuffix(suffix)
        if stem != file:
            for cut in re.finditer("-", stem):
                name, version = stem[: cut.start()], stem[cut.end() :]
                if _normal(name) == _normal(package) and _VERSION.fullmatch(version):
                    return version
    return None


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """A URL without user and password, and the header that has them instead."""
    import base64

    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return url, {}
    user = urllib.parse.unquote(parts.username)
    secret = urllib.parse.unquote(parts.password or "")
    token = base64.b64encode(f"{user}:{secret}".encode()).decode()
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {token}"}
