"""The machines that a cluster morph describes: each deployment as a virtual machine on a host.

All that can be wrong with them is found here, before any machine is spoken to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fabric.definitions.cluster import Cluster, ClusterSystem, Deployment
from fabric.definitions.cluster_settings import Interface, Location, Mount, Nic, Settings
from fabric.definitions.fields import Findings, listing, suggest
from fabric.errors import DefinitionsError

_KVM = ("extensions/kvm", "kvm")
#: Of deployments into another one's filesystem.
_INNER = ("extensions/tar", "tar", "extensions/sysroot", "sysroot")
_MIB = 1024**2
_DEFAULT_RAM = 1024 * _MIB
#: What means something to deployments; a name close to one of them is probably a mistake.
_KNOWN = (
    *("ATTACH_DISKS", "AUTOSTART", "CONTROLLERHOST", "DISK_SIZE", "DISTBUILD_CONTROLLER"),
    *("DISTBUILD_WORKER", "HOSTNAME", "INSTALL_FILES", "KERNEL_ARGS", "NETWORK_CONFIG"),
    *("NIC_CONFIG", "RAM_SIZE", "TROVE_HOST", "TROVE_ID", "VCPUS", "VERSION_LABEL", "WORKERS"),
    *("WORKER_SSH_KEY", "WORKER_SSH_PUBKEY"),
)


@dataclass(frozen=True, slots=True)
class Inner:
    """A subsystem: a system put into the filesystem of the guest, at ``path``."""

    name: str
    system: str
    type: str  # tar or sysroot
    path: str


@dataclass(frozen=True, slots=True)
class Guest:
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


def guests(
    cluster: Cluster, variables: Mapping[str, str], overrides: Mapping[str, str]
) -> tuple[tuple[Guest, ...], Findings]:
    """The guests of a cluster, and what is doubtful about it.

    ``variables`` are what ``$name`` stands for.  ``overrides`` are settings above all that the
    morph says: ``KEY`` for every deployment, ``NAME.KEY`` for one.  Raises `DefinitionsError`
    with all that is wrong.
    """
    findings = Findings()
    reader = _Reader(cluster, variables, overrides, findings)
    found = [
        guest
        for system, deployment in cluster.deployments().values()
        if (guest := reader.guest(system, deployment)) is not None
    ]
    _Together(cluster.path, found, findings).check(whole=reader.whole)
    if findings.errors:
        raise DefinitionsError(findings.errors)
    return tuple(found), findings


class _Reader:
    def __init__(
        self,
        cluster: Cluster,
        variables: Mapping[str, str],
        overrides: Mapping[str, str],
        findings: Findings,
    ) -> None:
        self.file = cluster.path
        self.variables = variables
        self.findings = findings
        self.whole = True  # whether all could be read, so that what lacks is really missing
        self.shared = {key: text for key, text in overrides.items() if "." not in key}
        self.own: dict[str, dict[str, str]] = {}
        names = cluster.deployments()
        for key, text in overrides.items():
            name, dot, setting = key.rpartition(".")
            if dot and name not in names:
                hint = suggest(name, names) or f"; there are {listing(names)}"
                findings.error(self.file, 1, f"-e {key}: no deployment is called {name!r}{hint}")
            elif dot:
                self.own.setdefault(name, {})[setting] = text

    def guest(self, system: ClusterSystem, deployment: Deployment) -> Guest | None:
        overrides = {**self.shared, **self.own.get(deployment.name, {})}
        given = Settings(deployment, self.file, self.findings, self.variables, overrides)
        if deployment.type not in _KVM:
            hint = f"known is {_KVM[0]}" if deployment.type else f"only {_KVM[0]} can be deployed"
            given.report("type", f"unknown type {deployment.type!r}: {hint}")
            self.whole = False
            return None
        if deployment.components:
            message = "only whole systems can be deployed: remove the field"
            given.report("partial-deploy-components", message)
        location = given.location(deployment.location)
        self._doubt(given)
        controller, worker = (
            given.boolean("DISTBUILD_CONTROLLER"),
            given.boolean("DISTBUILD_WORKER"),
        )
        role = "controller" if controller else "worker" if worker else ""
        if controller and worker:
            given.report(
                "DISTBUILD_WORKER",
                "DISTBUILD_CONTROLLER and DISTBUILD_WORKER are both yes: a machine is one of them",
            )
        if role:
            self._needs(given, role)
        given.needed("DISK_SIZE", "how large the disk of its system is, like 5G")
        mounts = given.mounts()
        disks = given.paths("ATTACH_DISKS")
        label = given.text("VERSION_LABEL", "distbuild")
        for mount in mounts:
            if mount.label and mount.label != label and not disks:
                given.report(
                    mount.setting,
                    f"{mount.setting} mounts the disk labelled {mount.label!r},"
                    " but ATTACH_DISKS attaches none",
                )
        self.whole = self.whole and location is not None and not given.hollow
        if location is None:
            return None
        address = given.host("HOSTNAME") or location.guest
        controller_host = given.host("CONTROLLERHOST")
        trove_host = given.host("TROVE_HOST")
        return Guest(
            name=deployment.name,
            line=deployment.line,
            system=system.morph,
            location=location,
            hostname=location.guest if is_address(address) else address,
            address=address,
            role=role,
            trove=bool(trove_host) and trove_host == address,
            label=label,
            disk_size=given.size("DISK_SIZE"),
            ram_size=given.size("RAM_SIZE", _DEFAULT_RAM),
            vcpus=given.count("VCPUS", 1),
            disks=disks,
            nics=given.nics("NIC_CONFIG"),
            autostart=given.boolean("AUTOSTART"),
            kernel_args=given.text("KERNEL_ARGS"),
            mounts=mounts,
            hosts=tuple(sorted(text.strip() for _, text in given.named("HOSTS_"))),
            interfaces=given.interfaces("NETWORK_CONFIG"),
            manifests=tuple(
                word for _, text in given.named("INSTALL_FILES") for word in text.split()
            ),
            controller=controller_host,
            workers=given.hosts("WORKERS"),
            trove_host=trove_host,
            trove_id=given.text("TROVE_ID"),
            ssh_key=given.text("WORKER_SSH_KEY"),
            ssh_pubkey=given.text("WORKER_SSH_PUBKEY"),
            subsystems=tuple(self._inner(system)),
            settings=given.texts,
            lines=deployment.lines,
        )

    def _needs(self, given: Settings, role: str) -> None:
        given.needed("HOSTNAME", f"the name or address by which a {role} is reached")
        given.needed("TROVE_HOST", "the machine with the sources and artifacts")
        given.needed("WORKER_SSH_KEY", "the file with the key that may fetch from the trove")
        if role == "controller":
            given.needed("WORKERS", "the HOSTNAMEs of the workers, separated by commas")
        else:
            given.needed("CONTROLLERHOST", "the HOSTNAME of the controller")

    def _doubt(self, given: Settings) -> None:
        """Warn of names that nothing knows and that are nearly those of something."""
        for key in given.texts:
            near = "" if key in _KNOWN else suggest(key, _KNOWN)
            if near and not key.startswith(("INSTALL_FILES", "FSTAB_", "HOSTS_")):
                line = given.lines.get(key, given.line)
                self.findings.warn(self.file, line, f"the setting {key} means nothing here{near}")

    def _inner(self, system: ClusterSystem) -> list[Inner]:
        found = []
        for below in system.subsystems:
            for deployment in below.deployments:
                given = Settings(deployment, self.file, self.findings, self.variables, {})
                if deployment.type not in _INNER:
                    known = "a subsystem is put into the other as extensions/tar or /sysroot"
                    given.report("type", f"unknown type {deployment.type!r}: {known}")
                    continue
                if below.subsystems:
                    given.report("type", "a subsystem of a subsystem cannot be deployed")
                kind = deployment.type.rpartition("/")[2]
                path = "/" + deployment.location.strip("/")
                found.append(Inner(deployment.name, below.morph, kind, path))
        return found


Key = Callable[[Guest], tuple[str, ...]]


class _Together:
    """What can only be wrong between guests."""

    def __init__(self, file: str, guests: list[Guest], findings: Findings) -> None:
        self.file = file
        self.guests = guests
        self.findings = findings

    def check(self, *, whole: bool) -> None:
        self._once("location", "{1} is already the guest of {0} on this host: rename one", _domain)
        self._once("location", "the image {1} is already that of {0}: give it another", _image)
        self._once("HOSTNAME", "{1} is already the HOSTNAME of {0}: give it another", _address)
        for guest in self.guests:
            for other in self.guests:
                self._disks(guest, other)
        self._one_way_to_each_host()
        if whole:
            self._workers()

    def _report(self, guest: Guest, field: str, message: str) -> None:
        line = guest.line_of(field)
        self.findings.error(self.file, line, f"deployment {guest.name}: {message}")

    def _once(self, field: str, message: str, key: Key) -> None:
        first: dict[tuple[str, ...], Guest] = {}
        for guest in self.guests:
            value = key(guest)
            other = first.setdefault(value, guest)
            if other is not guest:
                self._report(guest, field, message.format(other.name, value[-1]))

    def _disks(self, guest: Guest, other: Guest) -> None:
        if guest.location.host != other.location.host:
            return
        for disk in guest.disks:
            if disk == other.location.image:
                self._report(guest, "ATTACH_DISKS", f"{disk} is the image of {other.name}")
            elif disk in other.disks and self.guests.index(other) < self.guests.index(guest):
                self._report(guest, "ATTACH_DISKS", f"{disk} is attached to {other.name} already")

    def _one_way_to_each_host(self) -> None:
        ways: dict[str, Location] = {}
        for guest in self.guests:
            here = guest.location
            first = ways.setdefault(here.host, here)
            if (first.user, first.port) != (here.user, here.port):
                self._report(
                    guest,
                    "location",
                    f"another deployment reaches {here.host} as another user"
                    " or by another port: use one way to each host",
                )

    def _workers(self) -> None:
        workers = {guest.address: guest for guest in self.guests if guest.role == "worker"}
        for controller in (guest for guest in self.guests if guest.role == "controller"):
            for host in controller.workers:
                if host not in workers:
                    hint = suggest(host, workers)
                    self._report(
                        controller, "WORKERS", f"{host} is not the HOSTNAME of a worker{hint}"
                    )
            for host, worker in workers.items():
                if worker.controller == controller.address and host not in controller.workers:
                    self._report(
                        worker,
                        "HOSTNAME",
                        f"{host} is missing from the WORKERS of {controller.name}: add it there",
                    )


def _domain(guest: Guest) -> tuple[str, str]:
    return guest.location.host, guest.location.guest


def _image(guest: Guest) -> tuple[str, str]:
    return guest.location.host, guest.location.image


def _address(guest: Guest) -> tuple[str]:
    return (guest.address,)


def is_address(text: str) -> bool:
    """Whether a host is given by its IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
