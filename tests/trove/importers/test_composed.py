"""Sources made of several things: patches, components, and archives in archives."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sources_kit import Files, git, outputs_at_once, tarball

from fabric import bounds
from fabric.errors import DefinitionsError, SourceError
from fabric.trove.configured import open_importer
from fabric.trove.importers.download import WrongDigest
from fabric.trove.sources import pins
from fabric.trove.sources.lorries import Lorries
from fabric.trove.sources.resolve import Sources

THING = tarball(
    {
        "thing-1.0/src/main.c": b"int main(void)\n{\n    return 1;\n}\n",
        "thing-1.0/numbers": "".join(f"{number}\n" for number in range(60)).encode(),
        "thing-1.0/link": "/tmp",
    }
)
GMP = tarball({"gmp-6/gmp.h": b"gmp\n", "gmp-6/configure": b"#!/bin/sh\n"}, "xz")


def change(file: str, *lines: str) -> bytes:
    """A patch of one hunk at the beginning of a file; each line has its sign."""
    old, new = (sum(line[0] in signs for line in lines) for signs in (" -", " +"))
    body = "".join(f"{line}\n" for line in lines)
    return f"--- a/{file}\n+++ b/{file}\n@@ -1,{old} +1,{new} @@\n{body}".encode()


RETURN = change("src/main.c", " int main(void)", " {", "-    return 1;", "+    return 0;", " }")


class World:
    """Definitions with lorries, and a trove."""

    def __init__(self, top: Path, files: Files) -> None:
        self.top = top
        self.folder = top / "sources"
        self.folder.mkdir()
        self.files = files
        self.entries: dict[str, dict[str, Any]] = {}

    def lorry(self, name: str, data: bytes = THING, *, pin: bool = True, **more: Any) -> None:
        """Write the lorry of a served tarball.  JSON is YAML."""
        entry = {"type": "tarball", "version": "1.0", **self.served(f"{name}.tar", data, pin=pin)}
        self.entries[name] = {**entry, **more}
        (self.folder / "all.lorry").write_text(json.dumps(self.entries))

    def served(self, name: str, data: bytes, *, pin: bool = True) -> dict[str, str]:
        """URL and digest of a file."""
        sha256 = {"sha256": hashlib.sha256(data).hexdigest()} if pin else {}
        return {"url": self.files.put(name, data), **sha256}

    def write(self, path: str, content: bytes) -> str:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return path

    def sources(self) -> Sources:
        return Sources(self.top / "trove", {}, self.folder, importer=open_importer)

    def tree(self, name: str = "thing") -> dict[str, str]:
        """Path -> content of the imported files, links left out."""
        source = self.sources().resolve(f"upstream:{name}", "1.0")
        top = self.sources().export(source)
        files = (file for file in top.rglob("*") if file.is_file() and not file.is_symlink())
        return {str(file.relative_to(top)): file.read_text() for file in files}

    def refusal(self, name: str = "thing") -> str:
        with pytest.raises(SourceError) as caught:
            self.tree(name)
        assert not self.refs(name)
        return str(caught.value)

    def refs(self, name: str = "thing") -> str:
        bare = self.top / f"trove/git/upstream/{name}.git"
        return git(bare, "for-each-ref") if bare.exists() else ""

    def key(self, name: str = "thing") -> str:
        return Lorries(self.folder).named(name).import_key()


@pytest.fixture
def world(tmp_path: Path, files: Files) -> World:
    return World(tmp_path, files)


# -- patches -----------------------------------------------------------------------------------


def test_patches_are_applied_in_order(world: World) -> None:
    first = world.write("patches/thing/0001-zero.patch", RETURN)
    again = change("src/main.c", " int main(void)", " {", "-    return 0;", "+    return 2;", " }")
    mail = b"From: somebody\n\nWhy\n---\n" + again + change("numbers", "-0", "+zero", " 1")
    second = world.write("patches/thing/0002-two.patch", mail)
    world.lorry("thing", patches=[first, second])
    tree = world.tree()
    assert "return 2;" in tree["src/main.c"]
    assert tree["numbers"].startswith("zero\n1\n")
    assert world.refs().endswith("refs/tags/1.0"), "the tree before the patches has no ref"
    world.lorry("other", patches=[second, first])
    assert "0002-two.patch does not apply: hunk 1 (line 7 of the patch)" in world.refusal("other")


def test_patched_import_is_the_same_everywhere(world: World, tmp_path: Path) -> None:
    world.lorry("thing", patches=[world.write("p.patch", RETURN)])
    commits = outputs_at_once(f"""
        import tempfile
        from pathlib import Path
        from fabric.trove.configured import open_importer
        from fabric.trove.sources.resolve import Sources
        root = Path(tempfile.mkdtemp(dir={str(tmp_path)!r}))
        sources = Sources(root, {{}}, Path({str(world.folder)!r}), importer=open_importer)
        print(sources.resolve("upstream:thing", "1.0").commit)
        """)
    assert len(commits) == 1


def test_patch_applies_where_its_lines_have_moved(world: World) -> None:
    patch = b"--- a/numbers\n+++ b/numbers\n@@ -11,3 +11,3 @@\n 29\n-30\n+thirty\n 31\n"
    world.lorry("thing", patches=[world.write("p.patch", patch)])
    assert "29\nthirty\n31\n" in world.tree()["numbers"]


def test_patch_that_does_not_apply_is_explained(world: World) -> None:
    patch = RETURN + (
        b"--- a/numbers\n+++ b/numbers\n@@ -1,2 +1,3 @@\n 0\n+a half\n 1\n"
        b"@@ -30,3 +31,3 @@\n 29\n-30\n+thirty\n 32\n"
    )
    path = world.write("patches/thing/0001.patch", patch)
    entry = f"""\
