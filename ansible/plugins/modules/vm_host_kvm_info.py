"""Ansible module: whether guests run on the processor of a VM host, or in software."""

from __future__ import annotations

DOCUMENTATION = """
module: vm_host_kvm_info
short_description: Find out whether KVM works on a VM host
author: The authors of Distbuild (!UNKNOWN)
description:
  - Starts a guest of a few instructions under KVM and listens to what it says. The answer holds
    until the host boots anew, and is kept in O(cache).
  - In check mode nothing is started; without an answer kept, KVM is taken to work.
extends_documentation_fragment: [action_common_attributes, distbuild.fabric.vm_host_options]
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: none}
options:
  folder:
    description: Where the guest's disk lies for a moment.
    type: path
    required: true
  cache:
    description: A file on the deploying machine.
    type: path
    required: true
"""

EXAMPLES = """
- name: Find out whether KVM works
  distbuild.fabric.vm_host_kvm_info:
    vm_host: {name: vmhost, user: user}
    folder: /var/lib/libvirt/images
    cache: ~/.local/state/kvm.json
  delegate_to: localhost
"""

RETURN = """
kvm:
  description: Whether it works.
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
