"""Builds one job on a worker in its own thread, with its log and its outcome."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from fabric import bounds
from fabric.building import personality
from fabric.building.builder import build
from fabric.building.engine import Engine
from fabric.building.log import Log
from fabric.building.workspace import Workspace
from fabric.config import WorkerSettings
from fabric.errors import BuildFailed, Cancelled, FabricError, MachineFault
from fabric.host.cancel import CancelToken
from fabric.jobs import Job, Manifest
from fabric.trove.artifacts.manifests import digest_of
from fabric.wire.messages import STORING, Outcome, cut

if TYPE_CHECKING:
    from fabric.trove.artifacts.substituters import Substituters

# Made at import: msgspec 0.22 crashes when two threads use a type for the first time at once.
_decode = msgspec.msgpack.Decoder(Job).decode


class Attempt:
    """One attempt to build a job, in a thread of its own."""

    def __init__(
        self, key: str, fence: int, job: msgspec.Raw, spool: Path, wake: Callable[[], None]
    ) -> None:
        self.key = key
        self.fence = fence
        self._job = job
        self._wake = wake  # has the worker report at once
        self.cancel = CancelToken()
        self.phase = "fetch"
        self.log = Log(spool)
        self.published = 0  # bytes of the log

    def set_phase(self, phase: str) -> None:
        self.phase = phase
        if phase == STORING:
            self._wake()

    def run(
        self,
        workspace: Workspace,
        settings: WorkerSettings,
        name: str,
        jobserver: Path,
        substituters: Substituters | None = None,
        engine: Engine | None = None,
    ) -> Outcome:
        """Build, and return the outcome.  Never raises, since the slot's thread must go on."""
        began = time.monotonic()
        try:
            return self._run(workspace, settings, name, jobserver, substituters, engine, began)
        except BaseException as error:  # noqa: BLE001
            return Outcome(
                key=self.key,
                fence=self.fence,
                result="fault",
                message=_text(f"{type(error).__name__} at the end of the attempt: {error}"),
                seconds=time.monotonic() - began,
            )

    def _run(
        self,
        workspace: Workspace,
        settings: WorkerSettings,
        name: str,
        jobserver: Path,
        substituters: Substituters | None,
        engine: Engine | None,
        began: float,
    ) -> Outcome:
        result: Literal["done", "failed", "fault", "cancelled"] = "done"
        message = phase = command = ""
        damaged: tuple[str, ...] = ()
        built: list[Manifest] = []
        try:
            job = _decode(self._job)
            personality.take(job.arch)
            build(
                job,
                workspace,
                self.log,
                self.cancel,
                jobs=settings.jobs,
                timeout=settings.build_timeout or None,
                log_limit=settings.log_limit or None,
                jobserver=jobserver,
                phase=self.set_phase,
                builder=name,
                substituters=substituters,
                engine=engine,
                stored=built.append,
            )
        except BuildFailed as error:
            result, message, phase, command = "failed", str(error), error.step, error.command
        except Cancelled:
            result = "cancelled"
        except msgspec.MsgspecError as error:
            result, message = "fault", f"{name} does not understand this job: {error}"
        except MachineFault as error:
            result, message, damaged = "fault", str(error), error.damaged
        except (FabricError, OSError, MemoryError) as error:
            result, message = "fault", str(error)
        except Exception as error:  # noqa: BLE001  a bug here must not take the worker down
            traceback.print_exc()
            result, message = "fault", f"unexpected {type(error).__name__}: {error}"
        if message:
            with contextlib.suppress(OSError):  # a full disk must not hide what happened
                self.log.write(f"### {message}")
        blob = self.log.blob()
        return Outcome(
            key=self.key,
            fence=self.fence,
            result=result,
            message=_text(message),
            phase=phase,
            command=_text(command),
            seconds=time.monotonic() - began,
            log_size=blob.size,
            log_sha256=blob.sha256,
            damaged=damaged[: bounds.DAMAGED],
            manifest=digest_of(built[0]) if built else "",
            built=bool(built) or result != "done",
        )


def _text(message: str) -> str:
    """A message fit for sending: cut to the bound, and with file names as text."""
    return cut(message.encode("utf-8", "backslashreplace").decode())
