"""The view of a running build on a terminal."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import re
import shlex
import tarfile
import threading
import time
from collections.abc import Iterator

import pytest
from initiator_kit import INITIATOR, OpenTerminal, Project
from terminals import Terminal

SYSTEM = "../systems/small.morph"
LONG = "a-chunk-whose-name-says-all-that-there-is-to-say"


def seconds(row: str) -> float:
    """The time that a step has run, by its row."""
    found = re.search(r"(?:(\d+) min )?(\d+(?:\.\d)?) s", row)
    return 60 * float(found[1] or 0) + float(found[2]) if found else 0.0


def live(lines: list[str]) -> list[str]:
    """The rows below the printed lines, except for the steps that come next."""
    return [line for line in lines if line.startswith("  ") and not line.startswith("  next: ")]


def moves(terminal: Terminal, text: str, more: float = 2.0) -> None:
    """Wait until the time of the one row with ``text`` has moved on by so much."""
    begun = seconds(terminal.row(text))
    terminal.sees(lambda _: seconds(terminal.row(text)) >= begun + more, f"{text} move on")


@pytest.mark.parametrize("columns", [120, 80, 40])
def test_live_view_shows_times_that_run(
    project: Project, terminal: OpenTerminal, columns: int
) -> None:
    project.write(**{"short": "sleep 1000", LONG: "sleep 1000"})
    seen = terminal("build", SYSTEM, columns=columns)
    seen.sees(lambda lines: len(live(lines)) == 3, "two steps and how far it is")
    moves(seen, "  short")
    rows = live(seen.lines())
    assert all(len(row) < columns for row in rows)
    for row in rows[:2]:
        assert re.search(r" \d.* s .*worker-[12]$", row), row
        assert row.split()[0] in ("short", LONG) or row.split()[0].endswith("…"), row
    assert re.search(r"0 of 4( built)?, \d", rows[-1]), rows[-1]
    moves(seen, "0 of 4")
    seen.press_ctrl_c()
    assert seen.ends() == 130
    assert not live(seen.lines()), seen.lines()
    assert seen.lines()[-1] == "fabric-initiator: interrupted"
    assert seen.raw.rfind(b"\x1b[?25h") > seen.raw.rfind(b"\x1b[?25l"), "the cursor is seen again"


@pytest.mark.parametrize("columns", [80, 40])
def test_live_view_shows_the_expected_time_left(
    project: Project, terminal: OpenTerminal, columns: int
) -> None:
    project.write(slow="sleep 3")
    assert project.build().returncode == 0
    project.write(slow="sleep 3; : again; sleep 1000")
    seen = terminal("build", SYSTEM, columns=columns)

    def left() -> float:
        return seconds(seen.row("0 of 3").rpartition(", ")[2])

    seen.sees(lambda _: " left" in seen.row("0 of 3"), "when it ends")
    begun = left()
    seen.sees(lambda _: left() <= begun - 1, "the end come nearer")
    assert re.search(r" worker-[12]$", seen.row("  slow"))
    assert " of ~3" in seen.row("  slow") or columns == 40
    seen.press_ctrl_c()
    assert seen.ends() == 130


def test_live_view_keeps_one_row_for_each_step_when_resized(
    project: Project, terminal: OpenTerminal
) -> None:
    project.write(**{"short": "sleep 1000", LONG: "sleep 1000"})
    seen = terminal("build", SYSTEM, columns=120)
    seen.sees(lambda lines: len(live(lines)) == 3, "two steps and how far it is")
    for columns, rows in ((80, 24), (40, 24), (100, 12), (40, 12), (120, 30)):
        seen.resize(columns, rows)
        for _ in range(2):
            moves(seen, "  short", 0.5)
        assert len(live(seen.lines())) == 3, seen.lines()
        assert all(len(line) < columns for line in live(seen.lines()))
        assert seen.row("worker-1  ") == ""
    seen.press_ctrl_c()
    assert seen.ends() == 130
    assert not live(seen.lines()), seen.lines()


def test_live_view_leaves_the_terminal_to_the_shell_in_the_background(project: Project) -> None:
    project.write(one="sleep 1000", two="sleep 1000")
    shell = ["bash", "--norc", "--noprofile", "-i"]
    seen = Terminal(shell, project.logs, {**project.environ, "PS1": "> "}, columns=120)
    try:
        seen.sees(lambda lines: lines == [">"], "a prompt")
        seen.types(f"{shlex.join(INITIATOR)} build {SYSTEM}\n")
        for _ in range(2):
            seen.sees(lambda lines: len(live(lines)) == 3, "two steps and how far it is")
            moves(seen, "  one", 0.5)
            seen.types("\x1a")
            seen.sees(lambda lines: lines[-1:] == [">"], "a prompt")
            assert "  Stopped  " in "".join(seen.lines()[-3:])
            assert not live(seen.lines()), seen.lines()
            assert seen.raw.rfind(b"\x1b[?25h") > seen.raw.rfind(b"\x1b[?25l"), "a cursor"
            seen.types("bg\necho typed\n")
            seen.sees(lambda lines: lines[-2:] == ["typed", ">"], "what was typed")
            seen.types("fg\n")
        seen.sees(lambda lines: len(live(lines)) == 3, "two steps and how far it is")
        seen.press_ctrl_c()
        seen.sees(lambda lines: lines[-1:] == [">"], "a prompt")
        assert not live(seen.lines()), seen.lines()
        seen.types("exit $?\n")
        assert seen.ends() == 130
    finally:
        seen.close()


def test_live_view_shows_what_runs_next_until_a_step_fails(
    project: Project, terminal: OpenTerminal
) -> None:
    project.write(bad="sleep 4; false", slow="sleep 1000", last=("slow", "true"))
    seen = terminal("build", SYSTEM, "--workers", "2", CI="1")
    seen.sees(lambda lines: "  next: last, small" in lines, "what comes next")
    seen.sees(lambda _: bool(seen.row("a step failed, so no other begins")), "the end")
    assert not seen.row("next: ")
    assert seen.row("  slow")
    assert ", 1 failed, " in seen.row("0 of 5")
    seen.press_ctrl_c()
    assert seen.ends() == 130


@pytest.mark.parametrize("columns", [20, 40, 80, 120, 300])
def test_live_view_is_a_whole_screen_at_any_width(
    project: Project, terminal: OpenTerminal, columns: int
) -> None:
    project.write(**{"short": "sleep 1000", LONG: "sleep 1000", "later": "true"})
    seen = terminal("build", SYSTEM, "--workers", "2", columns=columns)
    bar, wide = "╌" * 24, "╌" * 99
    short = LONG[: max(16, (columns - 1) // 3) - 1] + "…"
    named, rest = LONG, "install  T  L  worker-W"
    screens = {
        20: [f"  {LONG[:10]}…  T", f"  {'short':<11}  T", "  next: later, sma…", "  0 of 5, T"],
        40: [f"  {short}  T  worker-W", "  short             T  worker-W",
             "  next: later, small", f"  {bar[:12]}  0 of 5 built, T"],
        80: [f"  {short}  {rest}", f"  {'short':<26}  {rest}",
             "  next: later, small", f"  {bar}  0 of 5 built, T"],
        120: [f"  {short}  {rest}", f"  {'short':<39}  {rest}",
              "  next: later, small", f"  {bar}  0 of 5 built, T"],
        300: [f"  {named}  {rest}", f"  {'short':<{len(named)}}  {rest}",
              "  next: later, small", f"  {wide}  0 of 5 built, T"],
    }  # fmt: skip

    def blurred(lines: list[str]) -> list[str]:
        """The rows without what differs from run to run."""
        rows = [line for line in lines if line.startswith("  ")]
        for pattern, by in ((r"\d+(\.\d)? s\b", "T"), (r"\d+ B log", "L"), (r"-[12]$", "-W")):
            rows = [re.sub(pattern, by, row) for row in rows]
        return sorted(rows[:-2]) + rows[-2:]

    seen.sees(lambda lines: blurred(lines) == screens[columns], f"{screens[columns]}")
    seen.press_ctrl_c()
    assert seen.ends() == 130


def test_live_view_counts_steps_past_its_rows(project: Project, terminal: OpenTerminal) -> None:
    project.write(**{f"c{number}": "sleep 1000" for number in range(8)})
    seen = terminal("build", SYSTEM, "--workers", "8", rows=6)
    seen.sees(lambda lines: any("and 5 more" in line for line in lines), "that there are more")
    moves(seen, "0 of 10")
    assert len(live(seen.lines())) == 5
    seen.press_ctrl_c()
    assert seen.ends() == 130


def test_live_view_restores_the_terminal_after_ctrl_c(
    project: Project, terminal: OpenTerminal
) -> None:
    project.write(slow="sleep 1000")
    seen = terminal("build", SYSTEM)
    seen.sees(lambda lines: len(live(lines)) == 2, "the step")
    for _ in range(3):
        seen.press_ctrl_c()
    assert seen.ends() == 130
    assert not live(seen.lines()), seen.lines()
    assert seen.raw.rfind(b"\x1b[?25h") > seen.raw.rfind(b"\x1b[?25l"), "the cursor is seen again"


def test_live_view_in_a_tiny_terminal(project: Project, terminal: OpenTerminal) -> None:
    project.write(**{f"c{number}": "sleep 2" for number in range(3)})
    seen = terminal("build", SYSTEM, columns=2, rows=1)
    seen.resize(1, 1)
    seen.resize(30, 2)
    assert seen.ends() == 0
    assert "small.img" in "".join(seen.lines())


class Slow(http.server.BaseHTTPRequestHandler):
    """Sends the first half of ``content``, and the rest when ``go`` is set."""

    content = b""
    go = threading.Event()

    def do_GET(self) -> None:
        half = len(self.content) // 2
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        for start in range(0, half, half // 50 + 1):
            self.wfile.write(self.content[start : min(half, start + half // 50 + 1)])
            time.sleep(0.2)  # as on a slow network
        self.go.wait(60)
        self.wfile.write(self.content[half:])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def slow_source(project: Project) -> Iterator[threading.Event]:
    """The chunks are built from a tarball whose download is slow."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(project.source / "hello.txt", "thing-1.0/hello.txt")
        noise = tarfile.TarInfo("thing-1.0/noise")
        noise.size = 4_000_000
        tar.addfile(noise, io.BytesIO(os.urandom(noise.size)))
    Slow.content, Slow.go = packed.getvalue(), threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever).start()
    project.write(one="true")
    stratum = project.root / "strata/things.morph"
    text = re.sub(r"repo: .*", "repo: upstream:thing", stratum.read_text())
    stratum.write_text(text.replace("ref: main", "ref: '1.0'"))
    lorry = {
        "type": "tarball",
        "version": "1.0",
        "url": f"http://127.0.0.1:{server.server_port}/thing-1.0.tar.gz",
        "sha256": hashlib.sha256(Slow.content).hexdigest(),
    }
    (project.root / "sources").mkdir()
    (project.root / "sources/thing.lorry").write_text(json.dumps({"thing": lorry}))
    yield Slow.go
    Slow.go.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("command", ["build", "show"])
