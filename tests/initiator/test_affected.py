"""``affected``: over all systems of the definitions, whether they are built or not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from initiator_kit import Project

OTHER = (
    "name: other\nkind: system\narch: x86_64\nstrata:\n- name: more\n  morph: strata/more.morph\n"
)
MORE = (
    "name: more\nkind: stratum\nbuild-depends:\n- morph: strata/things.morph\nchunks:\n"
    "- name: top\n  repo: upstream:zlib\n  ref: 1.3.1\n  build-system: manual\n"
)
LORRY = (
    f"zlib:\n  type: tarball\n  url: https://zlib.example/zlib.tar.gz\n  version: 1.3.1\n"
    f"  sha256: {'a' * 64}\n  purl: pkg:github/madler/zlib\n"
)


@pytest.fixture
def definitions(project: Project) -> Project:
    """Two systems: one is built, and a chunk of the other has a lorry and cannot be imported."""
    project.write(one="install -D hello.txt $DESTDIR/usr/bin/one", none="true")
    assert project.build().returncode == 0
    for name, text in (("systems/other", OTHER), ("strata/more", MORE)):
        (project.root / f"{name}.morph").write_text(text)
    (project.root / "sources").mkdir()
    (project.root / "sources/a.lorry").write_text(LORRY)
    return project


def found(project: Project, *args: str) -> list[tuple[str, str, bool, bool]]:
    done = project.run("affected", *args, "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["searched"] == ["systems/other.morph", "systems/small.morph"]
    return [
        (one["name"], one["component"], one["in_image"], one["built"]) for one in data["affected"]
    ]


def test_a_component_by_its_name(definitions: Project) -> None:
    assert found(definitions, "one") == [
        ("other", "one", False, False),
        ("small", "one", True, True),
    ]
    assert found(definitions, "none")[1] == ("small", "none", False, True), "it has no file"
    assert found(definitions, "one@main") == found(definitions, "one")
    assert found(definitions, "one@2") == []
    top = [("other", "top", True, False)]
    assert found(definitions, "zlib") == top, "the source of the chunk top"
    assert found(definitions, "pkg:github/madler/zlib") == top
    assert found(definitions, "pkg:github/madler/zlib@1.3.1") == top
    assert found(definitions, "pkg:github/madler/zlib@1.3") == []


def write_feed(project: Project, *records: Any) -> None:
    (project.logs / "feed").write_text(json.dumps(list(records)))


def test_a_vulnerability_of_a_feed(definitions: Project) -> None:
    package = {"purl": "pkg:github/madler/zlib"}
    events = [{"introduced": "0"}, {"fixed": "1.3.2"}]
    affected = [{"package": package, "ranges": [{"type": "SEMVER", "events": events}]}]
    write_feed(
        definitions,
        {"id": "GHSA-x", "aliases": ["CVE-2025-1"], "affected": affected},
        {"id": "CVE-2025-2"},
    )
    top = [("other", "top", True, False)]
    assert found(definitions, "--feed", "feed") == top
    assert found(definitions, "cve-2025-1", "--feed", "feed") == top
    assert found(definitions, "CVE-2025-2", "--feed", "feed") == []
    assert found(definitions, "zlib", "--feed", "feed") == top
    assert found(definitions, "one", "--feed", "feed") == []
    done = definitions.run("affected", "--feed", "feed")
    assert done.stdout.splitlines() == [
        "systems/other.morph  top  1.3.1  in the image  GHSA-x",
        "1 of 2 systems have it in their images",
        "  when it is fixed: fabric-initiator build systems/other.morph",
    ]
    assert "systems/other.morph: not built here with these inputs" in done.stderr
    assert definitions.run("affected", "CVE-2025-2", "--feed", "feed").stdout == (
        "none of 2 systems\n"
    )


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ((), "name a component, as NAME or NAME@VERSION, or give --feed FILE"),
        (("CVE-2025-1",), "CVE-2025-1: what it affects is in a feed: --feed FILE"),
        (("CVE-2025-9", "--feed", "feed"), "CVE-2025-9: feed has no vulnerability of that id"),
        (("pkg:",), "pkg:: no package URL"),
        (("--feed", "gone"), "gone: the feed cannot be read: No such file or directory"),
    ],
)
def test_words_that_make_no_sense(project: Project, args: tuple[str, ...], problem: str) -> None:
    project.write(one="true")
    write_feed(project, {"id": "A"})
    done = project.run("affected", *args)
    assert done.returncode == 1
    assert problem in done.stderr


def test_a_system_with_mistakes_hides_no_other(definitions: Project) -> None:
    (definitions.root / "systems/wrong.morph").write_text("name: wrong\nkind: system\n")
    done = definitions.run("affected", "one", "--json")
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert data["failed"] == ["systems/wrong.morph"]
    assert {one["name"] for one in data["affected"]} == {"other", "small"}
    assert "systems/wrong.morph: not searched: systems/wrong.morph:" in done.stderr
