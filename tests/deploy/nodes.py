"""Machines that are up in a second: systemd-nspawn on the tree of a built system.

What is measured on them is the software of the system under its own init; what they lack is the
kernel, the disk and the boot loader.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from world import Failed, World, until


class Node:
    """A running machine; it ends with its world.

    ``tree`` is the system, which stays as it is; ``files`` lie over it, by path.  ``address`` has
    a prefix length; ``bridge`` is the world's network that it joins.
    """

    def __init__(
        self,
        world: World,
        name: str,
        tree: Path,
        address: str,
        bridge: str,
        files: Mapping[str, str],
        logs: Path,
    ) -> None:
        self.world = world
        self.name = name
        self.address = address.split("/")[0]
        self._console = logs / f"console-{name}.log"
        place = f"/nodes/{name}"
        world.run("mkdir", "-p", place)
        world.run("mount", "-t", "tmpfs", "node", place)
        network = f"[Match]\nName=host0\n[Network]\nAddress={address}\n"
        key = world.run("cat", "/root/.ssh/id_ed25519.pub")
        over = {
            "/etc/hostname": f"{name}\n",
            "/etc/systemd/network/10-node.network": network,
            "/root/.ssh/authorized_keys": key,
            **files,
        }
        for path, text in over.items():
            world.run(
                "install", "-D", "-m", "600", "/dev/stdin", f"{place}/upper{path}", input=text
            )
        world.run("chmod", "644", f"{place}/upper/etc/systemd/network/10-node.network")
        world.run("mkdir", f"{place}/work", f"{place}/root")
        layers = f"lowerdir={tree},upperdir={place}/upper,workdir={place}/work"
        world.run("mount", "-t", "overlay", "-o", layers, "node", f"{place}/root")
        group = f"/sys/fs/cgroup/{name}"
        command = ["systemd-nspawn", f"--directory={place}/root", f"--machine={name}", "--boot"]
        command += ["--keep-unit", "--register=no", f"--network-bridge={bridge}"]
        command += ["--console=pipe", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        start = f"mkdir {group}; echo $$ > {group}/cgroup.procs; exec {shlex.join(command)}"
        with self._console.open("w") as log:
            world.daemon("sh", "-ec", start, log=log)
        # sandboxes may mount /proc only where a whole one is to be seen; nspawn's has covers on it
        whole = "mountpoint -q /run/proc || mount --mkdir -t proc proc /run/proc"
        until(lambda: self.attempt(whole).returncode == 0, 30, self._story)

    def attempt(self, command: str, **more: Any) -> Any:
        """Run a shell command on it, whatever comes of it."""
        options = ["-o", "ConnectTimeout=1", "-o", "StrictHostKeyChecking=accept-new"]
        return self.world.attempt("ssh", *options, f"root@{self.address}", command, **more)

    def run(self, command: str, **more: Any) -> str:
        """What a shell command prints there.  Failed if its exit code is not 0."""
        done = self.attempt(command, **more)
        if done.returncode:
            raise Failed(f"{self.name}: {command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return str(done.stdout)

    def _story(self) -> str:
        return f"{self.name} does not answer; its console says:\n{self._console.read_text()}"
