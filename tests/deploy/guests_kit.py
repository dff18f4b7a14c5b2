"""The example cluster as guests of a VM host, with two changes.

The trove is on an attached disk, so that it outlives an upgrade; and there can be more workers.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import secrets_kit
from deploy_kit import Cluster, guide
from systems_kit import ROOT, Built
from vmhost_kit import VmHost
from world_kit import until

MORPH = "clusters/guests.morph"
MACHINES = {"distbuild-controller", "distbuild-worker0", "distbuild-worker1"}


class Guests(Cluster):
    """What deployments showed, in ``shown``: their output, and the command lines of processes.

    ``began`` is when they did, in Unix time; ``password`` is a setting of theirs.
    """

    def __init__(self, vmhost: VmHost, built: Built, scratch: Path) -> None:
        super().__init__(vmhost, built, scratch / "guests", morph=MORPH)
        self.vmhost = vmhost
        self.began = time.time() - 1  # the clock of files may be a tick behind
        self.password = "pass" + "word" * 10
        self.shown: list[str] = []
        self._scratch = scratch
        for disk in ("trove", "worker0", "worker1", "worker2"):
            vmhost.disk(f"/dev/vg/{disk}_src", "4G", scratch / f"{disk}.disk")

    def deploy(self) -> None:
        """Deploy two workers by a second run: Ctrl-C ends the first while it sends images."""
        self.describe(workers=2)
        # the value of any setting may be a password
        more = self._scratch / "more"
        more.write_text(f"PORTAL_PASSWORD: {self.password}\n")
        more.chmod(0o600)
        play = ["deploy-cluster.yml", "-vvv", "--diff", "-e", f"@{more}"]
        log = self._scratch / "interrupted"
        watch = secrets_kit.start_watch(self.world.start)
        self.interrupt(log, lambda: bool(self._partial()), *play)
        # the partial image is removed
        until(lambda: not self._partial(), 120, log.read_text)
        said, _ = self.play(*play, timeout=1200)
        self.shown = [log.read_text(), said, *secrets_kit.end_watch(watch)]

    def describe(self, workers: int) -> None:
        """Write its morph in the world."""
        head, *deployments = re.split(r"(?m)^(?=    worker\d:)", guide())
        urls = ", ".join(f"$worker{n}_url" for n in range(workers))
        head = head.replace("$worker0_url, $worker1_url", urls)
        head += "      ATTACH_DISKS: /dev/vg/trove_src\n"
        head += "      FSTAB_TROVE: LABEL=trove /srv/trove auto defaults 0 0\n"
        numbered = (deployments[0].replace("worker0", f"worker{n}") for n in range(workers))
        self.world.run("tee", ROOT / MORPH, input=head + "".join(numbered))

    def interrupt(self, log: Path, moment: Callable[[], bool], *playbook: str) -> None:
        """Run a playbook until ``moment`` is true, and press Ctrl-C."""
        pid = log.with_suffix(".pid")
        script = f'echo $$ > {pid}; exec "$@"'
        with log.open("w") as to:
            play = self.world.start(
                *("sh", "-c", script, "sh", *self.command(*playbook)),
                cwd=ROOT,
                env=self.environment,
                stdout=to,
                stderr=to,
            )
            until(moment, 600, log.read_text)
            self.world.run("kill", "-INT", pid.read_text().strip())
            play.wait(300)
        assert "User interrupted execution" in log.read_text()

    def image(self, name: str) -> Path:
        """The image file of a machine."""
        return self._scratch / f"vm/{name}_vm.img"

    def images(self, pattern: str) -> list[str]:
        """The names of images, with what follows ``.img`` fitting a pattern."""
        return sorted(path.name for path in (self._scratch / "vm").glob(f"*_vm.img{pattern}"))

    def _partial(self) -> list[str]:
        return self.images(".??????")

    def guests(self) -> set[str]:
        return {guest for guest in self.vmhost.guests() if guest.startswith("distbuild-")}

    def disk_label(self, name: str) -> str:
        """Return the label of the filesystem on a machine's attached disk."""
        device = f"/dev/vg/{name}_src"
        return self.world.run("blkid", "-o", "value", "-s", "LABEL", device).strip()

    def label(self, name: str) -> str:
        """Return the VERSION_LABEL of the image that a guest runs."""
        xml = self.world.run(*self.vmhost.virsh("dumpxml", f"distbuild-{name}"))
        found = re.search(r'<distbuild:guest .* label="(\w+)"', xml)
        assert found is not None, xml
        return found[1]

    def workers(self) -> dict[str, str]:
        """Return the state of each worker that the controller lists."""
        told = json.loads(self.initiator("workers", "--json", cwd=self._scratch))
        return {worker["name"]: worker.get("state", "idle") for worker in told}
