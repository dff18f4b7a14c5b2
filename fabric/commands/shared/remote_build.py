"""``build`` on a farm: pushes sources and definitions to the trove, then submits the build."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fabric.client.controller import SHOWN, Controller, open_connection
from fabric.client.project import Project
from fabric.client.render import BuildView, Screen, duration, opened_screen
from fabric.client.request import OVER
from fabric.client.session import Session
from fabric.commands.shared.follow_up import FollowUp
from fabric.commands.shared.plans import (
    open_project,
    report_edits,
    report_unpinned,
    take_snapshot,
)
from fabric.commands.shared.report import Built, complete_logs, failed, report_remote
from fabric.config import Settings
from fabric.definitions.graph import Graph
from fabric.definitions.select import find, find_built
from fabric.errors import SourceError, command
from fabric.host.terminal import progress
from fabric.jobs import tools_among
from fabric.plan import Plan, rebuild_key
from fabric.trove.artifacts.store import Store
from fabric.trove.configured import open_trove
from fabric.trove.sources import build_refs as builds
from fabric.trove.sources.build_refs import Builds
from fabric.trove.sources.committed import Committed
from fabric.trove.sources.farm_remote import TroveError, TroveFault
from fabric.trove.sources.snapshot import user
from fabric.wire.connection import Connection
from fabric.wire.messages import PROTOCOL, BuildOrder, EditedChunk, StepState

if TYPE_CHECKING:
    from fabric.commands.shared.web_page import WebPage

#: Seconds that ``--detach`` waits for the controller to resolve the definitions.
RESOLVING = 10.0
#: Most seconds between two attempts to reach the trove.
LONGEST_PAUSE = 30.0


class _Prepared(NamedTuple):
    """A build whose definitions are in the trove."""

    submission: BuildOrder
    files: str  # identifies the files that it is made from
    graph: Graph
    plan: Plan | None  # if it is wanted


class Followed(NamedTuple):
    """A request that is over."""

    plan: Plan | None  # if it was wanted
    session: Session
    failed: Sequence[StepState]  # steps that failed before the last retry


def build_remotely(
    options: argparse.Namespace, settings: Settings, page: WebPage | None = None
) -> int:
    """Submit a build, and follow it to its end; with ``--detach``, until it is accepted."""
    began = time.monotonic()
    project = open_project(settings, options.system)
    system = project.locate(options.system, Path.cwd())
    digests = options.check_digests or options.write_digests
    if digests:
        from fabric.commands.shared.digests import expected_digests, handle_digests

        expected = expected_digests(options, project, system)
    with opened_screen(options.json) as screen, open_connection(settings) as connection:
        followed = follow_remotely(
            options,
            settings,
            project,
            system,
            connection,
            screen,
            began,
            ask=not options.json,
            planned=options.explain or digests,
            page=page,
        )
        if followed is None:
            return 0
        plan, session, failed = followed
        finish(session, project.store, screen, options.system, failed)
        if digests and plan:
            handle_digests(screen, project, plan, expected)
        if options.rebuild and not rebuilds_of(session):
            text = "the controller is too old for --rebuild: nothing was built once more"
            screen.say(text, "yellow")
    return 0


def follow_remotely(
    options: argparse.Namespace,
    settings: Settings,
    project: Project,
    system: str,
    connection: Connection,
    screen: Screen,
    began: float,
    *,
    ask: bool,
    planned: bool,
    page: WebPage | None = None,
) -> Followed | None:
    """Submit a build, follow it to its end, and report failures; None with ``--detach``.

    ``ask``: after a failure, the user may go on.  ``planned``: the plan is wanted.
    """
    prepared = _prepare(options, settings, project, system, connection, screen, planned=planned)
    project.remember(system)

    def again(steps: tuple[str, ...]) -> None:
        nonlocal prepared
        prepared = _prepare(
            options, settings, project, system, connection, screen, steps, planned=planned
        )

    follow_up = FollowUp(screen, ask=ask, again=again)
    keys: dict[str, str] = {}
    going_on = True
    while going_on:
        submission = prepared.submission
        since = time.monotonic() - began
        session = Session(
            submission,
            connection,
            screen,
            page.checking(str, submission.request, screen) if page else str,
            since=since,
            patience=settings.patience,
            verbose=options.verbose,
        )
        if options.detach:
            session.accept(RESOLVING)
            _report_submitted(screen, session, submission.request)
            return None
        session.follow(
            "{}, so the build is cancelled; built steps are kept, and the same command goes on"
            " with the rest"
        )
        rebuilds = rebuilds_of(session)
        steps = session.mirror.steps.values()
        keys |= {
            f"{one.kind} {one.name}": one.key for one in steps if one.key not in rebuilds.values()
        }
        project.remember(system, prepared.files, keys)
        report_ended(session, settings, project.store, screen)
        going_on = follow_up.wanted(session, prepared.graph)
    return Followed(prepared.plan, session, follow_up.failed)


def report_ended(session: Session, settings: Settings, store: Store, screen: Screen) -> None:
    """Complete the logs of a request that is over, and report its failures."""
    complete_logs(screen, store)
    failed(session, settings, lambda step: f"where: worker {step.worker}" if step.worker else "")


def finish(
    session: Session,
    store: Store,
    screen: Screen,
    system: str = "",
    earlier: Sequence[StepState] = (),
) -> None:
    """Report the result.  BuildFailed or Cancelled if it is not built; see `Session.judge`."""
    session.judge(session.mirror.title.partition(" for ")[0], earlier)
    steps = session.mirror.steps
    goals = [Built(steps[key].name, steps[key].kind, key) for key in session.mirror.goals]
    how = f"{session.counts()} in {duration(session.seconds)}"
    rebuilds = rebuilds_of(session)
    goals = [goal for goal in goals if goal.key not in rebuilds.values()]
    report_remote(screen, store, goals, system, how)
    if rebuilds:
        from fabric.commands.shared.rebuilt import report_rebuilds

        report_rebuilds(screen, store, rebuilds)


def rebuilds_of(session: Session) -> dict[str, str]:
    """The steps of a build that were built once more: key -> key of the second build."""
    mirror = session.mirror
    pairs = ((key, rebuild_key(key, mirror.request)) for key in mirror.steps)
    return {key: again for key, again in pairs if again in mirror.goals}


def _prepare(
    options: argparse.Namespace,
    settings: Settings,
    project: Project,
    system: str,
    connection: Connection,
    screen: Screen,
    rest: tuple[str, ...] = (),
    *,
    planned: bool,
) -> _Prepared:
    """Push everything that the controller needs to the trove.

    ``rest``: ids of the steps to build after a failure, instead of the whole.  ``planned``: with
    the plan.
    """
    trove = open_trove(settings)
    if trove is None:
        raise SourceError(
            "no trove is set: a controller builds definitions that are in its trove; set `trove`"
            " (or FABRIC_TROVE) as on the controller"
        )
    _show(screen, f"connecting to {settings.controller}")
    waits = Patience(settings.patience, screen)
    controller = Controller(connection, settings.patience, waits.report)
    live = controller.query("requests").requests  # before any push: is it there?
    _show(screen, "reading the definitions")
    kept = Builds(settings.trove_dir / "builds.git")
    build, edits, identity = take_snapshot(project)
    with Committed(kept.repository, build.commit, build.environ) as files:
        graph = project.graph(system, files.read)
    goals = tuple(step for name in rest or options.chunks for step in find(graph, name))
    if not rest and (again := find_built(graph, options.rebuild)):
        goals = (*(goals or (graph.root.id,)), *again)
    if options.locked:
        project.require_pins(graph, goals)
    report_edits(project, graph, goals)
    report_unpinned(project.unpinned(graph, goals))
    _show(screen, "pushing sources that the trove lacks")
    waits.until_done(lambda: project.push_missing(graph, goals))
    plan = None
    if planned:
        workers = controller.query("workers").workers
        plan = project.plan(graph, goals, tools_among(worker.features for worker in workers))
    if options.explain and plan:
        from fabric.commands.shared.explained import report_reasons

        report_reasons(screen, project, plan)
    _show(screen, "pushing the definitions to the trove")
    request = ""

    def push() -> None:
        """Push under a new name each time: a push that died may have left a lock on its ref."""
        nonlocal request
        request = builds.new_request()
        kept.push(build, trove, builds.ref_of(request), lambda _: None)

    waits.until_done(push)
    if kept.untidy():
        try:
            kept.tidy(trove, {one.request for one in live if one.state not in OVER})
        except TroveError as error:  # the build does not need this
            progress(f"warning: old build refs are not removed: {error}")
    submission = BuildOrder(
        protocol=PROTOCOL,
        request=request,
        title=f"{graph.system} for {user()}",
        ref=builds.ref_of(request),
        commit=build.commit,
        system=system,
        components=rest or tuple(options.chunks),
        keep_going=options.keep_going or bool(rest),
        fail_fast=options.fail_fast,
        priority=settings.priority,
        detach=options.detach,
        locked=options.locked,
        edits=tuple(
            EditedChunk(name, project.edits.by_name[name].repo, taken.commit)
            for name, taken in edits.items()
            if project.edits
        ),
        rebuild=() if rest else tuple(options.rebuild),
    )
    return _Prepared(submission, identity, graph, plan)


class Patience:
    """Waits for a controller or a trove out of reach, for ``seconds`` at most, and reports it."""

    def __init__(self, seconds: float, screen: Screen) -> None:
        self._seconds = seconds
        self._screen = screen

    def report(self, error: str) -> None:
        """Show what the build waits for."""
        self._screen.event("connection", ok=False, message=error)
        self._screen.say(f"{error}; retrying for {duration(self._seconds)}", "yellow")

    def until_done(self, act: Callable[[], object]) -> None:
        """Repeat ``act`` while the trove is out of reach; then SourceError."""
        began, pause, reported = time.monotonic(), 1.0, ""
        while True:
            try:
                act()
            except SourceError as error:
                left = began + self._seconds - time.monotonic()
                if error.exit_code != TroveFault.exit_code or left <= 0:
                    raise
                if reported != (reported := str(error)):
                    self.report(reported)
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                break
        if reported:
            self._screen.event("connection", ok=True, message="")
            self._screen.say("the trove is back", "green")


def _show(screen: Screen, what: str) -> None:
    screen.show(BuildView("", 0, 0, 0, 0, time.monotonic(), 0.0, waiting=what))


def _report_submitted(screen: Screen, session: Session, request: str) -> None:
    short = request[:SHOWN]
    screen.event("ordered", request=request, state=session.mirror.state)
    screen.say(f"{session.mirror.title}: submitted as {short}", "bold green")
    screen.say(f"  follow  {command('attach', short)}")
    screen.say(f"  status  {command('status', short)}")
    screen.say(f"  cancel  {command('cancel', short)}")
