"""``build`` with a controller: push what is to be built to the trove, order it, follow it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from fabric.client.controller import SHOWN, Controller, open_line
from fabric.client.project import Project
from fabric.client.render import BuildView, Screen, duration, opened_screen
from fabric.client.request import OVER
from fabric.client.session import Session
from fabric.commands.shared.plans import open_project, report_unpinned
from fabric.commands.shared.report import Built, complete_logs, failed, report_far
from fabric.config import Settings
from fabric.definitions.select import find
from fabric.errors import SourceError, command
from fabric.host.terminal import progress
from fabric.trove.artifacts.store import Store
from fabric.trove.configured import open_trove
from fabric.trove.sources import build_refs as builds
from fabric.trove.sources.build_refs import Builds
from fabric.trove.sources.committed import Committed
from fabric.trove.sources.farm_remote import TroveError, TroveFault
from fabric.trove.sources.snapshot import user
from fabric.wire.connection import Connection
from fabric.wire.messages import PROTOCOL, BuildOrder

#: Seconds that ``--detach`` waits to hear whether the definitions can be resolved.
RESOLVING = 10.0
#: Seconds between two attempts to reach the trove, at most.
LONGEST_PAUSE = 30.0


def order(options: argparse.Namespace, settings: Settings) -> int:
    """Order a build; to its end, or with ``--detach`` until it is accepted."""
    began = time.monotonic()
    project = open_project(settings, options.system)
    system = project.locate(options.system, Path.cwd())
    with opened_screen(options.json) as screen, open_line(settings) as line:
        made, tree = _prepare(options, settings, project, system, line, screen)
        project.remember(system)
        since = time.monotonic() - began
        session = Session(made, line, screen, since=since, patience=settings.patience)
        if options.detach:
            session.accept(RESOLVING)
            _say_ordered(screen, session, made.request)
            return 0
        session.follow(
            "{}, so the build is cancelled; what was built is kept, the same command goes on there"
        )
        steps = session.mirror.steps.values()
        project.remember(system, tree, {f"{one.kind} {one.name}": one.key for one in steps})
        finish(session, settings, project.store, screen, options.system)
    return 0


def finish(
    session: Session, settings: Settings, store: Store, screen: Screen, system: str = ""
) -> None:
    """Say how it ended.  BuildFailed or Cancelled if it is not built."""
    complete_logs(screen, store)
    failed(session, settings, lambda step: f"where: worker {step.worker}" if step.worker else "")
    session.judge(session.mirror.title.partition(" for ")[0])
    steps = session.mirror.steps
    goals = [Built(steps[key].name, steps[key].kind, key) for key in session.mirror.goals]
    how = f"{session.counts()} in {duration(session.seconds)}"
    report_far(screen, store, goals, system, how)


def _prepare(
    options: argparse.Namespace,
    settings: Settings,
    project: Project,
    system: str,
    line: Connection,
    screen: Screen,
) -> tuple[BuildOrder, str]:
    """Everything that the controller needs, in the trove; returns the order for it, and which
    tree of files that is."""
    trove = open_trove(settings)
    if trove is None:
        raise SourceError(
            "no trove is set: a controller builds definitions that are in its trove; set `trove`"
            " (or FABRIC_TROVE) as on the controller"
        )
    _show(screen, f"asking {settings.controller}")
    waits = Patience(settings.patience, screen)
    controller = Controller(line, settings.patience, waits.tell)
    live = controller.query("requests").requests  # it is there, and understands us
    _show(screen, "taking in the definitions")
    kept = Builds(settings.trove_dir / "builds.git")
    build = kept.snapshot(project.root)
    with Committed(kept.repository, build.commit, build.environ) as files:
        graph = project.graph(system, files.read)
    goals = tuple(step for name in options.chunks for step in find(graph, name))
    if options.locked:
        project.require_pins(graph, goals)
    report_unpinned(project.unpinned(graph, goals))
    _show(screen, "pushing sources that the trove lacks")
    waits.until_done(lambda: project.supply(graph, goals))
    _show(screen, "pushing the definitions to the trove")
    request = ""

    def push() -> None:
        """Under a new name each time: a trove that died has perhaps left the former one locked."""
        nonlocal request
        request = builds.new_request()
        kept.push(build, trove, builds.ref_of(request), lambda _: None)

    waits.until_done(push)
    if kept.untidy():
        try:
            kept.tidy(trove, {one.request for one in live if one.state not in OVER})
        except TroveError as error:  # the build does not depend on it
            progress(f"warning: old build refs stay: {error}")
    made = BuildOrder(
        protocol=PROTOCOL,
        request=request,
        title=f"{graph.system} for {user()}",
        ref=builds.ref_of(request),
        commit=build.commit,
        system=system,
        components=tuple(options.chunks),
        keep_going=options.keep_going,
        priority=settings.priority,
        detach=options.detach,
        locked=options.locked,
    )
    return made, build.tree


class Patience:
    """Waiting for what is out of reach, in words and for ``seconds`` at most."""

    def __init__(self, seconds: float, screen: Screen) -> None:
        self._seconds = seconds
        self._screen = screen

    def tell(self, trouble: str) -> None:
        """Say what is waited for."""
        self._screen.event("connection", ok=False, message=trouble)
        self._screen.say(f"{trouble}; trying on for {duration(self._seconds)}", "yellow")

    def until_done(self, act: Callable[[], object]) -> None:
        """Do it, and again as long as the trove is out of reach.  SourceError in the end."""
        began, pause, told = time.monotonic(), 1.0, ""
        while True:
            try:
                act()
            except SourceError as error:
                left = began + self._seconds - time.monotonic()
                if error.exit_code != TroveFault.exit_code or left <= 0:
                    raise
                if told != (told := str(error)):
                    self.tell(told)
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                break
        if told:
            self._screen.event("connection", ok=True, message="")
            self._screen.say("the trove is back", "green")


def _show(screen: Screen, what: str) -> None:
    screen.show(BuildView("", 0, 0, 0, 0, time.monotonic(), 0.0, waiting=what))


def _say_ordered(screen: Screen, session: Session, request: str) -> None:
    short = request[:SHOWN]
    screen.event("ordered", request=request, state=session.mirror.state)
    screen.say(f"{session.mirror.title}: ordered as {short}", "bold green")
    screen.say(f"  follow  {command('attach', short)}")
    screen.say(f"  look    {command('status', short)}")
    screen.say(f"  stop    {command('cancel', short)}")
