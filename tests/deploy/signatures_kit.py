"""Reads who signed the manifests of a deployed trove, and puts there what a stranger signed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from fabric.jobs import Manifest
from fabric.trove.artifacts.manifests import decode
from fabric.trust.seal import MANIFEST, Seal, read_envelope
from fabric.trust.signing import TrustedKeys

PLACE = "/srv/trove/www/artifacts/manifests"
#: Runs a shell command on the trove and returns its output.
Run = Callable[[str], str]


def signers(run: Run, trusted: Path) -> list[tuple[Manifest, str]]:
    """Each manifest, and the name of the key in the folder ``trusted`` that signed it."""
    names = {key.id: key.name for key in TrustedKeys(trusted).all()}
    found = []
    for line in run(f"grep -rH '' {PLACE}").splitlines():
        path, _, data = line.partition(":")
        [signature] = read_envelope(MANIFEST, data.encode()).signatures
        manifest = decode(data.encode(), Path(path).name)
        found.append((manifest, names.get(signature.keyid, "a stranger")))
    return found


def forge(run: Run, key: str, strangers: Path) -> None:
    """Replace a manifest by the same one, signed with the key in the folder ``strangers``."""
    content = read_envelope(MANIFEST, run(f"cat {PLACE}/{key}").encode()).content
    data = Seal(TrustedKeys(strangers)).close(MANIFEST, content).decode()
    run(f"printf %s {shlex.quote(data)} > {PLACE}/{key}")
