"""Copies one log that somebody looks at, from the broker or the store.

The copy grows by the stream of pieces; gaps, and all that was printed before, are read by ranges.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import msgspec

from fabric import bounds
from fabric.errors import FabricError, MachineFault
from fabric.jobs import Blob
from fabric.web.asks import Asks
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
#: Bytes that are appended without a thread.
SMALL = 64 * bounds.KIB
#: Seconds that a reader waits for a part that is not copied yet.
PATIENCE = 10.0
#: Seconds that a reader of the end waits until the copy has caught up, before it reads the source.
PATIENCE_TAIL = 0.5


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


class Room(Protocol):
    """What a copy needs of `fabric.web.log_copies.LogCopies`."""

    farm: Source
    reader: StoreReader
    directory: Path

    async def make_room(self, growing: LogCopy, size: int) -> None: ...


class LogCopy:
    """The copy of one log, and the task that completes it."""

    def __init__(self, named: Named, copies: Room, blob: Blob | None) -> None:
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
