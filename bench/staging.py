"""Staging: how long a sandbox with many chunks takes to start, against bubblewrap's own start.

    python bench/staging.py [--chunks 50] [--files 400] [--runs 30]

Each round starts three sandboxes that run the same empty script, in turn, so that a noisy
machine is noisy for all: one whose root is a plain directory bound read-only, with every other
option the same (bubblewrap's own start); one staged with that many chunks of that many files;
one with as many chunks of a single file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from fabric.building import sandbox, staging_area
from fabric.building.archive import DIRECTORY, FILE, Entry, pack
from fabric.building.log import Log
from fabric.building.tree import scan
from fabric.building.workspace import Workspace
from fabric.host.cancel import CancelToken
from fabric.jobs import Artifact, Job, Manifest, Source, Staged
from fabric.trove.artifacts.store import Store
from fabric.trove.sources.changes import Change


class NoSources:
    """Chunks of this bench have none."""

    def export(self, source: Source, report: Callable[[str], None]) -> Path:  # noqa: ARG002
        raise AssertionError(source)

    def changes(self, source: Source, since: str) -> Iterator[Change]:
        raise AssertionError((source, since))

    def sweep(self) -> None:
        """Nothing is ever half done."""


def shell_entries(root: Path) -> list[Entry]:
    """A minimal root: this machine's sh, and the libraries it needs."""
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/sh", root / "bin/sh")
    listed = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True)
    for word in listed.stdout.split():
        if word.startswith("/"):
            (root / word[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, root / word[1:])
    return list(scan(root).values())


def chunk_entries(number: int, files: int) -> list[Entry]:
    """A chunk of about 4 MB in 400 files, in eight directories that chunks share."""
    found = [Entry(name, DIRECTORY, 0o755) for name in (b"usr", b"usr/share")]
    for file in range(files):
        folder = b"usr/share/%d" % (file % 8)
        if file < 8:
            found.append(Entry(folder, DIRECTORY, 0o755))
        data = hashlib.sha256(b"%d %d" % (number, file)).digest() * 300
        found.append(Entry(folder + b"/%d-%d" % (number, file), FILE, size=len(data), data=data))
    return found


def store_chunk(store: Store, name: str, entries: list[Entry], place: Path) -> Staged:
    """Put a chunk into the store as it is."""
    key = hashlib.sha256(name.encode()).hexdigest()
    packed = pack(entries, place / f"{name}.spill")
    artifact = Artifact(f"{name}-misc", packed.blob)
    manifest = Manifest(key=key, kind="chunk", name=name, arch="any", artifacts=(artifact,))
    store.put(manifest, {packed.blob.sha256: packed.content})
    return Staged(key, "stratum")


def timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=50)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--runs", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="bench-staging-") as name:
        bench(Path(name), options.chunks, options.files, options.runs)


def bench(place: Path, chunks: int, files: int, runs: int) -> None:
    store = Store(str(place / "artifacts"), place / "scratch")
    base = store_chunk(store, "base", shell_entries(place / "root"), place)
    sets = {
        count: (
            base,
            *(
                store_chunk(store, f"{count}-{number}", chunk_entries(number, count), place)
                for number in range(chunks)
            ),
        )
        for count in (files, 1)
    }
    with Workspace(place / "work", store, NoSources()) as workspace, Log(place / "log") as log:

        def job(staged: tuple[Staged, ...]) -> Job:
            return Job(
                key="0" * 64,
                kind="chunk",
                name="bench",
                arch="any",
                log="",
                artifacts=(),
                source_name="bench",
                environment={"PATH": "/bin"},
                commands=(("build-commands", (":",)),),
                staged=staged,
            )

        scratch = workspace.session.scratch()
        never = CancelToken()

        def prepare(count: int) -> staging_area.StagingArea:
            return staging_area.prepare(job(sets[count]), workspace, scratch, log, never, 1)

        def staged(count: int) -> None:
            assert sandbox.run(prepare(count).box, log, never).status == 0

        first = timed(lambda: staged(files))
        staged(1)
        box = prepare(files).box
        lower = 2 * len(sets[files]) + 2  # --overlay-src, one each, and --tmp-overlay /
        for mount in ("bench.build", "bench.inst", "tmp", "proc", "dev"):
            (place / "root" / mount).mkdir()
        (place / "root/bench.steps").touch()
        plain = ("--bind", str(place / "root"), "/", *box.mounts[lower:])
        box = msgspec.structs.replace(box, mounts=plain)

        def own() -> None:
            assert sandbox.run(box, log, never).status == 0

        times: dict[str, list[float]] = {"own": [], "many": [], "one": []}
        for _ in range(runs):
            times["own"].append(timed(own))
            times["many"].append(timed(lambda: staged(files)))
            times["one"].append(timed(lambda: staged(1)))
    floor, many, one = (statistics.median(each) * 1000 for each in times.values())
    print(f"{chunks} chunks of {files} files, {os.cpu_count()} cores, median of {runs}")
    print(f"bubblewrap's own start            {floor:7.1f} ms")
    print(f"staged and started                {many:7.1f} ms   {many / floor:.2f} times")
    print(f"the same with 1 file a chunk      {one:7.1f} ms   {one / floor:.2f} times")
    print(f"the first time, with unpacking    {first * 1000:7.1f} ms")


if __name__ == "__main__":
    main()
