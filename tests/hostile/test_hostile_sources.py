"""Hostile archives, servers and indexes: each fails only its own import, with a clear error."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fabric import bounds
from fabric.digest import Digest
from fabric.errors import SourceError
from fabric.host.cancel import CancelToken
from fabric.trove.configured import open_importer
from fabric.trove.importers import archive
from fabric.trove.importers.apt import Apt
from fabric.trove.importers.download import Downloads, WrongDigest, fetch_text
from fabric.trove.sources.resolve import Sources

SHOWN = "thing.tar"


# -- archives --------------------------------------------------------------------------------


def tar(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=format) as made:
        for info, data in entries:
            made.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def file(name: str, data: bytes = b"x", **more: str) -> tuple[tarfile.TarInfo, bytes]:
    """A member, with pax headers."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.pax_headers = more
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that claims a size, without the content."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def zipped(name: str, data: bytes = b"x", mode: int = 0o644) -> bytearray:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as made:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        made.writestr(info, data)
    return bytearray(raw.getvalue())


def encrypted() -> bytes:
    data = zipped("a")
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.find(mark) + at] |= 1
    return bytes(data)


def exotic() -> bytes:
    data = zipped("a")
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.find(mark) + at] = 99
    return bytes(data)


def large_in_zip(size: int) -> bytes:
    """A member that claims to be larger than it is."""
    data = zipped("big", b"0" * 1000)
    struct.pack_into("<I", data, data.find(b"PK\1\2") + 24, min(size, 0xFFFFFFFE))
    return bytes(data)


def many_in_zip() -> bytes:
    """The directory claims to be as large as that of too many members."""
    data = zipped("a")
    struct.pack_into("<I", data, data.find(b"PK\5\6") + 12, 46 * (bounds.TREE_ENTRIES + 1))
    return bytes(data)


def many_in_zip64() -> bytes:
    data = zipped("a")
    at = data.find(b"PK\5\6")
    record = b"PK\6\6" + bytes(36) + struct.pack("<QQ", 46 * (bounds.TREE_ENTRIES + 1), 0)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, at, 1)
    struct.pack_into("<I", data, at + 12, 0xFFFFFFFF)
    return bytes(data[:at]) + record + locator + bytes(data[at:])


