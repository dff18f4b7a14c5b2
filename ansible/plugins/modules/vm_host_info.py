"""Ansible module: facts of a VM host that a guest depends on."""

from __future__ import annotations

DOCUMENTATION = """
module: vm_host_info
short_description: Gather facts of a VM host that a guest depends on
author: The authors of Distbuild (!UNKNOWN)
description:
  - Changes nothing. If SSH or libvirt fails, the module succeeds and returns the error in RV(ssh)
    or RV(libvirt), so that later checks can report it with a remedy.
extends_documentation_fragment: [action_common_attributes, distbuild.fabric.vm_host_options]
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: none}
options:
  cluster:
    description: The name of the cluster.
    type: str
    required: true
  domain:
    description: The name of the domain on O(vm_host).
    type: str
    required: true
  image:
    description: The path of its system disk on O(vm_host).
    type: path
    required: true
  disks:
    description: Paths of its attached disks on O(vm_host).
    type: list
    elements: path
    default: []
  labels:
    description: Labels of the filesystems that the guest mounts from them.
    type: list
    elements: str
    default: []
"""

EXAMPLES = """
- name: Inspect the VM host
  distbuild.fabric.vm_host_info:
    vm_host: {name: vmhost, user: user}
    cluster: farm
    domain: farm-worker0
    image: /var/lib/libvirt/images/worker0.img
  delegate_to: localhost
  register: found
"""

RETURN = """
ssh:
  description: The error of SSH; empty if it works.
  returned: always
  type: str
libvirt:
  description: The error of libvirt; empty if it answers.
  returned: always
  type: str
networks:
  description: Name of each libvirt network -> whether it is active.
  returned: if SSH works and libvirt answers
  type: dict
bridges:
  description: Name of each network bridge -> true.
  returned: if SSH works
  type: dict
memory:
  description: The memory that is available for guests, in bytes.
  returned: if SSH works and libvirt answers
  type: int
folder:
  description: The folder of the image.
  returned: if SSH works
  type: dict
  contains:
    exists: {description: Whether it exists., type: bool}
    writable: {description: Whether the user who logs in can write to it., type: bool}
    free: {description: Its free space in bytes., type: int}
image_exists:
  description: Whether a file exists at the path of the image.
  returned: if SSH works
  type: bool
former_image:
  description: Whether a former image exists beside it, which means that an upgrade is unfinished.
  returned: if SSH works
  type: bool
disks:
  description: The attached disks.
  returned: if SSH works
  type: list
  elements: dict
  contains:
    path: {description: Its path., type: str}
    exists: {description: Whether it exists., type: bool}
    usable: {description: Whether it could be read., type: bool}
    kind: {description: "One of V(block), V(file), V(other) and V(none).", type: str}
    format: {description: "V(raw) or V(qcow2).", type: str}
    size: {description: Its size in bytes., type: int, returned: if it could be read}
    type:
      description: The type of its filesystem or partition table; empty if it has none.
      type: str
    label: {description: The label of its filesystem; empty if it has none., type: str}
    blank: {description: Whether its first and last MiB contain only zeros., type: bool}
format:
  description: The filesystems to make on blank disks.
  returned: if SSH works
  type: list
  elements: dict
  contains:
    path: {description: The path of the disk., type: str}
    label: {description: The label of the filesystem., type: str}
disk_problems:
  description: Messages about disks that cannot be used and labels that no disk has.
  returned: if SSH works
  type: list
  elements: str
guest:
  description: The domain.
  returned: if SSH works and libvirt answers
  type: dict
  contains:
    exists: {description: Whether it is defined., type: bool}
    running: {description: Whether it runs., type: bool}
    mark:
      description:
        - The mark of the running domain, or else of its definition.
        - The module M(distbuild.fabric.libvirt_guest) describes it.
      type: dict
known:
  description: Name of each domain of the cluster -> its mark.
  returned: if SSH works and libvirt answers
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.disk_facts import assign, disk_facts
from ..module_utils.guest_xml import read_mark
from ..module_utils.vm_host import ARGUMENTS, HostError, VmHost, find_domain, libvirt

#: Prints "exists writable free image former-image" with 1 and 0, then each bridge.
_FOLDER = """
folder=$(dirname -- "$1")
test -d "$folder" && exists=1 || exists=0
test -w "$folder" && writable=1 || writable=0
free=$(df -Pk -- "$folder" 2>/dev/null | awk 'NR == 2 {print $4}')
test -e "$1" && image=1 || image=0
test -e "$1.old" && former=1 || former=0
echo "$exists $writable ${free:-0} $image $former"
for bridge in /sys/class/net/*/bridge; do
  if test -d "$bridge"; then basename "$(dirname "$bridge")"; fi
done
"""


def shell_facts(host: VmHost, image: str, paths: list[str], labels: list[str]) -> dict[str, Any]:
    """Return the facts that the shell of the host provides."""
    numbers, *bridges = host.run(_FOLDER, image).splitlines()
    exists, writable, free, taken, former = map(int, numbers.split())
    disks = [disk_facts(host, path) for path in paths]
    plan, problems = assign(disks, labels)
    return {
        "folder": {"exists": bool(exists), "writable": bool(writable), "free": free * 1024},
        "image_exists": bool(taken),
        "former_image": bool(former),
        "bridges": dict.fromkeys(bridges, True),
        "disks": disks,
        "format": plan,
        "disk_problems": problems,
    }


def libvirt_facts(connection: Any, cluster: str, name: str) -> dict[str, Any]:
    """Return the facts that libvirt provides."""
    stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    inactive = libvirt.VIR_DOMAIN_XML_INACTIVE
    marks = {one.name(): read_mark(one.XMLDesc(inactive)) for one in connection.listAllDomains()}
    domain = find_domain(connection, name)
    running = domain is not None and bool(domain.isActive())
    mark = read_mark(domain.XMLDesc(0)) if domain is not None and running else marks.get(name)
    return {
        "networks": {one.name(): bool(one.isActive()) for one in connection.listAllNetworks()},
        "memory": 1024 * sum(stats.get(key, 0) for key in ("free", "cached", "buffers")),
        "guest": {
            "exists": domain is not None,
            "running": running,
            "mark": vars(mark) if mark is not None else None,
        },
        "known": {
            one: vars(mark)
            for one, mark in marks.items()
            if mark is not None and mark.cluster == cluster
        },
    }


def gather(parameters: dict[str, Any]) -> dict[str, Any]:
    host = VmHost(parameters)
    facts: dict[str, Any] = {"ssh": "", "libvirt": ""}
    try:
        facts |= shell_facts(host, *(parameters[key] for key in ("image", "disks", "labels")))
    except HostError as error:
        return facts | {"ssh": str(error)}
    try:
        with host.libvirt() as connection:
            facts |= libvirt_facts(connection, parameters["cluster"], parameters["domain"])
    except HostError as error:
        facts["libvirt"] = str(error)
    return facts


def main() -> None:
    arguments = {
        **ARGUMENTS,
        "cluster": {"type": "str", "required": True},
        "domain": {"type": "str", "required": True},
        "image": {"type": "path", "required": True},
        "disks": {"type": "list", "elements": "path", "default": []},
        "labels": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(arguments, supports_check_mode=True)
    module.exit_json(changed=False, **gather(module.params))


if __name__ == "__main__":
    main()
