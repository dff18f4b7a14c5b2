"""Finds the words that can complete a command line.

The scripts of ``completion`` run ``fabric-initiator __complete SHELL``.  The first line of the
answer is ``words``, or ``files`` or ``directories``, which the shell completes itself.  Each other
line is a word and, after a tab, its meaning.  An error gives no words: nothing disturbs a line that
is being typed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fabric.commands import COMMANDS
from fabric.config import Settings, load_settings
from fabric.host.command_line import Parser

if TYPE_CHECKING:
    from fabric.client.project import Project
    from fabric.definitions.graph import Step

#: The word after which the program completes a line, in place of running it.
COMPLETE = "__complete"
#: Seconds after which completion gives up: a controller may be silent.
PATIENCE = 2.0

#: Options that are settings.
_SETTINGS = ("cache", "controller", "artifacts")

#: A word, and its meaning or "".
Word = tuple[str, str]


class _Shell(Exception):
    """The shell completes the word itself, with files or directories."""


def answer(
    shell: str, words: Sequence[str], front: Parser, command: Callable[[str], Parser]
) -> None:
    """Print the words that can stand in place of the last one of ``words``.

    ``front`` parses what stands before the name of a command, ``command`` returns the parser of
    one.  From bash, ``words`` are the line up to the cursor, and the part of its last word that
    bash replaces.
    """
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    removed, quoted = 0, False
    if shell == "bash":
        line, replaced = words
        words, quoted = _split(line)
        last = words[-1]
        removed = len(last) - len(replaced) if last.endswith(replaced) else 0
    kind, found = "words", list[Word]()
    try:
        found = list(_Line(front, command, words[:-1]).complete(words[-1]))
    except _Shell as other:
        kind = str(other)
    except (Exception, SystemExit):  # noqa: BLE001  as the module says
        kind = "words"
    print(kind)
    for word, meaning in dict(found).items():
        if not word.startswith(words[-1]) or not word.isprintable():
            continue
        meaning = " ".join(meaning.split())
        if shell == "bash":
            print(word[removed:] if quoted else _escaped(word[removed:]))
        elif shell == "zsh":
            colon = ":" if meaning else ""
            print(word.replace(":", "\\:") + colon + meaning)
        else:
            print(f"{word}\t{meaning}")


def _split(line: str) -> tuple[list[str], bool]:
    """The words after the first one of a line in bash, and whether the last has an open quote."""
    for quote in ("", "'", '"'):
        try:
            _, *words, last = shlex.split(f"{line}\0{quote}")
        except ValueError:
            continue
        return [*words, last.removesuffix("\0")], bool(quote)
    return [""], False


def _escaped(word: str) -> str:
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", word)


class _Line:
    """The words before the one to complete."""

    def __init__(
        self, front: Parser, command: Callable[[str], Parser], words: Sequence[str]
    ) -> None:
        self._parser = front
        self._load = command
        self._command = ""
        self._given: dict[str, list[str]] = {}
        self._option: argparse.Action | None = None  # whose values come next
        self._only_arguments = False  # after --
        self._place = 0  # of the next argument
        for word in words:
            self._add(word)

    def _add(self, word: str) -> None:
        if self._is_option(word):
            self._take_option(word)
        elif self._option is not None:
            self._take(self._option, word)
        elif not self._command:
            self._command, self._parser = word, self._load(word)
        elif action := self._argument():
            self._take(action, word)

    def _is_option(self, word: str) -> bool:
        return word.startswith("-") and not self._only_arguments

    def _take_option(self, word: str) -> None:
        self._option = None
        self._only_arguments = word == "--"
        name, equals, value = word.partition("=")
        if action := self._named(name):
            self._given.setdefault(action.dest, [])
            if action.nargs != 0:
                self._option = action
            if equals:
                self._take(action, value)

    def _named(self, name: str) -> argparse.Action | None:
        """The option of that name, which may be abbreviated."""
        for action in self._parser.arguments:
            if name in action.option_strings:
                return action
        words = [word for word in self._parser.words if word.startswith(name)]
        return self._named(words[0]) if len(words) == 1 and len(name) > 2 else None

    def _take(self, action: argparse.Action, word: str) -> None:
        """``word`` is a value of the option or argument."""
        values = self._given.setdefault(action.dest, [])
        values.append(word)
        many = action.nargs in ("*", "+") or isinstance(action.nargs, int)
        full = not many or (isinstance(action.nargs, int) and len(values) % action.nargs == 0)
        if action is self._option:
            self._option = None if full else action
        elif full:
            self._place += 1

    def _argument(self) -> argparse.Action | None:
        """The argument that the next word is."""
        arguments = [one for one in self._parser.arguments if not one.option_strings]
        return arguments[self._place] if self._place < len(arguments) else None

    def complete(self, word: str) -> Iterable[Word]:
        """The words that can stand next, if they begin with ``word``."""
        option = self._option
        if self._is_option(word) and not (option and option.nargs is None):
            name, equals, _ = word.partition("=")
            action = self._named(name) if equals else None
            if action is None:
                return self._options()
            value = word.partition("=")[2]
            return [(f"{name}={one}", text) for one, text in self._values(action, value)]
        if option is not None:
            return self._values(option, word)
        if not self._command:
            return COMMANDS.items()
        argument = self._argument()
        return self._values(argument, word) if argument else ()

    def _options(self) -> Iterator[Word]:
        for action in self._parser.arguments:
            if action.dest not in self._given or isinstance(action.default, list):
                for option in action.option_strings:
                    if option.startswith("--"):
                        yield option, action.help or ""

    def _values(self, action: argparse.Action, word: str) -> Iterable[Word]:
        if action.choices is not None:
            return [(str(choice), "") for choice in action.choices]
        metavar = action.metavar or ""
        if isinstance(metavar, tuple):
            metavar = metavar[len(self._given.get(action.dest, ())) % len(metavar)]
        last = {name: values[-1] for name, values in self._given.items() if values}
        settings = load_settings(overrides={name: last.get(name) for name in _SETTINGS})
        context = _Context(settings, last.get("system") or last.get("systems"), word)
        found: list[Word] = []
        for kind in metavar.split("|"):
            complete = _KINDS.get(f"{self._command} {kind}") or _KINDS.get(kind, "")
            if callable(complete):
                found += complete(context)
            elif complete:
                raise _Shell(complete)
        return found


class _Context(msgspec.Struct, frozen=True):
    """The settings of the line, the system that it names, and the word to complete."""

    settings: Settings
    system: str | None
    word: str

    def project(self) -> Project:
        """The definitions of the named system, else those of the current folder."""
        from fabric.client.project import Project

        near = Path(self.system or "").resolve()
        start = near if near.exists() else Path.cwd()
        return Project.find(start, self.settings, lambda _: None)

    def steps(self) -> Sequence[Step]:
        """The steps of the named system, else of the one built last, else of the first."""
        project = self.project()
        if self.system:
            path = project.locate(self.system, Path.cwd())
        else:
            path = project.last_system() or project.systems()[0]
        return project.graph(path).steps


def _systems(context: _Context) -> Iterable[Word]:
    """Paths from the current folder; if none fits, names in the folder systems."""
    project = context.project()
    systems = project.systems()
    words = [os.path.relpath(project.root / system) for system in systems]
    if not any(word.startswith(context.word) for word in words):
        words = [one.removeprefix("systems/").removesuffix(".morph") for one in systems]
    return [(word, "") for word in words]


def _steps(context: _Context) -> Iterable[Word]:
    return [(step.name, step.kind) for step in context.steps()]


def _artifacts(context: _Context) -> Iterable[Word]:
    for step in context.steps():
        yield step.name, step.kind
        yield from ((artifact, f"artifact of {step.name}") for artifact in step.artifacts)


def _lorries(context: _Context) -> Iterable[Word]:
    lorries = context.project().sources.lorries
    return [(one.name, f"{one.type} {one.version}") for one in lorries]


def _builds(context: _Context) -> Iterable[Word]:
    from fabric.client.controller import SHOWN
    from fabric.client.controllers import Controllers

    with Controllers(context.settings) as controllers:
        found = controllers.requests()
    return [(one.request[:SHOWN], f"{one.state}: {one.title}") for one in found]


def _workers(context: _Context) -> Iterable[Word]:
    from fabric.client.controller import open_controller

    with open_controller(context.settings) as controller:
        return [(one.name, one.state) for one in controller.query("workers").workers]


#: Metavar of an argument, or command and metavar -> what its values are.
_KINDS: Mapping[str, str | Callable[[_Context], Iterable[Word]]] = {
    **dict.fromkeys(("SYSTEM", "OLD", "NEW"), _systems),
    **dict.fromkeys(("CHUNK", "STEP"), _steps),
    "ARTIFACT": _artifacts,
    "ID": _builds,
    "lorry NAME": _lorries,
    "workers NAME": _workers,
    **dict.fromkeys(("DIR", "DIRECTORY", "URL"), "directories"),
    **dict.fromkeys(("FILE", "PATH"), "files"),
}