def much_memory() -> bytes:
    """An .xz file whose dictionary is larger than what is allowed."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": bounds.ARCHIVE_MEMORY + (1 << 20)}]
    with_small = lzma.compress(tar(file("a")), filters=[{"id": lzma.FILTER_LZMA2}])
    del filters
    # the size of the dictionary is one byte of the block's header, which has a checksum
    head = bytearray(with_small[12 : 12 + (with_small[12] + 1) * 4])
    head[4] = 39  # 3 GiB
    head[-4:] = struct.pack("<I", zlib.crc32(head[:-4]))
    return with_small[:12] + bytes(head) + with_small[12 + len(head) :]


DEEP = "/".join(["d"] * (bounds.TREE_DEPTH + 1))
LONG = "/".join(["d" * 200] * 18)
MAP: dict[str, Any] = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40)}
SPARSE: dict[str, Any] = {
    **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s"},
    "GNU.sparse.realsize": str(1 << 40),
}

#: Name -> function that makes the archive, words of the error.
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "absolute": (lambda: tar(file("/etc/x")), "refused: its member '/etc/x': it leads out of the"),
    "up": (lambda: tar(file("t/../../x")), "refused: its member 't/../../x': it leads out of the"),
    "hard link up": (
        lambda: tar(file("a"), link("b", "../../etc/shadow", tarfile.LNKTYPE)),
        "refused: its member 'b': it leads out of the archive",
    ),
    "deep": (
        lambda: tar(file(DEEP)),
        f"refused: its member {DEEP[:100] + '...' + DEEP[-15:]!r}: it is more than 200 folders",
    ),
    "long path": (
        lambda: tar(file(LONG)),
        f"refused: its member {LONG[:100] + '...' + LONG[-15:]!r}: its path has more than 3,500",
    ),
    "long name": (
        lambda: tar(file("é" * 128)),
        f"refused: its member {'é' * 100 + '...' + 'é' * 15!r}: a part of its path has more than",
    ),
    "zero byte": (
        lambda: tar(file("a", path="a\0b")),
        "refused: its member 'a\\x00b': there is a zero byte in its name",
    ),
    "time nan": (lambda: tar(file("a", mtime="nan")), "refused: its member 'a': its time is nan"),
    "time inf": (lambda: tar(file("a", mtime="inf")), "refused: its member 'a': its time is inf"),
    "time late": (lambda: tar(file("a", mtime="1e300")), "refused: its member 'a': its time is 1e"),
    "damaged header": (
        lambda: tar(file("a")).replace(b"ustar", b"other") + tar(file("b")),
        "this archive cannot be read: bad checksum",
    ),
    "damaged header further on": (
        lambda: tar(file("a"), file("b")).replace(b"b\0", b"c\0", 1),
        "this archive cannot be read at 'a': bad checksum",
    ),
    "cut in a header": (
        lambda: tar(file("a"), file("b"))[: 2 * 512 + 100],
        "this archive cannot be read at 'a': truncated header",
    ),
    "size endless": (
        lambda: header("big", bounds.SOURCE_SIZE + 1),
        "refused: its member 'big': with it the files have 68,719,476,737 bytes, and the limit is"
        " 68,719,476,736",
    ),
    "sizes together": (
        lambda: header("a", 0) + header("big", bounds.SOURCE_SIZE) + b"\0" * 512,
        "this archive cannot be read at 'big': unexpected end of data",
    ),
    "sparse": (
        lambda: header("s", 5, tarfile.GNUTYPE_SPARSE),
        "this archive cannot be read: 's' is a sparse file, which is not supported",
    ),
    "sparse in pax": (
        lambda: tar(file("s", b"1\n0\n5\n", **SPARSE)),
        "this archive cannot be read: 's' is a sparse file, which is not supported",
    ),
    "sparse map in pax": (
        lambda: tar(file("s", **MAP)),
        "this archive cannot be read: 's' is a sparse file, which is not supported",
    ),
    "header endless": (
        lambda: header("long", bounds.ARCHIVE_HEADER + 1, tarfile.GNUTYPE_LONGNAME),
        "this archive cannot be read: an extended header has 1,048,577 bytes, and the limit is"
        " 1,048,576",
    ),
    "headers in a row": (
        lambda: header("x", 0, tarfile.XHDTYPE) * 5000 + tar(file("a")),
        "this archive cannot be read",
    ),
    "link endless": (
        lambda: tar(link("l", "a" * (bounds.LINK_TARGET + 1))),
        "refused: its member 'l': it is a symbolic link, and its target is no path",
    ),
    "link to nothing": (
        lambda: tar(link("l", "")),
        "refused: its member 'l': it is a symbolic link, and its target is no path",
    ),
    "xz memory": (much_memory, "this archive cannot be read: Memory usage limit exceeded"),
    "zst memory": (
        lambda: b"\x28\xb5\x2f\xfd\x00\xff" + bytes(100),
        "this archive cannot be read",
    ),
    "zip up": (lambda: bytes(zipped("../x")), "refused: its member '../x': it leads out of the"),
    "zip encrypted": (encrypted, "refused: its member 'a': it is encrypted"),
    "zip exotic": (exotic, "this archive cannot be read at 'a': That compression method is not"),
    "zip larger": (
        lambda: large_in_zip(5000),
        "this archive cannot be read at 'big': it ends early",
    ),
    "zip many": (many_in_zip, "refused: it has more than 1,000,000 entries, the limit"),
    "zip many 64": (many_in_zip64, "refused: it has more than 1,000,000 entries, the limit"),
    "zip link endless": (
        lambda: bytes(zipped("l", b"a" * (bounds.LINK_TARGET + 1), 0o120777)),
        "refused: its member 'l': it is a symbolic link, and its target is no path",
    ),
}


@pytest.fixture
def thing(tmp_path: Path) -> Callable[[bytes], Sources]:
    """Makes a trove with a lorry that pins these bytes as upstream:thing 1."""

    def make(data: bytes) -> Sources:
        packed = tmp_path / SHOWN
        packed.write_bytes(data)
        folder = tmp_path / "sources"
        folder.mkdir(exist_ok=True)
        (folder / "thing.lorry").write_text(
            f"thing: {{type: tarball, version: '1', url: 'file://{packed}',"
            f" sha256: {hashlib.sha256(data).hexdigest()}}}\n"
        )
        return Sources(tmp_path / "trove", {}, folder, importer=open_importer)

    return make


@pytest.mark.bound("ARCHIVE_HEADER")
@pytest.mark.bound("ARCHIVE_MEMORY")
@pytest.mark.bound("SOURCE_PATH")
@pytest.mark.bound("SOURCE_NAME")
@pytest.mark.parametrize("case", ARCHIVES)
def test_archive_fails_only_its_own_import(thing: Callable[[bytes], Sources], case: str) -> None:
    make, words = ARCHIVES[case]
    sources = thing(make())
    with pytest.raises(SourceError) as caught:
        sources.resolve("upstream:thing", "1")
    assert words in str(caught.value)
    assert SHOWN in str(caught.value)
    assert sources.repository("upstream:thing").find("1") is None


def test_archive_with_a_negative_size_is_rejected(thing: Callable[[bytes], Sources]) -> None:
    refused = r"thing\.tar: (refused: its member 'a': it has -5 bytes|.* invalid offset)$"
    with pytest.raises(SourceError, match=refused):  # tarfile refuses it by itself in later Pythons
        thing(tar(file("a", size="-5"))).resolve("upstream:thing", "1")


def test_archive_with_too_many_files_is_rejected(
    thing: Callable[[bytes], Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "TREE_ENTRIES", 3)
    honest = tar(*(file(str(number)) for number in range(3)))
    assert thing(honest).resolve("upstream:thing", "1")
    with pytest.raises(SourceError, match="refused: it has more than 3 entries, the limit"):
        thing(tar(*(file(str(number)) for number in range(4)))).resolve("upstream:thing", "1")


def test_archive_that_expands_past_the_bound_is_rejected(
    thing: Callable[[bytes], Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SOURCE_SIZE", 1 << 20)
    packed = zstandard.compress(tar(file("a", bytes(1 << 19)), file("zeros", bytes(1 << 20))))
    with pytest.raises(SourceError, match="its member 'zeros': with it the files have 1,572,864"):
        thing(packed).resolve("upstream:thing", "1")


def test_archive_with_odd_names_and_times_is_imported(tmp_path: Path) -> None:
    """Names and times that occur in real archives."""
    odd = ["a b", "-rf", "é", "\udcff", "a\nb", "a\tb", '"', "\\", "d" * 255, "x/" * 150 + "y"]
    data = tar(*(file(name, mtime="-5") for name in odd))
    (tmp_path / "odd").write_bytes(lzma.compress(data) + lzma.compress(b"") + bytes(4))
    tree = archive.read(tmp_path / "odd", "odd")
    assert [member.path for member in tree.members] == odd
    assert tree.time == 0


# -- downloads -------------------------------------------------------------------------------

NOTHING = Digest("ab" * 32)


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    return Downloads(tmp_path / "downloads", lambda _: None, CancelToken())


@contextmanager
def server(*answers: bytes, then: Callable[[socket.socket], None] | None = None) -> Iterator[str]:
    """Answer one connection after another with these bytes; gives the URL of a file there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                try:
                    peer, _ = listener.accept()
                    with peer:
                        peer.recv(65536)
                        peer.sendall(answer)
                        if then:
                            then(peer)
                except OSError:  # the client has closed the connection
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/thing.tar"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def answer(data: bytes = b"", status: str = "200 OK", **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


