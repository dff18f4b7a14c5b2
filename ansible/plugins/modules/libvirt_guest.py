"""Ansible module: a guest of a cluster as a libvirt domain."""

from __future__ import annotations

DOCUMENTATION = """
module: libvirt_guest
short_description: Manage a guest of a cluster as a libvirt domain
author: The authors of Distbuild (!UNKNOWN)
description:
  - Runs on the deploying machine and connects to the libvirt of O(vm_host) over SSH.
  - A mark in the metadata of a domain names its cluster and guest. The module fails, and changes
    nothing, if the domain has no mark or the mark of another cluster.
  - A change of a running domain takes effect at its next start; see RV(restart_needed).
  - Disks are never changed.
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: full}
extends_documentation_fragment: [action_common_attributes, distbuild.fabric.vm_host_options]
options:
  state:
    description:
      - V(present) defines the domain. It requires O(memory), O(vcpus), O(image) and O(console).
      - V(started) defines and starts the domain, with the same options.
      - V(stopped) shuts it down, and turns it off after O(timeout) seconds.
      - V(absent) stops it and removes its definition.
    type: str
    choices: [present, started, stopped, absent]
    default: present
  cluster:
    description: The name of the cluster.
    type: str
    required: true
  host:
    description: The name of the guest in the cluster.
    type: str
    required: true
  domain:
    description: The name of the domain on O(vm_host).
    type: str
    required: true
  memory:
    description: Its memory in bytes.
    type: int
  vcpus:
    description: The number of its processors.
    type: int
  image:
    description: The path of its system disk on O(vm_host).
    type: path
  console:
    description: The path of the log of its serial console.
    type: path
  disks:
    description: Attached disks.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Its path on O(vm_host).
        type: str
        required: true
      kind:
        description: Its kind on O(vm_host).
        type: str
        choices: [file, block]
        default: file
      format:
        description: Its format.
        type: str
        choices: [raw, qcow2]
        default: raw
  nics:
    description: Network cards.
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description: The kind of the network. V(user) is the user-mode network of QEMU.
        type: str
        choices: [network, bridge, user]
        default: network
      source:
        description: The name of the network or bridge.
        type: str
        default: default
      model:
        description: The model of the network card.
        type: str
        default: virtio
      mac:
        description: Its MAC address. Empty means one derived from O(cluster) and O(host).
        type: str
        default: ""
  kvm:
    description: Whether KVM runs the guest. If V(false), QEMU emulates the processor.
    type: bool
    default: true
  label:
    description: The version of the system on the image, for the mark.
    type: str
    default: ""
  content:
    description: The digest of the inputs of the image, for the mark.
    type: str
    default: ""
  autostart:
    description: Whether it starts with its host. Unset means no change.
    type: bool
  timeout:
    description: The seconds after which a guest that shuts down is turned off.
    type: int
    default: 120
"""

EXAMPLES = """
- name: Start a guest
  distbuild.fabric.libvirt_guest:
    vm_host: {name: vmhost, user: user}
    state: started
    cluster: farm
    host: worker0
    domain: farm-worker0
    memory: 2147483648
    vcpus: 2
    image: /var/lib/libvirt/images/worker0.img
    console: /var/lib/libvirt/images/worker0.img.console
  delegate_to: localhost

- name: Remove a guest, but not its disks
  distbuild.fabric.libvirt_guest:
    vm_host: {name: vmhost, user: user}
    state: absent
    cluster: farm
    host: worker0
    domain: farm-worker0
  delegate_to: localhost
"""

