"""Licenses: found where a source states them, and never guessed."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import deb_kit
import pytest
from small_definitions import git

from fabric import bounds
from fabric.sbom import licenses, packages
from fabric.sbom.built import Finder
from fabric.trove.artifacts.store import Store
from fabric.trove.sources.resolve import Sources

MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: A
License: GPL-2+ or Artistic, and Expat

Files: lib/*
Copyright: B
License: Spencer's
 Do what you like.

Files: debian/*
Copyright: C
License: WTFPL
"""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("COPYING", True),
        ("COPYING.LIB", True),
        ("LICENSE", True),
        ("LICENCE.txt", True),
        ("license-MIT", True),
        ("LICENSES/MIT.txt", True),
        ("PKG-INFO", True),
        ("debian/copyright", True),
        ("debian/COPYING", False),
        ("license.c", False),
        ("licenses.py", False),
        ("src/COPYING", False),
        ("README", False),
    ],
)
def test_files_that_speak_of_licenses(path: str, said: bool) -> None:
    assert licenses.speaks(path) is said


def test_a_text_that_is_known_is_found() -> None:
    assert licenses.found({"LICENSE": f"Copyright 2020 A\n\n{MIT}"}) == ("MIT", ("LICENSE",))


@pytest.mark.parametrize("other", ["All rights reserved.", ""])
def test_a_text_that_is_not_known_gives_nothing(other: str) -> None:
    assert licenses.found({"LICENSE": MIT, "COPYING": other}) == ("", ("COPYING", "LICENSE"))
    assert licenses.found({}) == ("", ())


@pytest.mark.parametrize(
    ("name", "license"),
    [("GPL-2", ""), ("LGPL-2.1", ""), ("Apache-2.0", "Apache-2.0"), ("MPL-2.0", "MPL-2.0")],
)
def test_the_text_of_the_gpl_does_not_say_whether_later_ones_apply(name: str, license: str) -> None:
    text = Path("/usr/share/common-licenses", name).read_text()  # of Debian's base-files
    assert licenses.found({"COPYING": text}) == (license, ("COPYING",))


def test_reuse_names_licenses_by_their_identifiers() -> None:
    files = {"LICENSES/MIT.txt": "x", "LICENSES/0BSD.txt": "y"}
    assert licenses.found(files)[0] == "0BSD AND MIT"
    assert licenses.found({"LICENSES/Foo.txt": "x"})[0] == ""


def test_metadata_of_python_states_an_expression() -> None:
    text = "Metadata-Version: 2.4\nName: x\nLicense-Expression: mit or apache-2.0\n\nbody"
    assert licenses.of_metadata(text) == "MIT OR Apache-2.0"
    assert licenses.found({"PKG-INFO": text, "COPYING": "x"}) == ("MIT OR Apache-2.0", ("COPYING",))
    assert licenses.of_metadata("License: MIT\n") == ""
    assert licenses.of_metadata("License-Expression: whatever you like\n") == ""


def test_copyright_of_debian() -> None:
    assert licenses.of_debian_copyright(COPYRIGHT) == (
        "(GPL-2.0-or-later OR Artistic-1.0-Perl) AND LicenseRef-debian-Spencer-s AND MIT"
    )
    assert licenses.of_debian_copyright("This is free software.\n") == ""


@pytest.mark.parametrize(
    ("debian", "spdx"),
    [
        ("GPL-2", "GPL-2.0-only"),
        ("GPL-3+", "GPL-3.0-or-later"),
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("LGPL", "LGPL-2.0-or-later"),
        ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"),
        ("Expat", "MIT"),
        ("BSD-3-clause", "BSD-3-Clause"),
        ("Perl", "(Artistic-1.0-Perl OR GPL-1.0-or-later)"),
        ("GPL-3+ with Bison exception", "GPL-3.0-or-later WITH Bison-exception-2.2"),
        ("GPL-2 with strange exception", "LicenseRef-debian-GPL-2-with-strange-exception"),
        ("public-domain", "LicenseRef-debian-public-domain"),
        ("", "LicenseRef-debian-unnamed"),
        ("\x1b]0;x\x07", "LicenseRef-debian-0-x"),
    ],
)
def test_names_of_debian(debian: str, spdx: str) -> None:
    text = f"Format: x\n\nFiles: *\nCopyright: A\nLicense: {debian}\n"
    assert licenses.of_debian_copyright(text) == spdx.strip("()")


