"""Chunks built for real, in bubblewrap."""

from __future__ import annotations

from building_kit import Kit


def test_installs_into_artifacts(kit: Kit) -> None:
    job = kit.chunk(
        source=kit.tree(hello="hi\n"),
        build=["cat hello > made", "echo $MAKEFLAGS > flags"],
        install=[
            "mkdir -p $DESTDIR/usr/bin $DESTDIR/usr/include",
            "cp made $DESTDIR/usr/bin/it; chmod 4755 $DESTDIR/usr/bin/it",
            "cp flags $DESTDIR/usr/include/it.h; ln -s it.h $DESTDIR/usr/include/link.h",
        ],
    )
    manifest = kit.build(job)
    bins = kit.entries(manifest, "thing-bins")
    print(kit.log_text, bins)
    assert bins["usr/bin/it"].data == b"hi\n"
    assert bins["usr/bin/it"].mode == 0o4755
    assert kit.phases == ["fetch", "build", "install", "store"]
