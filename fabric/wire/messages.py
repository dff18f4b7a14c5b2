"""Defines every message: typed, versioned and bounded, encoded as MessagePack.

No message is a command that must arrive: workers and initiators repeat what they know, the broker
answers with the desired or actual state, and a repeated message changes nothing.  ``fence``
numbers the attempts at a job; a message with an old fence is ignored.

A message is one frame (decision 11): MessagePack between DEALER and ROUTER, which prepends the
sender's identity, and a `Published` from PUB to SUB.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from fabric import bounds

PROTOCOL = 4

#: The phase in which an attempt has no sandbox any more, and so needs no slot: what was built is
#: packed and stored.
STORING = "store"
#: Begins a feature that names an architecture, of which a worker builds others besides its own.
ARCHITECTURE = "arch:"

#: What a message may say, checked when it is decoded.
Key = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Commit = Annotated[str, Meta(pattern=r"\A[0-9a-f]{40}\Z")]
Name = Annotated[str, Meta(max_length=255)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, Meta(max_length=bounds.TEXT)]
Told = Annotated[str, Meta(max_length=bounds.TOLD)]
OutcomeText = Annotated[str, Meta(max_length=bounds.OUTCOME_TEXT)]
Phase = Annotated[str, Meta(max_length=64)]
#: Of a log, "" while it has not ended.
LogDigest = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
#: Of the log of a step, in whatever directory its reader is.
LogName = Annotated[str, Meta(pattern=r"\A(build-step-[^/\x00\n]{1,240}\.log)?\Z")]
#: A number, at least.
Seconds = Annotated[float, Meta(ge=-1e12, le=1e12)]
#: Who of two requests gets more of the workers: each step up doubles its share.
Priority = Annotated[int, Meta(ge=-10, le=10)]

State = Literal["waiting", "ready", "running", "done", "cached", "failed", "cancelled"]
RequestState = Literal["resolving", "checking", "building", "done", "failed", "cancelled"]
#: ``not-now``: it may be asked for again in a while.
Code = Literal["protocol", "unknown-request", "bad-request", "no-log", "not-allowed", "not-now"]


class Message(msgspec.Struct, frozen=True, tag=True, tag_field="t", omit_defaults=True):
    """A message of either direction; its class name is its tag."""


# -- worker to broker ----------------------------------------------------------------------


class Running(msgspec.Struct, frozen=True, gc=False):
    """An attempt a worker has accepted and not ended yet."""

    key: Key
    fence: Count
    phase: Phase = ""  # "fetch", "configure" ... "strip", "store"
    log_size: Count = 0  # bytes of log so far
    token: Count = 0  # as in `Assignment`


class Outcome(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How an attempt ended.  ``fault`` is the machine's doing, ``failed`` the chunk's;
    ``refused`` says that this machine will not begin it now, and is nobody's fault.
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
    #: artifacts it needed that the store has lost or spoilt
    damaged: Annotated[tuple[Key, ...], Meta(max_length=bounds.DAMAGED)] = ()
    token: Count = 0  # as in `Assignment`


class Report(Message, frozen=True):
    """A worker's whole state.  Sent on every change, and once a second."""

    protocol: int
    name: Name
    arch: Name
    slots: Annotated[int, Meta(ge=0, le=bounds.SLOTS)]
    sequence: Count  # grows; with an older one the broker does nothing
    #: what jobs may ask for: "host-tools:<digest>"
    features: Annotated[tuple[Name, ...], Meta(max_length=bounds.FEATURES)] = ()
    running: Annotated[tuple[Running, ...], Meta(max_length=bounds.REPORTED)] = ()
    #: until a Desired settles them
    finished: Annotated[tuple[Outcome, ...], Meta(max_length=bounds.OUTCOMES)] = ()
    draining: bool = False
    free_disk: int = 0  # bytes
    free_memory: int = 0  # bytes
    refusing: Text = ""  # why it takes nothing new at present: "1.2 GiB of disk left"
    instance: Name = ""  # names this run of the worker, within which ``sequence`` grows
    epoch: Count = 0  # of the last `Desired` taken in,
    answered: Count = 0  # and its sequence


