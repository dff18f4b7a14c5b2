"""``affected``: over all systems of the definitions, whether they are built or not."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
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
    f"  components:\n    vendor/mini: {{url: 'https://mini.example/m.tar', sha256: {'b' * 64},"
    " version: '2'}\n"
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
    part = [("other", "top/vendor/mini", True, False)]
    for name in ("mini", "mini@2", "vendor/mini", "top/vendor/mini"):
        assert found(definitions, name) == part
    assert found(definitions, "ini") == []


def test_a_damaged_build_hides_no_system(definitions: Project) -> None:
    """A user who may write to the store has damaged one object."""
    for manifest in (definitions.cache / "artifacts/manifests").iterdir():
        if b'"kind":"system"' in (text := manifest.read_bytes()):
            manifest.unlink()
            manifest.write_bytes(text[:-1] + b"x")
    assert found(definitions, "one") == [
        ("other", "one", False, False),
        ("small", "one", True, False),
    ]
    done = definitions.run("affected", "one")
    assert "systems/small.morph: not built here with these inputs" in done.stderr
    assert "is damaged: it is not what was written" in done.stderr


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
        "1 of 2 systems are affected",
        "  when it is fixed: fabric-initiator build systems/other.morph",
    ]
    assert "systems/other.morph: not built here with these inputs" in done.stderr
    assert definitions.run("affected", "CVE-2025-2", "--feed", "feed").stdout == (
        "none of 2 systems, nor of 1 built in the store\n"
    )


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ((), "name a component, as NAME or NAME@VERSION, or give --feed FILE"),
        (("CVE-2025-1",), "CVE-2025-1: what it affects is in a feed: --feed FILE"),
        (("CVE-2025-9", "--feed", "feed"), "CVE-2025-9: feed has no vulnerability of that id"),
        (("pkg:",), "pkg:: no package URL"),
        (("cpe:2.3:a:zlib:zlib:*",), "zlib:*: search by the name or the package URL, not by a CPE"),
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


STRATUM = (
    "name: things\nkind: stratum\nchunks:\n- name: zlib\n  morph: strata/zlib.morph\n"
    "  repo: upstream:zlib\n  ref: '{version}'\n  build-mode: test\n"
)
MORPH = "name: zlib\nkind: chunk\ninstall-commands:\n- install -D z.c $DESTDIR/usr/share/z.c\n"
PATCH = "--- a/z.c\n+++ b/z.c\n@@ -1 +1 @@\n-unsafe {0}\n+safe {0}\n"
RANGE = {"type": "SEMVER", "events": [{"introduced": "0"}, {"fixed": "1.3"}]}
RECORDS = [
    {
        "id": "GHSA-x",
        "aliases": ["CVE-2025-1"],
        "affected": [{"package": {"purl": "pkg:github/madler/zlib"}, "ranges": [RANGE]}],
    },
    {"id": "CVE-2025-2", "affected": [{"package": {"purl": "pkg:github/madler/zlib"}}]},
]


class History:
    """Definitions whose one chunk comes from a tarball, and what is found as it changes."""

    def __init__(self, project: Project) -> None:
        self.project = project
        (project.root / "sources").mkdir()
        (project.root / "strata/zlib.morph").write_text(MORPH)
        write_feed(project, *RECORDS)

    def release(self, version: str, more: str = "") -> None:
        """Let the lorry name a release with other text."""
        text, data = f"unsafe {version}\n".encode(), io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            info = tarfile.TarInfo("z.c")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
        file = self.project.logs / f"z-{version}.tar"
        file.write_bytes(data.getvalue())
        (self.project.root / "sources/zlib.lorry").write_text(
            f"zlib:\n  type: tarball\n  url: file://{file}\n  version: '{version}'\n"
            f"  sha256: {hashlib.sha256(data.getvalue()).hexdigest()}\n"
            f"  purl: pkg:github/madler/zlib\n{more}"
        )
        (self.project.root / "strata/things.morph").write_text(STRATUM.format(version=version))
        done = self.project.run("lorry", "update", "zlib")
        assert done.returncode == 0, done.stderr

    def build(self) -> None:
        done = self.project.build()
        assert done.returncode == 0, done.stderr

    def found(self, *args: str) -> Iterator[tuple[Any, ...]]:
        """Version, vulnerabilities, status, whether it is there now, number of builds."""
        done = self.project.run("affected", *args, "--feed", "feed", "--json")
        assert done.returncode == 0, done.stderr
        for one in json.loads(done.stdout)["affected"]:
            assert one["system"] == "systems/small.morph"
            assert bool(one["since"]) == bool(one["builds"])
            status = one["vex"]["status"] if one["vex"] else ""
            ids = " ".join(one["vulnerabilities"])
            yield one["version"], ids, status, one["current"], len(one["builds"])

    def check(self) -> int:
        """The exit code of ``--check``."""
        return self.project.run("affected", "CVE-2025-1", "--feed", "feed", "--check").returncode


def test_a_vulnerability_from_its_first_build_to_the_last(project: Project) -> None:
    history = History(project)
    history.release("1.1")
    assert list(history.found("CVE-2025-1")) == [("1.1", "GHSA-x", "", True, 0)]
    history.build()
    assert list(history.found("CVE-2025-1")) == [("1.1", "GHSA-x", "", True, 1)]
    assert list(history.found()) == [("1.1", "CVE-2025-2 GHSA-x", "", True, 1)]
    assert history.check() == 1

    history.release("1.2")
    assert list(history.found("CVE-2025-1")) == [
        ("1.1", "GHSA-x", "", False, 1),
        ("1.2", "GHSA-x", "", True, 0),
    ]
    history.build()
    (project.root / "sources/a.patch").write_text(PATCH.format("1.2"))
    fixed = "  vex:\n  - {vulnerability: cve-2025-1, status: fixed, statement: by a patch}\n"
    history.release("1.2", f"  patches: [a.patch]\n{fixed}")
    assert list(history.found("CVE-2025-1")) == [
        ("1.1", "GHSA-x", "", False, 1),
        ("1.2", "GHSA-x", "", False, 1),
        ("1.2", "GHSA-x", "fixed", True, 0),
    ]
    history.build()
    assert history.check() == 0
    assert list(history.found()) == [
        ("1.1", "CVE-2025-2 GHSA-x", "", False, 1),
        ("1.2", "CVE-2025-2 GHSA-x", "", False, 1),
        ("1.2", "CVE-2025-2", "", True, 1),
        ("1.2", "GHSA-x", "fixed", True, 1),
    ], "a statement is about one vulnerability"
    done = project.run("affected", "CVE-2025-1", "--feed", "feed")
    lines = [" ".join(line.partition("since")[0].split()) for line in done.stdout.splitlines()]
    assert lines[1] == "systems/small.morph zlib 1.2 in earlier builds GHSA-x"
    assert lines[2] == "systems/small.morph zlib 1.2 in the image GHSA-x fixed: by a patch"
    assert done.stdout.splitlines()[3:] == [
        "0 of 1 systems are affected",
        "not affected or fixed, as the definitions state: 1",
        "earlier builds in the store that have it: 2",
        "  replace the images that were made of them",
    ]

    history.release("1.3")
    history.build()
    assert [one[:2] for one in history.found("CVE-2025-1")] == [
        ("1.1", "GHSA-x"),
        ("1.2", "GHSA-x"),
    ], "the patched one is not told from others, but that the lorry does not pin it any more"


@pytest.mark.parametrize(
    ("status", "code"), [("affected", 1), ("under_investigation", 1), ("not_affected", 0)]
)
def test_what_a_statement_says_counts(project: Project, status: str, code: int) -> None:
    history = History(project)
    why = "justification: vulnerable_code_not_present, " * (status == "not_affected")
    vex = f"{{vulnerability: CVE-2025-1, status: {status}, {why}statement: wait}}"
    history.release("1.1", f"  vex: [{vex}]\n")
    assert history.check() == code
    assert [one[2] for one in history.found("CVE-2025-1")] == [status]


def test_a_system_that_is_no_longer_defined_is_found(definitions: Project) -> None:
    (definitions.root / "systems/small.morph").unlink()
    done = definitions.run("affected", "one", "--json")
    data = json.loads(done.stdout)
    assert data["searched"] == ["systems/other.morph"]
    assert data["builds"] == 1
    [other, small] = data["affected"]
    assert (other["system"], other["current"]) == ("systems/other.morph", True)
    assert (small["system"], small["current"], small["built"]) == (
        "systems/small.morph",
        False,
        True,
    )
    assert definitions.run("affected", "none").stdout.count("earlier builds") == 0, "not in images"


def test_a_store_that_cannot_be_read_hides_no_system(definitions: Project) -> None:
    done = definitions.run("affected", "top", "--json", "--artifacts", "http://127.0.0.1:1/a")
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert "http://127.0.0.1:1/a" in data["failed"]
    assert [one["system"] for one in data["affected"]] == ["systems/other.morph"]
