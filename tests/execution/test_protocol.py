"""What a worker sends to an engine, and what it uses of what an engine offers."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard
from building_kit import Kit, key_of
from engine_kit import Casd
from faulty import Proxy, edited
from google.longrunning import operations_pb2 as operations
from msgspec.structs import replace
from waiting import until

from fabric import bounds
from fabric.errors import BuildFailed, MachineFault
from fabric.execution.engine import RemoteEngine
from fabric.jobs import Job, Staged
from fabric.reapi.access import Access
from fabric.reapi.protocol import bytestream_pb2 as stream
from fabric.reapi.protocol import remote_execution_pb2 as pb


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ENGINE_PATIENCE", 1)


@contextlib.contextmanager
def connected(kit: Kit, access: Access) -> Iterator[RemoteEngine]:
    engine = RemoteEngine(access, kit.workspace.root / "indexes")
    yield engine
    engine.close()


def sent(proxy: Proxy) -> dict[str, bytes]:
    """The small blobs that were sent, by digest."""
    return {
        each.digest.hash: each.data
        for name, request in proxy.calls
        if name == "BatchUpdateBlobs"
        for each in pb.BatchUpdateBlobsRequest.FromString(request).requests
    }


def action(proxy: Proxy) -> tuple[pb.Action, pb.Command]:
    """What was executed."""
    blobs = sent(proxy)
    request = next(request for name, request in proxy.calls if name == "Execute")
    found = pb.Action.FromString(blobs[pb.ExecuteRequest.FromString(request).action_digest.hash])
    return found, pb.Command.FromString(blobs[found.command_digest.hash])


def fresh(kit: Kit, staged: Staged, **fields: Any) -> Job:
    """A step with a source that the engine has not seen."""
    source = kit.tree(file=random.randbytes(8).hex())
    return kit.chunk(**{"install": ["true"], "staged": (staged,), "source": source, **fields})


def test_action_is_sorted_and_never_cached(kit: Kit, staged: Staged, proxy: Proxy) -> None:
    properties = {"unixUID": "0", "OSFamily": "linux", "ISA": "x86-64"}
    with (
        connected(kit, Access(proxy.host, properties=properties)) as engine,
        contextlib.suppress(MachineFault),  # buildbox-casd knows other properties
    ):
        kit.build(fresh(kit, staged), engine=engine, timeout=90.5)
    found, command = action(proxy)
    names = ["ISA", "OSFamily", "unixUID"]
    assert [each.name for each in found.platform.properties] == names
    assert command.platform == found.platform
    variables = [each.name for each in command.environment_variables]
    assert variables == sorted(variables) != []
    assert found.do_not_cache
    assert found.timeout.ToNanoseconds() == 90_500_000_000
    assert list(command.output_paths) == ["thing.tar"]


def test_instance_is_named_everywhere(kit: Kit, staged: Staged, proxy: Proxy) -> None:
    access = Access(proxy.host, instance="farm/main")
    with connected(kit, access) as engine, pytest.raises(MachineFault, match="INVALID_ARGUMENT"):
        kit.build(fresh(kit, staged), engine=engine)
    assert pb.GetCapabilitiesRequest.FromString(proxy.calls[0][1]).instance_name == "farm/main"


def test_token_is_read_for_each_call(
    kit: Kit, staged: Staged, proxy: Proxy, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    with connected(kit, Access(proxy.host, token=token)) as engine:
        kit.build(fresh(kit, staged), engine=engine)
        assert {each["authorization"] for each in proxy.metadata} == {"Bearer first"}
        proxy.metadata.clear()
        token.write_text("second\n")
        kit.build(fresh(kit, staged, key=key_of("2")), engine=engine)
        assert {each["authorization"] for each in proxy.metadata} == {"Bearer second"}
        token.unlink()
        with pytest.raises(MachineFault, match=f"{token}: No such file.*`execute-"):
            kit.build(fresh(kit, staged, key=key_of("3")), engine=engine)


@pytest.mark.bound("ENGINE_FILE")
def test_file_that_is_too_long_is_no_token(
    kit: Kit, staged: Staged, proxy: Proxy, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_bytes(b"x" * (bounds.ENGINE_FILE + 1))
    with connected(kit, Access(proxy.host, token=token)) as engine:
        with pytest.raises(MachineFault, match="it has more than 65,536 bytes"):
            kit.build(fresh(kit, staged), engine=engine)
        token.write_bytes(b"\0")
        with pytest.raises(MachineFault, match="holds no token"):
            kit.build(fresh(kit, staged, key=key_of("2")), engine=engine)


def certify(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    made = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", made[1], "-out", made[0]),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


def test_both_sides_show_certificates(kit: Kit, staged: Staged, casd: Casd, tmp_path: Path) -> None:
    server, key = certify(tmp_path, "server")
    client, client_key = certify(tmp_path, "client")
    stranger, stranger_key = certify(tmp_path, "stranger")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), server.read_bytes())], client.read_bytes(), require_client_auth=True
    )
    proxy = Proxy(casd.host, credentials)
    try:
        access = Access(proxy.host, encrypted=True, ca=server, certificate=client, key=client_key)
        with connected(kit, access) as engine:
            kit.build(fresh(kit, staged), engine=engine)
            assert "executed at" in kit.log_text
        for wrong in (
            replace(access, ca=stranger),
            replace(access, certificate=stranger, key=stranger_key),
            replace(access, certificate=None, key=None),
            replace(access, encrypted=False),
        ):
            with connected(kit, wrong) as engine, pytest.raises(MachineFault, match="UNAVAILABLE"):
                kit.build(fresh(kit, staged, key=key_of("2")), engine=engine)
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda found: found.execution_capabilities.Clear(), "executes nothing: check `execute`"),
        (
            lambda found: found.cache_capabilities.digest_functions.__setitem__(0, 7),
            "does not name blobs by SHA-256",
        ),
        (
            lambda found: setattr(found.cache_capabilities, "symlink_absolute_path_strategy", 1),
            "takes no absolute symlinks",
        ),
    ],
)
def test_engine_that_cannot_do_it_is_refused(
    kit: Kit,
    staged: Staged,
    broken: RemoteEngine,
    proxy: Proxy,
    edit: Callable[[pb.ServerCapabilities], None],
    reason: str,
) -> None:
    proxy.faults["GetCapabilities"] = edited(pb.ServerCapabilities, edit)
    with pytest.raises(MachineFault, match=reason):
        kit.build(fresh(kit, staged), engine=broken)
    assert reason in broken.trouble()


@pytest.mark.bound("ENGINE_BATCH")
@pytest.mark.bound("ENGINE_DIGESTS")
def test_messages_are_as_long_as_the_engine_allows(
    kit: Kit, staged: Staged, broken: RemoteEngine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(found: pb.ServerCapabilities) -> None:
        found.cache_capabilities.max_batch_total_size_bytes = 4000

    monkeypatch.setattr(bounds, "ENGINE_DIGESTS", 10)
    proxy.faults["GetCapabilities"] = edited(pb.ServerCapabilities, small)
    files = {f"file-{number}": random.randbytes(500) for number in range(40)}
    source = kit.tree(**files, large=random.randbytes(4000))
    job = fresh(kit, staged, install=["cat file-* large > $DESTDIR/all"], source=source)
    manifest = kit.build(job, engine=broken)
    expected = b"".join(files[name] for name in sorted(files))
    data = kit.entries(manifest, "thing-misc")["all"].data
    assert data.startswith(expected)
    assert len(data) == 24_000
    batches = [len(request) for name, request in proxy.calls if name == "BatchUpdateBlobs"]
    assert len(batches) > 5
    assert max(batches) <= 4000
    asked = [
        len(pb.FindMissingBlobsRequest.FromString(request).blob_digests)
        for name, request in proxy.calls
        if name == "FindMissingBlobs"
    ]
    assert max(asked) == 10
    assert "Write" in proxy.names()


@pytest.mark.bound("ENGINE_KNOWN")
def test_many_known_blobs_are_forgotten(
    kit: Kit, staged: Staged, broken: RemoteEngine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "ENGINE_KNOWN", 5)
    for name in ("one", "two", "three"):
        kit.build(fresh(kit, staged, key=key_of(name)), engine=broken)
    asked = [
        len(pb.FindMissingBlobsRequest.FromString(request).blob_digests)
        for name, request in proxy.calls
        if name == "FindMissingBlobs"
    ]
    assert asked[1] < 20 < asked[2]


def test_blobs_are_compressed_where_that_is_offered(
    kit: Kit, staged: Staged, broken: RemoteEngine, proxy: Proxy
) -> None:
    """The proxy packs and unpacks, since buildbox-casd offers no compression."""
    packed = {"sent": 0, "written": 0, "read": 0}

    def offer(found: pb.ServerCapabilities) -> None:
        found.cache_capabilities.supported_compressors.append(pb.Compressor.ZSTD)
        found.cache_capabilities.supported_batch_update_compressors.append(pb.Compressor.ZSTD)

    def update(request: bytes, context: Any, forward: Callable[..., Any]) -> Any:  # noqa: ARG001
        batch = pb.BatchUpdateBlobsRequest.FromString(request)
        for each in batch.requests:
            if each.compressor == pb.Compressor.ZSTD:
                packed["sent"] += 1
                each.data = zstandard.ZstdDecompressor().decompressobj().decompress(each.data)
                each.compressor = pb.Compressor.IDENTITY
        return forward(batch.SerializeToString())

    def write(requests: Iterator[bytes], context: Any, forward: Callable[..., Any]) -> Any:  # noqa: ARG001
        parts = [stream.WriteRequest.FromString(request) for request in requests]
        assert [part.write_offset for part in parts] == [
            sum(len(part.data) for part in parts[:count]) for count in range(len(parts))
        ]
        assert parts[-1].finish_write
        data = b"".join(part.data for part in parts)
        assert "/compressed-blobs/zstd/" in parts[0].resource_name
        packed["written"] += 1
        plain = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        name = parts[0].resource_name.replace("compressed-blobs/zstd", "blobs")
        return forward(
            stream.WriteRequest(
                resource_name=name,
                write_offset=start,
                data=plain[start : start + 1_000_000],
                finish_write=start + 1_000_000 >= len(plain),
            ).SerializeToString()
            for start in range(0, len(plain), 1_000_000)
        )

    def read(request: bytes, context: Any, forward: Callable[..., Any]) -> Any:  # noqa: ARG001
        asked = stream.ReadRequest.FromString(request)
        assert asked.resource_name.startswith("compressed-blobs/zstd/")
        packed["read"] += 1
        asked.resource_name = asked.resource_name.replace("compressed-blobs/zstd", "blobs")
        plain = b"".join(
            stream.ReadResponse.FromString(reply).data
            for reply in forward(asked.SerializeToString())
        )
        data = zstandard.ZstdCompressor().compress(plain)
        for start in range(0, len(data), 1000):
            yield stream.ReadResponse(data=data[start : start + 1000]).SerializeToString()

    proxy.faults |= {"BatchUpdateBlobs": update, "Write": write, "Read": read}
    proxy.faults["GetCapabilities"] = edited(pb.ServerCapabilities, offer)
    large = random.randbytes(100) * (bounds.ENGINE_BATCH // 50)
    source = kit.tree(large=large, small=random.randbytes(8).hex() * 100)
    job = fresh(kit, staged, install=["cat large small > $DESTDIR/all"], source=source)
    manifest = kit.build(job, engine=broken)
    assert kit.entries(manifest, "thing-misc")["all"].data.startswith(large)
    assert all(packed.values()), packed


def test_packed_bytes_that_unpack_to_too_many_are_a_fault(
    kit: Kit, staged: Staged, broken: RemoteEngine, proxy: Proxy
) -> None:
    def offer(found: pb.ServerCapabilities) -> None:
        found.cache_capabilities.supported_compressors.append(pb.Compressor.ZSTD)

    for data in (zstandard.ZstdCompressor().compress(bytes(1 << 30)), b"no zstd"):
        proxy.faults["GetCapabilities"] = edited(pb.ServerCapabilities, offer)
        reply = stream.ReadResponse(data=data).SerializeToString()

        def read(request: Any, context: Any, forward: Any, reply: bytes = reply) -> Any:  # noqa: ARG001
            return iter([reply])

        proxy.faults["Read"] = read
        with pytest.raises(MachineFault, match=r"that are not those of|sent damaged data"):
            kit.build(fresh(kit, staged, install=["echo said"]), engine=broken)


def streaming(
    proxy: Proxy, said: list[bytes], go: threading.Event, which: str = "stdout_stream_name"
) -> None:
    """Have the engine stream ``said``, which may grow, and end when ``go`` is set."""

    def execute(request: bytes, context: Any, forward: Callable[..., Any]) -> Any:  # noqa: ARG001
        for reply in forward(request):
            operation = operations.Operation.FromString(reply)
            if operation.done:
                go.wait(20)
            else:
                metadata = pb.ExecuteOperationMetadata(stage=pb.ExecutionStage.EXECUTING)
                setattr(metadata, which, "streams/1")
                operation.metadata.Pack(metadata)
            yield operation.SerializeToString()

    def read(request: bytes, context: Any, forward: Callable[..., Any]) -> Any:
        if stream.ReadRequest.FromString(request).resource_name != "streams/1":
            yield from forward(request)
            return
        count = 0
        while context.is_active():
            for piece in said[count:]:
                count += 1
                yield stream.ReadResponse(data=piece).SerializeToString()
            go.wait(0.1)

    proxy.faults |= {"Execute": execute, "Read": read}


OUTPUT = b"### INSTALL-COMMANDS ###\n+ set +x\none\ntwo\n"


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        ([b"### INSTALL-COMM", b"ANDS ###\n+ set +x\none\n"], OUTPUT),
        ([OUTPUT], OUTPUT),
        (
            [b"### something else\n"],
            b"### something else\n### The engine streamed something else than the output, which"
            b" follows\n" + OUTPUT,
        ),
        (
            [OUTPUT + b"more\n"],
            OUTPUT + b"more\n### The engine streamed something else than the output, which"
            b" follows\n" + OUTPUT,
        ),
    ],
)
def test_output_is_in_the_log_while_the_step_runs(
    kit: Kit, staged: Staged, broken: RemoteEngine, proxy: Proxy, said: list[bytes], whole: bytes
) -> None:
    go = threading.Event()
    streaming(proxy, said, go)
    job = fresh(kit, staged, install=["set +x\necho one; echo two"])
    thread = threading.Thread(target=lambda: kit.build(job, engine=broken))
    thread.start()
    try:
        until(lambda: hasattr(kit, "_log") and kit.log_bytes == b"".join(said))
        assert "install" in kit.phases
    finally:
        go.set()
        thread.join()
    assert kit.log_bytes == whole + f"### executed at {proxy.host}\n".encode()


def test_command_lists_are_told_while_the_step_runs(
    kit: Kit, staged: Staged, broken: RemoteEngine, proxy: Proxy
) -> None:
    """Reports arrive in pieces, among other lines, and may be of no list of the chunk."""
    go = threading.Event()
    said = [b"@  0\nnoise\n@ no-list 1\n@ configure-commands 1\n@ build-comm"]
    streaming(proxy, said, go, "stderr_stream_name")
    lists = {"configure": ["true", "true"], "install": ["true"]}
    job = fresh(kit, staged, build=["true"], **lists)
    thread = threading.Thread(target=lambda: kit.build(job, engine=broken))
    thread.start()
    try:
        until(lambda: "configure" in kit.phases)
        assert "build" not in kit.phases
        said.append(b"ands 1\n")
        until(lambda: kit.phases[-1] == "build")
    finally:
        go.set()
        thread.join()
    assert kit.phases.count("configure") == kit.phases.count("build") == 1


def test_endless_stream_meets_the_limit_of_logs(
    kit: Kit, staged: Staged, broken: RemoteEngine, proxy: Proxy
) -> None:
    streaming(proxy, [b"x" * 1000] * 10_000, threading.Event())
    with pytest.raises(BuildFailed, match="printed more than 100000 bytes"):
        kit.build(fresh(kit, staged), engine=broken, log_limit=100_000)


@pytest.mark.bound("ENGINE_QUEUE")
def test_step_that_never_begins_is_a_fault(
    kit: Kit, staged: Staged, broken: RemoteEngine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def queued(request: bytes, context: Any, forward: Callable[..., Any]) -> Any:  # noqa: ARG001
        operation = operations.Operation(name="waiting")
        metadata = pb.ExecuteOperationMetadata(stage=pb.ExecutionStage.QUEUED)
        operation.metadata.Pack(metadata)
        while context.is_active():
            yield operation.SerializeToString()
            threading.Event().wait(0.1)

    proxy.faults["Execute"] = queued
    monkeypatch.setattr(bounds, "ENGINE_QUEUE", 1)
    with pytest.raises(MachineFault, match="did not begin with the step"):
        kit.build(fresh(kit, staged), engine=broken, timeout=0.1)  # waiting does not count
    assert proxy.names()[-1] == "CancelOperation"
