"""Ansible module: whether KVM runs guests on a VM host."""

from __future__ import annotations

DOCUMENTATION = """
module: vm_host_kvm_info
short_description: Probe whether KVM works on a VM host
author: The authors of Distbuild (!UNKNOWN)
description:
  - Starts a transient guest of a few instructions under KVM and reads its serial port. The result
    is valid until the host reboots, and is cached in O(cache).
  - In check mode no guest is started. Without a cached result, KVM is assumed to work.
extends_documentation_fragment: [action_common_attributes, distbuild.fabric.vm_host_options]
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: none}
options:
  folder:
    description: The folder on O(vm_host) for the temporary disk of that guest.
    type: path
    required: true
  cache:
    description: The file on the deploying machine that caches the result.
    type: path
    required: true
"""

EXAMPLES = """
- name: Probe KVM
  distbuild.fabric.vm_host_kvm_info:
    vm_host: {name: vmhost, user: user}
    folder: /var/lib/libvirt/images
    cache: ~/.local/state/kvm.json
  delegate_to: localhost
"""

RETURN = """
kvm:
  description: Whether KVM works.
  returned: success
  type: bool
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.kvm_probe import works
from ..module_utils.vm_host import ARGUMENTS, HostError, VmHost


def main() -> None:
    arguments = {
        **ARGUMENTS,
        "folder": {"type": "path", "required": True},
        "cache": {"type": "path", "required": True},
    }
    module = AnsibleModule(arguments, supports_check_mode=True)
    host = VmHost(module.params)
    cache = Path(module.params["cache"])
    try:
        boot = host.run("cat /proc/sys/kernel/random/boot_id").strip()
        try:
            known = json.loads(cache.read_text())
        except (OSError, ValueError):
            known = {}
        if known.get("boot") == boot:
            module.exit_json(changed=False, kvm=known["kvm"])
        if module.check_mode:
            module.exit_json(changed=False, kvm=True)
        with host.libvirt() as connection:
            kvm = works(host, connection, module.params["folder"])
    except HostError as error:
        module.fail_json(msg=str(error))
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps({"boot": boot, "kvm": kvm}))
    module.exit_json(changed=False, kvm=kvm)


if __name__ == "__main__":
    main()