RETURN = """
mark:
  description:
    - The mark of the domain; null if there is no domain.
    - V(text) is the specification as JSON, and V(spec) is its digest. The other fields are options.
  returned: success
  type: dict
  sample:
    cluster: farm
    host: worker0
    spec: 5f1b7c...
    label: distbuild
    content: 9a0c1e...
    image: /var/lib/libvirt/images/worker0.img
    console: /var/lib/libvirt/images/worker0.img.console
    text: '{"cluster": "farm", ...}'
running:
  description: Whether the domain runs.
  returned: success
  type: bool
restart_needed:
  description: Whether the running domain differs from its definition, so that a restart changes it.
  returned: success
  type: bool
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.guest_xml import Mark, Spec, domain_xml, mark_of, read_mark, spec_of
from ..module_utils.vm_host import ARGUMENTS, HostError, VmHost, find_domain, libvirt

_SPEC = {
    "cluster": {"type": "str", "required": True},
    "host": {"type": "str", "required": True},
    "domain": {"type": "str", "required": True},
    "memory": {"type": "int"},
    "vcpus": {"type": "int"},
    "image": {"type": "path"},
    "console": {"type": "path"},
    "disks": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "str", "required": True},
            "kind": {"type": "str", "choices": ["file", "block"], "default": "file"},
            "format": {"type": "str", "choices": ["raw", "qcow2"], "default": "raw"},
        },
    },
    "nics": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "kind": {
                "type": "str",
                "choices": ["network", "bridge", "user"],
                "default": "network",
            },
            "source": {"type": "str", "default": "default"},
            "model": {"type": "str", "default": "virtio"},
            "mac": {"type": "str", "default": ""},
        },
    },
    "kvm": {"type": "bool", "default": True},
    "label": {"type": "str", "default": ""},
    "content": {"type": "str", "default": ""},
}
_STATES = ["present", "started", "stopped", "absent"]
_NEEDED = ["memory", "vcpus", "image", "console"]


class Guest:
    """A domain and its changes.  Each method records its change in ``before`` and ``after``."""

    def __init__(self, connection: Any, parameters: dict[str, Any], check: bool) -> None:
        self.connection = connection
        self.name: str = parameters["domain"]
        self.timeout: int = parameters["timeout"]
        self.check = check
        self.before: list[str] = []
        self.after: list[str] = []
        self.domain: Any = find_domain(connection, self.name)
        self.mark = self._mark(libvirt.VIR_DOMAIN_XML_INACTIVE)
        if self.domain is not None:
            self._refuse_foreign(parameters["cluster"], parameters["host"])

    def _mark(self, flags: int) -> Mark | None:
        return None if self.domain is None else read_mark(self.domain.XMLDesc(flags))

    def _refuse_foreign(self, cluster: str, host: str) -> None:
        if self.mark is None:
            raise HostError(
                f"a guest {self.name} exists already, and no cluster of this project owns it"
            )
        if (self.mark.cluster, self.mark.host) != (cluster, host):
            raise HostError(
                f"the guest {self.name} is {self.mark.host} of the cluster {self.mark.cluster}"
            )

    @property
    def running(self) -> bool:
        off = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)
        return self.domain is not None and self.domain.state()[0] not in off

    @property
    def outdated(self) -> bool:
        """Whether the running domain differs from its definition, or from the one of check mode."""
        return self.running and self._mark(0) != self.mark

    def define(self, spec: Spec) -> None:
        if self.mark is not None and self.mark.spec == spec.digest:
            return
        self._note(self.mark.text if self.mark is not None else "", spec.text)
        self.mark = mark_of(spec)
        if not self.check:
            self.domain = self.connection.defineXML(domain_xml(spec))

    def autostart(self, wanted: bool) -> None:
        now = bool(self.domain.autostart()) if self.domain is not None else False
        if now != wanted:
            self._note(f"autostart: {now}", f"autostart: {wanted}")
            if not self.check:
                self.domain.setAutostart(int(wanted))

    def start(self) -> None:
        if self.running:
            return
        self._note("stopped", "running")
        if not self.check:
            self.domain.create()

    def stop(self) -> None:
        if not self.running:
            return
        self._note("running", "stopped")
        if self.check:
            return
        deadline = time.monotonic() + self.timeout
        requested = 0.0
        while self.running and time.monotonic() < deadline:
            if time.monotonic() - requested > 10:  # a guest that is still booting ignores a request
                self.domain.shutdown()
                requested = time.monotonic()
            time.sleep(0.5)
        if self.running:
            self.domain.destroy()

    def remove(self) -> None:
        if self.domain is None:
            return
        self._note(self.mark.text if self.mark is not None else "", "")
        if not self.check:
            flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            flags |= libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            self.domain.undefineFlags(flags)
            self.domain = None

    def _note(self, before: str, after: str) -> None:
        self.before.append(before)
        self.after.append(after)


def apply(connection: Any, parameters: dict[str, Any], check: bool) -> dict[str, Any]:
    """Bring the guest into the state of ``parameters``, and return the results of the module."""
    guest = Guest(connection, parameters, check)
    state = parameters["state"]
    if state in ("present", "started"):
        guest.define(spec_of(parameters))
        if parameters["autostart"] is not None:
            guest.autostart(parameters["autostart"])
        if state == "started":
            guest.start()
    else:
        guest.stop()
        if state == "absent":
            guest.remove()
    before, after = ("\n".join([*lines, ""]) for lines in (guest.before, guest.after))
    return {
        "changed": bool(guest.before or guest.after),
        "diff": {"before": before, "after": after},
        "running": guest.running,
        "restart_needed": guest.outdated,
        "mark": vars(guest.mark) if guest.mark is not None else None,
    }


def main() -> None:
    arguments = {
        **ARGUMENTS,
        **_SPEC,
        "state": {"type": "str", "choices": _STATES, "default": "present"},
        "autostart": {"type": "bool"},
        "timeout": {"type": "int", "default": 120},
    }
    needed = [("state", state, _NEEDED) for state in ("present", "started")]
    module = AnsibleModule(arguments, required_if=needed, supports_check_mode=True)
    try:
        with VmHost(module.params).libvirt() as connection:
            module.exit_json(**apply(connection, module.params, module.check_mode))
    except HostError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
