"""Stores the logs of attempts: a file ``KEY.FENCE`` for each log that is not short.

A spool contains the beginning of a log, without gaps.  A piece is appended at its offset: a
repeated piece changes nothing, and a piece after a gap is dropped and the worker is asked for the
missing bytes.  The size and SHA-256 at the end prove that the log is complete.  The memory for
offsets, open files and short logs is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fabric import bounds
from fabric.controller.log_spool import DIGESTED_AT_ONCE, EMPTY, NAME, LogDisk, Spool, found_size
from fabric.errors import PASSING
from fabric.wire.messages import LogPiece, LogWanted

if TYPE_CHECKING:
    from pathlib import Path

Id = tuple[str, int]

#: Bytes of a log up to which it is kept in memory, and not in a file.
SHORT = 16 * 1024
#: Bytes of all logs in memory.
MEMORY = 64 * 1024 * 1024
#: Most open files.
OPEN_FILES = 64
#: Seconds after which the same bytes are requested again.
ASK_AGAIN = 0.5
#: Seconds without new bytes of an ended log after which it is given up.
GIVE_UP = 15.0
#: Seconds for which the stream may still bring the rest of an ended log before it is requested;
#: and until a request that could not be sent is repeated.
LINGER = 0.02
#: Seconds for which a spool is kept after the end of its attempt.
KEEP = 600.0
#: Values of `Spool.broken`: for a log past the quota, and for an ended one that made room.
NO_ROOM = "there is no room for logs"
REMOVED = "it was removed to make room for others"
#: Seconds for which a file of a former run is kept.
LEFTOVER = 86400.0


class Spools:
    """All spools in one directory."""

    def __init__(
        self, directory: Path, memory: int = MEMORY, quota: int = bounds.LOGS_DISK
    ) -> None:
        """Makes the directory.  OSError if that is not possible."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = str(directory)
        self._memory = memory  # bytes left for logs in memory
        self._spools: dict[Id, Spool] = {}
        self._files: dict[Id, int] = {}  # least recently used first
        self._disk = LogDisk(self._directory, quota)
        self._lacking: dict[Id, Spool] = {}
        self._behind: dict[Id, Spool] = {}  # see `Spool.behind`
        self._ended: dict[Id, Spool] = {}  # in the order of their ends
        self._last_poll = float("inf")  # time of the last call of `wanted`

    # -- writing -----------------------------------------------------------------------------

    def begin(self, key: str, fence: int, worker: str, *, found: bool = True) -> None:
        """Make the spool of an attempt.

        ``found``: the attempt began under a former run, which may have left a file.
        """
        id = (key, fence)
        if id in self._spools:
            return
        spool = self._spools[id] = Spool(key, fence, worker)
        if not found:
            return
        if size := found_size(self._path(key, fence)):
            spool.short = None
            spool.have = spool.filed = size
            self._behind[id] = spool

    def worker(self, key: str, fence: int) -> str | None:
        """The worker of an attempt; None if it has no spool."""
        spool = self._spools.get((key, fence))
        return None if spool is None else spool.worker

    def append(
        self, key: str, fence: int, offset: int, data: bytes | memoryview
    ) -> tuple[int, bytes | memoryview]:
        """Append a piece; returns (offset, data) of its new bytes, data b"" if there are none.

        A piece after a gap, or of an attempt without a spool, is dropped.
        """
        spool = self._spools.get((key, fence))
        end = offset + len(data)
        if spool is None or spool.whole or offset < 0 or end <= spool.have:
            return offset, b""
        if end > bounds.STEP_LOG:
            self._break((key, fence), spool, f"it has more than {bounds.STEP_LOG:,} bytes")
            return offset, b""
        if offset > spool.have:
            spool.known = max(spool.known, end)
            self._lacking[key, fence] = spool
            return offset, b""
        fresh, at = data[spool.have - offset :], spool.have
        if not spool.broken:
            try:
                self._write(spool, fresh)
            except OSError as error:
                if error.errno in PASSING:  # the piece counts as lost and is requested again
                    spool.known = max(spool.known, end)
                    self._lacking[key, fence] = spool
                    return offset, b""
                # On a full disk the log is not kept, but still streamed; the build goes on.
                spool.broken = str(error)
        spool.received(fresh)
        self._check((key, fence), spool)
        return at, fresh

    def end(self, key: str, fence: int, size: int, sha256: str, now: float) -> None:
        """Note the end of an attempt; ``size`` is -1 if the size of its log is unknown."""
        id = (key, fence)
        spool = self._spools.get(id)
        if spool is None or spool.ended is not None:
            return
        spool.ended, spool.reached = now, spool.have
        self._ended[id] = spool
        if size >= 0 and (sha256 or not size):
            spool.size, spool.sha256 = size, sha256 or EMPTY
            spool.asked = now - ASK_AGAIN + LINGER
            self._check(id, spool)
        else:
            spool.known = spool.have  # its worker is lost, or kills it: no more bytes will come
            self._lacking.pop(id, None)

    def _check(self, id: Id, spool: Spool) -> None:
        if spool.size >= 0 and spool.have >= spool.size and not spool.behind:
            if spool.is_correct():
                spool.whole = True
                self._close(id)
            elif not spool.restarted:
                spool.restarted = True
                self._forget(spool)
                spool.restart()
                self._close(id)
            else:
                spool.broken = "the log that the worker sent does not match its digest"
        if spool.lacks:
            self._lacking[id] = spool
        else:
            self._lacking.pop(id, None)

    def wanted(self, now: float) -> Iterator[tuple[str, LogWanted]]:
        """(worker, request for missing bytes) of each log whose request is due."""
        stood_still = now - self._last_poll > GIVE_UP / 2  # this process, so nothing was received
        self._last_poll = now
        for id, spool in list(self._lacking.items()):
            if stood_still:
                spool.moved = now
            if _is_stuck(spool, now):
                spool.broken = "its worker does not have the rest"
                del self._lacking[id]
            elif now >= spool.asked + ASK_AGAIN:
                spool.asked = now
                yield (
                    spool.worker,
                    LogWanted(spool.key, spool.fence, spool.have, bounds.LOG_RANGE),
                )

    def unsent(self, wanted: LogWanted) -> None:
        """Note that a request from `wanted` could not be sent; it is repeated soon."""
        self._spools[wanted.key, wanted.fence].asked += LINGER - ASK_AGAIN

    def arrived(self, key: str, fence: int) -> None:
        """Note that a requested piece came; the next one may be requested at once."""
        spool = self._spools.get((key, fence))
        if spool is not None:
            spool.asked = float("-inf")

    def digest(self) -> None:
        """Digest a part of a log of a former run.  Call it in every turn of the loop."""
        for id, spool in list(self._behind.items())[:1]:
            data = b""
            with contextlib.suppress(OSError):
                data = os.pread(self._file(id), DIGESTED_AT_ONCE, spool.digested)
            if data:
                spool.update_digest(data[: spool.have - spool.digested])
            else:
                spool.restart()  # the file was truncated
            if not spool.behind:
                del self._behind[id]
                self._check(id, spool)

    @property
    def lacking(self) -> bool:
        """Whether any log is known to be incomplete, or not digested."""
        return bool(self._lacking or self._behind)

    def next_due(self) -> float:
        """When `wanted` or `digest` is due; infinity if neither is."""
        if self._behind:
            return float("-inf")
        asked = (spool.asked for spool in self._lacking.values())
        return min(asked, default=float("inf")) + ASK_AGAIN

    def incomplete(self, key: str, fence: int, now: float) -> bool:
        """Whether an ended log is incomplete, and not given up."""
        spool = self._lacking.get((key, fence)) or self._behind.get((key, fence))
        return spool is not None and spool.ended is not None and not _is_stuck(spool, now)

    # -- reading -----------------------------------------------------------------------------

    def read(self, key: str, fence: int, offset: int, length: int) -> LogPiece | None:
        """The available bytes of a range; None if there is no such spool.

        ``fence`` 0 means the latest attempt.  The piece has size and digest once they are known.
        """
        if not fence:
            fence = max((f for k, f in self._spools if k == key), default=0)
        spool = self._spools.get((key, fence))
        if spool is None or spool.broken:
            return None
        length = max(0, min(length, bounds.LOG_RANGE, spool.have - offset))
        data = b""
        if length and offset >= 0 and spool.short is not None:
            data = spool.short[offset : offset + length]
        elif length and offset >= 0:
            try:
                data = os.pread(self._file((key, fence)), length, offset)
            except OSError as error:
                if error.errno not in PASSING:
                    spool.broken = str(error)
                    return None
        ended = spool.ended is not None
        return LogPiece(key, fence, offset, data, spool.size, spool.sha256, ended)

    # -- files -------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Remove spools `KEEP` seconds after the ends of their attempts."""
        for id, spool in list(self._ended.items()):
            if spool.ended is None or now - spool.ended < KEEP:
                break
            del self._ended[id], self._spools[id]
            self._lacking.pop(id, None)
            self._behind.pop(id, None)
            self._remove(spool)

    def sweep_files(self) -> None:
        """Remove files of former runs after a day without a write."""
        for key, fence, size, written in self._left_over():
            if time.time() - written > LEFTOVER:
                self._unlink(key, fence, size)

    def _left_over(self) -> list[tuple[str, int, int, float]]:
        """Files of former runs, as from `LogDisk.files`."""
        return [file for file in self._disk.files() if file[:2] not in self._spools]

    def _make_room(self, spool: Spool, size: int) -> None:
        """Make room for ``size`` bytes of this log, or raise OSError.

        Removes files of former runs, then logs of ended attempts, the oldest first: the store has
        the logs of finished steps.  Then it removes the longest log, or raises if that is this one.
        """
        while not self._disk.has_room(size):
            ended = [each for each in self._ended.values() if each.filed and each is not spool]
            filed = [each for each in self._spools.values() if each.filed or each is spool]
            if left := self._left_over():
                oldest = min(left, key=lambda file: file[3])
                self._unlink(*oldest[:3])
            elif ended:
                self._break((ended[0].key, ended[0].fence), ended[0], REMOVED)
            elif (longest := max(filed, key=lambda each: each.filed)) is not spool:
                self._break((longest.key, longest.fence), longest, NO_ROOM)
            else:
                raise OSError(errno.ENOSPC, NO_ROOM)

    def _break(self, id: Id, spool: Spool, why: str) -> None:
        """Stop storing a log, and remove its file."""
        spool.broken = why
        self._lacking.pop(id, None)
        self._behind.pop(id, None)
        self._remove(spool)
        spool.short = None

    def close(self, *, forget: bool = False) -> None:
        """Write the logs in memory of running attempts, for the next run, and close all files.

        ``forget``: also remove the files of ended attempts.
        """
        for id, spool in self._spools.items():
            if forget and id in self._ended:
                self._remove(spool)
            elif spool.short and spool.ended is None:
                with contextlib.suppress(OSError):  # the next run requests it again
                    self._write_out(spool)
        self.drop()

    def drop(self) -> None:
        """Close all files without writing."""
        for id in list(self._files):
            self._close(id)

    def _path(self, key: str, fence: int) -> str:
        name = f"{key}.{fence}"
        if not NAME.match(name):
            raise ValueError(f"{name!r} is not the name of a spool")
        return f"{self._directory}/{name}"

    def _file(self, id: Id) -> int:
        file = self._files.pop(id, None)
        if file is None:
            while len(self._files) >= OPEN_FILES:
                self._close(next(iter(self._files)))
            # A file that was removed must not be made again, with a hole instead of its beginning.
            spool = self._spools[id]
            create = os.O_CREAT if spool.short is not None or not spool.have else 0
            file = os.open(
                self._path(*id), os.O_RDWR | os.O_NOFOLLOW | create | os.O_CLOEXEC, 0o644
            )
        self._files[id] = file
        return file

    def _write(self, spool: Spool, data: bytes | memoryview) -> None:
        """Append ``data`` to the log."""
        if spool.short is not None:
            if spool.have + len(data) <= SHORT and len(data) <= self._memory:
                spool.short += data
                self._memory -= len(data)
                return
            self._write_out(spool)
        self._write_at(spool, spool.have, data)

    def _write_out(self, spool: Spool) -> None:
        """Move a log from memory into its file."""
        assert spool.short is not None
        self._write_at(spool, 0, spool.short)
        self._forget(spool)
        spool.short = None

    def _forget(self, spool: Spool) -> None:
        if spool.short:
            self._memory += len(spool.short)
            spool.short = b""

    def _remove(self, spool: Spool) -> None:
        """Remove its file and its memory."""
        if spool.filed:
            self._close((spool.key, spool.fence))
            self._unlink(spool.key, spool.fence, spool.filed)
            spool.filed = 0
        self._forget(spool)

    def _unlink(self, key: str, fence: int, size: int) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path(key, fence))  # noqa: PTH108
            self._disk.subtract(size)

    def _write_at(self, spool: Spool, offset: int, data: bytes | memoryview) -> None:
        grows = max(0, offset + len(data) - spool.filed)
        if grows:
            self._make_room(spool, grows)
        file = self._file((spool.key, spool.fence))
        while data:
            written = os.pwrite(file, data, offset)
            data, offset = data[written:], offset + written
            if offset > spool.filed:
                self._disk.add(offset - spool.filed)
                spool.filed = offset

    def _close(self, id: Id) -> None:
        file = self._files.pop(id, None)
        if file is not None:
            os.close(file)


def _is_stuck(spool: Spool, now: float) -> bool:
    """Whether an ended log has not grown for `GIVE_UP` seconds."""
    if spool.ended is None:
        return False
    if spool.have > spool.reached:
        spool.reached, spool.moved = spool.have, now
    return now - max(spool.ended, spool.moved) >= GIVE_UP
