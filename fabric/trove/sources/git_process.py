"""Runs git's command line; every other module runs git through this one.

The output of git is untrusted, so all of it is bounded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fabric import bounds
from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.host.process import TooMuchOutput, converse
from fabric.host.progress import Progress, Throttle

if TYPE_CHECKING:
    import subprocess  # loaded only to start git, which a cached build never does


class DamagedRepositoryError(SourceError):
    """Files of a repository of the trove are missing or damaged."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.why = why


#: Lines of git that are not the reason of a failure,
_IDLE_TALK = re.compile(
    r"From |To |[*+=!] |Total \d|remote:(?! fatal| error)"
    r"|Please make sure|and the repository exists|fatal: Could not read from"
    r"|Everything up-to-date|Warning: Permanently added"
)
#: and labels before the reason.
_LABELS = re.compile(r"^(remote: )?(fatal: |error: )?")
#: Seconds without output after which a repository counts as unreachable.
SILENCE = 300.0


def talk(
    args: list[str], environ: Mapping[str, str], progress: Progress, cancel: CancelToken
) -> tuple[str, str]:
    """Run a git command that connects to another repository; report its progress.

    Return why it failed ("" if it did not), and its output.  It fails after SILENCE seconds without
    progress.
    """
    import subprocess
    import tempfile

    # With a terminal, git could ask for a password, so it gets a session of its own.  Without one,
    # it stays in our session, which is ended as a whole, and leads a process group.
    apart = _has_terminal()
    with (
        tempfile.TemporaryFile() as printed,
        subprocess.Popen(
            ["git", *args],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=apart,
            process_group=None if apart else 0,
        ) as process,
    ):
        assert process.stderr is not None
        try:
            with cancel.child(process):
                said = follow(process.stderr, progress)
        except TimeoutError as error:
            return str(error), ""
        printed.seek(0)
        output = printed.read().decode(errors="replace")
    return (said or "it gave no reason") if process.returncode else "", output


def _has_terminal() -> bool:
    """Whether this process and its children have a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def run(args: list[str], *, check: bool = True, private: bool = True) -> bytes | None:
    """Run git with the repository's own configuration only; without ``private``, also with the
    user's.  Return its output.

    SourceError if it fails (without ``check``: None), or prints more than GIT_OUTPUT.
    """
    import subprocess

    with subprocess.Popen(
        ["git", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(private=private),
    ) as process:
        try:
            output, complaints = converse(process, most=bounds.GIT_OUTPUT)
        except BaseException as error:
            process.kill()
            if isinstance(error, TooMuchOutput):
                reason = f"it printed more than {bounds.GIT_OUTPUT:,} bytes"
                raise SourceError(f"git {' '.join(args)} failed: {reason}") from None
            raise
    if process.returncode == 0:
        return output
    if not check:
        return None
    reason = complaints.decode(errors="replace").strip()
    raise SourceError(f"git {' '.join(args)} failed: {reason}")


def popen(
    repository: Path,
    args: list[str],
    *,
    stdin: int | IO[bytes] | None = None,
    environ: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start git with the repository's own configuration only, and its output in a pipe.

    ``environ`` is added to its environment.
    """
    import subprocess

    return subprocess.Popen(
        ["git", "--git-dir", str(repository), *args],
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment() | (environ or {}),
    )


def entries(
    repository: Path, tree: str, *below: str, environ: dict[str, str] | None = None
) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Mode, object and path of the entries of a tree, or of its folders ``below``; no folders.

    SourceError if it exceeds the bounds of a source; DamagedRepositoryError if git cannot list it.
    """
    command = ["ls-tree", "-r", "-t", "-z", "--full-tree", tree, "--", *below]
    with popen(repository, command, environ=environ) as process:
        assert process.stdout is not None
        try:
            yield from _parsed(process.stdout)
        except BaseException as error:
            process.kill()
            if isinstance(error, ValueError):
                raise SourceError(f"{repository}: {tree} has {error}: no source may") from None
            raise
    if process.returncode:
        why = f"{tree} cannot be listed: is an object damaged?"
        raise DamagedRepositoryError(repository, why)


def _parsed(stream: IO[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The entries that ``git ls-tree -r -t -z`` prints.  ValueError past a bound.

    Folders are left out, but counted: a tree of folders alone might never end.
    """
    count, rest = 0, b""
    while piece := os.read(stream.fileno(), 1 << 16):
        *whole, rest = (rest + piece).split(b"\0")
        count += len(whole)
        if count > bounds.TREE_ENTRIES:
            raise ValueError(f"more than {bounds.TREE_ENTRIES:,} files and folders")
        for entry in whole:
            head, _, path = entry.partition(b"\t")
            if path.count(b"/") > bounds.TREE_DEPTH:
                raise ValueError(f"folders nested more than {bounds.TREE_DEPTH} deep")
            mode, kind, sha = head.split()
            if kind != b"tree":
                yield mode, sha, path


def environment(*, private: bool = True) -> dict[str, str]:
    """The environment for git, without variables that a hook or shell set for another git."""
    keep = ("GIT_SSH", "GIT_SSL", "GIT_ASKPASS", "GIT_PROXY", "GIT_TRACE")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or (not private and name.startswith((*keep, "GIT_CONFIG")))
    }
    clean |= {
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
        "LC_ALL": "C",
    }
    if private:
        clean |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    return clean


def follow(stream: IO[bytes], progress: Progress) -> str:
    """Report git's progress; return the rest of its standard error.

    TimeoutError after SILENCE seconds without output.
    """
    import select

    said: list[str] = []
    step, news = "", Throttle(progress, 0.5)
    buffer = b""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    while True:
        if not poll.poll(SILENCE * 1000):
            raise TimeoutError(f"timed out: nothing came for {SILENCE:.0f} seconds")
        piece = os.read(stream.fileno(), 65536)
        *lines, buffer = re.split(rb"[\r\n]", buffer + (piece or b"\n"))
        for line in lines:
            text = line.decode(errors="replace").strip()
            percent = re.match(r"(?:remote: )?([A-Z][a-z ]+): +(\d+)% ", text)
            if percent is None:
                if text and not _IDLE_TALK.match(text):
                    said.append(_LABELS.sub("", text))
            else:
                name = percent[1][0].lower() + percent[1][1:]
                if name != step:
                    step, news = name, Throttle(progress, 0.5)
                    news(name)
                news(f"{name}: {percent[2]}%")
        if not piece:
            return "; ".join(dict.fromkeys(said))
