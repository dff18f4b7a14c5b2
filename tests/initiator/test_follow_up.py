"""The question after a failed build on a terminal."""

from __future__ import annotations

import pytest
from initiator_kit import OpenTerminal, Project
from terminals import Terminal

SYSTEM = "../systems/small.morph"
ASKED = "shell, retry, continue or quit?"


def asked(terminal: OpenTerminal, *args: str, question: str = ASKED, **environ: str) -> Terminal:
    """A build on a terminal that has asked how to go on."""
    seen = terminal("build", SYSTEM, *args, columns=120, rows=60, CI="", **environ)
    seen.sees(lambda lines: lines[-1:] == [question], "the question", 60)
    return seen


def test_question_offers_what_is_possible(project: Project, terminal: OpenTerminal) -> None:
    project.write(
        bad="sleep 0.5; false", after=("bad", ":"), low="sleep 2", high=("low", ":"), other=":"
    )
    seen = asked(terminal, "--workers", "2")
    assert seen.lines()[-5:-1] == [
        "  shell     open the tree of bad",
        "  retry     build bad again and go on",
        "  continue  build the 2 steps that do not need bad",
        "  quit      end",
    ]
    seen.types("bogus\nq\n")
    assert seen.ends() == 3
    assert seen.lines()[-1] == "fabric-initiator: small is not built: bad failed"
    assert not any("Traceback" in line for line in seen.lines())


def test_continue_builds_what_does_not_need_the_failed_step(
    project: Project, terminal: OpenTerminal
) -> None:
    project.write(bad="sleep 0.5; false", after=("bad", ":"), low="sleep 2", high=("low", ":"))
    seen = asked(terminal, "--workers", "2")
    seen.types("continue\n")
    assert seen.ends() == 3
    lines = seen.lines()
    assert "[1/1] high: built in" in "\n".join(lines[lines.index(f"{ASKED} continue") :])
    assert lines[-1] == "fabric-initiator: small is not built: bad failed"
    assert sum("bad: building" in line for line in lines) == 1
    assert not any("after: " in line for line in lines)


def test_continue_asks_again_after_another_failure(
    project: Project, terminal: OpenTerminal
) -> None:
    project.write(bad="sleep 0.5; false", low="sleep 2", worse=("low", "false"), good=("low", ":"))
    seen = asked(terminal, "--workers", "2")
    seen.types("c\n")
    question = "shell, retry or quit?"
    seen.sees(lambda lines: lines[-1:] == [question], "the question", 60)
    assert "  shell     open the tree of bad; `shell NAME` for another" in seen.lines()
    seen.types("shell god\n")
    seen.sees(lambda lines: lines[-2:-1] == ["god did not fail; these did: bad, worse"], "an error")
    seen.types("quit\n")
    assert seen.ends() == 3
    assert seen.lines()[-1] == "fabric-initiator: small is not built: bad, worse failed"


def test_retry_builds_changed_definitions_in_the_same_run(
    project: Project, terminal: OpenTerminal
) -> None:
    project.write(good=":", bad="sleep 0.5; false")
    seen = asked(terminal, question="shell, retry or quit?")
    (project.root / "strata/bad.morph").write_text("name: bad\nkind: mistake\n")
    seen.types("retry\n")
    seen.sees(lambda _: "strata/bad.morph:2: " in seen.row("bad.morph"), "the mistake")
    seen.sees(lambda lines: lines[-1:] == ["shell, retry or quit?"], "the question")
    project.write(good=":", bad="echo well")
    seen.types("r\n")
    assert seen.ends() == 0
    assert "small is built: 3 built, 1 cached" in "\n".join(seen.lines())


def test_shell_opens_the_tree_of_the_failed_step_and_asks_again(
    project: Project, terminal: OpenTerminal
) -> None:
    project.write(bad="touch left-behind; false")
    seen = asked(terminal, question="shell, retry or quit?")
    seen.types("shell\n")
    seen.sees(lambda lines: lines[-1] in ("#", "$"), "a prompt")
    seen.types("ls; exit\n")
    seen.sees(lambda lines: lines[-1:] == ["shell, retry or quit?"], "the question")
    assert seen.lines()[-2].split() == ["hello.txt", "left-behind"]
    seen.types("\x04")
    assert seen.ends() == 3


def test_interruption_at_the_question_ends_the_build(
    project: Project, terminal: OpenTerminal
) -> None:
    project.write(bad="false")
    seen = asked(terminal, question="shell, retry or quit?")
    seen.press_ctrl_c()
    assert seen.ends() == 130
    assert not project.processes()


@pytest.mark.parametrize("where", ["CI", "json", "stdin"])
def test_nobody_is_asked_who_is_not_there(
    project: Project, terminal: OpenTerminal, where: str
) -> None:
    project.write(bad="false")
    args = ("--json",) if where == "json" else ()
    within = ("sh", "-c", '"$@" </dev/null', "sh") if where == "stdin" else ()
    seen = terminal("build", SYSTEM, *args, within=within, CI="1" if where == "CI" else "")
    assert seen.ends() == 3
    assert b"quit?" not in seen.raw
