"""INSTALL_FILES manifests: which files a deployment adds to a system, from Baserock's times.

Each line is ``[template] [overwrite] MODE UID GID PATH``.  MODE is octal and says the type as well:
0100644 a file, 0040755 a folder, 0120000 a symbolic link.  PATH is where it comes to be, and where
it lies below the manifest's own folder.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

from fabric.building.image_rootfs import File, ImageError

_WORDS = ("template", "overwrite")
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


def read_manifest(manifest: Path, variables: Mapping[str, str]) -> dict[str, File]:
    """The files of a manifest by path; ``variables`` fill those that are templates.

    ImageError, with file and line, if a line is wrong or its file cannot be had.
    """
    files: dict[str, File] = {}
    try:
        lines = manifest.read_text().splitlines()
    except OSError as error:
        raise ImageError(f"{manifest}: the manifest cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ImageError(f"{manifest}: the manifest cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
            entry = _entry(words, manifest.parent, variables) if words else None
        except OSError as error:
            raise ImageError(f"{manifest}:{number}: {error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise ImageError(f"{manifest}:{number}: {error}") from error
        if entry and entry[0] in files:
            raise ImageError(f"{manifest}:{number}: {entry[0]} is there twice")
        files |= [entry] if entry else []
    return files


def _entry(words: list[str], folder: Path, variables: Mapping[str, str]) -> tuple[str, File]:
    """One line.  ValueError says what is wrong with it."""
    flags = []
    while words and words[0] in _WORDS:
        flags.append(words.pop(0))
    if len(words) != 4 or not re.fullmatch(r"[0-7]+", words[0]):
        raise ValueError("a line is: [template] [overwrite] MODE UID GID PATH")
    mode, path = int(words[0], 8), words[3]
    if stat.S_IFMT(mode) not in _TYPES:
        raise ValueError(
            f"mode {words[0]} is no file (0100644), folder (0040755) or link (0120000)"
        )
    if not (words[1].isdecimal() and words[2].isdecimal()):
        raise ValueError(f"{words[1]} and {words[2]} are not the numbers of a user and a group")
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path} is no path from the root")
    source = folder / path.lstrip("/")
    data = b""
    if stat.S_ISLNK(mode):
        data = os.fsencode(source.readlink())
    elif stat.S_ISREG(mode):
        data = source.read_bytes()
    elif not source.is_dir():
        raise ValueError(f"{source} is no folder")
    if "template" in flags:
        data = _filled(data.decode(), source, variables).encode()
    new = "overwrite" not in flags and not stat.S_ISDIR(mode)
    return path, File(data, mode, int(words[1]), int(words[2]), new=new)


def _filled(text: str, source: Path, variables: Mapping[str, str]) -> str:
    try:
        import jinja2
    except ImportError:
        raise ValueError(f"{source} is a template, and jinja2 is not installed") from None
    try:
        template = jinja2.Environment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
        ).from_string(text)
        return template.render(variables)
    except jinja2.TemplateError as error:
        raise ValueError(f"{source}: {error}") from error
