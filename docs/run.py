"""Draws docs/run.svg: the terminal of a build of the example system, when half of it is built.

    .venv/bin/python docs/run.py

Builds the system into a store of its own and stops there.  Build it once before: then its sources
are here, and the picture shows how long it goes on.
"""

from __future__ import annotations

import os
import sys
import tempfile
from html import escape
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests/kit"))

from terminals import Terminal  # noqa: E402

SYSTEM = "minimal-system-x86_64.morph"
COMMAND = f"$ fabric-initiator build systems/{SYSTEM}"
COLUMNS, ROWS, SHOWN = 100, 24, 18
#: Seconds that half of the system may take.
PATIENCE = 3600.0
WIDTH, HEIGHT, MARGIN = 8.4, 18, 14
COLOURS = {
    "default": "#c5c8c6", "cyan": "#68a0b3", "green": "#98a84b", "red": "#cc555a",
    "brown": "#d0b03c",
}  # fmt: skip


def recorded() -> bytes:
    """The output of a build until half of it is built and two steps run."""

    def is_half(lines: list[str]) -> bool:
        done, _, total = lines[-1].partition(" built")[0].strip("━╌ ").partition(" of ")
        running = [line for line in lines if " of ~" in line]
        return total.isdigit() and 2 * int(done) >= int(total) and len(running) == 2

    with tempfile.TemporaryDirectory() as folder:
        initiator = Path(sys.executable).with_name("fabric-initiator")
        system = ROOT / "systems" / SYSTEM
        command = [str(initiator), "build", str(system), "--artifacts", f"{folder}/artifacts"]
        environ = {**os.environ, "TERM": "xterm", "FABRIC_CONFIG": "/dev/null"}
        terminal = Terminal(command, Path(folder), environ, COLUMNS, ROWS)
        try:
            terminal.sees(lambda lines: bool(lines) and is_half(lines), "half", PATIENCE)
            record = terminal.raw
            terminal.press_ctrl_c()
            terminal.ends()
        finally:
            terminal.close()
    return record


def seen(record: bytes) -> pyte.Screen:
    """The terminal after the last whole drawing."""
    screen = pyte.Screen(COLUMNS, ROWS)
    pyte.ByteStream(screen).feed(record[: record.rindex(b"\x1b[?2026l")])
    return screen


def drawn(screen: pyte.Screen) -> str:
    """The command, and below it the rows that are not empty, the last SHOWN of them."""
    rows = [
        [screen.buffer[y][x] for x in range(COLUMNS)]
        for y in range(ROWS)
        if screen.display[y].strip()
    ][-SHOWN:]
    rows.insert(0, [Char(char, bold=True) for char in COMMAND])
    width, height = COLUMNS * WIDTH + 2 * MARGIN, len(rows) * HEIGHT + 2 * MARGIN
    lines = "\n".join(_row(row, MARGIN + (y + 0.75) * HEIGHT) for y, row in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}">\n'
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#292929"/>\n'
        '<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14"'
        f' xml:space="preserve">\n{lines}\n</g>\n</svg>\n'
    )


def _row(row: list[Char], y: float) -> str:
    parts, x = [], 0
    for (colour, bold), run in groupby(row, lambda char: (char.fg, char.bold)):
        text = "".join(char.data for char in run)
        if shown := text.rstrip():
            weight = ' font-weight="bold"' if bold else ""
            parts.append(
                f'<text x="{MARGIN + x * WIDTH:.1f}" y="{y:.1f}" fill="{COLOURS[colour]}"'
                f' textLength="{len(shown) * WIDTH:.1f}"{weight}>{escape(shown)}</text>'
            )
        x += len(text)
    return "\n".join(parts)


if __name__ == "__main__":
    picture = drawn(seen(recorded()))
    if str(ROOT) in picture or str(Path.home()) in picture:
        raise SystemExit("the picture has a path of this machine")
    Path(__file__).with_name("run.svg").write_text(picture)
