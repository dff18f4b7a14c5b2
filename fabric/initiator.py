"""The initiator: what a developer types.  ``fabric-initiator build SYSTEM`` and its sisters.

Exit codes: 0 done; 1 the input or the surroundings are wrong; 2 wrong usage of the command
line; 3 something failed to build; 4 a machine or the fabric failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fabric import __version__
from fabric.config import load_settings, unknown_variables
from fabric.errors import NO_ROOM, FabricError, MachineFault, called, grouped
from fabric.host.terminal import OutputError, install, restore

EPILOG = """exit codes:
  0  done                      3  something failed to build
  1  wrong input or setting    4  a machine or the fabric failed
  2  wrong usage               130  interrupted
"""


class _Command(argparse.ArgumentParser):
    """One command.  Options may stand anywhere among its arguments: argparse by itself takes
    ``build SYSTEM --json CHUNK`` for a mistake.  Arguments that may be left out have a default,
    else it calls them required.
    """

    _within = False

    # This is what a sub-command is parsed by, and what argparse itself uses to parse it so.
    def parse_known_args(  # type: ignore[override]  # typeshed has one for each kind of namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._within:
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False


def _common(default: str | None) -> _Command:
    """Options that may stand before the command, and after it."""
    common = _Command(add_help=False, argument_default=default)
    common.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    common.add_argument("--cache", metavar="DIR", help="where everything local is kept")
    common.add_argument("--artifacts", metavar="URL", help="the artifact store")
    common.add_argument(
        "--controller", metavar="HOST[:PORT]", help='of the farm to use; "" for this machine alone'
    )
    return common


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="fabric-initiator",
        description="Build whole Linux systems from source.",
        epilog=EPILOG,
        parents=[_common(None)],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"distbuild {__version__}")
    common = _common(argparse.SUPPRESS)  # after the command, what is not said changes nothing
    json = _Command(add_help=False)
    json.add_argument("--json", action="store_true", help="print JSON, for programs")
    limits = _Command(add_help=False)
    limits.add_argument("--workers", type=int, metavar="N", help="workers on this machine")
    limits.add_argument("--max-jobs", type=int, metavar="N", help="make's -j in a build step")
    limits.add_argument(
        "--build-timeout", type=float, metavar="SECONDS", help="end a build step after this long"
    )
    locked = _Command(add_help=False)
    locked.add_argument(
        "--locked",
        action="store_true",
        help="refuse if the definitions do not pin what each source contains",
    )
    of_system = _Command(add_help=False)
    of_system.add_argument(
        "--system",
        metavar="SYSTEM",
        help="the system it is part of (default: the last one built here, or the first that fits)",
    )
    commands = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Command
    )

    def add(name: str, text: str, *parents: _Command) -> _Command:
        return commands.add_parser(name, help=text, description=text, parents=[common, *parents])

    build = add("build", "Build a system, or some chunks or strata of it.", json, limits, locked)
    build.add_argument("system", metavar="SYSTEM", help="a system morph")
    build.add_argument(
        "chunks", nargs="*", default=[], metavar="CHUNK", help="build only these and their needs"
    )
    build.add_argument(
        "--keep-going", action="store_true", help="after a failure, build all that still can be"
    )
    build.add_argument(
        "--detach", action="store_true", help="order it and end: the controller goes on with it"
    )
    build.add_argument(
        "--priority", type=int, metavar="N", help="-10 to 10: each 1 more doubles its share"
    )

    attach = add("attach", "Follow a build of the controller, and its logs, from anywhere.", json)
    attach.add_argument("request", metavar="ID", help="as `list` shows it, or its beginning")

    status = add("status", "Show how the farm, or one build, stands.", json)
    status.add_argument("request", metavar="ID", nargs="?", help="a build")
    status.add_argument("--watch", action="store_true", help="go on showing it")

    add("list", "List the builds that the controller knows.", json)

    cancel = add("cancel", "End a build; what others want of it goes on.", json)
    cancel.add_argument("request", metavar="ID")

    why = add("why", "Tell what a step or a build waits for, and who could do it.", json)
    why.add_argument("what", metavar="STEP|ID")

    workers = add("workers", "List the workers; drain one, or let it work again.", json)
    workers.add_argument("action", nargs="?", choices=["drain", "resume"])
    workers.add_argument("name", nargs="?", metavar="NAME")

    graph = add("graph", "Print what a system is built from, and in which order.", json, locked)
    graph.add_argument("system", metavar="SYSTEM")
    graph.add_argument("--dot", action="store_true", help="print it for Graphviz")
    graph.add_argument("--offline", action="store_true", help="touch no repository: leave out keys")

    show = add("show", "Show cache keys, what is cached, and why the rest is not.", json, locked)
    show.add_argument("system", metavar="SYSTEM")
    show.add_argument(
        "chunks", nargs="*", default=[], metavar="CHUNK", help="only these, in detail"
    )

    checkout = add("checkout", "Copy an artifact out of the store.", json)
    checkout.add_argument("system", metavar="SYSTEM")
    checkout.add_argument("artifact", nargs="?", metavar="ARTIFACT", help="default: the system")
    checkout.add_argument(
        "--to", required=True, metavar="PATH", help="a new directory, or FILE.tar, FILE.tar.zst"
    )
    checkout.add_argument("--force", action="store_true", help="replace what is there")

    image = add("image", "Make a bootable disk image of a built system.", json, locked)
    image.add_argument("system", metavar="SYSTEM")
    image.add_argument("--to", required=True, metavar="FILE", help="*.qcow2, or anything: raw")
    image.add_argument(
        "--size", metavar="SIZE", default="2G", help="of the disk (default 2G; sparse)"
    )
    image.add_argument("--label", default="system", help="label of the root file system")
    image.add_argument("--hostname", help="written to /etc/hostname")
    image.add_argument(
        "--files", metavar="DIR", help="put these in: a tree of files as it shall be below /"
    )
    image.add_argument(
        "--manifest",
        action="append",
        default=[],
        metavar="FILE",
        help="put in what this INSTALL_FILES manifest lists",
    )
    image.add_argument(
        "--variables", metavar="FILE", help="JSON, NAME: TEXT: what templates of manifests see"
    )
    image.add_argument(
        "--subsystem",
        nargs=2,
        action="append",
        default=[],
        metavar=("SYSTEM", "PATH"),
        help="put in another built system, as an archive at PATH: *.tar.zst, or anything: tar",
    )
    image.add_argument("--kernel-args", default="", metavar="ARGS", help="appended")
    image.add_argument("--force", action="store_true", help="replace what is there")

    logs = add("logs", "Print the build log of a chunk, stratum or system.", json, of_system)
    logs.add_argument("chunk", metavar="CHUNK")
    logs.add_argument("--follow", action="store_true", help="go on until it ends")
    logs.add_argument("--request", metavar="ID", help="as built for this one")

    shell = add("shell", "Open a shell in the sandbox of a chunk.", limits, of_system)
    shell.add_argument("chunk", metavar="CHUNK")
    shell.add_argument(
        "argv", nargs="*", default=[], metavar="ARG", help="after --: run this instead"
    )

    gc = add("gc", "Remove what is old: artifacts, layers, sources' trees.", json)
    gc.add_argument(
        "--keep-days", type=float, default=7.0, metavar="N", help="keep what is younger (default 7)"
    )
    gc.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    gc.add_argument(
        "--keep", action="append", default=[], metavar="SYSTEM", help="keep all it needs"
    )

    cache = add("cache", "Look after what is kept on this machine.", json)
    cache.add_argument("action", choices=["check"], help="read all of it, and mend what is damaged")

    lorry = add("lorry", "Where sources come from: list, import, renew pins.", json)
    lorry.add_argument("action", choices=["list", "import", "update"])
    lorry.add_argument("names", nargs="*", default=[], metavar="NAME", help="default: all")
    return top


@contextlib.contextmanager
def _explained(cache: Path) -> Iterator[None]:
    """Turn what the system says of a place that cannot be the cache into an error for users."""
    try:
        yield
    except OSError as error:
        unfit = isinstance(error, PermissionError | NotADirectoryError | FileExistsError)
        unfit = unfit or error.errno in (errno.EROFS, *NO_ROOM)
        name = Path(error.filename if isinstance(error.filename, str) else "")
        if unfit and (name.is_relative_to(cache) or cache.is_relative_to(name)):
            raise FabricError(
                f"{name}: {error.strerror}; everything local is kept in {cache}, which must be a"
                " writable folder: --cache or FABRIC_CACHE names another"
            ) from error
        odd = error.errno in (errno.EISDIR, errno.ELOOP) or name.is_symlink()
        if odd and name.is_relative_to(cache):
            raise FabricError(
                f"{name}: {error.strerror}: that is not what was made there; remove it, or have"
                " --cache name another folder"
            ) from error
        if error.errno in NO_ROOM:
            raise MachineFault(
                f"{error.filename or 'A disk'}: {error.strerror}; make room there (temporary files"
                " go where TMPDIR says)"
            ) from error
        raise


def _look_around() -> None:
    """FabricError if there is no current folder."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise FabricError("the current folder is gone; go to one that exists") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    # To look for garbage after every 700 things made, while definitions become thousands of them
    # that stay, took a fourteenth of the CPU of an initiator that followed 200 steps.
    gc.set_threshold(20_000)
    options = parser().parse_args(argv)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # else it is to be ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        settings = load_settings(overrides=vars(options))
        for line in unknown_variables():
            _tell(f"fabric-initiator: warning: {line}")
        command = importlib.import_module(f"fabric.commands.{options.command}")
        _look_around()
        with _explained(settings.cache_dir):
            code: int = command.run(options, settings)
        sys.stdout.flush()
    except FabricError as error:
        if options.debug:
            raise
        prefix = "" if getattr(error, "problems", None) else "fabric-initiator: "
        _tell(grouped(f"{prefix}{error}"))
        return error.exit_code
    except KeyboardInterrupt:
        _tell("fabric-initiator: interrupted")
        with contextlib.suppress(OSError, OutputError):
            sys.stdout.flush()
        # threads may be waiting for a server that says nothing, and an exit would wait for them
        os._exit(130)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:  # the last line of defence: no traceback for users
        if options.debug:
            raise
        _tell(
            f"fabric-initiator: unexpected {type(error).__name__}: {error}\n"
            "This is a fault of distbuild; run again with --debug to see where."
        )
        return 4
    finally:
        restore()
    return code


