"""Composes new entries of lorry files, and adds them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fabric.definitions.fields import Fields, Findings
from fabric.definitions.located_yaml import Map, parse
from fabric.definitions.yaml_scalar import scalar
from fabric.errors import SourceError
from fabric.host.files import write_whole
from fabric.trove.sources.lock_files import read_plain
from fabric.trove.sources.lorry_fields import LISTS, TYPES, check_entry

_FILE = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*")


def composed(name: str, kind: str, given: Mapping[str, str]) -> str:
    """The text of an entry.  ``given``: fields; lists are separated by commas.

    SourceError with all mistakes.
    """
    required, optional = TYPES[kind]
    lines = [f"{scalar(name)}:", f"  type: {kind}"]
    for field in sorted(given, key=[*required, *optional, *given].index):
        flag = field == "debian-patches" and given[field] in ("true", "false")
        if field in LISTS and not flag:
            lines += [f"  {field}:", *(f"  - {scalar(one)}" for one in given[field].split(","))]
        elif flag:
            lines.append(f"  {field}: {given[field]}")
        else:
            lines.append(f"  {scalar(field)}: {scalar(given[field])}")
    text = "".join(f"{line}\n" for line in lines)
    findings = Findings()
    fields = Fields("", findings)
    entry = parse(text.encode(), "", findings.errors)
    if isinstance(entry, Map) and name in entry:
        check_entry(fields, name, entry[name], 1, text.split("\n"))
    if findings.errors:
        raise SourceError("\n".join(problem.message for problem in findings.errors))
    return text


def file_of(folder: Path, name: str) -> Path:
    """The lorry file of that name, with or without its ending.  SourceError if it is no name."""
    stem = name.removesuffix(".lorry")
    if not _FILE.fullmatch(stem):
        raise SourceError(f"{name!r}: not the name of a lorry file, such as tools or tools.lorry")
    return folder / f"{stem}.lorry"


@contextlib.contextmanager
def added(file: Path, entry: str) -> Iterator[None]:
    """Add an entry to a lorry file, which need not exist; take it back if the block raises."""
    before = read_plain(file)
    text = (before or b"").rstrip(b"\n")
    content = text + b"\n\n" * bool(text) + entry.encode()
    try:
        file.parent.mkdir(exist_ok=True)
        write_whole(file, content, mode=0o644)
    except OSError as error:
        raise SourceError(f"{file}: cannot be written: {error.strerror}") from error
    try:
        yield
    except BaseException:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            write_whole(file, before, mode=0o644)
        raise
