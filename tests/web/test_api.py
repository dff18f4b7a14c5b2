"""The JSON of all pages: its description holds, whatever is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from waiting import until
from web_kit import SIGNED, Site
from wire_kit import key_of

from fabric.jobs import Manifest
from fabric.trove.artifacts.store import Store
from fabric.web.page import Page
from fabric.web.routes import ROUTES


@pytest.mark.slow
def test_schemathesis_finds_nothing(site: Site, tmp_path: Path) -> None:
    worker = site.worker("amber")
    build = site.build("app: zlib\nzlib:")
    worker.release("zlib")
    until(lambda: site.state(build).get("app") == "running")
    system = Manifest(key=key_of("s"), kind="system", name="amber", arch="x86_64", artifacts=())
    Store(str(site.farm.directory / "store"), tmp_path / "scratch").put(system, {})
    known = {"id": build, "key": key_of("zlib"), "name": "amber"}
    lines = [f'"path.{name}" = "{value}"' for name, value in known.items()]
    config = tmp_path / "schemathesis.toml"
    config.write_text("\n".join(["[parameters]", *lines, ""]))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config),
            "run", f"{site.url}/api/openapi.json", "--max-examples", "10", "--no-color",
            "--header", f"Authorization: {SIGNED['Authorization']}",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Traceback" not in site.web.said
    assert "Missing test data" not in done.stdout, "all pages were there"
    worker.release("app")


def test_every_page_is_described(site: Site) -> None:
    described = site.web.json("/api/openapi.json")
    pages = {each.path for each in ROUTES if isinstance(each, Page)}
    assert pages <= set(described["paths"])
    assert described["openapi"] == "3.1.0"
    for path, item in described["paths"].items():
        assert set(item) == {"get"}, f"{path} can only be read"
