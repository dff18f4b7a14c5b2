"""Layers of staging areas are planned, merged, stacked and verified."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from building_kit import Kit, key_of
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fabric.building import layers
from fabric.building.archive import DIRECTORY, FILE, SYMLINK, Entry, pack
from fabric.building.layers import Index, plan_layers, see_through
from fabric.building.merge import Merger
from fabric.building.tree import Clash, scan
from fabric.building.workspace import Workspace
from fabric.errors import BuildFailed, MachineFault
from fabric.host.cancel import CancelToken
from fabric.host.tree_tables import read_record, write_record
from fabric.jobs import Staged
from fabric.trove.artifacts.contents import output_of


def staged(*strata: int) -> list[Staged]:
    """Chunks of strata with the given numbers of chunks."""
    return [
        Staged(f"{stratum}-{chunk}", str(stratum))
        for stratum, count in enumerate(strata)
        for chunk in range(count)
    ]


class TestPlan:
    def test_layer_plan_merges_nothing_if_layers_are_few(self) -> None:
        assert plan_layers([]) == []
        assert plan_layers(staged(2, 1), 3) == [("0-0",), ("0-1",), ("1-0",)]

    def test_layer_plan_merges_the_lowest_strata_first(self) -> None:
        assert plan_layers(staged(2, 2, 2), 5) == [
            ("0-0", "0-1"),
            *(("1-0",), ("1-1",), ("2-0",), ("2-1",)),
        ]
        assert plan_layers(staged(2, 2, 2), 4) == [
            ("0-0", "0-1"),
            ("1-0", "1-1"),
            *(("2-0",), ("2-1",)),
        ]

    def test_layer_plan_merges_a_stratum_alike_for_all_above(self) -> None:
        one = plan_layers(staged(60, 60, 3))
        two = plan_layers(staged(60, 60, 30))
        assert one[0] == two[0] == tuple(f"0-{number}" for number in range(60))

    def test_layer_plan_merges_a_large_stratum_in_shared_blocks(self) -> None:
        plan = plan_layers(staged(120), 100)
        assert [len(group) for group in plan] == [64] + 56 * [1]
        assert plan_layers(staged(140), 100)[0] == plan[0]

    def test_layer_plan_merges_strata_that_take_turns(self) -> None:
        mixed = [Staged(str(number), "xy"[number % 2]) for number in range(10)]
        assert plan_layers(mixed, 3) == [tuple(str(number) for number in range(10))]

    @given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 100))
    def test_layer_plan_loses_nothing_within_the_limit(self, strata: list[int], limit: int) -> None:
        wanted = staged(*strata)
        plan = plan_layers(wanted, limit)
        assert len(plan) <= limit
        assert [key for group in plan for key in group] == [item.key for item in wanted]
        assert all(plan)


def index(*dirs: str, **links: str) -> Index:
    """An index with those directories and links (``a__b`` is ``a/b``)."""
    return Index(
        frozenset(path.encode() for path in dirs),
        {path.replace("__", "/").encode(): target.encode() for path, target in links.items()},
        (),
    )


class TestSeeThrough:
    def test_see_through_moves_a_directory_to_the_target_of_a_symlink(self) -> None:
        base = index("usr", "usr/lib", lib="usr/lib", usr__bin="../sbin")
        late = index("lib", "lib/modules", "usr", "usr/lib", "sbin", sbin__x="y")
        assert see_through({"base": base, "late": late}, str) == [(), ((b"lib", b"usr/lib"),)]

    def test_see_through_counts_moved_directories_for_the_next(self) -> None:
        base = index("usr", "usr/lib", lib="usr/lib")
        second = index("lib", lib__sub="else", **{"lib__64": "../../usr"})
        third = index("usr", "usr/lib", "usr/lib/64")
        moves = see_through({"base": base, "second": second, "third": third}, str)
        assert moves[2] == ((b"usr/lib/64", b"usr"),)

    @pytest.mark.parametrize(
        ("low", "high"),
        [
            (index(lib="nowhere"), index("lib")),
            (index("lib"), index(lib="usr/lib")),
        ],
    )
    def test_see_through_raises_for_a_clash(self, low: Index, high: Index) -> None:
        with pytest.raises(Clash, match=r"high has a (directory|symlink) at /lib, where low has"):
            see_through({"low": low, "high": high}, str)

    def test_see_through_raises_for_a_loop_of_symlinks(self) -> None:
        with pytest.raises(BuildFailed, match="Too many levels"):
            see_through({"low": index(a="b", b="a"), "high": index("a")}, str)


def stored(kit: Kit, name: str, *entries: Entry, stratum: str = "low") -> Staged:
    """A chunk in the store with those entries."""
    return kit.stored(name, {f"{name}-misc": pack(entries, kit.root / name)}, stratum)


def file(path: str, text: str = "") -> Entry:
    return Entry(path.encode(), FILE, 0o644, len(text), data=text.encode())


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path.encode(), DIRECTORY, mode)


def seen(kit: Kit, command: str, *chunks: Staged) -> str:
    """The output of a command with those chunks staged."""
    kit.logs += 1
    job = kit.chunk(f"see-{kit.logs}", build=[f"{command} > out; cat out"], staged=chunks)
    kit.build(job)
    return kit.log_text.split("+ cat out\n", 1)[1]


class TestStaging:
    def test_layers_past_the_limit_of_overlayfs_are_merged(self, kit: Kit) -> None:
        chunks = [
            stored(
                kit,
                f"c{number}",
                file(f"f{number}", str(number)),
                file("last", str(number)),
                stratum=str(number // 50),
            )
            for number in range(320)
        ]
        text = seen(kit, "{ ls /f* | wc -l; cat /f0 /f319 /last; }", kit.base, *chunks)
        assert text == "320\n0319319"

    def test_layers_up_to_the_limit_are_not_merged(self, kit: Kit) -> None:
        chunks = [stored(kit, f"c{number}", file(f"f{number}")) for number in range(99)]
        assert seen(kit, "ls /f* | wc -l", kit.base, *chunks) == "99\n"
        assert not list((kit.workspace.root / "merged").iterdir())

    def test_layers_past_the_limit_raise(self, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layers, "plan_layers", lambda staged: [(s.key,) for s in staged])
        chunks = [stored(kit, f"c{number}", file(f"f{number}")) for number in range(101)]
        with pytest.raises(AssertionError, match="101 layers"):
            kit.workspace.layers.stage(chunks, CancelToken())

    def test_layers_merge_directories_through_symlinks(self, kit: Kit) -> None:
        low = stored(
            kit,
            "low",
            *(directory(path) for path in ("usr", "usr/share", "usr/share/data")),
            file("usr/share/data/old", "old "),
            Entry(b"data", SYMLINK, link=b"usr/share/data"),
        )
        high = stored(kit, "high", directory("data", 0o700), file("data/new", "new"))
        text = seen(kit, "{ cat /data/*; readlink /data; }", kit.base, low, high)
        assert text == "newold usr/share/data\n"

    def test_layer_clash_names_the_chunks(self, kit: Kit) -> None:
        low = stored(kit, "low", directory("data"))
        high = stored(kit, "high", Entry(b"data", SYMLINK, link=b"usr"))
        with pytest.raises(BuildFailed, match="high has a symlink at /data, where low has a dir"):
            seen(kit, "true", kit.base, low, high)

    def test_ldconfig_runs_only_if_it_is_configured(self, kit: Kit, tools: Path) -> None:
        found = scan(tools)
        library = next(path for path in found if path.endswith(b"/libc.so.6"))
        program = stored(kit, "tool", *ldconfig_entries())
        conf = stored(
            kit,
            "conf",
            *(directory(path) for path in ("etc", "opt", "opt/lib")),
            file("etc/ld.so.conf", "/opt/lib\n"),
            found[library]._replace(name=b"opt/lib/libmine.so.1.2"),
        )
        plain = "{ ls /etc/ld.so.cache /var/cache/ldconfig 2>&1 || true; }"
        assert "cannot access" in seen(kit, plain, kit.base, program)
        command = (
            "{ ls /etc; grep -c opt/lib/libc.so.6 /etc/ld.so.cache; readlink /opt/lib/libc.so.6; }"
        )
        assert seen(kit, command, kit.base, program, conf).split() == [
            "ld.so.cache",
            "ld.so.conf",
            "1",
            "libmine.so.1.2",
        ]
        assert "### LDCONFIG ###" in kit.log_text
        seen(kit, "true", kit.base, program, conf)
        assert "### LDCONFIG ###" not in kit.log_text  # the result is kept
        seen(kit, "true", kit.base, program, conf, stored(kit, "more", file("more")))
        assert "### LDCONFIG ###" in kit.log_text  # for these contents


def ldconfig_entries() -> list[Entry]:
    """The ldconfig of this machine, a static program."""
    size = Path("/sbin/ldconfig").stat().st_size
    return [directory("sbin"), Entry(b"sbin/ldconfig", FILE, 0o755, size, source=b"/sbin/ldconfig")]


def rewrite(path: Path) -> None:
    """Change bytes of a file without a change that `ls` shows."""
    before = path.stat()
    with path.open("r+b") as opened:
        opened.write(bytes([opened.read(1)[0] ^ 1]))
        opened.seek(0)
        opened.write(b"X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


#: Damage to a layer: (name, how it is done, the path that is reported).
DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("other bytes", lambda top: rewrite(top / "d/file"), "d/file"),
    ("cut", lambda top: os.truncate(top / "d/file", 1), "d/file"),
    ("gone", lambda top: (top / "d/file").unlink(), "d"),
    ("one more", lambda top: (top / "d/more").touch(), "d"),
    ("another mode", lambda top: (top / "d/file").chmod(0o600), "d/file"),
    ("another time", lambda top: os.utime(top / "d/file", (1, 1)), "d/file"),
    ("half gone", lambda top: shutil.rmtree(top / "d"), "d"),
    ("a link elsewhere", lambda top: relink(top / "link"), "link"),
]


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")
    os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)


@pytest.fixture
def chunk(kit: Kit) -> Staged:
    link = Entry(b"link", SYMLINK, link=b"d")
    return stored(kit, "chunk", directory("d"), file("d/file", "content"), link)


def equal_to(kit: Kit, chunk: Staged, name: str) -> Staged:
    """A chunk that was not built, since it is equal to another."""
    manifest = kit.store.manifest(chunk.key)
    assert manifest is not None
    assert kit.store.put_equal(replace(manifest, key=key_of(name), origin=chunk.key))
    return Staged(key_of(name), chunk.stratum)


def restaged(kit: Kit, *chunks: Staged) -> tuple[list[Path], list[str]]:
    """Stage chunks as another process would: the layers and the messages."""
    said: list[str] = []
    with Workspace(kit.root / "work", kit.store, kit.sources) as other:
        found = other.layers.stage(chunks, CancelToken(), said.append).paths
    return found, said


class TestVerification:
    @pytest.mark.parametrize(("what", "damage", "where"), DAMAGE, ids=[one[0] for one in DAMAGE])
    def test_layer_that_changed_on_the_disk_is_made_again(
        self,
        kit: Kit,
        chunk: Staged,
        what: str,  # noqa: ARG002
        damage: Callable[[Path], object],
        where: str,
    ) -> None:
        [layer] = kit.workspace.layers.stage([chunk], CancelToken()).paths
        damage(layer)
        found, said = restaged(kit, chunk)
        assert found == [layer]
        assert said == [f"{layer} has changed on the disk, at '{where}': it is made again"]
        assert (layer / "d/file").read_text() == "content"
        assert (layer / "link").readlink() == Path("d")
        assert not (layer / "d/more").exists()
        assert restaged(kit, chunk) == ([layer], [])

    @pytest.mark.parametrize("content", [None, b"", b"\0" * 100, b"half"])
    @pytest.mark.parametrize("files", [1, 400])
    def test_layer_with_a_damaged_record_is_inspected(
        self, kit: Kit, content: bytes | None, files: int
    ) -> None:
        many = stored(kit, "many", *(directory(f"d{number}") for number in range(files)))
        [layer] = kit.workspace.layers.stage([many], CancelToken()).paths
        record = kit.workspace.root / "indexes" / many.key
        whole = record.read_bytes()
        if content is None:
            record.unlink()
        else:
            record.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
        assert restaged(kit, many) == ([layer], []), "its content is right"
        assert (len(record.read_bytes()) > 2000) == (files == 400), "it has the index, or need not"

    def test_layer_is_used_without_reading_it(self, kit: Kit, chunk: Staged) -> None:
        built = kit.chunk("built", install=["mkdir $DESTDIR/d", "echo it > $DESTDIR/d/f"])
        kit.build(built)
        mine = Staged(built.key, "low")
        layers = kit.workspace.layers.stage([chunk, mine], CancelToken()).paths
        shutil.rmtree(kit.root / "artifacts")
        assert restaged(kit, chunk, mine) == (layers, [])

    def test_layer_of_equal_chunks_is_shared(self, kit: Kit, chunk: Staged) -> None:
        other = stored(kit, "other", file("other"))
        one, two = equal_to(kit, chunk, "one"), equal_to(kit, chunk, "two")
        [layer] = kit.workspace.layers.stage([one], CancelToken()).paths
        assert restaged(kit, two) == ([layer], [])
        found, _ = restaged(kit, one, other, two)
        assert found[1:] == [layer], "overlayfs takes no layer twice"
        assert seen(kit, "cat /d/file", kit.base, one, other, two) == "content"

    def test_layer_of_an_equal_chunk_has_its_own_content(self, kit: Kit, chunk: Staged) -> None:
        """The chunk that was built may have been built again, with another result."""
        equal = equal_to(kit, chunk, "equal")
        kit.store.remove([chunk.key])
        stored(kit, "chunk", directory("d"), file("d/file", "other content"))
        [[built], [shared]] = [restaged(kit, one)[0] for one in (chunk, equal)]
        assert (built / "d/file").read_text() == "other content"
        assert (shared / "d/file").read_text() == "content"

    def test_layer_of_an_equal_chunk_needs_no_other(self, kit: Kit, chunk: Staged) -> None:
        """The chunk that was built, and its layer, may be gone."""
        equal = equal_to(kit, chunk, "equal")
        kit.store.remove([chunk.key])
        [layer], said = restaged(kit, equal)
        assert (layer / "d/file").read_text() == "content"
        assert said == []
        assert restaged(kit, equal) == ([layer], [])

    def test_merged_tree_changes_no_layer(self, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layers, "MAX_LAYERS", 2)
        monkeypatch.setattr(layers.plan_layers, "__defaults__", (2,))
        chunks = [stored(kit, f"c{n}", file(f"f{n}", f"{n}")) for n in range(5)]
        found = kit.workspace.layers.stage(chunks, CancelToken()).paths
        assert len(found) == 1
        shutil.rmtree(kit.root / "artifacts")
        assert restaged(kit, *chunks) == (found, [])
        rewrite(found[0] / "f3")  # in the layer, too, as it is the same file
        kit.workspace.clean({one.key for one in chunks})
        with pytest.raises(MachineFault, match="has no chunk"):
            restaged(kit, *chunks)

    def test_merged_tree_that_changed_is_made_again(
        self, kit: Kit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layers.plan_layers, "__defaults__", (2,))
        chunks = [stored(kit, f"c{n}", file(f"f{n}", f"{n}")) for n in range(5)]
        [merged] = kit.workspace.layers.stage(chunks, CancelToken()).paths
        (merged / "f3").unlink()
        (merged / "more").touch()
        found, said = restaged(kit, *chunks)
        assert said == [f"{merged} has changed on the disk, at 'f3': it is made again"]
        assert found == [merged]
        assert sorted(path.name for path in merged.iterdir()) == [f"f{n}" for n in range(5)]


class TestInputs:
    """What a build was made from is stated by content."""

    def test_manifest_has_the_digests_of_what_was_staged(self, kit: Kit, chunk: Staged) -> None:
        made = kit.chunk("made", install=["echo it > $DESTDIR/f"], staged=(kit.base, chunk))
        manifest = kit.build(made)
        below = kit.store.manifests([kit.base.key, chunk.key])
        assert manifest.input_digests == tuple(output_of(one).hex() for one in below if one)
        above = kit.build(kit.chunk("above", staged=(kit.base, Staged(made.key, "low"))))
        assert above.input_digests[1] == output_of(manifest).hex(), "of a layer that was adopted"

    def test_manifest_has_what_was_on_the_disk_not_what_the_store_has_now(
        self, kit: Kit, chunk: Staged
    ) -> None:
        before = kit.store.manifest(chunk.key)
        kit.build(kit.chunk("one", staged=(kit.base, chunk)))
        kit.store.remove([chunk.key])
        stored(kit, "chunk", directory("d"), file("d/file", "other"))
        assert before is not None
        with Workspace(kit.root / "work", kit.store, kit.sources) as other:
            found = other.layers.stage([chunk], CancelToken())
        assert found.outputs == (output_of(before).hex(),)
        two = kit.build(kit.chunk("two", staged=(kit.base, chunk)))
        assert two.input_digests[1] == output_of(before).hex()

    def test_layer_that_is_made_again_has_the_new_digest(self, kit: Kit, chunk: Staged) -> None:
        kit.build(kit.chunk("one", staged=(kit.base, chunk)))
        kit.store.remove([chunk.key])
        stored(kit, "chunk", directory("d"), file("d/file", "other"))
        with Workspace(kit.root / "work", kit.store, kit.sources) as other, other.using():
            rewrite(kit.root / "work/layers" / chunk.key / "d/file")
            other.layers.stage([chunk], CancelToken())
        two = kit.build(kit.chunk("two", staged=(kit.base, chunk), build=["cat /d/file"]))
        after = kit.store.manifest(chunk.key)
        assert after is not None
        assert two.input_digests[1] == output_of(after).hex()
        assert "other" in kit.log_text

    def test_layer_of_an_older_version_is_unpacked_again(self, kit: Kit, chunk: Staged) -> None:
        [layer] = kit.workspace.layers.stage([chunk], CancelToken()).paths
        file = kit.root / "work/indexes" / chunk.key
        record = read_record(file)
        assert record is not None
        write_record(file, replace(record, origin=b""), kit.root / "new")
        with Workspace(kit.root / "work", kit.store, kit.sources) as other:
            found = other.layers.stage([chunk], CancelToken())
        assert found.paths == [layer]
        manifest = kit.store.manifest(chunk.key)
        assert manifest is not None
        assert found.outputs == (output_of(manifest).hex(),)

    def test_result_that_the_store_did_not_take_becomes_no_layer(self, kit: Kit) -> None:
        """Another worker was faster, with other bytes."""
        job = kit.chunk("race", install=["echo here > $DESTDIR/f"])
        put = kit.store.put

        def late(*args: Any) -> bool:
            kit.store.put = put  # type: ignore[method-assign]
            kit.stored("race", {f"race-{end}": None for end in ("bins", "devel", "misc")})
            return put(*args)

        kit.store.put = late  # type: ignore[method-assign,assignment]
        kit.build(job)
        assert not (kit.root / "work/layers" / job.key).exists()
        above = kit.build(kit.chunk("above", staged=(kit.base, Staged(job.key, "low"))))
        manifest = kit.store.manifest(job.key)
        assert manifest is not None
        assert above.input_digests[1] == output_of(manifest).hex()

    def test_merged_tree_follows_the_contents(
        self, kit: Kit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layers.plan_layers, "__defaults__", (2,))
        chunks = [stored(kit, f"c{n}", file(f"f{n}", f"{n}")) for n in range(5)]
        [merged] = kit.workspace.layers.stage(chunks, CancelToken()).paths
        kit.store.remove([chunks[3].key])
        stored(kit, "c3", file("f3", "other"))
        shutil.rmtree(kit.root / "work/layers" / chunks[3].key)
        [[other], _] = restaged(kit, *chunks)
        assert (merged / "f3").read_text() == "3"
        assert (other / "f3").read_text() == "other"


class TestMerger:
    def test_merger_gives_the_tree_that_overlayfs_shows(self, tmp_path: Path) -> None:
        for name in ("one", "two", "into"):
            (tmp_path / name).mkdir()
        one, two, into = (tmp_path / name for name in ("one", "two", "into"))
        for path in ("both/a", "dir/x", "dir/y/z", "hidden/deep"):
            (one / path).parent.mkdir(parents=True, exist_ok=True)
            (one / path).write_text(f"one {path}")
        (one / "file").write_text("one file")
        (two / "both").mkdir(mode=0o700)
        (two / "both/b").write_text("two")
        (two / "dir").write_text("a file now")
        (two / "file").mkdir()
        (two / "hidden").symlink_to("both")
        merger = Merger(into)
        merger.lay(one)
        merger.lay(two)
        merger.lay(two, at=b"below/here")
        merger.finish(1_000_000)
        found = scan(into)
        assert list(found) == [
            *(b"below", b"below/here", b"below/here/both", b"below/here/both/b"),
            *(b"below/here/dir", b"below/here/file", b"below/here/hidden"),
            *(b"both", b"both/a", b"both/b", b"dir", b"file", b"hidden"),
        ]
        assert found[b"both"].mode == 0o700
        assert (into / "dir").read_text() == "a file now"
        assert (into / "both/a").stat().st_ino == (one / "both/a").stat().st_ino
        assert {(into / name).stat().st_mtime for name in ("both", "file", ".")} == {1_000_000}
        assert (one / "dir/x").exists()
