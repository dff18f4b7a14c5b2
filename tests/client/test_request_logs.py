"""The mirror of the logs of a request."""

from collections.abc import Sequence

import msgspec
import pytest
from mirror_kit import GRAPH, KEY, TEXT, Tale, sha

from fabric import bounds
from fabric.client.request import AHEAD, Action, RequestMirror
from fabric.client.request_logs import (
    ASK_AGAIN,
    GIVE_UP,
    MISSES,
    CloseLog,
    OpenLog,
    Send,
)
from fabric.wire.messages import LogPiece, LogRead, Published, Rejected, StepState, Update


def test_log_grows_with_the_stream_and_is_verified() -> None:
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


def test_log_of_an_unknown_step_or_attempt_is_ignored() -> None:
    tale = Tale()
    tale.hint(0, TEXT)
    tale.tick()
    tale.running(fence=2)
    tale.hint(0, TEXT, fence=1)
    tale.piece(0, TEXT, fence=1)
    assert tale.file == b""


def test_log_may_begin_before_an_update_mentions_it() -> None:
    tale = Tale()
    tale.tick()
    tale.update(StepState(KEY, "ready"))
    assert tale.follows == [True], "so that nothing is missed"
    tale.update(StepState(KEY, "ready", name="zlib"))
    assert tale.follows == [True], "once"
    tale.hint(0, TEXT[:4], fence=2)
    tale.hint(4, TEXT[4:9], fence=2)
    assert tale.file == TEXT[:9]
    tale.running(fence=1)  # the update is older
    tale.hint(9, TEXT[9:], fence=2)
    assert tale.file == TEXT
    tale.done(fence=2)
    assert (tale.closed, tale.asked()) == (True, [])
    tale.hint(0, b"late", fence=3)
    assert tale.file == TEXT, "it has ended"


def test_log_of_many_steps_is_not_followed_ahead() -> None:
    tale = Tale()
    tale.tick()
    tale.update(*(StepState(f"{n:064x}", "waiting") for n in range(2 * AHEAD)))
    assert len(tale.follows) == AHEAD
    tale.update(StepState(KEY, "cached"))
    assert len(tale.follows) == AHEAD


def test_log_repeats_and_overlaps_are_harmless() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:6])
    tale.hint(0, TEXT[:6])
    tale.hint(2, TEXT[2:9])
    tale.hint(3, TEXT[3:5])
    assert tale.file == TEXT[:9]


def test_log_gap_is_read() -> None:
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


def test_log_read_without_an_answer_is_repeated() -> None:
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


def test_log_end_shows_that_bytes_are_missing() -> None:
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


def test_log_size_in_an_update_shows_that_bytes_are_missing() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.running(log_size=len(TEXT))
    assert tale.asked() == [], "the stream may bring it yet"
    tale.tick(ASK_AGAIN)
    assert tale.asked() == [0]


def test_log_of_a_new_attempt_begins_anew() -> None:
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


def test_log_with_a_wrong_digest_is_read_again_once() -> None:
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


def test_log_that_stays_wrong_is_closed_as_incomplete() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT.upper())
    tale.done()
    tale.tick(1.0)
    tale.piece(0, TEXT.upper())
    assert tale.closed is False
    assert tale.mirror.complete


def test_log_of_a_lost_worker_ends_with_the_spool() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.update(StepState(KEY, "failed", fence=1, message="it was lost"), state="failed")
    tale.tick(1.0)
    assert tale.asked() == [4]
    tale.piece(4, b"", ended=True)
    assert tale.closed is False


def test_log_of_an_ended_attempt_at_a_step_that_another_built_is_left_to_the_store() -> None:
    """Seed 920146442: a full disk takes the order back, and another request builds the step."""
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.update(StepState(KEY, "cached"))
    tale.tick(1.0)
    assert tale.asked() == [4]
    tale.piece(4, b"", ended=True)
    assert tale.closed is False, "`complete` takes it from the store"


def test_log_does_not_end_by_an_answer_from_before_its_end() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.update(StepState(KEY, "cached"))
    tale.tick(1.0)
    assert tale.asked() == [0]
    tale.piece(0, b"")
    assert tale.closed is None
    tale.tick(ASK_AGAIN)
    assert tale.asked() == [0]
    tale.piece(0, TEXT, size=len(TEXT), sha256=sha(TEXT), ended=True)
    assert tale.closed is True


def test_log_whose_rest_never_comes_is_given_up() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.done()
    for _ in range(MISSES + 2):
        tale.tick(ASK_AGAIN)
        tale.piece(0, b"", size=len(TEXT), sha256=sha(TEXT))
    assert tale.closed is False
    assert tale.mirror.complete


