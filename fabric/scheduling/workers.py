"""Workers: their reports, the attempts that they hold, and their leases.

A worker reports its whole state again and again; it is never assumed to have received a desired
state.  It *holds* an attempt from the assignment until it reports the attempt's end, reports
without the attempt, or is lost.

Each attempt gives one `Began` and one `Ended`.  A lost worker may only have been cut off: its
attempts end when it comes back without them, or stays away for `Limits.absence`.  A worker proves
by their tokens that it was given the attempts it reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from fabric import bounds
from fabric.scheduling.attempts import adopt, cancel, detach, reserve_slot, wait_no_longer
from fabric.scheduling.events import Began, Ended
from fabric.scheduling.lifecycle import fail
from fabric.scheduling.model import Attempt, Id, LostWorker, Task, Worker
from fabric.scheduling.retries import back_off, on_fault, on_refusal, try_again
from fabric.scheduling.state import FarmState
from fabric.scheduling.states import Cause, State
from fabric.scheduling.store import complain
from fabric.wire.messages import STORING, Outcome, Report, Running

# -- reports -------------------------------------------------------------------------------


def on_report(state: FarmState, report: Report) -> None:
    most = bounds.ATTEMPTS_A_SLOT * (report.slots or 1)
    if (count := len(report.running) + len(report.finished)) > most:
        reason = f"{report.name} reports {count} attempts; with its slots it may have {most}"
        state.outbox.reject(report.name, "bad-request", reason)
        return
    worker = state.workers.get(report.name)
    restarted = False
    returned: list[Attempt] = []
    if worker is None:
        worker = _register(state, report)
        returned = list(worker.held.values())
    elif report.instance in worker.former and not _is_present_run(state, worker, report):
        return
    elif report.instance != worker.instance:
        restarted = True
        worker.former.append(worker.instance)
        del worker.former[:-10]
        worker.instance, worker.sequence, worker.since = report.instance, 0, state.now
        worker.rival = 0.0
    if report.sequence <= worker.sequence:
        return
    describe(state, worker, report)
    obeyed = report.answered if report.epoch == state.epoch else 0
    known, floor = worker.held.copy(), worker.floor
    running = {(each.key, each.fence): each for each in report.running}
    finished = {(each.key, each.fence): each for each in report.finished}
    for attempt in returned:
        if attempt.id in running and not attempt.cancelling:
            _take_up(state, attempt)
        elif attempt.id not in finished:
            cancel(state, attempt)
    for id, attempt in known.items():
        if (outcome := finished.get(id)) is not None:
            _on_outcome(state, worker, attempt, outcome)
        elif (seen := running.get(id)) is not None:
            _on_running(state, attempt, seen)
        elif attempt.confirmed or restarted or obeyed >= attempt.assigned_in:
            _on_missing(state, worker, attempt)
        elif state.now - attempt.since > 2 * state.limits.lease:
            _on_untaken(state, worker, attempt)
    reported: Iterable[tuple[Id, Running | Outcome]]
    reported = chain(running.items(), finished.items())
    for id, each in reported:
        if id in known or id in worker.held or id in worker.acked:
            continue
        if each.token != state.token(each.key, each.fence, worker.name):
            break  # nor are the others looked at
        ended = each.fence > state.first_fence or each.fence <= floor
        if isinstance(each, Running):
            _on_unknown(state, worker, each, ended=ended, stuck=each.fence <= floor)
        elif not ended:
            _on_late_outcome(state, worker, each)
    worker.acked = tuple(finished)
    state.queues.update_room(worker.name, state.now)
    state.outbox.desired[worker.name] = None


def _is_present_run(state: FarmState, worker: Worker, report: Report) -> bool:
    """Whether a report of an earlier instance shows that it is the present one.

    The report may be a late one.  Or the report that made it an earlier one was late: then the
    instance taken for the present one is silent.  Or both run: then they are heard in turns.
    """
    if state.now - worker.heard > state.limits.stale:
        worker.former.remove(report.instance)
        return True
    if not worker.rival:
        worker.rival = state.now
    elif worker.heard > worker.rival:
        reason = f"another worker is named {report.name} too: give each its own name"
        state.outbox.reject(report.name, "bad-request", reason)
    return False


def _register(state: FarmState, report: Report) -> Worker:
    state.count += 1
    worker = Worker(
        name=report.name,
        number=state.count,
        instance=report.instance,
        arch=report.arch,
        slots=0,
        features=frozenset(),
        heard=state.now,
        since=state.now,
        drained=report.name in state.drained,
    )
    state.workers[worker.name] = worker
    state.timers.start(state.now + state.limits.lease, check_lease, worker.name)
    state.queues.join(worker, state.now)
    lost = state.lost_workers.get(worker.name)
    if lost is not None and lost.instance == worker.instance:
        del state.lost_workers[worker.name]
        worker.held = lost.held
        # It was cut off, and its attempts did not take it down.
        for key, _ in worker.held:
            task = state.tasks.get(key)
            if task is not None and worker.name in task.losses:
                task.losses.remove(worker.name)
    else:
        _forget_lost(state, worker.name)
    if lost is not None:
        worker.floor = lost.floor  # the attempts of another run of it are over
    return worker


def describe(state: FarmState, worker: Worker, report: Report) -> None:
    """Take over what a worker reports of itself."""
    worker.sequence = report.sequence
    worker.heard = state.now
    worker.free_disk, worker.free_memory = report.free_disk, report.free_memory
    state.capacity += report.slots - worker.slots
    worker.slots = report.slots
    worker.storing = sum(each.phase == STORING for each in report.running)
    features = frozenset(report.features)
    new = (report.arch, features, report.draining, bool(report.refusing))
    old = (worker.arch, worker.features, worker.draining, bool(worker.refusing))
    worker.arch, worker.features, worker.draining = report.arch, features, report.draining
    worker.refusing = report.refusing
    if new != old:
        state.queues.join(worker, state.now)


# -- running attempts ----------------------------------------------------------------------


def _on_running(state: FarmState, attempt: Attempt, seen: Running) -> None:
    attempt.confirmed = True
    attempt.log_size = seen.log_size
    if attempt.phase != seen.phase:
        attempt.phase = seen.phase
        _note_phase(state, attempt)
        task = state.tasks.get(attempt.key)
        if task is not None and task.attempt is attempt:
            state.task_changed(task)


def _note_phase(state: FarmState, attempt: Attempt) -> None:
    if attempt.phase and len(attempt.phases) < bounds.PHASES:
        attempt.phases += ((attempt.phase, state.now),)


def _on_unknown(
    state: FarmState, worker: Worker, seen: Running, *, ended: bool, stuck: bool
) -> None:
    """A worker runs an attempt that it was not known to run.

    ``ended``: the attempt is known to have ended, or was given up: it is cancelled, without news.
    ``stuck``: besides, it blocks nothing, as a worker may report such an attempt again and again.
    """
    attempt = Attempt(seen.key, seen.fence, worker.name, state.now, seen.token, ended=ended)
    attempt.confirmed = True
    attempt.phase, attempt.log_size = seen.phase, seen.log_size
    _note_phase(state, attempt)
    worker.held[attempt.id] = attempt
    if ended:
        attempt.stuck = stuck
        cancel(state, attempt)
    else:
        state.outbox.effects.append(Began(seen.key, seen.fence, worker.name, found=True))
        _take_up(state, attempt)


def _take_up(state: FarmState, attempt: Attempt) -> None:
    """An attempt of no task runs: it may become a task's."""
    key = attempt.key
    task = state.tasks.get(key)
    if task is None:
        wanted = state.now < state.grace_until
    else:
        early = task.state in (State.ASKING, State.BLOCKED, State.COMPARING, State.READY)
        wanted = early and task.fence <= attempt.fence
    if not wanted or key in state.orphans:
        cancel(state, attempt)
    elif task is None or task.state in (State.ASKING, State.COMPARING):
        state.orphans[key] = attempt
    else:
        adopt(state, task, attempt)


