"""Passes logs on: from workers to their spools and subscribers, and ranges of them to readers."""

from __future__ import annotations

from collections.abc import Mapping

import zmq

from fabric.controller.parts import Parts
from fabric.wire.messages import LogPiece, LogRead, Published


class LogRelay:
    """Receives pieces of logs, requests missing ones, and answers log reads."""

    def __init__(self, parts: Parts, routes: Mapping[str, bytes]) -> None:
        """``routes``: worker -> identity of its peer."""
        self._server = parts.server
        self._spools = parts.spools
        self._telemetry = parts.telemetry
        self._store_client = parts.store_client
        self._routes = routes

    def receive_published(self, now: float) -> None:
        """Take in published pieces, and request missing ones from workers."""
        for sender, piece, frame in self._server.pieces():
            self._append(sender, piece, frame)
        self._spools.digest()
        for worker, wanted in self._spools.wanted(now):
            route = self._routes.get(worker)
            if route is not None and not self._server.send(route, wanted):
                self._spools.unsent(wanted)

    def receive_requested(self, sender: str, message: LogPiece) -> None:
        """Take in a piece that was requested from a worker."""
        self._spools.arrived(message.key, message.fence)
        piece = Published(message.key, message.fence, message.offset, message.data)
        self._append(sender, piece, piece.frame())

    def _append(self, sender: str, piece: Published, frame: bytes | zmq.Frame) -> None:
        """Append a piece, whose encoding is ``frame``, and publish its new bytes."""
        if sender and sender != self._spools.worker(piece.key, piece.fence):
            return  # the log of another worker
        offset, fresh = self._spools.append(*piece)
        if fresh:
            self._telemetry.received_log(len(fresh))
            if len(fresh) < len(piece.data):
                frame = Published(piece.key, piece.fence, offset, fresh).frame()
            self._server.publish(frame)

    def read(self, sender: str, peer: bytes, message: LogRead) -> None:
        """Answer a log read from the spool, or have the store client read the log."""
        piece = self._spools.read(message.key, message.fence, message.offset, message.length)
        if piece is None:
            self._store_client.read_log(sender, peer, message)
        else:
            self._server.send(peer, piece)

    def send_stored(self) -> None:
        """Send the ranges that the store client has read."""
        for peer, piece in self._store_client.pieces():
            self._server.send(peer, piece)
