"""The data of the core: tasks, attempts, workers and requests.

Everything here belongs to one `state.FarmState`, and only the functions of this package change it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fabric import bounds
from fabric.scheduling.shares import Share
from fabric.scheduling.states import LIVE, Cause, State
from fabric.scheduling.step_names import StepIndex
from fabric.wire.messages import GraphStep, Outcome, RequestState, StepSpec, StepState

#: (kind, name, arch) -> seconds that a build took.
Durations = dict[tuple[str, str, str], float]
#: Names one attempt: (key, fence).
Id = tuple[str, int]

#: Seconds expected of a step that was never built before.
DEFAULT_SECONDS = {"chunk": 60.0, "stratum": 1.0, "system": 60.0}
#: Transitions that a task remembers.
HISTORY_LENGTH = 60


class Limits(msgspec.Struct, frozen=True):
    """The limits of waiting and trying again.  Times in seconds."""

    lease: float = 10.0  # a worker silent this long is lost
    stale: float = 3.0  # a worker silent this long is assigned nothing new
    patience: float = 15.0  # an initiator silent this long has left
    grace: float = 30.0  # after a start, attempts that workers run wait this long for a request
    absence: float = 600.0  # an attempt of a lost worker counts if the worker is back by then
    unserved: float = 1800.0  # a task that no worker is able to do fails after this; 0: never
    startup: float = 0.0  # workers that start together with the broker may take so long
    settle: float = 3.0  # after a restart, nothing is assigned for so long: workers report first
    losses: int = 3  # workers that one task may take down
    faults: int = 3  # times that machines may be unable to do one task
    asks: int = 5  # times that the store may fail to answer
    refusals: int = 3  # refusals after which a worker no longer counts as able to do the task
    cooldown: float = 15.0  # a worker that refused a task is not offered it again for so long
    damages: int = 3  # times that an artifact may be built again because it was damaged
    kill: float = 60.0  # a cancelled attempt blocks its task for at most so long
    backoff: float = 60.0  # longest pause of a worker after faults in a row


class Transition(msgspec.Struct, frozen=True, gc=False):
    """One line of a task's history."""

    at: float
    cause: Cause
    state: State  # after it
    detail: str = ""


class Attempt(msgspec.Struct, eq=False, gc=False):
    """One try at a task on one worker, until the worker reports its end or is lost."""

    key: str
    fence: int
    worker: str
    since: float
    token: int = 0  # proves that its worker was given it
    assigned_in: int = 0  # sequence of the first `Desired` that contains it
    confirmed: bool = False  # the worker has reported it
    cancelling: bool = False  # unwanted, for good: the worker may be killing it
    stuck: bool = False  # cancelling, and no longer waited for
    ended: bool = False  # its `Ended` was emitted, and the worker runs it all the same
    phase: str = ""
    phases: tuple[tuple[str, float], ...] = ()  # (phase, when it was first reported), in order
    log_size: int = 0
    spec: StepSpec | None = None  # of its step, once it was a task's

    @property
    def id(self) -> Id:
        return (self.key, self.fence)


class Refusal(msgspec.Struct):
    """A worker refused a task."""

    until: float  # when the worker is offered it again
    message: str
    count: int  # so far


class Task(msgspec.Struct, eq=False):
    """The work for one artifact."""

    key: str
    spec: StepSpec
    number: int  # order of creation; breaks ties
    expected: float  # seconds
    guessed: bool = False  # ``expected`` is a default: it was never built before
    state: State = State.ASKING
    question: int = 0  # the query of the store about it
    requests: dict[str, Request] = {}  # that want it
    expanded: bool = False  # its dependencies are tasks too
    missing: int = 0  # dependencies that are not in the store
    waiters: dict[str, Task] = {}  # tasks of which this is a missing dependency
    attempt: Attempt | None = None  # while running
    reserved_on: str = ""  # while verifying: the worker with a slot reserved for its successor
    fence: int = 0  # of its last attempt
    builder: str = ""  # worker of its last attempt
    billed: Request | None = None  # the request whose share it uses,
    billed_at: float = 0.0  # and since when
    outcome: Outcome | None = None  # of its last attempt
    losses: list[str] = []  # workers lost while they ran it
    faults: dict[str, str] = {}  # worker -> why it could not do it
    fault_count: int = 0
    refusals: dict[str, Refusal] = {}  # by worker
    first: str = ""  # the worker of the step that it builds once more, which others are to spare
    avoid: frozenset[str] = frozenset()  # workers excluded when it was last queued
    damages: int = 0  # times that its artifact was found damaged
    familiar: bool = False  # other steps may have been built from its present output before
    compared: bool = False  # no step with equal contents was found
    since: float = 0.0  # when its artifact was last known to be present
    unanswered: int = 0  # queries about it that the store failed to answer
    history: list[Transition] = []

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def restricted(self) -> bool:
        """Some workers may be excluded, or were when it was queued before."""
        return bool(self.faults or self.refusals or self.first or self.avoid)