def test_log_that_completes_when_given_up_is_closed_once() -> None:
    """Found by the simulator: it was closed twice, and the initiator ended with a KeyError."""
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT)
    tale.done(TEXT + b"four\n")
    for _ in range(MISSES):
        tale.tick(ASK_AGAIN)
        tale.piece(len(TEXT), b"", size=len(TEXT) + 5, sha256="0" * 64)
    tale.piece(len(TEXT), b"", size=len(TEXT), sha256=sha(TEXT))
    assert tale.closed is True
    assert tale.mirror.complete


def test_log_that_does_not_exist() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.done()
    tale.do([*tale.mirror.rejected(Rejected(KEY, "no-log", "none is kept"), tale.now)])
    assert tale.closed is False


def test_log_that_cannot_be_read_now_is_read_again() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.done()
    tale.do([*tale.mirror.rejected(Rejected(KEY, "not-now", "no route to host"), tale.now)])
    assert not tale.mirror.complete
    tale.tick(4.0)
    tale.piece(0, TEXT, size=len(TEXT), sha256=sha(TEXT))
    assert (tale.file, tale.closed) == (TEXT, True)


def test_log_may_be_empty() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.update(StepState(KEY, "done", fence=1), state="done")
    assert (tale.file, tale.closed) == (b"", True)


def test_log_of_a_killed_step_ends() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.update(StepState(KEY, "cancelled", fence=1), state="failed")
    assert (tale.file, tale.closed) == (TEXT[:4], True)


def test_log_that_is_long_is_read_piece_by_piece() -> None:
    tale = Tale()
    tale.tick()
    text = b"x" * (3 * bounds.LOG_RANGE + 1)
    tale.done(text)
    tale.tick(1.0)
    for n in range(4):
        assert tale.asked() == [n * bounds.LOG_RANGE]
        tale.piece(n * bounds.LOG_RANGE, text[n * bounds.LOG_RANGE :][: bounds.LOG_RANGE])
    assert tale.closed is True


def test_log_of_a_forgotten_step_ends_with_the_request() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT)
    tale.do([*tale.mirror.rejected(Rejected("r1", "unknown-request", "?"), tale.now)])
    tale.update(state="done")
    assert not tale.mirror.complete
    tale.tick(1.0)
    tale.piece(len(TEXT), b"", size=len(TEXT), sha256=sha(TEXT))
    assert tale.closed is True
    assert tale.mirror.complete


def test_log_read_that_cannot_be_sent_is_repeated_soon() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(4, TEXT[4:])
    [read] = [each for each in tale.sent if isinstance(each, LogRead)]
    tale.mirror.unsent(read)
    tale.sent.clear()
    tale.tick(tale.mirror.due - tale.now)
    assert tale.sent == [read], "no poll takes its place"
    assert tale.now < ASK_AGAIN / 2


def test_log_far_behind_the_stream_is_read_until_it_catches_up() -> None:
    text = bytes(range(256)) * 4096 * 3  # three ranges
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(2 * bounds.LOG_RANGE, text[2 * bounds.LOG_RANGE :][:100])
    for offset in (0, bounds.LOG_RANGE):
        assert tale.asked() == [offset]
        tale.piece(offset, text[offset : offset + bounds.LOG_RANGE])
    assert tale.asked() == [2 * bounds.LOG_RANGE]
    assert tale.follows == [False]
    tale.piece(2 * bounds.LOG_RANGE, text[2 * bounds.LOG_RANGE :][:100])
    assert tale.follows == [False, True]
    assert tale.asked() == [2 * bounds.LOG_RANGE + 100], "for what nobody streamed meanwhile"
    tale.piece(2 * bounds.LOG_RANGE + 100, b"")
    assert tale.asked() == []
    tale.hint(2 * bounds.LOG_RANGE + 100, text[2 * bounds.LOG_RANGE + 100 :])
    tale.done(text)
    assert tale.closed is True


def test_log_range_without_an_answer_is_read_again() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(2 * bounds.LOG_RANGE, b"x")
    assert tale.asked() == [0]
    tale.piece(0, bytes(bounds.LOG_RANGE))
    assert tale.asked() == [bounds.LOG_RANGE]
    tale.tick(2 * ASK_AGAIN)
    assert tale.asked() == [bounds.LOG_RANGE]


def test_log_does_not_begin_after_the_end_of_a_request() -> None:
    tale = Tale("r1")
    tale.tick()
    tale.update(StepState(KEY, "ready", name="zlib"))
    tale.do([*tale.mirror.rejected(Rejected("r1", "unknown-request", "?"), tale.now)])
    tale.hint(0, TEXT, fence=9)
    assert tale.file is None
    assert tale.mirror.complete


