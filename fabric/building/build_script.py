"""Generates the script that runs a chunk's command lists in the sandbox, and parses its reports.

One `sh` runs the whole chunk, since starting a sandbox takes about as long as a null build.  Each
command is run by ``sh -e -x -c``.  The old tool had no ``-e``, so of a command of several lines
only the last line's status counted; today's definitions are written for its second implementation,
which has it.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Callable, Sequence
from shlex import quote

import msgspec

#: The script's path in a sandbox: in a file system of bubblewrap's own, where no symlink of a
#: build's tree can lead elsewhere.
PATH = "/dev/steps"
#: The path of the FIFO of `fabric.host.jobserver`.
JOBSERVER = "/dev/jobserver"

_HEAD = """\
#!/bin/sh
# The steps of {name}.  To run them all:  sh {path}
# To run only some lists:  sh {path} build-commands install-commands ...
umask 022
{{ echo {oom} > /proc/self/oom_score_adj; }} 2>/dev/null  # fails if the user set more for all
unset PWD OLDPWD SHLVL
report() {{ :; }}
if [ "$1" = --report ]; then  # reports go to standard input, a pipe of the worker
    exec 3>&0 </dev/null
    report() {{ echo "@ $*" >&3; }}
    shift
fi
only="$*"
wanted() {{
    case " $only " in "  " | *" $1 "*) list=$1 number=0 ;; *) return 1 ;; esac
}}
run() {{
    number=$((number + 1))
    report "$list" "$number" || exit 1  # the worker is dead
    sh -e -x -c "$1" </dev/null 3>&- || exit $?
}}
report '' 0
"""

#: Has make take its jobs from the jobserver.  An older make ends when it is given a FIFO.
_SHARE = f"""\
share() {{
    [ -p {JOBSERVER} ] || return 0
    case $(command -v make >/dev/null || echo none; make --version 2>/dev/null) in
        none | "GNU Make 4."[4-9]* | "GNU Make 4."[1-9][0-9]* | "GNU Make "[5-9]*)
            MAKEFLAGS="$MAKEFLAGS --jobserver-auth=fifo:{JOBSERVER}" ;;
    esac
}}
"""

#: ``oom_score_adj`` (up to 1000) of builds: when memory runs out, the kernel kills them before the
#: fabric.
_END_FIRST = 500


class CommandList(msgspec.Struct, frozen=True):
    """A named list of commands, with their MAKEFLAGS (None: the variable is not set)."""

    name: str
    commands: tuple[str, ...]
    makeflags: str | None = None
    title: str = ""  # its header in the log; "": its name in capitals
    shared: bool = False  # make uses the jobserver, if there is one


def script(name: str, path: str, lists: Sequence[CommandList]) -> str:
    """The script for ``lists``, which is at ``path`` in the sandbox.  Empty lists are left out."""
    parts = [_HEAD.format(name=name, path=quote(path), oom=_END_FIRST)]
    if any(each.shared for each in lists):
        parts.append(_SHARE)
    for each in lists:
        if each.commands:
            parts.append(f"\nif wanted {quote(each.name)}; then\n")
            parts.append(f"echo {quote(f'### {each.title or each.name.upper()} ###')}\n")
            if each.makeflags is not None:
                share = "share\n" if each.shared else ""
                parts.append(f"MAKEFLAGS={quote(each.makeflags)}\n{share}export MAKEFLAGS\n")
            parts.extend(f"run {quote(command)}\n" for command in each.commands)
            parts.append("fi\n")
    return "".join(parts)


#: A report of the script: a list, and the number of the command in it that begins.
_REPORT = re.compile(rb"@ (.{0,255}) (\d{1,9})")
#: In bwrap's information about the sandbox.
_CHILD = re.compile(rb'"child-pid": (\d+)')
#: Most bytes of a line that may be a report.
_LONGEST = 1024


class StatusPipe:
    """Reads the status pipe: bwrap's ``--info-fd``, then the reports of the script.

    ``started`` is called with the name of each command list as it begins.  A build can write to
    the pipe through /proc/1/fd.  Forged reports harm that build only, and bwrap's information is
    read before any command runs.
    """

    def __init__(self, pipe: int, started: Callable[[str], None]) -> None:
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        self.started = False  # the script has begun
        self.list = ""
        self.number = 0  # of the command in its list, from 1
        self.child: int | None = None  # process 1 of the sandbox, by its pid outside
        self._hear = started
        self._rest = b""

    def read(self) -> bool:
        """Wait for a report and read it; False at the end of the pipe."""
        data = os.read(self._pipe, 65536)
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_LONGEST]
        for line in lines:
            self._take(line)
        return bool(data)

    def catch_up(self) -> None:
        """Read from the pipe without waiting, at most the capacity of a pipe."""
        for _ in range(4):
            if not self._poll.poll(0) or not self.read():
                return

    def _take(self, line: bytes) -> None:
        if report := _report(line):
            name, number = report
            self.started = True
            if name and name != self.list:
                self._hear(name)
            self.list, self.number = name, number
        elif not self.started and (found := _CHILD.search(line)):
            self.child = int(found[1])


def reported(text: bytes) -> list[tuple[str, int]]:
    """The reports in ``text``, in their order: of an engine, where they come at the end."""
    return [report for line in text.split(b"\n") if (report := _report(line))]


def _report(line: bytes) -> tuple[str, int] | None:
    """The command list and the number of its command in a report; None if the line is none."""
    found = _REPORT.fullmatch(line)
    return (found[1].decode("utf-8", "surrogateescape"), int(found[2])) if found else None


def phase_of(list_: str) -> str:
    """The phase a command list belongs to: ``build`` for ``pre-build-commands``."""
    return list_.removesuffix("-commands").removeprefix("pre-").removeprefix("post-")
