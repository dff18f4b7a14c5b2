"""A farm of machines from source builds the system that these are made of, with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from deploy_kit import MORPH, NAMES, Cluster
from node_kit import Node
from systems_kit import ASSEMBLED, ROOT, Built
from vmhost_kit import VmHost
from world_kit import World

refused = World.refused()
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(12 * 3600),
    pytest.mark.skipif(bool(refused), reason=refused),
]

BASE = "systems/base-system-x86_64.morph"
BUILD = "systems/build-system-x86_64.morph"
LOOP = "clusters/loop.morph"


def test_farm_builds_what_it_is_made_of(vmhost: VmHost, built: Built, scratch: Path) -> None:
    """A controller and two workers; the toolchain is copied to them, and all else is built.

    They do not sign, since the toolchain that is copied is not signed.
    """
    world = vmhost.world
    built.build(BUILD)
    tree = built.logs / "tree"
    built.run("checkout", str(ROOT / BUILD), "--to", str(tree))
    cluster = Cluster(vmhost, built, scratch / "loop", "loop-", LOOP)
    morph = (ROOT / MORPH).read_text().replace(ASSEMBLED, BUILD)
    signed = "  deploy-defaults:\n"
    assert signed in morph
    world.run("tee", ROOT / LOOP, input=morph.replace(signed, f"{signed}    SIGNATURES: no\n"))
    cluster.play("tests/deploy/playbooks/render.yml")
    nodes = {}
    for number, name in enumerate(NAMES, 10):
        (disk := scratch / f"{name}.disk").mkdir()
        files, key = cluster.state / "trees" / name, cluster.state / "ssh/admin"
        nodes[name] = Node(
            vmhost, cluster.host(name), tree, number, files, scratch, key=key, disk=disk
        )
    cluster.play("tests/deploy/playbooks/running.yml")
    for node in nodes.values():
        assert node.run("systemctl is-system-running --wait") == "running\n"
        node.run("test ! -e /var/lib/dpkg")

    def initiator(*command: str) -> str:
        """Run a command in whose cache the sources and the toolchain are."""
        environment = {**cluster.initiators_environment, "FABRIC_CACHE": str(built.cache)}
        words = ("fabric-initiator", *command)
        return world.run(*words, cwd=built.logs, env=environment, timeout=11 * 3600)

    password = cluster.state / "artifacts/builder"
    own, farm = built.cache / "artifacts", f"https://{cluster.host('controller')}/artifacts"
    copied = ("artifact", "push", str(ROOT / BASE), "toolchain", "--artifacts", str(own))
    print(initiator(*copied, "--to", farm, "--password", str(password)))
    said = initiator("build", str(ROOT / BASE), "--check-digests")
    print(said)
    assert "as in" in said
