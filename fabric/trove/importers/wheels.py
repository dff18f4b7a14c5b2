"""Imports sets of wheels with their dependencies from pip's configured package index.

Unlike source distributions, wheels are downloaded by pip itself, since it runs no code of them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fabric import bounds
from fabric.digest import Digest
from fabric.errors import SourceError, command
from fabric.host.cancel import CancelToken
from fabric.host.process import TooMuchOutput, converse
from fabric.host.progress import Progress
from fabric.host.shared_files import scratch, sha256_of
from fabric.trove.importers.commit import Tree, from_files
from fabric.trove.importers.debian import MovedError
from fabric.trove.importers.download import Downloads, WrongDigest
from fabric.trove.importers.pypi import pip_command
from fabric.trove.sources.lock_files import Locked, is_line
from fabric.trove.sources.lorries import Lorry

#: The newest GNU C library that wheels may require: 2.41, that of Debian 13.
_GLIBC = 41
_GONE = "No matching distribution found"
_CHANGED = re.compile(r"Expected sha256 ([0-9a-f]{64})\s+Got\s+([0-9a-f]{64})")


def resolve_wheels(
    lorry: Lorry, downloads: Downloads, progress: Progress, cancel: CancelToken
) -> tuple[Locked, ...]:
    """The wheels of a lorry with their dependencies, as offered now, by name."""
    progress(f"{lorry.name}: querying the Python package index")
    found = []
    with _downloaded(lorry, downloads, cancel, list(lorry.packages)) as files:
        for file in files:
            name, version, tag = file.name.removesuffix(".whl").split("-", 2)
            one = Locked(name, version, tag, Digest(sha256_of(file)), file.stat().st_size)
            if not is_line(lorry.type, one):
                raise SourceError(f"{lorry.name}: the index offers an invalid wheel: {file.name!r}")
            downloads.adopt(file, one.sha256, file.name, file.name)
            found.append(one)
    return tuple(sorted(found, key=lambda one: one.name))


def import_wheels(
    lorry: Lorry, downloads: Downloads, progress: Progress, cancel: CancelToken
) -> list[tuple[str, Tree]]:
    """The pinned wheels, unchanged.  MovedError if one is not offered."""
    locked = lorry.locked()
    if not locked:
        raise MovedError(
            f"{lorry.where}: {lorry.name} has no lock file yet;"
            f" run `{command('lorry', 'update', lorry.name)}` to make {lorry.lock_file.name}"
        )
    missing = {wheel_name(one): one for one in locked if downloads.find(one.sha256) is None}
    if missing:
        progress(f"{lorry.name}: downloading {len(missing)} wheels")
        pins = [f"{one.name}=={one.version} --hash=sha256:{one.sha256}" for one in missing.values()]
        with _downloaded(lorry, downloads, cancel, pins, "--no-deps", "--require-hashes") as files:
            for file in files:
                if one := missing.get(file.name):
                    downloads.adopt(file, one.sha256, file.name, f"{lorry.where}: {lorry.name}")
    return [("", from_files((wheel_name(one), downloads.path(one.sha256)) for one in locked))]


def wheel_name(locked: Locked) -> str:
    """The file name of a pinned wheel, whose `architecture` is the wheel's tag."""
    return f"{locked.name}-{locked.version}-{locked.architecture}.whl"


@contextmanager
def _downloaded(
    lorry: Lorry, downloads: Downloads, cancel: CancelToken, requirements: list[str], *options: str
) -> Iterator[list[Path]]:
    """The wheels that pip downloads, in a temporary folder."""
    place = downloads.directory.parent
    place.mkdir(parents=True, exist_ok=True)
    downloads.directory.mkdir(exist_ok=True)
    with scratch(place, "wheels-") as folder:
        asked = folder / "requirements.txt"
        asked.write_text("".join(f"{one}\n" for one in requirements))
        call = pip_command(folder, "-m", "pip", "download", "--quiet", "--no-input")
        call += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(asked)]
        call += ["--only-binary", ":all:", "--implementation", "cp", *options]
        call += ["--python-version", lorry.python]
        for abi in (f"cp{lorry.python.replace('.', '')}", "abi3", "none"):
            call += ["--abi", abi]
        architecture = lorry.architecture
        for platform in (
            *(f"manylinux_2_{minor}_{architecture}" for minor in range(_GLIBC, 4, -1)),
            *(f"manylinux{old}_{architecture}" for old in (2014, 2010, 1)),
        ):
            call += ["--platform", platform]
        with (
            subprocess.Popen(
                call,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            ) as process,
            cancel.child(process),
        ):
            try:
                _, errors = converse(process, most=bounds.PACKAGES_OUTPUT)
            except TooMuchOutput:
                raise SourceError(
                    f"pip prints more than {bounds.PACKAGES_OUTPUT:,} bytes"
                ) from None
        if process.returncode:
            said = re.sub(
                r"\s+", " ", errors.decode(errors="replace").replace("ERROR: ", "")
            ).strip()
            where = f"{lorry.where}: {lorry.name}"
            if changed := _CHANGED.search(said):
                raise WrongDigest(where, changed[1], changed[2], "the Python package index")
            if lorry.locked() and _GONE in said:
                raise MovedError(
                    f"{where} pins wheels that the index does not offer (any more): {said};"
                    f" run `{command('lorry', 'update', lorry.name)}`"
                )
            raise SourceError(f"{where}: pip cannot download: {said}")
        yield sorted(folder.glob("*.whl"))
