"""What the core knows: tasks, attempts at them, workers, and requests.  Plain data.

Everything here belongs to one `core.Scheduler`; only it changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fabric import bounds
from fabric.scheduling.named import Index
from fabric.scheduling.shares import Share
from fabric.scheduling.states import LIVE, Cause, State
from fabric.wire.messages import Outcome, RequestState, StepSpec, StepState

#: (kind, name, arch) -> seconds a build took; what `Scheduler` is given and `Learned` tells.
Durations = dict[tuple[str, str, str], float]
#: Names one attempt: (key, fence).
Id = tuple[str, int]

#: What to expect of a step never built before, in seconds.
DEFAULT_SECONDS = {"chunk": 60.0, "stratum": 1.0, "system": 60.0}
#: Transitions a task remembers.
STORY_LENGTH = 60


class Limits(msgspec.Struct, frozen=True):
    """How long and how often.  Times in seconds."""

    lease: float = 10.0  # a worker silent this long is lost
    stale: float = 3.0  # a worker silent this long is given nothing new
    patience: float = 15.0  # an initiator silent this long has left
    grace: float = 30.0  # after a start, what workers run already waits this long for a request
    absence: float = 600.0  # what a lost worker is at may yet count, if it is back by then
    unserved: float = 1800.0  # what no worker is able to do fails after so long; 0: never
    settle: float = 3.0  # after a restart, workers have this long to say what they run
    losses: int = 3  # workers one task may take down
    faults: int = 3  # times machines may be unable to do one task
    asks: int = 5  # times the store may fail to answer
    refusals: int = 3  # times a worker that refuses a task is still counted on to do it later
    shun: float = 15.0  # a worker that refused a task is not offered it again for so long
    damages: int = 3  # times an artifact may be rebuilt because the store spoilt it
    kill: float = 60.0  # what nobody wants is waited for so long, until it may begin elsewhere
    rest: float = 60.0  # at most this long a worker rests after faults in a row


class Transition(msgspec.Struct, frozen=True, gc=False):
    """One line of a task's story."""

    at: float
    cause: Cause
    state: State  # after it
    detail: str = ""


class Attempt(msgspec.Struct, eq=False, gc=False):
    """One try at a task, held by one worker until that worker reports its end or is lost."""

    key: str
    fence: int
    worker: str
    since: float
    token: int = 0  # proves that its worker was given it
    told: int = 0  # the first Desired that may speak of it
    confirmed: bool = False  # the worker has reported it
    doomed: bool = False  # nobody wants it; for good, since the worker may be killing it
    stuck: bool = False  # it is doomed, and is not waited for: its worker does not end it
    over: bool = False  # its end was told before, and its worker is at it all the same
    phase: str = ""
    log_size: int = 0

    @property
    def id(self) -> Id:
        return (self.key, self.fence)


class Refusal(msgspec.Struct):
    """A worker would not do a task."""

    until: float  # when it may be asked again
    message: str
    count: int  # so far


class Task(msgspec.Struct, eq=False):
    """The work for one artifact."""

    key: str
    offer: StepSpec
    number: int  # breaks ties; order of coming
    expected: float  # seconds
    guessed: bool = False  # ``expected`` is: nobody has built it before
    state: State = State.ASKING
    question: int = 0  # the one put to the store about it
    requests: dict[str, Request] = {}  # who wants it
    expanded: bool = False  # its dependencies are tasks too
    missing: int = 0  # dependencies not in the store
    waiters: dict[str, Task] = {}  # tasks that miss this one
    attempt: Attempt | None = None  # while running
    seat: str = ""  # while verifying: the worker that keeps a slot for what comes next
    fence: int = 0  # of its last attempt
    builder: str = ""  # worker of its last attempt
    charged: Request | None = None  # whose share of the workers it uses,
    charged_at: float = 0.0  # and since when
    outcome: Outcome | None = None  # of its last attempt
    losses: list[str] = []  # workers lost while at it
    faults: dict[str, str] = {}  # worker -> what it could not do
    fault_count: int = 0
    refusals: dict[str, Refusal] = {}  # by worker
    avoid: frozenset[str] = frozenset()  # workers that it is not for, when it was last queued
    damages: int = 0  # times its artifact was there, and then found damaged
    since: float = 0.0  # when its artifact was last known to be there
    unanswered: int = 0  # questions about it the store failed to answer
    story: list[Transition] = []

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def choosy(self) -> bool:
        """Not every worker will do."""
        return bool(self.faults or self.refusals)


