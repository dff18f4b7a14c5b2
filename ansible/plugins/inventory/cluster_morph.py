"""Ansible inventory plugin: hosts, groups and variables, computed from a cluster morph."""

from __future__ import annotations

DOCUMENTATION = """
name: cluster_morph
short_description: Compute the inventory from a cluster morph
author: The authors of Distbuild (!UNKNOWN)
description:
  - Each deployment of the cluster is a host of the group C(guests), and of C(controllers) or
    C(workers), or of both. A deployment of type rawdisk or tar is a host of the group C(files), for
    a file on the deploying machine. Other deployments are in a group with the name of their
    system, unless a machine has that name. If C(TROVE_HOST) names a machine of the cluster, that
    machine is in C(troves). The group C(vm_hosts) contains the machines that run guests, except
    the deploying machine.
  - An extra variable (C(-e)), or else an environment variable, gives a C($variable) of the morph
    its value. An extra variable in capitals overrides a setting of the morph,
    C(-e RAM_SIZE=4G) for all deployments and C(-e worker0.RAM_SIZE=4G) for one.
  - The variable C(cluster_users) maps each person in the folder C(USERS) to the path of their keys.
  - The source is a cluster morph (C(-i clusters/x.morph)), or a YAML file that names one.
options:
  plugin:
    description: The name of this plugin, which marks a YAML file as its configuration.
    required: true
    choices: [distbuild.fabric.cluster_morph, cluster_morph]
  cluster:
    description:
      - Path of the cluster morph, relative to the current directory or the root of the definitions.
      - C(-e cluster=PATH) overrides it.
    type: path
    env:
      - name: DISTBUILD_CLUSTER
"""

EXAMPLES = """
plugin: distbuild.fabric.cluster_morph
cluster: clusters/distbuild-cluster.morph
"""

import os
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError

from ansible import constants as C
from ansible.plugins.inventory import BaseFileInventoryPlugin

try:
    import msgspec

    from fabric.client.project import Project
    from fabric.config import Settings
    from fabric.deployment.cluster import Cluster, load_cluster
    from fabric.deployment.guest import Guest, ImageFile
    from fabric.deployment.guests import deployed
    from fabric.deployment.users import users
    from fabric.errors import FabricError
    from fabric.host.terminal import printable
except ImportError as error:
    MISSING = str(error)
else:
    MISSING = ""