@pytest.mark.bound("DOWNLOAD")
def test_download_with_a_length_past_the_bound_is_rejected(downloads: Downloads) -> None:
    with (
        server(answer(b"x" * 100, Content_Length=bounds.DOWNLOAD + 1)) as url,
        pytest.raises(SourceError) as caught,
    ):
        downloads.get(NOTHING, url)
    assert str(caught.value) == "thing.tar: not downloaded: 34.4 GB, and the limit is 34.4 GB"
    assert list(downloads.directory.iterdir()) == []


def test_download_without_end_fails(downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "DOWNLOAD", 10_000_000)

    def forever(peer: socket.socket) -> None:
        while True:
            peer.sendall(bytes(1 << 20))

    with (
        server(answer(), then=forever) as url,
        pytest.raises(SourceError, match=r"thing\.tar: not downloaded: .* and the limit is 0.0 GB"),
    ):
        downloads.get(NOTHING, url)
    assert list(downloads.directory.iterdir()) == []


@pytest.mark.bound("DOWNLOAD_SILENCE")
@pytest.mark.bound("DOWNLOAD_PACE")
@pytest.mark.parametrize("kind", ["silent", "trickling"])
def test_download_from_a_silent_or_slow_server_is_given_up(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(bounds, "DOWNLOAD_SILENCE", 0.2)
    over = threading.Event()

    def slowly(peer: socket.socket) -> None:
        while not over.wait(0.02):
            if kind == "trickling":
                peer.sendall(b"x")

    with server(*[answer()] * 4, then=slowly) as url:
        try:
            with pytest.raises(SourceError, match=r"cannot be downloaded: .*(timed out|too slow)"):
                downloads.get(NOTHING, url)
        finally:
            over.set()


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/"]
)
def test_redirect_to_another_scheme_is_rejected(downloads: Downloads, target: str) -> None:
    with (
        server(answer(status="302 Found", Location=target)) as url,
        pytest.raises(SourceError, match=r"cannot be downloaded|refused: it redirects to"),
    ):
        downloads.get(NOTHING, url)


