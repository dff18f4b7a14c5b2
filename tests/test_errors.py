"""Errors as users read them."""

from __future__ import annotations

import pytest

from fabric.bounds import ERROR_LINES
from fabric.errors import (
    FabricError,
    Problem,
    SourceError,
    SourcesError,
    command,
    grouped,
    in_line,
    set_program,
    with_own_commands,
    without_secrets,
)


def lacks(number: int) -> str:
    return f"upstream:lib{number}: no such repository: add sources/lib{number}.lorry"


def test_commands_in_a_controllers_message_begin_as_the_user_types_them() -> None:
    told = "500 builds that are not over; `fabric-initiator list` shows them"
    assert with_own_commands(told) == told
    before = command()
    set_program(".venv/bin/fabric-initiator", "/d/.venv/bin/fabric-initiator")
    try:
        there = "500 builds that are not over; `.venv/bin/fabric-initiator list` shows them"
        assert with_own_commands(told) == with_own_commands(there) == there
    finally:
        set_program(before, before)


@pytest.mark.bound("ERROR_LINES")
def test_many_problems_are_grouped_and_counted() -> None:
    others = [f"strata/a.morph:{n}: chunk c{n}: no field 'x'" for n in range(3)]
    text = "\n".join([*map(lacks, range(100)), *others])
    named = ", ".join(f"upstream:lib{n}" for n in range(2, 22))
    assert grouped(text).splitlines() == [
        lacks(0),
        lacks(1),
        f"  and 98 more like these: {named}, and 78 more",
        *others[:2],
        "  and 1 more like these: strata/a.morph:2",
        "103 problems in all; --debug shows each",
    ]
    few = "\n".join(map(lacks, range(ERROR_LINES)))
    assert grouped(few) == few
    words = "\n".join("x" * n for n in range(1, 200))
    told = grouped(words).splitlines()
    assert len(told) == ERROR_LINES + 1
    assert told[-2:] == ["and 160 lines more", "199 problems in all; --debug shows each"]


def test_a_problem_begins_one_line() -> None:
    problem = Problem("a\n.morph", 3, "b\nc.morph:1: d\r\n  and more of it")
    assert str(problem) == "a\\n.morph:3: b\\nc.morph:1: d\\r\n  and more of it"
    assert in_line(b"a\r\n\xff") == "a\\r\\n\udcff"
    many = "\n".join(f"a.morph:{n}: b\u2028c" for n in range(2 * ERROR_LINES))
    assert grouped(many).count("\n") == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:secret@host/x has no ref", "https://***@host/x has no ref"),
        ("https://user:s@c@host/x", "https://***@host/x"),
        ("ssh://git:s@c@host/x", "ssh://git:***@host/x"),
        ("https://ghp_token@host/x: gone", "https://***@host/x: gone"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("ssh://git:secret@host/x", "ssh://git:***@host/x"),
        ("s3://key:se:cret@bucket and ftp://:pw@b", "s3://key:***@bucket and ftp://:***@b"),
        ("'https://a:b@c' at d@e", "'https://***@c' at d@e"),
        ("https://host/a@b:c and git@host:x", "https://host/a@b:c and git@host:x"),
    ],
)
def test_secrets_in_urls_are_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert str(FabricError(text)) == shown
    assert str(SourcesError([(("a", "b"), SourceError(text))])) == shown
