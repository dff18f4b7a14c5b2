"""Shares the copies of logs that somebody looks at.

All viewers of a log read one copy, so they cost the broker what one costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import msgspec

from fabric import bounds
from fabric.errors import FabricError, MachineFault, command
from fabric.jobs import Blob, Manifest
from fabric.web.asks import NotFound
from fabric.web.log_copy import LogAttempt, LogCopy, Named, Source
from fabric.web.store import StoreReader

#: Seconds for which nobody looks at a log until it is not copied any more.
IDLE = 30.0
#: Searches that run at a time.
SEARCHES = 2


class LogCopies:
    """The copies of the logs that were looked at last, within bounds."""

    def __init__(self, farm: Source, reader: StoreReader, directory: Path) -> None:
        """``directory``: for files without names, which end with the process."""
        self.farm = farm
        self.reader = reader
        self.directory = directory
        self._copies: OrderedDict[tuple[str, int], LogCopy] = OrderedDict()
        self._sweeper: asyncio.Task[None] | None = None
        self._searches = asyncio.Semaphore(SEARCHES)
        self._searching = 0  # those that run or wait

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all copying, and remove the copies."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for copy in list(self._copies.values()):
            await self._remove(copy)

    async def attempts(self, key: str) -> list[tuple[LogAttempt, Named]]:
        """The attempts at a step that the broker knows, and their logs, the newest last.

        One that runs is the last.  MachineFault if the broker does not answer.
        """
        logs, tries = await asyncio.gather(
            self.farm.query("logs", key), self.farm.query("attempts", key)
        )
        known = {info.fence: info for info in logs.logs if info.key == key}
        found = {}
        for one in tries.attempts:
            log = known[one.fence].log if one.fence in known else ""
            named = Named(key, one.fence, one.name, log, one.result or "running")
            attempt = LogAttempt(str(one.fence), named.state, one.worker, one.message)
            found[one.fence] = attempt, named
        for info in known.values():
            if info.fence not in found or info.state in ("running", "done"):
                tried = (
                    found[info.fence][0] if info.fence in found else LogAttempt(str(info.fence), "")
                )
                named = Named(key, info.fence, info.name, info.log, info.state)
                found[info.fence] = msgspec.structs.replace(tried, state=info.state), named
        return sorted(found.values(), key=lambda one: (one[0].state == "running", one[1].fence))

    @contextlib.asynccontextmanager
    async def open(self, key: str, fence: int = 0) -> AsyncIterator[LogCopy]:
        """The copy of the log of an attempt; ``fence`` 0 is the latest one.

        NotFound if there is no such log, other errors if neither the broker nor the store answers.
        """
        copy = self._copies.get((key, fence)) if fence else None
        if copy is None:
            copy = await self._made(*await self._find(key, fence))
        self._copies.move_to_end((key, copy.named.fence))
        copy.readers += 1
        copy.resume()
        try:
            yield copy
        finally:
            copy.readers -= 1
            copy.used = time.monotonic()

    async def _find(self, key: str, fence: int) -> tuple[Named, Blob | None]:
        try:
            attempts = await self.attempts(key)
        except MachineFault:
            manifest = await self.reader.manifest(key)
            if manifest is None or manifest.log is None or fence:
                raise
            return _stored(manifest), manifest.log
        named = next((one for _, one in reversed(attempts) if fence in (0, one.fence)), None)
        if named is not None and named.state in ("running", "done", "cached"):
            return named, await self._stored_log(named)
        return await self._find_former(key, fence, named)

    async def _stored_log(self, named: Named) -> Blob | None:
        """The log in the store; None if it is not there, or the broker has to read it."""
        if named.state in ("done", "cached"):
            with contextlib.suppress(FabricError):
                manifest = await self.reader.manifest(named.key)
                return manifest.log if manifest else None
        return None

    async def _find_former(
        self, key: str, fence: int, named: Named | None
    ) -> tuple[Named, Blob | None]:
        """The log of an attempt that has ended, which the broker may still have; else the store's.

        The broker answers with the log in the store if it has none of an attempt.
        """
        manifest = None
        with contextlib.suppress(*(FabricError,) if named else ()):
            manifest = await self.reader.manifest(key)
        stored = manifest.log if manifest else None
        tried = named.fence if named else fence
        piece = await self.farm.read_log(key, tried, 0, 1) if tried else None
        if piece is not None and (stored is None or piece.sha256 != stored.sha256):
            name = manifest.name if manifest else key[:12]
            return named or Named(key, tried, name, "", "failed"), None
        if manifest is not None and stored is not None and not fence:
            return _stored(manifest), stored
        which = "this attempt at step" if tried else "step"
        raise NotFound(
            f"there is no log of {which} {key[:12]}: it has not begun, or the controller does not"
            f" keep it any more; `{command('why', key[:12])}` explains the step"
        )

    async def _made(self, named: Named, blob: Blob | None) -> LogCopy:
        """The copy of this log, which may be there already."""
        id = (named.key, named.fence)
        while id not in self._copies and len(self._copies) >= bounds.WEB_LOGS:
            if not await self._remove_unused():
                raise MachineFault(
                    f"{len(self._copies)} logs are looked at, and no more can be shown at a time"
                )
        copy = self._copies.get(id) or LogCopy(named, self, blob)
        copy.named = named
        self._copies[id] = copy
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())
        return copy

    @contextlib.asynccontextmanager
    async def searching(self) -> AsyncIterator[None]:
        """The turn of a search.  MachineFault if too many wait."""
        if self._searching >= SEARCHES + bounds.WEB_SEARCHES:
            raise MachineFault(f"{bounds.WEB_SEARCHES} searches wait: try again later")
        self._searching += 1
        try:
            async with self._searches:
                yield
        finally:
            self._searching -= 1

    async def make_room(self, growing: LogCopy, size: int) -> None:
        """Remove copies that nobody reads.  MachineFault if there is no room for ``size`` bytes."""
        while problem := self._lack_of_room(size):
            if not await self._remove_unused(but=growing):
                raise MachineFault(problem)

    def _lack_of_room(self, size: int) -> str:
        """Why ``size`` more bytes have no room; "" if they have."""
        if self._used + size > bounds.WEB_LOGS_DISK:
            return (
                f"the logs that are looked at have {bounds.WEB_LOGS_DISK:,} bytes, and there is no"
                " room for more"
            )
        if (free := shutil.disk_usage(self.directory).free) < bounds.WEB_FREE_DISK + size:
            return (
                f"{self.directory}: {free:,} bytes are free on that disk, and logs that are looked"
                f" at leave {bounds.WEB_FREE_DISK:,} to others"
            )
        return ""

    @property
    def _used(self) -> int:
        return sum(copy.file.size + copy.appending for copy in self._copies.values())

    async def _remove_unused(self, but: LogCopy | None = None) -> bool:
        unused = (copy for copy in self._copies.values() if not copy.readers and copy is not but)
        if (oldest := next(unused, None)) is None:
            return False
        await self._remove(oldest)
        return True

    async def _remove(self, copy: LogCopy) -> None:
        self._copies.pop((copy.named.key, copy.named.fence), None)
        await copy.pause()
        copy.file.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(IDLE / 3)
            for copy in list(self._copies.values()):
                if not copy.readers and time.monotonic() > copy.used + IDLE:
                    await copy.pause()


def _stored(manifest: Manifest) -> Named:
    return Named(manifest.key, 0, manifest.name, manifest.log_name, "done")