class Worker(msgspec.Struct, eq=False):
    """A machine, as it last reported itself, and the attempts believed to be on it."""

    name: str
    number: int
    instance: str
    arch: str
    slots: int
    features: frozenset[str]
    heard: float
    draining: bool = False  # by its own word
    drained: bool = False  # by an operator's
    refusing: str = ""  # why it takes nothing new at present
    free_disk: int = 0
    free_memory: int = 0
    since: float = 0.0  # when it registered
    sequence: int = 0
    former: list[str] = []  # instances that it was before
    rival: float = 0.0  # when one of these was heard all the same; 0: never
    held: dict[Id, Attempt] = {}
    settled: tuple[Id, ...] = ()  # outcomes of its last report
    floor: int = 0  # what has a fence up to this, and is not held, is over here
    storing: int = 0  # attempts that need no slot any more
    seats: dict[str, None] = {}  # keys of tasks that each keep a slot for what comes next
    faults: int = 0  # in a row
    rests_until: float = 0.0

    @property
    def open(self) -> bool:
        """It takes new work, when there is room."""
        return not (self.draining or self.drained or self.refusing)

    @property
    def room(self) -> int:
        """Attempts it could take now, but for rest."""
        slots = self.slots
        if not self.open or len(self.settled) >= bounds.UNSETTLED * slots:
            return 0
        # What is stored does not pile up: no more of it than there are slots.
        if self.storing:
            slots += min(slots, self.storing)
        return max(0, slots - len(self.held) - len(self.seats))


class Gone(msgspec.Struct):
    """What a lost worker held, in case it was merely cut off."""

    instance: str
    held: dict[Id, Attempt]
    floor: int  # as in `Worker`


class Requester(msgspec.Struct, eq=False):
    """Who asks, with one request or many: what they get of the workers is counted together."""

    name: str
    share: Share
    requests: dict[str, Request] = {}  # that are not over

    def gain(self, request: Request) -> None:
        self.requests[request.id] = request
        self._weigh()

    def lose(self, request: Request) -> None:
        del self.requests[request.id]
        self._weigh()

    def _weigh(self) -> None:
        """As much as the weightiest of its requests, however many there are."""
        weights = (each.share.weight for each in self.requests.values())
        self.share.weigh(max(weights, default=1.0))


class Request(msgspec.Struct, eq=False):
    """Somebody's interest in some goals."""

    id: str
    title: str
    requester: Requester
    share: Share
    heard: float
    since: float
    born: int  # its version before any news
    keep_going: bool = False
    priority: int = 0
    detached: bool = False
    state: RequestState = "resolving"
    message: str = ""
    size: int = 0  # its steps, once resolved
    offers: dict[str, StepSpec] = {}  # these
    goals: tuple[str, ...] = ()  # keys, as they were asked for
    wanted: Mapping[str, None] = {}  # these, and what was asked for along with them
    known: int = 0  # the version at which these were known
    ranks: dict[str, float] = {}  # key -> seconds to the end, along the longest path
    needed: dict[str, Task] = {}  # the tasks it wants
    asking: dict[str, None] = {}  # of these, the store is being asked
    open: int = 0  # of these, not in the store yet
    goals_left: int = 0
    work_left: float = 0.0  # seconds expected for what is open
    guesses: int = 0  # open tasks of which that is a guess
    failures: list[str] = []
    lost: dict[str, None] = {}  # failed, or in need of what failed
    results: dict[str, StepState] = {}  # what became of steps
    tally: dict[str, int] = {}  # state -> results
    #: keys of steps of which there was news, oldest first, "" for the request itself; each is a
    #: version
    news: list[str] = []
    longest: list[tuple[float, str]] = []  # heap of (-rank, key)
    index: Index | None = None  # of its steps by their names, once somebody has asked

    @property
    def version(self) -> int:
        return self.born + len(self.news)

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def running(self) -> int:
        """Attempts charged to it."""
        return self.share.running

    def record(self, key: str, result: StepState | None) -> None:
        """What became of a step; None: it is open again."""
        old = self.results.pop(key, None)
        if old is not None:
            self.tally[old.state] -= 1
        if result is not None:
            self.results[key] = result
            self.tally[result.state] = self.tally.get(result.state, 0) + 1
