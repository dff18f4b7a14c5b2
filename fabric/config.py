"""Reads settings: a TOML file, then the environment, then the command line; the last value wins.

Each program has its own file.  The initiator reads ``$FABRIC_CONFIG``, else
``$XDG_CONFIG_HOME/distbuild/distbuild.toml`` (by default ``~/.config``); the file is optional.
The daemons read ``broker.toml``, ``worker.toml`` and ``web.toml`` in ``/etc/distbuild``.  The
environment variable of a setting ``some-name`` is ``FABRIC_SOME_NAME``; tables and lists have
none.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from fabric import bounds
from fabric.errors import FabricError, suggest, without_secrets

BROKER_FILE = Path("/etc/distbuild/broker.toml")
WORKER_FILE = Path("/etc/distbuild/worker.toml")
WEB_FILE = Path("/etc/distbuild/web.toml")
#: Where daemons keep their CURVE keys.
KEYS = "/etc/distbuild/keys"
#: The broker's port for messages; logs come in at the next port, and go out at the one after.
PORT = 7411

Size = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Port = Annotated[int, Meta(ge=1, le=65533)]
NAME = r"\A([A-Za-z0-9][A-Za-z0-9._-]{0,62})?\Z"
TIME = r"\A([0-9]{8}T[0-9]{6}Z)?\Z"
#: Names of people and machines: valid in file names and git refs.
Named = Annotated[str, Meta(pattern=NAME)]
Time = Annotated[str, Meta(pattern=TIME)]
#: What a text with that pattern is.
_PATTERNS = {
    NAME: "a name: at most 63 letters, digits, '.', '_' and '-'",
    TIME: "a time such as 20261128T000000Z",
}


class ConfigError(FabricError):
    """A setting is wrong; the text names the file or variable."""


def _default_cache() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return f"{base}/distbuild"


class Shared(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """Settings of all programs.  Sizes are bytes, times seconds."""

    #: The directory of everything that is kept on this machine.
    cache: str = msgspec.field(default_factory=_default_cache)
    #: The artifact store: a directory, or a URL (file, http, https, s3, gs, az, reapi, reapis).
    #: "": CACHE/artifacts.
    artifacts: str = ""
    #: PEM file of the authority that certifies the store's host. "": the system's authorities.
    artifacts_ca: str = ""
    #: A file that holds USER:PASSWORD for the store, or a bearer token for one of reapis.
    artifacts_password: str = ""
    #: The directory of the keys whose signatures count, and of this machine's own key, which is
    #: made when it first signs. "": nothing is signed, and no signature is checked.
    trusted_keys: str = ""
    #: The trove: URL or path of one bare git repository. "": local repositories only.
    trove: str = ""
    #: The private key that git uses over ssh. "": ssh's defaults.
    ssh_key: str = ""
    #: The file of host keys that git accepts over ssh. "": ssh's defaults.
    known_hosts: str = ""
    #: Repository aliases, `name = "URL with %s"`; without one, a name stands in the trove.
    aliases: dict[str, str] = {}
    #: A time such as 20261128T000000Z: what Debian's archives offered then is imported, too, from
    #: their snapshots. "": only what they offer now.
    debian_snapshot: Time = ""
    #: Send messages without encryption; only loopback addresses allow this.
    plain: bool = False

    @property
    def cache_dir(self) -> Path:
        return Path(self.cache).expanduser().absolute()

    @property
    def store_url(self) -> str:
        return self.artifacts or str(self.cache_dir / "artifacts")

    @property
    def trove_dir(self) -> Path:
        """Git repositories, downloads, exported trees."""
        return self.cache_dir / "trove"


class Building(Shared, frozen=True, kw_only=True):
    """Settings of programs that build on this machine."""

    #: Most jobs of make in a build step. 0: the number of cores.
    max_jobs: Size = 0
    #: A build step that runs longer fails. 0: no limit.
    build_timeout: Seconds = 0.0
    #: Architectures that are built here, the machine's own first. None: those its kernel runs.
    architectures: tuple[Named, ...] = ()
    #: A build step that prints more fails. 0: no limit.
    log_limit: Size = 4 * 1024**3
    #: Stores that are asked, in this order, for a step before it is built: directories or URLs.
    #: Only what a key in `trusted-keys` signed is taken. They are only read.
    substituters: Annotated[tuple[str, ...], Meta(max_length=bounds.SUBSTITUTERS)] = ()
    #: An engine of remote execution that runs the steps: grpcs://HOST[:PORT], or grpc:// on this
    #: machine. "": they run here.
    execute: str = ""
    #: The name of the engine's instance.
    execute_instance: str = ""
    #: Properties of the machines that the engine uses, `name = "value"`.
    execute_properties: dict[str, str] = {}
    #: PEM file of the authority that certifies the engine's host. "": the system's authorities.
    execute_ca: str = ""
    #: PEM file of the certificate that this machine shows to the engine, with its chain. "": none.
    execute_certificate: str = ""
    #: PEM file of that certificate's private key.
    execute_certificate_key: str = ""
    #: A file that holds the bearer token for the engine. "": none.
    execute_token: str = ""

    @property
    def work_dir(self) -> Path:
        """A worker's layers, scratch files and locks."""
        return self.cache_dir / "work"

    @property
    def sbom_dir(self) -> Path:
        """What SBOMs found of chunks (`fabric.sbom.built`)."""
        return self.cache_dir / "sbom"

    @property
    def host_tools_file(self) -> Path:
        """File with digests of this machine's tools."""
        return self.cache_dir / "host-tools.json"

    @property
    def jobs(self) -> int:
        return self.max_jobs or os.cpu_count() or 1

    @property
    def shared_jobs(self) -> int:
        """Jobs that all build steps of this machine share: one a core, or what one may have."""
        return max(self.jobs, os.cpu_count() or 1)