thing:
  type: tarball
  version: "1.0"
  url: {world.files.put("thing.tar", THING)}
  sha256: {hashlib.sha256(THING).hexdigest()}
  patches:
  - {path}
"""
    world.write("all.lorry", entry.encode())
    assert world.refusal() == (
        "sources/all.lorry:7: thing: the patch sources/patches/thing/0001.patch does not apply:"
        " hunk 2 (line 15 of the patch) does not fit numbers, which has no such lines near line"
        " 30:\n  | 29\n  | 30\n  | 32\n"
        "Make it anew against this source, or take it out of `patches`."
    )


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (
            change("src/main.c", " int main(void)", " {", "-    return 0;", "+    return 1;", " }"),
            "changes nothing, since the source has its changes already.\nMake it anew",
        ),
        (
            change("thing-1.0/src/main.c", "-x", "+y"),
            "does not apply: the source has no thing-1.0/src/main.c (-p1: paths count without their"
            " first folder).\nMake it",
        ),
        (
            b"--- /dev/null\n+++ b/numbers\n@@ -0,0 +1 @@\n+0\n",
            "does not apply: the source has a numbers already.",
        ),
        (b"", "has no changes: it must be the output of `git diff` or `diff -u`"),
        (b"*** a/numbers\n--- b/numbers\n***************\n*** 1 ****\n! 0\n", "has no changes"),
        (b"--- a/numbers\n+++ b/numbers\n1c\nx\n.\n", "has no changes"),  # a script of ed
        (
            change("src/main.c", " int main(void)", "+# x"),
            "without lines of context at its end, it fits the end of the file only:\n  | int",
        ),
        (RETURN[:-20], "does not apply: corrupt patch at line"),
        (RETURN.replace(b"\n", b"\r\n"), "has lines that end in CRLF: convert it"),
        (
            RETURN.replace(b"1;\n", b"1;\r\n"),
            "no such lines, which end in CRLF in the patch, near line 1:\n",
        ),
        (
            RETURN + b"Binary files a/logo.png and b/logo.png differ\n",
            "names binary files without their contents: use `git diff --binary`",
        ),
    ],
)
def test_useless_patch_is_refused(world: World, patch: bytes, reason: str) -> None:
    world.lorry("thing", patches=[world.write("p.patch", patch)])
    start = "sources/all.lorry:1: thing: the patch sources/p.patch "
    assert world.refusal().startswith(start + reason) or reason in world.refusal()


def test_patch_of_a_file_with_dos_lines_applies(world: World) -> None:
    patch = change("dos", "-one\r", "+two\r")
    world.lorry("thing", tarball({"dos": b"one\r\n"}), patches=[world.write("p.patch", patch)])
    assert world.tree() == {"dos": "two\n"}, "Python reads it so"


def test_patch_makes_and_removes_files(world: World) -> None:
    patch = (
        b"diff --git a/run b/run\nnew file mode 100755\n--- /dev/null\n+++ b/run\n@@ -0,0 +1 @@\n"
        b"+#!/bin/sh\n"
        b"diff --git a/src/main.c b/main.c\nsimilarity index 100%\n"
        b"rename from src/main.c\nrename to main.c\n"
    )
    world.lorry("thing", patches=[world.write("p.patch", patch)])
    assert world.tree().keys() == {"run", "main.c", "numbers"}
    listing = git(world.top / "trove/git/upstream/thing.git", "ls-tree", "1.0")
    assert {line[:6] for line in listing.splitlines()} == {"100644", "100755", "120000"}


def test_patches_belong_to_the_import_key(world: World) -> None:
    world.lorry("thing")
    plain = world.key()
    world.lorry("thing", patches=[])
    assert world.key() == plain
    path = world.write("a.patch", RETURN)
    world.lorry("thing", patches=[path])
    first = world.key()
    other = world.write("b.patch", RETURN)
    world.lorry("thing", patches=[other])
    assert world.key() == first != plain, "names do not count"
    world.write("b.patch", RETURN + b"\n")
    assert world.key() != first


def test_changed_patch_needs_another_tree(world: World) -> None:
    path = world.write("a.patch", RETURN)
    world.lorry("thing", pin=False, patches=[path])
    assert [one.partition(" ")[0] for one in world.sources().update_lorry("thing")] == [
        *("sha256", "tree")
    ]
    assert "return 0" in world.tree()["src/main.c"]
    assert world.sources().update_lorry("thing") == []
    world.write("a.patch", RETURN.replace(b"return 0", b"return 7"))
    with pytest.raises(SourceError) as caught:
        world.tree()
    assert str(caught.value).endswith(
        "\nPatches or components may have changed since the tree was recorded. If that is intended,"
        " `fabric-initiator lorry update thing` records the new tree."
    )
    (line,) = world.sources().update_lorry("thing")
    assert line.startswith("tree ")
    assert "return 7" in world.tree()["src/main.c"]


def test_patches_are_written_into_a_lorry(world: World) -> None:
    text = """\
