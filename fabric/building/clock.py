"""Puts the clock of a sandbox ahead, by libfaketime, if this machine has it.

Programs load it before the C library (``LD_PRELOAD``), so static ones see the real time.

Times of files are read as they are: those of sources are an input.  Times that a program sets are
moved back: otherwise a file that `touch` makes is newer than all that are made after it, and a make
that remakes its makefile never ends.  So a file that is copied with its time is older than the
original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from fabric.building import sandbox
from fabric.building.build_script import PATH
from fabric.building.log import Log
from fabric.errors import BuildFailed
from fabric.host.cancel import CancelToken

#: Places of libfaketime on this machine.
_LIBRARIES = ("usr/lib/*/faketime/libfaketime.so.1", "usr/lib*/faketime/libfaketime.so.1")
#: Its path in a sandbox; see `fabric.building.build_script.PATH`.
_INSIDE = "/dev/libfaketime.so.1"
#: Succeeds if `date` is told the other time, and nothing else is printed: a C library that cannot
#: load the library complains at the start of each program.
_PROBE = """\
exec 3>&0 </dev/null
echo '@  0' >&3
now=$(date +%s 2>/dev/null) && then=$({variables} date +%s 2>&1) || exit 1
[ "$then" -ge $((now + {seconds})) ] 2>/dev/null
"""


class Clock(msgspec.Struct, frozen=True):
    """A clock that is ahead.  By default, as is the real one, it is not."""

    mounts: tuple[str, ...] = ()  # arguments of bwrap, after its /dev
    variables: Mapping[str, str] = {}  # of the environment


REAL = Clock()


def clock_ahead(
    seconds: int,
    mounts: Sequence[str],
    environment: Mapping[str, str],
    log: Log,
    cancel: CancelToken,
) -> Clock:
    """A clock that is ``seconds`` ahead in a sandbox of these mounts; `REAL` if there can be none.

    ``mounts`` end with `sandbox.KERNEL`.  For errors see `sandbox.run`.
    """
    library = _library()
    if not seconds or library is None:
        return REAL
    clock = Clock(
        ("--ro-bind", library, _INSIDE),
        {
            "LD_PRELOAD": _INSIDE,
            "FAKETIME": f"+{seconds}",
            "NO_FAKE_STAT": "1",
            "FAKE_UTIME": "1",
            # make hangs when process 1 shares its lock with all others
            "FAKETIME_DISABLE_SHM": "1",
            # timeouts go by it
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    words = " ".join(f"{name}={value}" for name, value in clock.variables.items())
    box = sandbox.Box(
        mounts=(*mounts, *clock.mounts),
        read_only=("/",),
        environment=environment,
        cwd="/",
        script=_PROBE.format(variables=words, seconds=seconds),
        path=PATH,
    )
    try:
        works = sandbox.run(box, log, cancel, limits=_SHORT).status == 0
    except BuildFailed:  # there is no shell, or a strange `date`
        works = False
    return clock if works else REAL


#: Of the probe.
_SHORT = sandbox.Limits(seconds=10.0, log_bytes=1 << 16)


def _library() -> str | None:
    """The path of libfaketime on this machine."""
    found = [path for pattern in _LIBRARIES for path in sorted(Path("/").glob(pattern))]
    return str(found[0]) if found else None
