"""Starts ``fabric-initiator``.

Ctrl-C ends the process silently until `fabric.initiator` has installed its own handling: loading
that module takes a tenth of a second.
"""

from __future__ import annotations

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it stays ignored
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))  # noqa: ARG005


def initiator() -> None:
    from fabric.initiator import program

    program()


if __name__ == "__main__":
    initiator()