# ours
thing:
  type: tarball
  version: "1.0"
  url: {url}
  sha256: {sha256}  # of the tarball
other: {{type: git, url: ..}}
"""
    text = text.format(**world.served("thing.tar", THING))
    file = world.folder / "all.lorry"
    file.write_text(text)
    world.write("patches/thing/0001.patch", RETURN)
    world.write("patches/thing/0002.patch", change("numbers", "-0", "+zero", " 1"))
    one, two = "patches/thing/0001.patch", "patches/thing/0002.patch"

    changes = world.sources().save_patches("thing", [one])
    assert changes[0] == f"patches (none) -> {one}"
    assert changes[1].startswith("tree (none) -> ")
    world.sources().save_patches("thing", [one, two])
    tree = world.sources().lorries.named("thing").tree
    assert file.read_text() == text.replace(
        "# of the tarball\n",
        f"# of the tarball\n  tree: {tree}\n  patches:\n  - {one}\n  - {two}\n",
    )
    assert world.tree()["numbers"].startswith("zero")
    with_comment = file.read_text().replace(one, f"{one}  # needed")
    file.write_text(with_comment)
    with pytest.raises(SourceError, match=r"0001\.patch changes nothing, since"):
        world.sources().save_patches("thing", [one, two, one])
    assert file.read_text() == with_comment, "patches that do not apply are not written"
    with pytest.raises(SourceError, match="gives another tree than is recorded"):
        world.sources().save_patches("thing", [one], "ab" * 20)
    assert file.read_text() == with_comment
    world.sources().save_patches("thing", [two])
    assert file.read_text().count("- ") == 1
    world.sources().save_patches("thing", [])
    assert "patches" not in file.read_text()
    with pytest.raises(SourceError, match="other is of type git, which has no patches"):
        world.sources().save_patches("other", [one])


@pytest.mark.parametrize(
    "entry",
    [
        "thing: {{type: tarball, version: '1', url: '{url}', patches: [a.patch]}}",
        '{{"thing": {{"type": "tarball", "version": "1", "url": "{url}"}}}}',
        "thing:\n    type: tarball\n    version: '1'\n    url: {url}\n    patches:\n"
        "        - a.patch # why\n        # end\n    ref: 'x'\n",
    ],
)
def test_patches_are_added_in_every_style(world: World, entry: str) -> None:
    world.write("all.lorry", entry.format(url="http://host/a").encode())
    lorry = Lorries(world.folder).named("thing")
    names = ["a.patch", "b+1.patch", "c=d.patch"]
    pins.write(lorry, lorry.with_patches(names))
    text = (world.folder / "all.lorry").read_text()
    again = Lorries(world.folder).named("thing")
    assert [patch.path for patch in again.patches] == names
    assert ("# why" in entry) == ("# why" in text)


# -- components --------------------------------------------------------------------------------


def test_components_come_into_folders(world: World) -> None:
    world.lorry(
        "thing", components={"gmp": world.served("gmp.tar.xz", GMP), "a/b": {"lorry": "gmp"}}
    )
    world.lorry("gmp", GMP, patches=[world.write("p.patch", change("gmp.h", "-gmp", "+GMP"))])
    tree = world.tree()
    assert tree["gmp/gmp.h"] == "gmp\n"
    assert tree["a/b/gmp.h"] == "GMP\n", "a lorry brings its patches"
    assert tree["src/main.c"]
    ours = change("a/b/gmp.h", "-GMP", "+ours")
    world.lorry(
        "more", components={"a/b": {"lorry": "gmp"}}, patches=[world.write("o.patch", ours)]
    )
    assert world.tree("more")["a/b/gmp.h"] == "ours\n"
    world.lorry("most", components={"x": {"lorry": "more"}})
    assert world.tree("most")["x/a/b/gmp.h"] == "ours\n"


def test_components_belong_to_the_import_key(world: World) -> None:
    def key(**components: Any) -> str:
        world.lorry("thing", components=components)
        return world.key()

    path = world.write("p.patch", change("gmp.h", "-gmp", "+GMP"))
    world.lorry("gmp", GMP, patches=[path])
    gmp = world.served("gmp.tar.xz", GMP)
    plain = key()
    keys = [
        plain,
        key(gmp=gmp),
        key(mpc=gmp),
        key(gmp={**gmp, "inner": "x"}),
        key(gmp={"lorry": "gmp"}),
    ]
    assert len(set(keys)) == len(keys)
    world.write("p.patch", b"another")
    assert key(gmp={"lorry": "gmp"}) not in keys


def test_update_pins_components(world: World) -> None:
    gmp = world.served("gmp.tar.xz", GMP, pin=False)
    world.lorry("gmp", GMP, pin=False)
    world.lorry("thing", pin=False, components={"gmp": gmp, "by": {"lorry": "gmp"}})
    assert "thing has no sha256 and no sha256 of gmp yet; `fab" in world.refusal()
    names = world.sources().lorries.in_order(["thing", "gmp", "gmp"])
    assert names == ["gmp", "gmp", "thing"]
    world.sources().update_lorry("gmp")
    changes = world.sources().update_lorry("thing")
    assert [one.rpartition(" ")[0] for one in changes] == [
        *("sha256 (none) ->", "sha256 of gmp (none) ->", "tree (none) ->")
    ]
    assert world.tree()["gmp/gmp.h"] == "gmp\n"
    assert world.sources().update_lorry("thing") == []
    lorry = world.sources().lorries.named("thing")
    assert lorry.parts["gmp"].sha256 == hashlib.sha256(GMP).hexdigest()

    world.files.put("gmp.tar.xz", THING)
    with pytest.raises(
        WrongDigest, match="thing: component 'gmp': the offered file is not the pin"
    ):
        world.sources().update_lorry("thing")


def test_component_in_block_style_is_pinned(world: World) -> None:
    url = world.files.put("gmp.tar", GMP)
    text = f"""\
