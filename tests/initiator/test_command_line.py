"""The command line as it is parsed, and what a command imports."""

from __future__ import annotations

import argparse
import contextlib
import io
import pkgutil
import shlex
import subprocess
import sys

import pytest
from initiator_kit import Project

from fabric import commands
from fabric.initiator import parse, parser


def parsed(line: str) -> argparse.Namespace:
    return parse(shlex.split(line))[0]


@pytest.mark.parametrize("line", ["{} build s", "build {} s", "build s {}", "--cache b build s {}"])
def test_options_may_stand_before_or_after_the_command(line: str) -> None:
    options = parsed(line.format("--controller h --cache c --debug"))
    assert (options.controller, options.cache, options.debug) == ("h", "c", True)
    options = parsed(line.format(""))
    assert (options.controller, options.artifacts, options.debug) == (None, None, False)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("build s --json a b", "chunks", ["a", "b"]),
        ("build --json s", "chunks", []),
        ("show s --json a", "chunks", ["a"]),
        ("checkout s --to there a", "artifact", "a"),
        ("lorry list --json a", "names", ["a"]),
        ("shell a --system s -- sh --json -c b", "argv", ["sh", "--json", "-c", "b"]),
    ],
)
def test_options_may_stand_among_arguments(line: str, name: str, value: object) -> None:
    assert getattr(parsed(line), name) == value


def test_usage_errors_name_only_missing_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["build", "--json"])
    assert capsys.readouterr().err.endswith("required: SYSTEM\n")


def printed(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str, object]:
    """Standard output, standard error and the exit code of a line that ends at once."""
    with pytest.raises(SystemExit) as end:
        parsed(line)
    return (*capsys.readouterr(), end.value.code)


@pytest.mark.parametrize(
    ("line", "program", "error"),
    [
        ("", "", "the following arguments are required: COMMAND"),
        ("--cache c", "", "the following arguments are required: COMMAND"),
        ("buld s", "", "argument COMMAND: invalid choice: 'buld'; did you mean 'build'?\n"),
        ("--c x build s", "", "ambiguous option: --c could match --cache, --controller"),
        ("--json build s", "", "unrecognized arguments: --json; --json stands after build\n"),
        ("xyz", "", "argument COMMAND: invalid choice: 'xyz' (choose from "),
        (
            "build s --jsn --bogus",
            "",
            "unrecognized arguments: --jsn --bogus; did you mean '--json'?\n",
        ),
        ("build --json", " build", "the following arguments are required: SYSTEM"),
        ("build s --workers x", " build", "argument --workers: invalid int value: 'x'"),
        ("build s --workers", " build", "argument --workers: expected one argument"),
        ("checkout s", " checkout", "the following arguments are required: --to"),
        ("cancel a b", "", "unrecognized arguments: b"),
        (
            "workers dran a",
            " workers",
            "argument action: invalid choice: 'dran'; did you mean 'drain'?\n",
        ),
    ],
)
def test_usage_errors_name_the_mistake(
    line: str, program: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err, code = printed(line, capsys)
    assert (out, code) == ("", 2)
    assert err.startswith(f"usage: fabric-initiator{program} [-h] [--debug]")
    assert f"\nfabric-initiator{program}: error: {error}" in err


@pytest.mark.parametrize("line", ["-h", "--help", "--debug -h build"])
def test_help_lists_the_commands(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err, code = printed(line, capsys)
    assert (err, code) == ("", 0)
    assert out == parser().format_help()
    assert all(f"\n    {name} " in out for name in commands.COMMANDS)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_of_a_command_is_that_of_the_whole_parser(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Documentation is made from the whole parser; a command is parsed by its own."""
    whole = io.StringIO()
    with contextlib.redirect_stdout(whole), pytest.raises(SystemExit):
        parser().parse_args([name, "-h"])
    assert printed(f"{name} --help", capsys) == (whole.getvalue(), "", 0)


def test_commands_are_the_modules_of_their_package() -> None:
    modules = {each.name for each in pkgutil.iter_modules(commands.__path__) if not each.ispkg}
    assert modules == set(commands.COMMANDS)


def imported_by_a_build(project: Project) -> set[str]:
    """The modules that a build has loaded at its end."""
    script = """
import sys
from fabric.initiator import main
assert main(["build", "../systems/small.morph"]) == 0
print(*sys.modules, sep="\\n", file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project.logs, env=project.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stderr.splitlines())


def test_build_imports_no_other_command(project: Project) -> None:
    """Nor what the workers need: they are forked from a process that loads it meanwhile."""
    project.write(one="true")
    for cached in (False, True):
        loaded = imported_by_a_build(project)
        commands = {name for name in loaded if name.startswith("fabric.commands.")}
        shared = {name for name in commands if name.startswith("fabric.commands.shared")}
        assert commands - shared == {"fabric.commands.build"}
        names = {f"fabric.commands.shared.{name}" for name in ("tables", "remote_build")}
        assert not shared & names
        # the tools of this machine are part of a test chunk's key
        assert {name for name in loaded if name.startswith("fabric.building.")} <= {
            "fabric.building.host_tools",
            "fabric.building.sandbox",
        }
        assert ("fabric.wire.connection" in loaded) != cached


def test_python_runs_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fabric", "nope"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "invalid choice: 'nope' (choose from " in done.stderr
