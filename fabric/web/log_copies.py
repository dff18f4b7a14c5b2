"""Copies the logs that somebody looks at, from the broker or the store, and shares the copies.

All viewers of a log read one copy, so they cost the broker what one costs.  The copy grows by the
stream of pieces; gaps, and all that was printed before, are read by ranges.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, Self

import msgspec

from fabric import bounds
from fabric.errors import FabricError, MachineFault, command
from fabric.jobs import Blob, Manifest
from fabric.web.asks import Asks, NotFound
from fabric.web.log_file import LogFile, Rows
from fabric.web.store import StoreReader
from fabric.wire.messages import LogPiece, Published

#: Seconds without a piece of a growing log after which the broker is asked for more.
QUIET = 0.5
#: Seconds after which a source that failed is tried again.
RETRY = 1.0
#: Seconds that a log of an attempt that runs may be unknown to the broker: one that has begun anew
#: has no log of an attempt until its worker reports it.
UNKNOWN = 30.0
#: Ranges that are read at a time while a copy is far behind.
AHEAD = 4
#: Seconds for which nobody looks at a log until it is not copied any more.
IDLE = 30.0
#: Bytes that are appended without a thread.
SMALL = 64 * bounds.KIB
#: Seconds that a reader waits for a part that is not copied yet.
PATIENCE = 10.0
#: Seconds that a reader of the end waits until the copy has caught up, before it reads the source.
PATIENCE_TAIL = 0.5
#: Searches that run at a time.
SEARCHES = 2


class Source(Asks, Protocol):
    """What copies need of `fabric.web.farm.Farm`."""

    async def read_log(
        self, key: str, fence: int, offset: int, length: int = bounds.LOG_RANGE
    ) -> LogPiece | None: ...

    def follow(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[Published]]: ...


class LogAttempt(msgspec.Struct, frozen=True):
    """An attempt at a step."""

    fence: str  # "0": the broker does not know which attempt it was
    state: str  # that of the step, or the result of the attempt: "running", "lost"
    worker: str = ""
    message: str = ""  # how it failed, or what is wrong with it


class Named(msgspec.Struct, frozen=True):
    """The log of one attempt."""

    key: str
    fence: int  # 0: as in `LogAttempt`
    name: str  # of the step
    log: str  # its file name
    state: str  # as in `LogAttempt`


class LogCopy:
    """The copy of one log, and the task that completes it."""

    def __init__(self, named: Named, copies: LogCopies, blob: Blob | None) -> None:
        """``blob``: the log in the store, if it is read there."""
        self.named = named
        self.file = LogFile(copies.directory)
        #: bytes of the whole log; -1: unknown
        self.total = -1 if blob is None else blob.size
        #: no more bytes come
        self.ended = False
        #: it has all that there was when that was last asked
        self.current = False
        #: why no more bytes come, or why they do not come now
        self.problem = ""
        self.used = time.monotonic()
        self.readers = 0
        self._copies = copies
        self._blob = blob
        self._sha256 = "" if blob is None else blob.sha256
        self.appending = 0  # bytes that a thread appends
        self._published = 0  # end of the last published piece
        self._restarted = False
        self._known = 0.0  # when the broker last had it, or it was opened
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- readers ---------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of the log, as far as known."""
        return max(self.file.size, self.total, self._published)

    @property
    def whole(self) -> bool:
        """It has every byte of the log."""
        return self.ended and self.file.size == self.total

    async def changed(self, seconds: float) -> None:
        """Wait until something has changed, at most for ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def wait_for(self, end: int) -> None:
        """Wait until the bytes before ``end`` are here, or there are no more.

        MachineFault if that takes too long.
        """
        deadline = time.monotonic() + PATIENCE
        while self.file.size < end and not self.ended and not self.current:
            if self.problem or time.monotonic() > deadline:
                raise MachineFault(
                    self.problem
                    or f"this part of the log is not read yet: {self.file.size:,} bytes are"
                )
            await self.changed(RETRY)

    async def refresh(self) -> None:
        """Find out whether there is more than was there when that was last asked."""
        if self.current and not self.ended:
            named, have = self.named, self.file.size
            piece = await self._copies.farm.read_log(named.key, named.fence, have, 1)
            if piece is None or piece.data or piece.size > have:
                self.current = False  # it is read soon

    async def tail(self, length: int) -> Rows:
        """The last rows.  Their ``line`` is 0 if it is not known yet."""
        began = time.monotonic()
        while self._catches_up:
            waited = time.monotonic() - began
            # past the first deadline, the end must be known to be read from the source
            if waited > (PATIENCE_TAIL if self.size > self.file.size else PATIENCE):
                break
            await self.changed(PATIENCE_TAIL)
        if self._catches_up and (end := self.size) > self.file.size:
            begin = max(0, end - length)
            with contextlib.suppress(FabricError):
                data = await self._read_source(begin, end - begin)
                skipped = data.find(b"\n") + 1 if begin else 0
                if skipped or not begin:
                    return Rows(begin + skipped, data[skipped:], 0, begins=True)
        if self._catches_up:
            await self.wait_for(self.size)
        return await asyncio.to_thread(self.file.rows_to, self.file.size, length)

    @property
    def _catches_up(self) -> bool:
        """There is more, which comes soon."""
        return not (self.current or self.ended or self.problem)

    # -- copying ---------------------------------------------------------------------------

    def resume(self) -> None:
        """Go on copying, if there is anything to copy."""
        self.used = time.monotonic()
        if not self.ended and self._task is None:
            self._known = self.used
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(f"copying it failed: {error!r}")

    async def pause(self) -> None:
        """Copy no more, until `resume`."""
        task, self._task = self._task, None
        if task is not None:
            self.current = False
            task.cancel()
            await asyncio.wait([task])

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        async with self._copies.farm.follow(self.named.key) as pieces:
            while not self.ended:
                try:
                    if self._blob is not None:
                        await self._copy_stored(self._blob)
                    else:
                        await self._copy_growing(pieces)
                except FabricError as error:
                    self.problem, self.current = str(error), False
                    self._notify()
                    await asyncio.sleep(RETRY)

    async def _copy_stored(self, blob: Blob) -> None:
        while self.file.size < blob.size:
            data = await self._read_source(self.file.size, bounds.LOG_RANGE)
            if not data:
                raise MachineFault(f"the store has only {self.file.size:,} bytes of this log")
            await self._append(self.file.size, data)
        await self._check()

    async def _read_source(self, offset: int, length: int) -> bytes:
        if self._blob is not None:
            store, blob = self._copies.reader.store, self._blob
            length = min(length, blob.size - offset)
            return await self._copies.reader.call(store.read, blob, offset, length)
        data = b""
        while len(data) < length:
            piece = await self._copies.farm.read_log(
                self.named.key, self.named.fence, offset + len(data), length - len(data)
            )
            if piece is None or not piece.data:
                break
            data += piece.data
        return data

    async def _copy_growing(self, pieces: AsyncIterator[Published]) -> None:
        await self._read_ranges()
        while not self.ended and self._blob is None:
            try:
                async with asyncio.timeout(QUIET):
                    piece = await anext(pieces)
            except TimeoutError:
                await self._read_ranges()
                continue
            if piece.fence != self.named.fence:
                continue
            have = self.file.size
            self._published = max(self._published, piece.offset + len(piece.data))
            if piece.offset > have:
                await self._read_ranges()
            elif piece.offset + len(piece.data) > have:
                await self._append(piece.offset, piece.data)

    async def _read_ranges(self) -> None:
        """Read all that is there."""
        ahead = 1
        while not self.ended:
            offsets = [self.file.size + n * bounds.LOG_RANGE for n in range(ahead)]
            key, fence = self.named.key, self.named.fence
            read = self._copies.farm.read_log
            found = await asyncio.gather(*(read(key, fence, at) for at in offsets))
            self.problem = ""
            for offset, piece in zip(offsets, found, strict=True):
                if piece is None:
                    await self._find_rest()
                    return
                self._known = time.monotonic()
                if offset == self.file.size and not await self._take(piece):
                    self.current = True
                    self._notify()
                    return
            ahead = AHEAD if found[-1] and len(found[-1].data) == bounds.LOG_RANGE else 1

    async def _take(self, piece: LogPiece) -> bool:
        """Take in a range; False if there are no more bytes now."""
        if piece.size >= 0:
            self.total, self._sha256 = piece.size, piece.sha256
        if piece.data:
            await self._append(piece.offset, piece.data)
        if self.file.size == self.total:
            await self._check()
        elif piece.ended and self.total < 0 and not piece.data:
            self._end("the worker was lost, or ended this attempt: there is no more of its log")
        return bool(piece.data)

    async def _find_rest(self) -> None:
        """Read the log in the store, since the broker does not have it any more."""
        manifest = await self._copies.reader.manifest(self.named.key)
        blob = manifest.log if manifest else None
        if blob is not None and self._sha256 in ("", blob.sha256) and blob.size >= self.file.size:
            self._blob, self.total, self._sha256 = blob, blob.size, blob.sha256
        elif self.named.state == "running" and time.monotonic() < self._known + UNKNOWN:
            raise MachineFault("the controller does not have this log yet, or not any more")
        else:
            self._end("the controller does not keep the rest of this log any more")

    async def _append(self, offset: int, data: bytes | memoryview) -> None:
        await self._copies.make_room(self, len(data))
        self.appending = len(data)
        try:
            if len(data) <= SMALL:
                self.file.append(offset, data)
            else:
                await asyncio.to_thread(self.file.append, offset, data)
        finally:
            self.appending = 0
        self.problem = ""
        self._notify()

    async def _check(self) -> None:
        """Compare the digest of the whole log; read it once more if that is wrong."""
        if self._sha256 in ("", self.file.sha256) or self._restarted:
            self._end("" if self._sha256 in ("", self.file.sha256) else "its digest is wrong")
            return
        self._restarted, self.current = True, False
        self.file.clear()

    def _end(self, problem: str) -> None:
        self.ended = self.current = True
        self.problem = problem
        self._notify()


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
