"""Settings: one TOML file, then the environment, then the command line; the last word wins.

The file is ``$FABRIC_CONFIG``, else ``$XDG_CONFIG_HOME/distbuild/distbuild.toml`` (by default
``~/.config``); it may be absent.  Every setting ``some-name`` of it can be given as
``FABRIC_SOME_NAME`` in the environment, but for the tables.
"""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fabric.errors import FabricError


class ConfigError(FabricError):
    """A setting is wrong; the text names the file or variable."""


def _default_cache() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return f"{base}/distbuild"


class Settings(
    msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True
):
    """All settings.  Sizes are bytes, times seconds; 0 means no limit."""

    #: everything local stands below this directory
    cache: str = msgspec.field(default_factory=_default_cache)
    #: the artifact store: a directory or a URL (file, http, https, s3, gs, az); "": CACHE/artifacts
    artifacts: str = ""
    #: address of the controller; "": build on this machine, with an embedded broker
    controller: str = ""
    #: workers of the embedded fabric; 0: two, or a quarter of the cores if that is more
    workers: int = 0
    #: make's -j in a build step; 0: the number of cores
    max_jobs: int = 0
    #: a build step running longer is ended and counts as failed
    build_timeout: float = 0.0
    #: a build step that prints more is ended and counts as failed
    log_limit: int = 4 * 1024**3
    #: repository aliases, `{name = "pattern with %s"}`; a plain name stands in the trove
    aliases: dict[str, str] = {}

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

    @property
    def work_dir(self) -> Path:
        """What a worker needs to build: layers, scratch, locks."""
        return self.cache_dir / "work"

    @property
    def state_dir(self) -> Path:
        """The broker's journal and the logs under way."""
        return self.cache_dir / "state"

    @property
    def host_tools_file(self) -> Path:
        """Remembers digests of this machine's tools."""
        return self.cache_dir / "host-tools.json"

    @property
    def worker_count(self) -> int:
        cores = os.cpu_count() or 1
        return self.workers or max(min(2, cores), cores // 4)

    @property
    def jobs(self) -> int:
        return self.max_jobs or os.cpu_count() or 1


def load_settings(
    environ: Mapping[str, str] = os.environ, overrides: Mapping[str, object] | None = None
) -> Settings:
    """The settings in force.  ``overrides`` are the command line's; None means not given."""
    given = overrides or {}
    path = config_path(environ)
    values: dict[str, object] = {}
    if path.exists():
        try:
            values = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path}: {error}") from None
    elif environ.get("FABRIC_CONFIG"):
        raise ConfigError(f"{path}: no such file (it is named by FABRIC_CONFIG)")
    settings = _convert(values, str(path))
    for field in msgspec.structs.fields(Settings):
        variable = "FABRIC_" + field.name.upper()
        if field.name != "aliases" and variable in environ:
            values[field.encode_name] = environ[variable]
            settings = _convert(values, variable)
        if given.get(field.name) is not None:
            values[field.encode_name] = given[field.name]
            settings = _convert(values, "--" + field.encode_name)
    return settings


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the settings file is, whether it exists or not."""
    if named := environ.get("FABRIC_CONFIG"):
        return Path(named).expanduser()
    base = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "distbuild" / "distbuild.toml"


def _convert(values: dict[str, object], where: str) -> Settings:
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    for name in ("workers", "max_jobs", "build_timeout", "log_limit"):
        if getattr(settings, name) < 0:
            raise ConfigError(f"{where}: {name.replace('_', '-')} may not be negative")
    return settings


#: What `platform.machine()` says -> architectures of definitions that this machine can build.
_NATIVE = {
    "x86_64": ("x86_64", "x86_32"),
    "i686": ("x86_32",),
    "aarch64": ("armv8l64",),
    "aarch64_be": ("armv8b64",),
    "armv7l": ("armv7l", "armv7lhf", "armv5l"),
    "armv7b": ("armv7b",),
    "ppc64": ("ppc64",),
}


def native_architectures() -> tuple[str, ...]:
    """Architectures this machine builds, its own first."""
    return _NATIVE.get(platform.machine(), (platform.machine(),))
