"""Ansible module: what a VM host has of what a guest needs."""

from __future__ import annotations

DOCUMENTATION = """
module: vm_host_info
short_description: What a VM host has of what a guest needs
author: The authors of Distbuild (!UNKNOWN)
description:
  - Looks, and changes nothing. What cannot be looked at is told in RV(ssh) and RV(libvirt), not by
    failing, so that named checks may say what is wrong.
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
    description: The name of the guest on O(vm_host).
    type: str
    required: true
  image:
    description: The disk with its system.
    type: path
    required: true
  disks:
    description: More disks.
    type: list
    elements: path
    default: []
  labels:
    description: Labels by which the guest mounts its disks.
    type: list
    elements: str
    default: []
"""

EXAMPLES = """
- name: Look at the VM host
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
  description: Why ssh does not work; empty if it does.
  returned: always
  type: str
libvirt:
  description: Why libvirt does not answer; empty if it does.
  returned: always
  type: str
networks:
  description: The networks of libvirt by name, and whether each is active.
  returned: when libvirt answers
  type: dict
bridges:
  description: The bridges of its kernel by name, each true.
  returned: when ssh works
  type: dict
memory:
  description: The bytes that guests could take.
  returned: when libvirt answers
  type: int
folder:
  description: The folder of the image, as exists, writable, free.
  returned: when ssh works
  type: dict
image_exists:
  description: Whether there is something at the path of the image.
  returned: when ssh works
  type: bool
former_image:
  description: Whether a former image is beside it, so that an upgrade did not come to its end.
  returned: when ssh works
  type: bool
disks:
  description: Of each disk path, exists, usable, kind, format, label and blank.
  returned: when ssh works
  type: list
  elements: dict
format:
  description: Blank disks to format, as path and label.
  returned: when ssh works
  type: list
  elements: dict
disk_problems:
  description: What is wrong with the disks.
  returned: when ssh works
  type: list
  elements: str
guest:
  description: The domain, as exists, running, and the mark of what runs, else of what is defined.
  returned: when libvirt answers
  type: dict
known:
  description: All domains of the cluster, their marks by name.
  returned: when libvirt answers
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.disk_facts import assign, disk_facts
from ..module_utils.guest_xml import read_mark
from ..module_utils.vm_host import ARGUMENTS, HostError, VmHost, find_domain, libvirt

#: Says "exists writable free image former-image", with 1 and 0, and the bridges.
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
    """What the shell of the host sees."""
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
    """What libvirt knows."""
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
