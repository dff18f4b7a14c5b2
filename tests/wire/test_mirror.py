"""The initiator's side of the protocol."""

import hashlib

import msgspec

from fabric.wire.messages import (
    MAX_LOG_PIECE,
    PROTOCOL,
    Leave,
    LogPiece,
    LogRead,
    Order,
    Poll,
    Published,
    Refused,
    RequestState,
    StepState,
    Submit,
    Update,
)
from fabric.wire.mirror import (
    ASK_AGAIN,
    MANY,
    MISSES,
    AppendLog,
    Changed,
    CloseLog,
    OpenLog,
    Over,
    RequestMirror,
    Send,
)

KEY = "a" * 64
TEXT = b"one\ntwo\nthree\n"


SUBMIT = Submit(PROTOCOL, "r1", "a test", (), ())
ORDER = Order(PROTOCOL, "r1", "an order", "refs/builds/me/r1", "c" * 40, "systems/a.morph")
DETACHED = msgspec.structs.replace(ORDER, detach=True)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Tale:
    """A mirror, what its broker says, and the file that its log becomes."""

    def __init__(self, wanted: Order | Submit | str = SUBMIT) -> None:
        self.mirror = RequestMirror(wanted)
        self.now = 0.0
        self.version = 0
        self.sent: list[object] = []
        self.file: bytes | None = None
        self.closed: bool | None = None

    def do(self, actions: list[object]) -> list[object]:
        rest = []
        for action in actions:
            match action:
                case Send():
                    self.sent.append(action.message)
                case OpenLog():
                    self.file, self.closed = b"", None
                case AppendLog():
                    assert self.file is not None
                    assert action.offset == len(self.file)
                    self.file += action.data
                case CloseLog():
                    self.closed = action.whole
                case _:
                    rest.append(action)
        return rest

    def tick(self, seconds: float = 0.0) -> list[object]:
        self.now += seconds
        return self.do([*self.mirror.tick(self.now)])

    def update(
        self, *steps: StepState, state: RequestState = "building", message: str = ""
    ) -> list[object]:
        self.version += 1
        update = Update("r1", self.version, state, steps, message=message)
        return self.do([*self.mirror.update(update, self.now)])

    def running(self, fence: int = 1, log_size: int = 0) -> list[object]:
        return self.update(StepState(KEY, "running", fence=fence, log_size=log_size))

    def done(self, log: bytes = TEXT, fence: int = 1) -> list[object]:
        return self.update(
            StepState(KEY, "done", fence=fence, log_size=len(log), log_sha256=sha(log)),
            state="done",
        )

    def hint(self, offset: int, data: bytes, fence: int = 1) -> None:
        self.do([*self.mirror.published(Published(KEY, fence, offset, data), self.now)])

    def piece(
        self, offset: int, data: bytes, *, fence: int = 1, size: int = -1, sha256: str = ""
    ) -> None:
        piece = LogPiece(KEY, fence, offset, data, size, sha256)
        self.do([*self.mirror.piece(piece, self.now)])

    def asked(self) -> list[int]:
        """Offsets of ranges asked for since the last time."""
        found = [each.offset for each in self.sent if isinstance(each, LogRead)]
        self.sent = [each for each in self.sent if not isinstance(each, LogRead)]
        return found


def test_it_submits_until_it_is_heard_and_less_and_less_often() -> None:
    tale = Tale()
    times = []
    for _ in range(120):
        before = len(tale.sent)
        tale.tick(0.125)
        times += [tale.now] * (len(tale.sent) - before)
    assert times == [0.125, 1.125, 3.125, 7.125]
    assert all(isinstance(each, Submit) for each in tale.sent)
    tale.update()
    tale.sent.clear()
    tale.tick(10.0)
    assert tale.sent == [Poll("r1", 1)]


def test_news_is_told_once() -> None:
    tale = Tale()
    tale.tick()
    step = StepState(KEY, "ready")
    assert tale.update(step) == [Changed(None, step)]
    assert tale.update(step) == []
    later = StepState(KEY, "running", fence=1)
    assert tale.update(later) == [Changed(step, later)]
    assert tale.update(StepState(KEY, "done"), state="done") == [
        Changed(later, StepState(KEY, "done")),
        Over("done", ""),
    ]
    assert tale.update(state="done") == []


def test_old_updates_and_those_of_others_are_ignored() -> None:
    tale = Tale()
    tale.tick()
    tale.update(StepState(KEY, "ready"))
    tale.update(StepState(KEY, "running", fence=1))
    old = Update("r1", 1, "building", (StepState(KEY, "ready"),))
    assert tale.mirror.update(old, 0.0) == []
    other = Update("r2", 9, "failed", (StepState(KEY, "failed"),))
    assert tale.mirror.update(other, 0.0) == []
    assert tale.mirror.steps[KEY].state == "running"


def test_a_large_update_is_acknowledged_at_once() -> None:
    tale = Tale()
    tale.tick()
    tale.sent.clear()
    tale.update(*(StepState(f"{n:064x}", "ready") for n in range(MANY + 1)))
    assert tale.sent == [Poll("r1", 1)]


