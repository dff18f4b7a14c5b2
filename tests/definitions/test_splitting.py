"""Which artifact a path belongs to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fabric.definitions.graph import Rule
from fabric.definitions.splitting import UNMATCHED, artifact_names, split, with_defaults

RULES = (
    Rule("a-bins", ("(usr/)?s?bin/.*",)),
    Rule("a-libs", (r"(usr/)?lib(32|64)?/lib[^/]*\.so(\.\d+)*", "(usr/)libexec/.*")),
    Rule("a-devel", ("(usr/)?include/.*", r"(usr/)?lib/lib.*\.a")),
    Rule("a-bins", ("opt/tool",)),
)


def test_first_match_wins_and_order_is_kept() -> None:
    paths = ["usr/bin/x", "opt/tool", "bin/y", "usr/lib/libx.so.1", "usr/include/x.h"]
    assert split(paths, RULES) == {
        "a-bins": ["usr/bin/x", "opt/tool", "bin/y"],
        "a-libs": ["usr/lib/libx.so.1"],
        "a-devel": ["usr/include/x.h"],
    }


def test_patterns_are_anchored_at_the_start_only() -> None:
    found = split(["usr/lib/libfoo.apk", "usr/lib/liba.so.1.debug", "x/usr/bin/a"], RULES)
    assert found["a-devel"] == ["usr/lib/libfoo.apk"]
    assert found["a-libs"] == ["usr/lib/liba.so.1.debug"]
    assert found[UNMATCHED] == ["x/usr/bin/a"]


def test_directories_have_no_slash_at_the_end() -> None:
    assert split(["usr/include", "usr/include/sys"], RULES)[UNMATCHED] == ["usr/include"]


def test_newlines_are_characters_of_a_name() -> None:
    assert split(["usr/bin/a\nb"], RULES)["a-bins"] == ["usr/bin/a\nb"]


def test_products_replace_defaults_of_their_name() -> None:
    defaults = (Rule("-bins", ("bin/.*",)), Rule("-misc", (".*",)))
    own = (Rule("a-misc", ("opt",)), Rule("a-x", ("x",)))
    rules = with_defaults(own, defaults, "a")
    assert rules == (*own, Rule("a-bins", ("bin/.*",)))
    assert artifact_names((*rules, *own)) == ("a-misc", "a-x", "a-bins")


@given(st.lists(st.sampled_from(["bin/a", "usr/include/b", "usr/lib/liba.a", "etc", "opt/tool"])))
def test_every_path_is_in_one_place(paths: list[str]) -> None:
    found = split(paths, RULES)
    assert sorted(path for part in found.values() for path in part) == sorted(paths)
    assert {"a-bins", "a-libs", "a-devel"} <= found.keys()
