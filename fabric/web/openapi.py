"""Describes the pages as an API, in OpenAPI 3.1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from fabric import __version__
from fabric.web.page import Page

_REFERENCE = "#/components/schemas/{name}"


def description(
    pages: Sequence[Page], health: type[msgspec.Struct], problem: type[msgspec.Struct]
) -> dict[str, Any]:
    """The description of the pages, and of ``/health``; ``problem`` is the body of errors."""
    views = [*(page.view for page in pages), health, problem]
    schemas, components = msgspec.json.schema_components(views, ref_template=_REFERENCE)
    of = dict(zip(views, schemas, strict=True))
    paths = {page.path: {"get": _operation(page, of[page.view], of[problem])} for page in pages}
    paths["/health"] = {
        "get": {
            "operationId": "health",
            "summary": "The state of this program",
            "responses": {"200": _answer("The state", of[health])},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Distbuild",
            "version": __version__,
            "description": "A farm, or the builds on one machine. Everything can only be read.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(page: Page, view: dict[str, Any], problem: dict[str, Any]) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", page.path)
    errors = {"400": "The address has a mistake", "502": "The broker has no answer"}
    errors["503"] = "The broker is silent"
    if names:
        errors["404"] = "There is no such thing"
    return {
        "operationId": page.template.removesuffix(".html"),
        "summary": page.summary,
        "parameters": [*map(_of_path, names), *_of_query(page.query), _FORMAT],
        "responses": {
            "200": _answer(page.summary, view),
            **{code: _answer(text, problem) for code, text in errors.items()},
        },
    }


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": text,
        "content": {"application/json": {"schema": schema}, "text/html": {}},
    }


def _of_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _of_query(query: type[msgspec.Struct]) -> list[dict[str, Any]]:
    _, components = msgspec.json.schema_components([query], ref_template=_REFERENCE)
    properties = components[query.__name__].get("properties", {})
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


_FORMAT = {
    "name": "format",
    "in": "query",
    "description": "json or html, whatever the header Accept asks for",
    "schema": {"enum": ["html", "json"]},
}
