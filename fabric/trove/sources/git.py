"""Accesses the trove's bare git repositories: by git's command line, and by shortcuts past it.

A fully cached build resolves dozens of refs; starting git for each would take longer than all the
rest.  So refs are read from the repository's files.  Facts about a commit (its tree, its
submodules) never change, so they are kept in a file `facts` inside the repository.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import zlib
from pathlib import Path

import msgspec

from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.host.files import clear, recall
from fabric.host.progress import Progress
from fabric.host.shared_files import scratch
from fabric.trove.sources.git_process import (
    DamagedRepositoryError,
    entries,
    environment,
    popen,
    run,
    talk,
)

SHA = re.compile(r"[0-9a-f]{40}")
#: Names of refs that git accepts, approximately.
REF = re.compile(r"(?!-)(?!.*(\.\.|@\{|//|/\.|\.lock(/|$)))[^\x00-\x20\x7f~^:?*\[\\]+(?<![./])")
_OBJECT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")  # a foreign repository may have SHA-256
_NO_REFS = "packed-refs has something other than refs"
_HEAD = re.compile(rb"(ref: refs/[^\0]+|[0-9a-f]{40})\n*")
_IMPORT_KEY = re.compile(rb"^Import-Key: ([0-9a-f]{64})$", re.M)
#: The bit of ``git fsck``'s exit code for objects that their authors made irregular.
_ODD = 1
#: Seconds without a write after which a temporary pack is a leftover.
ABANDONED = 3600.0
#: Settings of every repository of the trove, independent of the user's.
_SETTINGS = (
    "gc.auto=0",  # gc in the background would race with us, and drop unreferenced commits
    "maintenance.auto=false",
    "fetch.unpackLimit=1",  # packs, not thousands of loose files
    "core.fsync=committed",
    "uploadpack.allowAnySHA1InWant=true",  # a worker fetches commits by id
)


class Fact(msgspec.Struct, frozen=True):
    """The facts about a commit, which never change."""

    tree: str
    import_key: str  # of the lorry import that made it; "" for any other commit
    submodules: tuple[tuple[str, str, str], ...]  # (path, commit, URL in .gitmodules or "")


class Repository:
    """The bare repository at ``path``, which need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts: dict[str, Fact | str] | None = None

    @property
    def exists(self) -> bool:
        """Whether it exists.  DamagedRepositoryError if it is incomplete."""
        try:
            head = (self.path / "HEAD").read_bytes()
        except FileNotFoundError:
            if self.path.exists():
                raise self._damaged("HEAD is missing") from None
            return False
        if not _HEAD.fullmatch(head):
            raise self._damaged("HEAD has something other than a ref")
        return True

    def _damaged(self, why: str) -> DamagedRepositoryError:
        return DamagedRepositoryError(self.path, f"a damaged repository: {why}")

    def check(self) -> None:
        """DamagedRepositoryError if its files are not those of a repository."""
        if self.exists and not all(map(_OBJECT.fullmatch, self._packed().values())):
            raise self._damaged(_NO_REFS)

    def examine(self) -> None:
        """Read all objects.  DamagedRepositoryError if one is missing or damaged.

        The facts are forgotten, and found again later.
        """
        clear(self.path / "facts")
        self._facts = None
        self.check()
        if not self.exists:
            return
        with popen(
            self.path, ["fsck", "--full", "--no-dangling", "--no-reflogs", "--no-progress"]
        ) as git:
            assert git.stdout is not None
            while git.stdout.read(1 << 16):
                pass
        if git.returncode & ~_ODD:
            raise self._damaged("git fsck finds faults in it")

    def remove(self) -> None:
        """Remove it; it is renamed first."""
        import shutil

        with scratch(self.path.parent, "removing-") as folder:
            self.path.rename(folder / "old")
            shutil.rmtree(folder / "old")
        self._facts = None

    def create(self, *, cache: bool = False) -> None:
        """Make it, empty, if it does not exist; otherwise remove leftovers of killed fetches.

        DamagedRepositoryError if it is incomplete; but a damaged ``cache``, whose contents can be
        fetched again, is made anew.
        """
        try:
            there = self.exists
        except DamagedRepositoryError:
            if not cache:
                raise
            self.remove()
            there = False
        if not there:
            self._make()
        # leftovers of killed fetches, which git's own gc, if it were on, would remove
        for half in self.path.glob("objects/pack/tmp_*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - half.stat().st_mtime > ABANDONED:
                    half.unlink()

    def _make(self) -> None:
        """Make it under another name, then rename it: it is complete whenever it exists."""
        with scratch(self.path.parent, "making-") as folder:
            fresh = Repository(folder / self.path.name)
            run(["init", "--quiet", "--bare", "--initial-branch=main", str(fresh.path)])
            for setting in _SETTINGS:
                name, _, value = setting.partition("=")
                fresh.run("config", name, value)
            try:
                fresh.path.rename(self.path)
            except OSError as error:
                if not self.exists:  # otherwise another process was faster
                    raise SourceError(f"{self.path}: cannot be made: {error.strerror}") from error

    # -- reading without git -----------------------------------------------------------------

    def find(self, ref: str) -> tuple[str, str] | None:
        """The commit of ``ref`` and the full name of the ref ("" for a commit's id).

        Tags precede branches, as in git.  None if there is no such ref or commit.
        """
        if not self.exists:
            return None
        if SHA.fullmatch(ref):
            return (ref, "") if self._has_commit(ref) else None
        if not REF.fullmatch(ref):
            return None
        for prefix in ("refs/tags/", "refs/heads/", "refs/", ""):
            name = prefix + ref
            if name.startswith("refs/") and (found := self.commit_at(name)):
                return found, name
        return None

    def commit_at(self, name: str) -> str | None:
        """The commit of a ref, given by its full name; None if there is none."""
        found = self.target(name)
        return None if found is None else self._peeled(found)

    def target(self, name: str) -> str | None:
        """The object of a ref, given by its full name; a tag may be peeled or not."""
        found = self._loose(name) or self._packed().get(name)
        if found is not None and not _OBJECT.fullmatch(found):
            raise self._damaged(_NO_REFS)
        return found

    def _loose(self, name: str, depth: int = 5) -> str | None:
        try:
            content = (self.path / name).read_text().strip()
        except OSError:
            return None
        except UnicodeDecodeError:
            content = ""
        if content.startswith("ref: ") and depth:
            target = content[5:]
            return self._loose(target, depth - 1) or self._packed().get(target)
        if not _OBJECT.fullmatch(content):
            raise self._damaged(f"{name} has something other than a ref")
        return content

    def _packed(self) -> dict[str, str]:
        """Name -> object of all packed refs; annotated tags are peeled."""
        refs: dict[str, str] = {}
        last = ""
        try:
            lines = (self.path / "packed-refs").read_text().splitlines()
        except FileNotFoundError:
            return refs
        except UnicodeDecodeError:
            raise self._damaged("packed-refs is no text") from None
        for line in lines:
            if line.startswith("^"):
                refs[last] = line[1:]
            elif not line.startswith("#"):
                sha, _, last = line.partition(" ")
                refs[last] = sha
        return refs

    # -- facts -------------------------------------------------------------------------------

    def fact(self, commit: str) -> Fact:
        """The facts about a commit.  DamagedRepositoryError if the repository lacks it."""
        known = self._known().get(commit)
        if isinstance(known, Fact):
            return known
        fact = self._examine(commit)
        self._note(["commit", commit, fact.tree, fact.import_key, fact.submodules])
        self._known()[commit] = fact
        return fact

    def learn(self, commit: str, tree: str) -> None:
        """Record a commit that was just made here: it has no submodules, and no import made it."""
        if commit not in self._known():
            self._note(["commit", commit, tree, "", []])
            self._known()[commit] = Fact(tree, "", ())

    def _has_commit(self, commit: str) -> bool:
        if commit in self._known():
            return True
        return self.run("cat-file", "-e", commit + "^{commit}", check=False) is not None

    def _peeled(self, sha: str) -> str | None:
        """The commit that an object is or leads to; None if that is a tree or blob."""
        known = self._known().get(sha)
        if known is None:
            found = self.run("rev-parse", "--verify", sha + "^{commit}", check=False)
            if found is None:
                kind = self.run("cat-file", "-t", sha + "^{}", check=False)
                if kind in (b"blob\n", b"tree\n"):
                    return None
                raise self._damaged(f"{sha}, where a ref leads, cannot be read")
            commit = found.decode().strip()
            if commit != sha:
                self._note(["tag", sha, commit])
                self._known()[sha] = commit
            return commit
        return sha if isinstance(known, Fact) else known

    def _known(self) -> dict[str, Fact | str]:
        if self._facts is None:
            self._facts = {}
            for line in recall(self.path / "facts").splitlines():
                sum, _, fact = line.partition(b" ")
                if sum == _sum(fact):  # a line torn by a crash is ignored
                    self._learn(json.loads(fact))
        return self._facts

    def _learn(self, line: list[object]) -> None:
        assert self._facts is not None
        match line:
            case ["commit", str(sha), str(tree), str(key), list(modules)]:
                self._facts[sha] = Fact(tree, key, tuple((p, c, u) for p, c, u in modules))
            case ["tag", str(sha), str(commit)]:
                self._facts[sha] = commit

    def _note(self, line: list[object]) -> None:
        # One write in append mode is atomic; the leading newline ends a torn line.
        fact = json.dumps(line).encode()
        data = b"\n" + _sum(fact) + b" " + fact + b"\n"
        with contextlib.suppress(OSError):  # a cache, which a read-only trove lacks
            handle = self._opened_facts()
            try:
                os.write(handle, data)
            finally:
                os.close(handle)

    def _opened_facts(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return os.open(self.path / "facts", flags, 0o644)
        except OSError:  # a folder, a link or a pipe has its name
            clear(self.path / "facts")
            return os.open(self.path / "facts", flags, 0o644)

    def _examine(self, commit: str) -> Fact:
        raw = self.run("cat-file", "commit", commit, check=False)
        if raw is None:
            raise self._damaged(f"commit {commit} cannot be read")
        tree = raw[5:45].decode()
        key = _IMPORT_KEY.search(raw)
        links = [
            (os.fsdecode(path), sha.decode())
            for mode, sha, path in entries(self.path, commit)
            if mode == b"160000"
        ]
        urls = self._submodule_urls(commit) if links else {}
        modules = tuple((path, sha, urls.get(path, "")) for path, sha in links)
        return Fact(tree, key[1].decode() if key else "", modules)

    def _submodule_urls(self, commit: str) -> dict[str, str]:
        """Path -> URL of the submodules, from .gitmodules of a commit."""
        listing = self.run(
            "config", "--null", "--blob", f"{commit}:.gitmodules", "--list", check=False
        )
        sections: dict[str, dict[str, str]] = {}
        for item in (listing or b"").split(b"\0"):
            key, _, value = os.fsdecode(item).partition("\n")
            name, _, field = key.removeprefix("submodule.").rpartition(".")
            sections.setdefault(name, {})[field] = value
        return {one["path"]: one.get("url", "") for one in sections.values() if "path" in one}

    # -- through git -------------------------------------------------------------------------

    def run(self, *args: str, check: bool = True) -> bytes | None:
        """Run git in the repository; see `fabric.trove.sources.git_process.run`."""
        return run(["--git-dir", str(self.path), *args], check=check)

    def newest_ref(self) -> str:
        """The full name of the ref with the latest commit.  SourceError if there is none."""
        listing = self.run(
            "for-each-ref", "--sort=-committerdate", "--count=1", "--format=%(refname)"
        )
        if not listing:
            raise SourceError(f"{self.path} has no refs: is what it mirrors empty?")
        return listing.decode().strip()

    def fetch(self, url: str, refspecs: list[str], progress: Progress, cancel: CancelToken) -> None:
        """Fetch from ``url``.  SourceError with git's reason if that fails.

        The user's own git configuration applies: proxies, certificates, credentials.
        """
        self.create()
        failure, _ = talk(
            fetching(self, url, refspecs), environment(private=False), progress, cancel
        )
        if failure:
            raise SourceError(f"{url}: git cannot fetch from it: {failure}")


def _sum(fact: bytes) -> bytes:
    return b"%08x" % zlib.crc32(fact)


def fetching(repository: Repository, url: str, refspecs: list[str]) -> list[str]:
    """The arguments with which git fetches into ``repository``."""
    settings = ("protocol.version=2", "http.lowSpeedLimit=1", "http.lowSpeedTime=60", *_SETTINGS)
    return [
        *(part for setting in settings for part in ("-c", setting)),
        *("--git-dir", str(repository.path), "fetch", "--progress", "--no-write-fetch-head"),
        *("--no-auto-maintenance", "--force", "--no-tags", "--", url, *refspecs),
    ]
