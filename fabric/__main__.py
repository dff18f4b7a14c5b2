"""Where ``fabric-initiator`` begins.  Ctrl-C ends it without a word until `fabric.initiator` heeds
it: to load that takes a tenth of a second.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))  # noqa: ARG005


def initiator() -> NoReturn:
    from fabric.initiator import program

    program()
