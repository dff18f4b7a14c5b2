"""Hostile sources of import chunks: each fails only its own step, with an error that says why."""

from __future__ import annotations

import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard
from building_kit import Kit, base, kit, tools  # noqa: F401 (fixtures)
from deb_kit import ar, deb, directory, hard_link, lines, lorry, member, packed, symlink, tar

from fabric import bounds
from fabric.errors import BuildFailed

HEAD = "evil_1_all.deb: this package cannot be unpacked"
CONTROL = ("control.tar.xz", lzma.compress(tar()))
BINARY = ("debian-binary", b"2.0\n")
#: The size of a member, by its header alone: 60 GiB.
HUGE = 60 << 30


def raw(**fields: Any) -> bytes:
    """A package whose only member has a header with these fields, and no contents."""
    info = tarfile.TarInfo("./it")
    for field, value in fields.items():
        setattr(info, field, value)
    return packed(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def pax(**headers: str) -> bytes:
    """A package with a member that has these extended headers."""
    info = tarfile.TarInfo("./it")
    info.pax_headers = dict(headers)
    return packed(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))


def sized(size: str) -> bytes:
    """A package whose member says that it is so large."""
    whole = ar(BINARY, ("data.tar", tar(member("./it"))))
    return whole.replace(b"10240     `", f"{size:<10}`".encode())


class Case(NamedTuple):
    """A package, and the whole error after its name."""

    name: str
    package: bytes | Callable[[], bytes]
    message: str


