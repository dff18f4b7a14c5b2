"""Defines the interface of an engine, which runs the commands of chunks on other machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from fabric.building.log import Log
from fabric.building.sandbox import Ended, Limits
from fabric.host.cancel import CancelToken


class Step(msgspec.Struct, frozen=True):
    """The commands of a chunk, and the staging area that they need; nothing of this machine.

    The root has the layers, the source tree at ``/NAME.build``, and the empty DESTDIR at
    ``/NAME.inst``.
    """

    name: str
    layers: tuple[Path, ...]  # lowest first; each is named by its contents, and never changes
    source: Path | None  # never changes; None: an empty tree
    environment: Mapping[str, str]
    script: str  # as of `fabric.building.build_script`
    lists: tuple[str, ...]  # the names of its command lists that have commands, in their order


class Unsuitable(Exception):
    """The engine cannot run this step; the text says why.  DESTDIR is as it was."""


class Engine(Protocol):
    """Runs steps on other machines."""

    def run(
        self,
        step: Step,
        inst: Path,
        log: Log,
        cancel: CancelToken,
        limits: Limits,
        started: Callable[[str], None],
    ) -> Ended:
        """Run the script; its output goes to ``log``, and the files of DESTDIR to ``inst``, which
        is empty.

        ``started`` as for `fabric.building.sandbox.run`.  The seconds of ``limits`` count from when
        the engine begins.  Unsuitable, Cancelled, BuildFailed past a limit; MachineFault for
        everything that is no fault of the commands.
        """
