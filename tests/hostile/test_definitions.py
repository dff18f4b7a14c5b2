"""Hostile definitions: each gives an error of one line.

A case is a file and its content, put into valid definitions.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from small_definitions import SYSTEM, lay_out, write_chunks

from fabric import bounds
from fabric.client.project import Project
from fabric.config import load_settings
from fabric.deployment.cluster import load_cluster
from fabric.errors import DefinitionsError

STRATUM = "strata/things.morph"
CHUNK = "strata/one.morph"
HEAD = {
    STRATUM: "name: things\nkind: stratum\n",
    CHUNK: "name: one\nkind: chunk\n",
    SYSTEM: "name: small\nkind: system\narch: x86_64\n",
    "DEFAULTS": "",
    "VERSION": "",
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "definitions"
    lay_out(root, tmp_path / "source")
    write_chunks(root, tmp_path / "source", {"one": "true"})
    return Project(root, load_settings({}, {"cache": str(tmp_path / "cache")}), print)


def mistakes(project: Project) -> list[str]:
    with pytest.raises(DefinitionsError) as caught:
        project.graph(SYSTEM)
    return [str(problem) for problem in caught.value.problems]


def doubled(first: str, make: Callable[[str], str], levels: int = 20) -> str:
    """``a0``, the result of ``make`` for it, the result for that, and so on."""
    lines = [f"a0: &a0 {first}\n"]
    lines += [f"a{n}: &a{n} {make(f'*a{n - 1}')}\n" for n in range(1, levels)]
    return "".join(lines)


LISTS = doubled("[x]", lambda one: f"[{one}, {one}]")
#: YAML accepts line ends that no current program writes.
BREAKS = "a: [" + LISTS.replace("\n", ",\u2028").replace(": &", ":\u2028&") + "]\n"
LONG = f"a0: &a0 {'x' * 1_000_000}\nlist: &l [{'*a0, ' * 1000}]\n"
MERGES = doubled("{k: 1}", lambda one: f"{{<<: [{one}, {one}], l: 1}}")
WIDE = "a: &a {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}\nb:\n" + "- {<<: *a}\n" * 1000
NESTED = doubled("{url: 'u:x'}", lambda one: f"{{url: 'u:x', submodules: {{a: {one}, b: {one}}}}}")
CHAIN = doubled("[x]", lambda one: f"[{one}]", bounds.YAML_DEPTH + 1)
TOO_MUCH = "more than 250,000 values: no file needs that"
TOO_DEEP = "nested more than 60 deep: no file needs that"
NUMBER = "longer than 64 characters, as no number is"
NO_NAME = "is no name: no spaces or '/' in it, no '.' or '-' in front"


@pytest.mark.bound("YAML_NODES")
@pytest.mark.bound("YAML_DEPTH")
@pytest.mark.bound("YAML_NUMBER")
@pytest.mark.bound("NAME")
@pytest.mark.bound("PATTERNS")
@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        # aliases, merges, nodes, depth
        (STRATUM, LISTS + "chunks: *a19\n", f"{STRATUM}:20: {TOO_MUCH}"),
        (CHUNK, LISTS + "install-commands: *a19\n", f"{CHUNK}:20: {TOO_MUCH}"),
        (STRATUM, BREAKS, f"{STRATUM}:38: {TOO_MUCH}"),
        (STRATUM, BREAKS.replace("\u2028", "\x85"), f"{STRATUM}:38: {TOO_MUCH}"),
        (CHUNK, LONG + "install-commands: *l\n", f"{CHUNK}:4: {TOO_MUCH}"),
        (STRATUM, MERGES, f"{STRATUM}:18: {TOO_MUCH}"),
        (STRATUM, WIDE, f"{STRATUM}:5: {TOO_MUCH}"),
        (STRATUM, NESTED, f"{STRATUM}:18: {TOO_MUCH}"),
        (STRATUM, CHAIN, f"{STRATUM}:62: {TOO_DEEP}"),
        (STRATUM, "chunks:\n" + "- {name: a}\n" * 90_000, f"{STRATUM}:4: {TOO_MUCH}"),
        (STRATUM, "a: " + "[" * 200_000, f"{STRATUM}:3: {TOO_DEEP}"),
        (STRATUM, "a: " + "[" * 1999 + "]" * 1999, f"{STRATUM}:3: {TOO_DEEP}"),
        (STRATUM, "".join(" " * n + "a:\n" for n in range(1500)), f"{STRATUM}:62: {TOO_DEEP}"),
        (STRATUM, "? " * 1500 + "a", f"{STRATUM}:3: {TOO_DEEP}"),
        (STRATUM, "a: &a [*a]", f"{STRATUM}:3: an alias here contains itself"),
        (SYSTEM, LISTS, f"{SYSTEM}:21: {TOO_MUCH}"),
        ("DEFAULTS", LISTS, f"DEFAULTS:18: {TOO_MUCH}"),
        ("VERSION", LISTS, f"VERSION:18: {TOO_MUCH}"),
        # scalars
        (CHUNK, "max-jobs: " + "9" * 5000, f"{CHUNK}:3: cannot read '{'9' * 80}': {NUMBER}"),
        (
            CHUNK,
            "max-jobs: " + "1:" * 3000 + "1",
            f"{CHUNK}:3: cannot read '{'1:' * 40}': {NUMBER}",
        ),
        (CHUNK, "max-jobs: 0x" + "f" * 9000, f"{CHUNK}:3: cannot read '0x{'f' * 78}': {NUMBER}"),
        (
            CHUNK,
            "max-jobs: .inf",
            f"{CHUNK}:3: chunk one: 'max-jobs' must be a number from 1 up, not the number inf",
        ),
        (
            CHUNK,
            "max-jobs: .nan",
            f"{CHUNK}:3: chunk one: 'max-jobs' must be a number from 1 up, not the number nan",
        ),
        (
            CHUNK,
            "description: 12:30:45",
            f"{CHUNK}:3: chunk one: 'description' is the number 45045, not text: put it in quotes",
        ),
        (CHUNK, "description: 0000-00-00", f"{CHUNK}:3: cannot read '0000-00-00': year 0 is out"),
        ("VERSION", "version: " + "9" * 100, f"VERSION:1: cannot read '{'9' * 80}': {NUMBER}"),
        # names, which are shown and become file names
        (SYSTEM, "name: ../x", f"{SYSTEM}:1: system: '../x' {NO_NAME}"),
        (SYSTEM, "name: a/b", f"{SYSTEM}:1: system: 'a/b' {NO_NAME}"),
        (SYSTEM, "name: -x", f"{SYSTEM}:1: system: '-x' {NO_NAME}"),
        (SYSTEM, 'name: "a\\nb"', f"{SYSTEM}:1: system: 'a\\nb' {NO_NAME}"),
        (SYSTEM, 'name: "a\\eb"', f"{SYSTEM}:1: system: 'a\\x1bb' {NO_NAME}"),
        (SYSTEM, 'name: "a\\x9bb"', f"{SYSTEM}:1: system: 'a\\x9bb' {NO_NAME}"),
        (SYSTEM, 'name: "a\\u202eb"', f"{SYSTEM}:1: system: 'a\\u202eb' {NO_NAME}"),
        (
            SYSTEM,
            "name: " + "x" * 300,
            f"{SYSTEM}:1: system: '{'x' * 40}'... is no name: it is longer than 128 bytes",
        ),
        # patterns
        (
            CHUNK,
            "products: [{artifact: one-x, include: ['(?!a).*']}]",
            f"{CHUNK}:3: chunk one: product one-x: '(?!a).*' is not a regular expression of RE2:"
            " invalid perl operator: (?!: there is no lookahead",
        ),
        (
            CHUNK,
            r"products: [{artifact: one-x, include: ['a\Z']}]",
            f"{CHUNK}:3: chunk one: product one-x: 'a\\\\Z' is not a regular expression of RE2:"
            r" invalid escape sequence: \Z: write \z",
        ),
        (
            CHUNK,
            "products: [{artifact: one-x, include: ['((a{1,1000}){1,1000}){1,1000}']}]",
            f"{CHUNK}:3: chunk one: product one-x: '((a{{1,1000}}){{1,1000}}){{1,1000}}' is not a"
            " regular expression of RE2: invalid repetition size: {1,1000}",
        ),
        (
            CHUNK,
            f"products: [{{artifact: one-x, include: [{'a,' * 501}]}}]",
            f"{CHUNK}:3: chunk one: 'products' has more than 500 patterns",
        ),
        (
            "DEFAULTS",
            "split-rules:\n  stratum:\n"
            + "".join(f"  - {{artifact: -{n}, include: [a]}}\n" for n in range(501)),
            "DEFAULTS:2: 'split-rules': 'stratum' has more than 500 patterns",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_definitions_with_bad_text(project: Project, file: str, text: str, expected: str) -> None:
    head = HEAD[file]
    if text.startswith("name: "):
        head = head.partition("\n")[2]
        text, head = f"{text}\n{head}", ""
    (project.root / file).write_text(head + text)
    assert any(one.startswith(expected) for one in mistakes(project)), mistakes(project)


def fifo(file: Path) -> None:
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def outside(file: Path) -> None:
    secret = file.parents[2] / "secret"
    secret.write_text("name: things\nkind: stratum\n")
    file.symlink_to(secret)


def through_a_folder(file: Path) -> None:
    (file.parents[2] / "far").mkdir()
    (file.parents[2] / "far/things.morph").write_text("name: things\n")
    for other in file.parent.iterdir():
        other.unlink()
    file.parent.rmdir()
    file.parent.symlink_to("../far")


def loop(file: Path) -> None:
    file.symlink_to(file.name)


def large(file: Path) -> None:
    with file.open("w") as opened:
        opened.truncate(200_000_000)


@pytest.mark.bound("DEFINITIONS_FILE")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (fifo, "is not a regular file"),
        (endless, "is a link that leads out of the definitions, to /dev/zero"),
        (outside, "is a link that leads out of the definitions, to {top}/secret"),
        (
            through_a_folder,
            "is a link that leads out of the definitions, to {top}/far/things.morph",
        ),
        (loop, "cannot be read: Too many levels of symbolic links"),
        (large, "has 200,000,000 bytes: files of definitions have 8,388,608 at most"),
    ],
)
def test_definitions_file_must_be_regular(
    project: Project, tmp_path: Path, make: Callable[[Path], object], expected: str
) -> None:
    (project.root / STRATUM).unlink()
    make(project.root / STRATUM)
    assert mistakes(project) == [f"{STRATUM}:1: {expected.format(top=tmp_path)}"]


def test_definitions_folder_in_place_of_a_file_is_an_error(project: Project) -> None:
    (project.root / STRATUM).unlink()
    (project.root / STRATUM).mkdir()
    named = "system small names the file strata/things.morph, which does not exist"
    assert mistakes(project) == [f"{SYSTEM}:6: {named}"]


@pytest.mark.parametrize("file", ["VERSION", "DEFAULTS"])
def test_definitions_settings_must_be_a_regular_file(project: Project, file: str) -> None:
    (project.root / file).unlink()
    os.mkfifo(project.root / file)
    assert mistakes(project) == [f"{file}:1: is not a regular file"]


@pytest.mark.parametrize("name", ["/etc/passwd", "a\0b", "x" * 300, "a/b/../../../x"])
def test_definitions_path_that_leads_out_is_not_read(project: Project, name: str) -> None:
    assert project.read(name) is None


def test_definitions_links_inside_are_followed(project: Project) -> None:
    (project.root / STRATUM).rename(project.root / "strata/other.morph")
    (project.root / STRATUM).symlink_to("other.morph")
    assert project.graph(SYSTEM).root.name == "small"


def test_strata_may_be_a_long_chain(project: Project) -> None:
    for number in range(1500):
        (project.root / f"strata/c{number}.morph").write_text(
            f"name: c{number}\nkind: stratum\nchunks: []\n"
            f"build-depends: [{{morph: strata/c{number + 1}.morph}}]\n"
        )
    (project.root / STRATUM).write_text(
        "name: things\nkind: stratum\nbuild-depends: [{morph: strata/c0.morph}]\nchunks: []\n"
    )
    assert any("c1500.morph, which does not exist" in one for one in mistakes(project))


@pytest.mark.bound("STRATA")
def test_strata_past_the_bound_are_an_error(project: Project) -> None:
    for number in range(bounds.STRATA):
        (project.root / f"strata/c{number}.morph").write_text(
            f"name: c{number}\nkind: stratum\nchunks: [{{name: a, ref: b, build-system: manual}}]\n"
            f"build-depends: [{{morph: strata/c{number + 1}.morph}}]\n"
        )
    (project.root / STRATUM).write_text(
        "name: things\nkind: stratum\nbuild-depends: [{morph: strata/c0.morph}]\nchunks: []\n"
    )
    assert f"{SYSTEM}:1: system small: more than 2,000 strata" in mistakes(project)


@pytest.mark.bound("CHUNKS")
def test_chunks_past_the_bound_are_an_error(project: Project) -> None:
    specs = "".join(
        f"- {{name: c{number}, ref: x, build-system: manual}}\n" for number in range(5001)
    )
    (project.root / STRATUM).write_text(
        f"name: things\nkind: stratum\nbuild-depends: []\nchunks:\n{specs}"
    )
    assert mistakes(project) == [f"{SYSTEM}:1: system small: more than 5,000 chunks"]


CLUSTER = "name: c\nkind: cluster\nsystems:\n- morph: systems/small.morph\n  deploy-defaults:\n"


@pytest.mark.parametrize("text", [LISTS, LONG, MERGES])
def test_cluster_morph_that_expands_is_an_error(project: Project, text: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = "".join(f"    {line}\n" for line in text.splitlines())
    (project.root / "c.morph").write_text(f"{CLUSTER}{lines}  deploy: {{}}\n")
    with pytest.raises(DefinitionsError) as caught:
        load_cluster(project.read, "c.morph")
    assert str(caught.value).endswith(TOO_MUCH)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
