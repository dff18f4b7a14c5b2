"""Provides what all imports share: downloads, apt, progress, and the token that cancels them."""

from __future__ import annotations

from pathlib import Path

from fabric.host.cancel import CancelToken
from fabric.host.progress import Progress
from fabric.trove.importers.apt import Apt
from fabric.trove.importers.download import Downloads
from fabric.trove.sources.lorries import Lorry


class Context:
    """Keeps downloads and apt's lists below ``root`` (the trove's).

    ``snapshot``: the time of which Debian's archives are asked besides the present, or "".
    """

    def __init__(
        self, root: Path, progress: Progress, cancel: CancelToken, snapshot: str = ""
    ) -> None:
        self.root = root
        self.progress = progress
        self.cancel = cancel
        self.snapshot = snapshot
        self.downloads = Downloads(root / "downloads", progress, cancel)

    def apt(self, lorry: Lorry) -> Apt:
        """The private apt that serves a lorry."""
        kind = "deb-src" if lorry.type == "debian-source" else "deb"
        architecture = lorry.architecture or "amd64"
        folder = self.root / "apt"
        return Apt(folder, kind, architecture, self.progress, self.cancel, self.snapshot)
