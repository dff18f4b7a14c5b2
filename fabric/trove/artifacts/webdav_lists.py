"""Reads a WebDAV server's list of a folder: the answer to PROPFIND.

Whatever a server sends, a list is whole and one of a folder, or a ValueError; gc would take
anything else for an empty folder.
"""

from __future__ import annotations

import http.client
import re
import xml.etree.ElementTree as xml
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from fabric.bounds import DAV_LISTING
from fabric.host.shared_files import CHUNK
from fabric.trove.artifacts.webdav_answers import DavError

#: How deep elements nest in a list of a folder, at most.
DEEPEST = 16
_DAV = "{DAV:}"


class Listing:
    """Collects the members of a folder from an answer to PROPFIND, as the target of a parser.

    It holds no more of the answer than these.  ValueError if the answer is something else.
    """

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self.folders: list[str] = []
        self._open: list[str] = []  # elements
        self._text: list[str] = []  # of the innermost one
        self._here: dict[str, str] = {}  # name -> text, in this propstat
        self._member: dict[str, str] = {}  # name -> text, in this response

    def doctype(self, *_: object) -> None:
        raise ValueError("it has a DOCTYPE")  # whose entities may be endless

    def start(self, tag: str, _: object) -> None:
        if not self._open and tag != f"{_DAV}multistatus":
            raise ValueError("it is a list of no folder")
        if len(self._open) == DEEPEST:
            raise ValueError("it is nested too deeply")
        self._open.append(tag)
        self._text = []

    def data(self, text: str) -> None:
        if self._name():
            self._text.append(text)

    def end(self, _: str) -> None:
        if name := self._name():
            known = self._member if name == "href" else self._here
            known[name] = "".join(self._text)
        self._open.pop()
        if len(self._open) == 1:
            self._add(self._member)
            self._member = {}
        elif len(self._open) == 2:
            # the server does not tell those of another status
            if self._here.pop("status", "").split()[1:2] == ["200"]:
                self._member |= self._here
            self._here = {}

    def _name(self) -> str:
        """That of the innermost element; "" unless it is one to read."""
        name = self._open[-1].removeprefix(_DAV)
        return name if _DEPTHS.get(name) == len(self._open) else ""

    def _add(self, member: dict[str, str]) -> None:
        path = unquote(urlsplit(member.get("href", "")).path).strip("/")
        if "collection" in member:
            self.folders.append(path)
            return
        changed = member.get("getlastmodified")
        if not changed:  # gc would take it for an old one
            raise ValueError(f"{path} has no date")
        size = size_of(member.get("getcontentlength"))
        self.objects.append({"path": path, "size": size, "last_modified": date_of(changed)})

    def close(self) -> None:
        pass


#: The elements that `Listing` reads, and how deep they are in multistatus/response/propstat/prop.
_DEPTHS = {"href": 3, "status": 4, "getcontentlength": 5, "getlastmodified": 5, "collection": 6}


def read_listing(answer: http.client.HTTPResponse) -> Listing:
    found = Listing()
    parser = xml.XMLParser(target=found)
    read = 0
    while piece := answer.read(CHUNK):
        read += len(piece)
        if read > DAV_LISTING:
            raise DavError(f"a list of a folder has more than {DAV_LISTING:,} bytes")
        parser.feed(piece)
    if answer.length:  # it ended before
        raise http.client.IncompleteRead(b"", answer.length)
    parser.close()
    return found


def size_of(text: str | None) -> int:
    """A number of bytes; ValueError if it is none."""
    if not re.fullmatch("[0-9]{1,18}", text or ""):
        raise ValueError(f"{shown(text)} is no size")
    return int(text or "")


def date_of(text: str | None) -> datetime:
    """A date of HTTP; ValueError if it is none."""
    if not text:
        return datetime.fromtimestamp(0, UTC)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{shown(text)} is no date") from None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def shown(text: str | None) -> str:
    return repr(text and text[:60])
