#!/usr/bin/python
"""Ansible module: files, folders and symbolic links, all in one task."""

from __future__ import annotations

DOCUMENTATION = """
module: file_tree
short_description: Write many files in one task
description:
  - Makes files, folders and symbolic links with their parent folders. Removes nothing.
  - A file that replaces another has its owner, if root runs this.
  - With a O(root) other than C(/) it fills a folder for C(fabric-initiator image --files). An image
    and a running machine thus get the same files.
  - A single task is quicker than one task for each file, above all on emulated machines.
extends_documentation_fragment: [action_common_attributes]
author: The authors of Distbuild (!UNKNOWN)
options:
  root:
    description: The folder that the paths are relative to.
    type: path
    default: /
  files:
    description:
      - The entries. An entry without O(files[].content), O(files[].secret) and O(files[].link) is a
        folder.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: "Path below O(root).", type: str, required: true}
      mode:
        description:
          - Octal mode of a file or folder. A file without one gets V(0644). A folder without one
            keeps its mode.
        type: str
      content: {description: "Text of a file.", type: str}
      secret: {description: "Text of a file that output and logs must not show.", type: str}
      link: {description: "Target of a symbolic link.", type: str}
attributes:
  platform: {platforms: posix}
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = """
- name: Write a greeting and a password, and enable a service
  distbuild.fabric.file_tree:
    files:
      - {path: /etc/motd, content: "Hello\\n"}
      - {path: /etc/password, secret: "{{ password }}", mode: "0600"}
      - path: /etc/systemd/system/multi-user.target.wants/hello.service
        link: /usr/lib/systemd/system/hello.service
"""

RETURN = """
paths:
  description: The paths of the changed entries, O(root) included.
  returned: always
  type: list
  elements: str
"""

import os
import stat
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

_FILE = {
    "path": {"type": "str", "required": True},
    "mode": {"type": "str"},
    "content": {"type": "str"},
    "secret": {"type": "str", "no_log": True},
    "link": {"type": "str"},
}


class Module(AnsibleModule):  # type: ignore[misc]  # of a library without types
    def _log_invocation(self) -> None:
        """Logs nothing: Ansible masks a secret of several lines only as a whole."""


class Entry(NamedTuple):
    """A file with its content, a link with its target, or a folder."""

    kind: str
    mode: int | None  # None: any
    content: bytes

    @classmethod
    def wanted(cls, file: dict[str, str | None]) -> Entry:
        """Return the entry that an item of ``files`` describes."""
        for key in ("content", "secret"):
            text = file[key]
            if text is not None:
                return cls("file", int(file["mode"] or "0644", 8), text.encode())
        if file["link"] is not None:
            return cls("link", None, os.fsencode(file["link"]))
        return cls("folder", int(file["mode"], 8) if file["mode"] else None, b"")

    @classmethod
    def found(cls, path: Path) -> Entry | None:
        """Return the entry that exists at ``path``, or None."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            return cls("link", None, os.fsencode(path.readlink()))
        if stat.S_ISDIR(status.st_mode):
            return cls("folder", mode, b"")
        if stat.S_ISREG(status.st_mode):
            return cls("file", mode, path.read_bytes())
        return cls("special file", mode, b"")

    def satisfied_by(self, now: Entry | None) -> bool:
        return now is not None and now._replace(mode=self.mode and now.mode) == self

    def shown(self, secret: bool) -> str:
        """Return the entry as text for a diff."""
        if self.kind == "link":
            return f"link to {os.fsdecode(self.content)}\n"
        text = self.kind + (f", mode {self.mode:04o}\n" if self.mode is not None else "\n")
        if self.kind == "file":
            text += "(secret)\n" if secret else self.content.decode("utf-8", "replace")
        return text

    def put(self, path: Path) -> None:
        """Make the entry at ``path``, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.kind == "folder":
            path.mkdir(exist_ok=True)
            if self.mode is not None:
                path.chmod(self.mode)
            return
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        new = Path(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.content)
                _keep_owner(file.fileno(), path)
                os.fchmod(file.fileno(), self.mode or 0)
                os.fsync(file.fileno())
            if self.kind == "link":
                new.unlink()
                new.symlink_to(os.fsdecode(self.content))
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def _keep_owner(new: int, path: Path) -> None:
    """Give a new file the owner of the one at ``path``, which it replaces, say a service."""
    if os.geteuid() == 0 and path.is_file() and not path.is_symlink():
        former = path.stat()
        os.fchown(new, former.st_uid, former.st_gid)


def main() -> None:
    module = Module(
        {
            "root": {"type": "path", "default": "/"},
            "files": {
                "type": "list",
                "elements": "dict",
                "options": _FILE,
                "mutually_exclusive": [("content", "secret", "link")],
                "required": True,
            },
        },
        supports_check_mode=True,
    )
    paths: list[str] = []
    diff: list[dict[str, Any]] = []
    for file in module.params["files"]:
        path = Path(module.params["root"]) / file["path"].lstrip("/")
        wanted = Entry.wanted(file)
        try:
            now = Entry.found(path)
            if wanted.satisfied_by(now):
                continue
            if now is not None and now.kind != wanted.kind and "folder" in (now.kind, wanted.kind):
                module.fail_json(
                    msg=f"{path} is a {now.kind}, and should be a {wanted.kind}", paths=paths
                )
            if not module.check_mode:
                wanted.put(path)
        except OSError as error:
            module.fail_json(msg=f"{path}: {error.strerror}", paths=paths)
        paths.append(str(path))
        secret = file["secret"] is not None
        diff.append(
            {
                "before_header": str(path),
                "before": now.shown(secret) if now else "",
                "after_header": str(path),
                "after": wanted.shown(secret),
            }
        )
    module.exit_json(changed=bool(paths), paths=paths, diff=diff)


if __name__ == "__main__":
    main()
