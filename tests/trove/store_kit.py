"""Artifact stores behind real servers on loopback, and artifacts to put there."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from servers_kit import free_port, running
from waiting import until

from fabric.jobs import Artifact, Blob, Manifest

#: Kinds of stores (the fixture `store`) whose objects can be listed and removed by a client.
LISTED = ["directory", "webdav", "webdav without obstore", "s3"]


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


@contextlib.contextmanager
def nginx(
    folder: Path,
    port: int,
    *,
    tls: Authority | None = None,
    login: str = "",
    reader: str = "",
    data: Path | None = None,
) -> Iterator[Server]:
    """A WebDAV server: nginx with its two DAV modules; its files are in ``data``.

    ``tls`` gives it a certificate. Only ``login`` (USER:PASSWORD) has access, if it is given, and
    ``reader``, whose writes get a 403, as on a deployed trove.
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
        users = [who.replace(":", ":{PLAIN}", 1) + "\n" for who in (login, reader) if who]
        (folder / "users").write_text("".join(users))
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
          map "$remote_user $request_method" $refused {{
            default 0; "~^{reader.partition(":")[0] or "-"} (PUT|DELETE)$" 1;
          }}
          server {{
            listen 127.0.0.1:{port} {"ssl" if tls else ""}; root {data}; {ssl} {auth}
            location / {{
              dav_methods PUT DELETE; dav_ext_methods PROPFIND; create_full_put_path on;
              if ($refused) {{ return 403; }}
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
    """A WebDAV server and the folder of its files."""

    url: str
    port: int
    data: Path


class Authority:
    """An authority that signs certificates. ``valid``: openssl's options for their dates."""

    def __init__(
        self, folder: Path, name: str = "authority", valid: Sequence[str] = ("-days", "2")
    ) -> None:
        self._folder = folder
        self._valid = valid
        self.file = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._openssl(
            *("req", "-x509", "-subj", f"/CN={name}", *valid),
            *("-keyout", str(self._key), "-out", str(self.file)),
        )

    def certificate(self, address: str) -> tuple[Path, Path]:
        """A certificate for a host, and its key."""
        made, key = self._folder / f"{address}.pem", self._folder / f"{address}.key"
        self._openssl(
            *("req", "-x509", "-subj", "/CN=server", *self._valid),
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


def _refuses(port: int) -> bool:
    """Whether a server refuses those who do not say who they are."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/")
        return connection.getresponse().status == 403
    return False


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server: SeaweedFS in one process."""
    ports = {name: free_port(above=20000) for name in ("master", "volume", "filer", "s3")}
    (folder / "s3.json").write_text(
        '{"identities": [{"name": "test", "credentials": [{"accessKey": "test",'
        ' "secretKey": "secret"}], "actions": ["Admin", "Read", "Write", "List"]}]}'
    )
    command = [
        *(
            "weed",
            f"-logdir={folder}",
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
        ),
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
    try:
        with running(command, folder / "output", ports["s3"], path=tools, seconds=60):
            until(lambda: _refuses(ports["s3"]))  # it lets all in before it has read s3.json
            yield {
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT": f"http://127.0.0.1:{ports['s3']}",
                "AWS_ALLOW_HTTP": "true",
            }
    finally:  # it has sockets at fixed paths and leaves them
        for port in ports.values():
            for place in (port, port + 10000):
                for socket in Path("/tmp").glob(f"seaweedfs-*-{place}.sock"):
                    socket.unlink()
