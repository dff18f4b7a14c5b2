"""Ansible module: wait until a guest answers to ssh."""

from __future__ import annotations

import socket
import time
from typing import Any

import libvirt
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.vm_host import ARGUMENTS, HostError, VmHost, find_domain

DOCUMENTATION = """
module: vm_wait
short_description: Wait until a guest answers to ssh
author: the authors of Distbuild
description:
  - The guest is looked for at C(address), and if that cannot be resolved or does not answer, at the
    addresses that libvirt's DHCP has given to it.
  - Ends early when the guest does not run any more.
extends_documentation_fragment: [vm_host_options]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
options:
  domain: {type: str, required: true, description: Name of the guest on I(vm_host).}
  address: {type: str, required: true, description: By which it is to be reached.}
  ssh_port: {type: int, default: 22, description: Of its sshd.}
  timeout: {type: int, default: 300, description: Seconds.}
"""

RETURN = """
address: {type: str, returned: success, description: Where it answers.}
elapsed: {type: float, returned: success, description: Seconds that it took.}
"""

_ENDED = {
    libvirt.VIR_DOMAIN_SHUTOFF: "has turned itself off",
    libvirt.VIR_DOMAIN_CRASHED: "has crashed",
    libvirt.VIR_DOMAIN_PAUSED: "was stopped by its host",
}


def greeting(address: str, port: int) -> str:
    """What keeps sshd there from greeting us; "" if it does."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.settimeout(15)
            said = connection.recv(64)
    except OSError as error:
        return str(error)
    return "" if said.startswith(b"SSH-") else "something else than sshd answers there"


def leased(domain: Any) -> list[str]:
    """Addresses that libvirt's own DHCP knows of; none on a bridge."""
    try:
        found = domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
    except libvirt.libvirtError:
        return []
    return [one["addr"] for card in found.values() for one in card["addrs"] or ()]


def wait(connection: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Where the guest answers.  HostError says what it does instead."""
    began = time.monotonic()
    domain = find_domain(connection, given["domain"])
    if domain is None:
        raise HostError(f"there is no guest {given['domain']}")
    while True:
        state = domain.state()[0]
        if state in _ENDED:
            raise HostError(f"the guest {_ENDED[state]}")
        tried = {}
        for address in dict.fromkeys([given["address"], *leased(domain)]):
            tried[address] = greeting(address, given["ssh_port"])
            if not tried[address]:
                return {"address": address, "elapsed": round(time.monotonic() - began, 1)}
        if time.monotonic() - began > given["timeout"]:
            told = "; ".join(f"{address}: {why}" for address, why in tried.items())
            raise HostError(f"no answer to ssh in {given['timeout']} s ({told})")
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
