"""Runs playbooks in a world, and reads their recap."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from systems_kit import ASSEMBLED, BUILD_SYSTEM, ROOT, Built
from vmhost_kit import DOMAIN, VmHost
from world_kit import Failed

#: name of a host -> its counts in the recap: ok, changed, failed, ...
Recap = dict[str, dict[str, int]]
#: the machines of the example cluster
NAMES = ("controller", "worker0", "worker1")
MORPH = "clusters/distbuild-cluster.morph"


def guide() -> str:
    """The example cluster, of machines of the system that is tested."""
    return (ROOT / MORPH).read_text().replace(ASSEMBLED, BUILD_SYSTEM)


class Cluster:
    """The example cluster, whose controller is the trove.  ``prefix`` begins all host names.

    ``morph`` is another description of it.
    """

    def __init__(
        self,
        vmhost: VmHost,
        built: Built,
        folder: Path,
        prefix: str = "",
        morph: str = MORPH,
    ) -> None:
        self.world = vmhost.world
        self._prefix = prefix
        self._morph = morph
        self._folder = folder
        folder.mkdir()
        self.state = folder / "distbuild/clusters/x86_64_distbuild_network"
        self.environment = {
            **{f"{name}_url": self.host(name) for name in (*NAMES, "worker2")},
            "trove_id": "farm",
            "trove_url": self.host("controller"),
            "FABRIC_CACHE": str(built.cache),
            "XDG_CONFIG_HOME": str(folder),
            "XDG_STATE_HOME": str(folder),
            "ANSIBLE_NOCOLOR": "1",
        }
        # in the folders that the guide names, on the root filesystem of the world
        self.world.run("tee", ROOT / MORPH, input=guide())
        make = "test -e worker.key || ssh-keygen -q -t ed25519 -N '' -C worker -f worker.key"
        self.world.run("sh", "-c", make, cwd=ROOT)

    def host(self, name: str) -> str:
        """Return the DNS name of the machine ``name`` of the cluster."""
        return f"{self._prefix}{name}.{DOMAIN}"

    def play(self, playbook: str, *options: str, timeout: float = 600) -> tuple[str, Recap]:
        """Run a playbook and return its output and recap.  Raises Failed if it fails."""
        command = self.command(playbook, *options)
        done = self.world.attempt(*command, cwd=ROOT, env=self.environment, timeout=timeout)
        if done.returncode:
            said = f"{wrong(done.stdout)}\n{done.stderr}"
            raise Failed(f"{shlex.join(command)}: exit code {done.returncode}\n{said}")
        return done.stdout, recap(done.stdout)

    def command(self, playbook: str, *options: str) -> list[str]:
        """Return the command that runs a playbook."""
        return ["ansible-playbook", playbook, "-e", f"cluster={self._morph}", *options]

    def on(self, name: str, command: str) -> str:
        """Run a shell command as root on a machine and return its output."""
        known = self.state / "ssh" / name / "known_hosts"
        options = ["-o", f"UserKnownHostsFile={known}", "-o", f"HostKeyAlias={name}"]
        login = [*options, "-i", str(self.state / "ssh/admin"), f"root@{self.host(name)}"]
        return self.world.run("ssh", *login, command)

    @property
    def initiators_environment(self) -> dict[str, str]:
        """The environment of a developer who uses the deployed cluster."""
        return {
            **self.environment,
            "FABRIC_CONFIG": str(self.state / "initiator/distbuild.toml"),
            "FABRIC_CACHE": str(self._folder / "cache"),
        }

    def initiator(self, *command: str, cwd: Path, timeout: float = 300) -> str:
        """Run ``fabric-initiator`` with this cluster and return its output."""
        return self.world.run(
            *("fabric-initiator", *command),
            cwd=cwd,
            env=self.initiators_environment,
            timeout=timeout,
        )

    def start_initiator(self, *command: str, **popen: Any) -> subprocess.Popen[str]:
        """Start ``fabric-initiator`` with this cluster in the background."""
        return self.world.start(
            "fabric-initiator", *command, env=self.initiators_environment, **popen
        )


def recap(said: str) -> Recap:
    """Return the counts of each host at the end of a play's output."""
    lines = said.rpartition("PLAY RECAP")[2].splitlines()[1:]
    return {
        line.split(":")[0].strip(): {
            name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line)
        }
        for line in lines
        if ":" in line
    }


def wrong(said: str) -> str:
    """Return the failed tasks and the recap of a play's output."""
    tasks = re.split(r"\n\n(?=TASK |PLAY )", said)
    return "\n\n".join(task for task in tasks if re.search(r"(?m)^(fatal|failed|PLAY RECAP)", task))


def changed(counts: Recap) -> set[str]:
    """Return the hosts with changes."""
    return {host for host, of_host in counts.items() if of_host["changed"]}


def tiny_definitions(root: Path, count: int, command: str) -> Path:
    """Definitions of a system of ``count`` chunks that run ``command`` with the workers' tools."""
    source = root / "source"
    source.mkdir(parents=True)
    (source / "hello").write_text("hello\n")
    me = ["git", "-c", "user.name=t", "-c", "user.email=t@invalid"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*me, *words], cwd=source, check=True)
    definitions = root / "definitions"
    for folder in ("strata", "systems", "sources"):
        (definitions / folder).mkdir(parents=True)
    (definitions / "VERSION").write_text("version: 8\n")
    (definitions / "DEFAULTS").write_text(
        "split-rules:\n  chunk:\n  - {artifact: -misc, include: ['.*']}\n"
        "  stratum:\n  - {artifact: -runtime, include: ['.*']}\n"
    )
    (definitions / "systems/tiny.morph").write_text(
        "name: tiny\nkind: system\narch: x86_64\nstrata:\n"
        "- {name: things, morph: strata/things.morph}\n"
    )
    # the initiator pushes this source to the trove, from which workers fetch
    (definitions / "sources/tiny.lorry").write_text(f"tiny:\n  type: git\n  url: {source}\n")
    specs = []
    for number in range(1, count + 1):
        name = f"tiny-{number:02}"
        (definitions / f"strata/{name}.morph").write_text(
            f"name: {name}\nkind: chunk\ninstall-commands:\n- {command}\n- echo built {name}\n"
            f'- mkdir -p "$DESTDIR"/usr && cp hello "$DESTDIR"/usr/{name}\n'
        )
        specs.append(
            f"- {{name: {name}, morph: strata/{name}.morph, repo: 'upstream:tiny', ref: main,"
            " build-mode: test}\n"
        )
    (definitions / "strata/things.morph").write_text(
        "name: things\nkind: stratum\nchunks:\n" + "".join(specs)
    )
    subprocess.run([*me, "init", "-q", "-b", "main"], cwd=definitions, check=True)
    return definitions
