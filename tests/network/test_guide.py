"""A farm on one machine, by the commands of the how-to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from farm_kit import HOST
from small_definitions import SYSTEM, git, lay_out, write_chunks

PAGE = Path(__file__).parents[2] / "docs/how-to/run-a-farm-without-vms.md"
TOKEN = "a-token-of-this-test"
#: Prints the first page as JSON, when it is served.
LOOK = (
    f"curl -sf --retry 9 --retry-connrefused --noproxy '*' -H 'Authorization: Bearer {TOKEN}'"
    f" 'http://{HOST}:7420/?format=json'"
)
#: Also if a command fails, the daemons end.
END = "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"


def test_farm_on_one_machine_by_the_how_to(tmp_path: Path) -> None:
    definitions, source = tmp_path / "greeter", tmp_path / "source"
    lay_out(definitions, source)
    write_chunks(definitions, source, {"hello": "touch $DESTDIR/hello"})
    git(definitions, "init", "-q")
    (tmp_path / "token").write_text(TOKEN)
    section = PAGE.read_text().partition("\n## On one machine\n")[2]
    script = "\n".join(re.findall(r"(?ms)^```\n(.*?)^```$", section))
    assert "127.0.0.1" in script
    script = script.replace("127.0.0.1", HOST).replace("systems/greeter-x86_64.morph", SYSTEM)
    script = script.replace("\nkill ", f"\n{LOOK}\nkill ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{END}\n{script}\nwait"],
        cwd=definitions,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FABRIC_METRICS": f"{HOST}:7419",
            "FABRIC_LISTEN": HOST,
            "FABRIC_TOKEN": str(tmp_path / "token"),
            "HOME": str(tmp_path),
            "XDG_CACHE_HOME": "",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "small is built: 3 built" in said
    assert re.search(r"hello: built on worker[01]|hello on worker[01]: done", said), said
    assert '"built_today":3' in said
    assert '"name":"worker1"' in said
    assert done.returncode == 0, said
