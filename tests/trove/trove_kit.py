"""What the trove's tests share: servers as child processes, git repositories, manifests."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.jobs import Artifact, Blob, Manifest

# -- artifacts -------------------------------------------------------------------------------


def blob(data: bytes) -> Blob:
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def key(number: int) -> str:
    return hashlib.sha256(b"key %d" % number).hexdigest()


def step(number: int = 1, *contents: bytes) -> tuple[Manifest, dict[str, bytes | Path]]:
    """A manifest with an artifact for each of ``contents`` and a log, and its files."""
    log = b"log of %d\n" % number
    artifacts = tuple(Artifact(f"a-{i}", blob(data)) for i, data in enumerate(contents))
    manifest = Manifest(
        key=key(number),
        kind="chunk",
        name=f"chunk-{number}",
        arch="x86_64",
        artifacts=artifacts,
        log=blob(log),
        log_name=f"build-step-{number}.log",
        seconds=1.5,
    )
    return manifest, {blob(data).sha256: data for data in (*contents, log)}


def child_environment() -> dict[str, str]:
    """For tests that run Python: with this folder and the project to import from."""
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here}"}


# -- git -------------------------------------------------------------------------------------


def git(folder: Path, *args: str) -> str:
    """Run git there as somebody, without any configuration."""
    environment = {
        **os.environ,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        **{f"GIT_{who}_NAME": "someone" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "someone@example.org" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_DATE": "1700000000 +0000" for who in ("AUTHOR", "COMMITTER")},
    }
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def repository(folder: Path, files: Mapping[str, str | bytes], tag: str = "") -> str:
    """Commit ``files`` in a (new) repository with a work tree; return the commit."""
    if not (folder / ".git").exists():
        folder.mkdir(parents=True, exist_ok=True)
        git(folder, "init", "--quiet", "--initial-branch=main")
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "some change")
    if tag:
        git(folder, "tag", "--annotate", "--message", tag, tag)
    return git(folder, "rev-parse", "HEAD")


# -- archives --------------------------------------------------------------------------------


def tarball(members: Mapping[str, bytes | str | tarfile.TarInfo], compression: str = "gz") -> bytes:
    """A tar archive: bytes are files, text is the target of a symlink, others are as they are."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.mtime = 1600000000
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                info.mode = 0o755 if content.startswith(b"#!") else 0o640
                archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


# -- servers ---------------------------------------------------------------------------------


