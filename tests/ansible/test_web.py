"""The web page as deployed: the role's files, with the real page, its proxy and a real broker."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from farm_kit import HOST, PORT, Farm
from waiting import until

from ansible_collections.distbuild.fabric.plugins.modules import web_wait
from fabric.wire.keys import AuthorizedKeys

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
#: Paths of a machine, which the test replaces with folders of its own.
RUN = "/run/fabric-web-proxy"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Page:
    """What the roles make of the example cluster, running at an address of this test."""

    def __init__(self, folder: Path, farm: Farm, stack: ExitStack) -> None:
        self.farm = farm
        self.port, self.inner_port = free_port(), free_port()
        self.state = folder / "state/distbuild/clusters/x86_64_distbuild_network"
        self.tree = folder / "tree"
        self.folder = folder
        self._stack = stack
        (self.state / "fabric").mkdir(parents=True)
        for file in farm.keys.glob("broker.*"):
            shutil.copy(file, self.state / "fabric")
        self.said = self.deploy()
        AuthorizedKeys(farm.keys).admit(self.state / "web/web-page.key")
        self.web = self.start_page()
        stack.callback(lambda: end(self.web))
        self._start_proxy()

    def deploy(self) -> str:
        """Make the secrets and the files, and return what Ansible prints."""
        machine = self.tree / "etc/distbuild/web"
        given = {
            **{"controller_url": HOST, "worker0_url": "w0.example", "worker1_url": "w1.example"},
            **{"trove_url": "trove.example", "trove_id": "x", "access_known_hosts": "x"},
            **{"web_tree": str(self.tree), "web_port": self.port},
            **{"web_controller": f"{HOST}:{PORT}", "web_settings": {"port": self.inner_port}},
            **{"web_credentials": str(machine), "web_proxy_credentials": str(machine)},
            "access_signatures": False,  # the store of the test is not signed
            "access_artifacts": f"file://{self.farm.directory}/store",
        }
        done = subprocess.run(
            [BIN / "ansible-playbook", "tests/ansible/playbooks/web.yml", "-e", json.dumps(given)],
            cwd=ROOT,
            env={
                **os.environ,
                "XDG_STATE_HOME": str(self.folder / "state"),
                "ANSIBLE_NOCOLOR": "1",
                "COLUMNS": "300",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_page(self) -> subprocess.Popen[bytes]:
        config = self.tree / "etc/distbuild/web.toml"
        with (self.folder / "web.err").open("ab") as errors:
            return subprocess.Popen(
                [BIN / "fabric-web", "--config", config],
                env={**os.environ, "FABRIC_CACHE": str(self.folder / "cache")},
                stdout=errors,
                stderr=errors,
            )

    def _start_proxy(self) -> None:
        config = self.tree / "etc/distbuild/web/nginx.conf"
        text = config.read_text().replace(RUN, str(self.folder))
        text = text.replace(f"listen {self.port} ssl;", f"listen {HOST}:{self.port} ssl;")
        text = text.replace(f"listen [::]:{self.port} ssl;", "")
        config.write_text(text)
        more = "user root;" if os.geteuid() == 0 else ""  # as itself, like the unit's user
        command = ["nginx", "-e", "stderr", "-c", str(config), "-g", f"daemon off; {more}"]
        with (self.folder / "proxy.err").open("wb") as errors:
            proxy = subprocess.Popen(command, stderr=errors)
        self._stack.callback(lambda: end(proxy))

    @property
    def login(self) -> str:
        return (self.state / "web/password").read_text().strip()

    @property
    def certificate(self) -> str:
        return (self.state / f"web/certificate-{HOST}.pem").read_text()

    def server(self) -> web_wait.Server:
        return web_wait.Server(HOST, self.port, HOST, self.certificate)

    def wait(self) -> None:
        """Wait until the page answers."""
        found = module(self, timeout=60)
        said = [(self.folder / f"{name}.err").read_text() for name in ("web", "proxy")]
        assert not found.get("failed"), f"{found}\n{said}"

    def get(self, path: str, login: str = "") -> tuple[int, bytes]:
        return self.server().get(path, login)

    def open(self, path: str) -> http.client.HTTPResponse:
        """A response whose content is not read yet."""
        context = ssl.create_default_context(cadata=self.certificate)
        connection = http.client.HTTPSConnection(HOST, self.port, context=context, timeout=60)
        self._stack.callback(connection.close)
        basic = base64.b64encode(self.login.encode()).decode()
        connection.request("GET", path, headers={"Authorization": f"Basic {basic}"})
        return connection.getresponse()


def end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    folder = Path(tempfile.mkdtemp(prefix="fabric-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        (folder / "farm").mkdir()
        page = Page(folder, Farm(folder / "farm", stack), stack)
        page.wait()
        yield page


def module(page: Page, **more: Any) -> dict[str, Any]:
    """The result of the module web_wait, run by Ansible."""
    given = {
        **{"address": HOST, "port": page.port, "name": HOST, "timeout": 0},
        "certificate": str(page.state / f"web/certificate-{HOST}.pem"),
        "password": str(page.state / "web/password"),
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-m", web_wait.__name__],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_page_is_served_to_its_password_only(page: Page) -> None:
    for login in ("", "viewer:wrong", f"builder:{page.login.partition(':')[2]}", page.login[:-1]):
        for path in ("/", "/health", "/static/style.css", "/api/openapi.json", "/live/"):
            status, content = page.get(path, login)
            assert status == 401, path
            assert b"istbuild" not in content
    status, content = page.get("/", page.login)
    assert status == 200
    assert b"<html" in content
    assert json.loads(page.get("/health", page.login)[1])["broker"] == ""


def test_page_answers_nobody_but_its_proxy(page: Page) -> None:
    """Any user of the machine can connect to the address behind the proxy."""
    for path in ("/", "/health", "/builds?format=json"):
        connection = http.client.HTTPConnection("127.0.0.1", page.inner_port, timeout=60)
        basic = base64.b64encode(page.login.encode()).decode()
        connection.request("GET", path, headers={"Authorization": f"Basic {basic}"})
        assert connection.getresponse().status == 403
        connection.close()
    for name in ("token", "token.conf"):
        assert (page.tree / "etc/distbuild/web" / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_unit_of_the_proxy_is_valid_and_confined(page: Page) -> None:
    unit = page.tree / "etc/systemd/system/fabric-web-proxy.service"
    for words in (["verify"], ["security", "--offline=yes", "--threshold=15"]):
        command = ["systemd-analyze", *words, str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_page_is_encrypted(page: Page) -> None:
    for version, works in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        command = ["openssl", "s_client", "-connect", f"{HOST}:{page.port}", version]
        command += ["-cipher", "ALL:@SECLEVEL=0", "-alpn", "h2"]
        done = subprocess.run(command, input=b"", capture_output=True, check=False)
        assert (done.returncode == 0) == works, done.stdout + done.stderr
        assert (b"ALPN protocol: h2" in done.stdout) == works
    connection = http.client.HTTPConnection(HOST, page.port)
    connection.request("GET", "/builds")
    answer = connection.getresponse()
    assert answer.status == 301
    assert answer.getheader("Location") == f"https://{HOST}:{page.port}/builds"
    connection.close()


def test_live_events_pass_at_once(page: Page) -> None:
    answer = page.open("/live/")
    assert answer.getheader("Content-Type", "").startswith("text/event-stream")
    assert answer.readline()


def test_module_reports_address_and_fingerprint(page: Page) -> None:
    found = module(page)
    assert found["url"] == f"https://{HOST}:{page.port}/"
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha256"]
    told = subprocess.run(
        command, input=page.certificate, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip().endswith(f"={found['fingerprint']}")


def test_module_reports_what_is_wrong(page: Page, tmp_path: Path) -> None:
    def why(**more: Any) -> str:
        found = module(page, **more)
        begin = f"https://{more.get('name', HOST)}:{more.get('port', page.port)}/"
        assert found["failed"]
        assert found["msg"].startswith(f"{begin} is not served as it must be: ")
        return str(found["msg"])

    assert "Connection refused" in why(port=free_port())
    assert "IP address mismatch" in why(name="127.0.0.1")
    (tmp_path / "password").write_text("viewer:wrong\n")
    assert "the password is rejected" in why(password=str(tmp_path / "password"))
    assert "holds no certificate" in why(certificate=str(tmp_path / "password"))
    assert "No such file" in why(certificate=str(tmp_path / "none"))


def test_module_sends_the_password_to_no_other_certificate(page: Page, tmp_path: Path) -> None:
    """Not even if it has the same name, and the same authority is trusted."""
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    make += ["-nodes", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=IP:{HOST}"]
    make += ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "pem")]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            plain, _ = listener.accept()
            with plain, context.wrap_socket(plain, server_side=True) as connection:
                heard.append(connection.recv(1000))

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        both = tmp_path / "both"
        both.write_text(page.certificate + (tmp_path / "pem").read_text())
        found = module(page, port=listener.getsockname()[1], certificate=str(both))
        thread.join(10)
    assert "CERTIFICATE_VERIFY_FAILED" in found["msg"]
    assert heard == []


def test_page_that_dies_is_reported_and_comes_back(page: Page) -> None:
    page.web.kill()
    page.web.wait()
    status, content = page.get("/", page.login)
    assert status == 503
    assert b"systemctl status fabric-web" in content
    assert "/health has status 503" in module(page)["msg"]
    assert page.farm.child.poll() is None
    page.web = page.start_page()
    page.wait()


def test_page_without_its_controller_is_reported(page: Page) -> None:
    page.farm.kill()
    until(lambda: "it does not reach the controller: " in module(page)["msg"])
    assert page.get("/health", page.login)[0] == 200
    page.farm.start()
    page.wait()


def test_secrets_stay_over_deployments(page: Page) -> None:
    """A password of one's own is taken when its hash is removed."""

    def made() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (page.state / "web").iterdir()}

    before = made()
    modes = {file.name: file.stat().st_mode & 0o777 for file in (page.state / "web").iterdir()}
    public = {"web-page.key", f"certificate-{HOST}.pem"}
    assert {name for name, mode in modes.items() if mode != 0o600} == public
    said = page.deploy()
    assert made() == before
    assert not re.search(r"(?m)^localhost .* changed=[1-9]", said)
    (page.state / "web/password").write_text("ann:own $x `y` \\ secret\n")
    (page.state / "web/htpasswd").unlink()
    page.deploy()
    after = made()
    assert after.keys() == before.keys()
    assert after["password"] == b"ann:own $x `y` \\ secret\n"
    assert after["htpasswd"].startswith(b"ann:$6$")
    own = page.tree / "etc/distbuild/web/htpasswd"
    assert own.read_bytes() == after["htpasswd"]
    # nginx reads it for each request
    assert page.get("/health", page.login)[0] == 200
    assert page.get("/health", before["password"].decode().strip())[0] == 401


