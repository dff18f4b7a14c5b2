"""Ansible module: the disk image of a guest, on its VM host."""

from __future__ import annotations

DOCUMENTATION = """
module: vm_image
short_description: Send, replace and remove the image of a guest
author: The authors of Distbuild (!UNKNOWN)
description:
  - An image is sent without its holes, and gets its name only when its digest is correct. It
    contains keys, so other users cannot read it, neither on O(vm_host) nor during the transfer.
  - An upgrade stages an image, promotes it, and then either commits it or rolls it back. The former
    image, O(path).old, exists from the promotion to the end of the upgrade.
extends_documentation_fragment: [action_common_attributes, distbuild.fabric.vm_host_options]
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: full}
options:
  path:
    description: The image on O(vm_host).
    type: path
    required: true
  src:
    description: The image on the deploying machine.
    type: path
  state:
    description:
      - V(present) sends O(src), which is required, to O(path) unless that file exists.
      - V(staged) sends O(src), which is required, to O(path).new.
      - V(promoted) renames O(path).new to O(path). The replaced image becomes O(path).old, unless
        an unfinished upgrade has left one.
      - V(committed) removes O(path).old.
      - V(rolled_back) renames O(path).old to O(path).
      - V(absent) removes all these files, and the log of the console, O(path).console.
    type: str
    choices: [present, staged, promoted, committed, rolled_back, absent]
    default: present
"""

EXAMPLES = """
- name: Send an image
  distbuild.fabric.vm_image:
    vm_host: {name: vmhost, user: user}
    path: /var/lib/libvirt/images/worker0.img
    src: ~/worker0.img
  delegate_to: localhost

- name: Promote the image that an earlier task has staged
  distbuild.fabric.vm_image:
    vm_host: {name: vmhost, user: user}
    path: /var/lib/libvirt/images/worker0.img
    state: promoted
  delegate_to: localhost
"""

RETURN = """ # nothing of its own """

import contextlib
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.vm_host import ARGUMENTS, HostError, VmHost

_PIECE = 1 << 20

#: Unpacks an archive from standard input in a temporary folder beside the image.  Only the user who
#: logs in can read it, because images contain keys.
_RECEIVE = """
umask 077
to=$1 name=$2 digest=$3
folder=$(mktemp -d -- "$to.XXXXXX")
trap 'rm -rf -- "$folder"' EXIT
trap 'exit 1' HUP INT TERM
mkfifo "$folder/archive"
sha256sum < "$folder/archive" > "$folder/digest" &
tee "$folder/archive" | tar -xSf - -C "$folder"
wait
found=$(cut -d' ' -f1 "$folder/digest")
if test "$found" != "$digest"; then
  echo "the image was damaged in transfer: sent $digest, received $found" >&2
  exit 1
fi
sync -- "$folder/$name" 2>/dev/null || sync
mv -f -- "$folder/$name" "$to"
# made here, so that its owner can read it, although QEMU writes it as another user
: >> "${to%.new}.console"
"""
_EXISTS = 'for file; do test -e "$file" && printf 1 || printf 0; done'
_PROMOTE = 'test -e "$1.old" || mv -f -- "$1" "$1.old"; mv -f -- "$1.new" "$1"'
_COMMIT = 'rm -f -- "$1.old"'
_ROLL_BACK = 'mv -f -- "$1.old" "$1"'
_REMOVE = 'rm -f -- "$@"'


@contextlib.contextmanager
def archive(image: Path) -> Iterator[IO[bytes]]:
    """Open the image as a tar archive without its holes."""
    pack = [
        "tar",
        "--sparse",
        "--create",
        "--mode=600",
        "--file=-",
        "-C",
        str(image.parent),
        image.name,
    ]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
        try:
            yield cast("IO[bytes]", tar.stdout)
        finally:
            tar.kill()


def send(host: VmHost, image: Path, to: str) -> None:
    """Send an image to a path, atomically."""
    digest = hashlib.sha256()
    with archive(image) as packed:
        while piece := packed.read(_PIECE):
            digest.update(piece)
    with archive(image) as packed:
        host.run(_RECEIVE, to, image.name, digest.hexdigest(), stdin=packed)


def apply(host: VmHost, given: dict[str, Any], check: bool) -> dict[str, Any]:
    path, state = given["path"], given["state"]
    names = [path, f"{path}.new", f"{path}.old", f"{path}.console"]
    there = [digit == "1" for digit in host.run(_EXISTS, *names)]
    before = [name for name, exists in zip(names, there, strict=True) if exists]
    image, new, old = there[:3]
    changed = {
        "present": not image,
        "staged": True,
        "promoted": new,
        "committed": old,
        "rolled_back": old,
        "absent": bool(before),
    }[state]
    if changed and not check:
        if state in ("present", "staged"):
            send(host, Path(given["src"]), path if state == "present" else f"{path}.new")
        elif state == "absent":
            host.run(_REMOVE, *names)
        else:
            host.run(
                {"promoted": _PROMOTE, "committed": _COMMIT, "rolled_back": _ROLL_BACK}[state], path
            )
    after = {
        "present": [*before, path],
        "staged": [*before, f"{path}.new"],
        "promoted": [path, f"{path}.old", *(name for name in before if name != f"{path}.new")],
        "committed": [name for name in before if name != f"{path}.old"],
        "rolled_back": [path, *(name for name in before if name != f"{path}.old")],
        "absent": [],
    }[state]
    shown = [sorted(set(files)) for files in (before, after if changed else before)]
    texts = ["".join(f"{name}\n" for name in files) for files in shown]
    return {"changed": changed, "diff": {"before": texts[0], "after": texts[1]}}


def main() -> None:
    arguments = {
        **ARGUMENTS,
        "path": {"type": "path", "required": True},
        "src": {"type": "path"},
        "state": {
            "type": "str",
            "choices": ["present", "staged", "promoted", "committed", "rolled_back", "absent"],
            "default": "present",
        },
    }
    needed = [("state", state, ["src"]) for state in ("present", "staged")]
    module = AnsibleModule(arguments, required_if=needed, supports_check_mode=True)
    try:
        module.exit_json(**apply(VmHost(module.params), module.params, module.check_mode))
    except (HostError, OSError) as error:
        module.fail_json(msg=f"{module.params['path']}: {error}")


if __name__ == "__main__":
    main()
