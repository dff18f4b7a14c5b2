"""The guests of a cluster morph: typed settings, and mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from definitions_kit import reader, small, spec, stratum

from fabric.deployment.cluster import load_cluster
from fabric.deployment.guest import Guest
from fabric.deployment.guests import Deployed, deployed
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
    return {guest.name: guest for guest in deployed(cluster, variables, overrides or {}).guests}


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
    found = deployed(cluster, GUIDE, {})
    assert found.findings.warnings == []
    controller, worker, _ = found.guests
    assert (controller.roles, controller.groups, worker.roles) == (
        ("controller",),
        ("controllers",),
        ("worker",),
    )
    assert controller.workers == ("w0.example", "w1.example")
    assert controller.mounts == ()
    assert controller.location.image == "/path/to/vm/controller_vm.img"
    assert (worker.location.user, worker.location.host) == ("user", "vmhost")
    assert (worker.location.guest, worker.location.port) == ("distbuild-worker0", 0)
    assert (worker.disk_size, worker.ram_size, worker.vcpus) == (5 << 30, 2 << 30, 2)
    assert worker.disks == ("/dev/vg/worker0_src",)
    assert (controller.web, worker.web) == (True, False)
    (mount,) = worker.mounts
    assert (mount.label, mount.line) == ("src", "LABEL=src /srv/distbuild auto defaults 0 0")
    assert (worker.address, worker.controller) == ("w0.example", "controller.example")
    assert not any(guest.trove for guest in found.guests)
    own = deployed(cluster, {**GUIDE, "trove_url": "controller.example"}, {}).guests
    assert [guest.name for guest in own if guest.trove] == ["controller"]
    with pytest.raises(DefinitionsError) as caught:
        deployed(cluster, {}, {})
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
    assert (guest.address, guest.hostname, guest.groups) == ("10.0.0.2", "a", ("s",))
    assert guest.manifests == ("one/manifest", "two/manifest")
    assert guest.users == "people"
    assert guest.settings["COST"] == "$5 of me"


@pytest.mark.parametrize("text", ["yes", "true", "'1'", "on", "'True'", "1"])
def test_guests_boolean_settings(text: str) -> None:
    assert load(HEAD + machine(AUTOSTART=text))["a"].autostart
    opposite = {"1": "0", "'1'": "'0'", "yes": "no", "on": "off"}.get(text, "false")
    assert not load(HEAD + machine(AUTOSTART=opposite))["a"].autostart


def test_guests_only_a_controller_serves_the_web_page() -> None:
    text = (ROOT / "clusters/distbuild-cluster.morph").read_text()
    text = text.replace("systems/build-system-debian-x86_64.morph", "systems/s.morph")
    found = load(text.replace("      WEB: yes\n", ""), None, **GUIDE)
    assert not any(guest.web for guest in found.values())
    found = load(text, {"WEB": "yes"}, **GUIDE)
    assert [name for name, guest in found.items() if guest.web] == ["controller"]
    alone = {"controller.WEB_CERTIFICATE": "page.pem"}
    assert wrong(text, alone, **GUIDE) == [
        "21: the setting WEB_CERTIFICATE_KEY is missing: the private key of WEB_CERTIFICATE"
    ]
    assert load(text, {**alone, "WEB": "no"}, **GUIDE)
    load(text, {**alone, "WEB_CERTIFICATE_KEY": "page.key"}, **GUIDE)
    assert wrong(HEAD + machine("web-page"))[0].startswith(
        "6: 'web-page' is not allowed as the name"
    )


def test_guests_of_a_farm_all_sign_or_none_does() -> None:
    text = (ROOT / "clusters/distbuild-cluster.morph").read_text()
    text = text.replace("systems/build-system-debian-x86_64.morph", "systems/s.morph")
    assert all(guest.signatures for guest in load(text, None, **GUIDE).values())
    assert not any(guest.signatures for guest in load(text, {"SIGNATURES": "no"}, **GUIDE).values())
    assert wrong(text, {"worker1.SIGNATURES": "no"}, **GUIDE) == [
        "35: deployment worker1: controller has yes: give all controllers and workers the same"
    ]
    # a file beside the keys of machines
    assert wrong(HEAD + machine("own"))[0].startswith("6: 'own' is not allowed as the name")


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
        (text.replace("srv/", "srv/../"), "13: 'srv/../$what.tar' is not the path of a file in"),
        (text.replace(".tar}", ".tar, A: b}"), "13: a subsystem has no settings: remove"),
    ):
        (found,) = wrong(given, what="inner")
        assert found.startswith(message)
    other = load_all(machine() + INNER.replace("s/tar", "s/initramfs"), what="inner")
    assert other.guests[0].subsystems == ()
    assert warnings(other) == [
        "13: subsystem inner: extensions/initramfs is not deployable here, and is left out:"
        " extensions/tar is"
    ]


WORKER = {
    "DISTBUILD_WORKER": "yes",
    "CONTROLLERHOST": "c",
    "TROVE_HOST": "t",
    "WORKER_SSH_KEY": "k",
}
CONTROLLER = {"DISTBUILD_CONTROLLER": "yes", "TROVE_HOST": "t", "WORKER_SSH_KEY": "k"}


def load_all(text: str, **variables: str) -> Deployed:
    files = small(x=stratum("x", spec("a"))) | {"clusters/c.morph": HEAD + text}
    return deployed(load_cluster(reader(files), "clusters/c.morph"), variables, {})


def warnings(found: Deployed) -> list[str]:
    return [str(one).removeprefix("clusters/c.morph:") for one in found.findings.warnings]


#: Every type of Baserock's tools that is not deployed here, and one of somebody's own.
OTHERS = (
    *("nfsboot", "pxeboot", "ssh-rsync", "openstack", "virtualbox-ssh", "initramfs", "sysroot"),
    *("sdk", "jffs2", "image-package", "vagrant", "distbuild-trove-nfsboot", "my-own"),
)


@pytest.mark.parametrize(
    "kind", [f"{folder}{one}" for one in OTHERS for folder in ("", "extensions/")]
)
def test_deployments_of_other_types_are_left_out(kind: str) -> None:
    """Other mistakes in one are not reported."""
    other = machine("b", NIC_CONFIG="$nothing", ODD="x").replace("extensions/kvm", kind)
    found = load_all(machine() + other)
    assert [guest.name for guest in found.guests] == ["a"]
    assert warnings(found) == [
        f"11: deployment b: {kind} is not deployable here, and is left out: extensions/kvm,"
        " extensions/rawdisk, extensions/tar are"
    ]


def test_a_deployment_with_fields_of_upgrades_only_is_left_out() -> None:
    upgrade = "    b:\n      upgrade-type: extensions/ssh-rsync\n      upgrade-location: root@b\n"
    found = load_all(machine() + upgrade)
    assert [guest.name for guest in found.guests] == ["a"]
    assert warnings(found) == [
        "10: deployment b: it has only fields of upgrades, and is left out: upgrade-cluster.yml"
        " upgrades machines with a 'type'"
    ]


def disk(name: str, kind: str, location: str, **settings: str) -> str:
    lines = [f"    {name}:", f"      type: {kind}", f"      location: {location}"]
    return "\n".join([*lines, *(f"      {key}: {text}" for key, text in settings.items())]) + "\n"


def test_rawdisk_and_tar_are_files() -> None:
    text = disk("a", "rawdisk", "out/a.img", DISK_SIZE="2G", HOSTNAME="me", FSTAB_A="/dev/x /y")
    text += disk("b", "extensions/tar", "$out/b.tar", KERNEL_ARGS="vga=788") + INNER
    found = load_all(text, out="/srv", what="inner")
    assert found.guests == ()
    assert warnings(found) == []
    first, second = found.files
    assert (first.name, first.kind, first.path, first.hostname) == (
        "a",
        "rawdisk",
        "out/a.img",
        "me",
    )
    assert (first.disk_size, first.mounts[0].line) == (2 << 30, "/dev/x /y")
    assert (second.kind, second.path, second.hostname) == ("tar", "/srv/b.tar", "")
    assert (second.system, second.kernel_args) == ("systems/s.morph", "vga=788")
    assert [one.path for one in second.subsystems] == ["/srv/inner.tar"]
    assert load_all(disk("a", "tar", "/srv/a.tar")).files[0].path == "/srv/a.tar"


def test_a_file_has_no_role() -> None:
    found = load_all(disk("a", "tar", "a.tar", DISTBUILD_WORKER="yes"))
    assert found.files[0].path == "a.tar"
    assert warnings(found) == [
        "9: deployment a: DISTBUILD_WORKER is left out of a file: only a machine of type"
        " extensions/kvm gets its keys and services"
    ]


def test_what_has_no_effect_is_reported_once_by_name() -> None:
    text = HEAD + machine("a", SWIFT_B="1", INIT_SYSTEM="x") + machine("b", image="/j", SWIFT_B="2")
    text += disk("c", "tar", "c.tar", SWIFT_A="1") + disk("d", "nfsboot", "d", UNSEEN="1")
    files = small(x=stratum("x", spec("a"))) | {"clusters/c.morph": text}
    files["systems/s.morph"] += (
        "configuration-extensions:\n- set-hostname\n- extensions/trove\n- mason\n- fstab\n"
    )
    found = deployed(load_cluster(reader(files), "clusters/c.morph"), {}, {})
    assert [str(one) for one in found.findings.warnings][1:] == [
        "clusters/c.morph:10: these settings have no effect, except in templates of INSTALL_FILES:"
        " INIT_SYSTEM, SWIFT_A, SWIFT_B",
        "systems/s.morph:8: these configuration extensions are not run: mason, trove",
    ]


def test_a_machine_may_be_controller_and_worker() -> None:
    both = machine(
        HOSTNAME="a", WORKERS="'a, w'", **{**CONTROLLER, **WORKER, "CONTROLLERHOST": "a"}
    )
    other = machine("w", image="/j", HOSTNAME="w", **{**WORKER, "CONTROLLERHOST": "a"})
    guest, worker = load_all(both + other).guests
    assert (guest.roles, guest.groups) == (("controller", "worker"), ("controllers", "workers"))
    assert worker.roles == ("worker",)
    (missing,) = wrong(HEAD + both.replace("a, w", "w") + other)
    assert missing.endswith("deployment a: a is missing from the WORKERS of a: add it there")


def test_a_machine_may_be_called_like_its_system() -> None:
    (guest,) = load_all(machine("s")).guests
    assert (guest.name, guest.groups) == ("s", ("s",))


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            machine().replace("extensions/kvm", "nfsboot"),
            ["1: nothing of this cluster can be deployed here", "7: deployment a: nfsboot is not"],
        ),
        (
            machine().replace("extensions/kvm", "extensions/kmv"),
            ["7: deployment a: unknown type 'extensions/kmv'; did you mean 'extensions/kvm'?"],
        ),
        (
            machine().replace("type: ext", "type: other/"),
            ["7: deployment a: unknown type 'other/ensions/kvm'; did"],
        ),
        (
            machine().replace("type:", "upgrade-type:").replace("location:", "upgrade-location:"),
            ["1: nothing of this cluster can", "6: deployment a: it has only fields of upgrades"],
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
        (
            machine(HOSTNAME="a_b"),
            ["10: HOSTNAME is 'a_b': no '_' is allowed in the name of a machine: write 'a-b'"],
        ),
        # all mistakes, also of a machine without a valid location
        (
            machine(host="h:x", RAM_SIZE="lots", VCPUS="0").replace("1G", "1X"),
            ["8: ", "9: DISK_SIZE is '1X'", "10: RAM_SIZE is 'lots'", "11: VCPUS is '0'"],
        ),
        (machine("../a"), ["6: '../a' is not allowed as the name of a machine: rename it"]),
        (machine("workers"), ["6: 'workers' is not allowed as the name of a machine: rename it"]),
        (machine("h"), ["6: deployment h: a VM host has the same name: rename it"]),
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
            disk("a", "rawdisk", "/etc/x"),
            [
                "6: the setting DISK_SIZE is missing",
                "8: '/etc/x' is not a path below the root of the definitions, like images/x.img",
            ],
        ),
        (disk("a", "tar", "/x/../y.tar"), ["8: '/x/../y.tar' is not a path below the root"]),
        (disk("a", "tar", "x/../y"), ["8: 'x/../y' is not a path below the root"]),
        (disk("a", "tar", ".git/x"), ["8: '.git/x' is not a path below the root"]),
        (disk("a", "tar", "x$y"), ["8: $y has no value"]),
        (
            disk("a", "tar", "x") + disk("b", "tar", "x"),
            ["11: x is already the file of a"],
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
    findings = deployed(cluster, {}, {}).findings
    (warning,) = findings.warnings
    assert str(warning) == (
        "clusters/c.morph:10: the setting RAMSIZE means nothing here; did you mean 'RAM_SIZE'?"
    )
