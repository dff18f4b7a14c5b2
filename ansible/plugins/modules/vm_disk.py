"""Ansible module: a filesystem on a blank attached disk."""

from __future__ import annotations

DOCUMENTATION = """
module: vm_disk
short_description: Make a labelled filesystem on a blank disk of a VM host
author: The authors of Distbuild (!UNKNOWN)
description:
  - A disk with a filesystem of that label stays unchanged. The module fails, and writes nothing, if
    the disk contains anything else.
extends_documentation_fragment: [action_common_attributes, distbuild.fabric.vm_host_options]
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: full}
options:
  path:
    description: A block device, or a raw image file.
    type: path
    required: true
  label:
    description: The label of the filesystem, for C(LABEL=) in fstab.
    type: str
    required: true
  filesystem:
    description: Its type.
    type: str
    choices: [ext4, ext3, ext2, xfs, btrfs]
    default: ext4
"""

EXAMPLES = """
- name: Make a filesystem on a blank disk
  distbuild.fabric.vm_disk:
    vm_host: {name: vmhost, user: user}
    path: /dev/vg/worker0_src
    label: src
  delegate_to: localhost
"""

RETURN = """ # nothing of its own """

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.disk_facts import disk_facts
from ..module_utils.vm_host import ARGUMENTS, HostError, VmHost

#: Checks once more that the disk is blank, right before mkfs does the same.
_FORMAT = """
disk=$1 label=$2 kind=$3
as=
test -r "$disk" && test -w "$disk" || as="sudo -n"
PATH=$PATH:/usr/sbin:/sbin
for part in head tail; do
  if test "$($as $part -c 1048576 "$disk" | tr -d '\\0' | head -c 1 | wc -c)" != 0; then
    echo "it is not blank" >&2; exit 1
  fi
done
case $kind in ext*) quiet=-qF ;; xfs) quiet=-q ;; btrfs) quiet=-q ;; esac
$as "mkfs.$kind" $quiet -L "$label" "$disk"
"""


def main() -> None:
    arguments = {
        **ARGUMENTS,
        "path": {"type": "path", "required": True},
        "label": {"type": "str", "required": True},
        "filesystem": {
            "type": "str",
            "default": "ext4",
            "choices": ["ext4", "ext3", "ext2", "xfs", "btrfs"],
        },
    }
    module = AnsibleModule(arguments, supports_check_mode=True)
    given = module.params
    try:
        disk = disk_facts(VmHost(given), given["path"])
        if disk["label"] == given["label"]:
            module.exit_json(changed=False)
        if not disk["blank"]:
            what = disk["type"] or "something"
            module.fail_json(
                msg=f"{given['path']} contains {what}, and only a blank disk is formatted:"
                " attach a blank one, or give this one the label that the guest mounts"
            )
        wanted = f"{given['filesystem']} labelled {given['label']}\n"
        if not module.check_mode:
            VmHost(given).run(_FORMAT, given["path"], given["label"], given["filesystem"])
        module.exit_json(
            changed=True,
            diff={"before_header": given["path"], "before": "blank\n", "after": wanted},
        )
    except HostError as error:
        module.fail_json(msg=f"{given['path']}: {error}")


if __name__ == "__main__":
    main()