def test_redirects_in_a_circle_are_rejected(downloads: Downloads) -> None:
    with (
        server(*[answer(status="302 Found", Location="/thing.tar")] * 50) as url,
        pytest.raises(SourceError, match="redirect"),
    ):
        downloads.get(NOTHING, url)


def test_redirect_sends_no_password_to_another_host(downloads: Downloads) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as other:

        def listen() -> None:
            peer, _ = other.accept()
            with peer:
                heard.append(peer.recv(65536))
                peer.sendall(answer(b"x", Content_Length=1))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        elsewhere = f"http://127.0.0.1:{other.getsockname()[1]}/x"
        with server(answer(status="302 Found", Location=elsewhere)) as url:
            downloads.get(
                Digest(hashlib.sha256(b"x").hexdigest()), url, {"Authorization": "Basic secret"}
            )
        thread.join()
    assert heard
    assert b"secret" not in heard[0]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///dev/zero", "file:///dev/zero: cannot be imported: it is not a plain file"),
        ("file:///dev/stdin", "cannot be"),
        ("file:///etc", "cannot be"),
        ("file:///no/such/file", "file:///no/such/file: cannot be downloaded: "),
        ("file://host/x", "file://host/x: a file of another machine: write file:///PATH"),
        ("file:///a%00b", "a file of another machine"),
        ("http://[", "cannot be downloaded"),
        ("http://127.0.0.1:99999999/", "cannot be downloaded"),
    ],
)
def test_download_url_must_be_file_or_server(downloads: Downloads, url: str, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        downloads.get(NOTHING, url)
    assert words in str(caught.value)


def test_download_of_a_pipe_is_rejected(downloads: Downloads, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe: cannot be imported: it is not a plain file"):
        downloads.get(NOTHING, (tmp_path / "pipe").as_uri())


def test_download_with_a_stale_part_starts_again(downloads: Downloads) -> None:
    data = b"right" * 1000
    digest = Digest(hashlib.sha256(data).hexdigest())
    downloads.directory.mkdir()
    (downloads.directory / f"{digest}.part").write_bytes(b"wrong")
    said: list[str] = []
    downloads.progress = said.append
    rest = answer(data[5:], "206 Partial Content", Content_Length=len(data) - 5)
    with server(rest, answer(data, Content_Length=len(data))) as url:
        assert downloads.get(digest, url).read_bytes() == data
    assert "thing.tar: an earlier part does not match the rest: starting again" in said
    with (
        server(answer(b"other", Content_Length=5)) as url,
        pytest.raises(WrongDigest, match=rf"pinned:  SHA-256 {NOTHING}"),
    ):
        downloads.get(NOTHING, url)


def test_download_to_a_full_disk_is_reported(tmp_path: Path) -> None:
    """Neither the cache nor TMPDIR has room; the error says so."""
    mount = tmp_path / "full"
    mount.mkdir()
    (tmp_path / "data").write_bytes(os.urandom(1 << 20))
    code = (
        "import sys; from pathlib import Path; from fabric.digest import Digest\n"
        "from fabric.errors import SourceError\n"
        "from fabric.trove.importers.download import Downloads\n"
        "from fabric.host.cancel import CancelToken\n"
        "downloads = Downloads(Path(sys.argv[1]), print, CancelToken())\n"
        "try: downloads.get(Digest('ab' * 32), sys.argv[2])\n"
        "except SourceError as error: print(error)\n"
    )
    url = (tmp_path / "data").as_uri()
    script = 'mount -t tmpfs -o size=128k none "$1" && exec "$2" -c "$3" "$1" "$4"'
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"),
            *(str(mount), sys.executable, code, url),
        ],
        env={**os.environ, "TMPDIR": str(mount)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == (
        f"{url}: cannot be downloaded: no space left on the disk of {mount};"
        " `fabric-initiator gc` frees some, and --cache or FABRIC_CACHE names another place"
    )


@pytest.mark.bound("INDEX_PAGE")
def test_python_index_page_past_the_bound_is_rejected() -> None:
    size = bounds.INDEX_PAGE + 1
    with (
        server(answer(bytes(size), Content_Type="text/html")) as url,
        pytest.raises(OSError, match="more than 67108864 bytes"),
    ):
        fetch_text(url, {}, None)


@pytest.mark.bound("PACKAGES_OUTPUT")
def test_apt_output_past_the_bound_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "PACKAGES_OUTPUT", 1000)
    apt = Apt(tmp_path, "deb", "amd64", lambda _: None, CancelToken())
    apt.directory.mkdir()
    (apt.directory / "apt.conf").write_text("")
    with pytest.raises(SourceError, match="apt-config prints more than 1,000 bytes"):
        apt._query("apt-config", "dump")


# -- repositories ----------------------------------------------------------------------------


@pytest.mark.bound("REPOSITORY_NAME")
@pytest.mark.bound("REPOSITORY_URL")
@pytest.mark.parametrize(
    "repo",
    [
        "upstream:" + "x" * (bounds.REPOSITORY_NAME + 1),
        "https://host/" + "x" * bounds.REPOSITORY_URL,
        "upstream:../../x",
        "upstream:a.git/objects",
        "../x",
        "./x",
        "ext::sh -c id",
        "ext::id",
        "-x",
        "--upload-pack=id",
        "ssh://-oProxyCommand=id/x",
        "ssh://me@-oProxyCommand=id/x",
        "ssh://-x@host/x",
        "me@-oProxyCommand=id:x",
        "-oProxyCommand=id:x",
        "fd::17/x",
        "file://a\nb",
        "gopher://host/x",
    ],
)
def test_repository_name_past_the_bound_is_rejected(tmp_path: Path, repo: str) -> None:
    sources = Sources(tmp_path / "trove", {}, None)
    with pytest.raises(SourceError, match=r"is no name of a repository|is no URL of a git"):
        sources.resolve(repo, "main")


def test_lorry_folder_that_is_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "sources").symlink_to("sources")
    sources = Sources(tmp_path / "trove", {}, tmp_path / "sources")
    with pytest.raises(SourceError, match="upstream:x: no such repository"):
        sources.resolve("upstream:x", "main")


def test_lorry_url_through_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/loop").symlink_to("loop")
    (tmp_path / "sources/x.lorry").write_text("x: {type: git, url: loop/x}")
    sources = Sources(tmp_path / "trove", {}, tmp_path / "sources", importer=open_importer)
    with pytest.raises(SourceError, match="git cannot fetch from it"):
        sources.resolve("upstream:x", "main")
