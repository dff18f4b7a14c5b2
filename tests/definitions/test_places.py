"""Places of fields in definitions."""

from __future__ import annotations

import pytest
from definitions_kit import loaded, named, reader, small, spec, stratum

from fabric.definitions.places import Places

FILES = small(
    x=stratum("x", spec("a", "build-system: autotools\nprefix: /opt"), spec("b", "morph: b.morph")),
    y=stratum("y", spec("c"), depends="x"),
) | {
    "b.morph": (
        "name: b\nkind: chunk\nbuild-system: autotools\nbuild-commands:\n- make all\nproducts:\n"
        "- {artifact: b-doc, include: [doc]}\n"
    )
}
LINES = FILES["DEFAULTS"].splitlines()
DEFAULT_RULES = f"DEFAULTS:{LINES.index('  chunk:') + 1}"
DEFAULT_BUILD = f"DEFAULTS:{LINES.index('    build-commands: [make]') + 1}"
DEFAULT_STRIP = f"DEFAULTS:{LINES.index('    strip-commands: [strip]') + 1}"


@pytest.mark.parametrize(
    ("chunk", "field", "place"),
    [
        ("a", "ref", "strata/x.morph:7"),
        ("a", "prefix", "strata/x.morph:9"),
        ("a", "build-mode", "strata/x.morph:5"),  # the entry, which has no such field
        ("a", "build-commands", DEFAULT_BUILD),
        ("a", "products", DEFAULT_RULES),
        ("a", "max-jobs", "strata/x.morph:5"),
        ("b", "ref", "strata/x.morph:12"),
        ("b", "build-depends", "strata/x.morph:10"),
        ("b", "build-commands", "b.morph:4"),
        ("b", "strip-commands", DEFAULT_STRIP),
        ("b", "pre-build-commands", "b.morph"),
        ("b", "products", f"b.morph:6 or {DEFAULT_RULES}"),
        ("b", "name", "b.morph:1"),
        ("b", "environment PATH", ""),
    ],
)
def test_places_of_fields_of_chunks(chunk: str, field: str, place: str) -> None:
    graph = loaded(FILES)
    assert Places(reader(FILES)).of(named(graph, chunk), field) == place


def test_places_of_fields_of_strata_and_systems() -> None:
    graph = loaded(FILES)
    places = Places(reader(FILES))
    assert places.of(named(graph, "y", "stratum"), "contents") == "strata/y.morph"
    assert places.of(graph.root, "y") == "systems/s.morph:6"
    assert places.of(graph.root, "contents") == "systems/s.morph:4"


@pytest.mark.parametrize("content", [None, "", "- a", "chunks: {}", "chunks: [1]\nstrata: 3", "{"])
def test_places_in_files_that_changed_meanwhile(content: str | None) -> None:
    graph = loaded(FILES)
    changed = {path: content for path in FILES if content is not None}
    places = Places(reader(changed))
    for step in graph.steps:
        for field in ("ref", "prefix", "build-commands", "products", "contents", "y"):
            assert isinstance(places.of(step, field), str)
