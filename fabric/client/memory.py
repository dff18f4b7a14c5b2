"""Names the files in which the initiator remembers something about definitions."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fabric.config import Settings


def memory(settings: Settings, what: str, root: Path) -> Path:
    """The file of that kind for the definitions in the folder ``root``."""
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return settings.state_dir / what / f"{name}.json"
