"""What the modules that speak with a VM host have in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = """
options:
  vm_host:
    description: The machine that runs guests, as ssh reaches it.
    type: dict
    required: true
    suboptions:
      name:
        description: Its name or address.
        type: str
        required: true
      user:
        description: Who logs in; ssh's default if empty.
        type: str
        default: ""
      port:
        description: The port of its sshd; ssh's default if 0.
        type: int
        default: 0
  ssh_executable:
    description:
      - The program that connects. Its own configuration tells it anything special.
      - The environment variable E(ANSIBLE_SSH_EXECUTABLE) names another one.
    type: str
    default: ssh
  uri:
    description: Another libvirt than the one of O(vm_host).
    type: str
    default: ""
requirements: [libvirt-python]
"""
