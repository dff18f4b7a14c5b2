"""Defines a guest: one virtual machine that a cluster morph describes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fabric.deployment.settings import Interface, Location, Mount, Nic


class Inner(msgspec.Struct, frozen=True):
    """A subsystem: a system as a tar archive in the filesystem of the guest, at ``path``."""

    name: str
    system: str  # path of its morph
    path: str  # absolute


class Guest(msgspec.Struct, frozen=True):
    """A virtual machine.  Sizes are bytes."""

    name: str  # of the deployment
    line: int
    system: str  # path of its morph
    location: Location
    hostname: str  # what it calls itself
    address: str  # how others reach it
    role: str  # controller, worker or ""
    trove: bool  # whether it is the trove of this cluster
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
        """What it is, for those who speak to many: its role, else its system's name."""
        return (
            f"{self.role}s" if self.role else self.system.rpartition("/")[2].removesuffix(".morph")
        )

    def line_of(self, field: str) -> int:
        return self.lines.get(field, self.line)