@pytest.mark.bound("SBOM_LICENSE")
def test_an_expression_that_is_too_long_is_none() -> None:
    most = bounds.SBOM_LICENSE
    assert licenses.canonical("MIT" + " OR MIT" * ((most - 3) // 7))
    assert licenses.canonical("MIT" + " OR MIT" * (most // 7 + 1)) == ""
    assert licenses.canonical("(" * 2000 + "MIT" + ")" * 2000) in (
        "",
        "(" * 2000 + "MIT" + ")" * 2000,
    )
    names = "".join(f"Files: {n}\nLicense: strange-{n}\n\n" for n in range(most // 20))
    assert licenses.of_debian_copyright(f"Format: x\n\n{names}") == ""


# -- packages --------------------------------------------------------------------------------


def package(control: str, *members: deb_kit.Member) -> bytes:
    return deb_kit.ar(
        ("debian-binary", b"2.0\n"),
        ("control.tar", deb_kit.tar(deb_kit.member("./control", control.encode()))),
        ("data.tar", deb_kit.tar(*members)),
    )


def read(name: str, data: bytes, taken: frozenset[bytes] | None = None) -> packages.Read:
    with tempfile.TemporaryFile() as file:
        return packages.debian(name, "2.41-1", packages.as_file([data], file), taken)


def test_copyright_of_debian_in_a_source_precedes_its_license_files() -> None:
    said = licenses.of_debian_copyright(COPYRIGHT)
    both = {"debian/copyright": COPYRIGHT, "COPYING": "All rights reserved."}
    assert licenses.found(both) == (said, ("COPYING", "debian/copyright"))
    plain = {"debian/copyright": "This is free software.", "LICENSE": MIT}
    assert licenses.found(plain)[0] == "MIT", "one that no machine reads is left out"
    assert licenses.found({"debian/copyright": "This is free software."})[0] == ""


def test_a_debian_package_says_its_license_source_and_files() -> None:
    file = package(
        "Package: libc6\nSource: glibc (2.41)\n",
        deb_kit.directory("./lib/"),
        deb_kit.member("./lib/libc.so.6", b"x"),
        deb_kit.member("./usr/share/doc/libc6/copyright", COPYRIGHT.encode()),
        deb_kit.member("./usr/share/doc/other/copyright", b"Format: x\n\nFiles: *\nLicense: X11\n"),
    )
    fact = read("libc6", file, frozenset({b"usr/lib/libc.so.6"})).fact
    assert fact.inside, "/lib is a link to /usr/lib"
    assert fact.source == ("glibc", "2.41")
    assert fact.license.endswith("AND LicenseRef-debian-Spencer-s AND MIT")
    assert fact.license_files == ("usr/share/doc/libc6/copyright",)
    assert len(fact.sha512) == 128
    assert not read("libc6", file, frozenset({b"usr/lib"})).fact.inside
    assert read("libc6", file).fact.inside


def test_a_package_may_share_the_copyright_file_of_another() -> None:
    linked = package("Package: a\n", deb_kit.symlink("./usr/share/doc/a", "b"))
    owner = package(
        "Package: b\n", deb_kit.member("./usr/share/doc/b/copyright", COPYRIGHT.encode())
    )
    both = {
        "a": read("a", linked),
        "b": read("b", owner),
    }
    facts = packages.shared(both)
    assert facts["a"].license == facts["b"].license != ""
    assert facts["a"].source == ("a", "2.41-1")
    assert packages.shared({"a": both["a"]})["a"].license == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no package",
        deb_kit.ar(("debian-binary", b"2.0\n"), ("control.tar.xz", b"rubbish")),
        deb_kit.ar(
            ("debian-binary", b"2.0\n"),
            ("control.tar", deb_kit.tar(deb_kit.member("./control", b"Package: x\n"))),
            ("data.tar.zst", b"\x28\xb5\x2f\xfdrubbish"),
        ),
    ],
)
def test_a_damaged_package_counts_as_inside(data: bytes) -> None:
    fact = read("x", data, frozenset()).fact
    assert fact.inside, "it may be in the image: nobody knows"
    assert (fact.license, fact.source) == ("", ("", ""))
    assert len(fact.sha512) == 128


def test_a_package_of_more_than_an_artifact_may_have_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "ARTIFACT_FILES", 2)
    members = [deb_kit.member(f"./{n}", b"") for n in range(3)]
    assert read("x", package("Package: x\n", *members), frozenset()).fact.inside
    assert not read("x", package("Package: x\n", *members[:2]), frozenset()).fact.inside


@pytest.mark.bound("SBOM_TEXT")
def test_a_copyright_file_that_is_too_large_is_named_and_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "SBOM_TEXT", len(COPYRIGHT))
    where = "./usr/share/doc/x/copyright"
    whole = package("Package: x\n", deb_kit.member(where, COPYRIGHT.encode()))
    assert read("x", whole).fact.license
    more = package("Package: x\n", deb_kit.member(where, COPYRIGHT.encode() + b"\n"))
    fact = read("x", more).fact
    assert (fact.license, fact.license_files) == ("", ("usr/share/doc/x/copyright",))


@pytest.mark.bound("SBOM_TEXTS")
def test_a_source_with_too_many_license_files_has_no_license(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SBOM_TEXTS", 3)
    git(tmp_path, "init", "-q", "-b", "main")
    sources = Sources(tmp_path / "trove", {})
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    for count, license in ((3, "MIT"), (4, "")):
        for number in range(count):
            (tmp_path / f"LICENSE.{number}").write_text(MIT)
        git(tmp_path, "add", "LICENSE.*")
        git(tmp_path, "commit", "-qm", "x")
        commit = git(tmp_path, "rev-parse", "main").strip()
        source = sources.resolve(f"file://{tmp_path}", commit)
        finder = Finder(store, sources, tmp_path / "facts", lambda _: None)
        found, named = finder.license_of(source)
        assert found == license
        assert named == ("LICENSE.0", "LICENSE.1", "LICENSE.2")


def test_name_of_a_license_file_that_is_no_text(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "LICENSE.caf\udce9").write_text("All rights reserved.")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    sources = Sources(tmp_path / "trove", {})
    source = sources.resolve(f"file://{tmp_path}", git(tmp_path, "rev-parse", "main").strip())
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    finder = Finder(store, sources, tmp_path / "facts", lambda _: None)
    assert finder.license_of(source) == ("", (r"LICENSE.caf\xe9",))


def test_a_wheel_says_its_license() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x-1.dist-info/METADATA", "Name: x\nLicense-Expression: MIT\n")
        archive.writestr("x-1.dist-info/licenses/LICENSE", "text")
        archive.writestr("METADATA", "License-Expression: ISC\n")
    file.seek(0)
    fact = packages.wheel(file).fact
    assert (fact.license, fact.license_files) == ("MIT", ("x-1.dist-info/licenses/LICENSE",))
    assert packages.wheel(io.BytesIO(b"no wheel")).fact.license == ""


def test_a_wheel_whose_metadata_is_damaged_has_no_license() -> None:
    """Its first bytes are no deflated data, which is an error of zlib and not of the archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("some-1.dist-info/METADATA", "License-Expression: MIT\n" * 99)
        info = made.infolist()[0]
    at = info.header_offset + 30 + len(info.filename)
    file.getbuffer()[at : at + 8] = b"\xff" * 8
    file.seek(0)
    assert packages.wheel(file).fact.license == ""