class InventoryModule(BaseFileInventoryPlugin):
    NAME = "distbuild.fabric.cluster_morph"

    def verify_file(self, path: str) -> bool:
        return super().verify_file(path) and path.endswith((".morph", ".yml", ".yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        if MISSING:
            raise AnsibleParserError(
                f"the Python that runs Ansible lacks this project ({MISSING}): run"
                " `make setup-deploy`, and ansible-playbook from its .venv/bin"
            )
        super().parse(inventory, loader, path, cache)  # reads the extra variables, too
        extra = {str(key): _text(value) for key, value in self._vars.items()}
        if path.endswith(".morph"):
            named = path
        else:
            self._redirected_names = [self.NAME, "cluster_morph"]  # with and without the collection
            self._read_config_data(path)
            named = extra.get("cluster") or self.get_option("cluster")
            if not named:
                raise AnsibleParserError(f"{path}: 'cluster' names no cluster morph")
        try:
            self._fill(_locate(named, Path(path)), extra)
        except FabricError as error:
            # printed here, because Ansible would print it twice
            text = printable(str(error))
            self.display.error(f"the cluster cannot be deployed:\n{text}", wrap_text=False)
            raise AnsibleParserError("the cluster cannot be deployed, see above") from None

    def _fill(self, morph: Path, extra: Mapping[str, str]) -> None:
        project = Project.find(morph.parent, Settings(), self.display.display)
        root = project.root.resolve()
        cluster = load_cluster(project.read, str(morph.relative_to(root)))
        settings = {key: text for key, text in extra.items() if _is_setting(key)}
        found = deployed(cluster, {**os.environ, **extra}, settings)
        for problem in found.findings.warnings:
            self.display.warning(printable(str(problem)))
        for group in ("vm_hosts", "guests", "controllers", "workers", "troves", "files"):
            self.inventory.add_group(group)
        variables = _cluster_variables(root, cluster)
        own = _deploying(variables["cluster_state"], extra)
        variables["cluster_users"] = users(root, cluster.path, found.guests, own)
        self._group("all", variables)
        names = {guest.name for guest in found.guests}
        for guest in found.guests:
            self._vm_host(guest)
            self._guest(guest, names)
            self._group(guest.name, _ssh_variables(guest.name, variables["cluster_state"]))
        for file in found.files:
            self.inventory.add_host(file.name, group="files")
            self._group(file.name, {"guest": _file_variable(file, root)})

    def _group(self, group: str, variables: Mapping[str, Any]) -> None:
        for key, value in variables.items():
            self.inventory.set_variable(group, key, value)

    def _vm_host(self, guest: Guest) -> None:
        where = guest.location
        if where.host in C.LOCALHOST:
            return  # tasks that are delegated to localhost would use a host of that name, over SSH
        self.inventory.add_host(where.host, group="vm_hosts")
        self._group(where.host, {"ansible_host": where.host, **_login(where.user, where.port)})

    def _guest(self, guest: Guest, names: Collection[str]) -> None:
        self.inventory.add_host(guest.name, group="guests")
        for name in guest.groups:
            if name in names:
                continue  # a system that is called as a machine has no group
            group = self.inventory.add_group(self._sanitize_group_name(name))
            if not guest.roles:
                self.inventory.add_child("guests", group)
            self.inventory.add_host(guest.name, group=group)
        if guest.trove:
            self.inventory.add_host(guest.name, group="troves")
        self._group(guest.name, {"ansible_host": guest.address, "guest": _guest_variable(guest)})


def _locate(named: str, inventory: Path) -> Path:
    """Return the cluster's file, from the current directory or beside the inventory's folder."""
    tried = [Path(named).expanduser(), inventory.resolve().parent.parent / named]
    for path in tried:
        if path.is_file():
            return path.resolve()
    raise FabricError(f"{named}: no such file; -e cluster=PATH names a cluster morph")


def _cluster_variables(root: Path, cluster: Cluster) -> dict[str, Any]:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    state = Path(base).expanduser() / "distbuild" / "clusters" / cluster.name
    return {
        "cluster_name": cluster.name,
        "cluster_morph": str(root / cluster.path),
        "definitions_root": str(root),
        "fabric_initiator": str(Path(sys.executable).with_name("fabric-initiator")),
        # the folder for secrets and other state that outlives a run: keys, known hosts
        "cluster_state": str(state),
    }


def _deploying(state: str, extra: Mapping[str, str]) -> set[str]:
    """Return the present and former names of the deploying user, of the role secrets."""
    now = extra.get("secrets_initiator") or os.environ.get("USER") or "root"
    return {now, *(key.stem for key in Path(state).glob("initiator/*.key"))}


def _ssh_variables(name: str, state: str) -> dict[str, Any]:
    """Return the variables for SSH to a guest, with the cluster's key and the known host key."""
    known = _ssh_quoted(f"{state}/ssh/{name}/known_hosts")
    options = shlex.join(["-o", f"UserKnownHostsFile={known}", "-o", f"HostKeyAlias={name}"])
    return {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": f"{state}/ssh/admin",
        "ansible_ssh_common_args": options,
    }


def _ssh_quoted(path: str) -> str:
    """Quote a path for an option of ssh, which splits at spaces and expands ``%``."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _guest_variable(guest: Guest) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(guest)
    del made["lines"], made["line"]
    made["vm_host"] = {
        "name": guest.location.host,
        "user": guest.location.user,
        "port": guest.location.port,
    }
    made["roles"] = ["trove"] * guest.trove + list(guest.roles) + ["web"] * guest.web
    made["domain"] = guest.location.guest
    made["image"] = guest.location.image
    return made


def _file_variable(file: ImageFile, root: Path) -> dict[str, Any]:
    """Return the variable of a file; FabricError if a link leads it out of the definitions."""
    path = root / file.path
    if file.path == str(path) or path.parent.resolve().is_relative_to(root):
        made: dict[str, Any] = msgspec.to_builtins(file)
        del made["lines"], made["line"]
        return {**made, "path": str(path)}
    raise FabricError(f"deployment {file.name}: {path} is out of the definitions, by a link")


def _login(user: str, port: int) -> dict[str, Any]:
    return ({"ansible_user": user} if user else {}) | ({"ansible_port": port} if port else {})


def _is_setting(key: str) -> bool:
    setting = key.rpartition(".")[2]
    return setting == setting.upper() and setting[:1].isalpha()


def _text(value: Any) -> str:
    return "" if value is None else str(value)