def end_grace(state: FarmState, _: None) -> None:
    """Orphans that no request wants by now are cancelled."""
    for key, attempt in list(state.orphans.items()):
        if key not in state.tasks:
            cancel(state, attempt)


# -- ended attempts ------------------------------------------------------------------------


def _on_late_outcome(state: FarmState, worker: Worker, outcome: Outcome) -> None:
    """An attempt ended that a former run of the broker began."""
    if _claimant(state, outcome, ("done", "failed")):
        attempt = Attempt(outcome.key, outcome.fence, worker.name, state.now, outcome.token)
        worker.held[attempt.id] = attempt
        state.outbox.effects.append(Began(outcome.key, outcome.fence, worker.name, found=True))
        _on_outcome(state, worker, attempt, outcome)


def _claimant(state: FarmState, outcome: Outcome, results: tuple[str, ...]) -> Task | None:
    """The task that can use the outcome of an attempt that is not its own, if there is one."""
    task = state.tasks.get(outcome.key)
    if (
        task is not None
        and task.state in (State.BLOCKED, State.COMPARING, State.READY)
        and task.fence <= outcome.fence
        and outcome.result in results
    ):
        return task
    return None


def _on_outcome(state: FarmState, worker: Worker, attempt: Attempt, outcome: Outcome) -> None:
    task = state.tasks.get(attempt.key)
    if (task is None or task.attempt is not attempt) and not attempt.ended:
        # A cancelled attempt may fail because it is killed.
        results = ("done",) if attempt.cancelling else ("done", "failed")
        if (task := _claimant(state, outcome, results)) is not None:
            wait_no_longer(state, attempt)
            adopt(state, task, attempt)
    task = _release(state, worker, attempt, outcome)
    if task is None:
        return
    task.outcome = outcome
    faulty = outcome.result in ("fault", "refused")
    if faulty and outcome.damaged and complain(state, task, attempt, outcome):
        return
    match outcome.result:
        case "done":
            worker.faults = 0
            state.transition(task, Cause.FINISHED, worker.name)
            reserve_slot(state, task, worker)
            state.outbox.query_store(task)
            state.task_changed(task)
        case "failed":
            worker.faults = 0
            fail(state, task, Cause.BROKE, outcome.message)
        case "cancelled" if worker.draining:
            try_again(state, task, Cause.RETURNED, worker.name)
        case "cancelled":
            on_fault(state, task, worker.name, "it handed the job back")
        case "refused":
            on_refusal(state, task, worker, outcome.message)
        case "fault":
            on_fault(state, task, worker.name, outcome.message)