class LogPiece(Message, frozen=True):
    """A range of a log: a worker's answer to `LogWanted`, the broker's to `LogRead`."""

    key: Key
    fence: Count
    offset: Count
    data: Annotated[bytes, Meta(max_length=bounds.LOG_RANGE)]
    size: int = -1  # of the whole log, once it has ended
    sha256: LogDigest = ""


# -- broker to worker ----------------------------------------------------------------------


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One try at one job."""

    key: Key
    fence: Count


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """An attempt the worker has not confirmed yet, with its job."""

    key: Key
    fence: Count
    job: msgspec.Raw  # an encoded `fabric.jobs.Job`
    token: Count = 0  # to be repeated in all that is reported of the attempt


class Desired(Message, frozen=True):
    """What one worker should be doing.  What it runs beyond this, it kills."""

    sequence: Count  # grows within ``epoch``; an older one is ignored
    epoch: Count  # of this run of the broker; grows, and what a former run says is ignored
    start: tuple[Assignment, ...] = ()
    keep: tuple[Attempt, ...] = ()
    settled: tuple[Attempt, ...] = ()  # outcomes the broker has: forget them


class LogWanted(Message, frozen=True):
    """The broker missed a piece of a log."""

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


class BuildOrder(Message, frozen=True, tag="Order"):
    """A build request for a commit of definitions in the trove, which the broker resolves.

    Repeated until an `Update` comes; the same ``request`` is one request.
    """

    protocol: int
    request: Name  # made up by the initiator: 32 hex digits
    title: Text
    ref: Text  # where the trove has the commit: "refs/builds/alice/<request>"
    commit: Commit
    system: Text  # path of the system morph
    #: chunks or strata to build, instead of the system
    components: Annotated[tuple[Text, ...], Meta(max_length=bounds.COMPONENTS)] = ()
    keep_going: bool = False
    priority: Priority = 0
    detach: bool = False  # it goes on when nobody watches
    requester: Name = ""  # set by the broker, from the sender's key
    locked: bool = False  # refused unless the definitions pin what each source contains


class BuildGraph(Message, frozen=True, tag="Submit"):
    """A build request already resolved: an embedded fabric's, or what became of a `BuildOrder`."""

    protocol: int
    request: Name
    title: Text
    steps: tuple[StepSpec, ...]
    goals: tuple[Name, ...]  # keys; what they do not need is not built,
    keep_going: bool = False
    priority: Priority = 0
    detach: bool = False
    requester: Name = ""
    along: tuple[Name, ...] = ()  # but for these, and what they need


class Poll(Message, frozen=True):
    """An initiator's heartbeat: ``seen`` is the version of the last `Update` it has."""

    request: Name
    seen: Count


class Leave(Message, frozen=True):
    """The initiator no longer watches this request; unless it is detached, that ends it."""

    request: Name


class Query(Message, frozen=True):
    """A question, answered by one `Answer` of the same ``id``."""

    protocol: int
    id: Name
    #: ``about``: nothing; nothing; a step's name, artifact or key, or a request;
    #: nothing; a step's name, artifact or key
    what: Literal["requests", "workers", "why", "pinned", "logs"]
    about: Text = ""


class Command(Message, frozen=True):
    """An operator's word, answered by one `Answer`; saying it twice changes nothing."""

    protocol: int
    id: Name
    what: Literal["cancel", "drain", "resume"]
    about: Text  # a request, or a worker's name


class LogRead(Message, frozen=True):
    """A range of a log, please."""

    key: Key
    fence: Count
    offset: Count
    length: Count


# -- broker to initiator -------------------------------------------------------------------


