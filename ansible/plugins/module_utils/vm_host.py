"""A machine that runs guests: its shell and its libvirt, both over SSH.

All modules run on the deploying machine, so that a VM host needs libvirtd, sshd and the tools of
any Linux, but neither Python nor this project.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ansible.module_utils.basic import env_fallback, missing_required_lib

try:
    import libvirt
except ImportError:
    libvirt = None

__all__ = ["ARGUMENTS", "HostError", "VmHost", "find_domain", "libvirt"]

#: The arguments that all modules for VM hosts share.
ARGUMENTS: dict[str, Any] = {
    "vm_host": {
        "type": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "user": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 0},
        },
    },
    "ssh_executable": {
        "type": "str",
        "default": "ssh",
        "fallback": (env_fallback, ["ANSIBLE_SSH_EXECUTABLE"]),
    },
    "uri": {"type": "str", "default": ""},
}


class HostError(Exception):
    """A command or a connection failed.  The text is the error of the host."""


class VmHost:
    """A VM host.  The parameter ``uri``, if any, replaces the libvirt URI over SSH."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        host = parameters["vm_host"]
        self.name: str = host["name"]
        self._uri: str = parameters["uri"]
        self._user: str = host["user"]
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
        options += ["-o", "ServerAliveInterval=15"]  # a dead host is noticed within a minute
        if host["port"]:
            options += ["-p", str(host["port"])]
        self._ssh = [parameters["ssh_executable"], *options]

    def run(self, script: str, *arguments: str, stdin: IO[bytes] | None = None) -> str:
        """Run a shell script on the host and return its output.  Raises HostError if it fails."""
        result = self._run(script, arguments, stdin)
        if result.returncode:
            said = result.stderr.decode(errors="replace").strip()
            if result.returncode == 255:
                raise HostError(f"ssh to {self.name} failed: {said or 'no answer'}")
            raise HostError(said or f"exit code {result.returncode}")
        return result.stdout.decode(errors="replace")

    def command(self, script: str, *arguments: str) -> list[str]:
        """Return the command that runs a script on the host, quoted because ssh joins its words."""
        login = ["-l", self._user] if self._user else []
        remote = shlex.join(["sh", "-euc", script, "sh", *arguments])
        return [*self._ssh, *login, "--", self.name, remote]

    def _run(
        self, script: str, arguments: tuple[str, ...], stdin: IO[bytes] | None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(script, *arguments),
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    @contextlib.contextmanager
    def libvirt(self) -> Iterator[Any]:
        """Connect to libvirt.  Raises HostError if it does not answer."""
        if libvirt is None:
            raise HostError(
                missing_required_lib("libvirt", reason="(make setup-deploy installs it)")
            )
        libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised
        with tempfile.TemporaryDirectory() as folder:
            wrapper = Path(folder) / "ssh"
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(self._ssh)} "$@"\n')
            wrapper.chmod(0o700)
            at = f"{quote(self._user, safe='')}@" if self._user else ""
            host = f"[{self.name}]" if ":" in self.name else quote(self.name, safe="")
            uri = self._uri or f"qemu+ssh://{at}{host}/system?command={quote(str(wrapper))}"
            try:
                connection = libvirt.open(uri)
            except libvirt.libvirtError as error:
                raise HostError(f"libvirt on {self.name} does not answer: {error}") from error
        try:
            yield connection
        except libvirt.libvirtError as error:
            raise HostError(f"libvirt on {self.name}: {error}") from error
        finally:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()


def find_domain(connection: Any, name: str) -> Any | None:
    """Return the domain of that name, or None."""
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
