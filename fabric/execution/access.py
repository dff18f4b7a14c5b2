"""Reads from the settings where the engine is, and what proves to it who this machine is."""

from __future__ import annotations

from pathlib import Path

from fabric import config
from fabric.config import Building, ConfigError, is_loopback
from fabric.reapi.access import Access

#: The port of an engine whose URL has none.
_PORTS = {"grpc": 8980, "grpcs": 443}


def of(settings: Building) -> Access:
    """The engine of the setting `execute`.  ConfigError if the settings are wrong."""
    scheme, _, rest = settings.execute.partition("://")
    if scheme not in _PORTS or not rest or "/" in rest or "@" in rest:
        raise ConfigError(f"execute: {settings.execute!r} is not grpc[s]://HOST[:PORT]")
    host, port = config.host_and_port(rest, _PORTS[scheme], "execute")
    encrypted = scheme == "grpcs"
    if not encrypted and not is_loopback(host):
        raise ConfigError(
            f"execute: {host} is not a loopback address, and whoever changes messages changes"
            " artifacts: use grpcs://"
        )
    if bool(settings.execute_certificate) != bool(settings.execute_certificate_key):
        raise ConfigError("execute-certificate and execute-certificate-key go together")
    return Access(
        host=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        encrypted=encrypted,
        instance=settings.execute_instance.strip("/"),
        properties=settings.execute_properties,
        ca=_path(settings.execute_ca),
        certificate=_path(settings.execute_certificate),
        key=_path(settings.execute_certificate_key),
        token=_path(settings.execute_token),
    )


def _path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None
