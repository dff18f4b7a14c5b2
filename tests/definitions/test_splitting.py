"""Split rules: the artifact of a path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fabric import bounds
from fabric.definitions import splitting
from fabric.definitions.graph import Rule
from fabric.definitions.splitting import (
    UNMATCHED,
    PatternError,
    Splitter,
    artifact_names,
    compile_rule,
    split,
    with_defaults,
)

RULES = (
    Rule("a-bins", ("(usr/)?s?bin/.*",)),
    Rule("a-libs", (r"(usr/)?lib(32|64)?/lib[^/]*\.so(\.\d+)*", "(usr/)libexec/.*")),
    Rule("a-devel", ("(usr/)?include/.*", r"(usr/)?lib/lib.*\.a")),
    Rule("a-bins", ("opt/tool",)),
)


def test_split_first_match_wins_and_keeps_order() -> None:
    paths = ["usr/bin/x", "opt/tool", "bin/y", "usr/lib/libx.so.1", "usr/include/x.h"]
    assert split(paths, RULES) == {
        "a-bins": ["usr/bin/x", "opt/tool", "bin/y"],
        "a-libs": ["usr/lib/libx.so.1"],
        "a-devel": ["usr/include/x.h"],
    }


def test_split_anchors_patterns_at_the_start_only() -> None:
    found = split(["usr/lib/libfoo.apk", "usr/lib/liba.so.1.debug", "x/usr/bin/a"], RULES)
    assert found["a-devel"] == ["usr/lib/libfoo.apk"]
    assert found["a-libs"] == ["usr/lib/liba.so.1.debug"]
    assert found[UNMATCHED] == ["x/usr/bin/a"]


def test_split_directories_have_no_trailing_slash() -> None:
    assert split(["usr/include", "usr/include/sys"], RULES)[UNMATCHED] == ["usr/include"]


def test_split_accepts_newlines_in_names() -> None:
    assert split(["usr/bin/a\nb"], RULES)["a-bins"] == ["usr/bin/a\nb"]


def test_split_products_replace_defaults_of_their_name() -> None:
    defaults = (Rule("-bins", ("bin/.*",)), Rule("-misc", (".*",)))
    own = (Rule("a-misc", ("opt",)), Rule("a-x", ("x",)))
    rules = with_defaults(own, defaults, "a")
    assert rules == (*own, Rule("a-bins", ("bin/.*",)))
    assert artifact_names((*rules, *own)) == ("a-misc", "a-x", "a-bins")


@given(st.lists(st.sampled_from(["bin/a", "usr/include/b", "usr/lib/liba.a", "etc", "opt/tool"])))
def test_split_puts_every_path_in_one_place(paths: list[str]) -> None:
    found = split(paths, RULES)
    assert sorted(path for part in found.values() for path in part) == sorted(paths)
    assert {"a-bins", "a-libs", "a-devel"} <= found.keys()


DEFAULTS = yaml.safe_load((Path(__file__).parents[2] / "DEFAULTS").read_text())["split-rules"]
#: Patterns of the definitions here, and other usual ones.
PATTERNS = [
    *(one for kind in DEFAULTS.values() for rule in kind for one in rule["include"]),
    *(r"(usr/)?lib/.*\.so(\.\d+)*$", r"usr/lib/lib[^/.]+\.(a|la)", r"(?i)README(\.\w+)?$"),
    *(r"(opt|srv)/[^/]+/", r"usr/share/\w+-\d{1,3}\.\d+", r"\.git\b"),
]


@given(st.lists(st.sampled_from(PATTERNS), min_size=1), st.data())
def test_split_patterns_mean_the_same_as_in_re(patterns: list[str], data: st.DataObject) -> None:
    alike = st.sampled_from(patterns).flatmap(st.from_regex)
    path = data.draw(alike | st.text(), label="path").replace("\n", "")
    expected = next((n for n, one in enumerate(patterns) if re.match(one, path, re.A)), None)
    rules = [Rule(str(n), (one,)) for n, one in enumerate(patterns)]
    assert Splitter(rules).artifact(path) == (None if expected is None else str(expected))


@given(st.from_regex(splitting._PLAIN, fullmatch=True))
def test_split_plain_patterns_are_valid_in_re2(pattern: str) -> None:
    splitting.compile_rule(pattern)


@given(st.lists(st.from_regex(splitting._WORD, fullmatch=True), min_size=1), st.text())
def test_split_words_match_as_in_re2(patterns: list[str], text: str) -> None:
    expected = splitting._Matcher(tuple(patterns)).first(text)
    assert splitting._matcher(tuple(patterns)).first(text) == expected
    inside = f"{patterns[0].replace('.*', text)}{text}"
    expected = splitting._Matcher(tuple(patterns)).first(inside)
    assert splitting._matcher(tuple(patterns)).first(inside) == expected


def test_split_accepts_names_that_are_not_text() -> None:
    rules = (Rule("a", (r"usr/[^/]/x$",)), Rule("b", ("usr/.{2}$",)))
    paths = ["usr/\udcff/x", "usr/\udcff\udcfe", "usr/é\udcff"]
    assert split(paths, rules) == {"a": paths[:1], "b": paths[1:]}


@pytest.mark.parametrize("pattern", [r"(a+)+b$", r"(a|aa)*b$", r"(.*)*(.*)*(.*)*b$"])
def test_split_time_is_linear(pattern: str) -> None:
    """Python's regular expressions would need exponential time."""
    assert split(["a" * 4000 + "!"], (Rule("x", (pattern,)),)) == {"x": [], "": ["a" * 4000 + "!"]}


@pytest.mark.bound("PATTERN_MEMORY")
def test_split_patterns_have_bounds() -> None:
    with pytest.raises(PatternError, match="split rules of more than 1,000 patterns"):
        Splitter([Rule("x", ("a",) * (2 * bounds.PATTERNS + 1))])
    with pytest.raises(PatternError, match="pattern too large - compile failed"):
        compile_rule("a{900}" * 100)


def test_split_tries_each_pattern_if_the_set_is_too_large() -> None:
    rules = [Rule(str(n), (f"x.{{900}}{n}",)) for n in range(400)]
    assert Splitter([*rules, Rule("all", ("a",))]).artifact("abc") == "all"