def test_a_broker_that_forgot_the_request_gets_it_again() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.sent.clear()
    actions = tale.mirror.refused(Refused("r1", "unknown-request", "?"), tale.now)
    assert [type(action) for action in actions] == [Changed]
    assert tale.mirror.steps[KEY].state == "waiting"
    tale.tick(0.1)
    assert tale.sent == [SUBMIT]
    assert tale.running(fence=7)
    tale.update(StepState(KEY, "done"))
    assert tale.update(StepState(KEY, "cached")) == [], "it is the same news"


def test_a_refused_request_is_over() -> None:
    tale = Tale()
    tale.tick()
    refused = Refused("r1", "protocol", "upgrade the broker")
    [over] = tale.mirror.refused(refused, tale.now)
    assert over == Over("failed", "upgrade the broker", refused=True)
    assert tale.mirror.complete
    assert tale.mirror.refused(refused, tale.now) == []
    tale.sent.clear()
    tale.tick(5.0)
    assert tale.sent == []


def test_leaving() -> None:
    tale = Tale()
    tale.tick()
    assert tale.mirror.leave() == [Send(Leave("r1"))]
    assert tale.mirror.over


def test_an_order_is_repeated_until_it_is_heard_and_says_what_it_came_to() -> None:
    tale = Tale(ORDER)
    assert tale.mirror.state == "resolving"
    tale.tick()
    tale.tick(1.0)
    assert tale.sent == [ORDER, ORDER]
    tale.update(state="resolving")
    assert (tale.mirror.state, tale.mirror.title) == ("resolving", "an order")
    update = Update("r1", 9, "checking", (), title="its title", goals=(KEY,))
    tale.mirror.update(update, tale.now)
    tale.mirror.update(Update("r1", 10, "building"), tale.now)
    assert (tale.mirror.title, tale.mirror.goals) == ("its title", (KEY,))


def test_leaving_a_detached_request_does_not_end_it() -> None:
    tale = Tale(DETACHED)
    tale.tick()
    tale.update()
    assert tale.mirror.leave() == [Send(Leave("r1"))]
    assert not tale.mirror.over


def test_following_what_somebody_else_asked_for() -> None:
    tale = Tale("r1")
    tale.tick()
    tale.tick(1.0)
    assert tale.sent == [Poll("r1", 0), Poll("r1", 0)], "asked until it is answered"
    tale.mirror.update(Update("r1", 1, "building", title="theirs", goals=(KEY,)), tale.now)
    tale.version = 1
    assert (tale.mirror.title, tale.mirror.goals) == ("theirs", (KEY,))
    tale.running()
    tale.hint(0, TEXT)
    tale.done()
    assert (tale.file, tale.closed) == (TEXT, True)
    assert tale.mirror.complete
    assert tale.mirror.leave() == [], "it is not ours to end"


def test_following_what_there_is_not() -> None:
    tale = Tale("r1")
    tale.tick()
    refused = Refused("r1", "unknown-request", "there is no such request (any more)")
    [over] = tale.mirror.refused(refused, tale.now)
    assert over == Over("failed", "there is no such request (any more)", refused=True)
    assert tale.mirror.complete


def test_logs_end_with_a_request_that_is_forgotten() -> None:
    """Found by the simulator: whoever followed it waited for the rest of its logs for ever."""
    tale = Tale("r1")
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.do([*tale.mirror.refused(Refused("r1", "unknown-request", "?"), tale.now)])
    assert tale.closed is False
    assert tale.mirror.complete


def test_the_broker_tells_a_logs_name() -> None:
    tale = Tale("r1")
    log = "build-step-zlib-misc.log"
    step = StepState(KEY, "running", name="zlib", kind="chunk", log=log, fence=1)
    actions = tale.mirror.update(Update("r1", 1, "building", (step,)), tale.now)
    assert actions == [Changed(None, step), OpenLog(KEY, 1, log)]


def test_a_forgotten_step_keeps_its_name() -> None:
    tale = Tale()
    tale.tick()
    tale.update(StepState(KEY, "ready", name="zlib", kind="chunk", log="zlib.log", expected=3.0))
    tale.mirror.refused(Refused("r1", "unknown-request", "?"), tale.now)
    waiting = StepState(KEY, "waiting", name="zlib", kind="chunk", log="zlib.log")
    assert tale.mirror.steps[KEY] == waiting


def test_an_artifact_that_is_built_once_more_has_a_new_log() -> None:
    """Its first one was spoilt in the store."""
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT)
    size = len(TEXT)
    tale.update(StepState(KEY, "done", fence=1, log_size=size, log_sha256=sha(TEXT)))
    assert tale.closed
    tale.update(StepState(KEY, "waiting"))
    tale.running(fence=2)
    assert tale.file == b""
    tale.hint(0, TEXT, fence=2)
    tale.done(fence=2)
    assert (tale.file, tale.closed) == (TEXT, True)


