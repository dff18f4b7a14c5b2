"""Makes fabric/web/static/log-colors.css: ``python tests/web/log_colors.py > FILE``."""

from __future__ import annotations

from collections.abc import Iterator

#: The first 16 colors, as xterm has them, but with a blue and a black that are not lost in dark.
BASIC = (
    "#3b4048", "#c62828", "#2e7d32", "#8d6e00", "#1f5fbf", "#9c27b0", "#00798c", "#b0b6bd",
    "#6b7480", "#ef5350", "#43a047", "#c9a200", "#448aff", "#d05ce3", "#26a5b8", "#eceff1",
)  # fmt: skip
LEVELS = (0, 95, 135, 175, 215, 255)


def colors() -> Iterator[str]:
    """The 256 colors of a terminal."""
    yield from BASIC
    for red in LEVELS:
        for green in LEVELS:
            for blue in LEVELS:
                yield f"#{red:02x}{green:02x}{blue:02x}"
    for step in range(24):
        yield f"#{8 + 10 * step:02x}" + f"{8 + 10 * step:02x}" * 2


def sheet() -> str:
    """The style sheet."""
    rules = ["/* The 256 colors of a terminal, made by tests/web/log_colors.py. */"]
    for number, color in enumerate(colors()):
        rules.append(f".ink-{number} {{ --ink: {color}; }}")
        rules.append(f".ground-{number} {{ --ground-of: {color}; }}")
    return "\n".join(rules) + "\n"


if __name__ == "__main__":
    print(sheet(), end="")
