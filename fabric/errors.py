"""Defines the errors that users can meet.

A program prints only the text of an error; ``--debug`` adds the traceback.  The text names the
failure, its place, its cause and the remedy.  The class of an error determines the exit code.
"""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterable, Sequence

import msgspec

from fabric import bounds

_program = _anywhere = "fabric-initiator"


def set_program(name: str, anywhere: str) -> None:
    """Set the name of the initiator in the commands that messages suggest.

    ``name`` is for the current folder, and ``anywhere`` for any.
    """
    global _program, _anywhere
    _program, _anywhere = name, anywhere


def command(*words: str, anywhere: bool = False) -> str:
    """A command line that a message suggests: "fabric-initiator logs zlib".

    ``anywhere``: for any folder, and not only the current one.
    """
    return shlex.join([_anywhere if anywhere else _program, *words])


def with_own_commands(message: str) -> str:
    """A controller's message, with the commands it suggests as this user types them."""
    return message.replace("`fabric-initiator ", f"`{command()} ")


def first_of(names: Sequence[str], most: int) -> str:
    """Names in one line, and how many there are besides: "a, b and 3 more"."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def suggest(word: str, known: Iterable[str], alike: float = 0.6, most: int = 1) -> str:
    """``; did you mean 'x'?`` if a known word is similar to ``word``, else "".

    With ``most`` it names so many words: ``; did you mean 'x' or 'y'?``  Of paths, similar names of
    files count.
    """
    import difflib  # only errors need it

    by_name: dict[str, list[str]] = {}
    for one in known:
        by_name.setdefault(_name(one), []).append(one)
    names = difflib.get_close_matches(_name(word)[: bounds.NAME], by_name, n=most, cutoff=alike)
    near = [one for name in names for one in by_name[name]][:most]
    return f"; did you mean {' or '.join(repr(in_line(one)) for one in near)}?" if near else ""


def _name(word: str) -> str:
    """The name of the file in a path, without the ending of morphs."""
    return word.rpartition("/")[2].removesuffix(".morph")


#: Errors of the system when a disk or a quota is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: Errors of the system that pass with time.
PASSING = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


#: Lines of one shape that `grouped` shows, and names of others that it lists.
_EXAMPLES = 2
_OTHERS = 20


def grouped(text: str, most: int = bounds.ERROR_LINES) -> str:
    """``text`` in at most ``most`` lines: of many that differ only in names, two are shown, and the
    first words of the others are listed.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) <= most:
        return text
    alike: dict[str, list[str]] = {}
    for line in lines:
        alike.setdefault(_shape(line), []).append(line)
    shown: list[str] = []
    for group in alike.values():
        shown += group[:_EXAMPLES]
        firsts = [line.split(maxsplit=1)[0].rstrip(":") for line in group[_EXAMPLES:]]
        if others := list(dict.fromkeys(firsts)):
            more = f", and {len(others) - _OTHERS} more" if len(others) > _OTHERS else ""
            shown.append(
                f"  and {len(firsts)} more like these: {', '.join(others[:_OTHERS])}{more}"
            )
    if len(shown) >= most:
        shown[most - 1 :] = [f"and {len(shown) - most + 1} lines more"]
    return "\n".join([*shown, f"{len(lines)} problems in all; --debug shows each"])


def _shape(line: str) -> str:
    """The line without names, paths and numbers."""
    return " ".join(word if word.strip("(),;").isalpha() else "*" for word in line.split())


def in_line(path: object) -> str:
    """The name of a file for a message, in one line: no name can look like another message."""
    text = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else str(path)
    return text.replace("\r", "\\r").replace("\n", "\\n")


#: Ends of lines, except before an indented line, which continues the message.
_OUT_OF_LINE = re.compile(r"\r|\n(?!  )")


def without_secrets(text: str) -> str:
    """``text`` with ``***`` for passwords in its URLs, and for tokens in those of http."""
    if "@" not in text or "://" not in text:
        return text
    text = re.sub(r"(https?://)[^/\s'\"]+@", r"\1***@", text)
    return re.sub(r"(\w://[^/@:\s'\"]*):[^/\s'\"]*@", r"\1:***@", text)


class FabricError(Exception):
    """An error that users can understand and act on.  Its text holds no secret of a URL."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


class Problem(msgspec.Struct, frozen=True, order=True):
    """One mistake in the definitions, at ``file`` (a path from their root) and ``line``."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        message = _OUT_OF_LINE.sub(lambda found: repr(found[0])[1:-1], self.message)
        return f"{in_line(self.file)}:{self.line}: {message}"


class DefinitionsError(FabricError):
    """The definitions have mistakes; ``problems`` holds all that one run finds."""

    def __init__(self, problems: list[Problem], warnings: Iterable[Problem] = ()) -> None:
        self.problems = sorted(set(problems))
        self.warnings = sorted(set(warnings))  # found besides
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SourceError(FabricError):
    """A repository, ref or lorry is not available.

    ``alike``: one text for all sources that fail for the same reason; "" if there is none.
    """

    def __init__(self, message: str, *, alike: str = "") -> None:
        super().__init__(message)
        self.alike = alike


class SourcesError(SourceError):
    """Some sources are not available; ``failures`` holds (repo, ref) and the error of each."""

    def __init__(self, failures: list[tuple[tuple[str, str], SourceError]]) -> None:
        self.failures = failures
        super().__init__("\n".join(sorted({str(error) for _, error in failures})))
        self.exit_code = max(error.exit_code for _, error in failures)


class StoreError(FabricError):
    """The artifact store is out of reach, full or damaged."""


class DamagedError(StoreError):
    """The store has lost data, or holds data with another digest.

    ``keys``: cache keys of the steps that the data belongs to, as far as known.  Steps that an
    inspection finds damaged are removed from the store, so that they are built again.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


class BuildFailed(FabricError):
    """A build command failed.  The chunk is at fault, so another machine does not help."""

    exit_code = 3

    def __init__(self, message: str, *, step: str = "", command: str = "") -> None:
        super().__init__(message)
        self.step = step
        self.command = command
        self.elsewhere = False  # its build tree is not on this machine


class MachineFault(FabricError):
    """This machine cannot do the job (full disk, no sandbox, failed fetch); another may."""

    exit_code = 4

    def __init__(self, message: str, damaged: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.damaged = damaged  # cache keys of steps that the store has lost or damaged


class Cancelled(FabricError):
    """No request wants this job any more."""

    exit_code = 130
