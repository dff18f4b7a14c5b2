"""Makes this project's modules importable as Ansible does it on the machine that runs them."""

from __future__ import annotations

import sys
from pathlib import Path

import ansible.module_utils

PLUGINS = Path(__file__).parents[2] / "ansible/plugins"
ansible.module_utils.__path__.append(str(PLUGINS / "module_utils"))
sys.path.append(str(PLUGINS / "modules"))
