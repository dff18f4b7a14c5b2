"""`not-reproducible` of a chunk: a reason, and no part of its key."""

from __future__ import annotations

import pytest
from definitions_kit import loaded, mistakes, named, small, spec, stratum

from fabric.definitions.keys import digests

MORPH = "name: a\nkind: chunk\nbuild-commands: [make]\n"


def files(more: str = "", mode: str = "staging") -> dict[str, str]:
    chunks = spec("a", f"morph: strata/a.morph\nbuild-mode: {mode}"), spec("b")
    return small(x=stratum("x", *chunks)) | {"strata/a.morph": MORPH + more}


def test_reason_is_known_in_one_line() -> None:
    graph = loaded(files("not-reproducible: |\n  Its link time\n  optimisation.\n"))
    assert named(graph, "a").not_reproducible == "Its link time optimisation."
    assert named(graph, "b").not_reproducible == ""


def test_reason_changes_no_key() -> None:
    plain, marked = loaded(files()), loaded(files("not-reproducible: because\n"))
    trees = {step.id: "0" * 40 for step in plain.steps if step.kind == "chunk"}
    assert digests(plain, trees, "") == digests(marked, trees, "")


@pytest.mark.parametrize(
    ("more", "mistake"),
    [
        ("not-reproducible:\n", "'not-reproducible' is empty: give it a value"),
        ("not-reproducible: ' '\n", "'not-reproducible' is empty: give it a reason"),
        ("not-reproducible: true\n", "'not-reproducible' is the truth value true, not text"),
        ("not-reproducible: [a]\n", "'not-reproducible' must be text, not a list"),
        ("not-reproducable: a\n", "'not-reproducable'; did you mean 'not-reproducible'?"),
    ],
)
def test_reason_must_be_one(more: str, mistake: str) -> None:
    [found] = mistakes(files(more))
    assert found.startswith("strata/a.morph:4: chunk a: ")
    assert mistake in found


def test_imported_chunk_has_none() -> None:
    chunk = "name: a\nkind: chunk\nnot-reproducible: a\n"
    found = mistakes(files(mode="import") | {"strata/a.morph": chunk})
    assert "strata/a.morph:3: chunk a: it is imported as it is" in found[0]
