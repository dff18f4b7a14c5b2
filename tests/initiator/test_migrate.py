"""`migrate` prints a diff that `git apply` takes, changes files only with --write, and reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from initiator_kit import Project
from small_definitions import git

SHA = "f" * 40


@pytest.fixture
def old(project: Project) -> Project:
    """Definitions without VERSION, with one source at hand, in a repository of their own."""
    root = project.root
    for name in ("VERSION", "DEFAULTS"):
        (root / name).unlink()
    (root / "systems/small.morph").write_text(
        "name: small\nkind: system\narch: x86_64\nstrata:\n"
        "- name: things\n  morph: strata/things.morph\n"
    )
    (root / "strata/things.morph").write_text(
        "name: things\nkind: stratum\nbuild-depends: []\nchunks:\n"
        f"- name: one\n  repo: upstream:one\n  ref: {SHA}\n"
        "- name: near  # at hand\n  repo: upstream:near\n  ref: main\n"
        "- name: mock\n  build-system: python-distutils\n"
        f"  repo: upstream:python-packages/mock\n  ref: {SHA}\n"
        f"- name: uri\n  build-system: cpan\n  repo: upstream:cpan/URI\n  ref: {SHA}\n"
        f"- name: own\n  build-system: dummy\n  repo: baserock:baserock/own\n  ref: {SHA}\n"
        f"- name: far\n  build-system: dummy\n  repo: github:some/far\n  ref: {SHA}\n"
    )
    (project.source / "configure").write_text("#!/bin/sh\n")
    git(project.source, "add", ".")
    git(project.source, "commit", "-qm", "second")
    trove = project.cache / "trove/git/upstream/near.git"
    git(root, "clone", "-q", "--bare", str(project.source), str(trove))
    shutil.rmtree(project.source)
    git(root, "init", "-q")
    git(root, "add", "--all")
    git(root, "commit", "-qm", "old")
    return project


def files(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): file.read_text()
        for file in root.rglob("*")
        if file.is_file() and ".git" not in file.parts
    }


def test_the_diff_gives_what_write_writes(old: Project) -> None:
    before = files(old.root)
    done = old.run("migrate")
    assert done.returncode == 0
    assert files(old.root) == before
    (old.root / "the.diff").write_text(done.stdout)
    git(old.root, "apply", "the.diff")
    (old.root / "the.diff").unlink()
    applied = files(old.root)
    git(old.root, "checkout", "-q", ".")
    git(old.root, "clean", "-qfd", "-e", "here")
    assert files(old.root) == before
    done = old.run("migrate", "--write")
    assert (done.returncode, done.stdout) == (0, "")
    assert files(old.root) == applied
    assert applied["VERSION"] == "version: 8\n"
    assert "- name: near  # at hand\n  build-system: autotools\n" in applied["strata/things.morph"]
    assert applied["sources/things.lorry"] == (
        "one:\n  type: debian-source\n\n"
        "python-packages/mock:\n  type: pypi\n\n"
        "cpan/URI:\n  type: debian-source\n  package: liburi-perl\n\n"
        "baserock:baserock/own:\n  type: git\n  url: https://example.invalid/baserock/own.git\n"
    )


def test_it_reports_what_a_person_decides(old: Project) -> None:
    lines = old.run("migrate").stderr.splitlines()
    assert lines == [
        "From version 0 to 8: 4 files would change; --write changes them, or `git apply` of the"
        " diff.",
        "",
        "Mistakes are left. `fabric-initiator migrate --fetch` looks into sources that can be"
        " fetched, to find out how they are built:",
        "  strata/things.morph:5: chunk one does not say how it is built: name a 'build-system',"
        " or its file as 'morph'",
        "",
        "New lorries are guesses. Check each, pin it by `fabric-initiator lorry update NAME`, and"
        " write the ref that it brings into the stratum:",
        "  sources/things.lorry:1: one: from debian-source one? For ffffffffffff in"
        " strata/things.morph:6",
        "  sources/things.lorry:4: python-packages/mock: from pypi mock? For ffffffffffff in"
        " strata/things.morph:14",
        "  sources/things.lorry:7: cpan/URI: from debian-source liburi-perl? For ffffffffffff in"
        " strata/things.morph:18",
        "  sources/things.lorry:11: baserock:baserock/own: from"
        " https://example.invalid/baserock/own.git? For ffffffffffff in strata/things.morph:22",
        "  strata/things.morph:26: github:some/far: the alias 'github' is not in the settings: add"
        " it to 'aliases'",
    ]
    facts = json.loads(old.run("migrate", "--json").stdout)
    assert (facts["from"], facts["to"]) == (0, 8)
    assert facts["files"] == [
        "DEFAULTS", "VERSION", "sources/things.lorry", "strata/things.morph",
    ]  # fmt: skip
    assert [one["line"] for one in facts["mistakes"]] == [5]
    assert len(facts["sources"]) == 5
    assert facts["diff"].startswith("diff --git a/DEFAULTS b/DEFAULTS\nnew file mode 100644\n")


def test_it_can_be_run_again(old: Project) -> None:
    old.run("migrate", "--write")
    before = files(old.root)
    done = old.run("migrate", "--write")
    assert done.stderr.splitlines()[0] == "Version 8: nothing changes."
    assert "chunk one does not say how it is built" in done.stderr
    assert files(old.root) == before
    check = old.run("check")
    assert "1 system, 1 stratum, 4 lorries: 1 mistake, 3 warnings\n" in check.stdout


def test_fetch_looks_into_sources_of_a_trove(old: Project) -> None:
    trove = old.cache / "trove/git/upstream"
    elsewhere = old.cache.parent / "trove"
    trove.rename(elsewhere)
    git(elsewhere, "clone", "-q", "--bare", "near.git", "one.git")
    stratum = old.root / "strata/things.morph"
    stratum.write_text(stratum.read_text().replace(SHA, "main", 1))
    config = old.cache.parent / "config.toml"
    config.write_text(f'[aliases]\nupstream = "file://{elsewhere}/%s.git"\n')
    environ = {"FABRIC_CONFIG": str(config)}
    assert "+  build-system:" not in old.run("migrate", environ=environ).stdout
    done = old.run("migrate", "--fetch", environ=environ)
    assert done.stdout.count("+  build-system: autotools\n") == 2
    assert "does not say how" not in done.stderr
    shutil.rmtree(elsewhere / "one.git")
    shutil.rmtree(old.cache / "trove")
    done = old.run("migrate", "--fetch", environ=environ)
    assert done.stdout.count("+  build-system: autotools\n") == 1
    assert "warning: file:" in done.stderr
    assert "chunk one does not say how" in done.stderr


def test_wrong_lorries_are_reported_and_no_new_ones_proposed(old: Project) -> None:
    (old.root / "sources").mkdir()
    (old.root / "sources/a.lorry").write_text("one: {type: nosuch}\n")
    done = old.run("migrate")
    assert "sources/a.lorry:1: one: unknown type 'nosuch'" in done.stderr
    assert ".lorry" not in done.stdout
    assert "New lorries" not in done.stderr


def test_a_link_is_not_written_through(old: Project) -> None:
    (old.root / "strata/link.morph").symlink_to("things.morph")
    old.run("migrate", "--write")
    assert (old.root / "strata/link.morph").is_symlink()
    done = old.run("migrate", "/nosuch")
    assert (done.returncode, done.stderr) == (
        1,
        "fabric-initiator: /nosuch: no such directory\n",
    )
