"""Installs the source of an import chunk: no command runs, and no tool of this machine is used.

A tree from a lorry of type debian-packages has the file ``packages.tsv``: the files in the packages
that it lists are installed instead of the tree.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from fabric.building import debs, sourcetree
from fabric.building.log import Log
from fabric.building.tree import copy, scan
from fabric.building.workspace import Workspace
from fabric.host.cancel import CancelToken
from fabric.jobs import Job


def install(
    job: Job,
    workspace: Workspace,
    inst: Path,
    log: Log,
    cancel: CancelToken,
    check: Callable[[], None],
) -> None:
    """Install the source of a chunk into ``inst``, an empty directory.

    ``check`` is called repeatedly, and may raise.  BuildFailed if the source cannot be installed.
    """
    if job.source is None:
        return
    tree = sourcetree.exported(job.source, workspace, cancel, log.write)
    if _is_file(tree / debs.TABLE):
        debs.unpack(tree, inst, log, check)
    else:
        log.write("The source tree is installed as it is.")
        copy(scan(tree, check).values(), inst, check)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
