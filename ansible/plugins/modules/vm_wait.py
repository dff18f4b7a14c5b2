"""Ansible module: wait until a guest answers to SSH."""

from __future__ import annotations

DOCUMENTATION = """
module: vm_wait
short_description: Wait until a guest answers to SSH
author: The authors of Distbuild (!UNKNOWN)
description:
  - Tries O(address), and the addresses that the DHCP server of libvirt has leased to the guest.
  - Fails early if the guest does not run any more.
extends_documentation_fragment: [action_common_attributes, distbuild.fabric.vm_host_options]
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: none}
options:
  domain:
    description: The name of the domain on O(vm_host).
    type: str
    required: true
  address:
    description: The expected address of the guest.
    type: str
    required: true
  ssh_port:
    description: The port of its sshd.
    type: int
    default: 22
  timeout:
    description: The seconds after which the module fails.
    type: int
    default: 300
"""

EXAMPLES = """
- name: Wait until the guest answers
  distbuild.fabric.vm_wait:
    vm_host: {name: vmhost, user: user}
    domain: farm-worker0
    address: worker0.example
  delegate_to: localhost
"""

RETURN = """
address:
  description: The address that answered.
  returned: success
  type: str
elapsed:
  description: The seconds until it answered.
  returned: success
  type: float
"""

import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.vm_host import ARGUMENTS, HostError, VmHost, find_domain, libvirt


def greeting(address: str, port: int) -> str:
    """Return why sshd does not answer, or "" if it does."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.settimeout(15)
            said = connection.recv(64)
    except OSError as error:
        return str(error)
    return "" if said.startswith(b"SSH-") else "a service that is not sshd answers"


def leased(domain: Any) -> list[str]:
    """Return the addresses that libvirt's DHCP server has leased; it serves no bridge."""
    try:
        found = domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
    except libvirt.libvirtError:
        return []
    return [one["addr"] for card in found.values() for one in card["addrs"] or ()]


def wait(connection: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the address that answers.  Raises HostError at the timeout or the end of the guest."""
    ended = {
        libvirt.VIR_DOMAIN_SHUTOFF: "has turned itself off",
        libvirt.VIR_DOMAIN_CRASHED: "has crashed",
        libvirt.VIR_DOMAIN_PAUSED: "was stopped by its host",
    }
    began = time.monotonic()
    domain = find_domain(connection, given["domain"])
    if domain is None:
        raise HostError(f"the VM host has no guest {given['domain']}")
    while True:
        state = domain.state()[0]
        if state in ended:
            raise HostError(f"the guest {ended[state]}")
        tried = {}
        for address in dict.fromkeys([given["address"], *leased(domain)]):
            tried[address] = greeting(address, given["ssh_port"])
            if not tried[address]:
                return {"address": address, "elapsed": round(time.monotonic() - began, 1)}
        if time.monotonic() - began > given["timeout"]:
            reasons = "; ".join(f"{address}: {why}" for address, why in tried.items())
            raise HostError(f"no answer to ssh in {given['timeout']} s ({reasons})")
        time.sleep(1)


def main() -> None:
    arguments = {
        **ARGUMENTS,
        "domain": {"type": "str", "required": True},
        "address": {"type": "str", "required": True},
        "ssh_port": {"type": "int", "default": 22},
        "timeout": {"type": "int", "default": 300},
    }
    module = AnsibleModule(arguments, supports_check_mode=True)
    try:
        with VmHost(module.params).libvirt() as connection:
            module.exit_json(changed=False, **wait(connection, module.params))
    except HostError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
