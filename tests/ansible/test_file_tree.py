"""The module file_tree, run by the ansible command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECRET = "first line\nsecond-line-of-a-key\n"


def test_file_tree_writes_a_secret_and_shows_it_nowhere(tmp_path: Path) -> None:
    """Not in the system log either, to which Ansible's modules write their arguments.

    The user of a service can still read a key that replaces another.
    """
    former = tmp_path / "to/key"
    former.parent.mkdir()
    former.write_text("former")
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(former, owner, -1)
    files = [{"path": "/key", "secret": SECRET, "mode": "0600"}, {"path": "/motd", "content": "hi"}]
    given = {"root": str(tmp_path / "to"), "files": files}
    trace = ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=connect,sendto", "-o"]
    ansible = [str(Path(sys.executable).with_name("ansible")), "localhost", "-vvv", "--diff"]
    ansible += ["-m", "distbuild.fabric.file_tree", "-a", json.dumps(given)]
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT),
    }
    done = subprocess.run(
        [*trace, str(tmp_path / "calls"), *ansible],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "second-line" not in done.stdout + done.stderr
    assert former.read_text() == SECRET
    assert former.stat().st_mode & 0o777 == 0o600
    assert former.stat().st_uid == owner
    assert not [
        line for line in (tmp_path / "calls").read_text().splitlines() if "/dev/log" in line
    ]
