"""Documentation of the options that all modules for VM hosts share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = """
options:
  vm_host:
    description: The machine that runs guests.
    type: dict
    required: true
    suboptions:
      name:
        description: Its name or address for SSH.
        type: str
        required: true
      user:
        description: The user who logs in. Empty means SSH's default.
        type: str
        default: ""
      port:
        description: The port of its sshd. 0 means SSH's default.
        type: int
        default: 0
  ssh_executable:
    description:
      - The SSH client. It reads its usual configuration.
      - The environment variable E(ANSIBLE_SSH_EXECUTABLE) changes the default.
    type: str
    default: ssh
  uri:
    description: A libvirt URI. Empty means the system instance of O(vm_host), over SSH.
    type: str
    default: ""
requirements: [libvirt-python]
"""
