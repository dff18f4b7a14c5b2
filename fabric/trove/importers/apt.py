"""Queries Debian's archives through apt, isolated from the machine's own apt.

The archives are the machine's own: its entries (``sources.list`` and ``sources.list.d``, both
formats) are copied, with ``deb`` turned into ``deb-src`` for sources.  Everything else is private:
package lists, cache, and an (almost) empty list of installed packages, so that the result depends
neither on this machine's packages nor on its preferences.  No root rights are needed, and the
machine's apt is not affected.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from fabric import bounds
from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.host.locks import locked
from fabric.host.process import TooMuchOutput, converse
from fabric.host.progress import Progress, Throttle
from fabric.trove.sources.lock_files import DEBIAN_VERSION

Stanza = dict[str, str]

#: Package lists younger than this many seconds are only fetched again if a package is missing.
FRESH = 6 * 3600.0
_NETWORK = re.compile(r"(mirror\+|tor\+)*(https?|ftp)://|mirror://")

_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{0}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "{0}/lists";
Dir::State::status "{0}/status";
Dir::State::extended_states "{0}/extended_states";
Dir::Cache "{0}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
APT::Architecture "{1}";
#clear APT::Architectures;
APT::Architectures {{ "{1}"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Update::Error-Mode "any";
APT::Sandbox::User "";
APT::Snapshot "{2}";
Acquire::Languages "none";
"""


