"""Speaks HTTP with clients of which any may be slow, silent, or many."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from fabric import bounds

#: Seconds that a client has to send the head of a request, and to read what waits for it.
SEND = 30.0
READ = 60.0


class BoundedProtocol(H11Protocol):
    """Cuts connections past a bound, and those whose clients neither send nor read."""

    _request: asyncio.TimerHandle | None = None  # cuts a connection without a whole request
    _answer: asyncio.TimerHandle | None = None  # cuts one whose client does not read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # `pause_writing` tells of unread bytes; with 0, TLS pauses without any (asyncio.sslproto)
        transport.set_write_buffer_limits(high=1, low=0)
        if len(self.connections) > bounds.WEB_CONNECTIONS:
            transport.abort()
        else:
            self._request = self.loop.call_later(SEND, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel(self._request)
            self._request = None
        elif self._request is None:
            self._request = self.loop.call_later(SEND, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer = self.loop.call_later(READ, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel(self._request)
        self._cancel(self._answer)

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
