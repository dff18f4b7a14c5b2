"""Asks the controller in the settings; without one, the builds that run on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from fabric.client.controller import Controller, named_by, open_controller
from fabric.client.running import folders
from fabric.config import Settings
from fabric.errors import FabricError
from fabric.wire.connection import Connection
from fabric.wire.messages import RequestInfo
from fabric.wire.sockets import in_directory

T = TypeVar("T")


class BuildEnded(FabricError):
    """The build on this machine that was asked has ended."""


class Controllers:
    """The controller, or the broker of each build of this user with this cache.

    A build that ends meanwhile gives no answer, and one that begins is asked from then on.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = contextlib.ExitStack()
        self._known: dict[Path, Controller] = {}
        #: builds that have no broker yet: they read definitions, or import sources
        self.preparing = 0
        self._remote: Controller | None = None

    def __enter__(self) -> Controllers:
        if self._settings.controller:
            self._remote = self._stack.enter_context(open_controller(self._settings))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        for controller in self._known.values():
            controller.connection.close()

    def ask(self, question: Callable[[Controller], T]) -> list[T]:
        """The answers of all.  Errors as those of `Controller`."""
        answers = []
        for controller in self._current():
            with contextlib.suppress(BuildEnded):
                answers.append(question(controller))
        return answers

    def requests(self) -> list[RequestInfo]:
        """All builds."""
        answers = self.ask(lambda one: one.query("requests").requests)
        return [info for infos in answers for info in infos]

    def request(self, named: str) -> tuple[Controller, RequestInfo]:
        """The build whose id begins with ``named``.  FabricError if there is none, or several."""
        answers = self.ask(lambda one: (one, one.query("requests").requests))
        if not answers:
            raise FabricError("\n".join(self.none()))
        info = named_by(named, (info for _, infos in answers for info in infos))
        return next(one for one, infos in answers if info in infos), info

    @property
    def warning(self) -> str:
        """The fault of the controller, or ""."""
        return self._remote.warning if self._remote else ""

    def none(self) -> list[str]:
        """Lines that say that no build runs, or is prepared; empty if there is a controller."""
        if self._settings.controller:
            return []
        if self.preparing:
            return ["a build of yours reads definitions, or imports sources; no step runs yet"]
        return [
            f"no build of yours runs on this machine with the cache {self._settings.cache_dir}",
            "no controller is set: --controller HOST shows a farm",
        ]

    def _current(self) -> list[Controller]:
        if self._remote is not None:
            return [self._remote]
        for folder in [folder for folder in self._known if not _listens(folder)]:
            self._known.pop(folder).connection.close()
        self.preparing = 0
        for folder in folders(self._settings.state_dir):
            if not _listens(folder):
                self.preparing += 1
            elif folder not in self._known:
                self._known[folder] = self._open(folder)
        return list(self._known.values())

    def _open(self, folder: Path) -> Controller:
        def check() -> None:
            if not _listens(folder):
                raise BuildEnded("the build has ended")

        return Controller(Connection(in_directory(folder), "follow"), check=check)


def _listens(folder: Path) -> bool:
    """Whether the broker in the folder has opened its socket, and has not ended."""
    return (folder / "jobs").exists()
