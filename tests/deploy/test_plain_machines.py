"""A farm on existing machines, made by the commands of the tutorial."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from deploy_kit import tiny_definitions
from node_kit import Node
from signatures_kit import signers
from systems_kit import ROOT
from vmhost_kit import DOMAIN, VmHost
from world_kit import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

MACHINES = ("controller", "worker0", "worker1")


def blocks(page: str, section: str = "") -> list[str]:
    """Return the commands of a page, or of a section, with the names of these machines."""
    text = (ROOT / "docs" / page).read_text()
    if section:
        text = text.partition(section)[2].partition("\n## ")[0]
    found = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)
    return [
        re.sub(r"(\$?\w+)\.example", rf"plain-\1.{DOMAIN}", block)
        for language, block in found
        if not language
    ]


def test_farm_without_vms_by_the_tutorial(vmhost: VmHost, tree: Path, scratch: Path) -> None:
    world = vmhost.world
    files = scratch / "plain"
    (files / "root/.ssh").mkdir(parents=True, mode=0o700)
    (files / "etc/systemd/network").mkdir(parents=True)
    key = world.run("cat", "/root/.ssh/id_ed25519.pub")
    (files / "root/.ssh/authorized_keys").write_text(key)
    nodes = {
        name: Node(vmhost, f"plain-{name}.{DOMAIN}", tree, number, files, scratch)
        for number, name in enumerate(MACHINES, 30)
    }
    for node in nodes.values():
        world.run("ssh", "-o", "StrictHostKeyChecking=accept-new", f"root@{node.name}", "true")
    install, *rest = blocks("tutorial/a-farm-on-three-machines.md")
    assert "pip install" in install  # the machines of the test have it already
    environment = {"USER": "ann", "XDG_CONFIG_HOME": "", "HOME": "/root"}
    follow = ["bash", "-euo", "pipefail", "-c", "\n".join(rest)]
    said = world.run(*follow, cwd=ROOT, env=environment, timeout=300)

    def workers() -> str:
        return world.run("fabric-initiator", "workers", cwd=scratch, env=environment)

    until(lambda: workers().count(" idle ") == 2, 120, lambda: said + workers())
    sign = blocks("how-to/sign-artifacts.md", "\n## On a farm without VMs\n")
    world.run("bash", "-euo", "pipefail", "-c", "\n".join(sign), cwd=ROOT)
    until(lambda: workers().count(" idle ") == 2, 120, workers)
    definitions = tiny_definitions(scratch / "plain-tiny", 4, "true")
    build: list[str | Path] = ["fabric-initiator", "build", definitions / "systems/tiny.morph"]
    assert "tiny is built" in world.run(*build, cwd=scratch, env=environment, timeout=300)
    trusted = scratch / "plain-trusted"
    trusted.mkdir()
    for name in MACHINES:
        public = nodes["worker0"].run(f"cat /etc/distbuild/trusted/{name}.pub")
        (trusted / f"{name}.pub").write_text(public)
    signed = signers(nodes["controller"].run, trusted)
    assert {by for _, by in signed} <= {"worker0", "worker1"}
    assert all(by == manifest.builder for manifest, by in signed)
    install, *rest = blocks("how-to/serve-the-web-page.md", "\n## A farm without VMs\n")
    assert "pip install" in install
    world.run("bash", "-euo", "pipefail", "-c", "\n".join(rest), cwd=ROOT, env=environment)
    controller, certificate = nodes["controller"], scratch / "plain-page.pem"
    certificate.write_text(controller.run("cat /etc/distbuild/web/certificate.pem"))
    password = controller.run("cat /etc/distbuild/web/password").strip()
    curl: list[str | Path] = ["curl", "-s", "--cacert", certificate]
    curl.append(f"https://{controller.name}:8443/?format=json")

    def page() -> str:
        return world.run(*curl, "--user", f"viewer:{password}")

    until(lambda: '"name":"worker1"' in page(), 120, page)
    assert "401 Authorization Required" in world.run(*curl)
    push = ["git", "push", f"ssh://git@plain-controller.{DOMAIN}/srv/trove/trove.git", "HEAD:x"]
    ssh = {"GIT_SSH_COMMAND": f"ssh -i {ROOT}/worker.key -o IdentitiesOnly=yes"}
    assert world.attempt(*push, cwd=definitions, env=ssh).returncode != 0
    for name, node in nodes.items():
        own = "broker" if name == "controller" else name
        keys = [f"/etc/distbuild/keys/{own}.key_secret"]
        if name == "controller":
            keys.append("/etc/distbuild/web/web-page.key_secret")
        found = node.run("find /etc/distbuild -name '*key_secret' -o -name worker.key -perm /077")
        assert sorted(found.split()) == keys
