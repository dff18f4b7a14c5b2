"""Fields of chunks that differ between architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
from definitions_kit import loaded, mistakes, named, small, spec, stratum, system

from fabric.definitions.environment import environment
from fabric.definitions.keys import cache_keys
from fabric.definitions.load import load
from fabric.definitions.survey import survey

ROOT = Path(__file__).parents[2]
OTHER = """\
build-system: autotools
arch:
  aarch64:
    repo: upstream:a-arm
    ref: 'two'
    morph: strata/a-arm.morph
"""


def read(path: str) -> bytes | None:
    file = ROOT / path
    return file.read_bytes() if file.is_file() else None


def files(more: str = OTHER) -> dict[str, str]:
    """A system for x86_64, and the same for aarch64."""
    made = small(x=stratum("x", spec("a", more), spec("b")))
    made["systems/arm.morph"] = system("x", name="arm", arch="aarch64")
    made["strata/a-arm.morph"] = "name: a\nkind: chunk\nbuild-commands: [make arm]\n"
    return made


def test_fields_for_an_architecture_replace_the_chunks_own() -> None:
    pc, arm = loaded(files()), loaded(files(), "systems/arm.morph")
    one, other = named(pc, "a"), named(arm, "a")
    assert (one.repo, one.build_system, one.morph) == ("upstream:a", "autotools", "")
    assert (other.repo, other.ref) == ("upstream:a-arm", "two")
    assert (other.build_system, other.morph) == ("", "strata/a-arm.morph")
    assert other.recipe is not None
    assert other.recipe.commands["build-commands"] == ("make arm",)
    assert other.where == "strata/x.morph:12"  # of the ref that counts
    assert named(arm, "b").ref == named(pc, "b").ref
    assert environment(other, arm.arch)["MORPH_ARCH"] == "aarch64"


def test_fields_that_are_not_given_stay() -> None:
    only = "build-system: autotools\narch:\n  aarch64: {ref: two}\n"
    step = named(loaded(files(only), "systems/arm.morph"), "a")
    assert (step.repo, step.ref, step.build_system) == ("upstream:a", "two", "autotools")


def test_keys_do_not_depend_on_fields_for_other_architectures() -> None:
    found = []
    for more in (OTHER, "build-system: autotools"):
        graph = loaded(files(more))
        trees = {step.id: step.ref for step in graph.steps if step.kind == "chunk"}
        found.append(cache_keys(graph, trees, ""))
    assert found[0] == found[1]


def test_a_morph_of_another_architecture_is_not_needed() -> None:
    made = files()
    del made["strata/a-arm.morph"]
    loaded(made)
    assert mistakes(made, "systems/arm.morph") == [
        "strata/x.morph:13: chunk a names the file strata/a-arm.morph, which does not exist"
    ]


@pytest.mark.parametrize(
    ("more", "line", "wrong"),
    [
        ("arch: aarch64", 9, "'arch' must be a mapping, not the text 'aarch64'"),
        ("arch: {arm64: {ref: x}}", 9, "unknown architecture 'arm64'; did you mean 'aarch64'?"),
        ("arch: {aarch64: x}", 9, "arch aarch64 must be a mapping, not the text 'x'"),
        (
            "arch:\n  aarch64:\n    max-jobs: 1",
            11,
            "arch aarch64: unknown field 'max-jobs'; known are morph, ref, repo",
        ),
        (
            "arch: {aarch64: {ref: -x}}",
            9,
            "arch aarch64: 'ref' is '-x': it may not have spaces, nor begin with '-'",
        ),
    ],
)
def test_mistakes_are_found_for_all_architectures(more: str, line: int, wrong: str) -> None:
    made = files(f"build-system: autotools\n{more}")
    assert mistakes(made) == [f"strata/x.morph:{line}: chunk a: {wrong}"]


def test_a_check_follows_each_system_for_its_architecture() -> None:
    made = files() | {"strata/a-arm.morph": "name: a\nkind: chunk\nmax-jobs: x\n"}
    found = survey(lambda path: (made.get(path) or "").encode() or None, sorted(made)[2:])
    assert [one.file for one in found.findings.errors] == ["strata/a-arm.morph"]


def test_the_example_is_the_same_for_aarch64() -> None:
    pc = load(read, "systems/minimal-system-x86_64.morph")
    arm = load(read, "systems/minimal-system-aarch64.morph")
    assert [step.id for step in pc.steps[:-1]] == [step.id for step in arm.steps[:-1]]
    differ = [
        one.name
        for one, other in zip(pc.steps, arm.steps, strict=True)
        if (one.repo, one.ref, one.morph) != (other.repo, other.ref, other.morph)
    ]
    assert differ[:-1] == ["debian-toolchain", "toolchain", "kernel-tools", "linux"]
    assert [step.ref for step in pc.steps] == [step.ref for step in arm.steps]
