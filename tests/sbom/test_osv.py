"""Vulnerabilities in OSV's form: what they affect, and feeds that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sbom_kit as kit

from fabric import bounds
from fabric.errors import FabricError
from fabric.sbom import identifiers
from fabric.sbom.bill import Component
from fabric.sbom.osv import Index, Vulnerability, read_feed


def record(
    id: str, package: dict[str, str] | None = None, *events: dict[str, str], **more: Any
) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}] if events else []
    affected = {"ranges": ranges, **more}
    if package is not None:
        affected["package"] = package
    return {"id": id, "affected": [affected]}


def debian(name: str) -> dict[str, str]:
    return {"ecosystem": "Debian:13", "name": name}


def of(purl: str) -> dict[str, str]:
    return {"purl": purl, "ecosystem": "x", "name": "y"}


ZERO = {"introduced": "0"}
GMP = "pkg:generic/gmp"
GIT = {"type": "GIT", "repo": "https://github.com/madler/zlib", "events": [{"introduced": "0"}]}
#: Vulnerability -> refs of what it affects.
PLANTED: list[tuple[dict[str, Any], set[str]]] = [
    (record("V-1", debian("glibc"), ZERO, {"fixed": "2.41-13"}), {"libc/libc6"}),
    (record("V-2", debian("glibc"), ZERO, {"last_affected": "2.41-12"}), {"libc/libc6"}),
    (record("V-3", debian("gcc-14"), {"introduced": "1:14"}), {"libc/gcc-14"}),
    (record("V-4", {"ecosystem": "PyPI", "name": "Some_Wheel"}, ZERO), {"wheel"}),
    (
        record("V-5", {"ecosystem": "PyPI", "name": "rich"}, ZERO, {"fixed": "14.0.1"}),
        {"python/rich"},
    ),
    (record("V-6", of("pkg:github/madler/zlib"), ZERO, {"fixed": "1.10"}), {"zlib", "gcc/zlib"}),
    (record("V-7", None, ranges=[GIT], versions=["v1.3.1"]), {"zlib", "gcc/zlib"}),
    (record("V-8", of(GMP), {"introduced": "6.2.9"}, {"fixed": "6.3.1"}), {"gcc/gmp"}),
    (record("V-9", of(GMP), versions=["6.3.0"]), {"gcc/gmp"}),
    (record("V-10", of("pkg:generic/gcc")), {"gcc"}),
]
#: What affects other packages, or other versions.
OTHERS = [
    record("N-1", debian("glibc"), ZERO, {"fixed": "2.41-12"}),
    record("N-2", debian("glibc"), ZERO, {"fixed": "2.9-1"}),
    record("N-3", debian("glibc"), {"introduced": "2.41-12.1"}),
    record("N-4", {"ecosystem": "Ubuntu", "name": "glibc"}, ZERO),
    record("N-5", {"ecosystem": "npm", "name": "rich"}, ZERO),
    record("N-6", {"ecosystem": "PyPI", "name": "rich"}, ZERO, {"fixed": "14.0.0rc1"}),
    record("N-7", {"ecosystem": "PyPI", "name": "rich"}, {"introduced": "14.0.0.post1"}),
    record("N-8", of("pkg:github/other/zlib"), ZERO),
    record("N-9", None, ranges=[GIT]),  # commits alone are not compared
    record("N-10", of(GMP), ZERO, {"fixed": "6.3"}),
    record("N-11", of(GMP), ZERO, {"fixed": "6.2.1"}, {"introduced": "7"}),
    record("N-12", of("pkg:"), ZERO),
    record("N-13", debian("debs"), ZERO),  # a set of packages is none itself
    record("N-14", debian("libc"), ZERO),
    {"id": "N-15"},
    record("N-16", debian("glibc"), {"introduced": "2.41-12+b1"}),  # Debian's order: later
]


#: Versions in their order.  Those in one line are the same.
ORDER = (
    ("1.0a1",),
    ("1.0-alpha1",),
    ("1.0rc1", "1.0.0-rc.1", "v1.0-RC1"),
    ("1", "1.0", "1.0.0", "v1.0", "greet-1.0"),
    ("1.0a", "1.0.0a"),
    ("1.0k",),
    ("1.0p1",),
    ("1.0.1", "release_1_0_1"),
    ("1.1.1k",),
    ("1.1.1l",),
    ("1.10", "1.10.0"),
    ("2024a",),
    ("2024b",),
)


def is_affected(version: str, *events: dict[str, str], **more: Any) -> bool:
    purl = "pkg:generic/greet"
    component = Component(
        ref="greet", kind="chunk", name="greet", version=version, in_image=True, purl=purl
    )
    [one] = msgspec.convert([record("A", of(purl), *events, **more)], list[Vulnerability])
    return bool(Index([component]).affected(one))


def test_order_of_versions_that_no_kind_has() -> None:
    ranks = [(version, rank) for rank, same in enumerate(ORDER) for version in same]
    for mine, rank in ranks:
        for other, of_other in ranks:
            wrong = f"{mine} and {other}"
            assert is_affected(mine, {"introduced": other}) == (rank >= of_other), wrong
            assert is_affected(mine, ZERO, {"fixed": other}) == (rank < of_other), wrong


@pytest.mark.parametrize("version", ["", "main", "c" * 40, "1" * 39 + "f", "0123456789ab"])
def test_what_is_no_version_may_be_any(version: str) -> None:
    assert is_affected(version, {"introduced": "1.0"}, {"fixed": "1.1"})
    assert is_affected(version, {"introduced": "2.0"})
    assert not is_affected(version, versions=["1.0"])
    assert is_affected(version, versions=[version])
    assert not is_affected(version, ranges=[GIT], versions=["1.0"])
    assert not is_affected(version, ranges=[GIT])


def package(name: str, version: str) -> Component:
    purl = identifiers.purl("deb", name, version, "debian")
    return Component(
        ref=f"set/{name}", kind="package", name=name, version=version, in_image=True, within="set",
        purl=purl,
    )  # fmt: skip


#: Version, that of another package of the set, release -> version with the fix, is it affected?
RELEASES: list[tuple[str, str, dict[str, str], bool]] = [
    ("1.0-1+deb13u1", "1", {":11": "", ":13": "1.0-1+deb13u1", ":14": "1.2-1"}, False),
    ("1.0-1+deb13u1+b1", "1", {":13": "1.0-1+deb13u1", ":14": "1.2-1"}, False),
    ("1.0-1~deb13u1", "1", {":12": "", ":13": "1.0-1~deb13u1"}, False),
    ("1.0-1+deb13u1", "1", {":12": "0.1", ":13": "1.0-1+deb13u2"}, True),
    # the record does not say of 13: all may be meant
    ("1.0-1+deb13u1", "1", {":12": "", ":14": "1.2-1"}, True),
    # of 13 or later, as the other one
    ("1.0-1", "2-1+deb13u1", {":12": "", ":13": "1.0-1"}, False),
    ("1.0-1", "2-1+deb13u1", {":13": "0.9-1+deb13u1", ":14": "1.0-2"}, True),
    # of any release
    ("1.0-1", "2-1", {":12": "", ":13": "1.0-1"}, True),
    ("1.0-1+deb13u1~bpo12+1", "1", {":12": "", ":13": "1.0-1"}, True),
    ("1.0-1+deb13u1", "1", {"": "", ":13": "1.0-1"}, True),
    ("1.0-1+deb13u1", "1", {":sid": "", ":13": "1.0-1"}, True),
]


@pytest.mark.parametrize(("version", "other", "fixes", "found"), RELEASES)
@pytest.mark.parametrize("purl", ["", "pkg:deb/debian/x?arch=source"])
def test_record_of_another_release_of_debian_does_not_count(
    version: str, other: str, fixes: dict[str, str], found: bool, purl: str
) -> None:
    entries = []
    for release, fix in fixes.items():
        events = [ZERO, *([{"fixed": fix}] if fix else [])]
        about = {"ecosystem": f"Debian{release}", "name": "x", "purl": purl}
        entries.append({"package": about, "ranges": [{"type": "ECOSYSTEM", "events": events}]})
    one = msgspec.convert({"id": "A", "affected": entries}, Vulnerability)
    index = Index([package("x", version), package("y", other)])
    assert bool(index.affected(one)) == found


def affected(root: Path, records: list[dict[str, Any]]) -> dict[str, set[str]]:
    index = Index(kit.bill(root).components)
    found = msgspec.convert(records, list[Vulnerability])
    return {one.id: refs for one in found if (refs := {c.ref for c in index.affected(one)})}


def test_all_planted_vulnerabilities_are_found_and_none_is_invented(tmp_path: Path) -> None:
    records = [record for record, _ in PLANTED] + OTHERS
    assert affected(tmp_path, records) == {record["id"]: refs for record, refs in PLANTED}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(OTHERS[0]),
        json.dumps(OTHERS[:2], indent=2),
        "\n".join(json.dumps(one) for one in OTHERS[:2]) + "\n\n",
        json.dumps(OTHERS[0], indent=2),
    ],
)
def test_forms_of_a_feed(tmp_path: Path, text: str) -> None:
    (tmp_path / "feed").write_text(text)
    assert {one.id for one in read_feed(tmp_path / "feed")} <= {"N-1", "N-2"}
    assert read_feed(tmp_path / "feed")


def test_withdrawn_records_do_not_count(tmp_path: Path) -> None:
    text = json.dumps([{"id": "A", "withdrawn": "2024-01-01T00:00:00Z"}, {"id": "B"}])
    (tmp_path / "feed").write_text(text)
    assert [one.id for one in read_feed(tmp_path / "feed")] == ["B"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not OSV's JSON"),
        (b"\xff\xfe\x00rubbish", "not OSV's JSON"),
        (b"[" * 100_000, "not OSV's JSON"),
        (b'{"id": ' + b"[" * 100_000, "not OSV's JSON"),
        (b'{"name": "x"}', "missing required field `id`"),
        (b'[{"id": 1}]', "Expected `str`, got `int`"),
        (b'{"id": "a", "affected": [{"ranges": "x"}]}', "Expected `array`"),
        (b'{"id": "' + b"a" * 1001 + b'"}', "length <= 1000"),
        (b'{"id": "a"}\n{"id": "b"}\nrubbish\n', "line 3: not a record of OSV's JSON"),
    ],
)
def test_rubbish_is_refused_in_one_line(tmp_path: Path, text: bytes, problem: str) -> None:
    (tmp_path / "feed").write_bytes(text)
    with pytest.raises(FabricError) as caught:
        read_feed(tmp_path / "feed")
    assert str(caught.value).startswith(f"{tmp_path}/feed: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone", ".", "pipe"])
def test_what_is_no_file_is_no_feed(tmp_path: Path, name: str) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FabricError, match="the feed cannot be read"):
        read_feed(tmp_path / name)


@pytest.mark.bound("FEED")
def test_a_feed_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'{"id": "a"}'
    (tmp_path / "feed").write_bytes(text)
    monkeypatch.setattr(bounds, "FEED", len(text))
    assert read_feed(tmp_path / "feed")
    monkeypatch.setattr(bounds, "FEED", len(text) - 1)
    with pytest.raises(FabricError, match="cannot be read: it has more than 10 bytes"):
        read_feed(tmp_path / "feed")


@pytest.mark.bound("FEED_RECORDS")
def test_a_feed_has_so_many_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "feed").write_text('{"id": "a"}\n{"id": "b"}\n')
    monkeypatch.setattr(bounds, "FEED_RECORDS", 2)
    assert len(read_feed(tmp_path / "feed")) == 2
    monkeypatch.setattr(bounds, "FEED_RECORDS", 1)
    with pytest.raises(FabricError, match="more than 1 records, the limit"):
        read_feed(tmp_path / "feed")


@pytest.mark.parametrize("version", ["", "\x1b[31m", "9" * 5000, "~", "1:2:3", "-", "0", "a" * 900])
def test_strange_versions_harm_nothing(tmp_path: Path, version: str) -> None:
    strange = [
        record("A", debian("glibc"), {"introduced": version}, {"fixed": version}),
        record("B", {"ecosystem": "PyPI", "name": "rich"}, {"last_affected": version}),
        record("C", of(GMP), {"introduced": version}),
        record("D", of(f"pkg:generic/gmp@{version}"), versions=[version]),
    ]
    if len(version) > 1000:
        with pytest.raises(msgspec.ValidationError):
            affected(tmp_path, strange)
    else:
        affected(tmp_path, strange)
