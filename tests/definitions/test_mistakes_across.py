"""Mistakes that involve several places: names, cycles, shared chunks; and broken files."""

from __future__ import annotations

import pytest
from definitions_kit import SHA, loaded, mistakes, named, small, spec, stratum, system
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.errors import DefinitionsError, Problem

CHUNK = "build-system: autotools"


def test_strata_with_one_name() -> None:
    files = small(x=stratum("x", spec("a")), y=stratum("x", spec("b")))
    files["systems/s.morph"] = system("x", "name: x, morph: strata/y.morph")
    assert mistakes(files) == ["strata/y.morph:1: strata/x.morph has the name 'x', too: rename one"]


def test_strata_with_one_artifact() -> None:
    mapped = spec("b", f"{CHUNK}\nartifacts: {{b-misc: x-runtime}}")
    assert mistakes(small(x=stratum("x", spec("a")), y=stratum("y", mapped))) == [
        "strata/y.morph:1: stratum y makes the artifact 'x-runtime', which strata/x.morph makes"
        " too: rename one"
    ]


def test_cycles_are_all_found() -> None:
    chunks = [
        spec(one, f"{CHUNK}\nbuild-depends: [{two}]") for one, two in ("ab", "bc", "ca", "de")
    ]
    chunks.append(spec("e", f"{CHUNK}\nbuild-depends: [d, a]"))
    assert [message.split(": ")[3] for message in mistakes(small(x=stratum("x", *chunks)))] == [
        "a -> b -> c -> a",
        "d -> e -> d",
    ]


def test_shared_chunk_that_needs_itself() -> None:
    """A chunk in a stratum, and in one that it build-depends on."""
    files = small(x=stratum("x", spec("a"), depends="y"), y=stratum("y", spec("a"), spec("b")))
    assert mistakes(files) == [
        "strata/x.morph:6: chunk a is in strata/x.morph, strata/y.morph and so would need itself:"
        " a -> stratum y -> a: leave it out of one of these strata"
    ]


def test_shared_chunks_that_need_each_other() -> None:
    """Each stratum alone is correct."""
    need_a = f"{CHUNK}\nbuild-depends: [a]"
    need_b = f"{CHUNK}\nbuild-depends: [b]"
    files = small(
        x=stratum("x", spec("a"), spec("b", need_a)), y=stratum("y", spec("a", need_b), spec("b"))
    )
    (message,) = mistakes(files)
    assert "so would need itself: a -> b -> a:" in message


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (CHUNK, f"{CHUNK}\nbuild-mode: test", "build-mode (test here, staging there)"),
        (CHUNK, "build-system: manual", "build-system (manual here, autotools there)"),
        (CHUNK, f"{CHUNK}\nsubmodules: {{a: {{url: b}}}}", "submodules, but"),
    ],
)
def test_shared_chunk_is_built_alike(one: str, other: str, message: str) -> None:
    (found,) = mistakes(small(x=stratum("x", spec("a", one)), y=stratum("y", spec("a", other))))
    assert message in found
    assert "strata/x.morph:" in found


def test_yaml_merge_keys_and_aliases_work() -> None:
    text = (
        "name: x\nkind: stratum\nbuild-depends: []\nchunks:\n"
        f"- &a {{name: a, repo: r, ref: &sha {SHA}, build-system: autotools}}\n"
        "- {<<: *a, name: b, ref: *sha, unpetrify-ref: 1.10}\n"
    )
    graph = loaded(small(x=text))
    assert named(graph, "b").ref == SHA
    assert named(graph, "b").repo == "r"


_FILES = small(
    x=stratum("x", spec("a", f"{CHUNK}\nbuild-depends: [b]"), spec("b")),
    y=stratum("y", spec("c", "morph: strata/c.morph"), depends="x"),
) | {"strata/c.morph": "name: c\nkind: chunk\nproducts: [{artifact: c-x, include: [a]}]\n"}


@settings(max_examples=300)
@given(
    file=st.sampled_from(sorted(_FILES)),
    at=st.integers(0, 400),
    cut=st.integers(0, 30),
    put=st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["[", "{", ": ", "\n- ", "*", "&a ", "!!int ", "null", "|", "1", "\t", "- "]
        ),
    ),
)
def test_definitions_that_are_broken_never_crash(file: str, at: int, cut: int, put: str) -> None:
    text = _FILES[file]
    broken = text[:at] + put + text[at + cut :]
    problems = []
    try:
        loaded({**_FILES, file: broken.encode(errors="surrogateescape")})
    except DefinitionsError as error:
        problems = error.problems or [Problem("", 0, "a refusal without a reason")]
    assert all(problem.line >= 1 for problem in problems)
