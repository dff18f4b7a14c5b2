"""Defines every message: typed, versioned and bounded, encoded as MessagePack.

Any message may be lost or repeated: workers and initiators repeat their state, and the broker
answers with the desired or actual state.  ``fence`` numbers the attempts at a job; a message with
an old fence is ignored.

A message is one frame (decision 11): MessagePack between DEALER and ROUTER, which prepends the
sender's identity, and a `Published` from PUB to SUB.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from fabric import bounds
from fabric.digest import OptionalSha256

PROTOCOL = 4

#: The phase in which the result of an attempt is packed and stored.  Its sandbox is gone, so it
#: needs no slot.
STORING = "store"
#: Prefix of a feature that names another architecture for which a worker builds.
ARCHITECTURE = "arch:"

#: Types of fields, checked when a message is decoded.
Key = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Commit = Annotated[str, Meta(pattern=r"\A[0-9a-f]{40}\Z")]
Name = Annotated[str, Meta(max_length=255)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, Meta(max_length=bounds.TEXT)]
ReplyText = Annotated[str, Meta(max_length=bounds.BROKER_TEXT)]
OutcomeText = Annotated[str, Meta(max_length=bounds.OUTCOME_TEXT)]
Phase = Annotated[str, Meta(max_length=64)]
#: SHA-256 of a log; "" while it grows.
LogDigest = OptionalSha256
#: File name of the log of a step, without a directory.
LogName = Annotated[str, Meta(pattern=r"\A(build-step-[^/\x00\n]{1,240}\.log)?\Z")]
#: Finite, and small enough to be added up.
Seconds = Annotated[float, Meta(ge=-1e12, le=1e12)]
#: A request's share of the workers doubles with each step up.
Priority = Annotated[int, Meta(ge=-10, le=10)]

State = Literal["waiting", "ready", "running", "done", "cached", "failed", "cancelled"]
RequestState = Literal["resolving", "checking", "building", "done", "failed", "cancelled"]
QueryKind = Literal["requests", "workers", "why", "pinned", "logs", "update", "graph", "attempts"]
#: How an attempt ended; ``lost``: its worker did not report the end.
AttemptResult = Literal["done", "failed", "fault", "refused", "cancelled", "lost"]
#: ``not-now``: the sender may repeat the message later.
Code = Literal["protocol", "unknown-request", "bad-request", "no-log", "not-allowed", "not-now"]


class Message(msgspec.Struct, frozen=True, tag=True, tag_field="t", omit_defaults=True):
    """A message of either direction; its class name is its tag."""


# -- worker to broker ----------------------------------------------------------------------


class Running(msgspec.Struct, frozen=True, gc=False):
    """An attempt that a worker has accepted and that has not ended."""

    key: Key
    fence: Count
    phase: Phase = ""  # "fetch", "configure" ... "strip", "store"
    log_size: Count = 0  # bytes of log so far
    token: Count = 0  # as in `Assignment`


class Outcome(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The end of an attempt.

    ``failed``: the chunk does not build.  ``fault``: the machine or the store failed.  ``refused``:
    the machine did not begin it, and another one may.
    """

    key: Key
    fence: Count
    result: Literal["done", "failed", "fault", "refused", "cancelled"]
    message: OutcomeText = ""
    phase: Phase = ""  # the step list that failed: "build-commands"
    command: OutcomeText = ""  # the command that failed
    seconds: Seconds = 0.0
    log_size: Count = 0
    log_sha256: LogDigest = ""
    #: keys of needed artifacts that are missing or damaged in the store
    damaged: Annotated[tuple[Key, ...], Meta(max_length=bounds.DAMAGED)] = ()
    token: Count = 0  # as in `Assignment`
    #: digest of the manifest that this attempt has built and stored; "" if it did not
    manifest: OptionalSha256 = ""
    built: bool = True  # False: it was done, but found or copied what another attempt has built


