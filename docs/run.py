"""Draws docs/run.svg: what a person saw of a build at one moment.

    script -qc 'stty cols 100 rows 30; make build' FILE
    .venv/bin/python docs/run.py FILE '11 of 24 built, 11 min 30 s'

The picture is of the last moment at which the terminal had that text.
"""

from __future__ import annotations

import sys
from html import escape
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char

COLUMNS, ROWS, SHOWN = 100, 30, 18
WIDTH, HEIGHT, MARGIN = 8.4, 18, 14
COLOURS = {"default": "#c5c8c6", "cyan": "#68a0b3", "green": "#98a84b", "red": "#cc555a"}


def seen(record: bytes, text: str) -> pyte.Screen:
    """The terminal, when ``text`` was last to be seen."""
    end = record.rindex(text.encode())
    end = record.index(b"\x1b[J", end) + 3  # a picture is drawn to its end
    screen = pyte.Screen(COLUMNS, ROWS)
    pyte.ByteStream(screen).feed(record[:end])
    return screen


def drawn(screen: pyte.Screen) -> str:
    """The rows that are not empty, the last SHOWN of them."""
    rows = [
        [screen.buffer[y][x] for x in range(COLUMNS)]
        for y in range(ROWS)
        if screen.display[y].strip()
    ][-SHOWN:]
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
    record, text = sys.argv[1:]
    picture = drawn(seen(Path(record).read_bytes(), text))
    Path(__file__).with_name("run.svg").write_text(picture)
