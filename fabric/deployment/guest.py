"""Defines what the deployments of a cluster morph describe: virtual machines, and files."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fabric.deployment.settings import Interface, Location, Mount, Nic

#: The name of the web page's key, which is admitted beside those of machines and people.
WEB_PAGE = "web-page"


class Inner(msgspec.Struct, frozen=True):
    """A subsystem: a system as a tar archive at ``path`` in the filesystem of the guest."""

    name: str
    system: str  # path of its morph
    path: str  # absolute


class _Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """A deployed system.  Sizes are bytes."""

    name: str  # of the deployment
    line: int
    system: str  # path of its morph
    hostname: str  # its own host name
    label: str
    disk_size: int
    kernel_args: str
    mounts: tuple[Mount, ...]
    hosts: tuple[str, ...]  # lines of /etc/hosts
    interfaces: tuple[Interface, ...]
    manifests: tuple[str, ...]  # of INSTALL_FILES
    subsystems: tuple[Inner, ...]
    settings: Mapping[str, str]  # all of them, as text
    lines: Mapping[str, int]

    @property
    def system_name(self) -> str:
        """The name of its system's file."""
        return self.system.rpartition("/")[2].removesuffix(".morph")

    def line_of(self, field: str) -> int:
        return self.lines.get(field, self.line)


class ImageFile(_Deployed, frozen=True, kw_only=True):
    """A system as a file on the deploying machine: a disk image, or a tar archive."""

    kind: str  # rawdisk or tar
    path: str  # absolute, or from the root of the definitions


class Guest(_Deployed, frozen=True, kw_only=True):
    """A virtual machine."""

    location: Location
    address: str  # its name or address for other machines
    roles: tuple[str, ...]  # controller, worker, both or neither
    trove: bool  # it is the trove of this cluster
    web: bool  # it serves the web page
    signatures: bool  # it signs artifacts, and checks signatures
    ram_size: int
    vcpus: int
    disks: tuple[str, ...]
    nics: tuple[Nic, ...]
    autostart: bool
    controller: str
    workers: tuple[str, ...]
    trove_host: str
    trove_id: str
    ssh_key: str
    ssh_pubkey: str
    users: str  # folder with the keys of people

    @property
    def groups(self) -> tuple[str, ...]:
        """Its groups in the inventory: its roles, else the name of its system's file."""
        return tuple(f"{role}s" for role in self.roles) or (self.system_name,)