class Files:
    """Serves a directory over HTTP with ranges.  ``break_after`` cuts each answer after so many
    bytes, as often as ``breaks`` says; with ``stalls`` the end of an answer never comes;
    ``requests`` lists (path, Range header)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.break_after = 0
        self.breaks = 0
        self.stalls = False
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str] = []
        self._pages: dict[str, tuple[str, bytes]] = {}
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Files:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, name: str, data: bytes) -> str:
        """Serve ``data`` as ``name``; return its URL."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return f"{self.url}/{name}"

    def page(self, path: str, kind: str, text: str) -> None:
        """Serve a page of that media type."""
        self._pages[path] = (kind, text.encode())

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        files = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                files.requests.append((self.path, wanted))
                files.authorizations.append(self.headers.get("Authorization", ""))
                kind = "application/octet-stream"
                try:
                    if self.path in files._pages:
                        kind, data = files._pages[self.path]
                    else:
                        data = (files.folder / self.path.lstrip("/")).read_bytes()
                except OSError:
                    return self.send_error(404)
                start = int(m[1]) if (m := re.fullmatch(r"bytes=(\d+)-", wanted)) else 0
                if start and start >= len(data):
                    return self.send_error(416)
                data = data[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if files.breaks:
                    files.breaks -= 1
                    data = data[: files.break_after]
                    self.close_connection = True
                if files.stalls:
                    self.wfile.write(data[: len(data) // 2])
                    time.sleep(20)
                    return None
                self.wfile.write(data)
                return None

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        return Handler


class Cable:
    """A way to a server that can be cut: TCP on loopback.

    ``breaks`` connections are cut after ``after`` bytes of the server's (or with ``up`` of the
    client's); ``rate`` limits what goes up, in bytes per second; ``stalls`` lets nothing through.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self.after = self.breaks = self.rate = 0
        self.up = self.stalls = False
        self.cut = 0  # connections that were
        self.passed = 0  # bytes of the server's
        self._stalled: list[socket.socket] = []  # nobody reads them, nobody closes them
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Cable:
        self._accepting.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for one in self._stalled:
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.stalls:
                    self._stalled.append(client)
                    continue
                server = socket.create_connection(("127.0.0.1", self._to))
                for pair in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                sink.sendall(data)
                passed += len(data)
                self.passed += 0 if up else len(data)
                if up and self.rate:
                    time.sleep(len(data) / self.rate)
                if self.breaks and up == self.up and passed >= self.after:
                    self.breaks -= 1
                    self.cut += 1
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def nginx(
    folder: Path,
    port: int,
    *,
    tls: Authority | None = None,
    login: str = "",
    data: Path | None = None,
) -> Iterator[Server]:
    """A WebDAV server: nginx with its two DAV modules; its files are in ``data``.

    With a certificate of ``tls``, and for ``login`` (USER:PASSWORD) alone, if they are given.
    """
    module = Path("/usr/lib/nginx/modules/ngx_http_dav_ext_module.so")
    assert module.exists(), (
        "the tests need the Debian packages nginx-light, libnginx-mod-http-dav-ext"
    )
    data = data or folder / "data"
    data.mkdir(exist_ok=True)
    user = "user root;" if os.geteuid() == 0 else ""
    ssl = auth = ""
    if tls:
        certificate, key = tls.certificate("127.0.0.1")
        ssl = f"ssl_certificate {certificate}; ssl_certificate_key {key};"
    if login:
        name, _, password = login.partition(":")
        (folder / "users").write_text(f"{name}:{{PLAIN}}{password}\n")
        auth = f'auth_basic "artifacts"; auth_basic_user_file {folder}/users;'
    (folder / "nginx.conf").write_text(
        f"""
        load_module {module};
        daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; {user}
        events {{}}
        http {{
          access_log off; client_max_body_size 0; client_body_temp_path {data}/tmp;
          proxy_temp_path {folder}/body; fastcgi_temp_path {folder}/body;
          uwsgi_temp_path {folder}/body; scgi_temp_path {folder}/body;
          server {{
            listen 127.0.0.1:{port} {"ssl" if tls else ""}; root {data}; {ssl} {auth}
            location / {{
              dav_methods PUT DELETE; dav_ext_methods PROPFIND; create_full_put_path on;
            }}
          }}
        }}
        """
    )
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    command += ["-e", str(folder / "error.log")]
    with running(command, folder / "output", port, path="/usr/sbin:/sbin"):
        yield Server(f"http{'s' if tls else ''}://127.0.0.1:{port}", port, data)


@dataclass(frozen=True)
class Server:
    """A WebDAV server, and the folder where its files are."""

    url: str
    port: int
    data: Path


class Authority:
    """An authority of our own that signs certificates."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._openssl(
            *("req", "-x509", "-subj", f"/CN={name}", "-days", "2"),
            *("-keyout", str(self._key), "-out", str(self.file)),
        )

    def certificate(self, address: str) -> tuple[Path, Path]:
        """A certificate for a host, and its key."""
        made, key = self._folder / f"{address}.pem", self._folder / f"{address}.key"
        self._openssl(
            *("req", "-x509", "-subj", "/CN=server", "-days", "2"),
            *("-addext", f"subjectAltName=IP:{address}", "-CA", str(self.file)),
            *("-CAkey", str(self._key), "-keyout", str(key), "-out", str(made)),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        return made, key

    def _openssl(self, *args: str) -> None:
        command = [
            "openssl",
            *args,
            "-noenc",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Sshd:
    """An SSH server that lets one key in, for git alone."""

    folder: Path
    port: int
    key: Path  # a client's, admitted
    stranger: Path  # a client's, not admitted
    known_hosts: Path

    def url(self, path: Path) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{path}"


@contextlib.contextmanager
def sshd(folder: Path, port: int, **more: str) -> Iterator[Sshd]:
    """OpenSSH's server on loopback with a host key of its own; all it runs is git."""
    for name in ("host", "key", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    shell = 'git-shell -c "$SSH_ORIGINAL_COMMAND"'
    admitted = folder / "admitted"
    admitted.write_text(f"restrict,command={json.dumps(shell)} " + (folder / "key.pub").read_text())
    admitted.chmod(0o600)
    host = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known hosts").write_text(f"[127.0.0.1]:{port} {host}\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "Port": str(port),
        "ListenAddress": "127.0.0.1",
        "HostKey": str(folder / "host"),
        "AuthorizedKeysFile": str(admitted),
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "StrictModes": "no",
        "PidFile": "none",
        "SetEnv": "GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*",
        **more,
    }
    (folder / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
    command = ["sshd", "-D", "-e", "-f", str(folder / "sshd_config")]
    with running(command, folder / "output", port, path="/usr/sbin:/sbin"):
        yield Sshd(folder, port, folder / "key", folder / "stranger", folder / "known hosts")


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server: SeaweedFS, all of it in one process."""
    ports = {name: free_port(above=20000) for name in ("master", "volume", "filer", "s3")}
    (folder / "s3.json").write_text(
        '{"identities": [{"name": "test", "credentials": [{"accessKey": "test",'
        ' "secretKey": "secret"}], "actions": ["Admin", "Read", "Write", "List"]}]}'
    )
    command = [
        *("weed", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-master.telemetry=false", "-master.telemetry.url=http://127.0.0.1:9/"),
        *(
            "-volume.max=8",
            "-volume.preStopSeconds=0",
            "-master.volumeSizeLimitMB=64",
            f"-filer.localSocket={folder}/filer",
        ),
        *("-filer", "-s3", f"-s3.config={folder}/s3.json"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-{name}.port={port}" for name, port in ports.items()),
    ]
    tools = str(Path(sys.executable).parent)
    with running(command, folder / "output", ports["s3"], path=tools, seconds=60):
        yield {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": f"http://127.0.0.1:{ports['s3']}",
            "AWS_ALLOW_HTTP": "true",
        }


@contextlib.contextmanager
def running(
    command: list[str], output: Path, port: int, *, path: str = "", seconds: float = 20
) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a child process, from when its port answers until the end of the block."""
    search = f"{os.environ['PATH']}:{path}"
    program = shutil.which(command[0], path=search)
    assert program, f"the tests need {command[0]}"
    with output.open("wb") as log:
        process = subprocess.Popen([program, *command[1:]], stdout=log, stderr=log)
    try:
        until = time.monotonic() + seconds
        while not answers(port):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < until, output.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def free_port(above: int = 1024) -> int:
    """A port that nobody listens on; also the one 10,000 above it, where that exists."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if above == 1024:
            return port
        if above < port < 55000 and not answers(port + 10000):
            return port


def on_small_disk(size: str, mount: Path, code: str) -> list[str]:
    """The lines that Python code prints, run where ``mount`` is a disk of so much room."""
    script = f'mount -t tmpfs -o size={size} none {mount} && exec "$0" -c "$1"'
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--mount", "sh", "-c", script),
            *(sys.executable, textwrap.dedent(code)),
        ],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
