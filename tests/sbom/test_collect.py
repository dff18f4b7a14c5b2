"""The bill of materials: what is in the image, what only built it, and how each is called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sbom_kit as kit
from msgspec.structs import replace
from packageurl import PackageURL

from fabric import bounds
from fabric.errors import DefinitionsError, FabricError
from fabric.sbom import identifiers
from fabric.sbom.bill import DEBIAN, Component, Party
from fabric.sbom.collect import collect, of_lorry
from fabric.trove.sources.lock_files import Locked


def test_only_what_is_in_the_image_is_a_component_of_it(tmp_path: Path) -> None:
    bill = kit.bill(tmp_path)
    outside = {one.ref for one in bill.components if not one.in_image}
    assert outside == {"gcc", "gcc/gmp", "gcc/zlib", "libc/gcc-14"}
    assert {"libc", "libc/libc6", "zlib", "python/rich"} <= bill.by_ref.keys() - outside
    assert [one.ref for one in bill.inside("libc")] == ["libc/gcc-14", "libc/libc6"]


def test_dependencies_leave_out_what_others_bring(tmp_path: Path) -> None:
    bill = kit.bill(tmp_path)
    assert bill.by_ref["zlib"].needs == ("gcc", "libc")
    assert bill.by_ref["oniguruma"].needs == ("zlib",), "gcc and libc come with it"


def test_each_source_has_the_identifiers_of_its_kind(tmp_path: Path) -> None:
    bill = kit.bill(tmp_path)
    purls = {ref: one.purl.partition("?")[0] for ref, one in bill.by_ref.items()}
    assert purls == {
        "gcc": "pkg:generic/gcc@14.2.0",
        "gcc/gmp": "pkg:generic/gmp@6.3.0",
        "gcc/zlib": "pkg:github/madler/zlib@1.3.1",
        "libc": "",  # a set of packages is none itself
        "libc/gcc-14": "pkg:deb/debian/gcc-14@1:14.2.0-19",
        "libc/libc6": "pkg:deb/debian/libc6@2.41-12",
        "mirrored": f"pkg:github/example/mirrored@{'c' * 40}",
        "oniguruma": "pkg:generic/libonig@6.9.9",
        "python": "",
        "python/rich": "pkg:pypi/rich@14.0.0",
        "wheel": "pkg:pypi/some-wheel@1.2",
        "zlib": "pkg:github/madler/zlib@1.3.1",
    }
    assert bill.by_ref["zlib"].cpe == "cpe:2.3:a:zlib:zlib:1.3.1:*:*:*:*:*:*:*"
    [file] = bill.by_ref["gcc"].downloads
    assert (file.name, file.url) == ("gcc-14.2.0.tar.xz", "https://gcc.example/gcc-14.2.0.tar.xz")
    assert file.sha256 == kit.sha(2)
    [patch] = bill.by_ref["zlib"].patches
    assert patch.path == "sources/patches/zlib.patch"
    sources = [file.name for file in bill.by_ref["oniguruma"].downloads]
    assert sources == ["libonig_6.9.9+dfsg.orig.tar", "libonig_6.9.9+dfsg-3.debian.tar"]
    assert bill.by_ref["oniguruma"].supplier == DEBIAN
    assert bill.by_ref["libc/libc6"].origin == "pkg:deb/debian/glibc@2.41-12?arch=source"


def test_licenses_of_the_definitions_precede_those_found(tmp_path: Path) -> None:
    bill = kit.bill(tmp_path)
    libc = bill.by_ref["libc"]
    assert (libc.concluded_license, libc.declared_license) == (
        "GPL-2.0-or-later",
        "LGPL-2.1-or-later",
    ), "that of gcc-14, which is not in the image, does not count"
    assert (
        bill.license == "BSD-2-Clause AND GPL-2.0-or-later AND LGPL-2.1-or-later AND MIT AND Zlib"
    )
    unknown = kit.LORRIES.replace("  license: BSD-2-Clause\n", "")
    assert kit.bill(tmp_path / "b", lorries=unknown).license == "", "one is not known"


def test_licenses_of_packages_stand_in_the_lorry_of_their_set(tmp_path: Path) -> None:
    stated = "  licenses:\n    libc6: Zlib\n"
    text = kit.LORRIES.replace("  license: GPL-2.0-or-later\n", stated)
    found = kit.bill(tmp_path / "a", lorries=text).by_ref
    libc6 = found["libc/libc6"]
    assert (libc6.concluded_license, libc6.declared_license) == ("Zlib", "LGPL-2.1-or-later")
    assert found["libc"].concluded_license == "Zlib", "a set has the licenses of its packages"
    with pytest.raises(FabricError) as caught:
        kit.bill(tmp_path / "b", lorries=text.replace("    libc6:", "    libc5:"))
    assert re.fullmatch(
        r"sources/all.lorry:[0-9]+: 'licenses': debs.lock has no package libc5;"
        r" did you mean 'libc6'\?",
        str(caught.value),
    )


def test_a_lorry_of_another_ref_says_nothing(tmp_path: Path) -> None:
    other = kit.LORRIES.replace("version: 1.3.1", "version: 1.3.2", 1)
    zlib = kit.bill(tmp_path, lorries=other).by_ref["zlib"]
    assert zlib.version == "1.3.1"
    assert not zlib.license
    assert not zlib.cpe
    assert not zlib.downloads


def test_an_edited_chunk_is_not_called_upstreams(tmp_path: Path) -> None:
    graph, lorries = kit.write(tmp_path)
    built = kit.built(graph)
    [zlib] = [step.id for step in graph.steps if step.name == "zlib"]
    for known in (
        replace(built, edited=frozenset([zlib])),
        replace(built, commits={zlib: ("e" * 40, "f" * 40)}),
    ):
        read = lorries
        if not known.edited:  # another tree than the lorry records
            text = kit.LORRIES.replace("  purl:", f"  tree: {'a' * 40}\n  purl:")
            read = kit.write(tmp_path / "again", text)[1]
        one = collect(graph, read, tool="1", author=kit.AUTHOR, built=known).by_ref["zlib"]
        assert one.in_image
        assert (one.purl, one.cpe, one.downloads) == ("", "", ())
        assert len(one.remarks) == 1


def test_a_planned_bill_has_another_version_for_other_definitions(tmp_path: Path) -> None:
    first = kit.bill(tmp_path / "a", planned=True)
    assert first.version.startswith("planned-")
    assert not first.complete
    assert kit.bill(tmp_path / "b", planned=True).version == first.version
    other = kit.LORRIES.replace("14.2.0", "14.3.0")
    assert kit.bill(tmp_path / "c", planned=True, lorries=other).version != first.version


def test_two_chunks_of_one_name_are_two_components(tmp_path: Path) -> None:
    graph, lorries = kit.write(tmp_path)
    [zlib] = [step for step in graph.steps if step.name == "zlib"]
    twin = replace(zlib, id="chunk:other:zlib")
    both = replace(graph, steps=(graph.steps[0], twin, *graph.steps[1:]))
    refs = {one.ref for one in collect(both, lorries, tool="1").components if "zlib" in one.ref}
    assert len(refs) == 3
    assert "zlib" not in refs
    assert len({identifiers.safe(ref) for ref in refs}) == 3


def test_packages_of_one_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"libc6 2.41-12 {{}} {kit.sha(7)} 1\n"
    text = line.format("amd64") + line.format("i386") + line.format("i386")
    monkeypatch.setitem(kit.LOCKS, "upstream_debs", text)
    inside = kit.bill(tmp_path).inside("libc")
    assert len({one.ref for one in inside}) == len(inside) == 2
    assert {one.purl.rpartition("=")[2] for one in inside} == {"amd64", "i386"}


@pytest.mark.parametrize("text", ["/", " ", "/ /", "\ud800", "?", "#", "%", "@"])
def test_a_text_that_no_package_url_can_have_gives_none(text: str) -> None:
    for made in (identifiers.purl("generic", "a", text), identifiers.purl("generic", text, "1")):
        assert made == "" or PackageURL.from_string(made).to_string() == made
    assert identifiers.purl("generic", "a", "1") == "pkg:generic/a@1"


@pytest.mark.bound("SBOM_COMPONENTS")
def test_too_many_components_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(kit.bill(tmp_path / "a").components)
    monkeypatch.setattr(bounds, "SBOM_COMPONENTS", count)
    kit.bill(tmp_path / "b")
    monkeypatch.setattr(bounds, "SBOM_COMPONENTS", count - 1)
    with pytest.raises(FabricError, match=f"more than {count - 1} components, the limit"):
        kit.bill(tmp_path / "c")


@pytest.mark.parametrize(
    ("debian", "revised", "upstream"),
    [
        ("1.3.dfsg+really1.3.1", False, "1.3.1"),
        ("1.5.7+dfsg", False, "1.5.7"),
        ("6.3.0+dfsg1-3", True, "6.3.0"),
        ("1.37.0-6", True, "1.37.0"),
        ("2025.89", False, "2025.89"),
        ("6.5+20250216", False, "6.5+20250216"),
        ("dfsg", False, "dfsg"),
    ],
)
def test_upstream_version(debian: str, revised: bool, upstream: str) -> None:
    assert identifiers.upstream_version(debian, revised=revised) == upstream


def test_names_of_cpe_are_escaped() -> None:
    assert identifiers.cpe("a+b:c.d", "1.0~rc1:*") == (
        "cpe:2.3:a:a\\+b:c.d:1.0\\~rc1\\:\\*:*:*:*:*:*:*:*"
    )


def test_a_cpe_may_have_another_part() -> None:
    name = "cpe:2.3:o:linux:linux_kernel:6.12.1:*:*:*:*:*:*:*"
    assert identifiers.cpe("o:linux:linux_kernel", "6.12.1") == name


@pytest.mark.parametrize(
    ("version", "ref", "spelled"),
    [
        ("6.5+20250216", "6.5-20250216", "6.5-20250216"),
        ("2.0~rc1", "2.0-rc1", "2.0-rc1"),
        ("1.0", "v1.0", "1.0"),
        ("1.0", "1.0.1", "1.0"),
    ],
)
def test_a_version_has_the_punctuation_of_its_ref(version: str, ref: str, spelled: str) -> None:
    assert identifiers.as_spelled(version, ref) == spelled


@pytest.mark.parametrize(("ref", "version"), [("", "2.0~rc1"), ("2.0-rc1", "2.0-rc1")])
def test_only_a_ref_of_the_lorry_tells_the_punctuation(
    tmp_path: Path, ref: str, version: str
) -> None:
    given = f"  ref: {ref}\n" if ref else ""
    pins = f"  version: 2.0~rc1\n  sha256: {kit.sha(1)}\n"
    _, read = kit.write(tmp_path, f"thing:\n  type: debian-source\n{pins}{given}")
    made = Component(ref="a", kind="chunk", name="a", version="", in_image=True)
    assert of_lorry(made, read.named("thing")).version == version


def test_a_package_of_ubuntu_is_not_debians() -> None:
    package = Locked("libc6", "2.39-0ubuntu8", "amd64", kit.sha(1), 1)  # type: ignore[arg-type]
    assert identifiers.debian(package) == "pkg:deb/ubuntu/libc6@2.39-0ubuntu8?arch=amd64"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@h.example/a", "https://***@h.example/a"),
        ("https://h.example/<b>\"'", "https://h.example/%3Cb%3E%22'"),
        ("file:///home/me/a.tar", ""),
        ("/home/me/repo", ""),
        ("host:path.git", ""),
    ],
)
def test_urls_have_no_secret_and_no_path_of_this_machine(url: str, shown: str) -> None:
    assert identifiers.public_url(url) == shown


def test_party() -> None:
    assert Party.parse("") is None
    party = Party.parse("A B <a@b.example>")
    assert party is not None
    assert (party.name, party.contact, party.is_email) == ("A B", "a@b.example", True)
    assert not Party("x", "https://user@host.example/").is_email


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("{libc6: mit}", "debs: 'licenses': 'libc6': write it as SPDX does: MIT"),
        ("{libc6: [MIT]}", "debs: 'licenses': 'libc6' must be text"),
        ("MIT", "debs: 'licenses' must be a mapping"),
    ],
)
def test_wrong_licenses_of_packages_are_reported(tmp_path: Path, given: str, problem: str) -> None:
    text = "debs:\n  type: debian-packages\n  version: '1'\n  packages: [libc6]\n"
    with pytest.raises(DefinitionsError) as caught:
        kit.write(tmp_path, f"{text}  licenses: {given}\n")
    assert str(caught.value).startswith(f"sources/all.lorry:5: {problem}")


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("license: Foo", "'license' must be an SPDX license expression: Unknown license: 'foo'"),
        ("license: mit", "'license': write it as SPDX does: MIT"),
        ("license: GPL-2.0-only AND", "'license' must be an SPDX license expression"),
        ("license: [MIT]", "'license' must be text"),
        ("purl: zlib", "'purl' must be a package URL like pkg:github/madler/zlib"),
        ("purl: 'pkg:generic/<b>'", "'purl' must be a package URL"),
        ("cpe: zlib", "'cpe' must be like VENDOR:PRODUCT"),
        ("cpe: 'x:b:c'", "'cpe' must be like VENDOR:PRODUCT"),
        ("supplier: Me", "'supplier' must be like NAME <EMAIL or URL>"),
        ('supplier: "Me\\x1b <a@b>"', "'supplier' must be like NAME <EMAIL or URL>"),
        ("licence: MIT", "unknown field 'licence'; did you mean 'license'?"),
    ],
)
def test_wrong_fields_of_lorries_are_reported(tmp_path: Path, field: str, problem: str) -> None:
    with pytest.raises(DefinitionsError) as caught:
        kit.write(tmp_path, f"zlib:\n  type: git\n  url: https://h.example/z.git\n  {field}\n")
    assert str(caught.value).startswith("sources/all.lorry:4: zlib: ")
    assert problem in str(caught.value)


def test_what_an_sbom_takes_changes_no_import(tmp_path: Path) -> None:
    plain = "".join(
        line
        for line in kit.LORRIES.splitlines(keepends=True)
        if not line.startswith(("  license:", "  purl:", "  cpe:", "  supplier:"))
    )
    assert len(plain) < len(kit.LORRIES)
    keys = [
        {lorry.name: lorry.import_key() for lorry in kit.write(tmp_path / name, text)[1]}
        for name, text in (("with", kit.LORRIES), ("without", plain))
    ]
    assert keys[0] == keys[1]
