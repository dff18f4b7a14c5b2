"""Files that several processes share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from children import child_environment

from fabric.host.shared_files import scratch, sweep


def again(folder: Path) -> None:
    with scratch(folder, "work-"):
        pass


@pytest.mark.parametrize("how", [again, lambda folder: sweep(folder, "work-")])
def test_scratch_of_a_killed_process_is_removed_by_the_next(
    tmp_path: Path, how: Callable[[Path], None]
) -> None:
    code = """
import sys
from pathlib import Path
from fabric.host.shared_files import scratch
with scratch(Path(sys.argv[1]), "work-") as folder:
    (folder / "half").write_text("done")
    print(folder, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as maker:
        assert maker.stdout is not None
        theirs = Path(maker.stdout.readline().strip())
        sweep(tmp_path, "work-")
        with scratch(tmp_path, "work-") as ours:
            assert ours != theirs
            assert (theirs / "half").read_text() == "done", "its maker lives"
        assert not ours.exists()
        assert theirs.exists()
        maker.kill()
    how(tmp_path)
    assert not theirs.exists()
    assert not list(tmp_path.glob("work-*"))