CASES = [
    # -- paths
    Case(
        "above",
        deb(member("./a/../../it")),
        " at ./a/../../it: ./a/../../it leads out of the package",
    ),
    Case("absolute", deb(member("/etc/it")), " at /etc/it: /etc/it leads out of the package"),
    Case("link above", deb(hard_link("./it", "../it")), " at ./it: ../it leads out of the package"),
    Case(
        "absolute link",
        deb(hard_link("./it", "/etc/passwd")),
        " at ./it: /etc/passwd leads out of the package",
    ),
    Case("zero in a path", pax(path="a\0b"), " at a\0b: there is a zero byte in its name"),
    Case(
        "long path",
        deb(member("x/" * 1100)),
        f" at {'x/' * 50}...{'/x' * 7}/: its path has more than 2,048 bytes",
    ),
    Case("long name", deb(member("x" * 256)), f" at {'x' * 100}...{'x' * 15}: File name too long"),
    Case(
        "long path through links",
        deb(directory("y/" * 1000), symlink("s", "y/" * 1000), member("s/" + "z/" * 100 + "it")),
        f"/{'y/' * 30}... is a path of more than 2048 bytes, and no artifact may hold one",
    ),
    Case(
        "longer path through links",
        deb(directory("y/" * 1000), symlink("s", "y/" * 1000), member("s/" + "z/" * 1020 + "it")),
        f" at s/{'z/' * 49}...{'/z' * 6}/it: File name too long",
    ),
    Case(
        "link in a circle",
        deb(symlink("./a", "b"), symlink("./b", "a"), member("./a/it")),
        "Too many levels of symlinks at /a",
    ),
    # -- types
    Case(
        "device",
        deb(member("./sda", type=tarfile.BLKTYPE)),
        " at ./sda: it is a device, and a chunk makes those by `devices`",
    ),
    Case(
        "terminal",
        deb(member("./tty", type=tarfile.CHRTYPE)),
        " at ./tty: it is a device, and a chunk makes those by `devices`",
    ),
    Case("volume", raw(type=b"V"), " at ./it: its type is b'V', which no package has"),
    Case(
        "sparse",
        raw(type=tarfile.GNUTYPE_SPARSE, size=HUGE),
        ": './it' is a sparse file, which is not supported",
    ),
    # -- links
    Case(
        "link to nothing",
        deb(hard_link("./it", "./gone")),
        " at ./it: it is a hard link to /gone, and no file before it has that name",
    ),
    Case(
        "link to itself",
        deb(member("./it"), hard_link("./it", "./it")),
        " at ./it: it is a hard link to /it, and no file before it has that name",
    ),
    Case(
        "link to a folder",
        deb(directory("./d"), hard_link("./it", "./d")),
        " at ./it: it is a hard link to /d, and no file before it has that name",
    ),
    Case(
        "link to the root",
        deb(hard_link("./it", "./")),
        " at ./it: it is a hard link to /, and no file before it has that name",
    ),
    Case(
        "link of no text",
        raw(type=tarfile.SYMTYPE),
        " at ./it: it is a symbolic link, and its target is no path",
    ),
    Case(
        "long link",
        deb(symlink("./it", "x" * 4096)),
        " at ./it: it is a symbolic link, and its target is no path",
    ),
    # -- sizes
    Case("cut file", raw(size=HUGE), " at ./it: unexpected end of data"),
    Case(
        "too large",
        raw(size=65 << 30),
        " at ./it: with it the files have 69,793,218,560 bytes, and an artifact may have"
        " 68,719,476,736",
    ),
    Case("negative", raw(size=-5), " at ./it: it has -5 bytes"),
    Case(
        "large header",
        pax(comment="x" * (bounds.ARCHIVE_HEADER + 1)),
        ": an extended header has 1,048,594 bytes, and the limit is 1,048,576",
    ),
    # -- the format
    Case("empty", b"", ": it is not a Debian package"),
    Case("no package", b"PK\3\4" * 100, ": it is not a Debian package"),
    Case("cut head", ar(BINARY)[:50], ": it ends early"),
    Case("cut at a member", ar(BINARY, CONTROL), ": it ends early"),
    Case("cut", deb(member("./it", os.urandom(100_000)))[:-50_000], ": it ends early"),
    Case(
        "version 3",
        ar(("debian-binary", b"3.0\n"), CONTROL),
        ": it is not a Debian package of version 2",
    ),
    Case("no version", ar(CONTROL), ": it is not a Debian package of version 2"),
    Case("no size", sized("-1"), ": it is not a Debian package"),
    Case("size of no number", sized("1_0"), ": it is not a Debian package"),
    Case("size past the end", sized("9999999999"), ": it ends early"),
    Case("only control", ar(BINARY, *[CONTROL] * 20), ": none of its first 16 members is data.tar"),
    Case(
        "packed otherwise",
        ar(BINARY, CONTROL, ("data.tar.lz4", b"x")),
        ": its files are packed as '.lz4'; known are .xz, .zst and .gz",
    ),
    Case("no archive", packed(b"x" * 2000), ": invalid header"),
    Case(
        "archive without an end",
        packed(tar(member("./it"))[:512], ".zst"),
        " at ./it: it ends early",
    ),
    Case("empty archive", packed(b"", ".zst"), ": it ends early"),
    Case(
        "no xz", ar(BINARY, ("data.tar.xz", b"x" * 100)), ": Input format not supported by decoder"
    ),
    Case(
        "no zst",
        ar(BINARY, ("data.tar.zst", b"x" * 100)),
        ": zstd decompress error: Unknown frame descriptor",
    ),
    Case("no gz", ar(BINARY, ("data.tar.gz", b"x" * 100)), ": Not a gzipped file (b'xx')"),
    Case(
        "cut zst",
        ar(
            BINARY,
            ("data.tar.zst", zstandard.compress(tar(member("./it", os.urandom(9000))))[:5000]),
        ),
        ": it ends early",
    ),
    Case(
        "cut gz",
        ar(BINARY, ("data.tar.gz", gzip.compress(tar(member("./it", os.urandom(9000))))[:5000])),
        ": Compressed file ended before the end-of-stream marker was reached",
    ),
]


@pytest.mark.bound("DEB_MEMBERS")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_package_fails_only_its_own_step(kit: Kit, case: Case) -> None:  # noqa: F811
    name = "evil_1_all.deb"
    package = case.package if isinstance(case.package, bytes) else case.package()
    source = kit.tree(**lorry({name: package}))
    job = kit.chunk(mode="import", staged=(), source=source)
    with pytest.raises(BuildFailed) as caught:
        kit.build(job)
    message = case.message if case.message[0] not in ": " else HEAD + case.message
    assert str(caught.value) == message
    assert kit.store.manifest(job.key) is None
    assert list((kit.root / "work/failed").iterdir()), "inside nothing but the chunk's own files"
    kit.build(kit.chunk("plain", build=["echo well"]))
    kit.workspace.close(patience=100)
    assert not list((kit.workspace.root / "tmp").iterdir()), "all of it can be deleted"


