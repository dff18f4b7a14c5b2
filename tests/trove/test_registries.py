"""Sources from Debian's archives and the Python package index: the real ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from sources_kit import Files, git, tarball

from fabric.errors import SourceError
from fabric.trove.importers.apt import machine_entries
from fabric.trove.importers.debian import MovedError
from fabric.trove.importers.pypi import Sdist, _version, newest, offered_sdists
from fabric.trove.sources import Sources

NOTHING = "ab" * 32
HELLO = """\
hello:
  type: debian-source
  version: "2.9"
  sha256: {sha256}  # of the orig tarball
"""


@pytest.fixture(scope="module")
def apt_lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trove whose package lists are shared by the tests here."""
    return tmp_path_factory.mktemp("lists")


class Trove:
    """A trove with one lorry file."""

    def __init__(self, top: Path, lists: Path, lorry: str) -> None:
        self.root = top / "trove"
        self.root.mkdir(exist_ok=True)
        if not (self.root / "apt").exists():
            (self.root / "apt").symlink_to(lists)
        self.file = top / "sources" / "all.lorry"
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(lorry)
        self.said: list[str] = []

    def sources(self, *, update: bool = False) -> Sources:
        moved = "update" if update else "error"
        return Sources(
            self.root,
            {},
            self.file.parent,
            progress=self.said.append,
            moved=moved,  # type: ignore[arg-type]
        )


@pytest.fixture
def make(tmp_path: Path, apt_lists: Path) -> Callable[[str], Trove]:
    return lambda lorry: Trove(tmp_path, apt_lists, lorry)


# -- Debian sources --------------------------------------------------------------------------


def test_a_debian_source(make: Callable[[str], Trove]) -> None:
    trove = make(HELLO.format(sha256=NOTHING))
    with pytest.raises(MovedError) as caught:
        trove.sources().resolve("upstream:hello", "2.9")
    text = str(caught.value)
    assert text.startswith("sources/all.lorry:1: hello pins version 2.9 of the Debian source hello")
    assert "the archives now offer 2." in text
    assert "run `fabric-initiator lorry update hello`" in text

    changes = trove.sources().update_lorry("hello")

    lorry = trove.sources().lorries.named("hello")
    assert changes[0] == f"version 2.9 -> {lorry.version}"
    assert changes[-1] == f"strata that name ref 2.9 must now name {lorry.version}"
    assert "  # of the orig tarball\n" in trove.file.read_text()
    source = trove.sources().resolve("upstream:hello", lorry.version)
    tree = trove.sources().export(source)
    assert (tree / "src" / "hello.c").exists()
    assert not (tree / "debian").exists(), "Debian's changes do not count"
    assert any("hello: importing" in line for line in trove.said)
    assert trove.sources().update_lorry("hello") == []
    again = make(trove.file.read_text().replace(lorry.sha256, NOTHING))
    with pytest.raises(MovedError, match=r"with other digests than those offered .hello_2\."):
        again.sources().resolve("upstream:hello", lorry.version)


def test_a_moved_source_is_taken_where_that_is_asked_for(make: Callable[[str], Trove]) -> None:
    trove = make(HELLO.format(sha256=NOTHING))
    source = trove.sources(update=True).resolve("upstream:hello", "2.9")
    assert (trove.sources().export(source) / "src" / "hello.c").exists()
    assert any(line.startswith("warning: sources/all.lorry:1: hello pins") for line in trove.said)
    lorry = trove.sources().lorries.named("hello")
    assert (lorry.ref, lorry.version != "2.9") == ("2.9", True)
    assert '  ref: "2.9"\n' in trove.file.read_text()
    assert trove.sources().resolve("upstream:hello", "2.9") == source


def test_a_source_that_does_not_exist(make: Callable[[str], Trove]) -> None:
    trove = make(HELLO.format(sha256=NOTHING) + "  package: no-such-package-anywhere\n")
    with pytest.raises(MovedError, match="have no such source package: check its name"):
        trove.sources().resolve("upstream:hello", "2.9")
    with pytest.raises(SourceError, match="have no source package no-such-package-anywhere"):
        trove.sources().update_lorry("hello")


