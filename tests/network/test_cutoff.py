"""Edits that change no output, below nine other chunks: on one machine and on a farm."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest
from network_kit import Farm, Workstation
from servers_kit import free_port
from small_definitions import SYSTEM, git, remember_host_tools
from store_kit import nginx

from fabric.jobs import Manifest
from fabric.trove.artifacts.manifests import decode

pytestmark = pytest.mark.long

#: The chunks, each of which needs the one before.
CHAIN = tuple(f"c{number}" for number in range(10))
ABOVE = CHAIN[1:]
#: Text of which no archive is so small that its manifest contains it.
TEXT = random.Random(1).randbytes(8000).hex()
#: What may be in a hint instead of a key.
WRONG: tuple[Callable[[bytes], bytes], ...] = (
    lambda _: b"",
    lambda key: key[:40],
    lambda key: key + b"\n",
    lambda key: key.upper(),
    lambda key: b"../manifests/" + key,
    lambda _: b"\xff\0" * 32,
    lambda _: b"0" * 64,
    lambda key: key * 1_000_000,
)


def flip(file: Path) -> None:
    """Flip a bit of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)


class Chain:
    """A user's chain of chunks, and the folder of the store that their artifacts go to."""

    def __init__(self, user: Workstation, store: Path) -> None:
        self.user = user
        self.store = store
        self.keys: dict[str, str] = {}  # name of a step -> its key, of the last build
        self.settings: dict[str, str] = {}
        self._source = user.home / "bottom"
        self._source.mkdir()
        git(self._source, "init", "-q", "-b", "main")
        self.write()

    def write(self, remark: str = "", comment: str = "", text: str = "hello") -> None:
        """Write the definitions, and the source of the lowest chunk.

        ``remark``, in its command, and ``comment``, in its source and the description of the
        highest chunk, do not change an output.  ``text`` changes that of all chunks.
        """
        install = "mkdir -p $DESTDIR/usr/share\n{} >$DESTDIR/usr/share/{}"
        chunks: dict[str, str | tuple[str, str]] = {}
        chunks["c0"] = install.format(f": {remark}\nsed '/^#/d' text", "c0")
        for below, name in zip(CHAIN, ABOVE, strict=False):
            chunks[name] = below, install.format(f"sed '$a {name}' ../usr/share/{below}", name)
        definitions = self.user.definitions
        definitions.write(**chunks)
        with (definitions.root / f"strata/{CHAIN[-1]}.morph").open("a") as morph:
            morph.write(f"description: The last {comment}\n")
        stratum = definitions.root / "strata/things.morph"
        lowest = stratum.read_text().replace(str(definitions.source), str(self._source), 1)
        stratum.write_text(lowest)
        (self._source / "text").write_text(f"# {comment}\n{text}\n{TEXT}\n")
        git(self._source, "add", ".")
        if git(self._source, "status", "--porcelain"):
            git(self._source, "commit", "-q", "-m", "as it is now")

    def build(self) -> dict[str, str]:
        """Build it.  Returns the last state of each step, by name; of no step if all are cached."""
        done = self.user.build("--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        steps = [event for event in events if event["event"] == "step"]
        self.keys |= {step["name"]: step["key"] for step in steps}
        return {step["name"]: step["state"] for step in steps}

    def built(self) -> set[str]:
        """Build it.  Returns the names of the chunks that were built."""
        return {name for name, state in self.build().items() if state == "done"} & set(CHAIN)

    def manifest(self, name: str) -> Manifest:
        key = self.keys[name]
        return decode((self.store / "manifests" / key).read_bytes(), key)

    def hints(self) -> list[Path]:
        return sorted((self.store / "hints").iterdir())

    def system(self) -> str:
        """The digest of the system's archive."""
        [artifact] = self.manifest("small").artifacts
        assert artifact.blob is not None
        return artifact.blob.sha256

    def from_scratch(self) -> str:
        """The digest of the system's archive, built from nothing on one machine."""
        root = self.user.home / "from scratch"
        remember_host_tools(root / "cache")
        store, self.store = self.store, root / "store"
        self.user.configure(
            controller="", trove="", cache=f"{root}/cache", artifacts=f"{root}/store"
        )
        assert self.built() == set(CHAIN)
        digest = self.system()
        self.user.configure(**self.settings)
        self.store = store
        shutil.rmtree(root)
        return digest

    def gc(self, *args: str) -> None:
        """Remove everything that ``args`` do not keep."""
        done = self.user.run("gc", "--keep-days", "0", *args)
        assert done.returncode == 0, done.stdout + done.stderr


def on_one_machine(farm: Farm) -> Iterator[Chain]:
    chain = Chain(farm.workstation("alice"), farm.root / "artifacts")
    chain.settings = {"controller": "", "trove": ""}
    chain.user.configure(**chain.settings)
    yield chain


def on_a_farm(farm: Farm) -> Iterator[Chain]:
    """Two workers, and a store behind WebDAV."""
    folder = farm.root / "server"
    folder.mkdir()
    with nginx(folder, free_port()) as server:
        farm.store_url = f"{server.url}/artifacts"
        farm.broker()
        farm.worker("w1")
        farm.worker("w2")
        yield Chain(farm.workstation("alice"), server.data / "artifacts")
        farm.close()


@pytest.fixture
def alone(farm: Farm) -> Iterator[Chain]:
    yield from on_one_machine(farm)


@pytest.fixture(params=[on_one_machine, on_a_farm])
def chain(request: pytest.FixtureRequest, farm: Farm) -> Iterator[Chain]:
    yield from request.param(farm)


def test_cutoff_an_edit_without_effect_builds_one_chunk(chain: Chain) -> None:
    assert chain.built() == set(CHAIN)
    before = dict(chain.keys)
    chain.write("edited")
    states = chain.build()
    assert states == {"c0": "done", "things": "done"} | dict.fromkeys((*ABOVE, "small"), "cached")
    assert all(chain.keys[name] != before[name] for name in CHAIN)
    assert {name: chain.manifest(name).origin for name in ABOVE} == {n: before[n] for n in ABOVE}
    assert not chain.built(), "all is cached"
    chain.write(comment="edited")
    states = chain.build()
    new = {"c0": "done", "things": "done", "small": "done"}  # whose metadata have the comment
    assert states == new | dict.fromkeys(ABOVE, "cached")
    assert chain.system() == chain.from_scratch()
    chain.write(comment="edited", text="bye")
    assert chain.built() == set(CHAIN)
    assert chain.system() == chain.from_scratch()
    chain.write()
    assert not chain.built(), "that was built in the beginning"


def test_cutoff_names_the_step_that_was_built(alone: Chain) -> None:
    """Also if the second edit is found by the first."""
    alone.build()
    before = dict(alone.keys)
    for remark in ("one", "two"):
        alone.write(remark)
        assert alone.built() == {"c0"}
        assert {name: alone.manifest(name).origin for name in ABOVE} == {
            name: before[name] for name in ABOVE
        }
    assert not alone.manifest("c0").origin


def test_cutoff_lost_hints_cost_a_build(chain: Chain) -> None:
    chain.build()
    shutil.rmtree(chain.store / "hints")
    chain.write("one")
    assert chain.built() == set(CHAIN)
    chain.write("two")
    assert chain.built() == {"c0"}


def test_cutoff_wrong_hints_cost_a_build(alone: Chain) -> None:
    """And the build replaces them."""
    alone.build()
    for hint, wrong in zip(alone.hints(), cycle(WRONG), strict=False):
        hint.write_bytes(wrong(hint.read_bytes()))
    alone.write("one")
    assert alone.built() == set(CHAIN)
    assert alone.system() == alone.from_scratch()
    alone.write("two")
    assert alone.built() == {"c0"}


def test_cutoff_hints_of_other_chunks_cost_a_build(alone: Chain) -> None:
    alone.build()
    keys = [*alone.keys.values()]
    for hint in alone.hints():
        hint.write_text(keys[keys.index(hint.read_text()) - 1])
    alone.write("edited")
    assert alone.built() == set(CHAIN)
    assert alone.system() == alone.from_scratch()


@pytest.mark.parametrize("harm", [Path.unlink, flip], ids=["missing", "damaged"])
def test_cutoff_harm_costs_a_build_of_the_step(alone: Chain, harm: Callable[[Path], None]) -> None:
    alone.build()
    [blob] = [one.blob for one in alone.manifest("c5").artifacts if one.blob]
    harm(alone.store / "blobs" / blob.sha256[:2] / blob.sha256)
    alone.write(comment="edited")  # which makes a new system, of all blobs
    assert {"c0", "c5"} <= alone.built() <= {"c0", *CHAIN[5:]}
    assert alone.system() == alone.from_scratch()


def test_cutoff_steps_outlive_the_one_that_was_built(alone: Chain) -> None:
    alone.build()
    before = dict(alone.keys)
    alone.write("one")
    alone.build()
    for key in before.values():
        (alone.store / "manifests" / key).unlink()
    alone.gc("--keep", f"../definitions/{SYSTEM}")
    assert not alone.built()
    assert alone.system() == alone.from_scratch()
    alone.write(comment="two")
    assert "c0" in alone.built()
    assert alone.system() == alone.from_scratch()


def test_cutoff_gc_keeps_what_is_known_of_kept_steps(chain: Chain) -> None:
    chain.build()
    chain.write("one")
    chain.build()
    chain.gc("--keep", f"../definitions/{SYSTEM}")
    assert not chain.built()
    chain.write(comment="two")
    assert chain.built() == {"c0"}
    assert chain.system() == chain.from_scratch()


def test_cutoff_gc_leaves_no_hints_of_removed_steps(alone: Chain) -> None:
    alone.build()
    alone.gc()
    assert not alone.hints()
    alone.write("edited")
    assert alone.built() == set(CHAIN)
