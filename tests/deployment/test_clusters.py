"""Cluster morphs."""

from __future__ import annotations

import pytest
from definitions_kit import reader, small, spec, stratum

from fabric.deployment.cluster import Cluster, load_cluster
from fabric.errors import DefinitionsError

HEAD = "name: c\nkind: cluster\nsystems:\n- morph: systems/s.morph\n"
KVM_LINES = "type: extensions/kvm\n      location: kvm+ssh://h/g/p\n      B: 2"
KVM = "type: extensions/kvm, location: 'kvm+ssh://h/g/p'"


def cluster(text: str) -> Cluster:
    files = small(x=stratum("x", spec("a"))) | {"clusters/c.morph": text}
    return load_cluster(reader(files), "clusters/c.morph")


def wrong(text: str) -> list[str]:
    with pytest.raises(DefinitionsError) as caught:
        cluster(text)
    return [str(problem) for problem in caught.value.problems]


def test_cluster_network() -> None:
    """The morph of the guide: defaults, anchors, truth values, numbers."""
    found = cluster(
        """\
name: network
kind: cluster
description: A network
systems:
- morph: systems/s.morph
  deploy-defaults:
    CONTROLLERHOST: &host controller.example
    DISTBUILD_CONTROLLER: no
    DISTBUILD_WORKER: yes
    DISK_SIZE: 5G
    VCPUS: 2
    EMPTY:
    type: extensions/kvm
  deploy:
    controller:
      location: kvm+ssh://user@vmhost/controller/controller.img
      DISTBUILD_CONTROLLER: yes
      HOSTNAME: *host
      VCPUS: 4
    worker0:
      type: extensions/rawdisk
      location: worker0.img
      upgrade-type: extensions/ssh-rsync
      upgrade-location: root@worker0
      partial-deploy-components: [zlib]
      LIST: [{ip: a}]
  subsystems:
  - morph: systems/s.morph
    deploy:
      inner: {type: extensions/initramfs, location: boot/initramfs.gz}
"""
    )
    assert (found.name, found.description, found.path) == (
        "network",
        "A network",
        "clusters/c.morph",
    )
    deployments = found.deployments()
    assert list(deployments) == ["controller", "worker0"]
    system, controller = deployments["controller"]
    assert system.morph == "systems/s.morph"
    assert controller.type == "extensions/kvm"
    assert controller.location == "kvm+ssh://user@vmhost/controller/controller.img"
    assert controller.line == 15
    assert controller.settings == {
        "CONTROLLERHOST": "controller.example",
        "DISTBUILD_CONTROLLER": "True",
        "DISTBUILD_WORKER": "True",
        "DISK_SIZE": "5G",
        "VCPUS": "4",
        "EMPTY": "",
        "HOSTNAME": "controller.example",
    }
    _, worker = deployments["worker0"]
    assert worker.settings["VCPUS"] == "2"
    assert worker.settings["LIST"] == "[{'ip': 'a'}]"
    assert (worker.upgrade_type, worker.upgrade_location) == (
        "extensions/ssh-rsync",
        "root@worker0",
    )
    assert worker.components == ("zlib",)
    assert system.subsystems[0].deployments[0].name == "inner"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD,
            "4: system systems/s.morph is not deployed anywhere: name its deployments in 'deploy'",
        ),
        (
            f"{HEAD}  deploy: []",
            "5: system systems/s.morph: 'deploy' must be a mapping, not a list",
        ),
        (f"{HEAD}  deploy: {{a: b}}", "5: deployment a must be a mapping, not the text 'b'"),
        (
            f"{HEAD}  deploy: {{a: {{}}}}",
            "5: deployment a: the fields 'type' and 'location' are miss",
        ),
        (f"{HEAD}  deploy: {{a: {{type: t}}}}", "5: deployment a: the field 'location' is missing"),
        (
            f"{HEAD}  deploy: {{a: {{{KVM}, upgrade-location: l}}}}",
            "5: deployment a: the field 'upgrade-type' is missing",
        ),
        (
            f"{HEAD}  deploy: {{a: {{{KVM}}}}}\n  subsystems:\n  - morph: systems/s.morph\n"
            f"    deploy: {{a: {{{KVM}}}}}",
            "8: deployment a is there already in line 5: rename one of them",
        ),
        (
            f"{HEAD}  deploy: {{a: {{{KVM}}}}}\n  deploys: {{}}",
            "6: system systems/s.morph: unknown field 'deploys'; did you mean 'deploy'?",
        ),
        (
            f"{HEAD}  deploy: {{a: {{{KVM}}}}}\n  deploy-defaults: x",
            "6: system systems/s.morph: deploy-defaults must be a mapping, not the text 'x'",
        ),
        ("name: c\nkind: cluster", "1: cluster c: the field 'systems' is missing"),
        (
            "name: c\nkind: cluster\nsystems: x",
            "3: cluster c: 'systems' must be a list, not the text",
        ),
        (
            "name: c\nkind: cluster\nsystems: [x]",
            "3: cluster c: an entry of 'systems' must be a map",
        ),
        ("name: c\nkind: cluster\nsystem: []", "1: cluster c: the field 'systems' is missing"),
        ("name: c\nkind: system", "2: this is a system, not a cluster"),
        (
            HEAD.replace("systems/s.", "systems/t.") + f"  deploy: {{a: {{{KVM}}}}}",
            "4: the cluster names the file systems/t.morph, which does not exist",
        ),
        (
            HEAD.replace("systems/s.", "strata/x.") + f"  deploy: {{a: {{{KVM}}}}}",
            "4: the cluster names the file strata/x.morph, which is a stratum, not a system",
        ),
    ],
)
def test_cluster_mistakes(text: str, message: str) -> None:
    assert wrong(text)[0].startswith(f"clusters/c.morph:{message}")


def test_cluster_missing_file_and_version() -> None:
    with pytest.raises(DefinitionsError, match=r"clusters/d\.morph:1: there is no such file"):
        load_cluster(reader({"VERSION": "version: 7"}), "clusters/d.morph")
    with pytest.raises(DefinitionsError, match=r"VERSION:1: there is no such file"):
        load_cluster(reader({}), "clusters/d.morph")


def test_cluster_lines_of_settings() -> None:
    found = cluster(f"{HEAD}  deploy-defaults:\n    A: 1\n  deploy:\n    a:\n      {KVM_LINES}")
    _, deployment = found.deployments()["a"]
    assert {key: deployment.lines[key] for key in ("A", "type", "B")} == {
        "A": 6,
        "type": 9,
        "B": 11,
    }