def test_a_log_grows_with_the_stream_and_is_proven_whole() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    assert tale.file == TEXT[:4]
    tale.hint(4, TEXT[4:])
    tale.done()
    assert (tale.file, tale.closed) == (TEXT, True)
    assert tale.mirror.complete
    assert tale.asked() == []


def test_a_log_of_an_unknown_step_or_attempt_is_ignored() -> None:
    tale = Tale()
    tale.hint(0, TEXT)
    tale.tick()
    tale.running(fence=2)
    tale.hint(0, TEXT, fence=1)
    tale.piece(0, TEXT, fence=1)
    assert tale.file == b""


def test_repeats_and_overlaps_are_harmless() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:6])
    tale.hint(0, TEXT[:6])
    tale.hint(2, TEXT[2:9])
    tale.hint(3, TEXT[3:5])
    assert tale.file == TEXT[:9]


def test_a_gap_is_asked_for() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:2])
    tale.hint(6, TEXT[6:9])
    tale.hint(9, TEXT[9:])
    assert tale.asked() == [2], "once"
    tale.piece(2, TEXT[2:8])
    assert tale.asked() == [8], "and at once for the rest"
    tale.piece(8, TEXT[8:])
    assert tale.file == TEXT


def test_an_answer_that_is_lost_is_asked_for_again() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(4, TEXT[4:])
    assert tale.asked() == [0]
    tale.tick(ASK_AGAIN / 2)
    assert tale.asked() == []
    assert tale.mirror.due <= tale.now + ASK_AGAIN
    tale.tick(ASK_AGAIN)
    assert tale.asked() == [0]


def test_the_end_shows_that_bytes_are_missing() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.done()
    assert tale.mirror.over
    assert not tale.mirror.complete
    tale.tick(0.05)
    assert tale.asked() == [4]
    tale.piece(4, TEXT[4:])
    assert tale.closed is True
    assert tale.mirror.complete


def test_a_step_s_own_report_shows_that_bytes_are_missing() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.running(log_size=len(TEXT))
    assert tale.asked() == [], "the stream may bring it yet"
    tale.tick(ASK_AGAIN)
    assert tale.asked() == [0]


def test_a_new_attempt_begins_its_log_anew() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, b"the first")
    tale.update(StepState(KEY, "ready"))
    tale.running(fence=2)
    assert tale.file == b""
    tale.hint(0, TEXT, fence=2)
    tale.done(fence=2)
    assert (tale.file, tale.closed) == (TEXT, True)


def test_a_wrong_log_is_read_again_once() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT.upper())
    tale.done()
    assert tale.file == b""
    tale.tick(1.0)
    assert tale.asked() == [0]
    tale.piece(0, TEXT)
    assert (tale.file, tale.closed) == (TEXT, True)


def test_a_log_that_stays_wrong_is_closed_as_such() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT.upper())
    tale.done()
    tale.tick(1.0)
    tale.piece(0, TEXT.upper())
    assert tale.closed is False
    assert tale.mirror.complete


def test_the_log_of_a_lost_worker_ends_where_the_broker_s_copy_does() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.update(StepState(KEY, "failed", fence=1, message="it was lost"), state="failed")
    tale.tick(1.0)
    assert tale.asked() == [4]
    tale.piece(4, b"")
    assert tale.closed is False


def test_a_log_whose_rest_never_comes_is_given_up() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.done()
    for _ in range(MISSES + 2):
        tale.tick(ASK_AGAIN)
        tale.piece(0, b"", size=len(TEXT), sha256=sha(TEXT))
    assert tale.closed is False
    assert tale.mirror.complete


def test_no_log_at_all() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.done()
    tale.do([*tale.mirror.refused(Refused(KEY, "no-log", "none is kept"), tale.now)])
    assert tale.closed is False


def test_an_empty_log_is_whole() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.update(StepState(KEY, "done", fence=1), state="done")
    assert (tale.file, tale.closed) == (b"", True)


def test_the_log_of_a_step_that_was_killed_just_ends() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.update(StepState(KEY, "cancelled", fence=1), state="failed")
    assert (tale.file, tale.closed) == (TEXT[:4], True)


def test_a_long_log_is_read_piece_by_piece() -> None:
    tale = Tale()
    tale.tick()
    text = b"x" * (3 * MAX_LOG_PIECE + 1)
    tale.done(text)
    tale.tick(1.0)
    for n in range(4):
        assert tale.asked() == [n * MAX_LOG_PIECE]
        tale.piece(n * MAX_LOG_PIECE, text[n * MAX_LOG_PIECE :][:MAX_LOG_PIECE])
    assert tale.closed is True


def test_what_a_restarted_broker_never_speaks_of_again_ends_with_the_request() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT)
    tale.do([*tale.mirror.refused(Refused("r1", "unknown-request", "?"), tale.now)])
    tale.update(state="done")
    assert not tale.mirror.complete
    tale.tick(1.0)
    tale.piece(len(TEXT), b"", size=len(TEXT), sha256=sha(TEXT))
    assert tale.closed is True
    assert tale.mirror.complete