class Settings(Building, frozen=True, kw_only=True):
    """The initiator's settings."""

    #: The controller, HOST or HOST:PORT. "": build on this machine, with an embedded broker.
    controller: str = ""
    #: The directory of this user's key and the controller's public key.
    keys: str = "~/.config/distbuild/keys"
    #: Priority of a build: 1 more doubles its share of the workers.
    priority: Annotated[int, Meta(ge=-10, le=10)] = 0
    #: How long a build waits, when it begins, for a controller or a trove that is out of reach.
    patience: Seconds = 300.0
    #: Builds at a time without a controller. 0: two, or a quarter of the cores if that is more.
    workers: Annotated[int, Meta(ge=0, le=bounds.WORKERS)] = 0

    @property
    def keys_dir(self) -> Path:
        return Path(self.keys).expanduser()

    @property
    def state_dir(self) -> Path:
        """Directory of the embedded broker's journal and growing logs."""
        return self.cache_dir / "state"

    @property
    def worker_count(self) -> int:
        cores = os.cpu_count() or 1
        return self.workers or max(min(2, cores), cores // 4)


class BrokerSettings(Shared, frozen=True, kw_only=True):
    """The broker's settings."""

    cache: str = "/var/cache/distbuild"
    #: The address to listen at. "*": all addresses.
    listen: str = "*"
    #: The port for jobs; logs come in at the next port, and go out at the one after.
    port: Port = PORT
    #: The directory with broker.key_secret, and in admitted/ the public keys of all peers.
    keys: str = KEYS
    #: The directory of the journal and of logs under way.
    state: str = "/var/lib/distbuild"
    #: HOST:PORT at which metrics are served to Prometheus. "": they are not served.
    metrics: str = "127.0.0.1:7419"
    #: A worker that is silent for so long is lost.
    lease: Annotated[float, Meta(gt=0)] = 10.0
    #: A step fails after so many attempts that ended with the loss of their worker.
    losses: Annotated[int, Meta(ge=1)] = 3
    #: A step fails after faults on so many machines.
    faults: Annotated[int, Meta(ge=1)] = 3
    #: A step that no worker is able to build fails after so long. 0: never.
    no_worker_timeout: Seconds = 1800.0

    @property
    def keys_dir(self) -> Path:
        return Path(self.keys).expanduser()

    @property
    def state_dir(self) -> Path:
        return Path(self.state).expanduser().absolute()


class WorkerSettings(Building, frozen=True, kw_only=True):
    """A worker's settings."""

    cache: str = "/var/cache/distbuild"
    #: The worker's name. "": the name in its key, or without a key the name of its host.
    name: Named = ""
    #: The controller: HOST or HOST:PORT.
    controller: str = ""
    #: Builds at a time.
    slots: Annotated[int, Meta(ge=1, le=bounds.SLOTS)] = 1
    #: The directory of this worker's key and the controller's public key.
    keys: str = KEYS
    #: With less free disk the worker takes no new step.
    min_free_disk: Size = 2 * 1024**3
    #: Labels that steps may require besides this machine's tools.
    features: tuple[Named, ...] = ()

    @property
    def keys_dir(self) -> Path:
        return Path(self.keys).expanduser()


class WebSettings(Shared, frozen=True, kw_only=True):
    """The settings of the web page."""

    #: The controller to show, HOST or HOST:PORT. "": the builds of this user on this machine.
    controller: str = ""
    #: The directory of this program's key and the controller's public key.
    keys: str = "~/.config/distbuild/keys"
    #: The address to listen at. Another one than loopback needs a certificate.
    listen: str = "127.0.0.1"
    #: The port to listen at. 0: a free one.
    port: Annotated[int, Meta(ge=0, le=65535)] = 7420
    #: PEM file of the certificate for HTTPS, with its chain. "": HTTP.
    certificate: str = ""
    #: PEM file of the certificate's private key.
    certificate_key: str = ""
    #: File with the token that requests must have. "": a new one at each start, which is printed.
    token: str = ""

    @property
    def keys_dir(self) -> Path:
        return Path(self.keys).expanduser()

    @property
    def state_dir(self) -> Path:
        """Directory in which the builds of this user on this machine are found."""
        return self.cache_dir / "state"


S = TypeVar("S", bound=Shared)


def load_settings(
    environ: Mapping[str, str] = os.environ, overrides: Mapping[str, object] | None = None
) -> Settings:
    """The initiator's settings.  ``overrides`` are options; None means not given.

    ConfigError as `load`.
    """
    named = bool(environ.get("FABRIC_CONFIG"))
    return load(Settings, config_path(environ), environ, overrides, must_exist=named)


def load(
    kind: type[S],
    path: Path,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] | None = None,
    *,
    must_exist: bool = True,
) -> S:
    """The settings of one program, from the file ``path``, the environment and ``overrides``.

    ConfigError names the file, variable or option, and the setting.
    """
    given = overrides or {}
    values: dict[str, object] = {}
    try:
        if text := path.read_text():
            import tomllib  # slow, and most users have no settings file

            values = tomllib.loads(text)
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"{path}: this settings file does not exist") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    _check_names(kind, values, path)
    settings = _convert(kind, values, str(path))
    for field in msgspec.structs.fields(kind):
        if (name := variable(field)) in environ:
            values[field.encode_name] = environ[name]
            settings = _convert(kind, values, name)
        if given.get(field.name) is not None:
            values[field.encode_name] = given[field.name]
            settings = _convert(kind, values, "--" + field.encode_name)
    if isinstance(settings, Building) and settings.substituters and not settings.trusted_keys:
        raise ConfigError(
            f"{path}: substituters: needs the setting trusted-keys: without it, whoever answers at"
            " these addresses could put anything into your artifacts"
        )
    return settings