def test_key_of_another_certificate_is_found_before_deploying(tmp_path: Path) -> None:
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    for name in ("one", "two"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", "/CN=x", "-noenc"]
        subprocess.run([*make, *files], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "chain.pem").write_text(
        (tmp_path / "one.pem").read_text() + (tmp_path / "two.pem").read_text()
    )
    (tmp_path / "none.key").write_text("no key")

    def play(certificate: str, key: str) -> tuple[int, str]:
        settings = {"WEB_CERTIFICATE": certificate, "WEB_CERTIFICATE_KEY": key}
        given = {"guest": {"settings": settings}, "definitions_root": str(tmp_path)}
        command = [str(BIN / "ansible-playbook"), "tests/ansible/playbooks/certificate.yml"]
        done = subprocess.run(
            [*command, "-i", "localhost,", "-c", "local", "-e", json.dumps(given)],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_INVENTORY_ENABLED": "host_list"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    assert play("one.pem", "one.key")[0] == play("chain.pem", "one.key")[0] == 0
    for certificate, key in (
        ("one.pem", "two.key"),
        ("chain.pem", "two.key"),
        ("one.pem", "none.key"),
    ):
        code, said = play(certificate, key)
        assert code != 0
        assert f"{tmp_path}/{key} is not the private key of the first certificate in" in said
