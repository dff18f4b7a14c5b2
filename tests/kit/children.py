"""Python processes that tests start."""

from __future__ import annotations

import os
import sys


def child_environment(**more: str) -> dict[str, str]:
    """The environment of Python child processes, which import what this process may import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}