def test_an_ordinary_user_can_import() -> None:
    if os.geteuid() != 0:
        return  # then every other test shows it
    top = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        os.chown(top, 65534, 65534)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                os.environ["HOME"] = "/nonexistent"
                (top / "lists").mkdir()
                trove = Trove(top, top / "lists", HELLO.format(sha256=NOTHING))
                source = trove.sources(update=True).resolve("upstream:hello", "2.9")
                code = 0 if (trove.sources().export(source) / "configure").exists() else 2
            except BaseException:  # noqa: BLE001 - whatever it is, the parent must not run twice
                traceback.print_exc()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        shutil.rmtree(top)


# -- sets of Debian packages -----------------------------------------------------------------

TINY = 'tiny: {type: debian-packages, packages: [busybox-static, less], version: "1"}\n'


def test_a_set_of_packages_with_its_closure(make: Callable[[str], Trove]) -> None:
    trove = make(TINY)
    with pytest.raises(MovedError, match="tiny has no lock file yet; run `fabric-initiator lorry"):
        trove.sources().resolve("upstream:tiny", "1")
    changes = trove.sources().update_lorry("tiny")
    lorry = trove.sources().lorries.named("tiny")
    locked = lorry.locked()
    names = [one.name for one in locked]
    assert {"busybox-static", "less", "libc6", "libtinfo6"} <= set(names)
    assert names.index("libc6") < names.index("libtinfo6") < names.index("less")
    assert len(changes) == len(locked)

    source = trove.sources().resolve("upstream:tiny", "1")
    tree = trove.sources().export(source)

    rows = [line.split("\t") for line in (tree / "packages.tsv").read_text().splitlines()]
    assert [row[0] for row in rows] == names
    for name, _, architecture, sha256, size, file in rows:
        data = (tree / file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (int(size), sha256)
        shown = subprocess.run(
            ["dpkg-deb", "--field", tree / file, "Package", "Architecture"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown == f"Package: {name}\nArchitecture: {architecture}\n"
    assert trove.sources().update_lorry("tiny") == []
    bare = trove.root / "git" / "upstream" / "tiny.git"
    assert git(bare, "rev-parse", "refs/heads/1") == source.commit


def test_excluded_packages_bring_nothing(make: Callable[[str], Trove]) -> None:
    trove = make(TINY.replace("version:", "exclude: [libc6, libtinfo6], version:"))
    trove.sources().update_lorry("tiny")
    locked = trove.sources().lorries.named("tiny").locked()
    assert {one.name for one in locked} == {"busybox-static", "less"}
    trove = make(TINY.replace("version:", "exclude: [no-such-package], version:"))
    with pytest.raises(SourceError, match=r"exclude.*no-such-package"):
        trove.sources().update_lorry("tiny")


def test_a_package_that_does_not_exist(make: Callable[[str], Trove]) -> None:
    trove = make(TINY.replace("less", "no-such-package-anywhere"))
    with pytest.raises(SourceError, match="Unable to locate package no-such-package-anywhere"):
        trove.sources().update_lorry("tiny")


def test_packages_that_are_no_longer_offered(make: Callable[[str], Trove]) -> None:
    trove = make(TINY.replace(", less", ""))
    trove.sources().update_lorry("tiny")
    lock = trove.file.with_name("tiny.lock")
    (line,) = [one for one in lock.read_text().splitlines() if not one.startswith("#")]
    name, version, architecture, sha256, size = line.split()
    lock.write_text(
        f"{name} 1:0.1-1 {architecture} {NOTHING} {size}\n"
        f"{name} {version} {architecture} {NOTHING[::-1]} {size}\n"
        f"never-was 1.0 {architecture} {'cd' * 32} 5\n"
    )
    with pytest.raises(MovedError) as caught:
        trove.sources().resolve("upstream:tiny", "1")
    assert str(caught.value).splitlines() == [
        "sources/all.lorry:1: tiny pins packages that the archives of this machine do not offer"
        " any more; run `fabric-initiator lorry update tiny` to renew the pins:",
        f"  {name} 1:0.1-1: now {version}",
        f"  {name} {version}: offered with another SHA-256",
        "  never-was 1.0: no longer there",
    ]

    source = trove.sources(update=True).resolve("upstream:tiny", "1")

    tree = trove.sources().export(source)
    assert (tree / "packages.tsv").read_text().split("\t")[:4] == [
        *(name, version, architecture, sha256)
    ]
    assert any("taking what is offered now" in one for one in trove.said)


def test_another_architecture(make: Callable[[str], Trove]) -> None:
    trove = make(TINY.replace(", less", "").replace("version:", "architecture: arm64, version:"))
    trove.sources().update_lorry("tiny")
    (one,) = trove.sources().lorries.named("tiny").locked()
    assert one.architecture == "arm64"


# -- apt's entries ---------------------------------------------------------------------------


def test_entries_in_the_one_line_format(tmp_path: Path) -> None:
    file = tmp_path / "sources.list"
    file.write_text(
        """
# deb http://off/debian stable main
deb [signed-by=/some/key.gpg arch=amd64] http://host/debian stable main contrib  # comment
deb-src http://host/debian stable main
deb http://host/debian stable main
deb tor+https://onion/debian stable main
deb cdrom:[a disc]/ stable main
deb file:/srv/local ./
"""
    )
    assert machine_entries("deb-src", [file]) == {
        "sources.list": "deb-src [signed-by=/some/key.gpg arch=amd64] http://host/debian stable"
        " main contrib\n"
        "deb-src http://host/debian stable main\n"
        "deb-src tor+https://onion/debian stable main\n"
    }
    assert machine_entries("deb", [file])["sources.list"].startswith("deb [signed-by=")


def test_entries_in_the_deb822_format(tmp_path: Path) -> None:
    file = tmp_path / "debian.sources"
    file.write_text(
        """\
# the main one
Types: deb deb-src
URIs: http://host/debian file:/srv/copy
Suites: stable stable-updates
Components: main
# in between
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://off/debian
Suites: stable

Types: deb
URIs: file:/usr/share/own
Suites: ./
Trusted: yes
"""
    )
    (text,) = machine_entries("deb-src", [file]).values()
    assert text == (
        "Types: deb-src\nURIs: http://host/debian\nSuites: stable stable-updates\n"
        "Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
        " -----END PGP PUBLIC KEY BLOCK-----\n"
    )


def test_local_archives_count_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "sources.list"
    file.write_text("deb file:/srv/mirror stable main\n")
    assert machine_entries("deb", [file]) == {"sources.list": "deb file:/srv/mirror stable main\n"}


# -- the Python package index ----------------------------------------------------------------

INI = "iniconfig: {{type: pypi, version: {version}, sha256: {sha256}}}\n"


def test_a_source_distribution(make: Callable[[str], Trove]) -> None:
    offered = {sdist.version: sdist for sdist in offered_sdists("iniconfig")}
    assert {"1.0.0", "2.0.0"} <= offered.keys()
    trove = make(INI.format(version="2.0.0", sha256=offered["2.0.0"].sha256))
    source = trove.sources().resolve("upstream:iniconfig", "2.0.0")
    assert (trove.sources().export(source) / "PKG-INFO").read_text().count("Version: 2.0.0") == 1
    trove.sources().update_lorry("iniconfig")
    assert trove.sources().lorries.named("iniconfig").version == newest([*offered.values()]).version


def test_an_sdist_that_is_not_offered(make: Callable[[str], Trove]) -> None:
    trove = make(INI.format(version="2.0.0", sha256=NOTHING))
    with pytest.raises(MovedError, match=r"pins iniconfig 2.0.0 with the digest abab.* which the"):
        trove.sources().resolve("upstream:iniconfig", "2.0.0")
    trove = make(INI.format(version="0.0.77", sha256=NOTHING))
    with pytest.raises(MovedError, match="which the index offers not at all"):
        trove.sources().resolve("upstream:iniconfig", "0.0.77")


@pytest.fixture
def index(files: Files, monkeypatch: pytest.MonkeyPatch) -> Files:
    """An index of our own, with a password, that pip is configured to use."""
    monkeypatch.setenv("PIP_INDEX_URL", files.url.replace("//", "//me:secret@") + "/simple")
    return files


def test_an_index_in_html(index: Files, make: Callable[[str], Trove]) -> None:
    data = tarball({"my_thing-1.0/setup.py": b"raise SystemExit('this must never run')\n"})
    sha256 = hashlib.sha256(data).hexdigest()
    index.put("files/my_thing-1.0.tar.gz", data)
    index.page(
        "/simple/my-thing/",
        "text/html",
        f"""<!DOCTYPE html><body>
        <a href="../../files/my_thing-1.0-py3-none-any.whl#sha256={NOTHING}">a wheel</a>
        <a href="../../files/my_thing-1.0.tar.gz#sha256={sha256}">the sdist</a>
        <a href="../../files/my-thing-0.9.zip">without a digest</a>""",
    )
    (sdist,) = offered_sdists("My.Thing")
    assert (sdist.version, sdist.sha256) == ("1.0", sha256)
    trove = make(f'my-thing: {{type: pypi, version: "1.0", sha256: {sha256}}}')
    source = trove.sources().resolve("upstream:my-thing", "1.0")
    assert (trove.sources().export(source) / "setup.py").exists()
    assert set(index.authorizations) == {"Basic bWU6c2VjcmV0"}


def test_an_index_in_json(index: Files) -> None:
    listed = [
        {"filename": "x-1.0.tar.gz", "url": "/f/x-1.0.tar.gz", "hashes": {"sha256": NOTHING}},
        {"filename": "x-1.1.zip", "url": "/f/x-1.1.zip", "hashes": {"md5": "1"}},
        {"filename": "x-1.2-py3.whl", "url": "/f/x-1.2-py3.whl", "hashes": {"sha256": NOTHING}},
    ]
    index.page("/simple/x/", "application/vnd.pypi.simple.v1+json", json.dumps({"files": listed}))
    (sdist,) = offered_sdists("x")
    assert (sdist.version, sdist.url) == ("1.0", f"{index.url}/f/x-1.0.tar.gz")


def test_an_index_that_does_not_know_it(index: Files) -> None:
    with pytest.raises(SourceError, match=r"nothing: cannot be had from the .* index: .*404") as e:
        offered_sdists("nothing")
    assert "secret" not in str(e.value)
    index.page("/simple/empty/", "text/html", "")
    with pytest.raises(SourceError, match="has no source distribution of it"):
        offered_sdists("empty")


def test_versions_in_file_names() -> None:
    assert _version("my_thing-1.0.tar.gz", "My-Thing") == "1.0"
    assert _version("a-b-1.0-2.zip", "a.b") == "1.0-2"
    assert _version("a-b-1.0.zip", "a") is None
    assert _version("a-1.0-py3-none-any.whl", "a") is None
    versions = ["1.9", "1.10", "2.0rc1", "1.10.post1", "1.2"]
    sdists = [Sdist(version, "", "", {}, None) for version in versions]
    assert newest(sdists).version == "1.10.post1"


def test_a_set_of_wheels(make: Callable[[str], Trove]) -> None:
    trove = make(
        'modules: {type: pypi-wheels, packages: [iniconfig==2.0.0], python: "3.13", version: "1"}'
    )
    trove.sources().update_lorry("modules")
    (one,) = trove.sources().lorries.named("modules").locked()
    assert (one.name, one.version) == ("iniconfig", "2.0.0")
    tree = trove.sources().export(trove.sources().resolve("upstream:modules", "1"))
    (wheel,) = tree.iterdir()
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == one.sha256
    lock = trove.file.with_name("modules.lock")
    lock.write_text(lock.read_text().replace(one.sha256, NOTHING))
    with pytest.raises(MovedError, match="pins wheels that the index does not offer"):
        trove.sources().resolve("upstream:modules", "1")
