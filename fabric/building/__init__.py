"""Staging areas, the bubblewrap sandbox, the build steps, and the assembly of systems."""

from fabric.building.builder import build
from fabric.building.host import host_tools
from fabric.building.log import Log
from fabric.building.shell import shell
from fabric.building.workspace import Workspace

__all__ = ["Log", "Workspace", "build", "host_tools", "shell"]
