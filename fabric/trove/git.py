"""Bare git repositories of the trove: git's own command line, and shortcuts past it.

A fully cached build asks for dozens of refs; starting git for each would take longer than all
the rest.  So refs are read from the repository's files, and what is known of a commit (its
tree, its submodules) never changes, so it is kept in a file `facts` inside the repository.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from fabric.errors import SourceError
from fabric.trove.files import scratch
from fabric.trove.stop import Stop

if TYPE_CHECKING:
    import subprocess  # at run time only where git is started: a cached build never does

Progress = Callable[[str], None]

SHA = re.compile(r"[0-9a-f]{40}")
#: What git accepts as the name of a ref, as far as it matters here.
REF = re.compile(r"(?!-)(?!.*(\.\.|@\{|//|/\.|\.lock(/|$)))[^\x00-\x20\x7f~^:?*\[\\]+(?<![./])")
_IMPORT_KEY = re.compile(rb"^Import-Key: ([0-9a-f]{64})$", re.M)
#: What git says besides the reason of a failure,
_IDLE_TALK = re.compile(
    r"From |To |[*+=!] |Total \d|remote:(?! fatal| error)"
    r"|Please make sure|and the repository exists|fatal: Could not read from"
    r"|Everything up-to-date|Warning: Permanently added"
)
#: and before it.
_LABELS = re.compile(r"^(remote: )?(fatal: |error: )?")
#: Seconds without a word after which a repository counts as out of reach.
SILENCE = 300.0
#: Seconds after which a pack that nobody goes on writing is rubbish.
ABANDONED = 3600.0
#: Settings of every repository here, whatever the user's are.
_SETTINGS = (
    "gc.auto=0",  # gc in the background would race with us, and drop what refs left behind
    "maintenance.auto=false",
    "fetch.unpackLimit=1",  # packs, not thousands of loose files
    "core.fsync=committed",
    "uploadpack.allowAnySHA1InWant=true",  # a worker asks for the very commit
)


class Fact(msgspec.Struct, frozen=True):
    """What never changes about a commit."""

    tree: str
    import_key: str  # of the lorry import that made it; "" for any other commit
    submodules: tuple[tuple[str, str, str], ...]  # (path, commit, URL in .gitmodules or "")


class Repository:
    """The bare repository at ``path``, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts: dict[str, Fact | str] | None = None

    @property
    def exists(self) -> bool:
        return (self.path / "HEAD").exists()

    def create(self) -> None:
        """Make it, empty, if it is not there; see to what is left in it if it is."""
        if not self.exists:
            self._make()
        # what a killed fetch left: git's own gc, which would see to it, is off here
        for half in self.path.glob("objects/pack/tmp_*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - half.stat().st_mtime > ABANDONED:
                    half.unlink()

    def _make(self) -> None:
        """Make it elsewhere, so that it is whole or not there, and others may do the same."""
        with scratch(self.path.parent, "making-") as folder:
            fresh = Repository(folder / self.path.name)
            run(["init", "--quiet", "--bare", "--initial-branch=main", str(fresh.path)])
            for setting in _SETTINGS:
                name, _, value = setting.partition("=")
                fresh.run("config", name, value)
            try:
                fresh.path.rename(self.path)
            except OSError as error:
                if not self.exists:  # else another was faster
                    raise SourceError(f"{self.path}: cannot be made: {error.strerror}") from error

    # -- reading without git -----------------------------------------------------------------

    def find(self, ref: str) -> tuple[str, str] | None:
        """The commit that ``ref`` names and the full name of the ref ("" for a commit's id).

        Tags come before branches, as with git.  None if there is no such ref or commit.
        """
        if not self.exists:
            return None
        if SHA.fullmatch(ref):
            return (ref, "") if self._has_commit(ref) else None
        if not REF.fullmatch(ref):
            return None
        for prefix in ("refs/tags/", "refs/heads/", "refs/", ""):
            name = prefix + ref
            if name.startswith("refs/") and (found := self.target(name)):
                return self._peeled(found), name
        return None

    def target(self, name: str) -> str | None:
        """The object that a ref, given by its full name, stands for: a tag as it is, or peeled."""
        return self._loose(name) or self._packed().get(name)

    def _loose(self, name: str, depth: int = 5) -> str | None:
        try:
            content = (self.path / name).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        if content.startswith("ref: ") and depth:
            target = content[5:]
            return self._loose(target, depth - 1) or self._packed().get(target)
        return content if SHA.fullmatch(content) else None

    def _packed(self) -> dict[str, str]:
        """Name -> object of all packed refs; annotated tags already peeled."""
        refs: dict[str, str] = {}
        last = ""
        try:
            lines = (self.path / "packed-refs").read_text().splitlines()
        except FileNotFoundError:
            return refs
        for line in lines:
            if line.startswith("^"):
                refs[last] = line[1:]
            elif not line.startswith("#"):
                sha, _, last = line.partition(" ")
                refs[last] = sha
        return refs

    # -- facts -------------------------------------------------------------------------------

    def fact(self, commit: str) -> Fact:
        """What is known of a commit.  SourceError if the repository lacks it."""
        known = self._known().get(commit)
        if isinstance(known, Fact):
            return known
        fact = self._examine(commit)
        self._note(["commit", commit, fact.tree, fact.import_key, fact.submodules])
        self._known()[commit] = fact
        return fact

    def _has_commit(self, commit: str) -> bool:
        if commit in self._known():
            return True
        return self.run("cat-file", "-e", commit + "^{commit}", check=False) is not None

    def _peeled(self, sha: str) -> str:
        """The commit an object is or leads to."""
        known = self._known().get(sha)
        if known is None:
            commit = (self.run("rev-parse", "--verify", sha + "^{commit}") or b"").decode().strip()
            if commit != sha:
                self._note(["tag", sha, commit])
                self._known()[sha] = commit
            return commit
        return sha if isinstance(known, Fact) else known

    def _known(self) -> dict[str, Fact | str]:
        if self._facts is None:
            self._facts = {}
            with contextlib.suppress(FileNotFoundError):
                for line in (self.path / "facts").read_bytes().splitlines():
                    # a line torn by a crash says nothing
                    with contextlib.suppress(ValueError, TypeError):
                        self._learn(json.loads(line))
        return self._facts

    def _learn(self, line: list[object]) -> None:
        assert self._facts is not None
        match line:
            case ["commit", str(sha), str(tree), str(key), list(modules)]:
                self._facts[sha] = Fact(tree, key, tuple((p, c, u) for p, c, u in modules))
            case ["tag", str(sha), str(commit)]:
                self._facts[sha] = commit

    def _note(self, line: list[object]) -> None:
        # One write in append mode is whole among processes; the leading newline ends a torn line.
        data = b"\n" + json.dumps(line).encode() + b"\n"
        with contextlib.suppress(OSError):  # a cache: a read-only trove works without
            handle = os.open(self.path / "facts", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, data)
            finally:
                os.close(handle)

    def _examine(self, commit: str) -> Fact:
        raw = self.run("cat-file", "commit", commit) or b""
        tree = raw[5:45].decode()
        key = _IMPORT_KEY.search(raw)
        links = []
        for entry in (self.run("ls-tree", "-r", "-z", "--full-tree", commit) or b"").split(b"\0"):
            if entry.startswith(b"160000 "):
                head, _, path = entry.partition(b"\t")
                links.append((os.fsdecode(path), head.split()[2].decode()))
        urls = self._submodule_urls(commit) if links else {}
        modules = tuple((path, sha, urls.get(path, "")) for path, sha in links)
        return Fact(tree, key[1].decode() if key else "", modules)

    def _submodule_urls(self, commit: str) -> dict[str, str]:
        """Path -> URL, as .gitmodules of a commit has them."""
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
        """Run git here.  With ``check=False`` None stands for failure."""
        return run(["--git-dir", str(self.path), *args], check=check)

    def newest_ref(self) -> str:
        """The full name of the ref with the latest commit.  SourceError if there is none."""
        listing = self.run(
            "for-each-ref", "--sort=-committerdate", "--count=1", "--format=%(refname)"
        )
        if not listing:
            raise SourceError(f"{self.path} has no refs: is what it mirrors empty?")
        return listing.decode().strip()

    def fetch(self, url: str, refspecs: list[str], progress: Progress, stop: Stop) -> None:
        """Fetch from ``url``.  SourceError with git's reason if that fails.

        The user's own git configuration counts: proxies, certificates, credentials.
        """
        self.create()
        failure, _ = talk(fetching(self, url, refspecs), environment(private=False), progress, stop)
        if failure:
            raise SourceError(f"{url}: git cannot fetch from it: {failure}")


def fetching(repository: Repository, url: str, refspecs: list[str]) -> list[str]:
    """The arguments with which git fetches into ``repository``."""
    settings = ("protocol.version=2", "http.lowSpeedLimit=1", "http.lowSpeedTime=60", *_SETTINGS)
    return [
        *(part for setting in settings for part in ("-c", setting)),
        *("--git-dir", str(repository.path), "fetch", "--progress", "--no-write-fetch-head"),
        *("--no-auto-maintenance", "--force", "--no-tags", "--", url, *refspecs),
    ]


def talk(
    args: list[str], environ: Mapping[str, str], progress: Progress, stop: Stop
) -> tuple[str, str]:
    """Run git with another repository at its other end; progress comes line by line.

    Return why it failed ("" if it did not), and what it printed.  A repository that says nothing
    for SILENCE seconds is one that fails.
    """
    import subprocess
    import tempfile

    # Without a terminal nobody can be asked for a password: git says so instead of waiting.
    with (
        tempfile.TemporaryFile() as printed,
        subprocess.Popen(
            ["git", *args],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        ) as process,
    ):
        assert process.stderr is not None
        try:
            with stop.child(process):
                said = follow(process.stderr, progress)
        except TimeoutError as error:
            return str(error), ""
        printed.seek(0)
        output = printed.read().decode(errors="replace")
    return (said or "it gave no reason") if process.returncode else "", output


def run(args: list[str], *, check: bool = True, input: bytes | None = None) -> bytes | None:
    """Run git with no configuration but the repository's own; return what it prints."""
    import subprocess

    done = subprocess.run(
        ["git", *args],
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        env=environment(),
        check=False,
    )
    if done.returncode == 0:
        return done.stdout
    if not check:
        return None
    reason = done.stderr.decode(errors="replace").strip()
    raise SourceError(f"git {' '.join(args)} failed: {reason}")


def popen(repository: Path, args: list[str], *, stdin: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Start git with no configuration but the repository's own, its output in a pipe."""
    import subprocess

    return subprocess.Popen(
        ["git", "--git-dir", str(repository), *args],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )


def environment(*, private: bool = True) -> dict[str, str]:
    """The environment for git, free of what a hook or the user's shell set for another one."""
    keep = ("GIT_SSH", "GIT_SSL", "GIT_ASKPASS", "GIT_PROXY", "GIT_TRACE")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or (not private and name.startswith((*keep, "GIT_CONFIG")))
    }
    clean |= {
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
        "LC_ALL": "C",
    }
    if private:
        clean |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    return clean


def follow(stream: IO[bytes], progress: Progress) -> str:
    """Pass on git's progress, a line a step; return the rest of what it says.

    TimeoutError if that is nothing for SILENCE seconds.
    """
    import select

    said: list[str] = []
    step = ""
    buffer = b""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    while True:
        if not poll.poll(SILENCE * 1000):
            raise TimeoutError(f"timed out: nothing came for {SILENCE:.0f} seconds")
        piece = os.read(stream.fileno(), 65536)
        *lines, buffer = re.split(rb"[\r\n]", buffer + (piece or b"\n"))
        for line in lines:
            text = line.decode(errors="replace").strip()
            percent = re.match(r"(?:remote: )?([A-Z][a-z ]+): +(\d+)% ", text)
            if percent is None:
                if text and not _IDLE_TALK.match(text):
                    said.append(_LABELS.sub("", text))
            elif percent[1] != step:
                step = percent[1]
                progress(step[0].lower() + step[1:])
        if not piece:
            return "; ".join(dict.fromkeys(said))
