"""A broker whose core, or resolvers, are of the test's own making."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fabric.broker import Broker, Parts, Wakeup
from fabric.controller.journal import Journal
from fabric.controller.resolver_pool import Resolvers
from fabric.controller.spools import Spools
from fabric.controller.store_client import Desk
from fabric.controller.telemetry import Record
from fabric.host.event_log import Notes
from fabric.scheduling.core import Scheduler
from fabric.trove.artifacts.store import Store
from fabric.wire import sockets
from fabric.wire.server import Listener


def broker_at(
    path: Path,
    said: Callable[[str], None],
    *,
    core: type[Scheduler] = Scheduler,
    resolvers: Callable[[Wakeup], Resolvers] = lambda wake: Resolvers(("true",), wake),
) -> Broker:
    """A lasting broker in the directory ``path``, which tells its troubles to ``said``."""
    wake = Wakeup()
    journal = Journal(path / "journal.sqlite", said, wake)
    parts = Parts(
        clock=time.monotonic,
        wake=wake,
        listener=Listener(sockets.in_directory(path), said, wake=wake.fd),
        spools=Spools(path / "spools"),
        record=Record(journal, Notes("broker"), None),
        desk=Desk(lambda: Store(str(path / "store"), path / "scratch"), wake),
        resolvers=resolvers(wake),
        new_core=lambda: core(
            epoch=journal.epoch,
            secret=journal.secret,
            durations=journal.durations,
            now=time.monotonic(),
        ),
    )
    return Broker(parts, lasting=True)
