"""A worker of its own process: ``scenario.py NAME ROOT BASE [UID]``, for `test_machine`.

Builds in a workspace below ROOT, with the archive BASE as the root of builds, as the user UID if
it is given, and prints the result.
"""

from __future__ import annotations

# An ordinary user may not reach this interpreter's files: load now what others load late.
import concurrent.futures.thread  # noqa: F401
import hashlib
import os
import shutil
import sys
from pathlib import Path

from building_kit import Kit

from fabric.building.archive import FILE, Entry, Packed, pack
from fabric.building.shell import shell
from fabric.errors import FabricError
from fabric.jobs import Blob, Job, Staged

EVERYTHING = (
    "id -u; mkdir -p $DESTDIR/usr/bin; cd $DESTDIR/usr/bin; cp /bin/cat it; chmod 4111 it",
    "cd $DESTDIR/usr/bin; echo x > shut; chmod 0 shut; mkdir dark; echo in > dark/in; chmod 0 dark",
    "ln $DESTDIR/usr/bin/it $DESTDIR/usr/bin/other",
    "echo new > hello; cat hello; mkdir -p lost/inside; chmod 0 lost; chmod 500 .; rm hello",
)
#: Fills the disk for a moment; its error fails no command.
PASSING = "dd if=/dev/zero of=/tmp/big bs=65536 || sleep 0.5; rm /tmp/big"
BEAT = "(while :; do echo x >> /tmp/beat; sleep 0.05; done) & sleep 1000"
#: Secret files of a worker and its users, which no build may see.
SECRETS = (
    *("/etc/distbuild/keys/worker.key_secret", "/etc/ssh/ssh_host_key", "/etc/shadow"),
    *("/root/.ssh/id_ed25519", "/home/someone/.config/distbuild/keys/someone.key_secret"),
    *("/srv/distbuild/secret", "/run/secret", "/var/lib/distbuild/secret", "/opt/secret"),
)
#: Each of them and the worker's environment hold it. In two parts, so that a search skips itself.
MARK = ("top-", "secret")
STEAL = f"""set +x
mark={MARK[0]}; mark=$mark{MARK[1]}
for path in {" ".join(SECRETS)}; do if test -e $path; then echo "sees $path"; bad=1; fi; done
for process in /proc/[0-9]*; do
    if grep -aq $mark $process/environ $process/cmdline; then echo "sees it in $process"; bad=1; fi
done
for place in /*; do
    case $place in /bin|/dev|/lib*|/proc|/sbin|/usr) continue ;; esac
    if grep -aqrs $mark $place; then echo "sees it in $place"; bad=1; fi
done
test -z "$bad"
"""


def job_of(name: str, kit: Kit) -> Job:
    """The job of each scenario."""
    match name:
        case "everything":
            many = {f"file{number}": "" for number in range(100)}  # so many that they are overlaid
            return kit.chunk(source=kit.tree(hello="hi", **many), install=EVERYTHING)
        case "shut":
            shut = "cd $DESTDIR; mkdir -p a/b/c; echo in > a/b/c/f; chmod 0 a/b/c/f a/b/c a/b a"
            lib = kit.chunk("lib", install=[shut])
            kit.build(lib)
            look = "test $(cat /a/b/c/f)$(stat -c %a /a/b/c /a/b /a | tr -d '\\n') = in000"
            return kit.chunk(staged=(kit.base, Staged(lib.key, "low")), build=[look])
        case "fill":
            return kit.chunk(build=["dd if=/dev/zero of=/tmp/big bs=65536"])
        case "almost-fill":
            # fits, but for its archive
            return kit.chunk(install=["head -c 17000000 /dev/urandom > $DESTDIR/big"])
        case "was-full":
            return kit.chunk(configure=[PASSING], build=["false"])
        case "was-full-and-well":
            return kit.chunk(configure=[PASSING], build=["true"])
        case "beat":
            return kit.chunk(build=[BEAT])
        case "ldconfig":
            text = b"#!/bin/sh\nmkdir -p /etc; echo cache > /etc/ld.so.cache\n"
            entries = [
                Entry(b"etc/ld.so.conf", FILE),
                Entry(b"sbin/ldconfig", FILE, 0o755, len(text), data=text),
            ]
            loader = kit.stored("loader", {"loader-misc": pack(entries, kit.root / "spill")})
            staged = (kit.base, loader)
            return kit.chunk(staged=staged, build=["grep cache /etc/ld.so.cache"])
        case "steal":
            return kit.chunk(install=[STEAL])
        case "steal-from-host":
            path = {"PATH": "/usr/bin:/bin"}
            return kit.chunk(mode="test", staged=(), environment=path, install=[STEAL])
        case _:
            return kit.chunk(build=["echo ran"])


def main(name: str, root: Path, archive: Path, uid: int | None = None) -> int:
    data = archive.read_bytes()
    base = Packed(Blob(hashlib.sha256(data).hexdigest(), len(data)), archive)
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    kit = Kit(root, base)
    if name == "shell":  # with a chunk that has this machine's tools
        with kit.workspace:
            host = {"PATH": "/usr/bin:/bin"}
            job = kit.chunk(mode="test", staged=(), environment=host, build=["true"])
            return shell(job, kit.workspace, jobs=1)
    if name == "look-inside":  # of a failed build, when the disk is nearly full
        job = kit.chunk(build=["echo half > made; false"])
        try:
            kit.build(job)
        except FabricError as error:
            print(error, flush=True)
        free = shutil.disk_usage(root).free
        (root / "ballast").write_bytes(bytes(free - (3 << 20)))
        with kit.workspace:
            return shell(job, kit.workspace, jobs=1, argv=["cat", "made"])
    try:
        manifest = kit.build(job_of(name, kit), timeout=None)
        for path, entry in kit.entries(manifest, "thing-bins").items():
            print(f"{path} {entry.type.decode()} {entry.mode:o} {entry.size}")
    except FabricError as error:
        print(f"{type(error).__name__}: {error}\n{kit.log_text}")
        return error.exit_code
    finally:
        kit.workspace.close(patience=100)
        print("left:", *(kit.workspace.root / "tmp").iterdir())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:])))
