"""A farm on hosts of its own: controller, trove, workers and users."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import synthetic
from hosts import CLOCK, DISK, Host, Network, faketime, sh
from services import Service, Supervisor

MIB = 1 << 20
#: Seconds of silence after which a worker is lost.
LEASE = 4.0
PYTHON = sys.executable
#: nginx's module for the WebDAV methods that the store needs.
MODULE = "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so"
#: The program that restricts keys on a deployed trove.
ACCESS = Path(__file__).parents[2] / "ansible/roles/trove/files/trove-access"


def program(name: str) -> list[str]:
    """The command line of a program of fabric."""
    return [PYTHON, "-m", f"fabric.{name}"]


class Farm:
    """A running farm; ``logs`` holds the output of its programs."""

    def __init__(self, logs: Path, workers: int, example: Path | None = None) -> None:
        """``example``: a folder of `example.prepare`; then there is one more user, for that."""
        self.logs = logs
        self.example = example
        room = 4 if example else 1
        self.network = Network()
        self.supervisor = Supervisor()
        self.controller = self.network.add("controller", room * 256 * MIB)
        self.trove = self.network.add("trove", room * 256 * MIB)
        self.workers = [self.network.add(f"worker-{n}", room * 512 * MIB) for n in range(workers)]
        names = ("alice", "bob", "carol") if example else ("alice", "bob")
        self.users = [self.network.add(name, 256 * MIB) for name in names]
        self.network.name()
        self._admit()
        self._serve_trove()
        self.add(self.controller, "broker", program("broker"), "--config", self._broker())
        for host in self.workers:
            self.add(host, host.name, program("worker"), "--config", self._worker(host))
        for host in self.users:
            self._user(host)
            if host.name == "carol":
                host.sh("cp", "-r", f"{self.example}/definitions", DISK)
            else:
                self._synthesize(host)
        for host in self.hosts:
            host.done()

    @property
    def hosts(self) -> list[Host]:
        return list(self.network.hosts.values())

    @property
    def artifacts(self) -> Path:
        """The folder of the store on the trove."""
        return self.trove.disk / "data/artifacts"

    def add(self, host: Host, name: str, program: Sequence[str], *args: str | Path) -> Service:
        """Run a program on a host as a service."""
        clock = {
            "LD_PRELOAD": faketime(),
            "FAKETIME_TIMESTAMP_FILE": str(CLOCK),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
            "NO_FAKE_STAT": "1",
        }
        environment = clock if name.startswith(("broker", "worker")) else {}
        log = self.logs / f"{name}.log"
        return self.supervisor.add(Service(name, host, [*program, *args], environment, log))

    def environment(self, host: Host) -> dict[str, str]:
        return host.environment({"FABRIC_CONFIG": str(DISK / "etc/initiator.toml")})

    # -- setup ---------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Make keys on each host and admit them on the controller."""
        ours = self.controller.disk / "etc/keys"
        keytool = program("controller.keytool")
        sh(*keytool, "make", "broker", "--to", ours)
        for role, hosts in (("worker", self.workers), ("initiator", self.users)):
            for host in hosts:
                theirs = host.disk / "etc/keys"
                sh(*keytool, "make", role, host.name, "--to", theirs)
                sh(*keytool, "admit", theirs / f"{host.name}.key", "--keys", ours)
                shutil.copy(ours / "broker.key", theirs)
        for host in self.hosts:
            if host is not self.trove:
                key = host.disk / "etc/ssh-key"
                key.parent.mkdir(exist_ok=True)
                sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)

    def _serve_trove(self) -> None:
        disk = self.trove.disk
        if self.example is None:
            self.trove.sh("git", "init", "-q", "--bare", DISK / "trove.git")
        else:
            self.trove.sh("cp", "-r", self.example / "trove.git", DISK)
            self.trove.sh("mkdir", "-p", DISK / "data")
            self.trove.sh("cp", "-r", self.example / "artifacts", DISK / "data")
        for name in ("data/artifacts", "body", "etc"):
            (disk / name).mkdir(parents=True, exist_ok=True)
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", disk / "etc/host")
        host_key = " ".join((disk / "etc/host.pub").read_text().split()[:2])
        only = json.dumps(f"{ACCESS} write {DISK}/trove.git")
        rule = f"restrict,command={only} "
        admitted = []
        for host in self.hosts:
            if host is not self.trove:
                admitted.append(rule + (host.disk / "etc/ssh-key.pub").read_text())
                host.write("etc/known-hosts", f"trove {host_key}\n")
        self.trove.write("etc/admitted", "".join(admitted), 0o600)
        settings = {
            "HostKey": DISK / "etc/host",
            "AuthorizedKeysFile": DISK / "etc/admitted",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "PidFile": "none",
            "MaxStartups": "100",
            "ClientAliveInterval": "5",
            "SetEnv": "GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        config = self.trove.write("etc/sshd", text)
        self.add(self.trove, "sshd", [_found("sshd")], "-D", "-e", "-f", config)
        temporary = " ".join(
            f"{kind}_temp_path {DISK}/body;" for kind in ("proxy", "fastcgi", "uwsgi", "scgi")
        )
        self._certify()
        config = self.trove.write(
            "etc/nginx",
            f"""load_module {MODULE}; daemon off; worker_processes 1; user root; pid {DISK}/pid;
            error_log stderr; events {{}}
            http {{ access_log off; client_max_body_size 0; client_body_temp_path {DISK}/body;
              {temporary}
              server {{ listen 443 ssl; root {DISK}/data; auth_basic trove;
                ssl_certificate {DISK}/etc/trove.pem; ssl_certificate_key {DISK}/etc/trove.key;
                auth_basic_user_file {DISK}/etc/users; location / {{
                dav_methods PUT DELETE MOVE MKCOL; dav_ext_methods PROPFIND;
                create_full_put_path on; min_delete_depth 2; }} }} }}""",
        )
        # as the unit of the role `trove` does it: what a killed one had not taken in goes
        start = f'find {DISK}/body -type f -delete; exec "$@"'
        command = ["sh", "-c", start, "sh", _found("nginx"), "-c", str(config), "-e", "stderr"]
        self.add(self.trove, "nginx", command)

    def _certify(self) -> None:
        """A certificate for the store that every clock here takes for valid, and a password."""
        certificate, key = self.trove.disk / "etc/trove.pem", self.trove.disk / "etc/trove.key"
        sh(
            *("openssl", "req", "-x509", "-noenc", "-newkey", "ec", "-subj", "/CN=trove"),
            *("-pkeyopt", "ec_paramgen_curve:P-256", "-addext", "subjectAltName=DNS:trove"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-not_before", "20200101000000Z", "-not_after", "20991231000000Z"),
            *("-keyout", key, "-out", certificate),
        )
        self.trove.write("etc/users", "farm:{PLAIN}secret\n")
        for host in self.hosts:
            if host is not self.trove:
                host.write("etc/trove.pem", certificate.read_text())
                host.write("etc/login", "farm:secret\n", 0o600)

    def _shared(self) -> str:
        return (
            f'cache = "{DISK}/cache"\nartifacts = "https://trove/artifacts/"\n'
            f'artifacts-ca = "{DISK}/etc/trove.pem"\nartifacts-password = "{DISK}/etc/login"\n'
            f'trove = "ssh://root@trove{DISK}/trove.git"\nssh-key = "{DISK}/etc/ssh-key"\n'
            f'known-hosts = "{DISK}/etc/known-hosts"\nkeys = "{DISK}/etc/keys"\n'
        )

    def _broker(self) -> Path:
        # with a lost machine every other second, a step may be lost three times by chance
        more = f'state = "{DISK}/state"\nmetrics = ""\nlease = {LEASE}\nlosses = 20\nfaults = 20\n'
        return self.controller.write("etc/broker.toml", self._shared() + more)

    def _worker(self, host: Host) -> Path:
        more = 'controller = "controller"\nslots = 2\nmax-jobs = 1\nmin-free-disk = 33554432\n'
        return host.write("etc/worker.toml", self._shared() + more)

    def _user(self, host: Host) -> None:
        host.write("etc/initiator.toml", self._shared() + 'controller = "controller"\n')
        for folder in ("here", "attached", "alone-logs"):
            (host.disk / folder).mkdir()

    def _synthesize(self, host: Host) -> None:
        # git does not work by way of /proc, so these are made where everybody sees them
        made = self.logs / host.name
        synthetic.write(made / "definitions", made / "sources", "upstream:")
        host.sh("cp", "-r", made / "definitions", made / "sources", DISK)
        for source in (made / "sources").iterdir():
            ref = f"main:refs/heads/upstream/{source.name}.git/main"
            self.trove.sh("git", "-C", source, "push", "-q", "--force", DISK / "trove.git", ref)
        shutil.rmtree(made)


def _found(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert path, f"the tests need {name}"
    return path
