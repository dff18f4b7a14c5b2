"""Text from logs, definitions, workers and other users sends no commands to the terminal."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from initiator_kit import INITIATOR, Project
from terminals import Terminal

from fabric.commands.shared import tables
from fabric.host.terminal import clean_pieces, printable
from fabric.wire.messages import RequestInfo, WorkerInfo

SYSTEM = "../systems/small.morph"

#: name, input, text on the terminal
TEXTS = [
    ("plain text", "zlib: built, naïve 日本\tx\n", "zlib: built, naïve 日本\tx\n"),
    ("colours of a compiler", "\x1b[01m\x1b[Kmain.c:\x1b[m\x1b[K error", "main.c: error"),
    ("the clipboard (OSC 52)", "a\x1b]52;c;cm0gLXJmIC8=\x07b", "ab"),
    ("the title, ended by ST", "a\x1b]0;root\x1b\\b", "ab"),
    ("a sequence without an end", "a\x1b]52;c;cm0", "a\\x1b]52;c;cm0"),
    ("the screen is cleared", "a\x1b[2J\x1b[1;1Hb", "ab"),
    ("reset", "a\x1bcb", "a\\x1bcb"),
    ("a device string (DCS)", "a\x1bP$q\x1b\\b", "ab"),
    ("C1: CSI in one character", "a\x9b2Jb", "ab"),
    ("C1: OSC in one character", "a\x9d52;c;eA==\x9cb", "ab"),
    ("C1: next line", "a\x85b", "a\\x85b"),
    ("a bell, a backspace, a null", "a\x07\x08\0b", "a\\x07\\x08\\x00b"),
    ("a line that overwrites itself", "failed\rdone  \r\nx", "failed\ndone  \nx"),
    ("text from right to left", "a\u202egnp.exe", "a\\u202egnp.exe"),
    ("isolates", "a\u2066b\u2069", "a\\u2066b\\u2069"),
    ("a line separator", "a\u2028b", "a\\u2028b"),
    ("invisible tags", "a\U000e0041", "a\\ue0041"),
    ("a byte that is no text", "a\udcffb", "a\\xffb"),
]


@pytest.mark.parametrize(("text", "shown"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
def test_printable_escapes_control_characters(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(("text", "shown"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
def test_log_is_cleaned_alike_in_pieces_of_any_size(text: str, shown: str) -> None:
    if "\udcff" in text:
        shown = shown.replace("\\xff", "\ufffd")
    data = text.encode(errors="surrogateescape")
    for size in (1, 2, 3, 1000):
        pieces = (data[at : at + size] for at in range(0, len(data), size))
        assert "".join(clean_pieces(pieces)) == shown


@pytest.mark.parametrize("text", ["\x90", "\x9d", "\x9b", "\x1b]", "\x1bP\x1b[", "\x9b0;"])
def test_printable_takes_linear_time(text: str) -> None:
    """Sequences that begin again and again, and do not end."""
    began = time.process_time()
    printable(text * 200_000)
    assert time.process_time() - began < 5.0


EVIL = "\x1b]52;c;cm0gLXJmIC8=\x07\x1b[2J\u202e"
#: The same in a definition, for printf.
WRITTEN = r"\033]52;c;cm0gLXJmIC8=\007\033[2J\342\200\256"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path / "definitions", tmp_path / "cache")
    yield made
    for child in made.children:
        child.kill()
        child.communicate()


def seen(project: Project, *args: str, code: int = 0) -> str:
    """The output of a command on a terminal, without fabric's own styles."""
    terminal = Terminal(
        [*INITIATOR, *args], project.logs, {**project.environ, "NO_COLOR": "1", "CI": "1"}
    )
    try:
        assert terminal.ends() == code, terminal.lines()
    finally:
        terminal.close()
    ours = rb"\x1b\[(\?25[hl]|\?2026[hl]|[JK]|\dA)"
    return re.sub(ours, b"", terminal.raw).decode()


