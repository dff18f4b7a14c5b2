"""Compares the end of a run with the expected artifacts, logs, processes and files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from farm import Farm
from hosts import everybody
from people import User, logs

from fabric.jobs import Manifest
from fabric.trove.artifacts.manifests import decode


def manifests(store: Path) -> dict[str, Manifest]:
    """All manifests of a store of files, by key."""
    files = (store / "manifests").iterdir()
    return {path.name: decode(path.read_bytes(), path.name) for path in files}


def wrong_artifacts(store: Path, alone: dict[str, Manifest]) -> Iterator[str]:
    """Artifacts that the farm lacks, or that differ from those of a single machine."""
    there = manifests(store)
    for key, manifest in alone.items():
        if key not in there:
            yield f"{manifest.name} is not built"
        elif there[key].artifacts != manifest.artifacts:
            yield f"{manifest.name} differs"
        for blob in there[key].blobs() if key in there else ():
            content = blob.content
            if content is None:
                content = (store / f"blobs/{blob.sha256[:2]}/{blob.sha256}").read_bytes()
            if hashlib.sha256(content).hexdigest() != blob.sha256:
                yield f"{manifest.name} is damaged in the store"


def wrong_logs(users: Sequence[User], built: dict[str, Manifest]) -> Iterator[str]:
    """Logs of users that differ from those stored with the ``built`` artifacts."""
    whole = {manifest.log_name: manifest.log for manifest in built.values()}
    for user in users:
        for path in logs(user):
            name = path.name.removesuffix(".log").split(".")[0] + ".log"  # x.2.log is of x, too
            content, log = path.read_bytes(), whole.get(name)
            if log is None:
                yield f"{path.name} of {user.name}: no such step"
            elif hashlib.sha256(content).hexdigest() != log.sha256:
                end = content[-200:].decode(errors="replace")
                yield (
                    f"{path.name} of {user.name} has {len(content)} of {log.size} bytes, written"
                    f" at {path.stat().st_mtime:.1f}, and ends with {end!r}"
                )


def left_processes(farm: Farm) -> Iterator[str]:
    """Processes that still run, in any namespace."""
    expected = {1, os.getpid(), os.getppid(), *(host.holder for host in farm.hosts)}
    for pid in everybody():
        if pid not in expected:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            yield f"process {pid} {command[:200]}"


def left_mounts(farm: Farm) -> Iterator[str]:
    for host in farm.hosts:
        yield from (f"mount {place} on {host.name}" for place in host.mounts() - host.mounted)


#: Names of temporary files of fabric and SQLite. Leftover packs of git (tmp_pack_...) are no error:
#: the first fetch after an hour removes them.
TEMPORARY = (
    ".*", "*.new", "*.part", "*.tmp", "*-journal", "incoming*", "taking-in-*",
    "resolving-*", "making-*", "exporting-*", "fetching-*", "*.git/*.lock", "*.git/refs/*.lock",
)  # fmt: skip
#: Folders that should be empty.
EMPTY = ("tmp", "body", "cache/work/scratch", "data/artifacts/tmp")


#: Folders whose file names come from sources and builds.
FOREIGN = ("cache/trove/trees/*/*", "cache/work/layers/*")


def files(disk: Path) -> Iterator[Path]:
    """All files and folders, but for foreign ones."""
    for folder, folders, names in os.walk(disk):
        place = Path(folder).relative_to(disk)
        if any(map(place.match, FOREIGN)):
            folders.clear()
        else:
            yield from (place / name for name in (*folders, *names))


def left_files(farm: Farm) -> Iterator[str]:
    """Temporary files left on the disks."""
    for host in farm.hosts:
        for name in files(host.disk):
            inside = any(name.is_relative_to(folder) and str(name) != folder for folder in EMPTY)
            if inside or (name.name != ".git" and any(map(name.match, TEMPORARY))):
                yield f"file {name} on {host.name}"
        for path in Path(f"/proc/{host.holder}/root/dev/shm").glob("fabric-*"):
            yield f"file {path.name} in memory on {host.name}"
