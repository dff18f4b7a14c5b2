"""The guests of a cluster morph: typed settings, and mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from definitions_kit import reader, small, spec, stratum

from fabric.deployment.cluster import load_cluster
from fabric.deployment.guest import Guest
from fabric.deployment.guests import guests
from fabric.errors import DefinitionsError

ROOT = Path(__file__).parents[2]
GUIDE = {
    "trove_id": "trove",
    "trove_url": "trove.example",
    "controller_url": "controller.example",
    "worker0_url": "w0.example",
    "worker1_url": "w1.example",
}
HEAD = "name: c\nkind: cluster\nsystems:\n- morph: systems/s.morph\n  deploy:\n"


def machine(name: str = "a", host: str = "h", image: str = "/i", **settings: str) -> str:
    """A deployment of five lines or more."""
    lines = [f"    {name}:", "      type: extensions/kvm"]
    lines += [f"      location: kvm+ssh://{host}/{name}{image}", "      DISK_SIZE: 1G"]
    return "\n".join([*lines, *(f"      {key}: {text}" for key, text in settings.items())]) + "\n"


def load(text: str, overrides: dict[str, str] | None = None, **variables: str) -> dict[str, Guest]:
    files = small(x=stratum("x", spec("a"))) | {"clusters/c.morph": text}
    cluster = load_cluster(reader(files), "clusters/c.morph")
    return {guest.name: guest for guest in guests(cluster, variables, overrides or {})[0]}


def wrong(text: str, overrides: dict[str, str] | None = None, **variables: str) -> list[str]:
    with pytest.raises(DefinitionsError) as caught:
        load(text, overrides, **variables)
    return [str(problem).removeprefix("clusters/c.morph:") for problem in caught.value.problems]


def test_guests_of_the_guide() -> None:
    """The morph of the guide, which is in clusters/."""

    def read(path: str) -> bytes | None:
        file = ROOT / path
        return file.read_bytes() if file.is_file() else None

    cluster = load_cluster(read, "clusters/distbuild-cluster.morph")
    found, findings = guests(cluster, GUIDE, {})
    assert findings.warnings == []
    controller, worker, _ = found
    assert (controller.role, controller.group, worker.role) == (
        "controller",
        "controllers",
        "worker",
    )
    assert controller.workers == ("w0.example", "w1.example")
    assert controller.mounts == ()
    assert controller.location.image == "/path/to/vm/controller_vm.img"
    assert (worker.location.user, worker.location.host) == ("user", "vmhost")
    assert (worker.location.guest, worker.location.port) == ("distbuild-worker0", 0)
    assert (worker.disk_size, worker.ram_size, worker.vcpus) == (5 << 30, 2 << 30, 2)
    assert worker.disks == ("/dev/vg/worker0_src",)
    (mount,) = worker.mounts
    assert (mount.label, mount.line) == ("src", "LABEL=src /srv/distbuild auto defaults 0 0")
    assert (worker.address, worker.controller) == ("w0.example", "controller.example")
    assert not any(guest.trove for guest in found)
    own, _ = guests(cluster, {**GUIDE, "trove_url": "controller.example"}, {})
    assert [guest.name for guest in own if guest.trove] == ["controller"]
    with pytest.raises(DefinitionsError) as caught:
        guests(cluster, {}, {})
    assert len(caught.value.problems) == 8
    assert str(caught.value.problems[0]).startswith(
        "clusters/distbuild-cluster.morph:7: $trove_id has no value: set it in the environment"
    )


def test_guests_have_typed_settings() -> None:
    text = HEAD + machine(
        AUTOSTART="'1'",
        RAM_SIZE="512m",
        ATTACH_DISKS="/dev/x:/srv/y.img",
        NIC_CONFIG="network=lan,model=e1000 bridge=br0,mac=52:54:00:00:00:0A user",
        NETWORK_CONFIG="'lo:loopback;eth0:static,address=10.0.0.2,netmask=255.255.0.0,gateway=10.0.0.1'",
        FSTAB_B="/dev/vdc /b ext4",
        FSTAB_A="LABEL=z /a ext4",
        HOSTS_X="10.0.0.9 other",
        HOSTNAME="10.0.0.2",
        INSTALL_FILES="one/manifest two/manifest",
        USERS="people",
        COST="$$5 of ${who}",
    )
    guest = load(text, who="me")["a"]
    assert guest.autostart
    assert guest.ram_size == 512 << 20
    assert guest.vcpus == 1
    assert guest.disks == ("/dev/x", "/srv/y.img")
    assert [(nic.kind, nic.source, nic.model, nic.mac) for nic in guest.nics] == [
        ("network", "lan", "e1000", ""),
        ("bridge", "br0", "virtio", "52:54:00:00:00:0a"),
        ("user", "", "virtio", ""),
    ]
    assert [(one.name, one.kind, one.address) for one in guest.interfaces] == [
        ("lo", "loopback", ""),
        ("eth0", "static", "10.0.0.2/16"),
    ]
    assert [mount.line for mount in guest.mounts] == ["/dev/vdc /b ext4", "LABEL=z /a ext4"]
    assert guest.hosts == ("10.0.0.9 other",)
    assert (guest.address, guest.hostname, guest.group) == ("10.0.0.2", "a", "s")
    assert guest.manifests == ("one/manifest", "two/manifest")
    assert guest.users == "people"
    assert guest.settings["COST"] == "$5 of me"


@pytest.mark.parametrize("text", ["yes", "true", "'1'", "on", "'True'", "1"])
def test_guests_boolean_settings(text: str) -> None:
    assert load(HEAD + machine(AUTOSTART=text))["a"].autostart
    opposite = {"1": "0", "'1'": "'0'", "yes": "no", "on": "off"}.get(text, "false")
    assert not load(HEAD + machine(AUTOSTART=opposite))["a"].autostart


def test_guests_overrides_replace_the_morph() -> None:
    text = HEAD + machine(RAM_SIZE="1G") + machine("b", image="/j", VCPUS="2")
    found = load(text, {"RAM_SIZE": "2G", "b.VCPUS": "4", "b.RAM_SIZE": "3G"})
    assert (found["a"].ram_size, found["a"].vcpus) == (2 << 30, 1)
    assert (found["b"].ram_size, found["b"].vcpus) == (3 << 30, 4)
    assert wrong(text, {"c.VCPUS": "4"}) == [
        "1: -e c.VCPUS: there is no deployment 'c'; there are a, b"
    ]


INNER = (
    "  subsystems:\n  - morph: systems/s.morph\n    deploy:\n"
    "      inner: {type: extensions/tar, location: srv/$what.tar}\n"
)


def test_guests_subsystems() -> None:
    text = HEAD + machine() + INNER
    (inner,) = load(text, what="inner")["a"].subsystems
    assert (inner.name, inner.system, inner.path) == ("inner", "systems/s.morph", "/srv/inner.tar")
    for given, message in (
        (
            text.replace("s/tar", "s/jffs2"),
            "13: unknown type 'extensions/jffs2': the type of a subsystem is",
        ),
        (text.replace("srv/", "srv/../"), "13: 'srv/../$what.tar' is not the path of a file in"),
        (text.replace(".tar}", ".tar, A: b}"), "13: a subsystem has no settings: remove"),
    ):
        (found,) = wrong(given, what="inner")
        assert found.startswith(message)


WORKER = {
    "DISTBUILD_WORKER": "yes",
    "CONTROLLERHOST": "c",
    "TROVE_HOST": "t",
    "WORKER_SSH_KEY": "k",
}
CONTROLLER = {"DISTBUILD_CONTROLLER": "yes", "TROVE_HOST": "t", "WORKER_SSH_KEY": "k"}


def test_guests_of_other_types_are_left_out() -> None:
    """Other mistakes in it are not reported."""
    other = machine("b", NIC_CONFIG="$nothing").replace("extensions/kvm", "extensions/rawdisk")
    files = small(x=stratum("x", spec("a"))) | {"clusters/c.morph": HEAD + machine() + other}
    cluster = load_cluster(reader(files), "clusters/c.morph")
    found, findings = guests(cluster, {}, {})
    assert [guest.name for guest in found] == ["a"]
    assert [str(warning) for warning in findings.warnings] == [
        "clusters/c.morph:11: deployment b: extensions/rawdisk is left out: only extensions/kvm is"
        " supported"
    ]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            machine().replace("extensions/kvm", "rawdisk"),
            ["1: no deployment has the type extensions/kvm, and only that type is"],
        ),
        (
            machine().replace("extensions/kvm", "extensions/kmv"),
            ["7: unknown type 'extensions/kmv'; did you mean 'extensions/kvm'?"],
        ),
        (machine().replace("type: ext", "type: other/"), ["7: unknown type 'other/ensions/kvm'"]),
        (
            machine().replace("type:", "upgrade-type:").replace("location:", "upgrade-location:"),
            ["7: deployment a: it has only fields of upgrades: add 'type: extensions/kvm' and"],
        ),
        (machine(host="h:x"), ["8: 'kvm+ssh://h:x/a/i' is not a location: write it like"]),
        (machine(image="/../i"), ["8: '/../i' is not the path of a file"]),
        (
            machine().replace("DISK_SIZE: 1G", "X: $y"),
            ["6: the setting DISK_SIZE is missing: how large", "9: $y has no value: set it in"],
        ),
        (
            machine(RAM_SIZE="5X"),
            ["10: RAM_SIZE is '5X', which is not a size of at least 16M: write"],
        ),
        (machine(VCPUS="0"), ["10: VCPUS is '0', which is not a number from 1 to 9999"]),
        (
            machine(RAM_SIZE="2"),
            ["10: RAM_SIZE is '2', which is not a size of at least 16M: write"],
        ),
        (machine(VERSION_LABEL="a b"), ["10: VERSION_LABEL is 'a b', which is not a label: 1 to"]),
        (machine(KERNEL_ARGS=r'"a\nb"'), [r"10: KERNEL_ARGS is 'a\nb', which is not one line"]),
        (machine(AUTOSTART="perhaps"), ["10: AUTOSTART is 'perhaps', which is not yes or no"]),
        (machine(ATTACH_DISKS="disk"), ["10: ATTACH_DISKS: 'disk' is not an absolute path"]),
        (machine(ATTACH_DISKS="/d:/d"), ["10: ATTACH_DISKS: /d is attached twice"]),
        (machine(ATTACH_DISKS="/i"), ["10: deployment a: /i is the image of a"]),
        (machine(NIC_CONFIG="wifi"), ["10: NIC_CONFIG: 'wifi' is not network=NAME"]),
        (machine(NIC_CONFIG="user,rom=x"), ["10: NIC_CONFIG: 'rom' is neither model nor mac"]),
        (
            machine(NIC_CONFIG="user,model=<x>"),
            ["10: NIC_CONFIG: '<x>' is not a model of a network"],
        ),
        (
            machine(NIC_CONFIG="user,mac=53:54:00:00:00:01"),
            ["10: NIC_CONFIG: '53:54:00:00:00:01' is not an address like 52:54:00"],
        ),
        (
            machine(FSTAB_A="LABEL= /x"),
            ["10: FSTAB_A: '' is not the label of a filesystem: 1 to 16"],
        ),
        (
            machine(FSTAB_A="LABEL=x /x", VERSION_LABEL="x", ATTACH_DISKS="/d"),
            ["10: FSTAB_A mounts the disk of the system itself, which VERSION_LABEL labels 'x'"],
        ),
        (machine(FSTAB_A="nonsense"), ["10: FSTAB_A is 'nonsense', which is not a line of"]),
        (machine(FSTAB_A="LABEL=x /x"), ["10: FSTAB_A mounts the disk labelled 'x', but ATTACH"]),
        (machine(NETWORK_CONFIG="'e:static'"), ["10: NETWORK_CONFIG: e is static: give it addr"]),
        (
            machine(NETWORK_CONFIG="'e:dhcp;e:dhcp;../x:dhcp;f:dhcp,mtu=9;g:dhcp,dns=here'"),
            [
                "10: NETWORK_CONFIG: e is there twice",
                "10: NETWORK_CONFIG: '../x:dhcp' is not INTERFACE:loopback",
                "10: NETWORK_CONFIG: f: 'mtu' means nothing here",
                "10: NETWORK_CONFIG: the dns of g is 'here', which is not an address",
            ],
        ),
        (machine(HOSTNAME="a_b"), ["10: HOSTNAME is 'a_b', which is not the name or address"]),
        # all mistakes, also of a machine without a valid location
        (
            machine(host="h:x", RAM_SIZE="lots", VCPUS="0").replace("1G", "1X"),
            ["8: ", "9: DISK_SIZE is '1X'", "10: RAM_SIZE is 'lots'", "11: VCPUS is '0'"],
        ),
        (machine("../a"), ["6: '../a' is not allowed as the name of a machine: rename it"]),
        (machine("workers"), ["6: 'workers' is not allowed as the name of a machine: rename it"]),
        (machine("h"), ["6: deployment h: a VM host or a system has the same name: rename it"]),
        ("    {}", ["1: this cluster has no machines: name some in 'deploy'"]),
        (machine("a") + machine("b"), []),
        (
            machine("a") + machine("b", image="/i.old"),
            ["12: deployment b: /i.old is a file beside the image of a"],
        ),
        (
            machine("a", NIC_CONFIG="user,mac=52:54:00:00:00:01")
            + machine("b", image="/j", NIC_CONFIG="user,mac=52:54:00:00:00:01"),
            ["15: deployment b: 52:54:00:00:00:01 is already a card of a"],
        ),
        (
            machine("a", HOSTNAME="x") + machine("b", HOSTNAME="x"),
            ["15: deployment b: x is already the HOSTNAME of a: give it another"],
        ),
        (
            machine("a") + machine("b").replace("/h/b/i", "/h/a/j"),
            ["12: deployment b: a is already the guest of a on this host: rename one"],
        ),
        (
            machine("a", ATTACH_DISKS="/d") + machine("b", image="/j", ATTACH_DISKS="/d"),
            ["15: deployment b: /d is attached to a already"],
        ),
        (
            machine("a") + machine("b", host="me@h", image="/j"),
            ["12: deployment b: another deployment reaches h as another user"],
        ),
        (
            machine("c", HOSTNAME="c", WORKERS="x", **CONTROLLER)
            + machine("w", image="/j", HOSTNAME="w", **WORKER),
            [
                "11: deployment c: x is not the HOSTNAME of a worker",
                "19: deployment w: w is missing",
            ],
        ),
        (
            machine("c", HOSTNAME="c", WORKERS="w, w", **CONTROLLER)
            + machine("w", image="/j", HOSTNAME="w", **{**WORKER, "CONTROLLERHOST": "d"})
            + machine("d", image="/k", HOSTNAME="d", WORKERS="w", **CONTROLLER),
            [
                "11: deployment c: w is there twice",
                "21: deployment w: d is not the HOSTNAME of c",
                "30: deployment d: c is the controller: a cluster has one",
            ],
        ),
        (
            machine(HOSTNAME="a", **{**WORKER, "CONTROLLERHOST": "''"}),
            ["6: the setting CONTROLLERHOST is missing: the HOSTNAME of the controller"],
        ),
        (
            machine(HOSTNAME="a", WORKERS="w", **{**CONTROLLER, **WORKER}),
            ["15: DISTBUILD_CONTROLLER and DISTBUILD_WORKER are both yes: a machine is one"],
        ),
    ],
)
def test_guests_mistakes(text: str, messages: list[str]) -> None:
    if not messages:  # same image on one host
        messages = ["12: deployment b: the image /i is already that of a: give it another"]
    found = wrong(HEAD + text)
    assert len(found) >= len(messages), found
    for message in messages:
        assert any(one.startswith(message) for one in found), found


def test_guests_probable_typo_is_a_warning() -> None:
    files = small(x=stratum("x", spec("a"))) | {"clusters/c.morph": HEAD + machine(RAMSIZE="1G")}
    cluster = load_cluster(reader(files), "clusters/c.morph")
    _, findings = guests(cluster, {}, {})
    (warning,) = findings.warnings
    assert str(warning) == (
        "clusters/c.morph:10: the setting RAMSIZE means nothing here; did you mean 'RAM_SIZE'?"
    )
