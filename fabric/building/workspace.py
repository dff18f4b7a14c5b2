"""Manages the directories of builds: layers, merged trees, and trees of failed builds.

::

    layers/KEY       a chunk unpacked, read-only by discipline
    indexes/NAME     the record of a layer or merged tree (`fabric.host.tree_tables`)
    indexes/NAME.digests  its digests for an engine (`fabric.execution.merkle`)
    merged/DIGEST    trees made of several layers, or of a source and its submodules
    tmp/PID-XXXX     scratch of one process (`fabric.building.session`)
    failed/KEY       the build tree of the last failed attempt at KEY, for inspection
    edits/ID         the build tree of an edited chunk (`fabric.building.kept_tree`)
    lock, held       see `fabric.host.locks` and `fabric.building.holds`
    cleaned          changes whenever layers were removed or replaced

Several workers, of several processes, may share one workspace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from fabric.building.disk_space import by_age, free, mark_used
from fabric.building.layers import Layers
from fabric.building.ports import Sources, Store
from fabric.building.session import Session
from fabric.building.tree import emptied, remove
from fabric.host.files import clear, recall, remember

#: The directories of trees, all of which can be made again.
_TREES = ("layers", "merged", "failed", "edits")
#: Directories of a scratch that the next build may use again.
_REUSED = ("up", "tmp")


class Workspace:
    """The directories of builds under ``root``, with their store and sources.

    ``root`` must be on a file system that overlayfs takes as its upper side (ext4, xfs, btrfs,
    tmpfs; not NFS, not another overlay).  Close it, or use it as a context manager.
    """

    def __init__(self, root: Path, store: Store, sources: Sources, *, sweep: bool = True) -> None:
        """Without ``sweep``, leftovers of killed processes stay."""
        self.root = root.absolute()
        self.store = store
        self.sources = sources
        # Layers hold setuid programs, which other users must not reach.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.session = Session(self.root)
        self.layers = Layers(self.session, store)
        self._spare: list[Path] = []
        self._cleaned: tuple[int, int] | None = None
        with self.session.locked("sessions"):
            for name in ("indexes", *_TREES):
                (self.root / name).mkdir(exist_ok=True)
            if sweep:
                self.sweep()
            if not (self.root / "cleaned").is_file():
                remember(self.root / "cleaned", b"")

    def build_scratch(self) -> Path:
        """A scratch for a build; some of its directories may exist already."""
        try:
            return self._spare.pop()
        except IndexError:
            return self.session.scratch()

    def recycle(self, scratch: Path) -> None:
        """Take back the scratch of a successful build.

        Making a directory on a busy disk takes a quarter of a millisecond, so one that the build
        left (nearly) empty is used by the next.
        """
        for item in list(scratch.iterdir()):
            if item.name not in _REUSED or os.listxattr(item) or not emptied(item):
                self.session.discard(item)
        self._spare.append(scratch)

    def keep_failed(self, key: str, scratch: Path) -> Path:
        """Keep the scratch of a failed attempt, in place of an earlier one; return its path."""
        self.forget_failed(key)
        kept = scratch.rename(self.root / "failed" / key)
        mark_used(kept)
        return kept

    def forget_failed(self, key: str) -> None:
        """Discard the scratch of a failed attempt, if there is one."""
        self.session.discard(self.root / "failed" / key)

    def take_failed(self, key: str) -> Path | None:
        """The scratch of the last failed attempt, moved into the session; None if there is none."""
        try:
            return (self.root / "failed" / key).rename(self.session.unused_name())
        except FileNotFoundError:
            return None

    @contextmanager
    def using(self, keep: AbstractSet[str] = frozenset()) -> Iterator[None]:
        """Around a build: its layers stay meanwhile, and the reaper waits.

        When the disk is nearly full, old trees are removed first, except for those of the keys
        ``keep``, and of the last failed attempt and the last edit: their user works on them.
        """
        if _scarce(self.root):
            last = [by_age([self.root / name])[-1:] for name in ("failed", "edits")]
            self.clean(keep | {path.name for trees in last for path in trees})
        fd = self.session.locks.take("layers", shared=True, wait=True)
        assert fd is not None
        self._notice_cleaning()
        self.session.reaper.enter()
        try:
            with self.session.holds.build():
                yield
        finally:
            self.session.reaper.leave()
            os.close(fd)

    def trim(self, wanted: int, others: Iterable[Path] = ()) -> None:
        """Make ``wanted`` bytes of disk free, if possible.

        Layers, merged and failed trees, and the contents of the folders ``others`` are removed,
        least recently used first; all can be made again.  Trees that builds use stay, and so do
        those that other processes hold: these trim for themselves.
        """
        folders = [self.root / name for name in _TREES]
        for path in by_age([*folders, *others], self.session.holds.used):
            if free(self.root) >= wanted:
                return
            with self.session.exclusively(path.name) as alone:
                if alone:
                    aside = self.set_aside(path)
            if alone:
                remove(aside)

    def set_aside(self, path: Path) -> Path:
        """Hide a tree that can be made again under another name; return its new path."""
        self.layers.forget(path.name)
        aside = path.with_name(f".old-{path.name}-{os.getpid()}")
        with suppress(FileNotFoundError):  # another process was faster
            path.rename(aside)
        for record in (path.name, f"{path.name}.digests"):
            clear(self.root / "indexes" / record)
        return aside

    def clean(self, keep: AbstractSet[str] = frozenset()) -> bool:
        """Discard layers and trees of builds unless ``keep`` has their names, and merged trees.

        Needed layers are made again from the store.  False, with nothing done, while any process
        builds in this workspace.
        """
        with self.idle() as idle:
            if idle:
                for folder in ("indexes", *_TREES):
                    for item in list((self.root / folder).iterdir()):
                        if item.name not in keep:
                            self.session.discard(item)
        return idle

    @contextmanager
    def idle(self) -> Iterator[bool]:
        """Whether no process builds here; then none begins meanwhile, and all processes check
        afterwards which layers exist.
        """
        fd = self.session.locks.take("layers")
        if fd is None:
            yield False
            return
        try:
            yield True
            remember(self.root / "cleaned", b"")
        finally:
            os.close(fd)

    def _notice_cleaning(self) -> None:
        info = (self.root / "cleaned").stat()
        look = (info.st_ino, info.st_ctime_ns)
        if look != self._cleaned:
            self.layers.forget_all()
            self._cleaned = look

    def close(self, patience: float = 1.0) -> None:
        """Close the session: its directory is deleted for at most ``patience`` seconds."""
        self.session.close(patience)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def sweep(self) -> None:
        """Discard leftovers of killed processes, and trees that a reboot may have damaged."""
        for session in self.session.left_over():
            self.session.discard(session)
        self.store.sweep()
        self.sources.sweep()
        self._forget_after_reboot()

    def _forget_after_reboot(self) -> None:
        """Discard layers unpacked before a reboot.

        Unpacking does not sync, so after a power cut their files may be empty.  They are made again
        from the store, which does.
        """
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        stamp = self.root / "boot"
        if recall(stamp) != boot:
            for name in ("layers", "indexes", "merged", "edits"):
                self.session.discard(self.root / name)
                (self.root / name).mkdir()
            remember(stamp, boot)


def _scarce(path: Path) -> bool:
    """Whether the file system of ``path`` is nearly full: 10 % free or less, at most 10 GiB."""
    info = os.statvfs(path)
    return free(path) < min(info.f_blocks * info.f_frsize // 10, 10 << 30)
