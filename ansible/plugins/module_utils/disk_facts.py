"""Facts of a disk of a VM host, and the choice of blank disks for missing labels."""

from __future__ import annotations

from typing import Any

from .vm_host import VmHost

#: Prints kind, size, signature, type, label and content of a disk, a line each.  Content is "00" if
#: the first and last MiB contain only zeros: data of an unknown format is data.
_DISK = """
disk=$1
as=
if test -b "$disk"; then kind=block; elif test -f "$disk"; then kind=file
elif test -e "$disk"; then kind=other; else kind=none; fi
echo "$kind"
if test "$kind" != block && test "$kind" != file; then exit 0; fi
test -r "$disk" && test -w "$disk" || as="sudo -n"
if ! $as test -r "$disk" 2>/dev/null; then echo unreadable; exit 0; fi
PATH=$PATH:/usr/sbin:/sbin
if test "$kind" = block; then size=$($as blockdev --getsize64 "$disk")
else size=$(stat -Lc %s "$disk"); fi
echo "$size"
echo "$($as head -c 4 "$disk" | od -An -tx1 | tr -d ' \\n')"
type=$($as blkid -p -o value -s TYPE -- "$disk" || true)
test -n "$type" || type=$($as blkid -p -o value -s PTTYPE -- "$disk" || true)
echo "$type"
echo "$($as blkid -p -o value -s LABEL -- "$disk" || true)"
start=$($as head -c 1048576 "$disk" | tr -d '\\0' | head -c 1 | wc -c)
end=$($as tail -c 1048576 "$disk" | tr -d '\\0' | head -c 1 | wc -c)
echo "$start$end"
"""
_QCOW2 = "514649fb"


def disk_facts(host: VmHost, path: str) -> dict[str, Any]:
    """Return the facts of an attached disk."""
    lines = host.run(_DISK, path).split("\n")
    kind = lines[0]
    facts: dict[str, Any] = {"path": path, "exists": kind != "none", "kind": kind}
    facts |= {"usable": False, "format": "raw", "type": "", "label": "", "blank": False}
    if len(lines) < 6:
        return facts
    size, magic, type_, label, content = lines[1:6]
    qcow2 = magic == _QCOW2
    return facts | {
        "usable": True,
        "size": int(size),
        "format": "qcow2" if qcow2 else "raw",
        "type": "qcow2" if qcow2 else type_,
        "label": label,
        "blank": not qcow2 and not type_ and content == "00" and int(size) > 0,
    }


def assign(
    disks: list[dict[str, Any]], labels: list[str]
) -> tuple[list[dict[str, str]], list[str]]:
    """Return the filesystems to make on blank disks, and messages about problems.

    Labels that no disk has go to the blank disks, in order.
    """
    problems = [_unusable(disk) for disk in disks if not disk["usable"]]
    if problems:
        return [], problems
    blank = [disk["path"] for disk in disks if disk["blank"]]
    missing = [label for label in labels if label not in [disk["label"] for disk in disks]]
    plan = [{"path": path, "label": label} for path, label in zip(blank, missing, strict=False)]
    for label in missing[len(blank) :]:
        holds = "; ".join(f"{disk['path']} contains {_content(disk)}" for disk in disks)
        problems.append(
            f"no disk is labelled {label!r}, and none is blank to get that label ({holds}):"
            " attach a blank one, or give the label to the right one"
        )
    return plan, problems


def _unusable(disk: dict[str, Any]) -> str:
    if not disk["exists"]:
        return f"the disk {disk['path']} does not exist: make it, or name another in ATTACH_DISKS"
    if disk["kind"] == "other":
        return f"{disk['path']} is neither a block device nor a file"
    return (
        f"the user who logs in can read the disk {disk['path']} neither directly nor with"
        " `sudo -n`: allow one of them, so that deploying can check what the disk contains"
    )


def _content(disk: dict[str, Any]) -> str:
    what = disk["type"] or "something unknown"
    return f"{what} labelled {disk['label']!r}" if disk["label"] else what
