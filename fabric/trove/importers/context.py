"""Provides what all imports share: downloads, apt, progress, and the token that cancels them."""

from __future__ import annotations

from pathlib import Path

from fabric.host.cancel import CancelToken
from fabric.host.progress import Progress
from fabric.trove.importers.apt import Apt
from fabric.trove.importers.download import Downloads
from fabric.trove.sources.lorries import Lorry


class Context:
    """Keeps downloads and apt's lists below ``root`` (the trove's)."""

    def __init__(self, root: Path, progress: Progress, cancel: CancelToken) -> None:
        self.root = root
        self.progress = progress
        self.cancel = cancel
        self.downloads = Downloads(root / "downloads", progress, cancel)

    def apt(self, lorry: Lorry) -> Apt:
        """The private apt that serves a lorry."""
        kind = "deb-src" if lorry.type == "debian-source" else "deb"
        architecture = lorry.architecture or "amd64"
        return Apt(self.root / "apt", kind, architecture, self.progress, self.cancel)
