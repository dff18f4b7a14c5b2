"""Connects git to a farm's trove, and turns git's failures into errors with advice."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

import msgspec

from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.host.progress import Progress, silent
from fabric.trove.sources.git import Repository, fetching
from fabric.trove.sources.git_process import environment, talk

#: Seconds until a silent host counts as unreachable.
PATIENCE = 15


class TroveError(SourceError):
    """The trove cannot be reached, or refuses a push."""


class TroveFault(TroveError):
    """A failure that may pass: trying again later may help."""

    exit_code = 4


class CommitNotServed(TroveError):
    """The trove has no such commit, or does not serve one that no ref leads to."""


class Trove(msgspec.Struct, frozen=True):
    """The one bare repository of a farm.  ``ssh_key``, ``known_hosts``: "" is ssh's default."""

    url: str
    ssh_key: str = ""
    known_hosts: str = ""

    def environ(self) -> dict[str, str]:
        """The environment for git: ssh asks no questions, and trusts known hosts only."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", f"ConnectTimeout={PATIENCE}"]
        options += [f"ServerAliveInterval={PATIENCE}"]
        if self.known_hosts:
            # ssh splits the value at blanks
            options.append(f'UserKnownHostsFile="{self.known_hosts}"')
            options.append("GlobalKnownHostsFile=none")
        command = ["ssh", *(part for option in options for part in ("-o", option))]
        if self.ssh_key:
            command += ["-o", "IdentitiesOnly=yes", "-i", self.ssh_key]
        return {"GIT_SSH_COMMAND": shlex.join(command)} | environment(private=False)

    def fetch(
        self, repository: Repository, refspecs: list[str], progress: Progress, cancel: CancelToken
    ) -> None:
        """Fetch into ``repository``, which is made if it is missing.  TroveError if that fails."""
        repository.create()
        self._talk(fetching(repository, self.url, refspecs), progress, cancel)

    def push(
        self,
        repository: Repository,
        refspecs: list[str],
        progress: Progress,
        cancel: CancelToken,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Push from ``repository``, all refs or none; existing refs are moved.  TroveError."""
        command = ["--git-dir", str(repository.path), "push", "--no-verify", "--force", "--atomic"]
        self._talk([*command, "--progress", "--", self.url, *refspecs], progress, cancel, environ)

    def refs(self, *patterns: str) -> dict[str, str]:
        """Full name -> object of refs that match a pattern such as "refs/pins/*".  TroveError."""
        listing = self._talk(["ls-remote", "--refs", "--", self.url, *patterns])
        refs = {}
        for line in listing.splitlines():
            sha, _, name = line.partition("\t")
            refs[name] = sha
        return refs

    def _talk(
        self,
        command: list[str],
        progress: Progress = silent,
        cancel: CancelToken | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> str:
        environ = {**self.environ(), **(environ or {})}
        failure, printed = talk(command, environ, progress, cancel or CancelToken())
        if failure:
            raise self.problem(failure)
        return printed

    def problem(self, said: str) -> TroveError:
        """The error, with advice, for git's output."""
        fitting = (row[1:] for row in _MEANINGS if re.search(row[0], said, re.I))
        kind, meaning = next(fitting, (TroveError, ""))
        if not meaning:
            return kind(f"the trove {self.url}: {said}")
        host = re.sub(r"^\w+://|^[^@/]*@", "", self.url).split("/")[0]
        host = host.rpartition("@")[2].partition(":")[0]
        key = self.ssh_key or "your ssh key"
        known = self.known_hosts or "~/.ssh/known_hosts"
        meaning = meaning.format(host=host, key=key, known=known)
        return kind(f"the trove {self.url} {meaning} ({said})")


#: Output of git or ssh -> the error, and its explanation ("": the output alone).
_MEANINGS: tuple[tuple[str, type[TroveError], str], ...] = (
    (r"not our ref|unadvertised object|no matching remote head", CommitNotServed, ""),
    (
        r"host key verification failed|no matching host key",
        TroveError,
        "is on a host whose key is not known, or has changed: compare what"
        " `ssh-keyscan {host}` prints with the host's own, and put it into {known}",
    ),
    (
        r"permission denied \(|too many authentication failures|load key",
        TroveError,
        "does not accept {key}: have its public half admitted there, or name another with ssh-key",
    ),
    (
        r"no space left|disk quota exceeded|unable to write sha1|out of disk",
        TroveFault,
        "has no space left on its disk: tell its administrator",
    ),
    (
        r"not appear to be a git repository|does not exist|not a git repository|not found",
        TroveError,
        "is no git repository: is the setting `trove` right?",
    ),
    (
        r"insufficient permission|read-only|pre-receive hook declined|prohibited",
        TroveError,
        "refuses the push: its administrator has to allow you to push",
    ),
    (
        r"\.lock': file exists",
        TroveFault,
        "is locked by another push, or by one that died: the role trove removes that lock after two"
        " minutes; elsewhere its administrator has to",
    ),
    (
        r"resolve hostname|refused|timed out|no route|unreachable|reset by|closed by|hung up",
        TroveFault,
        "cannot be reached: is {host} up, and the network?",
    ),
)
