"""A VM host in a world: libvirt with its network, and sshd for a user in its group.

The operator is root in the world, and reaches the VM host as ``user@vmhost``, with host-key
checking on.  Guests are named in DNS as they name themselves to DHCP, below ``DOMAIN``.
"""

from __future__ import annotations

from pathlib import Path

from world_kit import World, until

DOMAIN = "farm.test"
BRIDGE = "virbr0"
GATEWAY = "192.168.122.1"
#: guests have addresses below .100 by DHCP; the others are free
FREE = "192.168.122.1{:02}"

_NETWORK = f"""
<network>
  <name>default</name>
  <bridge name='{BRIDGE}' stp='off' delay='0'/>
  <!-- no address translation: there is nothing outside, and its firewall rules need modules -->
  <forward mode='open'/>
  <domain name='{DOMAIN}' localOnly='yes'/>
  <ip address='{GATEWAY}' netmask='255.255.255.0'>
    <dhcp><range start='192.168.122.2' end='192.168.122.99'/></dhcp>
  </ip>
</network>
"""
_LIBVIRTD = """
auth_unix_rw = "none"
unix_sock_group = "libvirt"
unix_sock_rw_perms = "0770"
"""
_QEMU = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
_SSHD = """
ListenAddress 127.0.0.1
HostKey /etc/ssh/vmhost
PidFile none
UsePAM no
UseDNS no
PasswordAuthentication no
PerSourcePenalties no
Subsystem sftp internal-sftp
"""
_SETUP = f"""
useradd --create-home --groups libvirt,disk --shell /bin/bash user
usermod --password '*' user  # not locked, so that a key can log in
echo 127.0.0.1 vmhost >> /etc/hosts
rm -f /etc/resolv.conf
echo nameserver {GATEWAY} > /etc/resolv.conf
mkdir -p /run/sshd /root/.ssh ~user/.ssh
mount -t tmpfs -o mode=700 ssh /root/.ssh
ssh-keygen -q -t ed25519 -N '' -C vmhost -f /etc/ssh/vmhost
ssh-keygen -q -t ed25519 -N '' -C operator -f /root/.ssh/id_ed25519
echo "vmhost $(cut -d' ' -f1,2 /etc/ssh/vmhost.pub)" > /root/.ssh/known_hosts
cp /root/.ssh/id_ed25519.pub ~user/.ssh/authorized_keys
chown -R user: ~user
rm -rf /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
mkdir -p /etc/libvirt/qemu/networks/autostart /etc/libvirt/nwfilter /etc/libvirt/secrets
mkdir -p /var/lib/libvirt/{{qemu,images,dnsmasq,network,boot}} /var/log/libvirt/qemu
mkdir -p /var/cache/libvirt/qemu
"""


class VmHost:
    """The VM host of ``world``.  Its /path/to/vm, for images, is ``scratch/vm``."""

    def __init__(self, world: World, scratch: Path) -> None:
        self.world = world
        images = scratch / "vm"
        images.mkdir()
        world.run("bash", "-euc", _SETUP)
        world.run("mkdir", "-p", "/path/to/vm")
        world.run("mount", "--bind", images, "/path/to/vm")
        world.run("chown", "user:", "/path/to/vm")
        self._write("/etc/ssh/vmhost_config", _SSHD)
        self._write("/etc/libvirt/libvirtd.conf", _LIBVIRTD)
        self._write("/etc/libvirt/qemu.conf", _QEMU)
        self._write("/etc/libvirt/qemu/networks/default.xml", _NETWORK)
        world.run("ln", "-s", "../default.xml", "/etc/libvirt/qemu/networks/autostart/default.xml")
        world.daemon("/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/vmhost_config")
        with (scratch / "libvirtd.log").open("w") as log:
            world.daemon("/usr/sbin/libvirtd", log=log)
        until(
            lambda: "default" in world.attempt(*self.virsh("net-list", "--name")).stdout,
            30,
            lambda: (scratch / "libvirtd.log").read_text(),
        )

    def _write(self, path: str, text: str) -> None:
        self.world.run("tee", path, input=text)

    @staticmethod
    def virsh(*words: str) -> list[str]:
        """Return a virsh command that connects over SSH, as an operator does."""
        return ["virsh", "--quiet", "--connect", "qemu+ssh://user@vmhost/system", *words]

    def name(self, address: str, name: str) -> None:
        """Add a machine with a static address to the network's DNS."""
        entry = f"<host ip='{address}'><hostname>{name}</hostname></host>"
        self.world.run(*self.virsh("net-update", "default", "add", "dns-host", entry, "--live"))

    def disk(self, device: str, size: str, file: Path) -> None:
        """Make a block device at path ``device`` for the group disk, backed by ``file``."""
        script = """
            truncate -s "$2" "$3"
            loop=$(losetup --find --show "$3")
            exec 9< "$loop"
            losetup --detach "$loop"  # takes effect at its last close, when the world ends
            chgrp disk "$loop"
            chmod 660 "$loop"
            mkdir -p "$(dirname "$1")"
            ln -s "$loop" "$1"
            exec sleep infinity
        """
        self.world.daemon("sh", "-euc", script, "disk", device, size, file)
        until(
            lambda: self.world.attempt("test", "-b", device).returncode == 0,
            20,
            f"no loop device for {device}",
        )

    def guests(self) -> list[str]:
        """Return the names of all guests, running or not."""
        return self.world.run(*self.virsh("list", "--all", "--name")).split()

    def kill(self, guest: str) -> None:
        """Kill the process of a guest, like a power failure."""
        pid = self.world.run("cat", f"/run/libvirt/qemu/{guest}.pid").strip()
        self.world.run("kill", "-9", pid)
