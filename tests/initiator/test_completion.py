"""Shells complete command lines of fabric-initiator: real ones, on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from initiator_kit import Project
from terminals import Terminal

PROMPT = "ready> "
#: Shell -> its command without settings of the user, and the line that reads the script.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile"], 'eval "$(fabric-initiator completion bash)"'),
    "zsh": (
        ["zsh", "-f"],
        "autoload -U compinit; compinit -D; source <(fabric-initiator completion zsh)",
    ),
    "fish": (["fish", "--no-config"], "fabric-initiator completion fish | source"),
}


@pytest.fixture
def sources(project: Project) -> Project:
    """Definitions with the chunks zlib and zstd, and two lorries."""
    project.write(zlib="true", zstd="true")
    (project.root / "sources").mkdir()
    (project.root / "sources/all.lorry").write_text(
        "zlib: {type: git, url: 'file:///none'}\nbaserock:thing: {type: git, url: 'file:///none'}\n"
    )
    return project


def complete(project: Project, *words: str, shell: str = "fish") -> list[str]:
    """The answer of the program, without the meanings of words."""
    done = project.run("__complete", shell, *words)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("bui", ["build"]),
        ("--debug bui", ["build"]),
        ("--cache x bui", ["build"]),
        ("build ../sys", ["../systems/small.morph"]),
        ("build smal", ["small"]),
        ("build small z", ["zlib", "zstd"]),
        ("build small zlib zs", ["zstd"]),
        ("build --workers 2 small --json z", ["zlib", "zstd"]),
        ("build --workers ", []),
        ("build --keep-", ["--keep-going"]),
        ("build --detach --de", ["--debug"]),  # --detach stands there already
        ("check --unused zlib z", ["zlib", "zstd"]),
        ("logs z", ["zlib", "zstd"]),
        ("logs --system=sm", ["--system=small"]),
        ("logs --sys small z", ["zlib", "zstd"]),  # an abbreviation
        ("checkout small zlib-", ["zlib-bins", "zlib-misc"]),
        ("image small --subsystem smal", ["small"]),
        ("gc --keep small --kee", ["--keep-days", "--keep"]),  # it may be repeated
        ("shell zlib -- z", []),
        ("lorry up", ["update"]),
        ("lorry update ", ["zlib", "baserock:thing"]),
        ("cache ", ["check"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("nothing ", []),
        ("../x ", []),
        ("cancel x y z", []),
        ("build --nothing ../sys", ["../systems/small.morph"]),
    ],
)
def test_words_fit_their_place(sources: Project, typed: str, words: list[str]) -> None:
    assert complete(sources, *typed.split(" ")) == ["words", *words]


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("--cache ", "directories"),
        ("build --artifacts ", "directories"),
        ("image small --to ", "files"),
        ("image small --subsystem small ", "files"),
    ],
)
def test_shells_complete_files_themselves(sources: Project, typed: str, kind: str) -> None:
    assert complete(sources, *typed.split(" ")) == [kind]


def test_wrong_definitions_and_settings_give_no_words(sources: Project) -> None:
    (sources.root / "strata/things.morph").write_text("chunks: [")
    (sources.root / "sources/all.lorry").write_text("- x")
    assert complete(sources, "build", "small", "") == ["words"]
    assert complete(sources, "lorry", "list", "") == ["words"]
    assert complete(sources, "--controller", "a:b:c:99999999", "cancel", "") == ["words"]
    assert complete(sources, "cancel", "") == ["words"]


def test_silent_controller_gives_no_words_soon(sources: Project) -> None:
    typed = ("--controller", "127.0.0.1:9", "cancel", "")
    assert sources.run("__complete", "fish", *typed, environ={"FABRIC_PLAIN": "true"}).stdout == ""


def test_bash_gets_what_follows_its_breaks_of_words_and_no_command_runs(sources: Project) -> None:
    run = sources.run
    line = "fabric-initiator lorry list baserock:th"
    assert run("__complete", "bash", line, "th").stdout == "words\nthing\n"
    stratum = sources.root / "strata/things.morph"
    stratum.write_text(stratum.read_text().replace("name: zlib\n", "name: z$(reboot)\n"))
    line = "fabric-initiator build small z\\$"
    assert run("__complete", "bash", line, "z$").stdout == "words\nz\\$\\(reboot\\)\n"
    line = "fabric-initiator build 'smal"
    assert run("__complete", "bash", line, "smal").stdout == "words\nsmall\n"


@pytest.fixture(params=SHELLS)
def shell(sources: Project, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    command, read = SHELLS[request.param]
    environ = {
        **sources.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(sources.root / "home"),
        "PS1": PROMPT,
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
    }
    (sources.root / "home").mkdir()
    if request.param == "fish":
        read = f"function fish_prompt; echo -n '{PROMPT}'; end; {read}"
    terminal = Terminal([*command, "-i"], sources.logs, environ, columns=120)
    try:
        terminal.types(f"{read}; clear\n")
        terminal.sees(lambda lines: len(lines) == 1 and PROMPT.strip() in lines[0], "the shell")
        yield terminal
    finally:
        terminal.close()


def test_shell_completes_a_line(shell: Terminal) -> None:
    def press_tab(typed: str, line: str) -> None:
        shell.types(f"{typed}\t")
        shell.sees(lambda lines: "".join(lines[:1]).endswith(line), repr(line))

    press_tab("fabric-initiator bui", "fabric-initiator build")
    press_tab("../sy", "fabric-initiator build ../systems/small.morph")
    press_tab("--keep-g", "fabric-initiator build ../systems/small.morph --keep-going")
    press_tab("zl", "fabric-initiator build ../systems/small.morph --keep-going zlib")


def test_shell_shows_what_can_follow(shell: Terminal) -> None:
    shell.types("fabric-initiator lorry \t\t")
    shell.sees(
        lambda lines: {"list", "import", "update"} <= set(" ".join(lines[1:]).split()), "all"
    )


def test_shell_completes_directories(shell: Terminal, sources: Project) -> None:
    (sources.logs / "somewhere").mkdir()
    shell.types("fabric-initiator --cache some\t")
    shell.sees(lambda lines: "".join(lines[:1]).endswith("--cache somewhere/"), "it")


def test_scripts_are_valid(sources: Project) -> None:
    for shell in SHELLS:
        script = sources.run("completion", shell).stdout
        done = subprocess.run(
            [shell, "-n"], input=script, text=True, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
