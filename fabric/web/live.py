"""Keeps open pages up to date by server-sent events.

A page is made and rendered once a second for all its viewers, and only while it has some.  A viewer
that reads slowly gets the latest version of each fragment, and skips those between.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import msgspec

from fabric import bounds
from fabric.errors import FabricError, MachineFault

#: Seconds between two renderings of a page.
EVERY = 1.0
#: Seconds after which a comment shows that the connection is alive.
KEEP_ALIVE = 15.0

#: Renders the fragments of a page by id.
Render = Callable[[], Awaitable[dict[str, str]]]


def fault(error: Exception) -> str:
    """What viewers are told of a fault of this program."""
    return f"This is a fault of distbuild ({type(error).__name__}); its log shows where."


class TooMany(MachineFault):
    """A bound of live pages or viewers is reached."""


class _Viewer:
    """What one viewer has not been sent yet."""

    def __init__(self) -> None:
        self._pending: dict[str, bytes] = {}  # events by what they replace
        self._ready = asyncio.Event()

    async def events(self) -> AsyncIterator[bytes]:
        """All events, without end."""
        while True:
            for event in await self.take():
                yield event

    def put(self, about: str, event: bytes) -> None:
        self._pending[about] = event
        self._ready.set()

    async def take(self) -> list[bytes]:
        """The events to send; a comment if there are none for a while."""
        try:
            await asyncio.wait_for(self._ready.wait(), KEEP_ALIVE)
        except TimeoutError:
            return [b":\n\n"]
        self._ready.clear()
        events, self._pending = list(self._pending.values()), {}
        return events


class _Ticker:
    """Renders one page again and again."""

    def __init__(self, render: Render, log: Callable[[str], None]) -> None:
        self._render = render
        self._log = log
        self.viewers: set[_Viewer] = set()
        self._shown: dict[str, bytes] = {}  # the last event of each fragment, and the state
        self._task = asyncio.create_task(self._run())

    def add(self, viewer: _Viewer) -> None:
        self.viewers.add(viewer)
        for about, event in self._shown.items():
            viewer.put(about, event)

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                fragments = await self._render()
            except FabricError as error:
                kind = "away" if isinstance(error, MachineFault) else "gone"
                self._show("", _event(kind, {"error": str(error)}))
            except Exception as error:  # noqa: BLE001  # else the page would seem to be up to date
                self._log("".join(traceback.format_exception(error)))
                self._show("", _event("gone", {"error": fault(error)}))
                return
            else:
                self._show("", _event("there", {}))
                for id, html in fragments.items():
                    self._show(id, _event("fragment", {"id": id, "html": html}))
            await asyncio.sleep(EVERY)

    def _show(self, about: str, event: bytes) -> None:
        if self._shown.get(about) != event:
            self._shown[about] = event
            for viewer in self.viewers:
                viewer.put(about, event)


class LivePages:
    """The pages that somebody looks at, by address."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._tickers: dict[str, _Ticker] = {}
        self.viewers = 0

    @contextlib.contextmanager
    def watch(self, address: str, render: Render) -> Iterator[AsyncIterator[bytes]]:
        """The events of a page, without end.  TooMany past a bound."""
        if self.viewers >= bounds.WEB_VIEWERS:
            raise TooMany(f"{self.viewers} live pages are open, and more are not followed")
        ticker = self._tickers.get(address)
        if ticker is None:
            if (followed := len(self._tickers)) >= bounds.WEB_LIVE_PAGES:
                raise TooMany(f"{followed} different pages are followed, and more are not")
            ticker = self._tickers[address] = _Ticker(render, self._log)
        viewer = _Viewer()
        ticker.add(viewer)
        self.viewers += 1
        try:
            yield viewer.events()
        finally:
            self.viewers -= 1
            ticker.viewers.discard(viewer)
            if not ticker.viewers and self._tickers.get(address) is ticker:
                del self._tickers[address]
                ticker.stop()

    def close(self) -> None:
        for ticker in self._tickers.values():
            ticker.stop()


def _event(kind: str, data: dict[str, str]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data))
