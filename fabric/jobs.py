"""Defines jobs and manifests.

A `Job` is one step of the build graph with its cache key.  It travels to a worker and contains all
that `fabric.building` needs.  A `Manifest` records the result and stays in the store.  The broker
never looks inside a job.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from fabric.definitions.graph import Device, Kind, Mode, Rule
from fabric.digest import Sha256
from fabric.errors import DamagedError

#: A blob of so many bytes at most is kept in the manifest that names it.  To store a small step is
#: then one file, and one request to a remote store.
SMALL = 4096
#: The name of an artifact, which becomes part of a path, and that of a log; or no log.
Name = Annotated[str, Meta(pattern=r"\A[^\s/\x00-\x1f.-][^\s/\x00-\x1f]*\Z", max_length=255)]
LogName = Annotated[str, Meta(pattern=r"\A[^\s/\x00-\x1f.-][^/\x00-\x1f]*\Z|\A\Z", max_length=255)]
#: A feature of workers that jobs built with the host's tools ask for: this, and their digest.
HOST_TOOLS = "host-tools:"


def tools_among(features: Iterable[Iterable[str]]) -> str:
    """The digest of the host's tools that most workers have, by their features; "" of none.

    Keys of what is built with them are for these, so that all of a farm have the same keys.
    """
    digests = Counter(
        one.removeprefix(HOST_TOOLS)
        for each in features
        for one in each
        if one.startswith(HOST_TOOLS)
    )
    return max(sorted(digests), key=lambda digest: digests[digest], default="")


class Source(msgspec.Struct, frozen=True):
    """The tree a chunk is built from: ``tree`` names its content, the rest says where it is."""

    repo: str  # as in the definitions, alias and all: "upstream:zlib"
    ref: str  # as in the definitions
    commit: str  # 40 hex digits
    tree: str  # 40 hex digits
    submodules: tuple[tuple[str, Source], ...] = ()  # (path, its source)


class Staged(msgspec.Struct, frozen=True):
    """A chunk in a staging area: its cache key, and the stratum that brought it (for merging)."""

    key: str
    stratum: str


class Content(msgspec.Struct, frozen=True):
    """One chunk artifact that a stratum or system contains."""

    key: str  # cache key of the chunk
    artifact: str


class Part(msgspec.Struct, frozen=True):
    """One stratum artifact that a system contains."""

    artifact: str
    stratum: str
    key: str  # names the contents
    contents: tuple[Content, ...]


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything a worker needs to build one step."""

    key: str  # cache key: 64 hex digits
    kind: Kind
    name: str
    arch: str
    log: str  # file name of its log: "build-step-zlib-misc.log"
    artifacts: tuple[str, ...]
    metadata: dict[str, str] = {}  # for /baserock/*.meta: description, morph, repo, ref ...
    # chunks
    source_name: str = ""
    source: Source | None = None
    mode: Mode = "staging"
    prefix: str = "/usr"
    environment: dict[str, str] = {}  # complete, but for MAKEFLAGS, DESTDIR and PATH of bootstrap
    commands: tuple[tuple[str, tuple[str, ...]], ...] = ()  # ("build-commands", (...)), in order
    max_jobs: int | None = None
    rules: tuple[Rule, ...] = ()
    devices: tuple[Device, ...] = ()
    #: (artifact, prefix, commands)
    integration: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    staged: tuple[Staged, ...] = ()  # in layering order, later covers earlier
    # strata: (stratum artifact, its contents); the system: (NAME-rootfs, all its contents),
    # bootstrap chunks left out
    lists: tuple[tuple[str, tuple[Content, ...]], ...] = ()
    strata: tuple[Part, ...] = ()  # the system: its stratum artifacts, for /baserock


class Blob(msgspec.Struct, frozen=True, omit_defaults=True):
    """Stored bytes, named by what they are."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=0, lt=1 << 60)]
    content: bytes | None = None  # all of it, if it is small: then it is stored nowhere else

    @classmethod
    def of(cls, data: bytes) -> Blob:
        """What names these bytes, with them if they are few."""
        content = data if len(data) <= SMALL else None
        return cls(hashlib.sha256(data).hexdigest(), len(data), content)


class Artifact(msgspec.Struct, frozen=True):
    """One artifact: an archive (chunks, system), or a list of chunk artifacts (strata)."""

    name: Name
    blob: Blob | None = None  # a tar.zst; None for a chunk artifact without any path
    contents: tuple[Content, ...] = ()


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the store knows of one built step; its presence says that the step is cached."""

    format: int = 1
    key: Sha256
    kind: Kind
    name: Name
    arch: str
    artifacts: tuple[Artifact, ...]
    log: Blob | None = None
    log_name: LogName = ""
    metadata: dict[str, str] = {}
    staged: tuple[str, ...] = ()  # keys of the chunks it was built with
    seconds: float = 0.0  # wall time of the build
    builder: str = ""  # name of the worker
    remarks: tuple[str, ...] = ()  # what is doubtful, each in one line

    def artifact(self, name: str) -> Artifact:
        """The artifact of that name.  DamagedError if there is none."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        raise DamagedError(f"manifest {self.key} of {self.name} lacks {name}", (self.key,))

    def blobs(self) -> tuple[Blob, ...]:
        """Every blob of this manifest, the log's included."""
        found = [artifact.blob for artifact in self.artifacts if artifact.blob is not None]
        return tuple(found) if self.log is None else (*found, self.log)