class Worker(msgspec.Struct, eq=False):
    """A machine as it last reported itself, and the attempts that it is believed to run."""

    name: str
    number: int
    instance: str
    arch: str
    slots: int
    features: frozenset[str]
    heard: float
    draining: bool = False  # by its own report
    drained: bool = False  # by an operator
    refusing: str = ""  # why it takes nothing new at present
    free_disk: int = 0
    free_memory: int = 0
    since: float = 0.0  # when it registered
    sequence: int = 0
    former: list[str] = []  # earlier instances
    rival: float = 0.0  # when an earlier instance was heard all the same; 0: never
    held: dict[Id, Attempt] = {}
    acked: tuple[Id, ...] = ()  # outcomes of its last report
    floor: int = 0  # an attempt with a fence up to this that is not held is over here
    storing: int = 0  # attempts that need no slot any more
    reserved: dict[str, None] = {}  # keys of tasks that each reserve a slot for a successor
    faults: int = 0  # in a row
    backoff_until: float = 0.0

    @property
    def open(self) -> bool:
        """It takes new work when there is room."""
        return not (self.draining or self.drained or self.refusing)

    @property
    def room(self) -> int:
        """Attempts that it could take now, apart from backoff."""
        slots = self.slots
        if not self.open or len(self.acked) >= bounds.UNACKNOWLEDGED * slots:
            return 0
        # At most as many attempts that store their artifacts as there are slots: they do not pile
        # up.
        if self.storing:
            slots += min(slots, self.storing)
        return max(0, slots - len(self.held) - len(self.reserved))


class LostWorker(msgspec.Struct):
    """The attempts of a lost worker, which may only have been cut off."""

    instance: str
    held: dict[Id, Attempt]
    floor: int  # as in `Worker`


class Requester(msgspec.Struct, eq=False):
    """A user, whose requests have one share of the workers together."""

    name: str
    share: Share
    requests: dict[str, Request] = {}  # that are not over

    def add(self, request: Request) -> None:
        self.requests[request.id] = request
        self._weigh()

    def remove(self, request: Request) -> None:
        del self.requests[request.id]
        self._weigh()

    def _weigh(self) -> None:
        """The weight is that of the weightiest request, however many there are."""
        weights = (each.share.weight for each in self.requests.values())
        self.share.set_weight(max(weights, default=1.0))


class Request(msgspec.Struct, eq=False):
    """The interest of a requester in some goals."""

    id: str
    title: str
    requester: Requester
    share: Share
    heard: float
    since: float
    first_version: int  # before any news
    keep_going: bool = False
    fail_fast: bool = False
    stopping: bool = False  # it failed: of its steps, only those that run are finished
    priority: int = 0
    detached: bool = False
    state: RequestState = "resolving"
    message: str = ""
    ended: float = 0.0  # when it was over
    size: int = 0  # number of its steps, once resolved
    specs: dict[str, StepSpec] = {}  # its steps, until it is over
    graph: list[GraphStep] = []  # its steps as viewers see them, also when it is over
    goals: tuple[str, ...] = ()  # keys, in the order in which they were given
    wanted: Mapping[str, None] = {}  # keys: the goals, and `BuildGraph.along`
    resolved_at: int = 0  # the version at which the steps were known
    ranks: dict[str, float] = {}  # key -> seconds to the end along the longest path
    needed: dict[str, Task] = {}  # tasks that it wants
    asking: dict[str, None] = {}  # of these, the store is being queried for
    open: int = 0  # of these, number that is not in the store yet
    goals_left: int = 0
    work_left: float = 0.0  # seconds expected for open tasks
    guesses: int = 0  # open tasks of which that is a guess
    planned: float = 0.0  # seconds that were expected for steps built since
    took: float = 0.0  # seconds that these took
    ends: float = 0.0  # when it is expected to end, as estimated last
    next: tuple[str, ...] = ()  # names of the steps that should begin next
    estimate_due: float = 0.0  # when that is estimated anew
    failures: list[str] = []
    lost: dict[str, None] = {}  # keys that failed, or that need one that failed
    results: dict[str, StepState] = {}  # by key, of steps that are not open
    tally: dict[str, int] = {}  # state -> number of results
    #: keys of steps with news, oldest first, "" for the request itself; each is a version
    news: list[str] = []
    longest: list[tuple[float, str]] = []  # heap of (-rank, key)
    index: StepIndex | None = None  # of its steps, once a query needs it

    @property
    def version(self) -> int:
        return self.first_version + len(self.news)

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def running(self) -> int:
        """Attempts billed to it."""
        return self.share.running

    def record(self, key: str, result: StepState | None) -> None:
        """Set the result of a step; None: it is open again."""
        old = self.results.pop(key, None)
        if old is not None:
            self.tally[old.state] -= 1
        if result is not None:
            self.results[key] = result
            self.tally[result.state] = self.tally.get(result.state, 0) + 1
