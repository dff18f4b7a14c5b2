"""Flags for compilers: `hardening` of DEFAULTS, and of chunks that switch it off."""

from __future__ import annotations

import pytest
from definitions_kit import DEFAULTS, loaded, mistakes, named, small, spec, stratum, system

from fabric import bounds
from fabric.definitions.environment import FLAGS, environment
from fabric.definitions.graph import Graph

HARDENING = """\
hardening:
  all:
    CFLAGS: &c >-
      -O2
      -fstack-protector-strong
    LDFLAGS: -Wl,-z,now
    CXXFLAGS: *c
  x86_64: {CFLAGS: -fcf-protection, GOFLAGS: -buildmode=pie}
  armv8l64: {CFLAGS: -mbranch-protection=standard}
"""
MORPH = "name: b\nkind: chunk\nbuild-commands: [make]\n"


def files(hardening: str = HARDENING, morph: str = MORPH) -> dict[str, str]:
    chunks = spec("a"), spec("b", "morph: strata/b.morph"), spec("c", "build-mode: import")
    made = small(x=stratum("x", *chunks))
    return made | {"DEFAULTS": DEFAULTS + hardening, "strata/b.morph": morph}


def flags(graph: Graph, name: str) -> dict[str, str]:
    found = environment(named(graph, name), graph.arch)
    return {variable: found[variable] for variable in sorted(FLAGS & found.keys())}


def test_flags_are_in_the_environment_of_what_is_built() -> None:
    graph = loaded(files())
    expected = {
        "CFLAGS": "-O2 -fstack-protector-strong -fcf-protection",
        "CXXFLAGS": "-O2 -fstack-protector-strong",
        "GOFLAGS": "-buildmode=pie",
        "LDFLAGS": "-Wl,-z,now",
    }
    assert flags(graph, "a") == flags(graph, "b") == expected
    assert flags(graph, "c") == {}


def test_flags_are_those_of_the_architecture() -> None:
    arm = files() | {"systems/s.morph": system("x", arch="armv8l64")}
    found = flags(loaded(arm), "a")
    assert found["CFLAGS"] == "-O2 -fstack-protector-strong -mbranch-protection=standard"
    assert "GOFLAGS" not in found


@pytest.mark.parametrize(
    ("hardening", "morph"),
    [
        (HARDENING, MORPH + "hardening: false\n"),
        (HARDENING, "name: b\nkind: chunk\n"),
        ("hardening: false\n", MORPH),
        ("", MORPH),
        ("", MORPH + "hardening: true\n"),
    ],
)
def test_flags_are_switched_off_by_a_line(hardening: str, morph: str) -> None:
    graph = loaded(files(hardening, morph))
    assert flags(graph, "b") == {}
    assert bool(flags(graph, "a")) == (hardening == HARDENING)


@pytest.mark.parametrize(
    ("hardening", "mistake"),
    [
        ("hardening: true\n", "must be a mapping, not the truth value true"),
        ("hardening:\n", "must be a mapping, not nothing"),
        ("hardening: {x86-64: {}}\n", ": unknown field 'x86-64'; did you mean 'x86_64'?"),
        ("hardening: {amd64: {}}\n", ": unknown field 'amd64'; did you mean 'x86_64'?"),
        ("hardening: {CFLAGS: -O2}\n", "unknown field 'CFLAGS'; it has 'all' and architectures"),
        ("hardening: {all: -O2}\n", " of all must be a mapping, not the text '-O2'"),
        ("hardening: {all: {CFLAG: -O2}}\n", "unknown field 'CFLAG'; did you mean 'CFLAGS'?"),
        ("hardening: {all: {CFLAGS: 2}}\n", "'CFLAGS' is the number 2, not text"),
        ("hardening: {all: {CFLAGS: [-O2]}}\n", "'CFLAGS' must be text, not a list"),
        ('hardening: {all: {CFLAGS: "-O2\\e"}}\n', "'CFLAGS' must be printable"),
    ],
)
def test_hardening_mistakes(hardening: str, mistake: str) -> None:
    [found] = mistakes(files(hardening))
    assert found.startswith("DEFAULTS:1")
    assert mistake in found


def test_hardening_mistakes_of_chunks() -> None:
    wrong = files(morph=MORPH + "hardening: none\n")
    assert mistakes(wrong) == [
        "strata/b.morph:4: chunk b: 'hardening' must be true or false, not the text 'none'"
    ]
    imported = files(morph="name: b\nkind: chunk\nhardening: false\n")
    spec_b = "morph: strata/b.morph\n"
    imported["strata/x.morph"] = imported["strata/x.morph"].replace(
        spec_b, spec_b + "  build-mode: import\n"
    )
    assert mistakes(imported) == [
        "strata/b.morph:3: chunk b: it is imported as it is, and nothing is run: remove"
        " 'hardening', or 'build-mode: import' from its stratum"
    ]


@pytest.mark.bound("FLAGS")
def test_flags_have_a_bound() -> None:
    most = "-" + "x" * (bounds.FLAGS - 1)
    loaded(files(f"hardening: {{all: {{CFLAGS: {most}}}}}\n"))
    assert mistakes(files(f"hardening: {{all: {{CFLAGS: {most}x}}}}\n")) == [
        "DEFAULTS:16: 'hardening' of all: 'CFLAGS' must be printable, and at most 4,096 bytes"
    ]
