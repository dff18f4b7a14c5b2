"""Parses Baserock's INSTALL_FILES manifests: files that a deployment adds to a system.

Each line is ``[template] [overwrite] MODE UID GID PATH``.  MODE is octal and includes the type:
0100644 a file, 0040755 a folder, 0120000 a symbolic link.  PATH is the path in the system, and also
below the manifest's own folder.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from fabric.bounds import INSTALL_MANIFEST, INSTALLED_FILES
from fabric.building.image_rootfs import File, ImageError
from fabric.building.template import TemplateProblem, fill
from fabric.host.files import read_regular, real

_WORDS = ("template", "overwrite")
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


class _Entry(NamedTuple):
    line: int
    path: str
    file: File
    source: Path
    template: bool


def read_manifest(manifest: Path, variables: Mapping[str, str]) -> dict[str, File]:
    """The files of a manifest by path; templates are rendered with ``variables``.

    ImageError, with file and line, if a line is wrong or its file cannot be read.
    """
    entries: dict[str, _Entry] = {}
    room = INSTALLED_FILES
    try:
        lines = read_regular(manifest, INSTALL_MANIFEST).decode().splitlines()
    except OSError as error:
        raise ImageError(f"{manifest}: the manifest cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ImageError(f"{manifest}: the manifest cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
            entry = _entry(number, words, manifest.parent, room) if words else None
        except OSError as error:
            raise ImageError(f"{manifest}:{number}: {error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise ImageError(f"{manifest}:{number}: {error}") from error
        if entry is None:
            continue
        if entry.path in entries:
            raise ImageError(f"{manifest}:{number}: {entry.path} is there twice")
        entries[entry.path] = entry
        room -= len(entry.file.data)
    files = {path: entry.file for path, entry in entries.items()}
    return files | _filled(manifest, [one for one in entries.values() if one.template], variables)


def _entry(number: int, words: list[str], folder: Path, room: int) -> _Entry:
    """One line, whose file has at most ``room`` bytes.  ValueError if it is wrong."""
    flags = []
    while words and words[0] in _WORDS:
        flags.append(words.pop(0))
    if len(words) != 4 or not re.fullmatch(r"[0-7]{1,7}", words[0]):
        raise ValueError("a line is: [template] [overwrite] MODE UID GID PATH")
    mode, path = int(words[0], 8), words[3]
    if stat.S_IFMT(mode) not in _TYPES:
        raise ValueError(
            f"mode {words[0]} is no file (0100644), folder (0040755) or link (0120000)"
        )
    if not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words[1:3]):
        raise ValueError(f"{words[1]} and {words[2]} are not the numbers of a user and a group")
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path} is no path from the root")
    source = folder / path.lstrip("/")
    if not real(source.parent).is_relative_to(real(folder)):
        raise ValueError(f"{source} is outside of the manifest's folder")
    data = b""
    if stat.S_ISLNK(mode):
        data = os.fsencode(source.readlink())
    elif stat.S_ISREG(mode):
        if not real(source).is_relative_to(real(folder)):
            raise ValueError(f"{source} leads out of the manifest's folder")
        data = read_regular(source, room)
    elif not source.is_dir():
        raise ValueError(f"{source} is no folder")
    new = "overwrite" not in flags and not stat.S_ISDIR(mode)
    file = File(data, mode, int(words[1]), int(words[2]), new=new)
    return _Entry(number, path, file, source, "template" in flags)


def _filled(
    manifest: Path, templates: list[_Entry], variables: Mapping[str, str]
) -> dict[str, File]:
    """The rendered templates.  ImageError if one cannot be rendered."""
    if not templates:
        return {}
    try:
        texts = fill([_text(manifest, one) for one in templates], variables)
    except TemplateProblem as problem:
        wrong = None if problem.index is None else templates[problem.index]
        where = f"{manifest}:{wrong.line}: {wrong.source}" if wrong else str(manifest)
        raise ImageError(f"{where}: {problem}") from problem
    pairs = zip(templates, texts, strict=True)
    return {one.path: msgspec.structs.replace(one.file, data=text.encode()) for one, text in pairs}


def _text(manifest: Path, template: _Entry) -> str:
    try:
        return template.file.data.decode()
    except UnicodeDecodeError as error:
        raise ImageError(f"{manifest}:{template.line}: {template.source}: {error}") from error
