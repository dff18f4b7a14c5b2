"""``config``: shows each setting, its value, and where the value comes from."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

import msgspec

from fabric.client.render import table
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.output import print_json
from fabric.config import Settings, built_architectures, config_path, shown_value, variable
from fabric.errors import without_secrets


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "action", choices=["show"], help="print the settings; passwords in URLs are left out"
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    file = config_path()
    found = _described(options, settings, file)
    if options.json:
        print_json({"file": str(file), "exists": file.exists(), "settings": found})
        return 0
    print(f"settings file: {file}" + ("" if file.exists() else " (there is none)"))
    rows = []
    for one in found:
        value = shown_value(one["value"])
        if one["effective"] != one["value"]:
            value += f" ({_plain(one['effective'])})"
        rows.append((one["name"], value, one["from"]))
    print("\n".join(table([("SETTING", "VALUE", "FROM"), *rows])))
    return 0


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _described(options: argparse.Namespace, settings: Settings, file: Path) -> list[dict[str, Any]]:
    text = file.read_text() if file.is_file() else ""
    effective = {
        "cache": str(settings.cache_dir),
        "artifacts": settings.store_url,
        "keys": str(settings.keys_dir),
        "max_jobs": settings.jobs,
        "workers": settings.worker_count,
        "architectures": built_architectures(settings),
    }
    found = []
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        if getattr(options, field.name, None) is not None:
            origin = f"--{field.encode_name}"
        elif variable(field) in os.environ:
            origin = f"environment variable {variable(field)}"
        elif line := _line(text, field.encode_name):
            origin = f"{file}:{line}"
        elif field.name == "cache" and os.environ.get("XDG_CACHE_HOME"):
            origin = "environment variable XDG_CACHE_HOME"
        else:
            origin = "default"
        facts = {"name": field.encode_name, "value": value}
        facts |= {"effective": effective.get(field.name, value), "from": origin}
        found.append(_without_secrets(facts))
    return found


def _without_secrets(value: Any) -> Any:
    """Plain values without secrets in URLs."""
    return msgspec.json.decode(without_secrets(msgspec.json.encode(value).decode()))


def _line(text: str, name: str) -> int:
    """The line of a setting in a valid TOML file; 0 if it is not there."""
    import tomllib

    if not text or name not in tomllib.loads(text):
        return 0
    key = rf"\s*(\[\s*)?([\"']?){re.escape(name)}\2\s*[]=.]"
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if re.match(key, line):
            try:  # a line inside of another value follows no valid file
                tomllib.loads("".join(lines[:number]))
            except ValueError:
                continue
            return number + 1
    return 0
