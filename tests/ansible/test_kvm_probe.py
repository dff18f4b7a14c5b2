"""The machine code of the KVM probe equals its assembled source."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ansible_collections.distbuild.fabric.plugins.module_utils import kvm_probe

SOURCE = Path(kvm_probe.__file__).with_suffix(".S")


def test_boot_sector_is_the_assembled_source(tmp_path: Path) -> None:
    subprocess.run(["as", "-o", "probe.o", SOURCE], cwd=tmp_path, check=True)
    link = ["ld", "-Ttext", "0x7c00", "--oformat", "binary", "-o", "probe.bin", "probe.o"]
    subprocess.run(link, cwd=tmp_path, check=True)
    code = (tmp_path / "probe.bin").read_bytes()
    assert kvm_probe.SAYS in code
    assert kvm_probe.boot_sector() == code.ljust(510, b"\0") + b"\x55\xaa"
