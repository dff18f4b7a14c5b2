"""The artifact store at a server of the Remote Execution API: a real one, and faults before it."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from engine_kit import Casd
from faulty import Proxy, edited, refuse
from servers_kit import free_port
from store_kit import blob, key, step

from fabric import bounds
from fabric.errors import DamagedError, StoreError
from fabric.reapi.blobs import Digest
from fabric.reapi.protocol import remote_execution_pb2 as pb
from fabric.trove.artifacts.backend import Haste
from fabric.trove.artifacts.store import Store


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ENGINE_PATIENCE", 1)


@pytest.fixture
def store(cas: Casd, tmp_path: Path) -> Store:
    return Store(f"reapi://{cas.host}", tmp_path / "scratch")


@pytest.fixture
def proxy(cas: Casd) -> Iterator[Proxy]:
    """What can break messages from and to the server."""
    made = Proxy(cas.host)
    yield made
    made.close()


@pytest.fixture
def broken(proxy: Proxy, tmp_path: Path) -> Store:
    """The store behind ``proxy``."""
    return Store(f"reapi://{proxy.host}", tmp_path / "other")


def lose(cas: Casd, data: bytes) -> None:
    """Have the server forget a blob."""
    sha256 = blob(data).sha256
    files = [file for file in cas.root.rglob(f"*{sha256[2:]}*") if file.is_file()]
    assert files
    for file in files:
        file.unlink()


def test_step_with_a_lost_blob_is_absent(store: Store, cas: Casd) -> None:
    manifest, files = step(1, b"large", b"other")
    store.put(manifest, files)
    assert store.has([key(1), key(2)]) == {key(1)}
    lose(cas, b"large")
    assert store.has([key(1)]) == set()
    assert store.there([blob(b"large"), blob(b"other")]) == {blob(b"other").sha256}
    with pytest.raises(DamagedError, match="it is not there"):
        store.path(blob(b"large"), key(1))
    with pytest.raises(DamagedError, match="it is not there"):
        list(store.stream(blob(b"large")))
    with pytest.raises(DamagedError, match="it is not there"):
        store.read(blob(b"large"), 1, 2)
    store.put(manifest, files)
    assert store.inspect(key(1))


def test_lost_blob_is_noticed_if_the_server_does_not(
    broken: Store, proxy: Proxy, cas: Casd
) -> None:
    """buildbox-casd gives out no entry whose files are lost; other servers do."""
    broken.put(*step(1, b"large"))
    kept: list[bytes] = []

    def stale(request: bytes, context: object, forward: Callable[..., bytes]) -> bytes:  # noqa: ARG001
        kept[:] = kept or [forward(request)]
        return kept[0]

    proxy.faults["GetActionResult"] = stale
    assert broken.has([key(1)]) == {key(1)}
    lose(cas, b"large")
    assert broken.has([key(1)]) == set()


def test_step_with_a_lost_manifest_is_absent(store: Store, cas: Casd) -> None:
    manifest, files = step(1, b"large")
    store.put(manifest, files)
    entry = store.sealed(key(1))
    assert entry is not None
    lose(cas, entry.data)
    assert store.has([key(1)]) == set()
    assert store.manifest(key(1)) is None
    store.put(manifest, files)
    assert store.manifest(key(1)) == manifest


def test_equal_step_needs_all_its_blobs(store: Store, cas: Casd) -> None:
    store.put(*step(1, b"large"))
    other = step(1, b"large")[0]
    equal = type(other)(
        **{**{f: getattr(other, f) for f in other.__struct_fields__}, "key": key(2)}
    )
    assert store.put_equal(equal)
    assert store.has([key(2)]) == {key(2)}
    lose(cas, b"large")
    assert store.has([key(2)]) == set()
    store.remove([key(2)])
    assert not store.put_equal(equal)


def test_removed_step_is_absent_and_can_be_built_again(store: Store) -> None:
    first, files = step(1, b"first")
    store.put(first, files)
    store.remove([key(1), key(7)])
    assert store.has([key(1)]) == set()
    assert store.manifest(key(1)) is None
    store.forget(key(1))
    second, others = step(1, b"second")
    store.put(second, others)
    assert store.manifest(key(1)) == second


def test_hints_are_replaced(store: Store) -> None:
    store.put_hints({key(5): key(1)})
    store.put_hints({key(5): key(2)})
    assert store.hint(key(5)) == key(2)
    assert store.hint(key(6)) is None


@pytest.mark.parametrize(
    "use",
    [
        lambda store: list(store.keys()),
        lambda store: store.usage(),
        lambda store: store.used(),
        lambda store: store.gc(set()),
        lambda store: store.delete([key(1)]),
    ],
)
def test_what_needs_a_list_is_refused(store: Store, use: Callable[[Store], object]) -> None:
    store.put(*step(1, b"data"))
    with pytest.raises(StoreError) as caught:
        use(store)
    assert str(caught.value).endswith(
        ": a server of the Remote Execution API does not tell what it has, and cleans by itself"
        " what was not used for long: its own settings say how much it keeps"
    )
    assert store.inspect(key(1))
    with store.reserve([key(1)]):
        store.sweep()
        store.use([key(1)])
        store.flush()
        assert store.reserved() == set()


# -- the connection --------------------------------------------------------------------------


def test_server_that_is_away_is_named(tmp_path: Path) -> None:
    host = f"127.0.0.1:{free_port()}"
    store = Store(f"reapi://{host}", tmp_path)
    with pytest.raises(StoreError) as caught:
        store.has([key(1)])
    told = str(caught.value)
    assert told.startswith(f"reapi://{host}: cannot be asked what it has: The server {host}: UNAV")
    assert told.endswith("; check that the server is up and the setting `artifacts` right, then try"
                         " again")  # fmt: skip


def test_store_of_others_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is away, nor one that says nothing."""
    monkeypatch.setattr(bounds, "ENGINE_PATIENCE", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (free_port(), silent.getsockname()[1]):
            url = f"reapi://127.0.0.1:{port}"
            store = Store(url, tmp_path, named="", haste=Haste(answer=0.5, whole=2.0))
            began = time.monotonic()
            with pytest.raises(StoreError):
                store.has([key(1)])
            assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "; check `artifacts-password`, and that the server"),
        (grpc.StatusCode.UNAUTHENTICATED, "; check `artifacts-password`, and that the server"),
        (grpc.StatusCode.UNIMPLEMENTED, "; it has no action cache of the Remote Execution API"),
    ],
)
def test_refusal_is_explained(
    broken: Store, proxy: Proxy, code: grpc.StatusCode, advice: str
) -> None:
    proxy.faults["UpdateActionResult"] = refuse(code)
    with pytest.raises(StoreError) as caught:
        broken.put(*step(1, b"data"))
    assert str(caught.value).startswith(f"{broken.url}: chunk-1 cannot be stored: The server ")
    assert advice in str(caught.value)
    assert broken.has([key(1)]) == set()