def _tell(text: str) -> None:
    """Last words.  Nobody can be told that they cannot be written."""
    restore()
    with contextlib.suppress(OSError, OutputError):
        print(text, file=sys.stderr, flush=True)


def _as_typed(path: str) -> str:
    """What a user types to run the program at ``path``: its name only if a shell finds it so."""
    name = os.path.basename(path)  # noqa: PTH119
    if name != "fabric-initiator" or "/" not in path:
        return "fabric-initiator"
    found = shutil.which(name)
    return name if found and os.path.samefile(found, path) else path  # noqa: PTH121


def _speak_utf8() -> None:
    """Begin anew with paths, arguments and files as UTF-8, whatever the locale says of them.

    Others encode what is passed on, definitions and messages, as UTF-8, too.  Only the terminal has
    what the locale says.
    """
    if sys.getfilesystemencoding() != "utf-8":
        if sys.stdout is not None:
            os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def program() -> NoReturn:
    """The program: `main`, and then an end that does not first take apart what goes away anyway.

    A fully cached build would spend a tenth of its time on that.
    """
    _speak_utf8()
    install()
    called(_as_typed(sys.argv[0]))
    try:
        code = main()
    except SystemExit as end:  # of the parser of arguments
        code = end.code if isinstance(end.code, int) else 2
    try:
        sys.stdout.flush()
    except OutputError as error:
        if not code:  # otherwise an error is printed already
            _tell(f"fabric-initiator: {error}")
            code = error.exit_code
    except BrokenPipeError:
        code = code or 128 + signal.SIGPIPE
    os._exit(code)


if __name__ == "__main__":
    program()
