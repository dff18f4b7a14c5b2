"""deploy-cluster.yml writes the files of deployments of the types rawdisk and tar."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from small_definitions import lay_out, remember_host_tools, write_chunks

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CLUSTER = """\
name: files
kind: cluster
systems:
- morph: systems/small.morph
  deploy-defaults: {HOSTNAME: here}
  deploy:
    archive:
      type: tar
      location: out/system
      FSTAB_A: /dev/vdb /srv ext4
      NETWORK_CONFIG: eth0:dhcp
    disk: {type: extensions/rawdisk, location: out/system.img, DISK_SIZE: 64M}
    net: {type: nfsboot, location: there}
"""


@pytest.fixture
def definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A built system with something like a kernel, and its cluster."""
    root = tmp_path / "definitions"
    lay_out(root, tmp_path / "source")
    install = 'mkdir -p "$DESTDIR/boot"; echo kernel > "$DESTDIR/boot/vmlinuz"'
    write_chunks(root, tmp_path / "source", {"kernel": install})
    (root / "clusters").mkdir()
    (root / "clusters/files.morph").write_text(CLUSTER)
    remember_host_tools(tmp_path / "cache")
    monkeypatch.setenv("FABRIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FABRIC_CONFIG", "/dev/null")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    build = [str(BIN / "fabric-initiator"), "build", "systems/small.morph"]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    return root


def deploy(definitions: Path) -> str:
    cluster = definitions / "clusters/files.morph"
    done = subprocess.run(
        [BIN / "ansible-playbook", "deploy-cluster.yml", "-e", f"cluster={cluster}"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_files_are_written_once(definitions: Path, tmp_path: Path) -> None:
    assert "deployment net: nfsboot is not deployable here, and is left out" in deploy(definitions)
    out = definitions / "out"
    assert sorted(file.name for file in out.iterdir()) == ["system", "system.img"]
    assert (out / "system.img").stat().st_size == 64 << 20
    with tarfile.open(out / "system") as archive:
        texts = {}
        for name in ("etc/hostname", "etc/fstab", "etc/systemd/network/50-eth0.network"):
            content = archive.extractfile(name)
            assert content is not None
            texts[name] = content.read().decode()
        assert "boot/vmlinuz" in archive.getnames()
        assert "root/.ssh/authorized_keys" not in archive.getnames()
    assert texts["etc/hostname"] == "here\n"
    assert texts["etc/fstab"].endswith("/dev/vdb /srv ext4\n")
    assert "DHCP=yes" in texts["etc/systemd/network/50-eth0.network"]
    state = tmp_path / "state/distbuild/clusters/files"
    assert [one for one in state.rglob("*") if one.is_file()] == []
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert "out/system exists, and stays as it is" in deploy(definitions).replace("\n        ", " ")
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