@pytest.mark.parametrize("suffix", [".xz", ".zst"])
def test_package_that_takes_much_memory_to_unpack(kit: Kit, suffix: str) -> None:  # noqa: F811
    """The dictionary of xz, and the window of zstd, take memory before the first byte."""
    if suffix == ".xz":
        made = lzma.compress(tar(), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 24}])
        block = made[12:].index(b"\x21\x01") + 14  # the id and size of the filter's properties
        head = bytearray(made[12 : 12 + (made[12] + 1) * 4])
        head[block - 12] = 40  # 4 GiB
        head[-4:] = zlib.crc32(head[:-4]).to_bytes(4, "little")
        made = made[:12] + bytes(head) + made[12 + len(head) :]
    else:
        parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
        maker = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        made = maker.compress(tar()) + maker.flush()
    package = ar(BINARY, (f"data.tar{suffix}", made))
    source = kit.tree(**lorry({"a.deb": package}))
    with pytest.raises(BuildFailed) as caught:
        kit.build(kit.chunk(mode="import", staged=(), source=source))
    assert str(caught.value) == "a.deb: this package cannot be unpacked: " + (
        "Memory usage limit exceeded"
        if suffix == ".xz"
        else "zstd decompress error: Frame requires too much memory for decoding"
    )


@pytest.mark.bound("PACKAGES_TABLE")
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "x" * (bounds.PACKAGES_TABLE + 1),
            "packages.tsv: it has more than 8,388,608 bytes",
        ),
        (
            b"\xff",
            "packages.tsv: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
        (lines("gone.deb"), "packages.tsv lists gone.deb, which is not a file of the source tree"),
        (lines("link.deb"), "packages.tsv lists link.deb, which is not a file of the source tree"),
        (
            lines("folder.deb"),
            "packages.tsv lists folder.deb, which is not a file of the source tree",
        ),
        *(
            (
                lines("a.deb") + line,
                "packages.tsv:2: not a line of a lorry of type debian-packages: name, version,"
                " architecture, SHA-256, size and file name, with tabs between them",
            )
            for line in ("x", lines("../a.deb"), lines("/etc/passwd.deb"), lines(".deb"), "\n")
        ),
    ],
)
def test_hostile_list_of_packages(kit: Kit, table: str | bytes, message: str) -> None:  # noqa: F811
    source = kit.tree(**{"packages.tsv": table, "a.deb": deb()})
    tree = kit.sources.trees[source.tree]
    (tree / "link.deb").symlink_to(tree / "a.deb")
    (tree / "folder.deb").mkdir()
    with pytest.raises(BuildFailed) as caught:
        kit.build(kit.chunk(mode="import", staged=(), source=source))
    assert str(caught.value) == message


def test_packages_of_too_many_files(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Files count also if they replace each other, and all packages count together."""
    monkeypatch.setattr(bounds, "ARTIFACT_FILES", 10)
    source = kit.tree(**lorry(dict.fromkeys(("a.deb", "b.deb"), deb(*[member("./it")] * 5))))
    with pytest.raises(BuildFailed) as caught:
        kit.build(kit.chunk(mode="import", staged=(), source=source))
    assert str(caught.value) == (
        "b.deb: this package cannot be unpacked at ./it: with it the packages have more than 10"
        " files, and an artifact may not"
    )


def test_hostile_package_writes_nowhere_else(kit: Kit) -> None:  # noqa: F811
    """Links are followed inside of the tree that is made, and never by the kernel."""
    host = kit.root / "host"
    host.mkdir()
    (host / "precious").write_text("precious")
    package = deb(
        symlink("./out", str(host)),
        symlink("./up", "../" * 30 + str(host)[1:]),
        member("./out/new", b"x"),
        member("./up/precious", b"x"),
        hard_link("./same", "./out/new"),
        symlink("./file", str(host / "precious")),
        hard_link("./twin", "./file"),
        member("./file", b"x"),
    )
    source = kit.tree(**lorry({"a.deb": package}))
    job = kit.chunk(mode="import", staged=(), source=source)
    kit.build(job)
    assert [path.name for path in host.iterdir()] == ["precious"]
    assert (host / "precious").read_text() == "precious"
    layer = kit.workspace.root / "layers" / job.key
    inside = layer / str(host)[1:]
    assert {path.name: path.read_text() for path in inside.iterdir()} == {
        "new": "x",
        "precious": "x",
    }
    assert (layer / "file").read_text() == "x"
    assert Path(layer / "twin").is_symlink()
