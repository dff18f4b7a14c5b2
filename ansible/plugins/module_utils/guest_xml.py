"""The libvirt domain of a guest as XML, and its mark.  Pure.

The mark, in the metadata of the domain, names the cluster and the guest, and contains the digest of
the specification.  libvirt completes and reorders XML, so that XML cannot be compared; digests can.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, replace
from typing import Any

#: The namespace of the element that contains a domain's `Mark`.
NAMESPACE = "urn:distbuild:guest:1"
_GUESTS = uuid.UUID("0f7c0a8e-8d7f-5a0e-9a55-6a1a4e0a2f11")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_KIB = 1024


@dataclass(frozen=True)
class Disk:
    """An attached disk.  ``kind`` is file or block; ``format`` is raw or qcow2."""

    path: str
    kind: str = "file"
    format: str = "raw"


@dataclass(frozen=True)
class Nic:
    kind: str = "network"  # network, bridge, user
    source: str = "default"
    model: str = "virtio"
    mac: str = ""


@dataclass(frozen=True)
class Spec:
    """A guest.  ``memory`` is in bytes; ``host`` is its name in the cluster."""

    cluster: str
    host: str
    domain: str
    memory: int
    vcpus: int
    image: str  # path of the system disk
    console: str  # path of the log of its serial console
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    kvm: bool = True
    label: str = ""  # version of the system on the image
    content: str = ""  # digest of the inputs of that image

    @property
    def uuid(self) -> str:
        return str(uuid.uuid5(_GUESTS, f"{self.cluster}/{self.host}"))

    @property
    def text(self) -> str:
        """The specification as JSON, one item a line."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def mac(self, index: int) -> str:
        """Return the MAC address of a network card, which is always the same."""
        seed = hashlib.sha256(f"{self.cluster}/{self.host}/{index}".encode()).digest()
        return self.nics[index].mac or "52:54:00:" + ":".join(f"{byte:02x}" for byte in seed[:3])


@dataclass(frozen=True)
class Mark:
    """The mark of a domain: its cluster, its guest, and its specification."""

    cluster: str
    host: str
    spec: str  # digest of the specification
    label: str
    content: str
    image: str
    console: str
    text: str  # the specification


def mark_of(spec: Spec) -> Mark:
    return Mark(
        cluster=spec.cluster,
        host=spec.host,
        spec=spec.digest,
        label=spec.label,
        content=spec.content,
        image=spec.image,
        console=spec.console,
        text=spec.text,
    )


def read_mark(xml: str) -> Mark | None:
    """Return the mark in a domain's XML, or None for a domain without one.

    The host's name becomes part of file names, so a mark with any other name counts as none.
    """
    found = ET.fromstring(xml).find(f"metadata/{{{NAMESPACE}}}guest")
    if found is None or not _NAME.fullmatch(found.get("host", "")):
        return None
    attributes = {name: found.get(name, "") for name in Mark.__dataclass_fields__}
    return Mark(**{**attributes, "text": found.text or ""})


def domain_xml(spec: Spec) -> str:
    """Return the XML that defines the guest."""
    ET.register_namespace("distbuild", NAMESPACE)
    domain = ET.Element("domain", type="kvm" if spec.kvm else "qemu")
    _text(domain, "name", spec.domain)
    _text(domain, "uuid", spec.uuid)
    _text(domain, "title", f"{spec.host} of {spec.cluster}")
    attributes = asdict(mark_of(spec))
    text = attributes.pop("text")
    _text(ET.SubElement(domain, "metadata"), f"{{{NAMESPACE}}}guest", text, **attributes)
    _text(domain, "memory", str(spec.memory // _KIB), unit="KiB")
    _text(domain, "vcpu", str(spec.vcpus))
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64")
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if spec.kvm:
        ET.SubElement(domain, "cpu", mode="host-passthrough")
    ET.SubElement(domain, "clock", offset="utc")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "restart")
    _devices(ET.SubElement(domain, "devices"), spec)
    return ET.tostring(domain, encoding="unicode")


def _devices(devices: ET.Element, spec: Spec) -> None:
    for index, disk in enumerate((Disk(spec.image), *spec.disks)):
        element = ET.SubElement(devices, "disk", type=disk.kind, device="disk")
        ET.SubElement(element, "driver", name="qemu", type=disk.format, discard="unmap")
        ET.SubElement(element, "source", {"dev" if disk.kind == "block" else "file": disk.path})
        ET.SubElement(element, "target", dev=_letters(index), bus="virtio")
        if index == 0:
            ET.SubElement(element, "boot", order="1")
    for index, nic in enumerate(spec.nics):
        element = ET.SubElement(devices, "interface", type=nic.kind)
        if nic.kind != "user":
            ET.SubElement(element, "source", {nic.kind: nic.source})
        ET.SubElement(element, "mac", address=spec.mac(index))
        ET.SubElement(element, "model", type=nic.model)
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=spec.console, append="on")
    ET.SubElement(serial, "target", port="0")
    console = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(console, "target", type="serial", port="0")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")


def _letters(index: int) -> str:
    """vda, vdb, ..., vdz, vdaa."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("a") + rest) + name
    return f"vd{name}"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def spec_of(given: dict[str, Any]) -> Spec:
    """Return the specification in the parameters of a module."""
    names = Spec.__dataclass_fields__
    plain = {name: given[name] for name in names if given.get(name) is not None}
    made = Spec(**plain)
    return replace(
        made,
        disks=tuple(Disk(**disk) for disk in made.disks),  # type: ignore[arg-type]
        nics=tuple(Nic(**nic) for nic in made.nics),  # type: ignore[arg-type]
    )
