"""Runs steps on an engine: sends what is missing there, executes, and takes the result back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fabric import bounds
from fabric.building.build_script import reported
from fabric.building.engine import Step, Unsuitable
from fabric.building.log import Log
from fabric.building.sandbox import Ended, Limits
from fabric.errors import BuildFailed, in_line
from fabric.execution.action import ENDED, PACKED, WEAK, Sent, action_of
from fabric.execution.merkle import Trees
from fabric.execution.operation import Execution, Lacking, Output, Reports
from fabric.execution.outputs import unpack
from fabric.host.cancel import CancelToken, no_check
from fabric.reapi.access import Access
from fabric.reapi.blobs import Digest
from fabric.reapi.connection import Connection, ServerFault, locked
from fabric.reapi.protocol import remote_execution_pb2 as pb
from fabric.reapi.storage import Storage

#: Seconds between two questions to an engine that was away.
_ASK_EVERY = 5.0
#: Most lines of an engine in a message.
_LINES = 5


class RemoteEngine:
    """An engine that speaks the Remote Execution API.  Any thread may use it.

    ``indexes`` is the folder of the records of the layers on this machine.
    """

    def __init__(self, access: Access, indexes: Path) -> None:
        self._connection = Connection(access)
        self._storage = Storage(self._connection)
        self._trees = Trees(indexes)
        self._lock = threading.Lock()
        self._ready = False  # its capabilities are known
        self._trouble = ""
        self._asking: threading.Thread | None = None
        self._ask_due = 0.0

    def trouble(self) -> str:
        """Why the engine can run nothing at present; "" if it may.  Asks it again now and then."""
        if not self._trouble and self._ready:
            return ""
        now = time.monotonic()
        if now >= self._ask_due and (self._asking is None or not self._asking.is_alive()):
            self._ask_due = now + _ASK_EVERY
            self._asking = threading.Thread(target=self._ask, name="asking", daemon=True)
            self._asking.start()
        return self._trouble

    def run(
        self,
        step: Step,
        inst: Path,
        log: Log,
        cancel: CancelToken,
        limits: Limits,
        started: Callable[[str], None],
    ) -> Ended:
        """Run a step, as `fabric.building.engine.Engine`."""
        try:
            self._prepare(cancel.check)
            properties = self._connection.access.properties
            sent = action_of(step, self._trees, properties, limits.seconds, cancel.check)
            return self._run(step, sent, inst, log, cancel, limits, started)
        except ServerFault as error:
            if error.away:
                self._trouble = str(error)
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self) -> None:
        try:
            self._prepare(no_check, again=True)
            self._trouble = ""
        except ServerFault as error:
            self._trouble = str(error)
        except ValueError:  # the connection was closed meanwhile
            return

    def _prepare(self, check: Callable[[], None], *, again: bool = False) -> None:
        """Learn what the engine can do.  ServerFault if it cannot execute."""
        with locked(self._lock, check):
            if self._ready and not again:
                return
            connection = self._connection
            request = pb.GetCapabilitiesRequest(instance_name=connection.access.instance)
            found = connection.call(connection.capabilities, request, check)
            if not found.execution_capabilities.exec_enabled:
                raise ServerFault(
                    f"The engine {connection.host} executes nothing: check `execute` and"
                    " `execute-instance`",
                    away=True,
                )
            cache = found.cache_capabilities
            if cache.symlink_absolute_path_strategy == pb.SymlinkAbsolutePathStrategy.DISALLOWED:
                raise ServerFault(
                    f"The engine {connection.host} takes no absolute symlinks, which most chunks"
                    " have",
                    away=True,
                )
            self._storage.adjust(cache)
            self._ready = True

    def _run(
        self,
        step: Step,
        sent: Sent,
        inst: Path,
        log: Log,
        cancel: CancelToken,
        limits: Limits,
        started: Callable[[str], None],
    ) -> Ended:
        connection = self._connection

        def executed() -> pb.ExecuteResponse:
            reports = Reports(connection, step.lists, started)
            return Execution(connection, output, cancel, limits, reports).run(sent.action)

        output = Output(connection, log, limits)
        self._storage.send(sent.trees, sent.blobs, cancel.check)
        try:
            response = executed()
        except Lacking as error:
            self._storage.forget()
            if not self._storage.send(sent.trees, sent.blobs, cancel.check, ask=not error.surely):
                raise  # it has all
            response = executed()
        result = response.result
        worker = result.execution_metadata.worker
        by = f" by {in_line(worker[:200])}" if worker else ""
        output.finish(lambda: self._blob(result.stdout_raw, result.stdout_digest, cancel))
        log.write(f"### executed at {self._connection.host}{by}")
        return self._taken(sent, response, inst, cancel)

    def _taken(
        self,
        sent: Sent,
        response: pb.ExecuteResponse,
        inst: Path,
        cancel: CancelToken,
    ) -> Ended:
        """The end of a step, with its files in ``inst``."""
        result = response.result
        if max(len(result.stderr_raw), result.stderr_digest.size_bytes) > bounds.ENGINE_REPORTS:
            raise ServerFault("The step printed too much to the pipe of its reports")
        told = b"".join(self._blob(result.stderr_raw, result.stderr_digest, cancel))
        reports = reported(told)
        said = [line for line in told.splitlines() if not line.startswith(b"@ ")][-_LINES:]
        text = "; ".join(in_line(line) for line in said) or in_line(response.message[:500])
        ends = [number for name, number in reports if name == ENDED]
        own = (ENDED, PACKED, WEAK)
        commands = [(name, number) for name, number in reports if name not in own]
        host = self._connection.host
        if not commands:
            raise ServerFault(
                f"The engine {host} did not start the script of the step (exit status"
                f" {result.exit_code}): {text}; it must run actions in their input root, as its"
                " user's guide and docs/how-to/use-an-execution-engine.md say"
            )
        if not ends:
            raise ServerFault(
                f"The engine {host} killed the step (exit status {result.exit_code}): {text}"
            )
        name, number = commands[-1]
        if ends[-1] and (WEAK, 0) in reports:
            raise Unsuitable("it failed there, where root has no capabilities")
        if ends[-1]:
            return Ended(ends[-1], name, number)
        if result.exit_code or (PACKED, 0) not in reports:
            raise ServerFault(f"The result of the step could not be packed at {host}: {text}")
        files = [file for file in result.output_files if file.path == sent.output]
        if len(files) != 1:
            raise ServerFault(f"The engine {host} returned no {sent.output}")
        if files[0].digest.size_bytes > bounds.ENGINE_RESULT:
            raise BuildFailed("DESTDIR has more bytes than an artifact may")
        if files[0].contents and Digest.of(files[0].contents) != Digest.taken(files[0].digest):
            raise ServerFault(f"The engine {host} sent a {sent.output} of another digest")
        unpack(self._blob(files[0].contents, files[0].digest, cancel), inst)
        return Ended(0, name, number)

    def _blob(self, raw: bytes, digest: pb.Digest, cancel: CancelToken) -> Iterator[bytes]:
        """A blob of a result, which may be in the result itself."""
        if raw:
            return iter((raw,))
        if digest.size_bytes < 0:
            raise ServerFault(f"The engine {self._connection.host} named a blob of no size")
        if not digest.size_bytes:  # it may not be named at all
            return iter(())
        return self._storage.read(Digest.taken(digest), cancel.check)
