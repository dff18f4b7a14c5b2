"""The resolver as the broker runs it: a build order in, a build graph or an error text out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from small_definitions import git, lay_out, write_chunks
from small_disk import SmallDisk

from fabric import bounds
from fabric.errors import SourceError
from fabric.jobs import Manifest
from fabric.trove.artifacts.store import Store
from fabric.trove.sources.build_refs import Builds, new_request, ref_of
from fabric.trove.sources.committed import Committed
from fabric.trove.sources.farm_remote import Trove
from fabric.wire.messages import PROTOCOL, BuildGraph, BuildOrder

pytestmark = pytest.mark.long


class Farm:
    """A trove, a controller's settings, and definitions with one chunk."""

    def __init__(self, root: Path) -> None:
        self.root = root / "definitions"
        self.trove = Trove(str(root / "trove.git"))
        self.builds = Builds(root / "builds.git")
        self.config = root / "broker.toml"
        self.config.write_text(f'cache = "{root}/controller"\ntrove = "{self.trove.url}"\n')
        git(root, "init", "-q", "--bare", self.trove.url)
        lay_out(self.root, root / "source")
        write_chunks(self.root, root / "source", {"one": "true"})

    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def order(self, *components: str, commit: str = "") -> BuildOrder:
        """A build order for the current definitions, which are pushed."""
        request = new_request()
        build = self.builds.snapshot(self.root)
        self.builds.push(build, self.trove, ref_of(request), print)
        return BuildOrder(
            PROTOCOL,
            request,
            "small for t",
            ref_of(request),
            commit or build.commit,
            "systems/small.morph",
            components,
            priority=2,
            detach=True,
            requester="alice",
        )

    def resolve(
        self, order: BuildOrder, *options: str, inside: Callable[[list[str]], list[str]] = list
    ) -> subprocess.CompletedProcess[bytes]:
        command = [
            sys.executable,
            "-m",
            "fabric.controller.resolver",
            "--config",
            str(self.config),
            *options,
        ]
        return subprocess.run(
            inside(command),
            input=msgspec.msgpack.encode(order),
            capture_output=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return Farm(tmp_path)


def submitted(done: subprocess.CompletedProcess[bytes]) -> BuildGraph:
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.msgpack.decode(done.stdout, type=BuildGraph)


def test_resolver_makes_steps_with_keys(farm: Farm) -> None:
    order = farm.order()
    graph = submitted(farm.resolve(order))
    assert [step.name for step in graph.steps] == ["one", "things", "small"]
    assert graph.steps[0].log == "build-step-one-misc.log"
    assert graph.goals == (graph.steps[-1].key,)
    assert (graph.request, graph.title, graph.requester) == (order.request, order.title, "alice")
    assert (graph.priority, graph.detach, graph.keep_going) == (2, True, False)


def test_resolver_uses_the_tools_of_the_workers(farm: Farm) -> None:
    order = farm.order()
    ours = submitted(farm.resolve(order))
    theirs = submitted(farm.resolve(order, "--host-tools", "f" * 64))
    assert ours.steps[0].key != theirs.steps[0].key
    assert theirs.steps[0].needs == ("host-tools:" + "f" * 64,)
    before_a_worker_is_back = submitted(farm.resolve(order))
    assert before_a_worker_is_back.steps == theirs.steps


@pytest.mark.parametrize(
    ("builder", "told"), [("w1", "w1"), ("w" * 300, ""), ("a\nb", ""), (None, "")]
)
def test_resolver_tells_who_built_what_is_built_once_more(
    farm: Farm, builder: str | None, told: str
) -> None:
    order = msgspec.structs.replace(farm.order(), rebuild=("one",))
    before = submitted(farm.resolve(order))
    [one] = [step for step in before.steps if step.name == "one" and not step.again]
    store = Store(str(farm.root.parent / "controller/artifacts"), farm.root)
    if builder is not None:
        store.put(
            Manifest(
                key=one.key, kind="chunk", name="one", arch="x", artifacts=(), builder=builder
            ),
            {},
        )
    [again] = [step for step in submitted(farm.resolve(order)).steps if step.again]
    assert (again.name, again.again, again.built_by) == ("one", one.key, told)
    assert again.depends == (*one.depends, one.key)


def test_resolver_rebuilds_though_the_store_is_away(farm: Farm) -> None:
    farm.config.write_text(farm.config.read_text() + 'artifacts = "http://127.0.0.1:1/a"\n')
    order = msgspec.structs.replace(farm.order(), rebuild=("one",))
    [again] = [step for step in submitted(farm.resolve(order)).steps if step.again]
    assert again.built_by == ""


def test_resolver_components(farm: Farm) -> None:
    graph = submitted(farm.resolve(farm.order("one")))
    assert [step.name for step in graph.steps] == ["one"]
    done = farm.resolve(farm.order("on"))
    assert done.returncode == 1
    assert b"did you mean 'one'" in done.stderr


def test_resolver_mistakes_have_file_and_line(farm: Farm) -> None:
    farm.write(**{"strata/one.morph": "name: one\nkind: chunk\nbananas: 3\n"})
    done = farm.resolve(farm.order())
    assert done.returncode == 1
    assert done.stderr.startswith(b"strata/one.morph:3: ")
    assert done.stdout == b""


def test_resolver_accepts_only_the_commit_of_the_order(farm: Farm) -> None:
    done = farm.resolve(farm.order(commit="0" * 40))
    assert done.returncode == 1
    assert b"and 0000000000000000000000000000000000000000 was ordered" in done.stderr


def test_resolver_ref_that_does_not_exist(farm: Farm) -> None:
    order = msgspec.structs.replace(farm.order(), ref="refs/builds/t/none", commit="0" * 40)
    done = farm.resolve(order)
    assert done.returncode == 1
    assert b"refs/builds/t/none" in done.stderr


@pytest.mark.parametrize("ref", ["--upload-pack=touch x", "refs/../x", "+refs/a:refs/b", "main"])
def test_resolver_ref_that_is_invalid(farm: Farm, ref: str) -> None:
    done = farm.resolve(msgspec.structs.replace(farm.order(), ref=ref))
    assert done.returncode == 1
    assert b"is not the name of a build ref" in done.stderr


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../secret", "link", "far", "in\nside", "loop", "sub"]
)
def test_resolver_reads_nothing_outside_the_commit(farm: Farm, path: str) -> None:
    (farm.root.parent / "secret").write_text("name: secret\n")
    (farm.root / "link").symlink_to("../secret")
    (farm.root / "far").symlink_to("/etc/passwd")
    (farm.root / "loop").symlink_to("loop")
    (farm.root / "sub").mkdir()
    (farm.root / "sub/file").write_text("x")
    (farm.root / "near").symlink_to("sub/file")
    build = farm.builds.snapshot(farm.root)
    with Committed(farm.builds.repository, build.commit, build.environ) as files:
        assert files.read(path) is None
        assert files.read("near") == b"x"
        assert files.read("./sub//file") == b"x"
        assert files.read("nothing here") is None


