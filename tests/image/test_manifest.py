"""INSTALL_FILES manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.building.image import File, ImageError
from fabric.building.image_manifest import read_manifest
from fabric.commands.image import files_of
from fabric.errors import FabricError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/plain").write_text("{{ as it is }}\n")
    (tmp_path / "etc/filled").write_text("I am {{ HOSTNAME }}\n")
    (tmp_path / "etc/link").symlink_to("plain")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    manifest = folder / "manifest"
    manifest.write_text(text)
    return manifest


def test_manifest_lists_files_folders_links_and_templates(folder: Path) -> None:
    manifest = write(
        folder,
        "# a remark\n\n0040750 0 0 /etc\n0100600 1 2 /etc/plain\n"
        "template overwrite 0100644 0 0 /etc/filled\n0120000 0 0 /etc/link\n",
    )
    assert read_manifest(manifest, {"HOSTNAME": "worker0"}) == {
        "/etc": File(b"", 0o040750),
        "/etc/plain": File(b"{{ as it is }}\n", 0o100600, 1, 2, new=True),
        "/etc/filled": File(b"I am worker0\n", 0o100644),
        "/etc/link": File(b"plain", 0o120000, new=True),
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0100644 0 /etc/plain", "a line is"),
        ("0100644 root 0 /etc/plain", "root and 0 are not the numbers"),
        ("0644 0 0 /etc/plain", "mode 0644 is no file"),
        ("0100644 0 0 etc/plain", "no path from the root"),
        ("0100644 0 0 /../plain", "no path from the root"),
        ("0100644 0 0 /etc/nothing", "nothing: No such file"),
        ("0040755 0 0 /etc/plain", "plain is no folder"),
        ("template 0100644 0 0 /etc/filled", "'HOSTNAME' is undefined"),
        ("0100644 0 0 '/etc/plain", "No closing quotation"),
        ("0120000 0 0 /etc/link\n0120000 0 0 /etc/link", "/etc/link is there twice"),
    ],
)
def test_manifest_error_has_its_line_number(folder: Path, line: str, said: str) -> None:
    with pytest.raises(ImageError, match=rf"manifest:\d: .*{said}"):
        read_manifest(write(folder, line), {})


def test_manifest_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere: the manifest cannot be read"):
        read_manifest(tmp_path / "nowhere", {})


def test_manifests_may_not_share_a_path(folder: Path) -> None:
    manifest = str(write(folder, "0100644 0 0 /etc/plain\n"))
    with pytest.raises(FabricError, match="/etc/plain is in another manifest too"):
        files_of([manifest, manifest], None, {})


def test_manifest_files_are_overridden_by_a_folder(folder: Path, tmp_path: Path) -> None:
    manifest = str(write(folder, "0100644 0 0 /etc/plain\n"))
    (tmp_path / "own/etc").mkdir(parents=True)
    (tmp_path / "own/etc/plain").write_text("own")
    assert files_of([manifest], str(tmp_path / "own"), {})["/etc/plain"].data == b"own"


def test_manifest_of_build_networks_is_valid() -> None:
    files = read_manifest(ROOT / "distbuild/manifest", {"HOSTNAME": "w", "CONTROLLERHOST": "c"})
    assert b"This is w, of a build network whose controller is c." in files["/etc/motd"].data
