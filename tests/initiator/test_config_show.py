"""``config show`` prints each setting, its value, and where the value comes from."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from initiator_kit import Project

from fabric.config import Settings

FILE = '''\
# mine
trove = """\\
ssh://me:s3cr3t@s3cr3t@host/x"""
artifacts = "https://s3cr3t@store/x"
keys = """
priority = 3
"""
"architectures" = [
  "x86_64",
]
max-jobs = 5
  priority = 2
workers = 3

[aliases]
cache = "https://u:s3cr3t@host/%s"
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "settings.toml"
    made.write_text(FILE)
    return made


def test_each_value_has_its_origin(project: Project, file: Path) -> None:
    environ = {"FABRIC_CONFIG": str(file), "FABRIC_MAX_JOBS": "7", "FABRIC_WORKERS": "0"}
    done = project.run("config", "show", "--json", "--controller", "farm", environ=environ)
    found = json.loads(done.stdout)
    assert (found["file"], found["exists"]) == (str(file), True)
    by_name = {one["name"]: one for one in found["settings"]}
    assert list(by_name) == [one.encode_name for one in msgspec.structs.fields(Settings)]
    assert {name: one["from"] for name, one in by_name.items() if one["from"] != "default"} == {
        "cache": "environment variable FABRIC_CACHE",
        "trove": f"{file}:2",
        "artifacts": f"{file}:4",
        "keys": f"{file}:5",
        "architectures": f"{file}:8",
        "max-jobs": "environment variable FABRIC_MAX_JOBS",
        "priority": f"{file}:12",
        "workers": "environment variable FABRIC_WORKERS",
        "aliases": f"{file}:15",
        "controller": "--controller",
    }
    assert (by_name["max-jobs"]["value"], by_name["max-jobs"]["effective"]) == (7, 7)
    assert by_name["workers"]["value"] == 0
    assert by_name["workers"]["effective"] >= 1
    assert by_name["architectures"]["value"] == ["x86_64"]


def test_no_secret_is_printed(project: Project, file: Path) -> None:
    for more in ((), ("--json",)):
        done = project.run("config", "show", *more, environ={"FABRIC_CONFIG": str(file)})
        assert done.returncode == 0
        assert "s3cr3t" not in done.stdout
        assert "ssh://me:***@host/x" in done.stdout
        assert "https://***@store/x" in done.stdout


def test_defaults_have_the_value_in_effect(project: Project, tmp_path: Path) -> None:
    environ = {"FABRIC_CONFIG": "", "HOME": str(tmp_path), "XDG_CONFIG_HOME": ""}
    lines = project.run("config", "show", environ=environ).stdout.splitlines()
    assert lines[0] == (
        f"settings file: {tmp_path}/.config/distbuild/distbuild.toml (there is none)"
    )
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    assert rows["SETTING"] == "VALUE FROM"
    assert rows["artifacts"] == f'"" ({project.cache}/artifacts) default'
    assert rows["keys"] == (
        f'"~/.config/distbuild/keys" ({tmp_path}/.config/distbuild/keys) default'
    )
    assert rows["aliases"] == "{} default"
    assert rows["plain"] == "false default"
