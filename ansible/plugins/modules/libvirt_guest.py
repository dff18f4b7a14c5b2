"""Ansible module: a guest of a cluster as a libvirt domain."""

from __future__ import annotations

import time
from typing import Any

import libvirt
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.guest_xml import Mark, Spec, domain_xml, mark_of, read_mark, spec_of
from ansible.module_utils.vm_host import ARGUMENTS, HostError, VmHost, find_domain

DOCUMENTATION = """
module: libvirt_guest
short_description: A virtual machine of a cluster
author: the authors of Distbuild
description:
  - Runs on the deploying machine and speaks with the libvirt of C(vm_host) over ssh.
  - A domain is known again by a mark in its metadata. One of the same name without that mark, or
    with that of another cluster, is refused and left alone.
  - C(present) defines it; C(started) starts it as well, if it is stopped; C(stopped) shuts it down,
    and turns it off when C(timeout) is over; C(absent) removes the definition. Disks stay what and
    where they are.
  - A change of a running domain holds from its next start; C(restart_needed) says so.
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
extends_documentation_fragment: [vm_host_options]
options:
  state:
    description: What is wanted.
    type: str
    choices: [present, started, stopped, absent]
    default: present
  cluster: {type: str, required: true, description: Name of the cluster.}
  host: {type: str, required: true, description: Name of the guest in it.}
  domain: {type: str, required: true, description: Name of the guest on C(vm_host).}
  memory: {type: int, description: Bytes.}
  vcpus: {type: int, description: Processors.}
  image: {type: path, description: The disk with its system.}
  console: {type: path, description: The file that gets what its serial console says.}
  disks: {type: list, elements: dict, description: More disks, as path, kind and format.}
  nics: {type: list, elements: dict, description: Network cards, as kind, source, model, mac.}
  kvm: {type: bool, description: Whether the processor runs it, or software.}
  label: {type: str, description: Version of the system on the image.}
  content: {type: str, description: Digest of what the image was made from.}
  autostart: {type: bool, description: Whether it starts with its host.}
  timeout: {type: int, default: 120, description: Seconds that it has to shut down.}
"""

RETURN = """
mark: {type: dict, returned: success, description: What the domain says about itself.}
running: {type: bool, returned: success, description: Whether it runs in the end.}
restart_needed: {type: bool, returned: success, description: Whether it runs as it was before.}
"""

_SPEC = {
    "cluster": {"type": "str", "required": True},
    "host": {"type": "str", "required": True},
    "domain": {"type": "str", "required": True},
    "memory": {"type": "int"},
    "vcpus": {"type": "int"},
    "image": {"type": "path"},
    "console": {"type": "path"},
    "disks": {"type": "list", "elements": "dict", "default": []},
    "nics": {"type": "list", "elements": "dict", "default": []},
    "kvm": {"type": "bool", "default": True},
    "label": {"type": "str", "default": ""},
    "content": {"type": "str", "default": ""},
}
_STATES = ["present", "started", "stopped", "absent"]
_NEEDED = ["memory", "vcpus", "image", "console"]
_OFF = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)
_INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE


class Guest:
    """A domain on its way to what it is asked to be.  Each step says what it changes."""

    def __init__(self, connection: Any, parameters: dict[str, Any], check: bool) -> None:
        self.connection = connection
        self.name: str = parameters["domain"]
        self.timeout: int = parameters["timeout"]
        self.check = check
        self.before: list[str] = []
        self.after: list[str] = []
        self.domain = find_domain(connection, self.name)
        self.mark = self._mark(_INACTIVE)
        if self.domain is not None:
            self._refuse_foreign(parameters["cluster"], parameters["host"])

    def _mark(self, flags: int) -> Mark | None:
        return None if self.domain is None else read_mark(self.domain.XMLDesc(flags))

    def _refuse_foreign(self, cluster: str, host: str) -> None:
        if self.mark is None:
            raise HostError(f"a guest {self.name} is there already that was not made by this")
        if (self.mark.cluster, self.mark.host) != (cluster, host):
            raise HostError(
                f"the guest {self.name} is {self.mark.host} of the cluster {self.mark.cluster}"
            )

    @property
    def running(self) -> bool:
        return self.domain is not None and self.domain.state()[0] not in _OFF

    @property
    def outdated(self) -> bool:
        """Whether it runs otherwise than it is defined now, or would be."""
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
        asked = 0.0
        while self.running and time.monotonic() < deadline:
            if time.monotonic() - asked > 10:  # one that is just starting does not hear it
                self.domain.shutdown()
                asked = time.monotonic()
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
    """Make the guest what ``parameters`` ask for; what the module answers."""
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
