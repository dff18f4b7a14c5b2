"""The program fabric-web: its settings, where it listens, and who may read."""

from __future__ import annotations

import http.cookiejar
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from farm_kit import HOST
from web_kit import Site, Web

from fabric import bounds
from fabric.config import WebSettings
from fabric.web.program import listen

ROOM = Path(__file__).parents[2] / "fabric/web"


def run(tmp_path: Path, *options: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """fabric-web with these settings, until it ends."""
    config = tmp_path / "web.toml"
    config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    return subprocess.run(
        [sys.executable, "-m", "fabric.web.program", "--config", str(config), *options],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Web]:
    """A page of the builds on this machine, of which there is none."""
    with ExitStack() as stack:
        web = Web(tmp_path, {})
        stack.callback(web.kill)
        yield web


def test_settings_are_printed(tmp_path: Path) -> None:
    done = run(tmp_path, "--check-config", controller="farm", port=8000)
    assert done.returncode == 0
    assert 'controller = "farm"' in done.stdout
    assert "port = 8000" in done.stdout
    assert 'listen = "127.0.0.1"' in done.stdout


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "farm.example"])
def test_unencrypted_pages_stay_on_this_machine(tmp_path: Path, address: str) -> None:
    done = run(tmp_path, listen=address, port=0)
    assert (done.returncode, done.stderr) == (
        1,
        f"fabric-web: listen: {address} is not a loopback address, and pages do not go unencrypted"
        " over a network; set certificate and certificate-key, or listen at 127.0.0.1 behind a"
        " proxy with TLS\n",
    )


def test_half_a_certificate_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, certificate="x.pem")
    assert done.returncode == 1
    assert "certificate and certificate-key belong together" in done.stderr


def test_port_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        done = run(tmp_path, listen=HOST, port=port)
    assert done.returncode == 1
    assert f"cannot listen at {HOST} port {port}: Address already in use" in done.stderr


def test_address_can_be_opened_as_soon_as_it_is_printed() -> None:
    with (
        listen(WebSettings(listen=HOST, port=0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=5),
    ):
        pass


def test_missing_key_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, listen=HOST, port=0, controller=HOST, keys=str(tmp_path))
    assert done.returncode == 1
    assert "fabric-keys make viewer NAME" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_extra_names_the_command(tmp_path: Path) -> None:
    """As where jinja2 is not installed."""
    script = (
        "import sys; sys.modules['jinja2'] = None; from fabric.web.program import main;"
        " sys.exit(main(['--config', '/dev/null']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "FABRIC_PORT": "0", "FABRIC_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs jinja2: pip install 'distbuild[web]'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it(alone: Web, number: int) -> None:
    alone.child.send_signal(number)
    assert alone.child.wait(10) == 0
    assert alone.said == ""


def test_it_serves_https_with_a_certificate(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-days", "2",
         "-addext", f"subjectAltName=IP:{HOST}"],
        check=True, capture_output=True,
    )  # fmt: skip
    with ExitStack() as stack:
        web = Web(tmp_path, {"certificate": str(certificate), "certificate-key": str(key)})
        stack.callback(web.kill)
        assert web.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=trusted),
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
        )
        for _ in range(3):
            with opener.open(web.printed, timeout=60) as answer:
                assert answer.status == 200
        with opener.open(f"{web.url}/static/log.js", timeout=60) as answer:
            assert answer.read() == (ROOM / "static/log.js").read_bytes()


# -- who may read --------------------------------------------------------------------------


def test_builds_on_this_machine_are_private(alone: Web) -> None:
    assert "?token=" in alone.printed
    assert alone.get("/").status == 403
    assert alone.get("/live/builds").status == 403
    opener = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    )
    with opener.open(alone.printed) as answer:
        assert "builds on this machine" in answer.read().decode()
        assert "token" not in answer.url
    with opener.open(alone.url + "/builds") as answer:
        assert "No build runs on this machine." in answer.read().decode()


def test_page_of_a_farm_is_private(site: Site) -> None:
    """Any user of the controller can connect to its loopback address, past the proxy."""
    assert site.web.printed == f"{site.url}/"
    for address in ("/", "/health", "/builds?format=json"):
        assert site.web.get(address, authorization="").status == 403
    assert site.web.get("/").status == 200
    assert site.web.get("/", host="evil.example").status == 421


@pytest.mark.parametrize("text", ["", "short", "has a blank in the middle"])
def test_token_of_a_file_is_checked(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    done = run(tmp_path, listen=HOST, port=0, token=str(file))
    assert (done.returncode, done.stderr) == (
        1,
        f"fabric-web: token: {file}: this is no token; write one with `openssl rand -hex 32`\n",
    )
    file.unlink()
    done = run(tmp_path, listen=HOST, port=0, token=str(file))
    assert done.stderr == f"fabric-web: token: {file}: cannot be read: No such file or directory\n"


def test_head_has_no_body(site: Site) -> None:
    answer = site.web.get("/builds", "HEAD")
    assert (answer.status, answer.text) == (200, "")


# -- bounds --------------------------------------------------------------------------------


@pytest.mark.bound("WEB_MANIFESTS")
def test_only_the_newest_steps_of_the_store_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from wire_kit import key_of

    from fabric.jobs import Manifest
    from fabric.trove.artifacts.store import Store
    from fabric.web.store import Index

    monkeypatch.setattr(bounds, "WEB_MANIFESTS", 2)
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    for number in range(3):
        manifest = Manifest(
            key=key_of(str(number)), kind="system", name=f"s{number}", arch="x", artifacts=()
        )
        store.put(manifest, {})
        file = tmp_path / "store/manifests" / manifest.key
        os.utime(file, (1e9 + number, 1e9 + number))

    async def test() -> None:
        index = Index(lambda: store)
        await index.refresh()
        assert sorted(one.name for one in index.steps.values()) == ["s1", "s2"]

    asyncio.run(test())


def test_without_the_extra_it_prints_no_address(tmp_path: Path) -> None:
    script = (
        "import sys, importlib.util as u; f = u.find_spec;"
        "u.find_spec = lambda n, *a: None if n == 'uvicorn' else f(n, *a);"
        "from fabric.web.program import main;"
        "sys.exit(main(['--config', sys.argv[1]]))"
    )
    config = tmp_path / "web.toml"
    config.write_text("port = 0\n")
    done = subprocess.run(
        [sys.executable, "-c", script, str(config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "fabric-web needs uvicorn: pip install 'distbuild[web]'" in done.stderr