def variable(field: msgspec.structs.FieldInfo) -> str:
    """The environment variable of a setting; "" if it has none."""
    kind = field.type
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return "" if get_origin(kind) in (dict, tuple) else f"FABRIC_{field.name.upper()}"


def common(settings: Settings) -> dict[str, Any]:
    """The settings of an initiator that its embedded broker shares."""
    return {field.name: getattr(settings, field.name) for field in msgspec.structs.fields(Shared)}


def embedded_worker(
    settings: Settings, name: str | None = None, slots: int | None = None
) -> WorkerSettings:
    """The settings of a worker of the embedded fabric."""
    mine = {each.name: getattr(settings, each.name) for each in msgspec.structs.fields(Building)}
    return WorkerSettings(**mine, name=name or "", slots=slots or 1, min_free_disk=0)


def shown(settings: Shared) -> str:
    """All settings as TOML, without secrets in URLs, for ``--check-config``."""
    values = msgspec.to_builtins(settings)
    lines = [
        f"{name} = {shown_value(value)}"
        for name, value in values.items()
        if not isinstance(value, dict)
    ]
    for name, value in values.items():
        if isinstance(value, dict) and value:
            lines.append(f"\n[{name}]")
            lines += [f'"{key}" = {shown_value(item)}' for key, item in value.items()]
    return "\n".join(lines)


