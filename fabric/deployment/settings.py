"""Parses the settings of a deployment: sizes, booleans, lists, networks.

The parsers take text, whatever type YAML gave it: see `fabric.deployment.cluster.Deployment`.  Each
parser reports mistakes and returns a usable value.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from fabric.definitions.fields import Findings, listing
from fabric.deployment.cluster import Deployment

_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
_SIZE = re.compile(r"(\d+)\s*([kKmMgGtT]?)(?:i?[bB])?", re.ASCII)
_TRUE, _FALSE = ("yes", "true", "1", "on"), ("no", "false", "0", "off")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]+:[0-9A-Fa-f:]*")
_LOCATION = re.compile(
    r"kvm\+ssh://((?P<user>[^@/\s]+)@)?(?P<host>\[[0-9A-Fa-f:]+\]|[^@/:\s\[\]]+)(:(?P<port>\d+))?"
    r"/(?P<guest>[^/\s]+)(?P<image>/.+)"
)
_USER = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}\$?", re.ASCII)
_NETWORK = re.compile(r"[^\s/.-][^\s/]{0,63}")
_REPOSITORY = re.compile(
    r"(ssh|git|https?|git\+ssh)://([\w.%:-]+@)?(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9][\w.-]*)(:\d{1,5})?/\S*"
    r"|([\w.-]+@)?[A-Za-z0-9][\w.-]*:(?!//)[^\s:-]\S*|(file://)?/\S*"
)
_STORE = re.compile(r"(https?|s3|gs|az)://[A-Za-z0-9\[]\S*")
#: A unicast address: its second digit is even.
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_WORD = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9][\w.-]{0,14}", re.ASCII)  # the kernel's limit
_LABEL = re.compile(r"[\w.+-]{1,16}", re.ASCII)  # ext4's limit
_LABEL_HELP = "1 to 16 letters, digits, and . _ + -"
_LEAST = 16 << 20
#: Endings of images: no program of the deploying machine reads a file because it is called so.
_IMAGES = (".img", ".raw", ".tar")
_LOCATION_HELP = "write it like kvm+ssh://user@vmhost/GUEST/path/to/image"

T = TypeVar("T")


class Location(msgspec.Struct, frozen=True):
    """``kvm+ssh://user@vmhost:port/GUEST/path/to/image``."""

    user: str  # "": ssh's default
    host: str
    port: int  # 0: ssh's default
    guest: str
    image: str  # absolute path on the host


class Nic(msgspec.Struct, frozen=True):
    """A network card: of a libvirt ``network``, on a ``bridge``, or in ``user`` mode."""

    kind: str
    source: str
    model: str
    mac: str  # "": derived from the guest's name


class Mount(msgspec.Struct, frozen=True):
    """A line of /etc/fstab; ``label`` is "" unless the filesystem is mounted by label."""

    setting: str
    line: str
    label: str
    filesystem: str


class Interface(msgspec.Struct, frozen=True):
    """How the guest configures one of its network interfaces."""

    name: str
    kind: str  # loopback, dhcp, static
    address: str = ""  # with the prefix length: "10.0.0.2/24"
    gateway: str = ""
    dns: str = ""


