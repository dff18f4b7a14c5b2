"""Ansible module: the last lines of a guest's serial console."""

from __future__ import annotations

DOCUMENTATION = """
module: vm_console_info
short_description: Read the last lines of a guest's console
author: The authors of Distbuild (!UNKNOWN)
description:
  - Never fails, so that a message about another failure can contain the console. If the log
    cannot be read, RV(text) is the reason.
extends_documentation_fragment: [action_common_attributes, distbuild.fabric.vm_host_options]
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: none}
options:
  path:
    description: The log of the console on O(vm_host).
    type: path
    required: true
  lines:
    description: The maximum number of lines.
    type: int
    default: 25
"""

EXAMPLES = """
- name: Read the end of the console
  distbuild.fabric.vm_console_info:
    vm_host: {name: vmhost, user: user}
    path: /var/lib/libvirt/images/worker0.img.console
  delegate_to: localhost
  register: console
"""

RETURN = """
text:
  description: The lines without control sequences, or the reason why the log cannot be read.
  returned: always
  type: str
"""

import re

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.vm_host import ARGUMENTS, HostError, VmHost

_TAIL = 'tail -c 20000 -- "$1" 2>/dev/null || sudo -n tail -c 20000 -- "$1"'
#: Colours, cursor movements and other sequences that a terminal would execute.
_CONTROL = re.compile(r"\x1b(\[[0-9;?=]*[A-Za-z]|.)|[^\n\t -~\x80-\U0010ffff]")


def main() -> None:
    arguments = {
        **ARGUMENTS,
        "path": {"type": "path", "required": True},
        "lines": {"type": "int", "default": 25},
    }
    module = AnsibleModule(arguments, supports_check_mode=True)
    path = module.params["path"]
    try:
        text = _CONTROL.sub("", VmHost(module.params).run(_TAIL, path))
    except HostError as error:
        text = f"{path} on {module.params['vm_host']['name']} cannot be read: {error}"
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    module.exit_json(changed=False, text="\n".join(lines[-module.params["lines"] :]))


if __name__ == "__main__":
    main()
