"""Machines that start in a second: systemd-nspawn on the tree of a built system.

What is measured on them is the software of the system under its own init; what they lack is the
kernel, the disk and the boot loader.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from vmhost_kit import BRIDGE, FREE, GATEWAY, VmHost
from world_kit import Failed, until


class Node:
    """A running machine; it ends with its world.

    ``tree`` is the system, which stays as it is; over it lies what is in the folder ``files``, as
    in an image.  It has an address of the VM host's network, which DNS there knows as its name;
    ``key`` is the SSH key that lets in root.  What a worker keeps is in memory, or in the folder
    ``disk``.
    """

    def __init__(
        self,
        vmhost: VmHost,
        name: str,
        tree: Path,
        number: int,
        files: Path,
        logs: Path,
        key: str | Path = "/root/.ssh/id_ed25519",
        disk: Path | None = None,
    ) -> None:
        self.world = world = vmhost.world
        self.name = name
        self.address = FREE.format(number)
        self._key = key
        self._console = logs / f"console-{name}.log"
        place = f"/nodes/{name}"
        network = f"[Match]\nName=host0\n[Network]\nAddress={self.address}/24\nDNS={GATEWAY}\n"
        world.run("mkdir", "-p", place)
        world.run("mount", "-t", "tmpfs", "node", place)
        world.run("mkdir", f"{place}/upper", f"{place}/work", f"{place}/root")
        layers = f"lowerdir={tree},upperdir={place}/upper,workdir={place}/work"
        world.run("mount", "-t", "overlay", "-o", layers, "node", f"{place}/root")
        unpack = f"tar -C {files} -c . | tar -C {place}/root -x --no-same-owner --no-overwrite-dir"
        world.run("bash", "-o", "pipefail", "-ec", unpack)
        world.run("tee", f"{place}/root/etc/systemd/network/10-node.network", input=network)
        vmhost.name(self.address, name)
        group = f"/sys/fs/cgroup/{name}"
        command = ["systemd-nspawn", f"--directory={place}/root", f"--machine={name}", "--boot"]
        command += ["--keep-unit", "--register=no", f"--network-bridge={BRIDGE}"]
        command += ["--console=pipe", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        command += [f"--bind={disk}:/srv/distbuild"] if disk else []
        start = f"mkdir {group}; echo $$ > {group}/cgroup.procs; exec {shlex.join(command)}"
        with self._console.open("w") as log:
            world.daemon("sh", "-ec", start, log=log)
        # sandboxes can mount /proc only if a complete one is visible; nspawn covers parts of it
        whole = "mountpoint -q /run/proc || mount --mkdir -t proc proc /run/proc"
        until(lambda: self.attempt(whole).returncode == 0, 120, self._story)

    def attempt(self, command: str, **more: Any) -> Any:
        """Run a shell command on it and return the completed process."""
        options = [
            "-i",
            str(self._key),
            "-o",
            "ConnectTimeout=1",
            "-o",
            "StrictHostKeyChecking=accept-new",
        ]
        return self.world.attempt("ssh", *options, f"root@{self.address}", command, **more)

    def run(self, command: str, **more: Any) -> str:
        """Run a shell command on it and return its output.  Raises Failed if it fails."""
        done = self.attempt(command, **more)
        if done.returncode:
            raise Failed(f"{self.name}: {command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return str(done.stdout)

    def _story(self) -> str:
        return f"{self.name} does not answer; its console says:\n{self._console.read_text()}"
