"""Defines the errors that users can meet.

A program prints only the text of an error (``--debug`` adds the traceback), so the text says what
is wrong, where, and what to do.  The class of an error determines the exit code.
"""

from __future__ import annotations

import errno
import re
import shlex

import msgspec

from fabric import bounds

_called = "fabric-initiator"


def called(name: str) -> None:
    """The initiator was called so: what users are told to type begins with that."""
    global _called
    _called = name


def command(*words: str) -> str:
    """What a user types to have the initiator do that: "fabric-initiator logs zlib"."""
    return shlex.join([_called, *words])


def as_typed(told: str) -> str:
    """What a controller says, with the commands in it as a user types them here."""
    return told.replace("`fabric-initiator ", f"`{command()} ")


#: What the system says when there is no room on a disk.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: What the system says when it will do it in a while.
PASSING = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


#: Lines of one shape that `grouped` shows, and names of others that it gives.
_EXAMPLES = 2
_OTHERS = 20


def grouped(text: str, most: int = bounds.ERROR_LINES) -> str:
    """``text`` in at most ``most`` lines: of many that say the same of different things, two are
    shown, and the others named by their first word.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) <= most:
        return text
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(_shape(line), []).append(line)
    told: list[str] = []
    for group in alike.values():
        told += group[:_EXAMPLES]
        firsts = [line.split(maxsplit=1)[0].rstrip(":") for line in group[_EXAMPLES:]]
        if others := list(dict.fromkeys(firsts)):
            more = f", and {len(others) - _OTHERS} more" if len(others) > _OTHERS else ""
            told.append(f"  and {len(firsts)} more like these: {', '.join(others[:_OTHERS])}{more}")
    if len(told) >= most:
        told[most - 1 :] = [f"and {len(told) - most + 1} lines more"]
    return "\n".join([*told, f"{len(lines)} problems in all; --debug shows each"])


def _shape(line: str) -> str:
    """The line without names, paths and numbers."""
    return " ".join(word if word.strip("(),;").isalpha() else "*" for word in line.split())


def in_line(path: object) -> str:
    """The name of a file in a message: one line, so that no name looks like more messages."""
    text = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else str(path)
    return text.replace("\r", "\\r").replace("\n", "\\n")


#: Ends of lines, but for one before an indented line, which is of the same message.
_OUT_OF_LINE = re.compile(r"\r|\n(?!  )")


def without_secrets(text: str) -> str:
    """``text`` with passwords in its URLs, and tokens in those of http, as ``***``."""
    if "@" not in text or "://" not in text:
        return text
    text = re.sub(r"(https?://)[^/@\s'\"]+@", r"\1***@", text)
    return re.sub(r"(\w://[^/@:\s'\"]*):[^/@\s'\"]*@", r"\1:***@", text)


class FabricError(Exception):
    """Something the user can understand and act upon.  No secret of a URL is in its text."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


class Problem(msgspec.Struct, frozen=True, order=True):
    """One mistake in the definitions, at ``file`` (path from the definitions' root) and line."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        message = _OUT_OF_LINE.sub(lambda found: repr(found[0])[1:-1], self.message)
        return f"{in_line(self.file)}:{self.line}: {message}"


class DefinitionsError(FabricError):
    """The definitions are wrong; ``problems`` holds all that one run could find."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SourceError(FabricError):
    """A repository, ref or lorry cannot be had as it was named.

    ``alike``: what can be said once of all sources that fail so; "" if this one is like no other.
    """

    def __init__(self, message: str, *, alike: str = "") -> None:
        super().__init__(message)
        self.alike = alike


class SourcesError(SourceError):
    """Some sources cannot be had; ``failures`` holds (repo, ref) and why, for each."""

    def __init__(self, failures: list[tuple[tuple[str, str], SourceError]]) -> None:
        self.failures = failures
        super().__init__("\n".join(sorted({str(error) for _, error in failures})))
        self.exit_code = max(error.exit_code for _, error in failures)


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
