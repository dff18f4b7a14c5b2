"""Small definitions: the graph of Baserock's tool, or an error with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from definitions_kit import check_order, loaded, mistakes, new_view, old_view

CASES: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "cases.json").read_text())

#: Cases that Baserock's tool refuses, crashes on or hangs at -> our error.
ERRORS = {
    "alias": "strata/x.morph:10: stratum x: there is a chunk 'a' already in line 6",
    "arch-unknown": "systems/s.morph:3: system s: unknown architecture 'z80'; known are aarch64,",
    "chunk-is-stratum": "strata/x.morph:9: chunk a names the file strata/boot.morph, which is a"
    " stratum, not a chunk",
    "cluster-as-system": "systems/s.morph:2: this is a cluster, which is deployed, not built",
    "cyclic-chunks": "strata/x.morph:10: stratum x: chunks need each other in a cycle: a -> b -> a",
    "cyclic-strata": "strata/x.morph:4: strata need each other in a cycle: x -> y -> x",
    "defaults-pre-commands": "DEFAULTS:7: build system newone: unknown field"
    " 'pre-configure-commands'",
    "dependency-in-other-stratum": "strata/x.morph:10: chunk a: it build-depends on 'base', which"
    " is not a chunk of stratum x",
    "dependency-not-list": "strata/x.morph:10: chunk a: 'build-depends' must be a list, not the"
    " text 'base'",
    "duplicate-chunk": "strata/x.morph:10: stratum x: there is a chunk 'a' already in line 6",
    "duplicate-stratum": "systems/s.morph:7: system s: 'strata/boot.morph' is listed already in"
    " line 5",
    "empty-stratum": "strata/x.morph:4: stratum x has no chunks",
    "int-name": "strata/x.morph:6: chunk: 'name' is the number 7, not text: put it in quotes",
    "max-jobs-bad": "strata/a.morph:3: chunk a: 'max-jobs' must be a number from 1 up, not the text"
    " 'many'",
    "missing-morph-file": "strata/x.morph:9: chunk a names the file strata/nosuch.morph, which does"
    " not exist",
    "missing-name": "strata/x.morph:1: stratum: the field 'name' is missing",
    "morph-and-build-system": "strata/x.morph:10: chunk a has both 'morph' and 'build-system'",
    "neither": "strata/x.morph:6: chunk a does not say how it is built",
    "no-stratum-build-depends": "strata/x.morph:1: stratum x has no 'build-depends'",
    "not-yaml": "strata/x.morph:1: not YAML: did not find expected ',' or ']'",
    "null-ref": "strata/x.morph:8: chunk a: 'ref' is empty: give it a value",
    "only-bootstrap": "systems/s.morph:1: system s: all its chunks are build-only or",
    "products-bad-entries": "strata/a.morph:3: chunk a: an entry of 'products' must be a mapping,"
    " not the text 'x'",
    "products-bad-regex": "strata/a.morph:3: chunk a: product a-x: '(' is not a regular expression",
    "same-name-other-ref": "strata/y.morph:6: chunk a: strata/x.morph:6 has another chunk of that"
    " name",
    "self-dependent-stratum": "strata/x.morph:4: strata need each other in a cycle: x -> x",
    "stratum-as-system": "systems/s.morph:2: this is a stratum, not a system",
    "system-kind-field": "systems/s.morph:9: system s: the field 'system-kind' is obsolete",
    "unknown-build-system": "strata/x.morph:9: chunk a: unknown build system 'nosuch'",
    "unknown-chunk-field": "strata/a.morph:3: chunk a: unknown field 'bananas'",
    "unknown-dependency": "strata/x.morph:10: chunk a: it build-depends on 'nosuch', which is not a"
    " chunk of stratum x",
    "unknown-stratum-field": "strata/x.morph:5: stratum x: unknown field 'bananas'",
    "unknown-system-field": "systems/s.morph:9: system s: unknown field 'bananas'",
    "version-5": "VERSION:1: version 5 of the definitions format is not supported",
    "version-missing": "VERSION:1: there is no such file at the root of the definitions",
    "version-string": "VERSION:1: 'version' must be a number, like 8, not the text '7'",
}

#: Cases that only Baserock's tool accepts -> (reason, error).
REFUSED = {
    "duplicate-yaml-key": (
        "the last of two equal keys won in silence",
        "strata/x.morph:10: 'name' is given twice, first in line 1",
    ),
    "no-name-in-strata": (
        "the stratum was left out of the system in silence",
        "systems/s.morph:5: system s: an entry of 'strata': the field 'name' is missing",
    ),
    "shared-chunk-other-mode": (
        "a chunk of two strata is built once, so it got the prefix of one of them, by chance",
        "strata/y.morph:6: chunk a: strata/x.morph:10 lists the same repo, ref and morph with"
        " another prefix",
    ),
    "unknown-mode": (
        "it crashed when building",
        "strata/x.morph:10: chunk a: unknown build-mode 'bananas'",
    ),
    "unknown-spec-field": (
        "a misspelt field was ignored in silence",
        "strata/x.morph:10: chunk a: unknown field 'bananas'",
    ),
    "version-6-defaults": (
        "version 6 ignores DEFAULTS: only 7 and 8 are supported",
        "VERSION:1: version 6 of the definitions format is not supported",
    ),
    "wrong-name-in-strata": (
        "the stratum was left out of the system in silence",
        "systems/s.morph:7: system s: the stratum in strata/x.morph is called 'x', not 'other'",
    ),
}

_A = ("a", "r:a", "f" * 40, "")

#: Cases with different graphs -> (reason, {part of the graph: our value}).
DIFFERENT: dict[str, tuple[str, dict[str, Any]]] = {
    "artifacts-map-build-system": (
        "artifacts of chunks by build system are called a-bins, not a.morph-bins, so that a spec's"
        " 'artifacts' finds them",
        {
            "image": {("base", "r:base", "f" * 40, ""), _A},
            "image_missing_artifacts": {"a": ["a-devel", "a-doc", "a-misc"]},
        },
    ),
}

#: Cases that are accepted with a warning -> the warning.
WARNED = {
    "obsolete-repo-ref": "systems/s.morph:7: system s: stratum x: the field 'ref' means nothing",
    "strata-artifacts-unknown": "systems/s.morph:7: system s: stratum x has no artifact 'x-nosuch'",
}


def _same() -> list[str]:
    return [name for name in CASES if name not in ERRORS and name not in REFUSED]


@pytest.mark.parametrize("name", _same())
def test_cases_have_the_same_graph(name: str) -> None:
    case = CASES[name]
    graph = loaded(case["files"])
    _, ours = DIFFERENT.get(name, ("", {}))
    assert new_view(graph) == {**old_view(case["morph"]), **ours}
    check_order(graph)
    warnings = [str(warning) for warning in graph.warnings]
    assert bool(warnings) == (name in WARNED)
    assert not warnings or warnings[0].startswith(WARNED[name])


@pytest.mark.parametrize("name", ERRORS)
def test_cases_have_the_expected_error(name: str) -> None:
    assert not CASES[name]["morph"]["ok"]
    assert mistakes(CASES[name]["files"])[0].startswith(ERRORS[name])


@pytest.mark.parametrize("name", REFUSED)
def test_cases_that_only_baserock_accepted(name: str) -> None:
    assert CASES[name]["morph"]["ok"]
    _, message = REFUSED[name]
    assert mistakes(CASES[name]["files"])[0].startswith(message)


@pytest.mark.parametrize("name", [*ERRORS, *REFUSED])
def test_cases_with_one_mistake_have_one_message(name: str) -> None:
    several = {"products-bad-entries": 4, "no-name-in-strata": 2}
    assert len(mistakes(CASES[name]["files"])) == several.get(name, 1)