class StepState(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Where a step stands."""

    key: Key
    state: State
    name: Name = ""
    kind: Name = ""
    log: LogName = ""
    fence: Count = 0
    worker: Name = ""
    phase: Phase = ""
    running_for: Seconds = 0.0  # seconds since this attempt began
    expected: Seconds = 0.0  # seconds it took before; 0: never seen
    message: Told = ""  # a failure's, or why it waits
    fault: bool = False  # it failed by machines or the store: nothing is said of its build
    failed_phase: Phase = ""
    failed_command: OutcomeText = ""
    seconds: Seconds = 0.0  # what it took, once done
    log_size: Count = 0
    log_sha256: LogDigest = ""  # once ended


class Update(Message, frozen=True):
    """A request's news since ``seen``: steps that changed, in no order that matters."""

    request: Name
    version: int
    state: RequestState
    steps: tuple[StepState, ...] = ()
    left: Seconds = 0.0  # still expected, by critical path and workers; 0: unknown
    message: Told = ""
    title: Text = ""
    goals: tuple[Name, ...] = ()  # keys, once resolved
    warning: Told = ""  # what keeps it from going on, unless somebody does something about it


class RequestInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a list of requests.  Times in seconds ago."""

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
    message: Told = ""  # why nothing of it runs, or how it failed


class WorkerInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a list of workers.  Times in seconds ago."""

    name: Name
    arch: Name
    slots: int
    since: float  # registered
    heard: float
    running: tuple[StepState, ...] = ()
    state: Literal["idle", "busy", "draining", "drained", "resting", "refusing", "silent"] = "idle"
    message: Told = ""  # why it rests or refuses
    free_disk: int = 0  # bytes
    free_memory: int = 0
    features: tuple[Name, ...] = ()


class LogInfo(msgspec.Struct, frozen=True):
    """A log that a broker can be asked for."""

    key: Name
    fence: int
    name: Name  # of the step
    log: Name  # its file name
    state: State


class Answer(Message, frozen=True):
    """The answer to a `Query` or `Command`.  ``error``: why there is none."""

    id: Name
    error: Told = ""
    warning: Told = ""  # what is wrong with the controller itself
    requests: tuple[RequestInfo, ...] = ()
    workers: tuple[WorkerInfo, ...] = ()
    lines: tuple[Told, ...] = ()  # "why", and what a command did
    keys: tuple[Name, ...] = ()  # "pinned": what live requests need
    logs: tuple[LogInfo, ...] = ()


class Rejected(Message, frozen=True, tag="Refused"):
    """A message could not be served, and why.  ``about`` is its request or key."""

    about: Name
    code: Code
    reason: Told


# -- the log stream ------------------------------------------------------------------------


_TOPIC = 64  # bytes of a key
_HEAD = struct.Struct(f"!{_TOPIC}sQQ")


class Published(NamedTuple):
    """A published piece of a log: a head of fixed size that begins with the topic, then bytes."""

    key: str  # the topic
    fence: int
    offset: int
    data: bytes | memoryview

    def frame(self) -> bytes:
        """As it travels."""
        return _HEAD.pack(self.key.encode(), self.fence, self.offset) + self.data

    @classmethod
    def of(cls, frame: memoryview) -> Published:
        """What came; its data is a view of the frame.  ValueError if it is no piece of a log."""
        if frame.nbytes < _HEAD.size:
            raise ValueError("it is too short for a piece of a log")
        key, fence, offset = _HEAD.unpack_from(frame)
        return cls(key.decode("ascii"), fence, offset, frame[_HEAD.size :])


def cut(text: str, most: int = bounds.OUTCOME_TEXT) -> str:
    """At most ``most`` characters of a text: its beginning, with a mark if that is not all."""
    if len(text) <= most:
        return text
    mark = f" ... (cut: it has {len(text):,} characters)"
    return text[: most - len(mark)] + mark


FromPeer = Report | LogPiece | BuildOrder | BuildGraph | Poll | Leave | LogRead | Query | Command
ToWorker = Desired | LogWanted | Rejected
ToInitiator = Update | LogPiece | Answer | Rejected
