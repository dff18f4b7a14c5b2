"""Proposes lorries for sources that have no known origin, when definitions migrate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fabric.bounds import DEFINITIONS_FILE
from fabric.commands.shared.new_lorry import names_at_top
from fabric.definitions.located_yaml import Map, Seq, parse
from fabric.errors import Problem, SourceError
from fabric.trove.sources.lorry_entries import composed
from fabric.trove.sources.lorry_fields import last_part

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabric.trove.sources.resolve import Sources

#: Folder of the old trove -> type of the lorry, and the package of its source NAME.
_FOLDERS = {
    "python-packages": ("pypi", "{}"),
    "xstatic-packages": ("pypi", "{}"),
    "cpan": ("debian-source", "lib{}-perl"),
    "ruby-gems": ("debian-source", "ruby-{}"),
}
#: Baserock's own sources have no package; this address leads nowhere, and a person replaces it.
_OWN = "baserock"
_NOWHERE = "https://example.invalid/{}.git"


class LocalSource:
    """The files of a source that this machine has."""

    def __init__(self, sources: Sources, repo: str, commit: str) -> None:
        self._repository = sources.repository(repo)
        self._commit = commit
        self.names = names_at_top(self._repository, commit)

    def read(self, name: str) -> bytes | None:
        """The content of a file at its top; None if there is none, or it is too large."""
        if name not in self.names:
            return None
        content = self._repository.run("cat-file", "blob", f"{self._commit}:{name}", check=False)
        return content if content is None or len(content) <= DEFINITIONS_FILE else None


def local_source(
    sources: Sources, repo: str, ref: str, *, fetch: bool = False
) -> LocalSource | None:
    """A source at a ref, else at the one that its lorry brings; None if it is not at hand.

    ``fetch``: fetch or import it.  SourceError if that fails.
    """
    if fetch:
        return LocalSource(sources, repo, sources.obtain(repo, ref))
    lorry = sources.lorries.get(repo)
    refs = (ref, lorry.ref) if lorry is not None and lorry.ref else (ref,)
    commits = (sources.at_hand(repo, one) for one in refs)
    commit = next(filter(None, commits), None)
    return LocalSource(sources, repo, commit) if commit else None


class Scaffolds:
    """New entries of lorry files, and a question about each."""

    def __init__(self, sources: Sources, read: Callable[[str], bytes | None]) -> None:
        self._sources = sources
        self._read = read
        self._seen: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.questions: list[Problem] = []

    def propose(self, stratum: str, data: bytes) -> None:
        """Propose lorries for the chunks of a stratum: a file of the stratum's name."""
        given = parse(data, stratum, [])
        listed = given.get("chunks") if isinstance(given, Map) else ()
        for spec in listed if isinstance(listed, Seq) else ():
            repo = spec.get("repo", spec.get("name")) if isinstance(spec, Map) else None
            ref = spec.get("ref") if isinstance(spec, Map) else None
            if isinstance(repo, str) and isinstance(ref, str):
                line = spec.lines.get("repo", spec.line)
                self._source(stratum, line, repo.removesuffix(".git"), ref)

    def _source(self, stratum: str, line: int, repo: str, ref: str) -> None:
        if repo in self._seen:
            return
        self._seen.add(repo)
        sources = self._sources
        try:
            if sources.lorries.get(repo) or sources.at_hand(repo, ref):
                return
            if (url := sources.locate(repo).url) is not None:
                self._foreign(stratum, line, repo, url)
                return
            name = repo.removeprefix("upstream:")
            kind, fields = _guess(name)
            entry = composed(name, kind, fields)
        except SourceError as error:
            text = f"{repo}: no lorry is proposed: {error}"
            self.questions.append(Problem(stratum, line, text))
            return
        file = f"sources/{Path(stratum).stem}.lorry"
        before = self.files.get(file, self._read(file) or b"").rstrip(b"\n")
        content = before + b"\n\n" * bool(before)
        self.files[file] = content + entry.encode()
        origin = fields.get("url") or f"{kind} {fields.get('package', last_part(name))}"
        text = f"{name}: from {origin}? For {ref[:12]} in {stratum}:{line}"
        self.questions.append(Problem(file, content.count(b"\n") + 1, text))

    def _foreign(self, stratum: str, line: int, repo: str, url: str) -> None:
        """Ask for an alias that the settings lack: its repositories look like hosts of ssh."""
        alias, _, rest = repo.partition(":")
        if url == repo and rest and not rest.startswith("//") and alias not in self._seen:
            self._seen.add(alias)
            text = f"{repo}: the alias {alias!r} is not in the settings: add it to 'aliases'"
            self.questions.append(Problem(stratum, line, text))


def _guess(name: str) -> tuple[str, dict[str, str]]:
    """The type and fields of a lorry for a repository of the old trove."""
    if name.startswith(f"{_OWN}:"):
        return "git", {"url": _NOWHERE.format(name.partition(":")[2])}
    folder = name.partition("/")[0]
    kind, pattern = _FOLDERS.get(folder, ("debian-source", "{}"))
    last = last_part(name)
    package = pattern.format(last) if kind == "pypi" else pattern.format(last).lower()
    return kind, {} if package == last else {"package": package}
