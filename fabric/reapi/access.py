"""Describes a server of the Remote Execution API, and what proves to it who this machine is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

#: What helps against a status of an engine.
_ADVICE = MappingProxyType(
    {
        "UNAUTHENTICATED": "check the setting `execute-token` or `execute-certificate`",
        "PERMISSION_DENIED": "this worker may not do that there: check `execute-token`,"
        " `execute-certificate` and `execute-instance`",
        "UNIMPLEMENTED": "it does not speak the Remote Execution API, version 2",
        "RESOURCE_EXHAUSTED": "it has no room, or no machine with the properties of"
        " `execute-properties`",
        "INVALID_ARGUMENT": "check `execute-instance` and `execute-properties`",
    }
)


class Access(msgspec.Struct, frozen=True):
    """A server, an engine by default, and the files for its connection, which are PEM."""

    host: str  # HOST:PORT
    encrypted: bool = False
    instance: str = ""
    properties: Mapping[str, str] = {}
    ca: Path | None = None  # None: the system's authorities
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None  # read for each call
    authorization: str = ""  # a header, in place of ``token``
    who: str = "The engine"
    advice: Mapping[str, str] = _ADVICE  # by the name of a status
    patience: float | None = None  # seconds for an answer; None: bounds.ENGINE_PATIENCE
    whole: float | None = None  # most seconds for a call, however large