def test_instance_is_the_path_of_the_url(proxy: Proxy, tmp_path: Path) -> None:
    store = Store(f"reapi://{proxy.host}/farm/main", tmp_path)
    with pytest.raises(StoreError, match="check the instance, which is the path of the URL"):
        store.has([key(1)])
    request = next(request for name, request in proxy.calls if name == "GetActionResult")
    assert pb.GetActionResultRequest.FromString(request).instance_name == "farm/main"


@pytest.mark.parametrize(
    ("login", "header"),
    [
        ("ann:secret\n", "Basic " + base64.b64encode(b"ann:secret").decode()),
        ("token.of.ann\n", "Bearer token.of.ann"),
    ],
)
def test_password_is_sent(proxy: Proxy, tmp_path: Path, login: str, header: str) -> None:
    password = tmp_path / "password"
    password.write_text(login)
    store = Store(f"reapi://{proxy.host}", tmp_path / "scratch", password=password)
    store.put(*step(1, b"data"))
    assert store.inspect(key(1))
    assert {each["authorization"] for each in proxy.metadata} == {header}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("reapi://store.example", "store.example is not a loopback address: use reapis://"),
        ("reapi://", "is not HOST or HOST:PORT"),
        ("reapis://host:port", "is not HOST or HOST:PORT"),
    ],
)
def test_wrong_url_is_refused(url: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"{url}: cannot be used as an artifact store.*{why}"):
        Store(url, tmp_path)


# -- servers that do not keep to it ------------------------------------------------------------


def test_entry_of_another_object_does_not_count(broken: Store, proxy: Proxy) -> None:
    """Whoever can write entries can replace manifests, as in any store: signatures are for that."""
    broken.put(*step(1, b"data"))
    content = b"no manifest"

    def other(entry: pb.ActionResult) -> None:
        del entry.output_files[:]
        entry.output_files.add(path="object", digest=Digest.of(content).message(), contents=content)

    proxy.faults["GetActionResult"] = edited(pb.ActionResult, other)
    with pytest.raises(DamagedError, match="it is not what was written"):
        broken.manifest(key(1))


def test_content_that_came_along_is_compared(broken: Store, proxy: Proxy) -> None:
    manifest, files = step(1, b"data")
    broken.put(manifest, files)

    def wrong(entry: pb.ActionResult) -> None:
        entry.output_files[0].contents = b"something else"

    proxy.faults["GetActionResult"] = edited(pb.ActionResult, wrong)
    assert broken.manifest(key(1)) == manifest, "it was read instead"


def test_object_that_is_too_large_is_not_read(broken: Store, proxy: Proxy) -> None:
    broken.put(*step(1, b"data"))

    def large(entry: pb.ActionResult) -> None:
        entry.output_files[0].digest.size_bytes = bounds.MANIFEST + 1

    proxy.faults["GetActionResult"] = edited(pb.ActionResult, large)
    proxy.calls.clear()
    with pytest.raises(DamagedError, match=f"it has {bounds.MANIFEST + 1} bytes"):
        broken.manifest(key(1))
    assert "Read" not in proxy.names()


def test_endless_blob_is_damage(broken: Store, proxy: Proxy) -> None:
    from fabric.reapi.protocol import bytestream_pb2 as stream

    broken.put(*step(1, b"data"))

    def endless(request: bytes, context: grpc.ServicerContext, forward: object) -> Iterator[bytes]:  # noqa: ARG001
        while context.is_active():
            yield stream.ReadResponse(data=bytes(100_000)).SerializeToString()

    proxy.faults["Read"] = endless
    for use in (broken.read, broken.path, lambda one: list(broken.stream(one))):
        with pytest.raises(DamagedError):
            use(blob(b"data"))
