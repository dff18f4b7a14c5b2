"""Turns the deployments of a cluster morph into guests.

It reports every mistake in them before any machine is contacted.
"""

from __future__ import annotations

from collections.abc import Mapping

from fabric.definitions.fields import Findings, listing, suggest
from fabric.definitions.morphs import Fieldset
from fabric.deployment.cluster import Cluster, ClusterSystem, Deployment
from fabric.deployment.conflicts import RESERVED, Conflicts
from fabric.deployment.guest import Guest, Inner
from fabric.deployment.settings import Location, Mount, Settings, is_address, is_word
from fabric.errors import DefinitionsError

_KVM = ("extensions/kvm", "kvm")
#: Types that Baserock's tools deploy and this project does not: they are left out with a warning.
_ELSEWHERE = (
    *("distbuild-trove-nfsboot", "fastboot", "hosts", "image-package", "initramfs", "jffs2"),
    *("nfsboot", "openstack", "partitioning", "pxeboot", "rawdisk", "sdk", "simple-network"),
    *("ssh-rsync", "sysroot", "tar", "vagrant", "vdaboot", "virtualbox-ssh"),
)
#: Types of subsystems.
_INNER = ("extensions/tar", "tar")
#: Replaces an invalid location, so that the other settings are still checked.
_NOWHERE = Location("", "", 0, "", "")
#: Settings that connect workers and controllers; with mistakes, these are not checked.
_BONDS = {
    *("DISTBUILD_CONTROLLER", "DISTBUILD_WORKER"),
    *("HOSTNAME", "CONTROLLERHOST", "WORKERS"),
}
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
    "TROVE_HOST": ("host", "the machine with sources and artifacts; required for both roles"),
    "TROVE_ID": ("name", "a name of the trove, for templates of INSTALL_FILES"),
    "TROVE": ("git URL", "a trove that exists; default `ssh://git@TROVE_HOST/srv/trove/trove.git`"),
    "WORKER_SSH_KEY": ("file", "the key that may fetch from the trove; required for both roles"),
    "WORKER_SSH_PUBKEY": ("file", "its public half, which the cluster's own trove admits"),
    "ARTIFACTS": ("URL", "an artifact store that exists: `https://`, `s3://`, `gs://` or `az://`"),
    "ARTIFACTS_CA": ("file", "the authority that certifies the store, as PEM"),
    "ARTIFACTS_PASSWORD": ("file", "USER:PASSWORD for the store"),
    "ARTIFACTS_ENVIRONMENT": ("file", "lines NAME=VALUE with credentials for the store"),
    "DISK_SIZE": ("size", "the disk of the system, such as `5G`; required"),
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


def guests(
    cluster: Cluster, variables: Mapping[str, str], overrides: Mapping[str, str]
) -> tuple[tuple[Guest, ...], Findings]:
    """The guests of a cluster, and warnings.

    ``variables`` replace ``$name``.  ``overrides`` replace settings of the morph: ``KEY`` those of
    all deployments, ``NAME.KEY`` that of one.  DefinitionsError has all mistakes.
    """
    findings = Findings()
    reader = _Reader(cluster, variables, overrides, findings)
    found = [
        guest
        for system, deployment in cluster.deployments().values()
        if (guest := reader.guest(system, deployment)) is not None
    ]
    if not is_word(cluster.name):
        what = "use letters and digits, and _ . + - after the first character"
        findings.error(cluster.path, 1, f"{cluster.name!r} is not a name of a cluster: {what}")
    if not cluster.deployments():
        findings.error(cluster.path, 1, "this cluster has no machines: name some in 'deploy'")
    elif not found and not findings.errors:
        message = f"no deployment has the type {_KVM[0]}, and only that type is supported"
        findings.error(cluster.path, 1, message)
    Conflicts(cluster.path, found, findings).check(whole=reader.whole)
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
        self.whole = True  # all guests could be read
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

    def guest(self, system: ClusterSystem, deployment: Deployment) -> Guest | None:
        if deployment.type.removeprefix("extensions/") in _ELSEWHERE:
            message = f"deployment {deployment.name}: {deployment.type} is left out:"
            line = deployment.lines.get("type", deployment.line)
            self.findings.warn(self.file, line, f"{message} only {_KVM[0]} is supported")
            self.whole = False
            return None
        overrides = {**self.shared, **self.own.get(deployment.name, {})}
        given = Settings(deployment, self.file, self.findings, self.variables, overrides)
        if not is_word(deployment.name) or deployment.name in RESERVED:
            message = f"{deployment.name!r} is not allowed as the name of a machine: rename it"
            self.findings.error(self.file, deployment.line, message)
        if deployment.type not in _KVM:
            if deployment.type:
                hint = suggest(deployment.type, _KVM) or f": known is {_KVM[0]}"
                given.report("type", f"unknown type {deployment.type!r}{hint}")
            else:
                message = (
                    "it has only fields of upgrades: add 'type: extensions/kvm' and its location"
                )
                given.report("upgrade-type", f"deployment {deployment.name}: {message}")
            self.whole = False
            return None
        if deployment.components:
            message = "only whole systems can be deployed: remove the field"
            given.report("partial-deploy-components", message)
        location = given.location(deployment.location) or _NOWHERE
        self._doubt(deployment, given)
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
        mounts, disks = given.mounts(), given.paths("ATTACH_DISKS")
        label = given.label("VERSION_LABEL", "distbuild")
        self._mounted(given, mounts, label, bool(disks))
        address = given.host("HOSTNAME") or location.guest
        controller_host = given.host("CONTROLLERHOST")
        trove_host = given.host("TROVE_HOST")
        given.repository("TROVE")
        given.store("ARTIFACTS")
        made = Guest(
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
            kernel_args=given.line_of_text("KERNEL_ARGS"),
            mounts=mounts,
            hosts=given.lines_of_text("HOSTS_"),
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
            users=given.text("USERS"),
            subsystems=tuple(self._inner(system)),
            settings=given.texts,
            lines=deployment.lines,
        )
        self.whole = self.whole and location is not _NOWHERE and not given.faulty & _BONDS
        return None if location is _NOWHERE else made

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
            near = "" if key in SETTINGS else suggest(key, SETTINGS)
            if near and not key.startswith((*PREFIXES,)):
                line = given.lines.get(key, given.line)
                self.findings.warn(self.file, line, f"the setting {key} means nothing here{near}")

    def _inner(self, system: ClusterSystem) -> list[Inner]:
        found: dict[str, Inner] = {}
        for below in system.subsystems:
            for deployment in below.deployments:
                given = Settings(deployment, self.file, self.findings, self.variables, {})
                if deployment.type not in _INNER:
                    known = f"the type of a subsystem is {_INNER[0]}"
                    given.report("type", f"unknown type {deployment.type!r}: {known}")
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
