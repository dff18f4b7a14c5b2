"""Defines a page: an address whose content is typed, shown as HTML or JSON, and kept up to date.

A module of pages has ``routes``: a sequence of `Page`, and of Starlette's routes for what is none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from fabric.web.asks import Asks
from fabric.web.attempts import Attempts
from fabric.web.graphs import Graphs
from fabric.web.log_copies import LogCopies
from fabric.web.mirrors import Mirrors
from fabric.web.paced import Paced
from fabric.web.store import StoreReader


class Web(msgspec.Struct):
    """What pages are made from."""

    farm: Asks
    mirrors: Mirrors
    graphs: Graphs
    attempts: Attempts
    store: StoreReader
    logs: LogCopies
    controller: str = ""  # its name; "": the builds on this machine
    paced: Paced = msgspec.field(default_factory=Paced)


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of an address that has none."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a page: JSON as it is, and the variables of its template.

    Numbers of attempts (``fence``) are texts, since JavaScript has only 53 bits for a number.
    """


#: Path parameters, and the query, converted to the page's type.
Make = Callable[[Web, Mapping[str, str], Any], Awaitable[View]]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page.

    ``make`` raises NotFound if there is none, FabricError and MachineFault if the broker or the
    store has no answer.  Blocks of the template that are named ``live_NAME`` hold one element each,
    whose id is NAME with ``-`` for ``_``: these are sent again when they change.
    """

    path: str  # "/builds/{id}"
    template: str  # "build.html"
    summary: str  # one line, for the description of the API
    view: type[View]
    make: Make
    query: type[msgspec.Struct] = Nothing  # all fields have defaults
    live: bool = True
