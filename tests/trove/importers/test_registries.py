"""Sources from the real Debian archives and the real Python package index."""

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

from fabric.digest import Digest
from fabric.errors import SourceError
from fabric.trove.configured import open_importer
from fabric.trove.importers.apt import machine_entries
from fabric.trove.importers.debian import MovedError
from fabric.trove.importers.download import WrongDigest
from fabric.trove.importers.pypi import Sdist, newest, offered_sdists, version_in
from fabric.trove.sources.resolve import Sources

NOTHING = Digest("ab" * 32)
HELLO = """\
hello:
  type: debian-source
  version: "2.9"
  sha256: {sha256}  # of the orig tarball
"""


@pytest.fixture(scope="module")
def apt_lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package lists, which all troves of these tests share."""
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

    def sources(self) -> Sources:
        return Sources(
            self.root, {}, self.file.parent, importer=open_importer, progress=self.said.append
        )


@pytest.fixture
def make(tmp_path: Path, apt_lists: Path) -> Callable[[str], Trove]:
    return lambda lorry: Trove(tmp_path, apt_lists, lorry)


# -- Debian sources --------------------------------------------------------------------------


def test_debian_source_is_imported_and_updated(make: Callable[[str], Trove]) -> None:
    trove = make(HELLO.format(sha256=NOTHING))
    with pytest.raises(MovedError) as caught:
        trove.sources().resolve("upstream:hello", "2.9")
    text = str(caught.value)
    assert text.startswith("sources/all.lorry:1: hello pins version 2.9 of the Debian source hello")
    assert "the archives now offer 2." in text
    assert "`fabric-initiator lorry update hello` takes the newest if it is newer" in text

    changes = trove.sources().update_lorry("hello")

    lorry = trove.sources().lorries.named("hello")
    assert changes[0] == f"version 2.9 -> {lorry.version}"
    assert changes[-1] == f"strata that name ref 2.9 must now name {lorry.version}"
    assert "  # of the orig tarball\n" in trove.file.read_text()
    source = trove.sources().resolve("upstream:hello", lorry.version)
    assert source.tree == lorry.tree
    tree = trove.sources().export(source)
    assert (tree / "src" / "hello.c").exists()
    assert not (tree / "debian").exists(), "Debian's changes do not count"
    assert any("hello: importing" in line for line in trove.said)
    assert trove.sources().update_lorry("hello") == []

    newer = make(trove.file.read_text().replace(f'"{lorry.version}"', '"99"'))
    (line,) = newer.sources().update_lorry("hello")
    assert line == (
        f"skipped {lorry.version}: 99 is pinned, which is newer; the archives offer nothing above"
        " it"
    )
    assert '"99"' in newer.file.read_text()

    text = trove.file.read_text().replace('"99"', f'"{lorry.version}"')
    again = make(text.replace(str(lorry.sha256), NOTHING))
    for act in (lambda one: one.resolve("upstream:hello", lorry.version), _updated):
        with pytest.raises(WrongDigest, match=rf"offered: SHA-256 {lorry.sha256}"):
            act(again.sources())


def _updated(sources: Sources) -> object:
    return sources.update_lorry("hello")


@pytest.mark.parametrize(
    "text", ["hello: {type: debian-source}\n", "hello:\n  type: debian-source\n"]
)
def test_debian_source_is_pinned_from_its_name_alone(
    make: Callable[[str], Trove], text: str
) -> None:
    trove = make(text)
    with pytest.raises(SourceError, match="hello has no version and no sha256 yet; `fabric-init"):
        trove.sources().resolve("upstream:hello", "2.10")
    changes = trove.sources().update_lorry("hello")
    lorry = trove.sources().lorries.named("hello")
    assert changes[0] == f"version (none) -> {lorry.version}"
    source = trove.sources().resolve("upstream:hello", lorry.version)
    assert (lorry.missing, lorry.tree) == ((), source.tree)
    assert trove.sources().update_lorry("hello") == []


def test_debian_source_that_does_not_exist_is_an_error(make: Callable[[str], Trove]) -> None:
    trove = make(HELLO.format(sha256=NOTHING) + "  package: no-such-package-anywhere\n")
    with pytest.raises(MovedError, match="have no such source package: check its name"):
        trove.sources().resolve("upstream:hello", "2.9")
    with pytest.raises(SourceError, match="have no source package no-such-package-anywhere"):
        trove.sources().update_lorry("hello")


def test_debian_source_can_be_imported_by_an_ordinary_user() -> None:
    if os.geteuid() != 0:
        return  # every other test covers it then
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
                trove.sources().update_lorry("hello")
                lorry = trove.sources().lorries.named("hello")
                source = trove.sources().resolve("upstream:hello", lorry.version)
                code = 0 if (trove.sources().export(source) / "configure").exists() else 2
            except BaseException:  # noqa: BLE001 - whatever it is, the parent must not run twice
                traceback.print_exc()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        shutil.rmtree(top)


# -- sets of Debian packages -----------------------------------------------------------------

TINY = 'tiny: {type: debian-packages, packages: [busybox-static, less], version: "1"}\n'


def test_debian_packages_are_imported_with_their_dependencies(make: Callable[[str], Trove]) -> None:
    trove = make(TINY)
    with pytest.raises(MovedError, match="tiny has no lock file yet; run `fabric-initiator lorry"):
        trove.sources().resolve("upstream:tiny", "1")
    changes = trove.sources().update_lorry("tiny")
    lorry = trove.sources().lorries.named("tiny")
    locked = lorry.locked()
    names = [one.name for one in locked]
    assert {"busybox-static", "less", "libc6", "libtinfo6"} <= set(names)
    assert names.index("libc6") < names.index("libtinfo6") < names.index("less")
    assert len(changes) == len(locked) + 1
    assert changes[-1].startswith("tree (none) -> ")

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


def test_debian_packages_excluded_bring_no_dependencies(
    make: Callable[[str], Trove],
) -> None:
    trove = make(TINY.replace("version:", "exclude: [libc6, libtinfo6], version:"))
    trove.sources().update_lorry("tiny")
    locked = trove.sources().lorries.named("tiny").locked()
    assert {one.name for one in locked} == {"busybox-static", "less"}
    # of the same source as libtinfo6, which comes
    trove = make(TINY.replace("version:", "exclude: [libc6, ncurses-bin], version:"))
    trove.sources().update_lorry("tiny")
    locked = trove.sources().lorries.named("tiny").locked()
    assert {one.name for one in locked} == {"busybox-static", "less", "libtinfo6"}
    trove = make(TINY.replace("version:", "exclude: [no-such-package], version:"))
    with pytest.raises(SourceError, match=r"exclude.*no-such-package"):
        trove.sources().update_lorry("tiny")


def test_debian_package_that_does_not_exist_is_an_error(make: Callable[[str], Trove]) -> None:
    trove = make(TINY.replace("less", "no-such-package-anywhere"))
    with pytest.raises(SourceError, match="Unable to locate package no-such-package-anywhere"):
        trove.sources().update_lorry("tiny")


def test_debian_packages_no_longer_offered_are_listed(
    make: Callable[[str], Trove],
) -> None:
    trove = make(TINY.replace(", less", ""))
    trove.sources().update_lorry("tiny")
    lock = trove.file.with_name("tiny.lock")
    line = lock.read_text().splitlines()[-1]
    name, version, architecture, sha256, size = line.split()
    lock.write_text(
        f"{name} 0.1-1 {architecture} {NOTHING} {size}\nnever-was 1.0 all {NOTHING} 5\n"
    )
    with pytest.raises(MovedError) as caught:
        trove.sources().resolve("upstream:tiny", "1")
    assert str(caught.value).splitlines() == [
        "sources/all.lorry:1: tiny pins packages that the archives of this machine do not offer"
        " any more; run `fabric-initiator lorry update tiny` to renew the pins, or set"
        " `debian-snapshot` to a time at which they were offered:",
        f"  {name} 0.1-1: now {version}",
        "  never-was 1.0: no longer there",
    ]
    changes = trove.sources().update_lorry("tiny")
    assert changes[:2] == [f"{name} 0.1-1 -> {version}", "never-was 1.0 -> (gone)"]
    assert trove.sources().lorries.named("tiny").locked()[0].sha256 == sha256


def test_debian_packages_with_another_digest_are_rejected(make: Callable[[str], Trove]) -> None:
    trove = make(TINY.replace(", less", ""))
    trove.sources().update_lorry("tiny")
    (one,) = trove.sources().lorries.named("tiny").locked()
    lock = trove.file.with_name("tiny.lock")
    lock.write_text(lock.read_text().replace(one.sha256, NOTHING))
    with pytest.raises(WrongDigest) as caught:
        trove.sources().resolve("upstream:tiny", "1")
    assert str(caught.value).splitlines()[:4] == [
        f"sources/all.lorry:1: tiny: {one.name} {one.version}: the offered file is not the"
        " pinned one, so it is refused",
        f"  pinned:  SHA-256 {NOTHING}",
        f"  offered: SHA-256 {one.sha256}",
        "  by:      the Debian archives of this machine",
    ]


def test_debian_packages_are_not_replaced_by_older_ones(make: Callable[[str], Trove]) -> None:
    trove = make(TINY.replace(", less", ""))
    trove.sources().update_lorry("tiny")
    (one,) = trove.sources().lorries.named("tiny").locked()
    lock = trove.file.with_name("tiny.lock")
    lock.write_text(f"{one.name} 99:1 {one.architecture} {NOTHING} 5\n")
    with pytest.raises(SourceError) as caught:
        trove.sources().update_lorry("tiny")
    assert str(caught.value) == (
        "sources/all.lorry:1: tiny is not updated, since the archives offer older packages than are"
        f" pinned:\n  {one.name}: 99:1 is pinned, {one.version} is offered\n"
        "The mirror may be behind, or an attacker offers old faults. If it is intended, remove"
        " tiny.lock first."
    )
    assert "99:1" in lock.read_text()


def test_debian_packages_may_be_of_another_architecture(make: Callable[[str], Trove]) -> None:
    trove = make(TINY.replace(", less", "").replace("version:", "architecture: arm64, version:"))
    trove.sources().update_lorry("tiny")
    (one,) = trove.sources().lorries.named("tiny").locked()
    assert one.architecture == "arm64"


# -- apt's entries ---------------------------------------------------------------------------


def test_apt_entries_in_the_one_line_format(tmp_path: Path) -> None:
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


def test_apt_entries_in_the_deb822_format(tmp_path: Path) -> None:
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


def test_apt_entries_of_local_archives_count_if_there_are_no_others(tmp_path: Path) -> None:
    file = tmp_path / "sources.list"
    file.write_text("deb file:/srv/mirror stable main\n")
    assert machine_entries("deb", [file]) == {"sources.list": "deb file:/srv/mirror stable main\n"}


# -- the Python package index ----------------------------------------------------------------

INI = "iniconfig: {{type: pypi, version: {version}, sha256: {sha256}}}\n"


def test_sdist_is_imported_and_updated(make: Callable[[str], Trove]) -> None:
    root = make("{}").root
    offered = {sdist.version: sdist for sdist in offered_sdists("iniconfig", root)}
    assert {"1.0.0", "2.0.0"} <= offered.keys()
    trove = make(INI.format(version="2.0.0", sha256=offered["2.0.0"].sha256))
    source = trove.sources().resolve("upstream:iniconfig", "2.0.0")
    assert (trove.sources().export(source) / "PKG-INFO").read_text().count("Version: 2.0.0") == 1
    trove.sources().update_lorry("iniconfig")
    best = newest([*offered.values()])
    assert best
    assert trove.sources().lorries.named("iniconfig").version == best.version


def test_sdist_that_is_not_offered_is_an_error(make: Callable[[str], Trove]) -> None:
    trove = make(INI.format(version="2.0.0", sha256=NOTHING))
    with pytest.raises(WrongDigest, match=r"iniconfig 2.0.0: the offered file is not the pinned"):
        trove.sources().resolve("upstream:iniconfig", "2.0.0")
    trove = make(INI.format(version="0.0.77", sha256=NOTHING))
    with pytest.raises(MovedError, match=r"pins iniconfig 0.0.77, which the index does not offer"):
        trove.sources().resolve("upstream:iniconfig", "0.0.77")


@pytest.fixture
def index(files: Files, monkeypatch: pytest.MonkeyPatch) -> Files:
    """A local index with a password, which pip is configured to use."""
    monkeypatch.setenv("PIP_INDEX_URL", files.url.replace("//", "//me:secret@") + "/simple")
    return files


def test_python_index_in_html(index: Files, make: Callable[[str], Trove]) -> None:
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
    (sdist,) = offered_sdists("My.Thing", index.folder)
    assert (sdist.version, sdist.sha256) == ("1.0", sha256)
    trove = make(f'my-thing: {{type: pypi, version: "1.0", sha256: {sha256}}}')
    source = trove.sources().resolve("upstream:my-thing", "1.0")
    assert (trove.sources().export(source) / "setup.py").exists()
    assert set(index.authorizations) == {"Basic bWU6c2VjcmV0"}


def test_python_index_in_json(index: Files) -> None:
    listed = [
        {"filename": "x-1.0.tar.gz", "url": "/f/x-1.0.tar.gz", "hashes": {"sha256": NOTHING}},
        {"filename": "x-1.1.zip", "url": "/f/x-1.1.zip", "hashes": {"md5": "1"}},
        {"filename": "x-1.2-py3.whl", "url": "/f/x-1.2-py3.whl", "hashes": {"sha256": NOTHING}},
    ]
    index.page("/simple/x/", "application/vnd.pypi.simple.v1+json", json.dumps({"files": listed}))
    (sdist,) = offered_sdists("x", index.folder)
    assert (sdist.version, sdist.url) == ("1.0", f"{index.url}/f/x-1.0.tar.gz")


def test_python_index_without_the_package_is_an_error(index: Files) -> None:
    with pytest.raises(SourceError, match=r"nothing: cannot be had from the .* index: .*404") as e:
        offered_sdists("nothing", index.folder)
    assert "secret" not in str(e.value)
    index.page("/simple/empty/", "text/html", "")
    with pytest.raises(SourceError, match="has no source distribution of it"):
        offered_sdists("empty", index.folder)


def test_sdist_version_is_in_its_file_name() -> None:
    assert version_in("my_thing-1.0.tar.gz", "My-Thing") == "1.0"
    assert version_in("a-b-1.0-2.zip", "a.b") == "1.0-2"
    assert version_in("a-b-1.0.zip", "a") is None
    assert version_in("a-1.0-py3-none-any.whl", "a") is None
    versions = ["1.9", "1.10", "2.0rc1", "1.10.post1", "1.2"]
    sdists = [Sdist(version, "", NOTHING, {}, None) for version in versions]
    best = newest(sdists)
    assert best
    assert best.version == "1.10.post1"
    assert newest([Sdist("1", "", NOTHING, {}, None, yanked=True)]) is None


@pytest.mark.parametrize("kind", ["html", "json"])
def test_sdist_update_skips_yanked_releases(
    index: Files, make: Callable[[str], Trove], kind: str
) -> None:
    data = {version: tarball({f"x-{version}/v": version.encode()}) for version in ("1.0", "2.0")}
    digests = {version: hashlib.sha256(one).hexdigest() for version, one in data.items()}
    names = {version: f"x-{version}.tar.gz" for version in data}
    for version in data:
        index.put(f"f/{names[version]}", data[version])
    if kind == "html":
        links = (
            f'<a {"data-yanked" * (v == "2.0")} href="/f/{names[v]}#sha256={digests[v]}">x</a>'
            for v in data
        )
        index.page("/simple/x/", "text/html", "".join(links))
    else:
        files = [
            {
                "filename": names[v],
                "url": f"/f/{names[v]}",
                "hashes": {"sha256": digests[v]},
                "yanked": "broken" if v == "2.0" else False,
            }
            for v in data
        ]
        text = json.dumps({"files": files})
        index.page("/simple/x/", "application/vnd.pypi.simple.v1+json", text)
    trove = make("x: {type: pypi}")
    assert trove.sources().update_lorry("x")[-1] == "skipped 2.0: its authors have yanked it"
    assert trove.sources().lorries.named("x").version == "1.0"
    trove.file.write_text(f"x: {{type: pypi, version: '2.0', sha256: {digests['2.0']}}}")
    assert trove.sources().resolve("upstream:x", "2.0"), "what is pinned stays"
    assert "warning: sources/all.lorry:1: x: 2.0 has been yanked" in trove.said
    assert trove.sources().update_lorry("x")[-2:] == [
        "skipped 2.0: its authors have yanked it",
        "skipped 1.0: 2.0 is pinned, which is newer",
    ]


def test_python_index_password_is_sent_to_the_index_only(
    index: Files, make: Callable[[str], Trove], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = tarball({"x-1.0/a": b"1"})
    sha256 = hashlib.sha256(data).hexdigest()
    with Files(tmp_path_factory.mktemp("elsewhere")) as elsewhere:
        url = elsewhere.put("x-1.0.tar.gz", data)
        index.page("/simple/x/", "text/html", f'<a href="{url}#sha256={sha256}">x</a>')
        trove = make(f"x: {{type: pypi, version: '1.0', sha256: {sha256}}}")
        trove.sources().resolve("upstream:x", "1.0")
        assert index.authorizations == ["Basic bWU6c2VjcmV0"]
        assert elsewhere.authorizations == [""]


def test_wheels_are_imported_and_verified(make: Callable[[str], Trove]) -> None:
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
    with pytest.raises(WrongDigest, match=rf"offered: SHA-256 {one.sha256}"):
        trove.sources().resolve("upstream:modules", "1")
