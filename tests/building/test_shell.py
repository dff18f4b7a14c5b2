"""The shell of a sandbox on a real terminal, which it cannot type into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from children import child_environment
from terminals import Terminal
from test_machine import place, scenario  # noqa: F401 (a fixture)

from fabric.building.archive import Packed

#: Stands for the user's own shell, which afterwards reads a line as a command.
AFTER = 'echo "status $?"; stty -a | grep -o " icanon"; read line; echo "typed <$line>"'
TYPE = """python3 -c '
import fcntl, os
for fd in (0, os.open("/dev/tty", os.O_RDWR)):
    for byte in b"evil\\n":
        try: fcntl.ioctl(fd, 0x5412, bytes([byte]))
        except OSError as error: print("refused", error.errno)
'"""


@pytest.fixture
def terminal(place: Path, base: Packed) -> Iterator[Terminal]:  # noqa: F811
    """A user's terminal, in which a shell runs in the sandbox of a chunk."""
    command = scenario("shell", place, base, within="")
    command[2] = f'"$@"; {AFTER}'
    environ = child_environment(PS1="outer$ ")
    made = Terminal(command, place, environ)
    try:
        made.sees(lambda lines: bool(lines) and lines[-1].endswith("#"), "the prompt")
        yield made
    finally:
        made.close()


def lines_ending(terminal: Terminal, text: str) -> int:
    """The number of lines that end so; a prompt may stand before text typed ahead."""
    return sum(line.endswith(text) for line in terminal.lines())


def ends(terminal: Terminal) -> list[str]:
    """Leave both shells; returns all lines."""
    terminal.types("exit 5\n")
    terminal.sees(lambda lines: lines[-1] == " icanon", "the state of the terminal")
    assert lines_ending(terminal, "status 5")
    terminal.types("mine\n")
    assert terminal.ends() == 0
    return terminal.lines()


def test_shell_exit_prints_nothing_and_restores_the_terminal(terminal: Terminal) -> None:
    terminal.types("echo it $((3 * 4))\n")
    terminal.sees(lambda lines: "it 12" in lines, "the output")
    lines = ends(terminal)
    assert lines[-4:] == ["status 5", " icanon", "mine", "typed <mine>"]
    assert lines[:4] == [
        "No command has run yet.",
        "Run all steps:  sh /dev/steps",
        "Run one list:   sh /dev/steps build-commands",
        "Leave:          exit",
    ]
    said = [line for line in lines[4:-4] if "#" not in line]
    assert said == ["it 12"], "no word of job control or terminals"


def test_shell_programs_cannot_type_for_the_user(terminal: Terminal) -> None:
    terminal.types(f"{TYPE}\n")
    terminal.sees(lambda _: lines_ending(terminal, "refused 1") == 10, "what the kernel answers")
    assert ends(terminal)[-1] == "typed <mine>"


def test_shell_has_job_control_and_keys(terminal: Terminal) -> None:
    command = "sh -c 'echo begun; exec sleep 1000'"  # it receives keys from then on
    terminal.types(f"{command}\n")
    terminal.sees(lambda lines: lines[-1] == "begun", "it run")
    terminal.types("\x1a")
    terminal.sees(lambda lines: any("Stopped" in line for line in lines), "that it stopped")
    terminal.types("fg\n")
    terminal.sees(lambda lines: lines[-1].startswith("sh -c"), "that it goes on")
    terminal.press_ctrl_c()
    terminal.types("\necho $?, $(jobs | wc -l) jobs\n")
    terminal.sees(lambda _: lines_ending(terminal, "130, 0 jobs") == 1, "that Ctrl-C ended it")
    ends(terminal)


def test_shell_size_follows_the_window(terminal: Terminal) -> None:
    terminal.types("stty size\n")
    terminal.sees(lambda _: lines_ending(terminal, "24 80") == 1, "its size")
    terminal.resize(100, 30)
    terminal.types("stty size\n")
    terminal.sees(lambda _: lines_ending(terminal, "30 100") == 1, "its new size")
    ends(terminal)


def test_shell_passes_much_at_once_in_both_directions(terminal: Terminal) -> None:
    """As if a text is pasted during output."""
    terminal.types("stty -echo; cat > it; wc -c < it; seq 100000 | wc -l; seq 30000\n")
    for _ in range(50):
        terminal.types("x" * 99 + "\n")
    terminal.types("\x04")
    terminal.sees(lambda _: lines_ending(terminal, "30000") == 1, "the last of them")
    terminal.types("stty echo; clear; cat it | wc -c\n")
    terminal.sees(lambda _: lines_ending(terminal, "5000") == 1, "that all of it came")
    ends(terminal)


def test_shell_output_to_a_file_stays_there(place: Path, base: Packed) -> None:  # noqa: F811
    """Redirected output does not reach the terminal."""
    command = scenario("shell", place, base, within="")
    command[2] = f'"$@" > {place}/out 2>&1 < /dev/null'
    environ = child_environment()
    terminal = Terminal(command, place, environ)
    try:
        assert terminal.ends() == 0
        assert "Leave:          exit\n" in (place / "out").read_text()
        assert terminal.raw == b""
    finally:
        terminal.close()