class Apt:
    """A private apt below ``directory`` for one kind of entry ("deb" or "deb-src").

    With a ``snapshot``, a time such as 20261128T000000Z, archives that have snapshots also offer
    what they offered then.
    """

    def __init__(
        self,
        directory: Path,
        kind: str,
        architecture: str,
        progress: Progress,
        cancel: CancelToken,
        snapshot: str = "",
    ) -> None:
        self.directory = directory / "-".join(filter(None, [kind, architecture, snapshot]))
        self.kind = kind
        self.snapshot = snapshot
        self.architecture = architecture
        self.progress = progress
        self._cancel = cancel
        if shutil.which("apt-get") is None:
            raise SourceError(
                "Debian packages are fetched by apt-get, which this machine does not have:"
                " import on a machine with Debian, or configure an alias to a trove that has them"
            )

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Set up the directory and lock it; package lists are at most FRESH seconds old."""
        lock = self.directory.with_name(self.directory.name + ".lock")
        with locked(lock, wait=lambda: self._cancel.pause(0.2)):
            for folder in ("lists/partial", "cache/archives/partial", "sources", "files"):
                (self.directory / folder).mkdir(parents=True, exist_ok=True)
            settings = _CONFIGURATION.format(self.directory, self.architecture, self.snapshot)
            _write(self.directory / "apt.conf", settings)
            self.suppose_installed([])
            if self.snapshot and not self._query("apt-config", "dump", "Acquire::Snapshots"):
                raise SourceError(
                    "the setting `debian-snapshot` needs an apt that knows snapshots of archives,"
                    " such as Debian 13's, and this machine has an older one"
                )
            self._copy_entries()
            age = time.time() - _mtime(self._stamp)
            if not 0 <= age < FRESH:
                self.update()
            yield

    def suppose_installed(self, stanzas: Iterable[Stanza]) -> None:
        """Set the list of installed packages to these, without their dependencies.

        On hold: apt takes those that lack dependencies for others of the same version, and would
        install the archive's beside other packages of their source.
        """
        kept = ("Package", "Version", "Architecture", "Multi-Arch", "Provides")
        text = ""
        for stanza in stanzas:
            fields = [f"{name}: {stanza[name]}\n" for name in kept if name in stanza]
            text += "".join(fields) + "Status: hold ok installed\nMaintainer: -\n\n"
        _write(self.directory / "status", text)

    def update(self) -> bool:
        """Fetch the package lists, unless they are less than a minute old; true if fetched."""
        if 0 <= time.time() - _mtime(self._stamp) < 60:
            return False
        self.progress("fetching the package lists of Debian's archives")
        # of some archives, apt learns from what they offer now where their snapshots are
        for _ in range(2 if self.snapshot else 1):
            self.run("apt-get", "update", what="Debian's package lists")
        self._stamp.touch()
        return True

    def show(self, *names: str) -> list[Stanza]:
        """The stanzas of binary packages: every version of each, newest first."""
        return _newest_first(self._query("apt-cache", "show", "--", *names)) if names else []

    def show_source(self, name: str) -> list[Stanza]:
        """The stanzas of a source package: every version, newest first."""
        found = _newest_first(self._query("apt-cache", "showsrc", "--only-source", "--", name))
        return [stanza for stanza in found if stanza["Package"] == name]

    def simulate_install(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """(name, version) of all packages that installing ``names`` needs, dependencies first.

        SourceError, with apt's reasons, if that is impossible.
        """
        output = self.run("apt-get", "install", "--simulate", "--yes", "--", *names, what="apt")
        pattern = re.compile(r"^Conf ([a-z0-9][a-z0-9+.-]+)\S* \((\S+) ", re.M)
        return [(match[1], match[2]) for match in pattern.finditer(output)]

    @contextlib.contextmanager
    def download(self, *command: str, what: str) -> Iterator[Path]:
        """Run an apt-get command that downloads into its current directory; yield that.

        Downloads that were interrupted are resumed.  The directory is emptied at the end.
        """
        folder = self.directory / "files"
        self.run("apt-get", *command, what=what, cwd=folder)
        yield folder
        for file in folder.iterdir():
            file.unlink()

    def run(self, program: str, *args: str, what: str, cwd: Path | None = None) -> str:
        """Run a program of apt, and report its progress.  SourceError if it fails.

        ``args``: options, then "--" and values of definitions, locks or archives.
        """
        reader, writer = os.pipe()
        with os.fdopen(reader, errors="replace") as status, os.fdopen(writer, "wb") as told:
            follower = threading.Thread(target=self._follow, args=(status, what))
            follower.start()
            try:
                reporting = f"APT::Status-Fd={writer}"
                code, output, errors = self._call(
                    [program, "-q", "-o", reporting, *args], cwd, told
                )
            finally:
                told.close()
                follower.join()
        if code:
            raise SourceError(f"{what}: {_reason(output, errors)}")
        return output

    def _query(self, program: str, *args: str) -> str:
        """Run a query, which leaves out unknown packages (and then fails)."""
        return self._call([program, *args], None)[1]

    def _call(
        self, command: list[str], cwd: Path | None, status: IO[bytes] | None = None
    ) -> tuple[int, str, str]:
        """Exit code, output and errors of a command; it inherits ``status``."""
        program, *args = command
        with subprocess.Popen(
            [program, "-c", str(self.directory / "apt.conf"), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd or self.directory,
            env={**os.environ, "LC_ALL": "C"},
            pass_fds=[status.fileno()] if status else [],
            start_new_session=True,
        ) as process:
            if status:
                status.close()
            with self._cancel.child(process):
                try:
                    output, errors = converse(process, most=bounds.PACKAGES_OUTPUT)
                except TooMuchOutput:
                    raise SourceError(
                        f"{program} prints more than {bounds.PACKAGES_OUTPUT:,} bytes"
                    ) from None
        return process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")

    def _follow(self, status: Iterable[str], what: str) -> None:
        news = Throttle(self.progress)
        for line in status:
            if line.startswith("dlstatus:"):
                percent = line.split(":")[2].partition(".")[0]
                if percent != "0":  # of many small files, apt reports only that
                    news(f"{what}: {percent} %")

    def _copy_entries(self) -> None:
        entries = machine_entries(self.kind)
        if not entries:
            raise SourceError(
                "apt on this machine has no archive (/etc/apt/sources.list and"
                " sources.list.d), so Debian packages cannot be fetched: add one there"
            )
        folder = self.directory / "sources"
        before = {file.name: file.read_text(errors="replace") for file in folder.iterdir()}
        if before != entries:
            for name in before:
                (folder / name).unlink()
            for name, text in entries.items():
                (folder / name).write_text(text)
            self._stamp.unlink(missing_ok=True)

    @property
    def _stamp(self) -> Path:
        return self.directory / "updated"


def machine_entries(kind: str, files: Iterable[Path] | None = None) -> dict[str, str]:
    """The machine's apt entries as entries of ``kind``: file name -> text.

    Archives on this machine's disk are left out, unless there are no others: they are local
    additions, with which other machines would get other results.
    """
    paths = list(_machine_files() if files is None else files)
    for network_only in (True, False):
        found: dict[str, str] = {}
        for file in paths:
            convert = _deb822 if file.suffix == ".sources" else _one_line
            text = convert(file.read_text(errors="replace"), kind, network_only)
            if text:
                found[file.name] = text
        if found:
            return found
    return {}


def _machine_files() -> list[Path]:
    command = ["apt-config", "shell", "L", "Dir::Etc::sourcelist/f", "P", "Dir::Etc::sourceparts/d"]
    printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    values = dict(re.findall(r"^(\w)='(.*)'$", printed, re.M))
    single = Path(values.get("L", "/etc/apt/sources.list"))
    folder = Path(values.get("P", "/etc/apt/sources.list.d/"))
    parts = [*folder.glob("*.list"), *folder.glob("*.sources")] if folder.is_dir() else []
    return [file for file in (single, *sorted(parts)) if file.is_file()]


def _one_line(text: str, kind: str, network_only: bool) -> str:
    """``deb [options] URI suite components`` lines, as lines of ``kind``, each once."""
    lines: dict[str, None] = {}
    for line in text.splitlines():
        match = re.match(r"\s*deb(?:-src)?\s+(\[[^\]]*\]\s+)?(\S+)\s+(.*)", line.partition("#")[0])
        if match and (not network_only or _NETWORK.match(match[2])):
            lines[f"{kind} {match[1] or ''}{match[2]} {match[3].strip()}"] = None
    return "".join(line + "\n" for line in lines)


def _deb822(text: str, kind: str, network_only: bool) -> str:
    """Stanzas with ``Types:`` and ``URIs:``, as stanzas of ``kind``, each once."""
    stanzas: dict[str, None] = {}
    clean = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", clean):
        fields = re.findall(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M)
        values = {name.lower(): value.strip() for name, value in fields}
        uris = values.get("uris", "").split()
        if network_only:
            uris = [uri for uri in uris if _NETWORK.match(uri)]
        if not uris or values.get("enabled", "yes").lower() in ("no", "false", "0", "off"):
            continue
        kept = [f"Types: {kind}\n", f"URIs: {' '.join(uris)}\n"]
        for name, value in fields:
            if name.lower() not in ("types", "uris"):
                kept.append(f"{name}:{value}\n")
        stanzas["".join(kept)] = None
    return "\n".join(stanzas)


def _stanzas(text: str) -> list[Stanza]:
    """Debian's control format: fields by name; continuation lines keep their newlines."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        fields = re.findall(r"^([A-Za-z0-9-]+):[ \t]*(.*(?:\n[ \t].*)*)", block, re.M)
        if fields:
            found.append(dict(fields))
    return found


def _newest_first(text: str) -> list[Stanza]:
    """The stanzas of packages, newest version first."""
    from debian.debian_support import Version

    found = [
        stanza
        for stanza in _stanzas(text)
        if "Package" in stanza and re.fullmatch(DEBIAN_VERSION, stanza.get("Version", ""))
    ]
    return sorted(found, key=lambda stanza: Version(stanza["Version"]), reverse=True)


def _reason(output: str, errors: str) -> str:
    """apt's reasons: its E: lines, and those about unmet dependencies."""
    lines = [line[3:] for line in errors.splitlines() if line.startswith("E: ")]
    lines += [line.strip() for line in output.splitlines() if "Depends:" in line]
    return "; ".join(lines[:8]) or errors.strip()[-400:] or "apt gave no reason"


def _write(file: Path, text: str) -> None:
    """Write a file unless it is equal already: apt's cache is valid until a file is newer."""
    if not file.exists() or file.read_text(errors="replace") != text:
        file.write_text(text)


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
