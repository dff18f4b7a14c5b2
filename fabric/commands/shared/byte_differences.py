"""Shows how the contents of files differ between two builds: by diffoscope if it is installed, else
by their first differing bytes.

Diffoscope takes apart what a build made, by dozens of parsers.  So it runs in a sandbox: it can
write nowhere but in memory, and has no network.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from fabric import bounds
from fabric.building import archive, devices
from fabric.building.compare import FileChange
from fabric.errors import DamagedError, MachineFault, in_line
from fabric.host.process import TooMuchOutput, converse
from fabric.host.shared_files import scratch
from fabric.jobs import Manifest
from fabric.trove.artifacts.store import Store

#: Bytes that are shown from the first that differs.
_SHOWN = 16
#: Bytes that are read at a time.
_PIECE = 1 << 20
#: Seconds that diffoscope may take to end after its last output.
_ENDING = 10


def byte_differences(
    store: Store, first: Manifest, again: Manifest, files: Sequence[FileChange], folder: Path
) -> Iterator[str]:
    """Lines about those of ``files`` that have other contents in the two builds.

    Their copies are in ``folder`` meanwhile.  StoreError or OSError if they cannot be copied.
    """
    wanted, left = _within(files)
    if wanted:
        with scratch(folder, "comparing-") as into:
            for name, manifest in (("first", first), ("again", again)):
                _extract(store, manifest, wanted, into / name)
            text, why = _diffoscope(into)
            if why:
                yield why
            yield from text.splitlines() if text else _firsts(into, wanted)
    if left:
        yield f"the contents of {left} more files are too large to be shown"


def _within(files: Sequence[FileChange]) -> tuple[list[str], int]:
    """The paths of files with other contents, and how many more there are past the bound."""
    wanted: list[str] = []
    size = left = 0
    for one in files:
        if "content" not in one.what or one.old is None or one.new is None:
            continue
        size += one.old.size + one.new.size
        if size > bounds.COMPARED:
            left += 1
        else:
            wanted.append(one.path)
    return wanted, left


def _extract(store: Store, manifest: Manifest, wanted: Sequence[str], into: Path) -> None:
    """Copy the wanted files of a build to their paths in ``into``, without their modes."""
    paths = set(wanted)
    into.mkdir()
    for artifact in manifest.artifacts:
        if artifact.blob is None:
            continue
        try:
            with store.open(artifact.blob, manifest.key) as file:
                for entry, contents in archive.read(file):
                    if entry.type == archive.FILE and f"/{in_line(entry.name)}" in paths:
                        target = into / os.fsdecode(entry.name)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with target.open("xb") as out:
                            out.writelines(contents.pieces())
        except (DamagedError, MachineFault) as error:
            raise DamagedError(f"{artifact.name}: {error}", (manifest.key,)) from None


def _firsts(into: Path, wanted: Sequence[str]) -> Iterator[str]:
    """A line for each file: where its first differing bytes are, and what they are."""
    for path in wanted:
        one, other = (into / name / path[1:] for name in ("first", "again"))
        if one.is_file() and other.is_file():  # else it is another name of one before it
            offset, old, new = _first(one, other)
            yield f"{path}: from byte {offset}: {_hex(old)} -> {_hex(new)}"


def _first(one: Path, other: Path) -> tuple[int, bytes, bytes]:
    """The offset of the first byte that differs between two files, and the bytes from there."""
    with one.open("rb") as old, other.open("rb") as new:
        at = 0
        while (a := old.read(_PIECE)) == (b := new.read(_PIECE)) and a:
            at += len(a)
        pairs = enumerate(zip(a, b, strict=False))
        at += next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
        old.seek(at)
        new.seek(at)
        return at, old.read(_SHOWN), new.read(_SHOWN)


def _hex(data: bytes) -> str:
    return data.hex(" ") or "the end"


def _diffoscope(folder: Path) -> tuple[str, str]:
    """Diffoscope's text about ``first`` and ``again`` in ``folder``; else why there is none.

    Both are "" without diffoscope.
    """
    program = shutil.which("diffoscope")
    if program is None:
        return "", ""
    (folder / "tmp").mkdir()
    inside = str(folder / "tmp")
    limit = [f"--as={bounds.DIFFOSCOPE_MEMORY}"]
    box = [
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/"),
        *("--dev", "/dev", "--proc", "/proc"),
        *("--size", str(bounds.DIFFOSCOPE_FILES), "--tmpfs", inside),
        *("--setenv", "TMPDIR", inside, "--setenv", "HOME", inside, "--chdir", str(folder)),
    ]
    most = bounds.DIFFOSCOPE_TEXT
    ask = [program, "--text", "-", "--text-color", "never", "--max-text-report-size", str(most)]
    ask.append("--exclude-directory-metadata=recursive")  # these are copies
    try:
        process = devices.starting(
            lambda: subprocess.Popen(
                ["prlimit", *limit, *box, "--", *ask, "--", "first", "again"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        )
    except OSError as error:
        return "", f"diffoscope is not used: {error.filename}: {error.strerror}"
    with process:
        try:
            # it may end the last line after the cut
            text, said = converse(process, most=2 * most, seconds=bounds.DIFFOSCOPE)
            process.wait(_ENDING)
        except (TimeoutError, subprocess.TimeoutExpired):
            return "", f"diffoscope is not used: it took longer than {bounds.DIFFOSCOPE} s"
        except TooMuchOutput:
            return "", f"diffoscope is not used: it printed more than {2 * most} bytes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 1 or not text:  # 1: they differ
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        return "", "diffoscope is not used: " + "".join(last or ["it found no difference"])
    return text.decode(errors="replace"), ""
