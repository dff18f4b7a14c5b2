"""Strata and systems, from chunks built for real."""

from __future__ import annotations

import json

from building_kit import Kit, key_of

from fabric.jobs import Content, Job, Part


def system(contents: list[Content]) -> Job:
    """A system job with those chunk artifacts, in one stratum artifact."""
    return Job(
        key=key_of("system"),
        kind="system",
        name="sys",
        arch="x86_64",
        log="build-step-sys.log",
        artifacts=("sys-rootfs",),
        lists=(("sys-rootfs", tuple(contents)),),
        strata=(Part("core-runtime", "core", key_of("core"), tuple(contents)),),
    )


def test_system(kit: Kit) -> None:
    job = kit.chunk(
        install=["mkdir -p $DESTDIR/usr/bin; echo prog > $DESTDIR/usr/bin/it"],
        integration=(("thing-bins", "00-it", ("echo integrated > /usr/it",)),),
        metadata={"repo": "upstream:thing"},
    )
    kit.build(job)
    manifest = kit.build(
        system([Content(kit.base.key, "base-misc"), Content(job.key, "thing-bins")])
    )
    found = kit.entries(manifest, "sys-rootfs")
    assert found["usr/it"].data == b"integrated\n"
    assert found["usr/bin/it"].data == b"prog\n"
    assert b"ID=baserock" in found["etc/os-release"].data
    meta = json.loads(found["baserock/thing-bins.meta"].data)
    assert meta["repo"] == "upstream:thing"
    assert "usr/bin/it" in meta["contents"]
    assert json.loads(found["baserock/core-runtime.meta"].data)["contents"] == [
        "base-misc",
        "thing-bins",
    ]
    assert "proc" not in found
    print(kit.log_text)