class Report(Message, frozen=True):
    """A worker's complete state.  Sent on every change, and once a second."""

    protocol: int
    name: Name
    arch: Name
    slots: Annotated[int, Meta(ge=0, le=bounds.SLOTS)]
    sequence: Count  # grows; the broker ignores an older one
    #: labels that a step may need: "host-tools:<digest>"
    features: Annotated[tuple[Name, ...], Meta(max_length=bounds.FEATURES)] = ()
    running: Annotated[tuple[Running, ...], Meta(max_length=bounds.REPORTED)] = ()
    #: repeated until a `Desired` acknowledges them
    finished: Annotated[tuple[Outcome, ...], Meta(max_length=bounds.OUTCOMES)] = ()
    draining: bool = False
    free_disk: int = 0  # bytes
    free_memory: int = 0  # bytes
    refusing: Text = ""  # why it accepts no new attempts: "1.2 GiB of disk left"
    instance: Name = ""  # names this run of the worker, within which ``sequence`` grows
    epoch: Count = 0  # of the last `Desired` that it handled
    answered: Count = 0  # sequence of that `Desired`


class LogPiece(Message, frozen=True):
    """A range of a log: a worker's answer to `LogWanted`, the broker's to `LogRead`."""

    key: Key
    fence: Count
    offset: Count
    data: Annotated[bytes, Meta(max_length=bounds.LOG_RANGE)]
    size: int = -1  # of the whole log, once it has ended and its size is known
    sha256: LogDigest = ""
    ended: bool = False  # the attempt has ended


# -- broker to worker ----------------------------------------------------------------------


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One try at a job."""

    key: Key
    fence: Count


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """An attempt that the worker has not confirmed yet, with its job."""

    key: Key
    fence: Count
    job: msgspec.Raw  # an encoded `fabric.jobs.Job`
    token: Count = 0  # the worker repeats it in all reports of the attempt


class Desired(Message, frozen=True):
    """The attempts that a worker has to run; it kills all others."""

    sequence: Count  # grows within ``epoch``; an older one is ignored
    epoch: Count  # number of this run of the broker; a message of an older run is ignored
    start: tuple[Assignment, ...] = ()
    keep: tuple[Attempt, ...] = ()
    acked: tuple[Attempt, ...] = msgspec.field(
        default=(), name="settled"
    )  # their outcomes have arrived: the worker forgets them


class LogWanted(Message, frozen=True):
    """A range of a log that the broker lacks; the worker answers with a `LogPiece`."""

    key: Key
    fence: Count
    offset: Count
    length: Count


# -- initiator to broker -------------------------------------------------------------------


class StepSpec(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One step of a request."""

    key: Key
    name: Name
    kind: Name
    arch: Name
    job: msgspec.Raw  # an encoded `fabric.jobs.Job`
    log: LogName = ""  # "build-step-zlib-misc.log"
    depends: tuple[Name, ...] = ()  # keys, all of them in the same request
    needs: tuple[Name, ...] = ()  # features a worker must have
    again: Name = ""  # key of the step that it builds once more: on another worker, if one can
    built_by: Name = ""  # the worker that built that, if it was known to be built already


class EditedChunk(msgspec.Struct, frozen=True):
    """A chunk whose source is a user's work tree."""

    chunk: Text  # its name
    repo: Text  # in the trove
    commit: Commit  # reachable from the ref of the order


class BuildOrder(Message, frozen=True, tag="Order"):
    """A build request for a commit of definitions in the trove, which the broker resolves.

    Repeated until an `Update` comes; the same ``request`` is one request.
    """

    protocol: int
    request: Name  # a random id: 32 hex digits
    title: Text
    ref: Text  # ref of the commit in the trove: "refs/builds/alice/<request>"
    commit: Commit
    system: Text  # path of the system morph
    #: chunks or strata to build, instead of the system
    components: Annotated[tuple[Text, ...], Meta(max_length=bounds.COMPONENTS)] = ()
    keep_going: bool = False
    priority: Priority = 0
    detach: bool = False  # it goes on without followers
    requester: Name = ""  # set by the broker, from the sender's key
    locked: bool = False  # rejected unless the definitions pin the content of each source
    edits: Annotated[tuple[EditedChunk, ...], Meta(max_length=bounds.COMPONENTS)] = ()
    #: chunks or systems to build besides, once more if the store has them
    rebuild: Annotated[tuple[Text, ...], Meta(max_length=bounds.COMPONENTS)] = ()
    fail_fast: bool = False  # after a failure, steps that run are cancelled


