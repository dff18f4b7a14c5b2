"""Strata and systems are assembled from real chunks."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
from building_kit import Kit, key_of
from msgspec.structs import replace

from fabric.building import archive
from fabric.building.archive import DIRECTORY, FILE, SYMLINK, Entry, pack
from fabric.definitions.environment import EPOCH, INTEGRATION
from fabric.definitions.graph import Device
from fabric.errors import BuildFailed, Cancelled, MachineFault
from fabric.jobs import Content, Job, Part


def system(*contents: Content) -> Job:
    """A system job with those chunk artifacts, in one stratum artifact."""
    return Job(
        key=key_of("system"),
        kind="system",
        name="sys",
        arch="x86_64",
        log="build-step-sys.log",
        artifacts=("sys-rootfs",),
        lists=(("sys-rootfs", contents),),
        strata=(Part("core-runtime", "core", contents),),
        metadata={"description": "A system"},
    )


def stored(kit: Kit, name: str, *entries: Entry) -> Content:
    """A chunk in the store with those entries in one artifact."""
    kit.stored(name, {f"{name}-misc": pack(entries, kit.root / name)})
    return Content(key_of(name), f"{name}-misc")


def file(path: str, text: str = "", mode: int = 0o644) -> Entry:
    return Entry(path.encode(), FILE, mode, len(text), data=text.encode())


def script(path: str, text: str) -> Entry:
    return file(f"baserock/system-integration/{path}", f"#!/bin/sh\nset -xeu\n{text}", 0o755)


@pytest.fixture
def shell(kit: Kit) -> Content:
    return Content(kit.base.key, "base-misc")


def test_stratum_is_a_list_of_artifacts(kit: Kit) -> None:
    contents = (Content(key_of("a"), "a-bins"), Content(key_of("b"), "b-libs"))
    job = Job(
        key=key_of("stratum"),
        kind="stratum",
        name="core",
        arch="x86_64",
        log="build-step-core.log",
        artifacts=("core-devel", "core-runtime"),
        lists=(("core-runtime", contents),),
    )
    manifest = kit.build(job)
    assert kit.store.manifest(job.key) == manifest
    assert manifest.artifact("core-runtime").contents == contents
    assert manifest.artifact("core-devel").contents == ()
    assert {each.blob for each in manifest.artifacts} == {None}
    assert kit.phases == ["store"]
    assert kit.log_text == "core-runtime: a-bins b-libs\n"


class TestContents:
    def test_system_unpacks_chunks_in_order(self, kit: Kit) -> None:
        one = stored(kit, "one", file("both", "one"), file("same/one"))
        two = stored(kit, "two", file("both", "two"), file("same/two"))
        found = kit.entries(kit.build(system(one, two)), "sys-rootfs")
        assert found["both"].data == b"two"
        assert {"same", "same/one", "same/two"} <= found.keys()
        warning = "warning: /both of one-misc is replaced by that of two-misc\n"
        assert kit.log_text == warning

    def test_system_merges_chunks_through_symlinks(self, kit: Kit) -> None:
        usr = stored(
            kit,
            "usr",
            Entry(b"lib", SYMLINK, link=b"usr/lib"),
            Entry(b"usr", DIRECTORY, 0o755),
            Entry(b"usr/lib", DIRECTORY, 0o755),
        )
        late = stored(kit, "late", Entry(b"lib", DIRECTORY, 0o755), file("lib/modules/x"))
        found = kit.entries(kit.build(system(usr, late)), "sys-rootfs")
        assert found["lib"].link == b"usr/lib"
        assert "usr/lib/modules/x" in found

    def test_system_of_chunks_that_clash_fails(self, kit: Kit) -> None:
        one = stored(kit, "one", file("it/inside"))
        two = stored(kit, "two", file("it"))
        with pytest.raises(BuildFailed, match="two-misc has a file at /it, where one-misc has a d"):
            kit.build(system(one, two))

    def test_system_with_a_missing_chunk_is_a_machine_fault(self, kit: Kit) -> None:
        with pytest.raises(MachineFault, match="has no x-bins"):
            kit.build(system(Content(key_of("x"), "x-bins")))

    def test_system_lists_empty_artifacts(self, kit: Kit) -> None:
        kit.stored("none", {"none-bins": None})
        found = kit.entries(kit.build(system(Content(key_of("none"), "none-bins"))), "sys-rootfs")
        assert json.loads(found["baserock/none-bins.meta"].data)["contents"] == []

    def test_system_keeps_devices_and_modes(self, kit: Kit) -> None:
        device = Device("/dev/console", "c", 0o600, 5, 1, 0, 0)
        install = ["mkdir -m 700 $DESTDIR/var; touch $DESTDIR/var/x"]
        job = kit.chunk(install=install, devices=(device,))
        kit.build(job)
        su = stored(kit, "su", file("su", mode=0o4755))
        manifest = kit.build(system(Content(job.key, "thing-misc"), su))
        found = kit.entries(manifest, "sys-rootfs")
        console = found["dev/console"]
        assert (console.type, console.major, console.minor) == (archive.CHARACTER, 5, 1)
        assert (found["var"].mode, found["su"].mode) == (0o700, 0o4755)


class TestMetadata:
    def test_system_metadata_describes_all_but_time_and_worker(self, kit: Kit) -> None:
        job = kit.chunk(
            install=["mkdir -p $DESTDIR/usr/bin; touch $DESTDIR/usr/bin/it"],
            metadata={"repo": "upstream:it", "morph": "strata/core/thing.morph"},
        )
        blob = kit.build(job).artifact("thing-bins").blob
        assert blob is not None
        part = Content(job.key, "thing-bins")
        found = kit.entries(kit.build(system(part), builder="worker"), "sys-rootfs")
        assert json.loads(found["baserock/thing-bins.meta"].data) == {
            "arch": "x86_64",
            "artifact-name": "thing-bins",
            "contents": ["usr", "usr/bin", "usr/bin/it"],
            "kind": "chunk",
            "morph": "strata/core/thing.morph",
            "repo": "upstream:it",
            "sha256": blob.sha256,
            "source-name": "thing",
        }
        core = json.loads(found["baserock/core-runtime.meta"].data)
        assert (core["kind"], core["source-name"]) == ("stratum", "core")
        assert core["contents"] == ["thing-bins"]
        itself = json.loads(found["baserock/sys-rootfs.meta"].data)
        assert (itself["kind"], itself["contents"]) == ("system", ["core-runtime"])
        assert re.fullmatch("[0-9a-f]{64}", itself["content-key"])
        assert not any(b"worker" in entry.data for entry in found.values())

    def test_system_os_release_replaces_that_of_chunks(self, kit: Kit) -> None:
        other = stored(kit, "other", Entry(b"etc/os-release", SYMLINK, link=b"../usr/os"))
        found = kit.entries(kit.build(system(other)), "sys-rootfs")
        assert b'NAME="Baserock"\nID=baserock\n' in found["etc/os-release"].data


class TestIntegration:
    def test_integration_scripts_run_in_byte_order(self, kit: Kit, shell: Content) -> None:
        names = ("B-0001", "10-a-0000", "b-0000", "9-a-0000", "B-0000")
        entries = [script(name, f"echo {name} >> /order") for name in names]
        scripts = stored(kit, "scripts", *entries)
        found = kit.entries(kit.build(system(shell, scripts)), "sys-rootfs")
        assert found["order"].data.decode().split() == sorted(names)
        assert kit.phases == ["fetch", "integrate", "store"]
        assert "### SYSTEM-INTEGRATION 10-a-0000 ###\n" in kit.log_text

    def test_integration_scripts_run_in_a_sandbox(self, kit: Kit, shell: Content) -> None:
        commands = "env | sort; pwd; id -u; cat /proc/net/dev | wc -l; touch /tmp/x /dev/shm/y"
        scripts = stored(kit, "scripts", script("0", f"{{ {commands}; }} > /seen"))
        found = kit.entries(kit.build(system(shell, scripts)), "sys-rootfs")
        assert found["seen"].data.decode().split() == [
            "PATH=/bin:/usr/bin:/sbin:/usr/sbin",
            "PWD=/",
            *("/", "0", "3"),
        ]
        assert not {"proc", "dev", "tmp"} & found.keys()

    def test_integration_has_the_environment_of_the_job(self, kit: Kit, shell: Content) -> None:
        scripts = stored(kit, "scripts", script("0", "env | sort > /seen"))
        job = replace(system(shell, scripts), environment=INTEGRATION)
        seen = kit.entries(kit.build(job), "sys-rootfs")["seen"].data.decode().split()
        assert set(seen) == {f"{name}={value}" for name, value in INTEGRATION.items()} | {"PWD=/"}
        assert f"SOURCE_DATE_EPOCH={EPOCH}" in seen

    def test_integration_keeps_mount_points_of_the_system(self, kit: Kit, shell: Content) -> None:
        tree = stored(
            kit,
            "tree",
            *(Entry(name, DIRECTORY, mode) for name, mode in ((b"proc", 0o555), (b"tmp", 0o1777))),
            script("0", "touch /tmp/x"),
        )
        found = kit.entries(kit.build(system(shell, tree)), "sys-rootfs")
        assert (found["proc"].mode, found["tmp"].mode) == (0o555, 0o1777)
        assert "tmp/x" not in found
        assert "dev" not in found

    def test_integration_script_that_fails_fails_the_system(self, kit: Kit, shell: Content) -> None:
        scripts = stored(kit, "scripts", script("1-bad-0000", "true\nfalse_it_is\ntrue"))
        with pytest.raises(BuildFailed, match="1-bad-0000 failed with exit status 127 in sys"):
            kit.build(system(shell, scripts))
        assert kit.store.manifest(key_of("system")) is None

    def test_integration_without_a_shell_fails(self, kit: Kit) -> None:
        with pytest.raises(BuildFailed, match="no shell"):
            kit.build(system(stored(kit, "scripts", script("0", ":"))))

    def test_integration_can_be_cancelled(self, kit: Kit, shell: Content) -> None:
        scripts = stored(kit, "scripts", script("0", "sleep 1000"))
        threading.Timer(0.5, kit.cancel.set).start()
        with pytest.raises(Cancelled):
            kit.build(system(shell, scripts))

    def test_integration_runs_ldconfig(self, kit: Kit, shell: Content) -> None:
        size = Path("/sbin/ldconfig").stat().st_size
        loader = stored(
            kit,
            "loader",
            file("etc/ld.so.conf", "/lib\n"),
            Entry(b"sbin/ldconfig", FILE, 0o755, size, source=b"/sbin/ldconfig"),
        )
        found = kit.entries(kit.build(system(shell, loader)), "sys-rootfs")
        assert "etc/ld.so.cache" in found
        assert "var/cache/ldconfig/aux-cache" not in found


def test_system_is_reproducible_in_another_folder(kit: Kit, tmp_path: Path) -> None:
    other = Kit(tmp_path / "other", kit.base_archive)
    work = script(
        "0", "mkdir /d; ln /bin/true /d/true; for i in $(seq 50); do echo $i > /d/$i; done"
    )
    blobs = []
    with other.workspace:
        for each in (kit, other):
            contents = (Content(each.base.key, "base-misc"), stored(each, "scripts", work))
            blobs.append(each.build(system(*contents)).artifact("sys-rootfs").blob)
    assert blobs[0] == blobs[1]
    assert blobs[0] is not None
