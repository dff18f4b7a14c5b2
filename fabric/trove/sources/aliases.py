"""Maps the name of a repository in the definitions to its location."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fabric import bounds
from fabric.errors import SourceError, without_secrets

#: Aliases that need no configuration: repositories of the trove, imported by lorries or pushed.
DEFAULT_ALIASES = {"upstream": "upstream/%s", "baserock": "baserock/%s"}

_ALIAS = re.compile(r"([a-z][a-z0-9-]+):(?!//)(.+)")
_PART = r"[A-Za-z0-9_+.~@][A-Za-z0-9_+.~@-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")
#: Protocols that git may use: no helper, which would be a program.
_SCHEMES = ("file", "git", "http", "https", "ssh")


class Location(msgspec.Struct, frozen=True):
    """The location of a repository: its directory, and the URL that it mirrors, if any."""

    directory: Path
    url: str | None
    hint: str  # what to do if nothing is there
    name: str = ""  # in the trove: "upstream/zlib.git"; "" for a mirror


class Aliases:
    """Resolves aliases.

    Patterns with a scheme or a leading "/" are git URLs, mirrored in the trove; others are
    directories of the trove.  ``%s`` in a pattern stands for the text behind the alias; without it,
    that text is appended.
    """

    def __init__(self, root: Path, aliases: Mapping[str, str]) -> None:
        self.root = root
        self.aliases = {**DEFAULT_ALIASES, **aliases}

    def locate(self, repo: str) -> Location:
        """The place of ``repo``: ALIAS:NAME, a URL, or a plain name of the trove."""
        alias = _ALIAS.fullmatch(repo)
        if alias and alias[1] in self.aliases:
            pattern, name = self.aliases[alias[1]], alias[2].removesuffix(".git")
            if not is_url(pattern):
                pattern = pattern if "%s" in pattern else f"{pattern.rstrip('/')}/%s"
                return self._local(repo, pattern.replace("%s", name))
            return self._mirror(
                pattern.replace("%s", name) if "%s" in pattern else pattern + name,
                f"the alias {alias[1]} leads there; check it in the settings",
            )
        if is_url(repo):
            hint = "check the URL"
            if alias:
                hint = (
                    f"{alias[1]} is taken for the name of a host, since it is none of the aliases "
                    + ", ".join(sorted(self.aliases))
                )
            return self._mirror(repo, hint)
        return self._local(repo, repo.removesuffix(".git"))

    def relative(self, repo: str, url: str) -> str:
        """The repository of a submodule's ``url`` inside ``repo``: "../x" is beside it."""
        if not url.startswith(("./", "../")):
            return url
        head, separator, path = repo.partition("://")
        alias = _ALIAS.fullmatch(repo)
        if separator:
            host, slash, path = path.partition("/")
            return f"{head}://{host}{slash}{_join(path, url)}"
        if alias:
            return f"{alias[1]}:{_join(alias[2], url)}"
        return _join(repo, url)

    def _local(self, repo: str, name: str) -> Location:
        *folders, last = name.split("/")
        wrong = {".", ".."} & {*folders, last} or any(one.endswith(".git") for one in folders)
        if not _NAME.fullmatch(name) or wrong or len(name) > bounds.REPOSITORY_NAME:
            raise SourceError(
                f"{repo!r} is no name of a repository: give ALIAS:NAME or a git URL;"
                f" aliases are {', '.join(sorted(self.aliases))}"
            )
        directory = self.root / "git" / f"{name}.git"
        return Location(directory, None, f"push it to {directory}", f"{name}.git")

    def _mirror(self, url: str, hint: str) -> Location:
        if not is_git_url(url) or len(url) > bounds.REPOSITORY_URL:
            raise SourceError(f"{url[:200]!r} is no URL of a git repository")
        readable = re.sub(r"[^0-9A-Za-z._-]+", "_", without_secrets(url).removesuffix(".git"))[
            -80:
        ].strip("._-")
        digest = hashlib.sha256(url.encode()).hexdigest()[:12]
        return Location(self.root / "git" / "mirrors" / f"{readable}-{digest}.git", url, hint)


def local_path(url: str) -> Path | None:
    """The directory of a URL, if it is on this machine."""
    path = url.removeprefix("file://")
    return Path(path) if path.startswith("/") else None


def is_url(text: str) -> bool:
    """Whether ``text`` is a URL, an absolute path, or git's short form HOST:PATH of ssh."""
    return "://" in text or text.startswith("/") or bool(re.match(r"[^/]+:", text))


def is_git_url(text: str) -> bool:
    """Whether git may be given ``text`` as a repository's URL or path.

    It is untrusted, so it must not be an option of git or ssh, or name a helper.
    """
    if text.startswith("-") or any(c.isspace() or not c.isprintable() for c in text):
        return False
    scheme, separator, rest = text.partition("://")
    if not separator:
        host, colon, path = text.partition(":")
        if "/" in host or not colon:
            return bool(text)
        return not path.startswith(":") and not re.search(r"(^|@)-", host)
    return scheme in _SCHEMES and not re.search(r"(^|@)-", rest.partition("/")[0])


def _join(path: str, relative: str) -> str:
    """Join paths as git does: ``../b`` from the repository ``a`` is ``b``."""
    joined = posixpath.normpath(posixpath.join(path.rstrip("/"), relative))
    if joined.startswith("../") or joined == "..":
        raise SourceError(f"the submodule URL {relative} leads out of {path}")
    return joined
