"""Artifact stores on servers: access, certificates, broken connections, hung and full servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import child_environment
from servers_kit import Cable, free_port
from small_disk import on_small_disk
from store_kit import Authority, Server, blob, key, nginx, step

from fabric.errors import DamagedError, StoreError
from fabric.trove.artifacts import remote, webdav_lists
from fabric.trove.artifacts.store import Store

MIB = 1024 * 1024
LOGIN = "worker:much secret"
READER = "reader:not so secret"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All stores but those of S3 with Python's HTTP client, too, as where obstore is missing."""
    clients = ["obstore"] if "s3" in metafunc.fixturenames else ["obstore", "python"]
    metafunc.parametrize("client", clients, indirect=True)


@pytest.fixture(autouse=True)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setitem(sys.modules, "obstore", None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A WebDAV server for one test."""
    folder = tmp_path / "server"
    folder.mkdir()
    with nginx(folder, free_port()) as server:
        yield server


@pytest.fixture
def cable(server: Server) -> Iterator[Cable]:
    """A proxy to the server, whose connections can be cut."""
    with Cable(server.port) as cable:
        yield cable


@pytest.fixture
def far(cable: Cable, tmp_path: Path) -> Store:
    """The store behind the proxy."""
    return Store(f"http://127.0.0.1:{cable.port}/a", tmp_path / "scratch")


@pytest.fixture
def near(server: Server, tmp_path: Path) -> Store:
    """The same store without the proxy."""
    return Store(f"{server.url}/a", tmp_path / "another scratch")


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file so large that obstore uploads it in parts."""
    file = tmp_path / "big"
    file.write_bytes(os.urandom(12 * MIB))
    return file


@pytest.mark.bound("DAV_LISTING")
def test_list_that_is_too_long_is_an_error(
    near: Store, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    near.put(*step(1, b"data"))
    monkeypatch.setattr(webdav_lists, "DAV_LISTING", 100)
    if request.node.callspec.params["client"] == "obstore":  # which has no such bound
        assert near.usage().manifests == 1
        return
    with pytest.raises(StoreError, match="a list of a folder has more than 100 bytes"):
        near.usage()
    assert near.has([key(1)]) == {key(1)}


# -- access and certificates -----------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Authority]]:
    """A server with TLS and a password, and the authority of its certificate."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority(folder)
    with nginx(folder, free_port(), tls=authority, login=LOGIN, reader=READER) as server:
        yield server, authority


@pytest.fixture
def password(tmp_path: Path) -> Path:
    (tmp_path / "password").write_text(LOGIN + "\n")
    return tmp_path / "password"


def test_store_over_tls_with_a_password(
    guarded: tuple[Server, Authority], password: Path, tmp_path: Path, big: Path
) -> None:
    server, authority = guarded
    store = Store(server.url, tmp_path / "scratch", ca=authority.file, password=password)
    manifest, files = step(1, big.read_bytes(), b"small")
    files[blob(big.read_bytes()).sha256] = big
    store.put(manifest, files)
    assert store.has([key(1)]) == {key(1)}
    assert store.path(blob(big.read_bytes())).read_bytes() == big.read_bytes()
    assert store.inspect(key(1))
    assert store.usage().manifests == 1


def test_store_rejects_a_wrong_password_and_an_unknown_server(
    guarded: tuple[Server, Authority],
    password: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "RETRIES", 1)
    server, authority = guarded
    scratch, wrong = tmp_path / "scratch", tmp_path / "wrong"
    wrong.write_text("worker:guess")
    other = Authority(tmp_path, "another")
    for store, advice in (
        (Store(server.url, scratch, password=password), "have `artifacts-ca` name"),
        (Store(server.url, scratch, ca=other.file, password=password), "have `artifacts-ca` name"),
        (Store(server.url, scratch, ca=authority.file), "check `artifacts-password`"),
        (Store(server.url, scratch, ca=authority.file, password=wrong), "check `artifacts-pass"),
    ):
        for use in (lambda: store.has([key(1)]), lambda: store.put(*step(1, b"data"))):  # noqa: B023
            with pytest.raises(StoreError) as caught:
                use()
            assert advice in str(caught.value)
            assert "guess" not in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("year", [2020, 2098])
def test_certificate_that_is_not_valid_now_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    monkeypatch.setattr(remote, "RETRIES", 1)
    valid = ("-not_before", f"{year}0101000000Z", "-not_after", f"{year}1231000000Z")
    authority = Authority(tmp_path, valid=valid)
    with nginx(tmp_path, free_port(), tls=authority, login=LOGIN, reader=READER) as server:
        store = Store(server.url, tmp_path / "scratch", ca=authority.file)
        with pytest.raises(StoreError) as caught:
            store.has([key(1)])
    assert "InvalidCertificate" in str(caught.value)
    assert str(caught.value).endswith(
        "; its certificate is not valid at the time that this machine's clock"
        " shows: set the clock if that is wrong, or renew the certificate"
    )


def test_password_for_reading_only_is_reported(
    guarded: tuple[Server, Authority], password: Path, tmp_path: Path
) -> None:
    server, authority = guarded
    url, scratch, only = f"{server.url}/read", tmp_path / "scratch", tmp_path / "only"
    only.write_text(READER)
    builder = Store(url, scratch, ca=authority.file, password=password)
    builder.put(*step(1, b"data"))
    reader = Store(url, scratch, ca=authority.file, password=only)
    assert reader.inspect(key(1))
    builder.use([key(1)])
    builder.flush(60)
    assert reader.used().keys() == {key(1)}
    for use, what in (
        (lambda: reader.gc(set()), "cannot be cleaned: "),
        (lambda: reader.gc(set(), now=time.time), "cannot be cleaned: "),  # as far as to delete
        (lambda: reader.remove([key(1)]), "cannot be cleaned: "),
        (lambda: reader.put(*step(2, b"more")), "chunk-2 cannot be stored: "),
    ):
        with pytest.raises(StoreError) as caught:
            use()
        assert str(caught.value).startswith(f"{url}: {what}")
        assert str(caught.value).endswith(
            "403 Forbidden; the store refuses to store and to delete with this password:"
            " `artifacts-password` (or FABRIC_ARTIFACTS_PASSWORD) must name a file with the"
            " password of one who may"
        )
    assert builder.usage().manifests == 1
    assert builder.gc(set()).manifests == 1


def test_s3_rejects_a_wrong_secret(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3, "AWS_SECRET_ACCESS_KEY": "guess"}.items():
        monkeypatch.setenv(name, value)
    store = Store("s3://artifacts/refused", tmp_path)
    for use in (lambda: store.has([key(1)]), lambda: store.put(*step(1, b"data"))):
        with pytest.raises(StoreError, match="; check the credentials in the environment"):
            use()


def test_store_reports_unreadable_files_of_settings(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none: cannot be read: No such file.*`artifacts-ca`"):
        Store("https://127.0.0.1/", tmp_path, ca=tmp_path / "none")
    with pytest.raises(StoreError, match="`artifacts-password`"):
        Store("https://127.0.0.1/", tmp_path, password=tmp_path)
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")
    with pytest.raises(StoreError, match="cannot be used as an artifact store"):
        Store("https://127.0.0.1/", tmp_path, ca=rubbish)


# -- broken connections ----------------------------------------------------------------------


def test_download_resumes_after_a_broken_connection(
    far: Store, near: Store, cable: Cable, big: Path
) -> None:
    data = big.read_bytes()
    near.put(*step(1, data))
    cable.after, cable.breaks = 3 * MIB, 3
    assert far.path(blob(data)).read_bytes() == data
    assert cable.cut == 3
    assert cable.passed < 2 * len(data), "never from the start"


def test_download_that_always_breaks_ends(
    near: Store, cable: Cable, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = big.read_bytes()
    near.put(*step(1, data))
    monkeypatch.setattr(remote, "RETRIES", 2)
    far = Store(f"http://127.0.0.1:{cable.port}/a", tmp_path / "scratch")
    cable.after, cable.breaks = MIB // 4, 1000
    with pytest.raises(StoreError):
        far.path(blob(data))
    assert cable.cut < 10


def test_upload_is_retried_if_it_breaks(far: Store, near: Store, cable: Cable, big: Path) -> None:
    manifest, files = step(1, big.read_bytes())
    files[blob(big.read_bytes()).sha256] = big
    cable.up, cable.after, cable.breaks = True, 2 * MIB, 2
    far.put(manifest, files)
    assert cable.cut == 2
    assert near.inspect(key(1))


def test_upload_that_is_slow_is_not_given_up(
    far: Store, near: Store, cable: Cable, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE", 1)
    manifest, files = step(1, big.read_bytes())
    files[blob(big.read_bytes()).sha256] = big
    cable.rate = 4 * MIB
    Store(far.url, near.copies.folder.parent).put(manifest, files)
    assert near.inspect(key(1))


def test_request_waits_for_a_server_that_restarts(tmp_path: Path) -> None:
    """A request made before the server runs succeeds."""
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    store = Store(f"http://127.0.0.1:{port}/a", tmp_path / "scratch")
    putting = threading.Thread(target=lambda: store.put(*step(1, b"data")))
    putting.start()
    time.sleep(0.5)
    with nginx(folder, port):
        putting.join(60)
        assert store.inspect(key(1))


def test_request_that_hangs_ends(far: Store, cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENCE", 0.3)
    monkeypatch.setattr(remote, "PATIENCE", 1)
    store = Store(far.url, far.copies.folder.parent)
    cable.stalls = True
    for use in (
        lambda: store.has([key(1)]),
        lambda: store.put(*step(1, b"x")),
        lambda: store.path(blob(b"x")),
        lambda: store.gc(set()),
    ):
        with pytest.raises(StoreError, match=r"check that the server is up"):
            use()
    assert not list(far.copies.folder.parent.rglob("*fetch*"))


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.gc(set()),
        lambda store: store.usage(),
        lambda store: store.put(*step(1, b"data")),
        lambda store: store.reserve([key(1)]).__enter__(),
    ],
    ids=["gc", "usage", "put", "reserve"],
)
def test_request_that_hangs_can_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Store], object]
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 1)  # once it is over
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def interrupt() -> None:
            asked, _ = silent.accept()
            with asked:
                os.kill(os.getpid(), signal.SIGINT)
                ended.wait()

        ended = threading.Event()
        user = threading.Thread(target=interrupt)
        user.start()
        store = Store(f"http://127.0.0.1:{silent.getsockname()[1]}/a", tmp_path)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            use(store)
        took = time.monotonic() - began
        ended.set()
        user.join()
    assert took < 20, "it was only heeded when the server had its time"


def test_upload_is_all_or_nothing(server: Server, cable: Cable, tmp_path: Path, big: Path) -> None:
    """A process killed during an upload leaves nothing that readers see."""
    cable.rate = MIB
    code = f"""
        import sys
        from pathlib import Path
        from store_kit import blob, step
        from fabric.trove.artifacts.store import Store
        big = Path({str(big)!r})
        manifest, files = step(1, big.read_bytes())
        files[blob(big.read_bytes()).sha256] = big
        Store("http://127.0.0.1:{cable.port}/a", Path({str(tmp_path)!r}, "s")).put(manifest, files)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, env=child_environment()) as writer:
        until = time.monotonic() + 60
        while not (under_way := [f for f in (server.data / "tmp").rglob("*") if f.is_file()]):
            assert time.monotonic() < until
            time.sleep(0.02)
        writer.kill()
    assert under_way
    near = Store(f"{server.url}/a", tmp_path / "scratch")
    assert near.has([key(1)]) == set()
    with pytest.raises(DamagedError, match="it is not there"):
        near.read(blob(big.read_bytes()))


# -- concurrent use --------------------------------------------------------------------------


def test_upload_of_one_artifact_by_many_is_whole(server: Server, tmp_path: Path, big: Path) -> None:
    data = big.read_bytes()
    stores = [Store(f"{server.url}/a", tmp_path / f"scratch-{number}") for number in range(4)]
    threads = [
        threading.Thread(target=store.put, args=step(1, data, b"%d" % number))
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].inspect(key(1)), "one of them, and whole"


def test_bring_downloads_blobs_together_and_once(near: Store) -> None:
    contents = [bytes([number]) * MIB for number in range(8)]
    near.put(*step(1, *contents))
    wanted = [(key(1), blob(data)) for data in contents]
    told: list[tuple[int, int]] = []
    Store(near.url, near.copies.folder.parent / "other").bring(
        wanted, moved=lambda *n: told.append(n)
    )
    assert told == [(number * MIB, 8 * MIB) for number in range(9)]
    threads = [threading.Thread(target=near.bring, args=(wanted,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(file.stat().st_size for file in near.copies.folder.iterdir()) == [MIB] * 8
    for data in contents:
        assert near.path(blob(data)).read_bytes() == data
    with pytest.raises(DamagedError, match="it is not there") as caught:
        near.bring([*wanted, (key(2), blob(b"lost"))])
    assert caught.value.keys == (key(2),)


def test_bring_can_be_cancelled(far: Store, near: Store, big: Path) -> None:
    data = big.read_bytes()
    near.put(*step(1, data))

    class Enough(Exception):
        pass

    def check() -> None:
        raise Enough

    with pytest.raises(Enough):
        far.bring([(key(1), blob(data))], check)
    assert not list(far.copies.folder.glob("*"))
    assert not list(far.copies.folder.parent.glob("fetching-*"))


# -- cleaning --------------------------------------------------------------------------------


def test_gc_uses_the_clock_of_the_server(
    near: Store, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with a wrong clock removes no upload in progress."""
    near.put(*step(1, b"pinned"))
    near.put(*step(2, b"of no use"))
    near.remove([key(2)])
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert near.gc({key(1)}, older_than=3600.0).bytes == 0
    for file in server.data.rglob("*"):
        os.utime(file, (1e9, 1e9))
    gone = near.gc({key(1)}, older_than=3600.0)
    assert (gone.manifests, gone.blobs) == (0, 2)
    assert near.inspect(key(1))


# -- damage ----------------------------------------------------------------------------------


def test_upload_that_is_corrupt_is_replaced_by_another_worker(
    server: Server, near: Store, tmp_path: Path
) -> None:
    """The next worker that needs the blob notices the damage, and another builds it again."""
    data = os.urandom(MIB)
    near.put(*step(1, data))  # by a worker whose network flips a bit
    place = server.data / "a" / "blobs" / blob(data).sha256[:2] / blob(data).sha256
    place.write_bytes(bytes([data[0] ^ 1]) + data[1:])

    good = Store(f"{server.url}/a", tmp_path / "good")
    with pytest.raises(DamagedError) as caught:  # becomes Outcome.damaged
        good.bring([(key(1), blob(data))])
    broker = Store(f"{server.url}/a", tmp_path / "broker")
    for one in caught.value.keys:
        assert not broker.inspect(one)
        broker.forget(one)
    assert broker.has([key(1)]) == set(), "so it is offered again"
    good.put(*step(1, data))

    assert broker.inspect(key(1))
    assert good.path(blob(data), key(1)).read_bytes() == data


# -- full disks ------------------------------------------------------------------------------


def test_store_reports_a_full_disk_at_either_end(tmp_path: Path) -> None:
    for name in ("mount", "server"):
        (tmp_path / name).mkdir()
    code = f"""
        import os
        from pathlib import Path
        from servers_kit import free_port
        from store_kit import blob, key, nginx, step
        from fabric.errors import StoreError
        from fabric.trove.artifacts import remote
        from fabric.trove.artifacts.store import Store
        remote.RETRIES = 1
        top = Path({str(tmp_path)!r})
        data = os.urandom(1_500_000)
        with nginx(top / "server", free_port(), data=top / "mount") as server:
            store = Store(server.url + "/a", top / "scratch")
            store.put(*step(1, data))
            try:
                store.put(*step(2, os.urandom(1_500_000)))
            except StoreError as error:
                print(error)
            assert store.has([key(1), key(2)]) == {{key(1)}}
            assert store.inspect(key(1))
            store.put(*step(3, b"fits"))
            full = Store(server.url + "/a", top / "mount" / "scratch")
            try:
                full.path(blob(data), key(1))
            except StoreError as error:
                print(error)
            assert not list(full.copies.folder.glob("*"))
            assert not list((top / "mount/scratch").glob("fetching-*"))
            assert full.path(blob(b"fits")).read_bytes() == b"fits"
    """
    there, here = on_small_disk("2m", tmp_path / "mount", code)
    assert "chunk-2 cannot be stored" in there
    assert "its own log tells why; often its disk is full" in there
    assert "cannot be fetched to" in here
    assert "the disk is full: free some room" in here
