"""Defines the parts that are given to a broker, so that the simulator can replace them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import NamedTuple

from fabric.controller.resolver_pool import ResolverPool
from fabric.controller.spools import Spools
from fabric.controller.store_client import StoreClient
from fabric.controller.telemetry import Telemetry
from fabric.scheduling.scheduler import Scheduler
from fabric.wire.server import Server


class Wakeup:
    """Call it in any thread to end the broker's wait.  ``fd`` is readable then."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __call__(self) -> None:
        with contextlib.suppress(OSError):  # closed: nothing waits
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        os.close(self.fd)


class Parts(NamedTuple):
    """The surroundings of a broker, and its core."""

    clock: Callable[[], float]  # monotonic seconds
    wake: Wakeup
    server: Server
    spools: Spools
    telemetry: Telemetry
    store_client: StoreClient
    resolvers: ResolverPool
    new_core: Callable[[], Scheduler]
