"""Turns the deployments of a cluster morph into guests, and into files.

It reports every mistake in them before any machine is contacted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fabric.definitions.fields import Findings, listing
from fabric.definitions.morphs import Fieldset
from fabric.deployment.cluster import Cluster, ClusterSystem, Deployment
from fabric.deployment.conflicts import RESERVED, Conflicts
from fabric.deployment.guest import Guest, ImageFile, Inner
from fabric.deployment.settings import Location, Mount, Settings, is_address, is_word
from fabric.errors import DefinitionsError, suggest

#: Types without `extensions/`: of virtual machines, and of files.
_KVM = "kvm"
_FILES = ("rawdisk", "tar")
_KNOWN = tuple(f"extensions/{kind}" for kind in (_KVM, *_FILES))
#: Types of Baserock's tools, some of which look like a misspelt one of ours.
_ELSEWHERE = (
    *("distbuild-trove-nfsboot", "fastboot", "hosts", "image-package", "initramfs", "jffs2"),
    *("nfsboot", "openstack", "partitioning", "pxeboot", "sdk", "simple-network", "ssh-rsync"),
    *("sysroot", "vagrant", "vdaboot", "virtualbox-ssh"),
)
#: Configuration extensions that settings stand for.
_COVERED = ("distbuild", "fstab", "hosts", "install-files", "set-hostname", "simple-network")
#: Settings of roles, which only machines have.
_ROLES = ("DISTBUILD_CONTROLLER", "DISTBUILD_WORKER")
#: Types of subsystems.
_INNER = ("extensions/tar", "tar")
#: Replaces an invalid location, so that the other settings are still checked.
_NOWHERE = Location("", "", 0, "", "")
#: Settings that connect workers and controllers; with mistakes, these are not checked.
_BONDS = {*_ROLES, "HOSTNAME", "CONTROLLERHOST", "WORKERS"}
_MIB = 1024**2
_DEFAULT_RAM = 1024 * _MIB
#: Settings of deployments: name -> (value, meaning).  A name close to one is probably a mistake.
SETTINGS: Fieldset = {
    "HOSTNAME": ("host", "the machine's name or address; required for controllers and workers"),
    "DISTBUILD_CONTROLLER": ("yes or no", "the machine is the controller"),
    "DISTBUILD_WORKER": ("yes or no", "the machine is a worker"),
    "CONTROLLERHOST": ("host", "the controller's HOSTNAME; required for workers"),
    "WORKERS": ("list of hosts", "the workers' HOSTNAMEs; required for controllers"),
    "USERS": ("folder", "public keys of the people who may submit builds"),
    "WEB": ("yes or no", "the controller serves the web page of the farm"),
    "WEB_CERTIFICATE": (
        "file",
        "the certificate of the page, as PEM with its chain; default one that deploying makes",
    ),
    "WEB_CERTIFICATE_KEY": ("file", "its private key, as PEM"),
    "SIGNATURES": (
        "yes or no",
        "the farm signs its artifacts, and uses only what it signed; default yes, and the same for"
        " all machines",
    ),
    "TROVE_HOST": ("host", "the machine with sources and artifacts; required for both roles"),
    "TROVE_ID": ("name", "a name of the trove, for templates of INSTALL_FILES"),
    "TROVE": ("git URL", "a trove that exists; default `ssh://git@TROVE_HOST/srv/trove/trove.git`"),
    "WORKER_SSH_KEY": ("file", "the key that may fetch from the trove; required for both roles"),
    "WORKER_SSH_PUBKEY": ("file", "its public half, which the cluster's own trove admits"),
    "ARTIFACTS": ("URL", "an artifact store that exists: `https://`, `s3://`, `gs://` or `az://`"),
    "ARTIFACTS_CA": ("file", "the authority that certifies the store, as PEM"),
    "ARTIFACTS_PASSWORD": ("file", "USER:PASSWORD for the store"),
    "ARTIFACTS_ENVIRONMENT": ("file", "lines NAME=VALUE with credentials for the store"),
    "DISK_SIZE": (
        "size",
        "the disk of the system, such as `5G`; required but for `extensions/tar`",
    ),
    "RAM_SIZE": ("size", "memory; default `1G`"),
    "VCPUS": ("number", "processors; default 1"),
    "ATTACH_DISKS": ("paths", "further disks of the VM host, separated by `:`"),
    "NIC_CONFIG": (
        "list of cards",
        "`network=NAME`, `bridge=NAME` or `user`, each with `,model=M` and `,mac=M`, separated by"
        " spaces; default `network=default`",
    ),
    "NETWORK_CONFIG": (
        "list of interfaces",
        "`NAME:loopback`, `NAME:dhcp` or `NAME:static,address=A,netmask=M,gateway=G,dns=D`,"
        " separated by `;`",
    ),
    "AUTOSTART": ("yes or no", "the guest starts with the VM host"),
    "KERNEL_ARGS": ("text", "appended to the kernel's command line"),
    "VERSION_LABEL": ("label", "the label of the system's disk; default `distbuild`"),
    "INSTALL_FILES": ("list of files", "manifests of files that are put into the image"),
}
#: Beginnings of settings that a deployment has any number of.
PREFIXES: Fieldset = {
    "FSTAB_": ("line", "a line of /etc/fstab; a blank disk gets the label and a file system"),
    "HOSTS_": ("line", "a line of /etc/hosts"),
    "INSTALL_FILES": ("list of files", "further manifests"),
}


class Deployed(msgspec.Struct):
    """What a cluster deploys."""

    guests: tuple[Guest, ...]
    files: tuple[ImageFile, ...]
    findings: Findings  # with warnings only


def deployed(
    cluster: Cluster, variables: Mapping[str, str], overrides: Mapping[str, str]
) -> Deployed:
    """The guests and files of a cluster.

    ``variables`` replace ``$name``.  ``overrides`` replace settings of the morph: ``KEY`` those of
    all deployments, ``NAME.KEY`` that of one.  DefinitionsError has all mistakes.
    """
    findings = Findings()
    reader = _Reader(cluster, variables, overrides, findings)
    for system, deployment in cluster.deployments().values():
        reader.read(system, deployment)
    if not is_word(cluster.name):
        what = "use letters and digits, and _ . + - after the first character"
        findings.error(cluster.path, 1, f"{cluster.name!r} is not a name of a cluster: {what}")
    if not cluster.deployments():
        findings.error(cluster.path, 1, "this cluster has no machines: name some in 'deploy'")
    elif not (reader.guests or reader.files or findings.errors):
        findings.error(cluster.path, 1, "nothing of this cluster can be deployed here")
        findings.errors += findings.warnings  # why
    Conflicts(cluster.path, reader.guests, findings).check(whole=reader.whole)
    if findings.errors:
        raise DefinitionsError(findings.errors, findings.warnings)
    reader.warn_of_unused(cluster)
    return Deployed(tuple(reader.guests), tuple(reader.files), findings)


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
        self.whole = True  # all guests could be read
        self.guests: list[Guest] = []
        self.files: list[ImageFile] = []
        self.unknown: dict[str, int] = {}  # setting -> the first line with it
        self.shared = {key: text for key, text in overrides.items() if "." not in key}
        self.own: dict[str, dict[str, str]] = {}
        names = cluster.deployments()
        for key, text in overrides.items():
            name, dot, setting = key.rpartition(".")
            if dot and name not in names:
                hint = suggest(name, names) or f"; there are {listing(names)}"
                findings.error(self.file, 1, f"-e {key}: there is no deployment {name!r}{hint}")
            elif dot:
                self.own.setdefault(name, {})[setting] = text

    def read(self, system: ClusterSystem, deployment: Deployment) -> None:
        """Read one deployment; of another type than ours, it is left out."""
        kind = deployment.type.removeprefix("extensions/")
        if kind not in (_KVM, *_FILES):
            self._leave_out(deployment, kind)
            return
        overrides = {**self.shared, **self.own.get(deployment.name, {})}
        given = Settings(deployment, self.file, self.findings, self.variables, overrides)
        if not is_word(deployment.name) or deployment.name in RESERVED:
            message = f"{deployment.name!r} is not allowed as the name of a machine: rename it"
            self.findings.error(self.file, deployment.line, message)
        if deployment.components:
            message = "only whole systems can be deployed: remove the field"
            given.report("partial-deploy-components", message)
        self._doubt(deployment, given)
        if kind == _KVM:
            self._guest(system, deployment, given)
        else:
            self._image_file(system, deployment, given, kind)

    def _leave_out(self, deployment: Deployment, kind: str) -> None:
        line = deployment.lines.get("type", deployment.line)
        what = f"deployment {deployment.name}:"
        self.whole = False
        hint = "" if kind in _ELSEWHERE else suggest(deployment.type, _KNOWN)
        if hint:
            message = f"{what} unknown type {deployment.type!r}{hint}"
            self.findings.error(self.file, line, message)
        elif kind:
            message = f"{what} {deployment.type} is not deployable here, and is left out"
            self.findings.warn(self.file, line, f"{message}: {listing(_KNOWN)} are")
        else:
            message = f"{what} it has only fields of upgrades, and is left out: upgrade-cluster.yml"
            self.findings.warn(self.file, line, f"{message} upgrades machines with a 'type'")

    def _common(
        self, system: ClusterSystem, deployment: Deployment, given: Settings
    ) -> dict[str, Any]:
        """The fields that machines and files have."""
        return {
            "name": deployment.name,
            "line": deployment.line,
            "system": system.morph,
            "label": given.label("VERSION_LABEL", "distbuild"),
            "disk_size": given.size("DISK_SIZE"),
            "kernel_args": given.line_of_text("KERNEL_ARGS"),
            "mounts": given.mounts(),
            "hosts": given.lines_of_text("HOSTS_"),
            "interfaces": given.interfaces("NETWORK_CONFIG"),
            "manifests": tuple(
                word for _, text in given.named("INSTALL_FILES") for word in text.split()
            ),
            "subsystems": tuple(self._inner(system)),
            "settings": given.texts,
            "lines": deployment.lines,
        }

    def _image_file(
        self, system: ClusterSystem, deployment: Deployment, given: Settings, kind: str
    ) -> None:
        if kind == "rawdisk":
            given.needed("DISK_SIZE", "how large the disk of its system is, like 5G")
        for key in _ROLES:
            if given.boolean(key):
                line, message = deployment.lines.get(key, deployment.line), "is left out of a file"
                text = f"deployment {deployment.name}: {key} {message}: only a machine of type"
                self.findings.warn(
                    self.file, line, f"{text} {_KNOWN[0]} gets its keys and services"
                )
        path = given.file_path(deployment.location)
        name = given.host("HOSTNAME")
        taken = [one for one in self.files if one.path == path]
        if path and taken:
            given.report("location", f"{path} is already the file of {taken[0].name}")
        if path:
            common = self._common(system, deployment, given)
            hostname = deployment.name if is_address(name) else name
            self.files.append(ImageFile(**common, hostname=hostname, kind=kind, path=path))

    def _guest(self, system: ClusterSystem, deployment: Deployment, given: Settings) -> None:
        location = given.location(deployment.location) or _NOWHERE
        roles = tuple(key.rpartition("_")[2].lower() for key in _ROLES if given.boolean(key))
        for role in roles:
            self._needs(given, role)
        given.needed("DISK_SIZE", "how large the disk of its system is, like 5G")
        common = self._common(system, deployment, given)
        disks = given.paths("ATTACH_DISKS")
        self._mounted(given, common["mounts"], common["label"], bool(disks))
        address = given.host("HOSTNAME") or location.guest
        trove_host = given.host("TROVE_HOST")
        given.repository("TROVE")
        given.store("ARTIFACTS")
        web = given.boolean("WEB") and "controller" in roles
        if web and given.text("WEB_CERTIFICATE"):
            given.needed("WEB_CERTIFICATE_KEY", "the private key of WEB_CERTIFICATE")
        made = Guest(
            **common,
            location=location,
            hostname=location.guest if is_address(address) else address,
            address=address,
            roles=roles,
            trove=bool(trove_host) and trove_host == address,
            web=web,
            signatures=given.boolean("SIGNATURES", True),
            ram_size=given.size("RAM_SIZE", _DEFAULT_RAM),
            vcpus=given.count("VCPUS", 1),
            disks=disks,
            nics=given.nics("NIC_CONFIG"),
            autostart=given.boolean("AUTOSTART"),
            controller=given.host("CONTROLLERHOST"),
            workers=given.hosts("WORKERS"),
            trove_host=trove_host,
            trove_id=given.text("TROVE_ID"),
            ssh_key=given.text("WORKER_SSH_KEY"),
            ssh_pubkey=given.text("WORKER_SSH_PUBKEY"),
            users=given.text("USERS"),
        )
        self.whole = self.whole and location is not _NOWHERE and not given.faulty & _BONDS
        if location is not _NOWHERE:
            self.guests.append(made)

    def warn_of_unused(self, cluster: Cluster) -> None:
        """Warn once of all settings and configuration extensions without effect."""
        if self.unknown:
            line = min(self.unknown.values())
            text = "these settings have no effect, except in templates of INSTALL_FILES"
            self.findings.warn(self.file, line, f"{text}: {listing(sorted(self.unknown))}")
        used = {one.system for one in (*self.guests, *self.files)}
        places: dict[str, tuple[str, int]] = {}
        for system in cluster.systems:
            for name, line in system.extensions.items() if system.morph in used else ():
                if name not in _COVERED:
                    places.setdefault(name, (system.morph, line))
        if places:
            text = "these configuration extensions are not run"
            where = min(places.values())
            self.findings.warn(*where, f"{text}: {listing(sorted(places))}")

    @staticmethod
    def _mounted(given: Settings, mounts: tuple[Mount, ...], label: str, disks: bool) -> None:
        """Report mounts of labels that no disk has."""
        for mount in mounts:
            if mount.label == label and mount.line.split()[1] != "/":
                given.report(
                    mount.setting,
                    f"{mount.setting} mounts the disk of the system itself, which VERSION_LABEL"
                    f" labels {label!r} too: give one of them another label",
                )
            elif mount.label and mount.label != label and not disks:
                given.report(
                    mount.setting,
                    f"{mount.setting} mounts the disk labelled {mount.label!r},"
                    " but ATTACH_DISKS attaches none",
                )

    def _needs(self, given: Settings, role: str) -> None:
        given.needed("HOSTNAME", f"the name or address by which a {role} is reached")
        given.needed("TROVE_HOST", "the machine with the sources and artifacts")
        given.needed("WORKER_SSH_KEY", "the file with the key that may fetch from the trove")
        if role == "controller":
            given.needed("WORKERS", "the HOSTNAMEs of the workers, separated by commas")
        else:
            given.needed("CONTROLLERHOST", "the HOSTNAME of the controller")

    def _doubt(self, deployment: Deployment, given: Settings) -> None:
        """Warn of settings without effect: fields of upgrades, and probable typos."""
        if deployment.upgrade_type:
            line = given.lines.get("upgrade-type", given.line)
            message = "upgrade-type means nothing here: upgrade-cluster.yml upgrades all machines"
            self.findings.warn(self.file, line, message)
        for key in given.texts:
            if key in SETTINGS or key.startswith((*PREFIXES,)):
                continue
            line = given.lines.get(key, given.line)
            if near := suggest(key, SETTINGS, 0.8):
                self.findings.warn(self.file, line, f"the setting {key} means nothing here{near}")
            else:
                self.unknown.setdefault(key, line)

    def _inner(self, system: ClusterSystem) -> list[Inner]:
        found: dict[str, Inner] = {}
        for below in system.subsystems:
            for deployment in below.deployments:
                given = Settings(deployment, self.file, self.findings, self.variables, {})
                if deployment.type not in _INNER:
                    line = deployment.lines.get("type", deployment.line)
                    text = f"subsystem {deployment.name}: {deployment.type} is not deployable here,"
                    self.findings.warn(self.file, line, f"{text} and is left out: {_INNER[0]} is")
                    continue
                if below.subsystems:
                    given.report("type", "a subsystem of a subsystem cannot be deployed")
                if deployment.components:
                    message = "only whole systems can be deployed: remove the field"
                    given.report("partial-deploy-components", message)
                for key in given.texts:
                    message = f"a subsystem has no settings: remove {key}"
                    given.report(key, message)
                path = given.inner_path(deployment.location)
                if path in found:
                    given.report("location", f"{path} is already that of {found[path].name}")
                found[path] = Inner(deployment.name, below.morph, path)
        return list(found.values())
