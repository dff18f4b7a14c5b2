"""Opens a shell in built files: in the tree of a system, or in chunks staged together.

The tree is an overlay in scratch on the disk, so that its layers stay as they are, and changes are
thrown away at the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from fabric.building import ldconfig, overlay, sandbox
from fabric.building.build_script import PATH
from fabric.building.log import Log
from fabric.building.shell import enter
from fabric.building.tree import Unpacker
from fabric.building.workspace import Workspace
from fabric.definitions.environment import SYSTEM_PATH
from fabric.errors import FabricError, command
from fabric.host.cancel import CancelToken
from fabric.jobs import Manifest, Staged

#: Where a shell is, without following links that lead out of the tree.
_SHELLS = ("bin/sh", "usr/bin/sh")


def system_shell(manifest: Manifest, workspace: Workspace, argv: Sequence[str]) -> int:
    """Run ``argv``, else a shell, in the tree of a built system; return its exit status."""
    cancel = CancelToken()

    def make(into: Path) -> None:
        tree = Unpacker(into)
        for artifact in manifest.artifacts:
            if artifact.blob is not None:
                with workspace.store.open(artifact.blob, manifest.key, cancel.check) as file:
                    tree.add(file, artifact.name)
        tree.finish()

    digests = [artifact.blob.sha256 for artifact in manifest.artifacts if artifact.blob is not None]
    with workspace.using():
        workspace.store.use([manifest.key])
        tree = workspace.layers.made(["system", *digests], make, cancel)
        return _enter([tree], workspace, argv, manifest.name)


def staged_shell(
    staged: Sequence[Staged], prefixes: Iterable[str], workspace: Workspace, argv: Sequence[str]
) -> int:
    """The same in chunks staged together, a later one over the earlier.

    ``prefixes``: folders whose ``bin`` is searched for programs, too.
    """
    cancel = CancelToken()
    keys = {one.key for one in staged}
    with workspace.using(keys), Log(Path(os.devnull)) as log:
        stack = workspace.layers.stage(staged, cancel, log.write)
        lower = list(stack.paths)
        if ldconfig.needed(stack.has):
            limits = sandbox.NO_LIMITS
            lower.append(ldconfig.linked(stack, workspace.layers, log, cancel, limits))
        return _enter(lower, workspace, argv, "these artifacts", prefixes)


def _enter(
    lower: Sequence[Path],
    workspace: Workspace,
    argv: Sequence[str],
    what: str,
    prefixes: Iterable[str] = (),
) -> int:
    """Run ``argv``, else a shell, on an overlay over the trees ``lower``."""
    if not any(os.path.lexists(tree / path) for tree in lower for path in _SHELLS):
        raise FabricError(
            f"{what}: no shell can run there, because there is no /bin/sh; `--with` stages a chunk"
            f" that has one, and `{command('checkout')}` writes files into a folder"
        )
    scratch = workspace.session.scratch()
    try:
        for name in ("up", "tmp"):
            (scratch / name).mkdir()
        (scratch / "tmp").chmod(0o1777)
        launcher = overlay.writable(lower, workspace.session, scratch)
        mounts = ["--bind", str(scratch / "build"), "/", *sandbox.KERNEL]
        if not any((tree / "tmp").is_symlink() for tree in lower):
            mounts += ["--bind", str(scratch / "tmp"), "/tmp"]
        paths = [f"{prefix.rstrip('/')}/bin" for prefix in prefixes]
        environment = {"PATH": ":".join([*paths, SYSTEM_PATH]), "HOME": "/root"}
        box = sandbox.Box(tuple(mounts), (), environment, "/", "", PATH, launcher)
        if not argv:
            print("Changes are thrown away at the end.\nLeave:          exit", file=sys.stderr)
        return enter(box, argv or ["sh", "-i"])
    finally:
        with suppress(FileNotFoundError):
            workspace.session.discard(scratch)