def test_resolver_leaves_out_lorries_that_are_links(farm: Farm, tmp_path: Path) -> None:
    farm.write(**{"sources/one.lorry": "{}\n", "sources/below/two.lorry": "x\n"})
    (farm.root / "sources/three.lorry").symlink_to("/etc/passwd")
    build = farm.builds.snapshot(farm.root)
    with Committed(farm.builds.repository, build.commit, build.environ) as files:
        files.copy("sources", tmp_path / "copy")
    there = {str(f.relative_to(tmp_path / "copy")) for f in (tmp_path / "copy").rglob("*.lorry")}
    assert there == {"sources/one.lorry", "sources/below/two.lorry"}


@pytest.mark.bound("LORRY_FILES")
@pytest.mark.bound("LORRIES_SIZE")
@pytest.mark.parametrize(
    ("lorries", "text"),
    [
        (dict.fromkeys(map(str, range(bounds.LORRY_FILES + 1)), "{}"), "more than 10,000 files"),
        (dict.fromkeys("123456789", "#" * (8 << 20)), "more than 67,108,864 bytes"),
    ],
)
def test_resolver_bounds_lorries(
    farm: Farm, tmp_path: Path, lorries: dict[str, str], text: str
) -> None:
    farm.write(**{f"sources/{name}.lorry": content for name, content in lorries.items()})
    build = farm.builds.snapshot(farm.root)
    with (
        Committed(farm.builds.repository, build.commit, build.environ) as files,
        pytest.raises(SourceError) as error,
    ):
        files.copy("sources", tmp_path / "copy")
    assert str(error.value) == f"sources: {text} are not read"


@pytest.mark.bound("DEFINITIONS_FILE")
def test_resolver_bounds_morphs(farm: Farm) -> None:
    farm.write(**{"strata/one.morph": "#" * 9_000_000})
    done = farm.resolve(farm.order())
    assert done.returncode == 1
    assert b"strata/one.morph:1: has 9,000,000 bytes: files of definitions have" in done.stderr


def test_resolver_full_disk_is_a_fault_of_the_machine(farm: Farm, tmp_path: Path) -> None:
    order = farm.order()
    disk = SmallDisk(tmp_path / "controller", 32 << 20)
    try:
        assert farm.resolve(order, inside=disk.inside).returncode == 0
        shutil.rmtree(disk.path / "trove/git")
        disk.fill()
        done = farm.resolve(order, inside=disk.inside)
        assert (done.returncode, b"git init" in done.stderr) == (4, True)
        disk.free()
        assert farm.resolve(order, inside=disk.inside).returncode == 0
    finally:
        disk.close()


def test_resolver_many_at_once(farm: Farm) -> None:
    orders = []
    for number in range(4):
        farm.write(
            **{"strata/one.morph": f"name: one\nkind: chunk\ndescription: number {number}\n"}
        )
        orders.append(farm.order())
    command = [sys.executable, "-m", "fabric.controller.resolver", "--config", str(farm.config)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in orders
    ]
    for child, order in zip(children, orders, strict=True):
        assert child.stdin is not None
        child.stdin.write(msgspec.msgpack.encode(order))
        child.stdin.close()
        child.stdin = None
    for child in children:
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        assert len(msgspec.msgpack.decode(out, type=BuildGraph).steps) == 3


@pytest.mark.bound("RESOLVE_MEMORY")
def test_resolver_memory_is_bounded() -> None:
    program = "from fabric.controller.resolver import confine; confine(60); bytearray(5 << 30)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.stderr.endswith(b"MemoryError\n")
