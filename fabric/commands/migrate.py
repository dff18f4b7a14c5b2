"""``migrate``: brings definitions of older versions of the format to version 8, as a diff."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from fabric.client.project import Project
from fabric.commands.shared.arguments import add_json
from fabric.commands.shared.checked import Checked, check_morphs
from fabric.commands.shared.output import print_json
from fabric.commands.shared.scaffolds import LocalSource, Scaffolds, local_source
from fabric.config import Settings
from fabric.definitions.migration.migrate import TARGET, Migrated, migrate
from fabric.errors import (
    Cancelled,
    DefinitionsError,
    FabricError,
    Problem,
    SourceError,
    command,
    in_line,
)
from fabric.host.files import real, write_whole
from fabric.host.terminal import progress, write_bytes
from fabric.trove.sources.git_process import run as git


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "directory", nargs="?", default=".", metavar="DIR", help="the definitions (default: here)"
    )
    parser.add_argument(
        "--write", action="store_true", help="change the files (default: print a diff of them)"
    )
    parser.add_argument(
        "--fetch",
        action="store_true",
        help="fetch the sources of chunks that do not say how they are built",
    )


class _Left(msgspec.Struct):
    """What a person has to decide; lines are those after the migration."""

    mistakes: list[Problem] = []
    notes: list[Problem] = []
    sources: list[Problem] = []


def run(options: argparse.Namespace, settings: Settings) -> int:
    start = Path(options.directory)
    if not start.is_dir():
        raise FabricError(f"{in_line(start)}: no such directory")
    project = Project.find(real(start), settings, progress)
    made, left = _migrated(project, fetch=options.fetch)
    if options.write:
        _write(project.root, made.files)
    diff = b"" if options.write else _diff(project.root, made.files)
    if options.json:
        facts = {"from": made.version, "to": TARGET, "files": sorted(made.files)}
        print_json({**facts, "diff": diff.decode(errors="replace"), **msgspec.to_builtins(left)})
        return 0
    if sys.stdout.isatty():
        print(diff.decode(errors="replace"), end="", flush=True)
    else:
        write_bytes(diff)
    for line in _report(made, left, written=options.write):
        print(line, file=sys.stderr)
    return 0


def _migrated(project: Project, *, fetch: bool) -> tuple[Migrated, _Left]:
    """The changed files, and the open questions.  DefinitionsError if VERSION is wrong."""
    left = _Left()
    try:
        project.sources.lorries  # noqa: B018 - reads them
    except DefinitionsError as error:  # then nothing can be said about sources
        left.mistakes = error.problems
    known = not left.mistakes

    def look(repo: str, ref: str) -> LocalSource | None:
        if not known:
            return None
        try:
            return local_source(project.sources, repo, ref, fetch=fetch)
        except Cancelled:
            raise
        except SourceError as error:
            progress(f"warning: {error}")
            return None

    # a link is another name of a file that is migrated itself
    morphs = [path for path in project.morphs() if not (project.root / path).is_symlink()]
    made = migrate(project.read, morphs, look)

    def read(path: str) -> bytes | None:
        return made.files[path] if path in made.files else project.read(path)

    checked = Checked()
    morphs = sorted({*project.morphs(), *(path for path in made.files if path.endswith(".morph"))})
    check_morphs(read, morphs, checked)
    if known:
        scaffolds = Scaffolds(project.sources, project.read)
        for path in checked.files["strata"]:
            scaffolds.propose(path, read(path) or b"")
        made.files |= scaffolds.files
        left.sources = scaffolds.questions
    left.mistakes = sorted({*left.mistakes, *checked.mistakes})
    left.notes = sorted({*made.notes})
    return made, left


def _write(root: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        file = root / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, content, mode=file.stat().st_mode & 0o777 if file.exists() else 0o644)
        except OSError as error:
            raise FabricError(f"{in_line(file)}: cannot be written: {error.strerror}") from error


def _diff(root: Path, files: Mapping[str, bytes]) -> bytes:
    """The changes as `git apply` takes them."""
    if not files:
        return b""
    with tempfile.TemporaryDirectory(prefix="fabric-migrate-") as folder:
        here = ["-C", folder]
        git([*here, "init", "--quiet"])
        for path in files:
            if (root / path).exists():
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / path, Path(folder) / path)
        git([*here, "add", "--force", "."])
        _write(Path(folder), files)
        git([*here, "add", "--force", "--intent-to-add", "."])
        return git([*here, "diff", "--no-ext-diff", "--no-color", "--no-renames"]) or b""


def _report(made: Migrated, left: _Left, *, written: bool) -> Iterable[str]:
    """What changes, and what a person has to decide."""
    count = len(made.files)
    files = f"{count} file{'s' * (count != 1)}"
    since = f"From version {made.version} to {TARGET}" if made.version < TARGET else "Version 8"
    if not count:
        yield f"{since}: nothing changes."
    elif written:
        yield f"{since}: {files} changed."
    else:
        yield f"{since}: {files} would change; --write changes them, or `git apply` of the diff."
    fetch = command("migrate", "--fetch")
    yield from _section(
        f"Mistakes are left. `{fetch}` looks into sources that can be fetched, to find out how they"
        " are built:",
        left.mistakes,
    )
    yield from _section("These places want a look:", left.notes)
    update = command("lorry", "update", "NAME")
    yield from _section(
        f"New lorries are guesses. Check each, pin it by `{update}`, and write the ref that it"
        " brings into the stratum:",
        left.sources,
    )


def _section(heading: str, problems: list[Problem]) -> Iterable[str]:
    if problems:
        yield f"\n{heading}"
        yield from (f"  {problem}" for problem in problems)
