"""Sets of wheels, with all they need, from the Python package index that pip is configured to use.

Other than with source distributions, pip may do the work: asked for wheels only, it runs nothing
of what it downloads.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fabric.errors import SourceError, command
from fabric.trove.files import sha256_of
from fabric.trove.importers.commit import Tree, from_files
from fabric.trove.importers.debian import MovedError
from fabric.trove.importers.download import Downloads
from fabric.trove.lorries import Locked, Lorry
from fabric.trove.stop import Stop

#: The newest GNU C library that wheels may ask for: 2.41, Debian 13's.
_GLIBC = 41
_GONE = ("No matching distribution found", "DO NOT MATCH THE HASHES")


def resolve_wheels(
    lorry: Lorry, downloads: Downloads, progress: Callable[[str], None], stop: Stop
) -> tuple[Locked, ...]:
    """The wheels a lorry names with all they need, as offered now, by name."""
    progress(f"{lorry.name}: asking the Python package index")
    found = []
    with _downloaded(lorry, downloads, stop, list(lorry.packages)) as files:
        for file in files:
            name, version, tag = file.name.removesuffix(".whl").split("-", 2)
            sha256, size = sha256_of(file), file.stat().st_size
            downloads.adopt(file, sha256, file.name)
            found.append(Locked(name, version, tag, sha256, size))
    return tuple(sorted(found, key=lambda one: one.name))


def import_wheels(
    lorry: Lorry, downloads: Downloads, progress: Callable[[str], None], stop: Stop
) -> list[tuple[str, Tree]]:
    """The pinned wheels, as they are.  MovedError if one is not offered."""
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
        with _downloaded(lorry, downloads, stop, pins, "--no-deps", "--require-hashes") as files:
            for file in files:
                if one := missing.get(file.name):
                    downloads.adopt(file, one.sha256, file.name)
    return [
        ("", from_files((wheel_name(one), downloads.directory / one.sha256) for one in locked)),
    ]


def wheel_name(locked: Locked) -> str:
    """The file name of a pinned wheel, whose `architecture` is the wheel's tag."""
    return f"{locked.name}-{locked.version}-{locked.architecture}.whl"


@contextmanager
def _downloaded(
    lorry: Lorry, downloads: Downloads, stop: Stop, requirements: list[str], *options: str
) -> Iterator[list[Path]]:
    """The wheels that pip chooses, in a folder that goes away."""
    place = downloads.directory.parent
    place.mkdir(parents=True, exist_ok=True)
    downloads.directory.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheels-", dir=place) as folder:
        asked = Path(folder) / "requirements.txt"
        asked.write_text("".join(f"{one}\n" for one in requirements))
        call = [_python_with_pip(), "-P", "-m", "pip", "download", "--quiet", "--no-input"]
        call += ["--disable-pip-version-check", "--dest", folder, "--requirement", str(asked)]
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
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            ) as process,
            stop.child(process),
        ):
            assert process.stderr is not None
            errors = process.stderr.read().decode(errors="replace")
        if process.returncode:
            said = re.sub(r"\s*\n\s*", " ", errors.replace("ERROR: ", "")).strip()
            if lorry.locked() and any(words in said for words in _GONE):
                raise MovedError(
                    f"{lorry.where}: {lorry.name} pins wheels that the index does not offer (any"
                    f" more): {said}; run `{command('lorry', 'update', lorry.name)}`"
                )
            raise SourceError(f"{lorry.where}: {lorry.name}: pip cannot download: {said}")
        yield sorted(Path(folder).glob("*.whl"))


def _python_with_pip() -> str:
    for python in (sys.executable, "python3"):
        asked = [python, "-P", "-c", "import pip"]  # -P: not from the current folder
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return python
    raise SourceError("wheels are fetched by pip: install it for python3 (Debian: python3-pip)")
