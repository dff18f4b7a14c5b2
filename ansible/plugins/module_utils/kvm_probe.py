"""Probes whether KVM runs guests on a VM host, by starting a guest.

On some machines with /dev/kvm every kernel fails in its first instructions, because the machine is
virtual itself.  The guest executes these instructions in 200 bytes and writes a text to its serial
port.
"""

from __future__ import annotations

import base64
import contextlib
import time
from typing import Any
from xml.sax.saxutils import escape

from .vm_host import VmHost, libvirt

SAYS = b"it works"
_SECONDS = 15
#: kvm_probe.S, assembled.
_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cbf0010b9000c6631c066f3ab66c70600100320000066c7060020033000"
    "0066c70600308300000066b8001000000f22d80f20e06683c8200f22e066b9800000c00f32660d0001"
    "00000f30660f0116c87c0f20c0660d010000800f22c0ea6d7c080048c7c4007c00006a1068007c0000"
    "9c6a0868857c000048cfb8100000008ed88ed0bea37c0000baf8030000ac84c07403eeebf8f4ebfd0d"
    "0a697420776f726b730d0a00000000000000000000000000009a200000000000009200001700b07c"
)
#: The BIOS does not boot from a disk of one sector.
_DISK = 1 << 20
_WRITE = """
file=$(mktemp -- "$1/.probe-XXXXXX")
printf %s "$2" | base64 -d > "$file"
truncate -s "$3" "$file"
chmod 644 "$file"
echo "$file"
"""
_DOMAIN = """
<domain type='kvm'>
  <name>distbuild-probe-{name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <cpu mode='host-passthrough'/>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
    </disk>
    <serial type='pty'/>
    <console type='pty'/>
  </devices>
</domain>
"""


def boot_sector() -> bytes:
    return _CODE.ljust(510, b"\0") + b"\x55\xaa"


def domain_xml(disk: str) -> str:
    """Return the XML of a guest that boots from ``disk``."""
    name, disk = (escape(text, {"'": "&apos;"}) for text in (disk[-6:], disk))
    return _DOMAIN.format(name=name, disk=disk)


def works(host: VmHost, connection: Any, folder: str) -> bool:
    """Return whether a guest runs under KVM.  Its disk is in ``folder`` until it has ended."""
    code = base64.b64encode(boot_sector()).decode()
    disk = host.run(_WRITE, folder, code, str(_DISK)).strip()
    try:
        return SAYS in _listen(connection, domain_xml(disk))
    finally:
        host.run('rm -f -- "$1"', disk)


def _listen(connection: Any, xml: str) -> bytes:
    """Return the output of a guest, up to the expected text, its end, or the timeout."""
    flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
    output = b""
    with contextlib.suppress(libvirt.libvirtError):  # no KVM, or the guest has crashed
        domain = connection.createXML(xml, flags)
        try:
            stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain.openConsole(None, stream, 0)
            domain.resume()
            deadline = time.monotonic() + _SECONDS
            while SAYS not in output and time.monotonic() < deadline:
                piece = stream.recv(4096)
                if isinstance(piece, bytes) and piece:
                    output += piece
                elif domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
                    break
                else:
                    time.sleep(0.05)
            stream.abort()
        finally:
            domain.destroy()
    return output