def _on_untaken(state: FarmState, worker: Worker, attempt: Attempt) -> None:
    """A worker that is heard does not hear, or does not do as it should."""
    floor = worker.floor
    task = _release(state, worker, attempt, None)
    worker.floor = floor  # it may take the attempt yet
    back_off(state, worker)
    if task is not None:
        try_again(state, task, Cause.UNTAKEN, worker.name)


def _on_missing(state: FarmState, worker: Worker, attempt: Attempt) -> None:
    """An attempt is gone, with an unknown outcome."""
    task = _release(state, worker, attempt, None)
    if task is not None:
        on_loss(state, task, worker.name)


def on_loss(state: FarmState, task: Task, name: str) -> None:
    """The worker of a task is gone, or cannot be heard."""
    task.losses.append(name)
    if len(task.losses) >= state.limits.losses:
        names = ", ".join(dict.fromkeys(task.losses))
        message = f"it was lost {len(task.losses)} times, with its worker: {names}"
        fail(state, task, Cause.EXHAUSTED, message)
    else:
        try_again(state, task, Cause.LOST, name)


def _release(
    state: FarmState, worker: Worker, attempt: Attempt, outcome: Outcome | None
) -> Task | None:
    """A worker holds an attempt no longer; returns the task whose attempt it was, if any.

    The caller updates the worker's room, once for all attempts of a report.
    """
    del worker.held[attempt.id]
    if attempt.fence > worker.floor:
        worker.floor = attempt.fence
    task = state.tasks.get(attempt.key)
    emit_ended(state, attempt, outcome)
    return detach(state, attempt, task)


def emit_ended(state: FarmState, attempt: Attempt, outcome: Outcome | None) -> None:
    if attempt.ended:
        return
    spec = attempt.spec
    if spec is None and (task := state.tasks.get(attempt.key)) is not None:
        spec = task.spec
    what = ("", "", "") if spec is None else (spec.kind, spec.name, spec.arch)
    about = (attempt.key, attempt.fence, attempt.worker, *what)
    state.outbox.effects.append(Ended(*about, attempt.since, outcome, attempt.phases))


# -- leases --------------------------------------------------------------------------------


def check_lease(state: FarmState, name: str) -> None:
    worker = state.workers[name]
    if state.now < worker.heard + state.limits.lease:
        state.timers.start(worker.heard + state.limits.lease, check_lease, name)
        return
    state.queues.leave(name, state.now)
    del state.workers[name]
    state.capacity -= worker.slots
    for key in worker.reserved:
        state.tasks[key].reserved_on = ""
    for attempt in list(worker.held.values()):
        task = detach(state, attempt, state.tasks.get(attempt.key))
        if task is not None:
            on_loss(state, task, name)
    state.lost_workers[name] = LostWorker(worker.instance, worker.held, worker.floor)
    due = state.now + state.limits.absence
    state.timers.start(due, check_absence, (name, worker.instance))
    if len(state.lost_workers) > bounds.LOST_WORKERS:
        _forget_lost(state, next(iter(state.lost_workers)))


def check_absence(state: FarmState, lost_worker: tuple[str, str]) -> None:
    name, instance = lost_worker
    lost = state.lost_workers.get(name)
    if lost is not None and lost.instance == instance:
        _end_attempts(state, lost)


def _forget_lost(state: FarmState, name: str) -> None:
    """A lost worker does not come back."""
    lost = state.lost_workers.pop(name, None)
    if lost is not None:
        _end_attempts(state, lost)


def _end_attempts(state: FarmState, lost: LostWorker) -> None:
    for attempt in lost.held.values():
        emit_ended(state, attempt, None)
        lost.floor = max(lost.floor, attempt.fence)
    lost.held = {}
