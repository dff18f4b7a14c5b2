"""Workers of two architectures in one network."""

from __future__ import annotations

import platform

import pytest
from network_kit import Farm, Workstation
from small_definitions import SYSTEM, git

ARM = "systems/arm.morph"
#: Debian's rule for binfmt_misc: Linux keeps the emulator open, so that sandboxes need not have it.
RULE = "/usr/share/qemu/binfmt.d/qemu-aarch64.conf"
IMPORTED = """\
name: things
kind: stratum
chunks:
- name: one
  repo: file://{}
  ref: main
  build-mode: import
"""
SHELL = """\
name: things
kind: stratum
build-depends: []
chunks:
- name: shell
  repo: upstream:shell-amd64
  ref: '1'
  build-mode: import
  build-only: true
  arch:
    aarch64:
      repo: upstream:shell-arm64
- name: links
  repo: file://{}
  ref: main
  build-mode: import
  build-only: true
- name: one
  morph: strata/one.morph
  repo: file://{}
  ref: main
  build-depends: [shell, links]
"""
LORRY = """\
shell-{0}:
  type: debian-packages
  architecture: {0}
  version: '1'
  packages: [busybox-static]
"""


@pytest.fixture
def alice(farm: Farm) -> Workstation:
    """Definitions of a system for x86_64, and of the same for aarch64."""
    alice = farm.workstation("alice")
    root = alice.definitions.root
    (root / "strata/things.morph").write_text(IMPORTED.format(alice.definitions.source))
    pc = (root / SYSTEM).read_text()
    (root / ARM).write_text(pc.replace("small", "arm").replace("x86_64", "aarch64"))
    return alice


def builder(alice: Workstation, system: str) -> str:
    """Who built the chunk ``one`` of a system."""
    found = alice.ask("artifact", "show", "one", "--system", f"../definitions/{system}")
    return str(found["builder"])


def test_farm_builds_each_architecture_on_a_worker_of_it(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.worker("pc", architectures=["x86_64"])
    build = alice.start("build", f"../definitions/{ARM}")
    build.says("no worker is able to do it: pc: it builds x86_64, not aarch64", 120)
    why = alice.run("why", "one").stdout
    assert "one is ready: no worker is able to do it; pc: it builds x86_64, not aarch64" in why
    farm.worker("arm", architectures=["aarch64"])
    code, said = build.ends()
    assert code == 0, said
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert builder(alice, ARM) == "arm"
    assert builder(alice, SYSTEM) == "pc"


def emulating(command: list[str]) -> list[str]:
    """A command in a user namespace of its own, which starts programs for aarch64 in QEMU."""
    place = "/proc/sys/fs/binfmt_misc"
    script = (
        f"mount -t binfmt_misc none {place}; cat {RULE} > {place}/register;"
        f' cat {place}/qemu-aarch64; exec "$@"'
    )
    return ["unshare", "--map-root-user", "--mount", "sh", "-euc", script, "sh", *command]


@pytest.mark.system
def test_worker_builds_under_emulation(farm: Farm, alice: Workstation) -> None:
    """Its sandboxes contain programs of the other architecture alone."""
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 7):
        pytest.skip("before Linux 6.7, only root of the machine sets an emulator, for all programs")
    root = alice.definitions.root
    links = root.parent / "links"
    (links / "usr/bin").mkdir(parents=True)
    for name in ("sh", "mkdir", "uname"):
        (links / "usr/bin" / name).symlink_to("busybox")
    git(links, "init", "-q", "-b", "main")
    git(links, "add", ".")
    git(links, "commit", "-qm", "first")
    text = SHELL.format(links, alice.definitions.source)
    (root / "strata/things.morph").write_text(text)
    (root / "strata/one.morph").write_text(
        "name: one\nkind: chunk\ninstall-commands:\n"
        '- mkdir "$DESTDIR"/etc\n'
        '- echo "$MORPH_ARCH $(uname -m)" > "$DESTDIR"/etc/machine\n'
    )
    for one in ("amd64", "arm64"):
        (root / f"sources/shell-{one}.lorry").write_text(LORRY.format(one))
    done = alice.run("lorry", "update", cwd=root, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    farm.broker()
    farm.worker("pc")
    farm.worker("arm", architectures=["aarch64"], inside=emulating).says("enabled")
    for system, arch, worker in ((SYSTEM, "x86_64", "pc"), (ARM, "aarch64", "arm")):
        done = alice.run("build", f"../definitions/{system}", timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert builder(alice, system) == worker
        out = alice.run("checkout", f"../definitions/{system}", "--to", arch)
        assert out.returncode == 0, out.stderr
        assert (alice.here / arch / "etc/machine").read_text() == f"{arch} {arch}\n"
