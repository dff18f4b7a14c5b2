"""What files of keys have in common, of connections and of signatures."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

#: The name of a key, which is that of its file.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
NAME_RULE = "use letters and digits, and . _ - after the first character, at most 63 characters"


def others_may_read(path: Path) -> bool:
    """Whether users besides its owner may read a file of a secret key.  OSError."""
    # of a credential of systemd, the group's bits are the mask of an access control list
    credential = str(path.parent) == os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(stat.S_IMODE(path.stat().st_mode) & (0o007 if credential else 0o077))