class BuildGraph(Message, frozen=True, tag="Submit"):
    """A resolved build request: from an embedded fabric, or from a resolver."""

    protocol: int
    request: Name
    title: Text
    steps: tuple[StepSpec, ...]
    goals: tuple[Name, ...]  # keys; they and the steps they need are built
    keep_going: bool = False
    priority: Priority = 0
    detach: bool = False
    requester: Name = ""
    along: tuple[Name, ...] = ()  # keys that are built besides, with the steps they need
    fail_fast: bool = False  # as in `BuildOrder`


class Poll(Message, frozen=True):
    """An initiator's heartbeat: ``seen`` is the version of the last `Update` it has."""

    request: Name
    seen: Count


class Leave(Message, frozen=True):
    """The initiator does not follow this request any more; that ends it, unless it is detached."""

    request: Name


class Query(Message, frozen=True):
    """A question, answered by one `Answer` of the same ``id``."""

    protocol: int
    id: Name
    what: QueryKind
    #: for "why" and "logs": a step's name, artifact or key; for "why" also a request.  For
    #: "update" and "graph": a request.  For "attempts": a request, a key, a worker, or "" for all.
    about: Text = ""
    #: for "update": version of the last update that the sender has; for "attempts": number of the
    #: last ended attempt that it has
    seen: Count = 0


class Command(Message, frozen=True):
    """An operator's command, answered by one `Answer`; repeating it changes nothing."""

    protocol: int
    id: Name
    what: Literal["cancel", "drain", "resume"]
    about: Text  # a request, or a worker's name


class LogRead(Message, frozen=True):
    """Reads a range of a log; answered by a `LogPiece`."""

    key: Key
    fence: Count
    offset: Count
    length: Count


# -- broker to initiator -------------------------------------------------------------------