class Settings:
    """Reads the settings of one deployment.

    ``variables`` replace ``$name`` and ``${name}``; ``$$`` is a dollar.  ``overrides`` replace the
    morph's settings.
    """

    def __init__(
        self,
        deployment: Deployment,
        file: str,
        findings: Findings,
        variables: Mapping[str, str],
        overrides: Mapping[str, str],
    ) -> None:
        self.file = file
        self.findings = findings
        self.line = deployment.line
        self.lines = deployment.lines
        self.variables = variables
        self.faulty: set[str] = set()  # settings with reported mistakes, which are not parsed
        self.texts = {
            key: self._filled(key, value)
            for key, value in {**deployment.settings, **overrides}.items()
        }

    def report(self, key: str, message: str) -> None:
        self.faulty.add(key)
        self.findings.error(self.file, self.lines.get(key, self.line), message)

    def _filled(self, key: str, text: str) -> str:
        def fill(match: re.Match[str]) -> str:
            name = match[2] or match[3]
            if match[1]:
                return "$"
            if name not in self.variables:
                where = f"set it in the environment, or with -e {name}=..."
                self.report(key, f"${name} has no value: {where}")
                return ""
            return self.variables[name]

        return _VARIABLE.sub(fill, text)

    def named(self, prefix: str) -> list[tuple[str, str]]:
        """(name, text) of the settings ``PREFIX...`` that are not empty or ``no``, by name."""
        return [
            (key, self.texts[key])
            for key in sorted(self.texts)
            if key.startswith(prefix) and self.text(key).lower() not in ("", *_FALSE)
        ]

    def text(self, key: str, default: str = "") -> str:
        return "" if key in self.faulty else self.texts.get(key, "").strip() or default

    def needed(self, key: str, why: str) -> str:
        """A required setting; if it is missing, the report says ``why`` it is needed."""
        if not self.text(key) and key not in self.faulty:
            self.faulty.add(key)
            self.findings.error(self.file, self.line, f"the setting {key} is missing: {why}")
        return self.text(key)

    def _parsed(self, key: str, default: T, parse: Callable[[str], T | None], wanted: str) -> T:
        text = self.text(key)
        if not text:
            return default
        value = parse(text)
        if value is None:
            self.report(key, f"{key} is {text!r}, which is not {wanted}")
            return default
        return value

    def boolean(self, key: str, default: bool = False) -> bool:
        def parse(text: str) -> bool | None:
            low = text.lower()
            return low in _TRUE if low in _TRUE + _FALSE else None

        return self._parsed(key, default, parse, "yes or no")

    def size(self, key: str, default: int = 0) -> int:
        """Bytes; a size below 16M is reported as a probable mistake."""

        def parse(text: str) -> int | None:
            found = size(text)
            return found if found is not None and found >= _LEAST else None

        return self._parsed(key, default, parse, "a size of at least 16M: write it like 5G")

    def count(self, key: str, default: int) -> int:
        def parse(text: str) -> int | None:
            return int(text) if re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII) else None

        return self._parsed(key, default, parse, "a number from 1 to 9999")

    def host(self, key: str) -> str:
        """The name or address of a machine."""
        text = self.text(key)
        if "_" in text and _HOST.fullmatch(text.replace("_", "-")):
            proper = text.replace("_", "-")
            self.report(
                key,
                f"{key} is {text!r}: no '_' is allowed in the name of a machine: write {proper!r}",
            )
            return ""
        return self._parsed(key, "", _host, "the name or address of a machine")

    def hosts(self, key: str) -> tuple[str, ...]:
        """Names or addresses of machines, separated by commas."""
        found = [part.strip() for part in self.text(key).split(",") if part.strip()]
        for host in found:
            if not _host(host):
                self.report(key, f"{key}: {host!r} is not the name or address of a machine")
        return tuple(found)

    def label(self, key: str, default: str) -> str:
        """The label of a filesystem."""

        def parse(text: str) -> str | None:
            return text if _LABEL.fullmatch(text) else None

        return self._parsed(key, default, parse, f"a label: {_LABEL_HELP}")

    def line_of_text(self, key: str) -> str:
        def parse(text: str) -> str | None:
            return text if text.isprintable() else None

        return self._parsed(key, "", parse, "one line of text")

    def lines_of_text(self, prefix: str) -> tuple[str, ...]:
        """The settings ``PREFIX...``, each one line of text, sorted."""
        found = []
        for key, text in self.named(prefix):
            found.append(text.strip())
            if not _one_line(text):
                self.report(key, f"{key} is {text!r}, which is not one line of text")
        return tuple(sorted(found))

    def repository(self, key: str) -> str:
        """The URL of a git repository, with a transport that runs no commands on this machine."""

        def parse(text: str) -> str | None:
            return text if _REPOSITORY.fullmatch(text) else None

        wanted = "a git repository: write it like ssh://git@host/path.git"
        return self._parsed(key, "", parse, wanted)

    def store(self, key: str) -> str:
        """The URL of an artifact store."""

        def parse(text: str) -> str | None:
            return text if _STORE.fullmatch(text) else None

        wanted = "a store: write it like https://host/path/ or s3://bucket/path"
        return self._parsed(key, "", parse, wanted)

    def paths(self, key: str) -> tuple[str, ...]:
        """Absolute paths separated by ``:``."""
        found = tuple(part for part in self.text(key).split(":") if part)
        for path in found:
            if not clean(path):
                self.report(key, f"{key}: {path!r} is not an absolute path")
            elif found.count(path) > 1:
                self.report(key, f"{key}: {path} is attached twice")
        return found

    def location(self, text: str) -> Location | None:
        filled = self._filled("location", text)
        if "location" in self.faulty:
            return None
        match = _LOCATION.fullmatch(filled)
        if match is None or not _host(match["host"].strip("[]")):
            self.report("location", f"{filled!r} is not a location: {_LOCATION_HELP}")
            return None
        if match["user"] and not _USER.fullmatch(match["user"]):
            self.report(
                "location", f"{match['user']!r} is not the name of a user: {_LOCATION_HELP}"
            )
        if match["port"] and not 0 < int(match["port"][:6]) < 1 << 16:
            self.report("location", f"{match['port']} is not a port: it must be 1 to 65535")
            return None
        if not is_word(match["guest"]):
            self.report(
                "location", f"{match['guest']!r} is not a name for a guest: {_LOCATION_HELP}"
            )
        if not clean(match["image"]):
            self.report(
                "location", f"{match['image']!r} is not the path of a file: {_LOCATION_HELP}"
            )
        port = int(match["port"] or 0)
        return Location(
            match["user"] or "", match["host"].strip("[]"), port, match["guest"], match["image"]
        )

    def file_path(self, text: str) -> str:
        """The path of a file on the deploying machine; "" if it is wrong.

        Definitions may not name any file there; the deploying user may, by a variable.
        """
        path = self._filled("location", text)
        if "location" in self.faulty:
            return ""
        if path.startswith("/"):
            fine = clean(path) and (text.startswith("$") or path.endswith(_IMAGES))
        else:
            fine = clean(f"/{path}") and "/." not in f"/{path}"
        if not fine:
            self.report(
                "location",
                f"{path!r} is not a path below the root of the definitions, like images/x.img; an"
                f" absolute path ends in {listing(_IMAGES)}, or begins with a variable",
            )
        return path if fine else ""

    def inner_path(self, text: str) -> str:
        """The path of a subsystem inside its system, from the root."""
        path = "/" + self._filled("location", text).strip("/")
        if "location" not in self.faulty and not clean(path):
            self.report("location", f"{text!r} is not the path of a file in a system")
        return path

    def nics(self, key: str) -> tuple[Nic, ...]:
        """Words ``network=NAME``, ``bridge=NAME`` or ``user``, each with ``,model=M,mac=M``."""
        found: list[Nic] = []
        for word in self.text(key, "network=default").split():
            first, *more = word.split(",")
            kind, _, source = first.partition("=")
            options = dict(part.partition("=")[::2] for part in more)
            model, mac = options.pop("model", "virtio"), options.pop("mac", "").lower()
            macs = [nic.mac for nic in found]
            if kind not in ("network", "bridge", "user") or bool(source) == (kind == "user"):
                self.report(key, f"{key}: {first!r} is not network=NAME, bridge=NAME or user")
            elif source and not (_NETWORK.fullmatch(source) and source.isprintable()):
                self.report(key, f"{key}: {source!r} is not the name of a network or bridge")
            elif options:
                self.report(key, f"{key}: {next(iter(options))!r} is neither model nor mac")
            elif not is_word(model):
                self.report(key, f"{key}: {model!r} is not a model of a network card, like virtio")
            elif mac and (not _MAC.fullmatch(mac) or mac in macs):
                self.report(key, f"{key}: {mac!r} is not an address like 52:54:00:12:34:56")
            else:
                found.append(Nic(kind, source, model, mac))
        return tuple(found)

    def mounts(self) -> tuple[Mount, ...]:
        """The ``FSTAB_*`` settings, sorted by their lines."""
        found = []
        for key, text in self.named("FSTAB_"):
            fields = text.split()
            if not 2 <= len(fields) <= 6 or not _one_line(text):
                self.report(key, f"{key} is {text!r}, which is not a line of /etc/fstab")
                continue
            label = fields[0].removeprefix("LABEL=").strip('"')
            kind = fields[2] if len(fields) > 2 else "auto"
            if label == fields[0]:
                label = ""
            elif not _LABEL.fullmatch(label):
                self.report(
                    key, f"{key}: {label!r} is not the label of a filesystem: {_LABEL_HELP}"
                )
            found.append(Mount(key, text.strip(), label, kind))
        return tuple(sorted(found, key=lambda mount: mount.line))

    def interfaces(self, key: str) -> tuple[Interface, ...]:
        """``NAME:KIND[,option=value]...`` separated by ``;``."""
        found: dict[str, Interface] = {}
        for part in filter(None, (one.strip() for one in self.text(key).split(";"))):
            head, *more = part.split(",")
            name, _, kind = head.partition(":")
            options = dict(one.partition("=")[::2] for one in more)
            if not _INTERFACE.fullmatch(name) or kind not in ("loopback", "dhcp", "static"):
                self.report(key, f"{key}: {head!r} is not INTERFACE:loopback, :dhcp or :static")
            elif name in found:
                self.report(key, f"{key}: {name} is there twice")
            else:
                found[name] = self._interface(key, name, kind, options)
        return tuple(found.values())

    def _interface(self, key: str, name: str, kind: str, options: dict[str, str]) -> Interface:
        address = ""
        if kind == "static":
            address, netmask = options.pop("address", ""), options.pop("netmask", "24")
            address = _with_prefix(address, netmask)
            if not address:
                self.report(key, f"{key}: {name} is static: give it address=10.0.0.2,netmask=24")
        found = Interface(
            name, kind, address, *(options.pop(option, "") for option in ("gateway", "dns"))
        )
        for option, text in (("gateway", found.gateway), ("dns", found.dns)):
            if text and not is_address(text):
                self.report(
                    key, f"{key}: the {option} of {name} is {text!r}, which is not an address"
                )
        if options:
            self.report(key, f"{key}: {name}: {next(iter(options))!r} means nothing here")
        return found


def size(text: str) -> int | None:
    """Bytes of "5G", "800M", "1073741824": units are powers of 1024.  None if it is not a size."""
    match = _SIZE.fullmatch(text.strip())
    return int(match[1]) << 10 * " kmgt".index(match[2].lower() or " ") if match else None


def clean(path: str) -> bool:
    """Whether a path is absolute, printable, and without "", "." and ".." as parts."""
    parts = path.split("/")
    straight = all(part not in ("", ".", "..") for part in parts[1:])
    return path.startswith("/") and path.isprintable() and straight


def is_word(text: str) -> bool:
    """Whether a text is a valid name of a file, program or network."""
    return bool(_WORD.fullmatch(text))


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _with_prefix(address: str, netmask: str) -> str:
    """An address with its prefix length; "" if it is not an address."""
    try:
        found = ipaddress.ip_interface(address if "/" in address else f"{address}/{netmask}")
    except ValueError:
        return ""
    return str(found)


def _one_line(text: str) -> bool:
    return text.strip().replace("\t", " ").isprintable()


def _host(text: str) -> str | None:
    return text if _HOST.fullmatch(text) else None
