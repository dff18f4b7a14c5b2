"""Renders pages: Jinja with automatic escaping, and functions for states, times and commands."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from jinja2.runtime import Context
from markupsafe import Markup

from fabric import __version__
from fabric.client.controller import SHOWN
from fabric.client.render import duration, size
from fabric.errors import command
from fabric.web.page import Page, View, Web

#: Blocks of templates that are sent again when they change begin with this.
LIVE = "live_"


class Templates:
    """The templates of the package."""

    def __init__(self, web: Web) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("fabric.web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {"duration": duration, "size": size, "path": segment}
        self._environment.globals |= {
            "command": command,
            "elapsed": elapsed,
            "ago": ago,
            "moment": moment,
            "href": href,
            "short": lambda id: id[:SHOWN],
            "static": static,
            "version": __version__,
            "controller": web.controller,
        }
        # imports of a template are not seen by its blocks, which are rendered alone
        self._environment.globals["ui"] = self._environment.get_template("macros.html").module

    def page(self, name: str, **variables: Any) -> str:
        """A whole page."""
        return self._environment.get_template(name).render(live=False, **variables)

    def fragments(self, page: Page, view: View, **variables: Any) -> dict[str, str]:
        """The blocks ``live_...`` of a page, by the ids of their elements.

        Times that advance are left to the browser, so that a fragment changes only with the facts.
        """
        template = self._environment.get_template(page.template)
        context = template.new_context({"view": view, "live": True, **variables})
        return {
            name.removeprefix(LIVE).replace("_", "-"): "".join(render(context)).strip()
            for name, render in template.blocks.items()
            if name.startswith(LIVE)
        }


def segment(text: str) -> str:
    """A text as one segment of a path."""
    return quote(text, safe="")


def href(path: str, query: Mapping[str, object] | None = None, **changes: object) -> str:
    """An address with a query: ``query`` with ``changes``, without empty values."""
    values = {**(query or {}), **changes}
    given = {name: value for name, value in values.items() if value not in ("", None)}
    return path + ("?" + urlencode(given) if given else "")


@jinja2.pass_context
def elapsed(context: Context, since: datetime) -> Markup:
    """The time since a moment, which advances: "3 min 05 s"."""
    return _time(since, "elapsed", "" if context["live"] else duration(_seconds_since(since)))


@jinja2.pass_context
def ago(context: Context, since: datetime) -> Markup:
    """A moment as the time since it, coarse: "3 min ago"."""
    text = "" if context["live"] else duration(_seconds_since(since)) + " ago"
    return _time(since, "ago", text)


def moment(at: datetime) -> Markup:
    """A date with time, which the browser shows in the viewer's zone."""
    return _time(at, "moment", f"{at:%Y-%m-%d %H:%M:%S} UTC")


def _time(at: datetime, kind: str, text: str) -> Markup:
    stamp = at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" data-time="{}">{}</time>').format(stamp, kind, text)


def _seconds_since(at: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - at).total_seconds())


_digests: dict[str, str] = {}


def static(name: str) -> str:
    """The address of a static file, which changes with its content."""
    if name not in _digests:
        content = files("fabric.web").joinpath("static", name).read_bytes()
        _digests[name] = sha256(content).hexdigest()[:12]
    return f"/static/{name}?v={_digests[name]}"
