"""Git repositories, archives, their servers, and a farm that shares them."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import http.server
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers_kit import running

from fabric.trove.configured import open_importer
from fabric.trove.sources.farm_remote import Trove
from fabric.trove.sources.resolve import Sources


def outputs_at_once(code: str) -> set[str]:
    """The distinct outputs of four processes that run this program at once and succeed."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    root = Path(__file__).parents[2]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(4)
    ]
    outputs = {child.communicate()[0] for child in children}
    assert [child.returncode for child in children] == [0] * 4
    return outputs


def git(folder: Path, *args: str) -> str:
    """Run git there with an author and without any configuration."""
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


def tarball(members: Mapping[str, bytes | str | tarfile.TarInfo], compression: str = "gz") -> bytes:
    """A tar archive: bytes are files, text is the target of a symlink, others are members."""
    raw = io.BytesIO()
    # typeshed lists the modes, and this one is put together
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


class Files:
    """Serves a directory over HTTP with ranges. ``breaks`` answers are cut after ``break_after``
    bytes; with ``stalls`` an answer never ends; ``requests`` lists (path, Range header)."""

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
                        path = urllib.parse.unquote(self.path).lstrip("/")
                        data = (files.folder / path).read_bytes()
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
                    time.sleep(20)  # longer than any test waits
                    return None
                self.wfile.write(data)
                return None

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        return Handler


@dataclass(frozen=True)
class Sshd:
    """An SSH server that accepts one key, for git only."""

    folder: Path
    port: int
    key: Path  # a client's, admitted
    stranger: Path  # a client's, not admitted
    known_hosts: Path

    def url(self, path: Path) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{path}"


SHELL = 'sh -c "$SSH_ORIGINAL_COMMAND"'
GIT_SHELL = 'git-shell -c "$SSH_ORIGINAL_COMMAND"'


@contextlib.contextmanager
def sshd(folder: Path, port: int, shell: str = GIT_SHELL, **more: str) -> Iterator[Sshd]:
    """OpenSSH's server on loopback with its own host key; it runs only ``shell``."""
    for name in ("host", "key", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
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
def machine(folder: Path, port: int, shell: str = SHELL) -> Iterator[tuple[str, str]]:
    """A machine to log in to, as ssh names it, and the PATH with a ssh that may."""
    client = folder / "client"
    client.mkdir()
    with sshd(folder, port, shell=shell) as server:
        hosts = shlex.quote(f'UserKnownHostsFile="{server.known_hosts}"')
        ssh = shutil.which("ssh", path=os.defpath)  # not that of another machine
        command = f"{ssh} -F /dev/null -i {server.key} -o {hosts}"
        (client / "ssh").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (client / "ssh").chmod(0o755)
        yield server.url(Path("/")).removesuffix("/"), f"{client}:{os.environ['PATH']}"


class Farm:
    """Machines that share only a trove. Every use is like a new process."""

    def __init__(self, folder: Path, trove: Trove, bare: Path) -> None:
        self.folder = folder
        self.trove = trove
        self.bare = bare

    def lorries(self, who: str, **lorries: Mapping[str, Any]) -> None:
        """Write definitions with these lorries for a user. JSON is YAML."""
        sources = self.folder / who / "sources"
        sources.mkdir(parents=True, exist_ok=True)
        (sources / "all.lorry").write_text(json.dumps(lorries))

    def tarball(self, who: str, url: str, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        self.lorries(who, thing={"type": "tarball", "url": url, "version": "1.0", "sha256": digest})

    def initiator(self, who: str, head: str = "") -> Sources:
        return self._machine(who, self.folder / who / "sources", head=head)

    def resolver(self, of: str, head: str = "") -> Sources:
        """The sources of the broker for the definitions of a user."""
        return self._machine("broker", self.folder / of / "sources", imports=False, head=head)

    def worker(self, name: str = "worker") -> Sources:
        return self._machine(name, None)

    def refs(self) -> set[str]:
        return set(git(self.bare, "for-each-ref", "--format=%(refname)").split())

    def _machine(
        self, name: str, lorries: Path | None, *, imports: bool = True, head: str = ""
    ) -> Sources:
        root = self.folder / name / "cache"
        importer = open_importer if imports else None
        return Sources(root, {}, lorries, trove=self.trove, importer=importer, head=head)
