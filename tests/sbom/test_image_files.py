"""The files of an image: their digests, the chunks they come from, and their forms in documents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import sbom_kit as kit
from msgspec.structs import replace

from fabric import bounds
from fabric.building.archive import DIRECTORY, FILE, HARD_LINK, SYMLINK, Entry, pack
from fabric.commands.shared.bills import written
from fabric.errors import FabricError
from fabric.jobs import Artifact, Blob, Manifest
from fabric.sbom.bill import Bill, ImageFile
from fabric.sbom.image_files import files_of
from fabric.trove.artifacts.store import Store

EACH = pytest.mark.parametrize("form", ["spdx-json", "spdx-2.3-json", "cyclonedx-json"])


def file(name: bytes, data: bytes) -> Entry:
    return Entry(name, FILE, size=len(data), data=data)


class Shelf:
    """A store with archives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(str(folder / "store"), folder / "tmp")
        self._count = 0

    def put(self, *entries: Entry) -> Blob:
        self._count += 1
        packed = pack(sorted(entries), self.folder / "spill")
        artifact = (Artifact("a-misc", packed.blob),)
        key = kit.sha(self._count)
        manifest = Manifest(key=key, kind="chunk", name="a", arch="x", artifacts=artifact)
        self.store.put(manifest, {packed.blob.sha256: packed.content})
        return packed.blob

    def files(self, system: Blob, **chunks: Blob) -> dict[str, ImageFile]:
        parts = [(name, kit.sha(1), blob) for name, blob in chunks.items()]
        found = files_of(self.store, (kit.sha(1), system), parts)
        assert [one.path for one in found] == sorted(one.path for one in found)
        return {one.path: one for one in found}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_file_comes_from_the_chunk_that_put_these_bytes_there(shelf: Shelf) -> None:
    one, two, other = file(b"etc/one", b"1"), file(b"etc/two", b"2"), file(b"etc/two", b"3")
    made = file(b"etc/made", b"4")
    a, b = shelf.put(one, two), shelf.put(other)
    found = shelf.files(shelf.put(one, other, made), a=a, b=b)
    assert {path: each.chunk for path, each in found.items()} == {
        "etc/one": "a",
        "etc/two": "b",
        "etc/made": "",
    }
    assert found["etc/two"].sha256 == hashlib.sha256(b"3").hexdigest()
    assert found["etc/two"].sha1 == hashlib.sha1(b"3", usedforsecurity=False).hexdigest()
    changed = shelf.files(shelf.put(one, two), a=a, b=b)
    assert changed["etc/two"].chunk == "", "that of b covers that of a, and is not there"


def test_regular_files_alone_are_listed(shelf: Shelf) -> None:
    entries = (
        Entry(b"usr", DIRECTORY),
        file(b"usr/a", b"a"),
        Entry(b"usr/b", HARD_LINK, link=b"usr/a"),
        Entry(b"usr/c", SYMLINK, link=b"a"),
    )
    blob = shelf.put(*entries)
    found = shelf.files(blob, chunk=blob)
    assert found.keys() == {"usr/a", "usr/b"}
    assert found["usr/b"].sha256 == hashlib.sha256(b"a").hexdigest()
    assert found["usr/b"].chunk == "chunk"


def test_a_chunk_may_name_folders_as_before_they_were_merged(shelf: Shelf) -> None:
    found = shelf.files(shelf.put(file(b"usr/bin/a", b"a")), chunk=shelf.put(file(b"bin/a", b"a")))
    assert found["usr/bin/a"].chunk == "chunk"


def test_names_that_are_no_text_stay_different(shelf: Shelf) -> None:
    found = files_of(
        shelf.store, (kit.sha(1), shelf.put(file(b"\xff", b""), file(rb"\xff", b""))), []
    )
    assert [one.path for one in found] == [r"\xff", r"\xff"]
    assert len({one.ref for one in found}) == 2


