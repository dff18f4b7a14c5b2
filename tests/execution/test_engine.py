"""Chunks built by a real engine: their artifacts are those of a build on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from building_kit import TOOLS, Kit, copy_tools, key_of
from engine_kit import Casd
from msgspec.structs import replace

from fabric.building.archive import pack
from fabric.building.tree import scan
from fabric.execution.engine import RemoteEngine
from fabric.jobs import Staged

#: Installs one of each kind of file.
INSTALL = """\
mkdir -p $DESTDIR/bin $DESTDIR/include $DESTDIR/empty
cp README $DESTDIR/include/a
ln $DESTDIR/include/a $DESTDIR/include/b
echo '#!/bin/sh' > $DESTDIR/bin/raised
chmod 4711 $DESTDIR/bin/raised
echo secret > $DESTDIR/secret
chmod 400 $DESTDIR/secret
chmod 1777 $DESTDIR/empty
ln -s ../include/a $DESTDIR/bin/link
ln -s /nowhere/at/all $DESTDIR/bin/dangling
mkfifo $DESTDIR/pipe
mkdir -p $DESTDIR/$LONG
echo deep > $DESTDIR/$LONG/$LONG
echo odd > "$DESTDIR/$(printf 'a\\nb\\377')"
"""


@pytest.fixture(scope="session")
def packer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of tools with tar."""
    root = tmp_path_factory.mktemp("packer") / "tree"
    copy_tools(root, (*TOOLS, "tar"))
    return root


@pytest.fixture
def staged(kit: Kit, packer: Path) -> Staged:
    return kit.stored("packer", {"packer-misc": pack(scan(packer).values(), kit.root / "packer")})


def test_artifacts_are_those_of_a_local_build(
    kit: Kit, staged: Staged, engine: RemoteEngine, casd: Casd
) -> None:
    job = kit.chunk(
        build=["pwd; env; id -u; cat README"],
        install=[INSTALL],
        staged=(staged,),
        source=kit.tree(README="read me\n"),
    )
    job.environment["LONG"] = "x" * 120
    here = kit.build(job)
    log = kit.log_text
    there = kit.build(replace(job, key=key_of("there")), engine=engine)
    assert here.artifacts == there.artifacts
    assert all(each.blob for each in here.artifacts)
    assert kit.log_text == f"{log}### executed at {casd.host}\n"
