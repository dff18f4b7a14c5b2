"""``ansible-test sanity`` accepts the collection: documentation, arguments, YAML, imports, style.

It takes half a minute, and one more when pip fetches its tools, in the versions that ansible-core
pins.  It leaves them in ``build/ansible-test``.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HOME = ROOT / "build/ansible-test"
#: Stands in for the script that ansible-test downloads from a host of its own to install pip.
GET_PIP = "import ensurepip\n\nensurepip.bootstrap()\n"


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A copy below ``ansible_collections``, where ansible-test and ansible-galaxy write to it."""
    folder = tmp_path / "ansible_collections/distbuild/fabric"
    shutil.copytree(ROOT / "ansible", folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def pip_settings() -> str:
    """The settings of pip as one file: ansible-test sees neither the environment nor HOME."""
    file = configparser.RawConfigParser()
    file.read([Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"])
    settings = dict(file["global"]) if "global" in file else {}
    settings |= {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE"
    }
    if proxy := os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY"):
        settings.setdefault("proxy", proxy)
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_collection_passes_sanity(collection: Path) -> None:
    for name, text in {
        ".ansible/test/cache/get_pip_24_2.py": GET_PIP,
        ".config/pip/pip.conf": pip_settings(),
    }.items():
        (HOME / name).parent.mkdir(parents=True, exist_ok=True)
        (HOME / name).write_text(text)
    python = "{}.{}".format(*sys.version_info)
    environment = {
        **os.environ,
        "HOME": str(HOME),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        # without it, ansible-test lists the files of a git repository around the folder
        "ANSIBLE_TEST_CONTENT_ROOT": str(collection),
    }
    done = subprocess.run(
        [BIN / "ansible-test", "sanity", "--python", python, "--color", "no"],
        cwd=collection,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for test in ("ansible-doc", "pylint", "runtime-metadata", "validate-modules", "yamllint"):
        assert f'Running sanity test "{test}"' in said


def test_collection_can_be_built(collection: Path, tmp_path: Path) -> None:
    build: list[str | Path] = [BIN / "ansible-galaxy", "collection", "build"]
    build += ["--output-path", tmp_path]
    subprocess.run(build, cwd=collection, check=True, capture_output=True)
    assert len(list(tmp_path.glob("distbuild-fabric-*.tar.gz"))) == 1