@pytest.mark.bound("SBOM_FILES")
def test_an_sbom_lists_so_many_files(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = shelf.put(file(b"a", b""), file(b"b", b""))
    monkeypatch.setattr(bounds, "SBOM_FILES", 2)
    assert len(shelf.files(blob)) == 2
    monkeypatch.setattr(bounds, "SBOM_FILES", 1)
    with pytest.raises(FabricError, match="more than 1 files, the limit of an SBOM with --files"):
        shelf.files(blob)


# -- documents ---------------------------------------------------------------------------------


def bill(root: Path) -> Bill:
    """A bill with files; one has the name of a component's ref, others are hostile."""
    chunks = {
        "usr/lib/libz.so": "zlib",
        "zlib": "zlib",
        "etc/<b>\x1b\u202e": "",
        "gcc/zlib": "libc",
    }
    files = tuple(
        ImageFile(path, hashlib.md5(path.encode()).hexdigest(), kit.sha(n), f"{n:040x}", chunk)
        for n, (path, chunk) in enumerate(chunks.items(), 500)
    )
    return replace(kit.bill(root), files=files)


def listed(form: str, data: Any) -> dict[str, tuple[str, str]]:
    """Path -> SHA-256, and the name of what contains it."""
    if form == "cyclonedx-json":
        return {
            one["name"]: (one["hashes"][0]["content"], each["name"])
            for each in (data["metadata"]["component"], *data["components"])
            for one in each.get("components", ())
        }
    if form == "spdx-2.3-json":
        names = {one["SPDXID"]: one["name"] for one in data["packages"]}
        inside = {
            file: names[one["SPDXID"]]
            for one in data["packages"]
            for file in one.get("hasFiles", ())
        } | {
            one["relatedSpdxElement"]: names[one["spdxElementId"]]
            for one in data["relationships"]
            if one["relationshipType"] == "CONTAINS"
        }
        return {
            one["fileName"].removeprefix("."): (
                {each["algorithm"]: each["checksumValue"] for each in one["checksums"]}["SHA256"],
                inside[one["SPDXID"]],
            )
            for one in data["files"]
        }
    by_id = {one["spdxId"]: one for one in data["@graph"] if "spdxId" in one}
    where = {
        to: by_id[one["from"]]["name"]
        for one in by_id.values()
        if one.get("relationshipType") == "contains"
        for to in one["to"]
    }
    return {
        one["name"]: (one["verifiedUsing"][0]["hashValue"], where[id])
        for id, one in by_id.items()
        if one["type"] == "software_File" and id in where
    }


@EACH
def test_documents_with_files_are_valid(tmp_path: Path, form: str) -> None:
    made = bill(tmp_path / "a")
    document = written(made, form)
    assert kit.problems(form, document, tmp_path) == []
    assert document == written(bill(tmp_path / "b"), form)
    assert document.isascii()
    found = listed(form, json.loads(document))
    names = {"": "s", "zlib": "zlib", "libc": "libc"}
    assert found == {f"/{one.path}": (one.sha256, names[one.chunk]) for one in made.files}


@EACH
def test_files_are_left_out_by_default(tmp_path: Path, form: str) -> None:
    document = written(kit.bill(tmp_path), form).decode()
    assert '"file"' not in document
    assert "SPDXRef-file-" not in document
    assert "#path-" not in document


def test_the_code_of_a_package_in_spdx_2_is_that_of_its_files(tmp_path: Path) -> None:
    data = json.loads(written(bill(tmp_path), "spdx-2.3-json"))
    [zlib] = [one for one in data["packages"] if one["SPDXID"] == "SPDXRef-c-zlib"]
    code = hashlib.sha1(f"{500:040x}{501:040x}".encode(), usedforsecurity=False).hexdigest()
    assert zlib["packageVerificationCode"]["packageVerificationCodeValue"] == code
    assert zlib["filesAnalyzed"]


def test_all_that_tr_03183_requires_is_there_with_files(tmp_path: Path) -> None:
    found = kit.bsi(written(bill(tmp_path / "a"), "spdx-json"), tmp_path)
    further = ("(Warning)", "(Optional)")
    assert all(passed for name, passed in found.items() if not name.endswith(further)), found
