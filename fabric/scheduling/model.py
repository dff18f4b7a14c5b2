"""What the core knows: tasks, attempts at them, workers, and requests.  Plain data.

Everything here belongs to one `core.Scheduler`; only it changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fabric.scheduling.states import LIVE, TABLE, Cause, IllegalTransition, State
from fabric.wire.messages import Offer, Outcome, RequestState, StepState

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
    losses: int = 3  # workers one task may take down
    faults: int = 3  # times machines may be unable to do one task
    asks: int = 5  # times the store may fail to answer
    rest: float = 60.0  # at most this long a worker rests after faults in a row


class Transition(msgspec.Struct, frozen=True):
    """One line of a task's story."""

    at: float
    cause: Cause
    state: State  # after it
    detail: str = ""


class Attempt(msgspec.Struct, eq=False):
    """One try at a task, held by one worker until that worker reports its end or is lost."""

    key: str
    fence: int
    worker: str
    since: float
    told: int = 0  # the first Desired that may speak of it
    confirmed: bool = False  # the worker has reported it
    doomed: bool = False  # nobody wants it; for good, since the worker may be killing it
    phase: str = ""
    log_size: int = 0

    @property
    def id(self) -> Id:
        return (self.key, self.fence)


class Task(msgspec.Struct, eq=False):
    """The work for one artifact."""

    key: str
    offer: Offer
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
    seat: Worker | None = None  # while verifying: has a slot kept for what comes next
    fence: int = 0  # of its last attempt
    builder: str = ""  # worker of its last attempt
    charged: Request | None = None  # whose share of the workers it uses
    outcome: Outcome | None = None  # of its last attempt
    losses: list[str] = []  # workers lost while at it
    faults: dict[str, str] = {}  # worker -> what it could not do
    fault_count: int = 0
    unanswered: int = 0  # questions about it the store failed to answer
    story: list[Transition] = []

    @property
    def live(self) -> bool:
        return self.state in LIVE

    def move(self, cause: Cause, now: float, detail: str = "") -> None:
        """Go where the table says.  IllegalTransition if it says nothing."""
        then = TABLE.get((self.state, cause))
        if then is None:
            story = "; ".join(f"{line.cause} -> {line.state}" for line in self.story)
            raise IllegalTransition(
                f"{self.offer.name}: {cause.name} in state {self.state} (story: {story})"
            )
        self.state = then
        self.story.append(Transition(now, cause, then, detail))
        if len(self.story) > STORY_LENGTH:
            del self.story[1]  # how it began stays


class Worker(msgspec.Struct, eq=False):
    """A machine, as it last reported itself, and the attempts believed to be on it."""

    name: str
    number: int
    instance: str
    arch: str
    slots: int
    features: frozenset[str]
    heard: float
    draining: bool = False
    free_disk: int = 0
    since: float = 0.0  # when it registered
    sequence: int = 0
    former: list[str] = []  # instances that it was before
    held: dict[Id, Attempt] = {}
    settled: tuple[Id, ...] = ()  # outcomes of its last report
    seats: int = 0  # slots kept for what becomes ready in a moment
    faults: int = 0  # in a row
    rests_until: float = 0.0

    @property
    def room(self) -> int:
        """Attempts it could take now, but for rest."""
        return 0 if self.draining else max(0, self.slots - len(self.held) - self.seats)


class Request(msgspec.Struct, eq=False):
    """Somebody's interest in some goals."""

    id: str
    number: int
    title: str
    offers: Mapping[str, Offer]
    goals: frozenset[str]
    keep_going: bool
    ranks: Mapping[str, float]  # key -> seconds from its start to the end, along the longest path
    heard: float
    since: float
    state: RequestState = "checking"
    message: str = ""
    needed: dict[str, None] = {}  # keys of the tasks it wants
    asking: dict[str, None] = {}  # of these, the store is being asked
    open: int = 0  # of these, not in the store yet
    goals_left: int = 0
    work_left: float = 0.0  # seconds expected for what is open
    guesses: int = 0  # open tasks of which that is a guess
    failures: list[str] = []
    lost: dict[str, None] = {}  # failed, or in need of what failed
    results: dict[str, StepState] = {}  # what became of steps
    version: int = 0
    changed: dict[str, int] = {}  # key -> version, oldest first
    running: int = 0  # attempts charged to it
    longest: list[tuple[float, str]] = []  # heap of (-rank, key)

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")