def test_failure_shows_its_log_and_command_clean(project: Project) -> None:
    evil = f"printf '{WRITTEN}!!\\n'; printf '{WRITTEN}' >&2; false"
    project.write(bad=evil)
    text = seen(project, "build", SYSTEM, code=3)
    assert "  | !!" in text.replace("\\u202e", "")
    assert not set("\x1b\x07\u202e") & set(text), repr(text)
    piped = project.build()
    assert not set("\x1b\x07\u202e") & set(piped.stdout + piped.stderr)
    assert EVIL in project.log("bad-misc"), "the file has every byte"


def test_logs_are_raw_for_a_pipe_and_clean_for_a_terminal(project: Project) -> None:
    project.write(odd=f"printf '{WRITTEN}\\377!!\\n'")
    assert project.build().returncode == 0
    command = [*INITIATOR, "logs", "odd"]
    raw = subprocess.run(
        command, cwd=project.logs, env=project.environ, capture_output=True, check=True
    ).stdout
    assert raw == (project.logs / "build-step-odd-misc.log").read_bytes()
    assert EVIL.encode() + b"\xff!!\n" in raw
    text = seen(project, "logs", "odd")
    assert "\\u202e\ufffd!!\r\n" in text
    assert not set("\x1b\x07\u202e") & set(text), repr(text)


def test_errors_show_definitions_and_file_names_clean(project: Project) -> None:
    project.write(one="true")
    (project.root / "strata/things.morph").write_text("name: 'a\u202e'\nb\u202e: 1\n")
    (project.root / f"systems/{EVIL.replace('/', '')}small.morph").write_text("kind: system\n")
    for args in (("graph", SYSTEM), ("graph", "../systems/smalll.morph"), ("show", EVIL)):
        text = seen(project, *args, code=1)
        assert not set("\x1b\x07\u202e") & set(text), repr(text)


FORGER = "x\nforged:1: look elsewhere"
FORGED = json.dumps(FORGER)
SOCKET = (
    'python3 -c \'import os, socket; os.chdir(os.environ["DESTDIR"]);'
    f" socket.socket(socket.AF_UNIX).bind({FORGED})'"
)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        (f"sources/{FORGER}.lorry", "", "["),
        (f"sources/{FORGER}.lorry", "", "x: {type: tarball}"),
        (f"systems/small{FORGER}.morph", "", "kind: system"),
        ("sources/x.lorry", "", f"{FORGED}: {{type: tarball}}"),
        ("strata/things.morph", "strata/one.morph", FORGED),
        (
            "strata/things.morph",
            "chunks:",
            'products: [{artifact: a, include: ["(\\n%s"]}]\nchunks:',
        ),
        ("strata/one.morph", "kind: chunk", f"kind: chunk\ndevices: [{{filename: {FORGED}}}]"),
        ("strata/one.morph", "kind: chunk", f"kind: chunk\nsystem-integration: {{{FORGED}: 1}}"),
        ("strata/one.morph", "true", SOCKET),
        ("DEFAULTS", "split-rules:", f"build-systems: {{{FORGED}: 1}}\nsplit-rules:"),
        ("DEFAULTS", "['.*']", f"[{json.dumps(f'({FORGER}')}]"),
    ],
)
def test_errors_keep_names_from_looking_like_messages(
    project: Project, file: str, before: str, after: str
) -> None:
    project.write(one="true")
    path = project.root / file
    path.parent.mkdir(exist_ok=True)
    text = path.read_text() if path.exists() else ""
    assert before in text
    path.write_text(text.replace(before, after.replace("%s", "forged:1: look elsewhere"), 1))
    done = project.run("build", SYSTEM if "small" not in file else "../systems/small forged")
    assert done.returncode in (1, 3)
    assert "forged:1: look elsewhere" in done.stdout + done.stderr, "it was told of"
    lines = (done.stdout + done.stderr).splitlines()
    assert not [line for line in lines if line.startswith("forged:")], lines


def test_tables_keep_titles_and_names_in_their_row() -> None:
    info = RequestInfo("f" * 32, f"x{EVIL}\nforged", f"m{EVIL}", "building", 5.0, message=EVIL)
    worker = WorkerInfo(f"w{EVIL}", "x86_64", 1, 3.0, 0.1, message=EVIL)
    for lines in (tables.requests([info]), tables.workers([worker])):
        assert len(lines) == 3
        assert not set("\x1b\x07\u202e\n") & set(printable("".join(lines)))
