"""The program ``fabric-initiator``: parses the command line, runs one command, prints its error.

Exit codes: 0 done; 1 wrong input, setting or environment; 2 wrong usage of the command line; 3 a
step failed to build; 4 a machine or the fabric failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from fabric import __version__
from fabric.commands import COMMANDS
from fabric.commands.shared.arguments import add_common
from fabric.commands.shared.system_errors import explained, require_current_folder
from fabric.config import load_settings, unknown_variables
from fabric.errors import DefinitionsError, FabricError, grouped, set_program, suggest
from fabric.host.command_line import Parser
from fabric.host.terminal import OutputError, install, restore

EPILOG = """exit codes:
  0  done                      3  something failed to build
  1  wrong input or setting    4  a machine or the fabric failed
  2  wrong usage               130  interrupted
"""


class _Front(Parser):
    """Parses the command line up to the name of the command."""

    def format_help(self) -> str:
        return parser().format_help()


def _front(kind: type[Parser]) -> Parser:
    front = kind(
        prog="fabric-initiator",
        description="Build whole Linux systems from source.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(front)
    front.add_argument("--version", action="version", version=f"distbuild {__version__}")
    return front


def _import(name: str) -> ModuleType:
    return importlib.import_module(f"fabric.commands.{name}")


def _add_arguments(command: Parser, module: ModuleType) -> None:
    add_common(command, default=argparse.SUPPRESS)  # keeps a value given before the command
    module.arguments(command)


def parser() -> Parser:
    """The whole command line, for its help and documentation."""
    top = _front(Parser)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        _add_arguments(command, _import(name))
    return top


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, ModuleType]:
    """The options, and the module of the command that is typed: no other is imported.

    Options may stand anywhere among the command's arguments.  argparse does not support this for
    sub-parsers, so the command has a parser of its own.
    """
    front = _front(_Front)
    front.add_argument("typed", nargs=argparse.PARSER, choices=COMMANDS, metavar="COMMAND")
    options, unknown = front.parse_known_args(argv)
    name, *rest = options.typed
    module = _import(name)
    command = _command(name, module)
    options, more = command.parse_known_intermixed_args(rest, options)
    unknown += more
    if unknown:
        front.error(f"unrecognized arguments: {' '.join(unknown)}{_hint(unknown, command, name)}")
    return options, module


def _command(name: str, module: ModuleType) -> Parser:
    command = Parser(prog=f"fabric-initiator {name}", description=COMMANDS[name])
    _add_arguments(command, module)
    return command


def _complete(shell: str, *words: str) -> int:
    """Print the words that can complete a command line; returns the exit code."""
    from fabric.commands.shared.candidates import answer

    def command(name: str) -> Parser:
        if name not in COMMANDS:
            raise ValueError(name)
        return _command(name, _import(name))

    answer(shell, words, _front(Parser), command)
    return 0


def _hint(unknown: Sequence[str], command: Parser, name: str) -> str:
    """A hint for the first unknown option, if one of the command is similar or the same."""
    option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
    if option in command.words:
        return f"; {option} stands after {name}"
    return suggest(option, command.words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    # Definitions become thousands of objects that stay.  A collection after every 700 of them took
    # a fourteenth of the CPU of an initiator that followed 200 steps.
    gc.set_threshold(20_000)
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["__complete"]:
        return _complete(*argv[1:])
    options, module = parse(argv)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # else it stays ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        settings = load_settings(overrides=vars(options))
        for line in unknown_variables():
            _print_error(f"fabric-initiator: warning: {line}")
        require_current_folder()
        with explained(settings.cache_dir):
            code: int = module.run(options, settings)
        sys.stdout.flush()
    except FabricError as error:
        if options.debug:
            raise
        prefix = "" if isinstance(error, DefinitionsError) else "fabric-initiator: "
        _print_error(grouped(f"{prefix}{error}"))
        return error.exit_code
    except KeyboardInterrupt:
        _print_error("fabric-initiator: interrupted")
        with contextlib.suppress(OSError, OutputError):
            sys.stdout.flush()
        # an exit would wait for threads, which may wait for a silent server
        os._exit(130)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:  # a fault of the program: users get no traceback
        if options.debug:
            raise
        _print_error(
            f"fabric-initiator: unexpected {type(error).__name__}: {error}\n"
            "This is a fault of distbuild; --debug shows where."
        )
        return 4
    finally:
        restore()
    return code


def _print_error(text: str) -> None:
    """Print to standard error.  A failure to do so cannot be reported."""
    restore()
    with contextlib.suppress(OSError, OutputError):
        print(text, file=sys.stderr, flush=True)


def _as_typed(path: str) -> str:
    """The command that runs the program at ``path``: its name, if a shell finds it by that."""
    name = os.path.basename(path)  # noqa: PTH119
    if name != "fabric-initiator" or "/" not in path:
        return "fabric-initiator"
    found = shutil.which(name)
    return name if found and os.path.samefile(found, path) else path  # noqa: PTH121


def _require_utf8() -> None:
    """Restart Python in UTF-8 mode if the locale has another encoding.

    Definitions and messages are UTF-8, and so are the paths in them.  Only the terminal keeps the
    encoding of the locale.
    """
    if sys.getfilesystemencoding() != "utf-8":
        if sys.stdout is not None:
            os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def program() -> NoReturn:
    """Run `main` and exit without Python's cleanup, a tenth of the time of a cached build."""
    _require_utf8()
    install()
    typed = _as_typed(sys.argv[0])
    set_program(typed, os.path.abspath(typed) if "/" in typed else typed)  # noqa: PTH100
    try:
        code = main()
    except SystemExit as end:  # from argparse
        code = end.code if isinstance(end.code, int) else 2
    try:
        sys.stdout.flush()
    except OutputError as error:
        if not code:  # else an error is printed already
            _print_error(f"fabric-initiator: {error}")
            code = error.exit_code
    except BrokenPipeError:
        code = code or 128 + signal.SIGPIPE
    os._exit(code)


if __name__ == "__main__":
    program()
