"""Local archives of Debian packages, for a real apt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest


def only_archive(top: Path, url: str, monkeypatch: pytest.MonkeyPatch, more: str = "") -> Path:
    """Have apt know that archive alone; returns its configuration, with the lines ``more``."""
    entries = top / "entries"
    entries.mkdir()
    (entries / "local.list").write_text(f"deb [trusted=yes] {url} ./\n")
    conf = top / "apt.conf"
    conf.write_text(
        f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{entries}";\n{more}'
    )
    monkeypatch.setenv("APT_CONFIG", str(conf))
    return conf


def checksums(files: Mapping[str, bytes]) -> str:
    """The fields of a source package that list its files."""
    listed = ""
    for kind, field in (("md5", "Files"), ("sha256", "Checksums-Sha256")):
        listed += f"{field}:\n"
        for file, data in files.items():
            listed += f" {hashlib.new(kind, data).hexdigest()} {len(data)} {file}\n"
    return listed


def release(indexes: Mapping[str, bytes], more: str = "") -> bytes:
    """The file Release of an archive with these indexes; ``more``: lines of it."""
    listed = "".join(
        f" {hashlib.sha256(data).hexdigest()} {len(data)} {file}\n"
        for file, data in indexes.items()
    )
    return f"Suite: test\nCodename: test\n{more}SHA256:\n{listed}".encode()


def forget_lists(top: Path) -> None:
    """Have the troves below a folder fetch their package lists again."""
    for stamp in top.glob("*/apt/*/updated"):
        os.utime(stamp, (0, 0))
