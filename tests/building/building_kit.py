"""A workspace, a minimal root from this machine's own tools, and chunks built for real."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fabric.building.archive import Entry, Packed, pack, read
from fabric.building.builder import build
from fabric.building.log import Log
from fabric.building.tree import remove, scan
from fabric.building.workspace import Workspace
from fabric.definitions.graph import Rule
from fabric.host.cancel import CancelToken
from fabric.jobs import SMALL, Artifact, Job, Manifest, Source, Staged
from fabric.trove.artifacts.store import Store
from fabric.trove.sources.changes import Change

#: Programs that commands of the tests need.
TOOLS = (
    *("sh", "cat", "chmod", "cp", "env", "find", "head", "id", "ln", "ls", "mkdir", "mkfifo"),
    *("mv", "readlink", "rm", "rmdir", "seq", "sleep", "sort", "stat", "touch", "tr", "true"),
    *("uname", "wc", "setsid", "yes", "dd", "grep", "tee", "cut"),
)
RULES = (
    Rule("{}-bins", (r"(usr/)?s?bin/.*",)),
    Rule("{}-devel", (r"(usr/)?include/.*",)),
    Rule("{}-misc", (r".*",)),
)


class Trees:
    """Sources that are directories: `fabric.building.ports.Sources`."""

    def __init__(self) -> None:
        self.trees: dict[str, Path] = {}

    def export(self, source: Source, report: Callable[[str], None]) -> Path:  # noqa: ARG002
        return self.trees[source.tree]

    def changes(self, source: Source, since: str) -> Iterator[Change]:
        raise AssertionError((source, since))  # no test here edits a chunk

    def sweep(self) -> None:
        """Does nothing: trees here are always complete."""


def copy_tools(to: Path, tools: tuple[str, ...] = TOOLS) -> None:
    """Put programs of this machine and the libraries they need into a root at ``to``."""
    (to / "bin").mkdir(parents=True)
    for tool in tools:
        found = shutil.which(tool)
        assert found is not None, tool
        shutil.copy(found, to / "bin" / tool)
        listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=True)
        for word in listed.stdout.split():
            if word.startswith("/") and not (library := to / word[1:]).exists():
                library.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, library)


class Kit:
    """A workspace with its store under ``root``, and short ways to make jobs and run them."""

    def __init__(self, root: Path, base: Packed) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self.base_archive = base
        self.sources = Trees()
        self.store = Store(str(root / "artifacts"), root / "scratch")
        self.workspace = Workspace(root / "work", self.store, self.sources)
        self.cancel = CancelToken()
        self.phases: list[str] = []
        self.logs = 0
        self.base = self.stored("base", {"base-misc": base})

    def stored(
        self, name: str, artifacts: dict[str, Packed | None], stratum: str = "low"
    ) -> Staged:
        """A chunk put into the store as it is, not built."""
        key = key_of(name)
        blobs = {name: each.blob if each else None for name, each in artifacts.items()}
        manifest = Manifest(
            key=key,
            kind="chunk",
            name=name,
            arch="x86_64",
            artifacts=tuple(Artifact(name, blob) for name, blob in blobs.items()),
        )
        files = {each.blob.sha256: each.content for each in artifacts.values() if each}
        self.store.put(manifest, files)
        return Staged(key, stratum)

    def tree(self, **files: str | bytes) -> Source:
        """A source with these files in it, all of one mtime."""
        where = Path(tempfile.mkdtemp(dir=self.root, prefix="source-"))
        where.chmod(0o755)
        for name, text in files.items():
            path = where / name
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            path.chmod(0o644)
        for path in (*where.iterdir(), where):
            os.utime(path, (1_000_000_000, 1_000_000_000))
        tree = hashlib.sha1(str(where).encode()).hexdigest()
        self.sources.trees[tree] = where
        return Source("upstream:it", "master", "0" * 40, tree)

    def chunk(self, name: str = "thing", /, **fields: Any) -> Job:
        """A chunk job; ``build`` and ``install`` are short for their command lists."""
        lists = [
            (f"{word}-commands", tuple(commands))
            for word in ("configure", "build", "install")
            if (commands := fields.pop(word, None))
        ]
        rules = tuple(Rule(rule.artifact.format(name), rule.include) for rule in RULES)
        given = {
            "key": key_of(name),
            "kind": "chunk",
            "name": name,
            "arch": "x86_64",
            "log": f"build-step-{name}.log",
            "artifacts": tuple(rule.artifact for rule in rules),
            "source_name": name,
            "environment": {"PATH": "/sbin:/usr/sbin:/bin:/usr/bin", "LC_ALL": "C", "HOME": "/tmp"},
            "commands": tuple(lists),
            "rules": rules,
            "staged": (self.base,),
        }
        return Job(**(given | fields))

    def build(self, job: Job, **options: Any) -> Manifest:
        """Build a job with a log of its own, which is `log_text` afterwards."""
        self.logs += 1
        self.log_path = self.root / f"log-{self.logs}"
        given: dict[str, Any] = {"jobs": 4, "phase": self.phases.append, "timeout": 60}
        with Log(self.log_path) as log:
            self._log = log
            return build(job, self.workspace, log, self.cancel, **(given | options))

    @property
    def log_bytes(self) -> bytes:
        """Of the last build; a short log is in no file."""
        long = self.log_path.exists()
        return self.log_path.read_bytes() if long else self._log.read(0, SMALL)

    @property
    def log_text(self) -> str:
        return self.log_bytes.decode(errors="replace")

    def entries(self, manifest: Manifest, artifact: str) -> dict[str, Entry]:
        """The entries of an artifact, with contents of small files in ``data``."""
        blob = manifest.artifact(artifact).blob
        if blob is None:
            return {}
        with self.store.path(blob).open("rb") as file:
            return {
                entry.name.decode("utf-8", "surrogateescape"): entry._replace(
                    data=b"".join(contents.pieces())
                )
                for entry, contents in read(file)
            }


def key_of(name: str) -> str:
    """A cache key for a job of that name."""
    return hashlib.sha256(name.encode()).hexdigest()


def processes_naming(path: Path) -> list[str]:
    """Command lines of all processes, but this one, that name ``path`` or something below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().decode(errors="replace")
            if str(path) in line and process.name != str(os.getpid()):
                found.append(line)
    return found


@pytest.fixture(scope="session")
def tools() -> Iterator[Path]:
    """A tree that installs itself with `cp`: the sources of the chunk ``base``."""
    with tempfile.TemporaryDirectory() as name:
        copy_tools(Path(name))
        yield Path(name)


@pytest.fixture(scope="session")
def base(tools: Path) -> Packed:
    """The archive of those tools."""
    return pack(scan(tools).values(), tools.parent / f"{tools.name}.tar.zst")


@pytest.fixture
def kit(tmp_path: Path, base: Packed) -> Iterator[Kit]:
    made = Kit(tmp_path, base)
    with made.workspace:
        yield made
    remove(made.workspace.root)  # pytest cannot remove the deepest trees later