def shown_value(value: object) -> str:
    """A value as TOML, which may be JSON, too: without secrets in URLs."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {shown_value(one)}' for key, one in value.items())}}}"
    return without_secrets(msgspec.json.encode(value).decode())


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A warning for each variable FABRIC_... that is not a setting."""
    kinds = (Settings, BrokerSettings, WorkerSettings, WebSettings)
    known = {
        f"FABRIC_{each.name.upper()}" for kind in kinds for each in msgspec.structs.fields(kind)
    }
    lines = []
    for name in sorted(environ):
        if name.startswith("FABRIC_") and name not in known and name != "FABRIC_CONFIG":
            lines.append(
                f"the environment variable {name} is not a setting{suggest(name, known, 0.8)}"
            )
    return lines


def host_and_port(text: str, default: int = PORT, setting: str = "controller") -> tuple[str, int]:
    """Splits HOST, HOST:PORT or [IPV6]:PORT.  ConfigError if ``text`` is none of them."""
    bare = text.count(":") > 1 and not text.startswith("[")  # an IPv6 address
    host, colon, port = (text, "", "") if bare or text.endswith("]") else text.rpartition(":")
    if not colon:
        host, port = text, str(default)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65534:
        raise ConfigError(f"{setting}: {text!r} is not HOST or HOST:PORT")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The path of the initiator's settings file, which may not exist."""
    if named := environ.get("FABRIC_CONFIG"):
        return Path(named).expanduser()
    base = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "distbuild" / "distbuild.toml"


#: msgspec's name of a type -> its name in messages.
_IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


def _convert(kind: type[S], values: dict[str, object], where: str) -> S:
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        what, _, setting = str(error).partition(" - at `$.")
        setting = setting.rstrip("`")
        what = what.replace("Expected", "must be").replace(", got", ", not")
        for pattern, meaning in _PATTERNS.items():
            what = what.replace(f"`str` matching regex {pattern!r}", meaning)
        what = re.sub(r"`(\w+)`", lambda found: _IN_WORDS.get(found[1], found[0]), what)
        raise ConfigError(f"{where}: {setting + ': ' if setting else ''}{what}") from None


def _check_names(kind: type[S], values: Mapping[str, object], path: Path) -> None:
    """ConfigError if a setting does not exist."""
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for name in values:
        if name not in known:
            raise ConfigError(f"{path}: unknown setting {name!r}{suggest(name, known, 0.8)}")


#: `platform.machine()` -> architectures of definitions that this machine can build.
_NATIVE = {
    "x86_64": ("x86_64", "x86_32"),
    "i686": ("x86_32",),
    "aarch64": ("aarch64", "armv8l64"),
    "aarch64_be": ("armv8b64",),
    "armv7l": ("armv7l", "armv7lhf", "armv5l"),
    "armv7b": ("armv7b",),
    "ppc64": ("ppc64",),
}


#: Architecture -> a file that exists if the kernel runs its programs, too.
_EVIDENCE = {"x86_32": Path("/proc/sys/abi/vsyscall32")}


def native_architectures() -> tuple[str, ...]:
    """Architectures whose programs this machine's kernel runs, its own first."""
    machine = platform.machine()
    own, *others = _NATIVE.get(machine, (machine,))
    return (own, *(one for one in others if one not in _EVIDENCE or _EVIDENCE[one].exists()))


def built_architectures(settings: Building) -> tuple[str, ...]:
    """Architectures to build for on this machine, its own first."""
    return settings.architectures or native_architectures()