def test_live_view_shows_an_import_in_one_row_and_removes_it(
    terminal: OpenTerminal, slow_source: threading.Event, command: str
) -> None:
    seen = terminal(command, SYSTEM)
    come = re.compile(r"  [━╌]{12}  thing-1.0.tar.gz: downloading (\d\.\d) of 4.0 MB  \d+ s")
    told: set[str] = set()

    def grows(lines: list[str]) -> bool:
        told.update(found[1] for line in lines if (found := come.fullmatch(line)))
        return len(told) > 1

    seen.sees(grows, "that more has come")
    assert len(seen.lines()) == 1, seen.lines()
    slow_source.set()
    assert seen.ends() == 0
    assert not any("downloading" in line or "commit" in line for line in seen.lines())


def test_live_view_on_a_dumb_terminal_prints_lines(
    project: Project, terminal: OpenTerminal
) -> None:
    project.write(one="true")
    seen = terminal("build", SYSTEM, TERM="dumb")
    assert seen.ends() == 0
    assert b"\x1b" not in seen.raw
    assert b"one: built in" in seen.raw


def test_live_view_without_colours(project: Project, terminal: OpenTerminal) -> None:
    project.write(one="false")
    seen = terminal("build", SYSTEM, NO_COLOR="1", CI="1")
    assert seen.ends() == 3
    assert not re.search(rb"\x1b\[[0-9;]*m", seen.raw)
    assert any("one failed: install-commands" in line for line in seen.lines())