def test_log_is_given_up_if_the_broker_is_silent_after_the_end() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.tick(1000.0)
    tale.done()
    for _ in range(5):
        tale.tick(GIVE_UP / 2)
        tale.piece(len(tale.file or b""), TEXT[len(tale.file or b"") :][:1])
    assert not tale.mirror.complete, "there is news"
    tale.tick(GIVE_UP - 0.1)
    assert not tale.mirror.complete
    tale.tick(0.1)
    assert tale.closed is False
    assert tale.mirror.complete


def test_update_after_the_end_changes_nothing() -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT)
    tale.done()
    assert tale.running(fence=2) == []
    assert tale.update(state="cancelled") == []
    assert (tale.mirror.state, tale.mirror.complete, tale.file) == ("done", True, TEXT)


@pytest.mark.parametrize("closed", [False, True])
def test_log_of_a_failure_is_not_that_of_a_later_attempt(closed: bool) -> None:
    tale = Tale()
    tale.tick()
    tale.running()
    tale.hint(0, TEXT[:4])
    tale.hint(0, b"a later attempt", fence=2)  # the stream is faster than the update
    if closed:
        tale.do([*tale.mirror.rejected(Rejected(KEY, "no-log", "?"), tale.now)])
    failed = StepState(KEY, "failed", fence=1, log_size=len(TEXT), log_sha256=sha(TEXT))
    tale.update(failed, state="failed")
    tale.tick()
    assert tale.asked() == [0]
    tale.piece(0, TEXT, size=len(TEXT), sha256=sha(TEXT))
    assert (tale.file, tale.closed) == (TEXT, True)
    assert tale.mirror.complete


def many_done(number: int, most: int = bounds.LOGS_OPEN) -> RequestMirror:
    """A request that is over, with logs that are not read yet."""
    done = StepState(KEY, "done", fence=1, log_size=1, log_sha256=sha(b"x"))
    steps = [msgspec.structs.replace(done, key=f"{n:064x}") for n in range(number)]
    mirror = RequestMirror("r1", most)
    mirror.update(Update("r1", 1, "done", tuple(steps)), 0.0)
    return mirror


def reads(actions: Sequence[Action]) -> list[str]:
    """The keys of logs with a pending question."""
    sent = [each.message for each in actions if isinstance(each, Send)]
    return [each.key for each in sent if isinstance(each, LogRead)]


@pytest.mark.bound("LOGS_READ")
def test_log_reads_at_a_time_are_few() -> None:
    mirror, now, whole = many_done(2000), 0.0, 0
    asked: dict[str, None] = {}
    while not mirror.complete:
        asked |= dict.fromkeys(reads(mirror.tick(now)))
        assert 0 < len(asked) <= bounds.LOGS_READ
        now += 0.1
        key, _ = asked.popitem()
        piece = LogPiece(key, 1, 0, b"x", 1, sha(b"x"))
        whole += CloseLog(piece.key, 1, whole=True) in mirror.piece(piece, now)
    assert whole == 2000


def test_log_reads_slow_down_without_answers() -> None:
    mirror = many_done(1)
    times = [n / 10 for n in range(int(GIVE_UP * 10)) if reads(mirror.tick(n / 10))]
    assert times == [0.0, 0.5, 1.5, *(3.5 + 2.0 * n for n in range(14))]


@pytest.mark.bound("LOGS_OPEN")
def test_log_past_the_bound_waits_for_others() -> None:
    tale = Tale()
    tale.mirror = RequestMirror(GRAPH, 2)
    tale.tick()
    steps = [StepState(f"{n:064x}", "running", fence=1) for n in range(3)]
    actions: Sequence[Action] = tale.mirror.update(Update("r1", 1, "building", tuple(steps)), 0.0)
    assert [each.key for each in actions if isinstance(each, OpenLog)] == [f"{0:064x}", f"{1:064x}"]
    assert tale.mirror.published(Published(f"{2:064x}", 1, 0, b"x"), 0.0) == []
    done = StepState(f"{0:064x}", "done", fence=1)
    actions = tale.mirror.update(Update("r1", 2, "building", (done,)), 0.0)
    assert CloseLog(f"{0:064x}", 1, whole=True) in actions
    assert tale.mirror.due < 0.0, "at once"
    actions = tale.mirror.tick(0.0)
    assert OpenLog(f"{2:064x}", 1) in actions
    assert reads(actions) == [f"{2:064x}"], "what was streamed meanwhile"