class StepState(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The state of a step."""

    key: Key
    state: State
    name: Name = ""
    kind: Name = ""
    log: LogName = ""
    fence: Count = 0
    worker: Name = ""
    phase: Phase = ""
    running_for: Seconds = 0.0  # seconds since this attempt began
    expected: Seconds = 0.0  # seconds it took before; 0: unknown
    message: ReplyText = ""  # why it failed, why it waits, or why it need not be built
    fault: bool = False  # machines or the store failed, not the build
    failed_phase: Phase = ""
    failed_command: OutcomeText = ""
    seconds: Seconds = 0.0  # duration, once done
    log_size: Count = 0
    log_sha256: LogDigest = ""  # once ended


class Update(Message, frozen=True):
    """Changes of a request since the version ``seen`` of its `Poll`; steps are in no order."""

    request: Name
    version: int
    state: RequestState
    steps: tuple[StepState, ...] = ()
    left: Seconds = 0.0  # expected until the end; 0: unknown
    message: ReplyText = ""
    title: Text = ""
    goals: tuple[Name, ...] = ()  # keys, once resolved
    warning: ReplyText = ""  # why it cannot go on until somebody acts
    next: tuple[Name, ...] = ()  # names of the steps that should begin next


class RequestInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row in the list of requests.  Times are seconds ago."""

    request: Name
    title: Text
    requester: Name
    state: RequestState
    since: float
    priority: int = 0
    detached: bool = False
    done: int = 0  # steps built
    cached: int = 0
    total: int = 0  # steps it needs, as far as known
    running: int = 0
    failed: int = 0
    left: float = 0.0  # seconds; 0: unknown
    message: ReplyText = ""  # why nothing of it runs, or how it failed


class WorkerInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row in the list of workers.  Times are seconds ago."""

    name: Name
    arch: Name
    slots: int
    since: float  # its first report
    heard: float  # its last report
    running: tuple[StepState, ...] = ()
    state: Literal["idle", "busy", "draining", "drained", "resting", "refusing", "silent"] = "idle"
    message: ReplyText = ""  # why it rests or refuses
    free_disk: int = 0  # bytes
    free_memory: int = 0
    features: tuple[Name, ...] = ()


class LogInfo(msgspec.Struct, frozen=True):
    """A log that can be read from the broker."""

    key: Name
    fence: int
    name: Name  # of the step
    log: Name  # its file name
    state: State


class GraphStep(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A step of a request, with the steps that it needs."""

    key: Key
    name: Name
    kind: Name
    depends: tuple[Count, ...] = ()  # places in `Answer.graph`


class AttemptInfo(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An attempt that runs, or has ended.  Times are seconds."""

    key: Key
    fence: Count
    name: Name  # of the step
    kind: Name
    worker: Name
    ago: Seconds  # since it began
    seconds: Seconds  # how long it took, or has run
    number: Count = 0  # grows with each ended attempt; 0: it runs
    result: Literal[""] | AttemptResult = ""
    message: OutcomeText = ""
    #: (phase, seconds from the beginning of the attempt to that of the phase), in order
    phases: tuple[tuple[Phase, Seconds], ...] = ()


class Answer(Message, frozen=True):
    """The answer to a `Query` or `Command`."""

    id: Name
    error: ReplyText = ""  # why it failed
    warning: ReplyText = ""  # a fault of the controller itself
    requests: tuple[RequestInfo, ...] = ()
    workers: tuple[WorkerInfo, ...] = ()
    lines: tuple[ReplyText, ...] = ()  # answer to "why", or the effect of a command
    keys: tuple[Name, ...] = ()  # answer to "pinned": keys that live requests need
    logs: tuple[LogInfo, ...] = ()
    update: Update | None = None  # answer to "update"; None: there is no such request
    graph: tuple[GraphStep, ...] = ()  # answer to "graph": all steps, once the request is resolved
    #: answer to "attempts": ended ones after number ``seen``, oldest first, at most
    #: `bounds.ATTEMPTS_SHOWN`; if that is all, then those that run
    attempts: tuple[AttemptInfo, ...] = ()


class Rejected(Message, frozen=True, tag="Refused"):
    """A message was not accepted.  ``about`` is its request, key, id or worker."""

    about: Name
    code: Code
    reason: ReplyText


# -- the log stream ------------------------------------------------------------------------


_TOPIC = 64  # bytes of a key
_HEAD = struct.Struct(f"!{_TOPIC}sQQ")


class Published(NamedTuple):
    """A published piece of a log: a header of fixed size that begins with the topic, then bytes."""

    key: str  # the topic
    fence: int
    offset: int
    data: bytes | memoryview

    def frame(self) -> bytes:
        """The encoded piece."""
        return _HEAD.pack(self.key.encode(), self.fence, self.offset) + self.data

    @classmethod
    def of(cls, frame: memoryview) -> Published:
        """Decodes a frame; ``data`` is a view of it.  ValueError if it is not a piece of a log."""
        if frame.nbytes < _HEAD.size:
            raise ValueError("it is too short for a piece of a log")
        key, fence, offset = _HEAD.unpack_from(frame)
        return cls(key.decode("ascii"), fence, offset, frame[_HEAD.size :])


def cut(text: str, most: int = bounds.OUTCOME_TEXT) -> str:
    """The first ``most`` characters of a text; a shortened text ends with a mark."""
    if len(text) <= most:
        return text
    mark = f" ... (cut: it has {len(text):,} characters)"
    return text[: most - len(mark)] + mark


FromPeer = Report | LogPiece | BuildOrder | BuildGraph | Poll | Leave | LogRead | Query | Command
ToWorker = Desired | LogWanted | Rejected
ToInitiator = Update | LogPiece | Answer | Rejected
