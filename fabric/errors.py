"""The errors a user may meet.

Every one is printed as its text alone (``--debug`` adds the traceback), so the text says what
is wrong, where, and what to do.  The doors map a class to its exit code; nothing else does.
"""

from __future__ import annotations

import errno
import shlex

import msgspec

_called = "fabric-initiator"


def called(name: str) -> None:
    """The initiator was called so: what users are told to type begins with that."""
    global _called
    _called = name


def command(*words: str) -> str:
    """What a user types to have the initiator do that: "fabric-initiator logs zlib"."""
    return shlex.join([_called, *words])


#: What the system says when there is no room on a disk.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: What the system says when it will do it in a while.
PASSING = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


class FabricError(Exception):
    """Something the user can understand and act upon."""

    exit_code = 1


class Problem(msgspec.Struct, frozen=True, order=True):
    """One mistake in the definitions, at ``file`` (path from the definitions' root) and line."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class DefinitionsError(FabricError):
    """The definitions are wrong; ``problems`` holds all that one run could find."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SourceError(FabricError):
    """A repository, ref or lorry cannot be had as it was named."""


class StoreError(FabricError):
    """The artifact store cannot be reached, is full, or holds something damaged."""


class DamagedError(StoreError):
    """The store lost something, or holds something else than it should.

    ``keys`` are the built steps that it belongs to, as far as known: whoever looks after the
    store inspects them, and forgets what is damaged, so that it is built again.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


class BuildFailed(FabricError):
    """A build command failed: the fault of the chunk, so trying elsewhere would not help."""

    exit_code = 3

    def __init__(self, message: str, *, step: str = "", command: str = "") -> None:
        super().__init__(message)
        self.step = step
        self.command = command


class MachineFault(FabricError):
    """This machine could not do the job (disk full, no sandbox, fetch failed): try another."""

    exit_code = 4

    def __init__(self, message: str, damaged: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.damaged = damaged  # cache keys of what the store has lost or spoilt


class Cancelled(FabricError):
    """Nobody wants this job any more."""

    exit_code = 130
