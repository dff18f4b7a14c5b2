"""Defines a guest: one virtual machine that a cluster morph describes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fabric.deployment.settings import Interface, Location, Mount, Nic


class Inner(msgspec.Struct, frozen=True):
    """A subsystem: a system as a tar archive at ``path`` in the filesystem of the guest."""

    name: str
    system: str  # path of its morph
    path: str  # absolute


class Guest(msgspec.Struct, frozen=True):
    """A virtual machine.  Sizes are bytes."""

    name: str  # of the deployment
    line: int
    system: str  # path of its morph
    location: Location
    hostname: str  # its own host name
    address: str  # its name or address for other machines
    role: str  # controller, worker or ""
    trove: bool  # it is the trove of this cluster
    label: str
    disk_size: int
    ram_size: int
    vcpus: int
    disks: tuple[str, ...]
    nics: tuple[Nic, ...]
    autostart: bool
    kernel_args: str
    mounts: tuple[Mount, ...]
    hosts: tuple[str, ...]  # lines of /etc/hosts
    interfaces: tuple[Interface, ...]
    manifests: tuple[str, ...]  # of INSTALL_FILES
    controller: str
    workers: tuple[str, ...]
    trove_host: str
    trove_id: str
    ssh_key: str
    ssh_pubkey: str
    users: str  # folder with the keys of people
    subsystems: tuple[Inner, ...]
    settings: Mapping[str, str]  # all of them, as text
    lines: Mapping[str, int]

    @property
    def group(self) -> str:
        """Its group in the inventory: its role, else the name of its system's file."""
        return (
            f"{self.role}s" if self.role else self.system.rpartition("/")[2].removesuffix(".morph")
        )

    def line_of(self, field: str) -> int:
        return self.lines.get(field, self.line)
