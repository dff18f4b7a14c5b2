"""The trove over ssh: a real sshd on loopback, with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from network_kit import Farm, free_ports
from waiting import until

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
ACCESS = Path(__file__).parents[2] / "ansible/roles/trove/files/trove-access"
pytestmark = pytest.mark.skipif(SSHD is None, reason="needs the Debian package openssh-server")

#: of the trove's repository: git dies once, when it has locked a source's refs
DIES = """\
#!/bin/sh
read old new ref
case "$1 $ref" in
  "prepared refs/pins/"*) [ -e died ] || { touch died; kill -9 $PPID; } ;;
esac
"""
CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {root}/host
AuthorizedKeysFile {root}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
"""


@pytest.fixture
def served(farm: Farm) -> Farm:
    """A farm with its trove behind ssh."""
    root = farm.root / "ssh"
    root.mkdir()
    for name in ("host", "user", "stranger"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)]
        subprocess.run(make, check=True)
    command = f"{ACCESS} write {farm.trove}"
    key = (root / "user.pub").read_text()
    (root / "authorized").write_text(f'restrict,command="{command}" {key}')
    port = free_ports()
    (root / "config").write_text(CONFIG.format(port=port, root=root))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    assert SSHD is not None
    serve = [SSHD, "-D", "-e", "-f", str(root / "config")]
    server = farm.start(serve, root, dict(os.environ), "sshd")
    server.says("Server listening")
    host_key = " ".join((root / "host.pub").read_text().split()[:2])
    (root / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    farm.trove_url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{farm.trove}"
    farm.ssh = {"ssh-key": str(root / "user"), "known-hosts": str(root / "known")}
    return farm


def test_trove_build_orders_travel_over_ssh(served: Farm) -> None:
    served.broker()
    served.worker("w1")
    alice = served.workstation("alice")
    alice.definitions.write(one="echo over ssh")
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "over ssh" in alice.log("one")


def test_trove_access_errors_say_why(served: Farm) -> None:
    served.broker()
    alice = served.workstation("alice")
    until(lambda: alice.run("list").returncode == 0)
    alice.definitions.write(one="true")
    (served.root / "nobody").write_text("")
    alice.configure(**{"known-hosts": str(served.root / "nobody")})
    done = alice.build()
    assert done.returncode == 1
    assert "is on a host whose key is not known" in done.stderr
    assert f"put it into {served.root}/nobody" in done.stderr
    alice.configure(**{"ssh-key": str(served.root / "ssh/stranger")})
    done = alice.build()
    assert done.returncode == 1
    assert f"does not accept {served.root}/ssh/stranger" in done.stderr


def test_trove_that_is_away_is_waited_for(served: Farm) -> None:
    served.broker()
    served.worker("w1")
    alice = served.workstation("alice")
    alice.definitions.write(one="echo over ssh")
    [sshd] = [program for program in served.programs if program.name == "sshd"]
    sshd.kill()
    stopped, waits = alice.start_build(), alice.start_build()
    stopped.says("cannot be reached: is 127.0.0.1 up, and the network?")
    stopped.says("retrying for 5 min")
    stopped.signal(signal.SIGINT)
    assert stopped.ends()[0] == 130
    alice.configure(patience="1")
    done = alice.build()
    assert done.returncode == 4
    assert "cannot be reached: is 127.0.0.1 up, and the network?" in done.stderr
    waits.says("retrying for 5 min")
    command = [str(word) for word in sshd.process.args]  # type: ignore[union-attr]
    served.start(command, served.root, dict(os.environ), "sshd")
    waits.says("the trove is back")
    code, said = waits.ends()
    assert code == 0, said


def test_trove_locks_of_a_dead_trove_are_released(served: Farm) -> None:
    """A lock is removed when it is old; a build waits until then."""
    hook = served.trove / "hooks/reference-transaction"
    hook.write_text(DIES)
    hook.chmod(0o755)
    served.broker()
    served.worker("w1")
    alice = served.workstation("alice")
    alice.definitions.write(one="true")
    alice.definitions.by_lorry()
    build = alice.start_build()
    build.says("is locked by another push, or by one that died")
    for lock in served.trove.rglob("*.lock"):
        os.utime(lock, (0, time.time() - 150))
    build.says("the trove is back")
    code, said = build.ends()
    assert code == 0, said
    assert not list(served.trove.rglob("*.lock"))