thing:
  type: tarball
  version: "1.0"
  url: {world.files.put("thing.tar", THING)}
  components:
    gmp:
      url: {url}  # theirs
      inner: "*.h"
"""
    text = text.replace('      inner: "*.h"\n', "")
    world.write("all.lorry", text.encode())
    world.sources().update_lorry("thing")
    digest = hashlib.sha256(GMP).hexdigest()
    assert (
        f"      url: {url}  # theirs\n      sha256: {digest}\n"
        in (world.folder / "all.lorry").read_text()
    )


def test_component_must_not_hide_files(world: World) -> None:
    gmp = world.served("gmp.tar.xz", GMP)
    world.lorry("thing", components={"src": gmp})
    assert world.refusal() == (
        "sources/all.lorry:1: thing: component 'src' would hide src/main.c, which is in the tree"
        " already: choose another folder"
    )
    world.lorry("thing", components={"numbers/x": gmp})
    assert "would hide numbers, which" in world.refusal()
    world.lorry("thing", components={"link": gmp})
    assert "would hide link, which" in world.refusal(), "not through a symbolic link, either"
    world.lorry("thing", components={"link/x": gmp})
    assert "would hide link, which" in world.refusal()


@pytest.mark.parametrize(
    ("components", "problem"),
    [
        ({"x": {}}, "component 'x' needs either 'url' or 'lorry'"),
        ({"x": {"url": "http://h/x", "lorry": "gmp"}}, "needs either 'url' or 'lorry'"),
        (
            {"x": {"lorry": "gmp", "sha256": "ab" * 32}},
            "'x': unknown field 'sha256'; known are lor",
        ),
        ({"x": {"url": "/x"}}, "component 'x': 'url' must be like https://"),
        ({"x": "ab" * 32}, "component 'x' must be a mapping, not the text"),
        ({"x": {"lorry": "gmq"}}, "'x': there is no lorry gmq; did you mean 'gmp'?"),
        ({"x": {"lorry": "thing"}}, "component 'x': the lorry thing contains this one"),
        ({"x": {"lorry": "loop"}}, "component 'x': the lorry loop contains this one"),
        ({"x": {"lorry": "own"}}, "'x': the lorry own is of type git, and brings no archive"),
        ({"x": {"url": "http://h/x", "inner": "../x"}}, "'inner' must be a path like src/thing-*"),
        *(
            ({path: {"lorry": "gmp"}}, f"component {path!r} must be named by a path like a/b")
            for path in (
                "/x",
                "../x",
                "x/..",
                "a/../b",
                ".",
                "a/./b",
                "a//b",
                "a/",
                "a b",
                "a\\b",
                ".git",
                "a/.GIT/b",
                "",
            )
        ),
    ],
)
def test_wrong_component_is_a_mistake(
    world: World, components: Mapping[str, object], problem: str
) -> None:
    world.lorry("gmp", GMP)
    world.entries["own"] = {"type": "git", "url": ".."}
    world.lorry("loop", components={"y": {"lorry": "thing"}})
    world.lorry("thing", components=components)
    with pytest.raises(DefinitionsError) as caught:
        Lorries(world.folder)
    assert any(problem in str(one) for one in caught.value.problems), caught.value


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"patches": "a.patch"}, "'patches' must be a list, not the text 'a.patch'"),
        ({"patches": [5]}, "'patches': the number 5 must be a path like a/b"),
        ({"patches": ["a", "b", "a"]}, "'patches': a is there twice: it applies only once"),
        *(
            ({"patches": [path]}, f"'patches': {path!r} must be a path like a/b, without .. and")
            for path in ("/etc/passwd", "../a.patch", "a/../../b", "a\nb", "")
        ),
        ({"inner": "/x"}, "'inner' must be a path like"),
        (
            {"type": "git"},
            "thing: a lorry of type git has no 'patches': only tarball, debian-source,"
            " pypi have; commit the change in the repository, or import a release",
        ),
        ({"type": "debian-source", "debian-patches": "yes"}, "or a list of patches, not the text"),
        ({"type": "debian-source", "debian-patches": []}, "not an empty list"),
        (
            {"type": "debian-source", "debian-patches": ["../a"]},
            "'debian-patches': '../a' must be a name like fixes/CVE-*",
        ),
        ({"type": "debian-source", "debian-sha256": "ab" * 32}, "is for 'debian-patches'"),
    ],
)
def test_wrong_patches_are_a_mistake(
    world: World, fields: Mapping[str, object], problem: str
) -> None:
    entry: dict[str, Any] = {"patches": ["a.patch"], **fields}
    world.lorry("thing", **entry)
    with pytest.raises(DefinitionsError) as caught:
        Lorries(world.folder)
    assert any(problem in str(one) for one in caught.value.problems), caught.value


@pytest.mark.bound("SOURCE_PARTS")
def test_components_past_the_bound_are_refused(world: World) -> None:
    """Lorries that double the archives with each level; then a chain, which is deep."""
    for level in range(40):
        name = f"l{level}"
        world.lorry(name, components={x: {"lorry": f"l{level + 1}"} for x in ("a", "b")})
    world.lorry("l40")
    with pytest.raises(DefinitionsError, match="with it there are more than 100 archives, the lim"):
        Lorries(world.folder)
    world.entries.clear()
    for level in range(2000):
        entry = {"type": "tarball", "url": "http://h/x", "version": "1"}
        world.entries[f"l{level}"] = {**entry, "components": {"a": {"lorry": f"l{level + 1}"}}}
    world.lorry("l2000")
    with pytest.raises(DefinitionsError, match="more than 100 archives"):
        Lorries(world.folder)
    world.entries.clear()
    world.lorry(
        "l", components={f"a{n}": {"url": "http://h/x"} for n in range(bounds.SOURCE_PARTS)}
    )
    with pytest.raises(DefinitionsError, match="more than 100 archives"):
        Lorries(world.folder)


# -- archives in archives ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner", ["wrap-1/dist/thing-1.0.tar.gz", "dist/thing-1.0.tar.gz", "dist/thing-*.tar.gz"]
)
def test_inner_archive_is_the_source(world: World, inner: str) -> None:
    wrap = tarball(
        {"wrap-1/dist/thing-1.0.tar.gz": THING, "wrap-1/README": b"no", "wrap-1/x.tgz": b""}
    )
    world.lorry(
        "thing",
        wrap,
        inner=inner,
        components={"sub": {**world.served("wrap.tar", wrap), "inner": inner}},
    )
    world.write("p.patch", RETURN)
    assert world.tree().keys() == {*("src/main.c", "numbers", "sub/src/main.c", "sub/numbers")}
    assert not list((world.top / "trove").glob("inner-*"))


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        ("none.tar", "no file in it fits 'inner: none.tar'; archives in it: a.tar, b.tar.xz"),
        ("*", "more than one file fits 'inner: *': wrap/README, wrap/a.tar, wrap/b.tar.xz"),
        ("README", "wrap/README: this archive cannot be read: "),
        ("l.tar", "wrap/l.tar is a link, and no archive"),
        ("hard", "wrap/hard is a link, and no archive"),
    ],
)
def test_wrong_inner_archive_is_an_error(world: World, inner: str, reason: str) -> None:
    hard = tarfile.TarInfo()
    hard.type, hard.linkname = tarfile.LNKTYPE, "wrap/a.tar"
    members: dict[str, bytes | str | tarfile.TarInfo] = {
        **{"wrap/b.tar.xz": GMP, "wrap/a.tar": THING, "wrap/README": b"no archive"},
        **{"wrap/l.tar": "a.tar", "wrap/hard": hard},
    }
    wrap = tarball(members)
    world.lorry("thing", wrap, inner=inner)
    text = world.refusal()
    assert text.startswith("sources/all.lorry:1: thing: ")
    assert reason in text
