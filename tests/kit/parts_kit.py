"""A broker with replaced parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fabric.broker import Broker
from fabric.controller.journal import Journal
from fabric.controller.parts import Parts, Wakeup
from fabric.controller.resolver_pool import ResolverPool
from fabric.controller.spools import Spools
from fabric.controller.store_client import StoreClient
from fabric.controller.telemetry import Telemetry
from fabric.host.event_log import EventLog
from fabric.scheduling.scheduler import Scheduler
from fabric.trove.artifacts.store import Store
from fabric.wire import sockets
from fabric.wire.server import Server


def broker_at(
    path: Path,
    said: Callable[[str], None],
    *,
    core: type[Scheduler] = Scheduler,
    resolvers: Callable[[Wakeup], ResolverPool] = lambda wake: ResolverPool(("true",), wake),
) -> Broker:
    """A lasting broker in the directory ``path``; ``said`` gets its warnings."""
    wake = Wakeup()
    journal = Journal(path / "journal.sqlite", said, wake)
    parts = Parts(
        clock=time.monotonic,
        wake=wake,
        server=Server(sockets.in_directory(path), said, wake=wake.fd),
        spools=Spools(path / "spools"),
        telemetry=Telemetry(journal, EventLog("broker"), None),
        store_client=StoreClient(lambda: Store(str(path / "store"), path / "scratch"), wake),
        resolvers=resolvers(wake),
        new_core=lambda: core(
            epoch=journal.epoch,
            secret=journal.secret,
            durations=journal.durations,
            now=time.monotonic(),
        ),
    )
    return Broker(parts, lasting=True)
