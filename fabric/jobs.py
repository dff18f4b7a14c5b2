"""Defines jobs and manifests.

A `Job` is one step of the build graph with its cache key.  It contains all that a worker needs to
build it; the broker does not decode it.  A `Manifest` is the record of the result in the store.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from fabric.definitions.graph import Device, Kind, Mode, Rule
from fabric.digest import OptionalSha256, Sha256
from fabric.errors import DamagedError

#: Bytes of a blob up to which it is kept in its manifest: storing a small step then takes one file,
#: and one request to a remote store.
SMALL = 4096
#: The name of an artifact, which becomes part of a path; and that of a log, which may be "".
Name = Annotated[str, Meta(pattern=r"\A[^\s/\x00-\x1f.-][^\s/\x00-\x1f]*\Z", max_length=255)]
LogName = Annotated[str, Meta(pattern=r"\A[^\s/\x00-\x1f.-][^/\x00-\x1f]*\Z|\A\Z", max_length=255)]
#: The end of the year 9999: a later time has no date.
LATEST = 253402300799
#: A Unix time, or a duration in seconds.
Time = Annotated[float, Meta(ge=0, le=LATEST)]
#: The beginning of the log of a step that was not built, but copied from a substituter.
COPIED = "### copied from "
#: Prefix of the feature that jobs built with the host's tools need; the digest of these follows.
HOST_TOOLS = "host-tools:"


def tools_among(features: Iterable[Iterable[str]]) -> str:
    """The digest of the tools that most workers have, from their features; "" without workers.

    Keys of jobs that are built with the host's tools contain it, so that all users of a farm have
    the same keys.
    """
    digests = Counter(
        one.removeprefix(HOST_TOOLS)
        for each in features
        for one in each
        if one.startswith(HOST_TOOLS)
    )
    return max(sorted(digests), key=lambda digest: digests[digest], default="")


class Source(msgspec.Struct, frozen=True):
    """The source of a chunk: ``tree`` names its content, the other fields its location."""

    repo: str  # as in the definitions: "upstream:zlib"
    ref: str  # as in the definitions
    commit: str  # 40 hex digits
    tree: str  # 40 hex digits
    submodules: tuple[tuple[str, Source], ...] = ()  # (path, its source)
    edit: str = ""  # the id of an edit: its build tree is kept (`fabric.building.kept_tree`)


class Staged(msgspec.Struct, frozen=True):
    """A chunk in a staging area: its cache key, and its stratum, for messages about merging."""

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
    contents: tuple[Content, ...]


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step with all that a worker needs to build it."""

    key: str  # cache key: 64 hex digits
    kind: Kind
    name: str
    arch: str
    log: str  # file name of its log: "build-step-zlib-misc.log"
    artifacts: tuple[str, ...]
    recipe: str = ""  # digest of its inputs without other steps: chunks and systems
    rebuild_of: str = ""  # key of the step that it builds once more, to compare the results
    metadata: dict[str, str] = {}  # for /baserock/*.meta: description, morph, repo, ref ...
    # chunks
    source_name: str = ""
    source: Source | None = None
    mode: Mode = "staging"
    host_tools: str = ""  # digest of the machine's tools, if it is built with them
    prefix: str = "/usr"
    #: of commands, or of integration scripts; complete but for MAKEFLAGS, and for DESTDIR and PATH
    #: in bootstrap mode
    environment: dict[str, str] = {}
    commands: tuple[tuple[str, tuple[str, ...]], ...] = ()  # ("build-commands", (...)), in order
    max_jobs: int | None = None
    rules: tuple[Rule, ...] = ()
    devices: tuple[Device, ...] = ()
    #: (artifact, prefix, commands)
    integration: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    staged: tuple[Staged, ...] = ()  # in the order of layers: a later one covers an earlier one
    # strata: (stratum artifact, its contents); the system: (NAME-rootfs, all its contents),
    # bootstrap chunks left out
    lists: tuple[tuple[str, tuple[Content, ...]], ...] = ()
    strata: tuple[Part, ...] = ()  # the system: its stratum artifacts, for /baserock

    @property
    def made_of(self) -> list[tuple[str, str]]:
        """(key, artifact) of each step whose bytes it is made from; artifact "": all of them."""
        if self.kind == "chunk":
            return [(one.key, "") for one in self.staged]
        if self.kind == "stratum":  # a list of names
            return []
        return [(one.key, one.artifact) for _, contents in self.lists for one in contents]


class Blob(msgspec.Struct, frozen=True, omit_defaults=True):
    """Stored bytes, named by their SHA-256."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=0, lt=1 << 60)]
    content: bytes | None = None  # the bytes themselves if they are few: then there is no file

    @classmethod
    def of(cls, data: bytes) -> Blob:
        """The blob of ``data``."""
        content = data if len(data) <= SMALL else None
        return cls(hashlib.sha256(data).hexdigest(), len(data), content)


class Artifact(msgspec.Struct, frozen=True):
    """One artifact: an archive (chunks, system), or a list of chunk artifacts (strata)."""

    name: Name
    blob: Blob | None = None  # a tar.zst; None for a chunk artifact without any path
    contents: tuple[Content, ...] = ()


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one built step in the store; if it exists, the step is cached."""

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
    #: what it was made from, by content, parallel to `Job.made_of`: of a chunk the output of each
    #: that was staged (`contents.output_of`); of a system the archive of each of its contents, ""
    #: if it has no files; (): not recorded
    input_digests: tuple[OptionalSha256, ...] = ()
    inputs: dict[str, str] = {}  # its other inputs (`fabric.inputs`); {}: not recorded
    seconds: Time = 0.0  # wall time of the build
    builder: str = ""  # name of the worker
    built: Time = 0.0  # when it was built; 0: not recorded
    origin: OptionalSha256 = ""  # key of the step whose output this is, if it was not built itself
    #: ids of the keys that vouched for this output before, if it was not built itself
    origin_signers: tuple[str, ...] = ()
    rebuild_of: OptionalSha256 = ""  # as in `Job`
    remarks: tuple[str, ...] = ()  # warnings, each one line
    #: conditions that were unlike the first build's, if it is a rebuild: "host-name", "clock" ...
    #: (`fabric.building.conditions`)
    perturbed: tuple[str, ...] = ()

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
