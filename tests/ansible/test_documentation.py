"""The documentation of modules is what their code does, by Ansible's own validator."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ansible

ROOT = Path(__file__).parents[2]
VALIDATOR = (
    Path(ansible.__file__).parents[1] / "ansible_test/_util/controller/sanity/validate-modules"
)
#: What it says of code that is right: the licence is Apache's, an image is read from a pipe, a
#: module without values of its own documents none, and an inventory ends without this project.
FINE = (
    *("missing-gplv3-license", "use-run-command-not-popen"),
    *("missing-return-legacy", "try-except-missing-has"),
)
OURS = ("disk_facts", "guest_xml", "kvm_probe", "vm_host")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugins as the collection that the validator knows; its root."""
    root = tmp_path_factory.mktemp("collections")
    folder = root / "ansible_collections/distbuild/farm"
    for name in ("modules", "module_utils", "doc_fragments", "inventory"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "ansible/plugins" / name, folder / "plugins" / name, ignore=ignore)
    (folder / "galaxy.yml").write_text(
        "{namespace: distbuild, name: farm, version: 0.1.0, readme: README.md, authors: [x]}\n"
    )
    names = re.compile(rf"(?<=from )ansible\.module_utils\.({'|'.join(OURS)})\b")
    for file in folder.rglob("*.py"):
        text = names.sub(
            r"ansible_collections.distbuild.farm.plugins.module_utils.\1", file.read_text()
        )
        file.write_text(text.replace(", vm_host_options]", ", distbuild.farm.vm_host_options]"))
    return root


@pytest.mark.parametrize("kind", ["module", "inventory"])
def test_documentation_is_what_the_code_does(collection: Path, kind: str) -> None:
    folder = collection / "ansible_collections/distbuild/farm"
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(collection),
        "ANSIBLE_TEST_CONTENT_ROOT": str(folder),
        "PYTHONPATH": os.pathsep.join([str(VALIDATOR), str(collection)]),
    }
    arguments = ["-w", "--plugin-type", kind, "--collection", "ansible_collections/distbuild/farm"]
    arguments += ["--arg-spec"] if kind == "module" else []
    plugins = {"module": "plugins/modules", "inventory": "plugins/inventory"}[kind]
    done = subprocess.run(
        [sys.executable, VALIDATOR / "validate.py", *arguments, plugins],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "missing-gplv3-license" in said, "it has looked at them"
    found = [line for line in said.splitlines() if not any(word in line for word in FINE)]
    assert not found, "\n".join(found)
