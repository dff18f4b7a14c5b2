"""Makefiles whose targets say when they ran."""

from __future__ import annotations

#: A target's commands, for so many seconds.
RECIPE = "date +b%s.%N; sleep {}; date +e%s.%N"
#: So many targets, each of so many seconds; their times are in the file ``times``.
MAKEFILE = "all: $(addprefix t,$(shell seq {}))\nt%:\n\t@{{ " + RECIPE + "; }} >>times\n"
#: A chunk morph that builds it.
MORPH = """\
name: {}
kind: chunk
build-commands:
- |
  cat >Makefile <<'END'
{}  END
- make -s
- cat times
"""


def morph(name: str, targets: int, seconds: float) -> str:
    """The morph of a chunk that runs so many targets."""
    makefile = MAKEFILE.format(targets, seconds)
    return MORPH.format(name, "".join(f"  {line}\n" for line in makefile.splitlines()))


def at_once(*logs: str) -> list[int]:
    """How many targets ran, at each beginning and end, over all these builds."""
    events = sorted(
        (float(word[1:]), 1 if word[0] == "b" else -1)
        for log in logs
        for word in log.split()
        if word[:1] in "be" and word[1:].replace(".", "").isdecimal()
    )
    assert events
    running, found = 0, []
    for _, change in events:
        running += change
        found.append(running)
    return found


def most(*logs: str) -> int:
    """The most targets that ran at once."""
    return max(at_once(*logs))
