"""Builds of chunks in real sandboxes: their environment and their artifacts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from building_kit import Kit, key_of

from fabric.building import archive
from fabric.building.builder import build
from fabric.building.chunk import title
from fabric.building.log import Log
from fabric.building.shell import shell
from fabric.building.tree import scan
from fabric.definitions.graph import Device, Rule
from fabric.errors import BuildFailed, MachineFault
from fabric.jobs import Source, Staged

INSTALL = "mkdir -p $DESTDIR/usr/bin; "


def printed(kit: Kit, command: str, **fields: object) -> str:
    """The output of a command in a build."""
    job = kit.chunk(install=[f"{{ {command}; }} > $DESTDIR/out"], **fields)
    return kit.entries(kit.build(job), "thing-misc")["out"].data.decode()


class TestEnvironment:
    def test_chunk_environment_is_that_of_its_job_only(self, kit: Kit) -> None:
        environment = {"PATH": "/bin", "HOME": "/tmp", "SHELL": "/bin/sh", "PREFIX": "/usr"}
        text = printed(kit, "env | sort", environment=environment)
        assert text.splitlines() == [
            "DESTDIR=/thing.inst",
            "HOME=/tmp",
            "MAKEFLAGS=-j1",
            "PATH=/bin",
            "PREFIX=/usr",
            "PWD=/thing.build",  # set by every shell
            "SHELL=/bin/sh",
        ]

    @pytest.mark.parametrize("mode", ["staging", "test"])
    def test_chunk_flags_name_its_source_tree(self, kit: Kit, mode: str) -> None:
        path = "/sbin:/usr/sbin:/bin:/usr/bin"
        environment = {"PATH": path, "CFLAGS": "-O2 -fx=$PWD=.", "TERM": "$PWD"}
        text = printed(
            kit,
            'test "$CFLAGS" = "-O2 -fx=$PWD=." && echo "$TERM"',
            environment=environment,
            mode=mode,
            **({"staged": ()} if mode == "test" else {}),
        )
        assert text == "$PWD\n"

    def test_chunk_makeflags_are_parallel_for_build_commands_only(self, kit: Kit) -> None:
        names = (*(f"{when}build-commands" for when in ("pre-", "", "post-")), "test-commands")
        commands = tuple((name, (f"echo {name}: $MAKEFLAGS",)) for name in names)
        kit.build(kit.chunk("a", commands=commands), jobs=7)
        kit_log = kit.log_text
        for name, flags in zip(names, ("-j7", "-j7", "-j7", "-j1"), strict=True):
            assert f"\n{name}: {flags}\n" in kit_log
        kit.build(kit.chunk("b", commands=commands, max_jobs=2), jobs=7)
        assert "build-commands: -j2\n" in kit.log_text

    def test_chunk_builds_as_root_without_network_or_other_processes(self, kit: Kit) -> None:
        text = printed(kit, "id -u; id -g; uname -n; cat /proc/net/dev | wc -l; ls /proc | grep 1$")
        uid, gid, host, interfaces, *processes = text.split()
        assert (uid, gid, host) == ("0", "0", "localhost")
        assert interfaces == "3"  # two lines of heading, and lo
        assert processes == ["1"]

    def test_chunk_root_is_read_only(self, kit: Kit) -> None:
        text = printed(
            kit,
            "for it in / /bin/ /proc/sys/kernel/ /thing.build/ /thing.inst/ /tmp/ /dev/ /dev/shm/;"
            " do touch ${it}new 2>/dev/null && echo $it; done; true",
        )
        assert text.split() == ["/thing.build/", "/thing.inst/", "/tmp/", "/dev/shm/"]

    def test_chunk_tmp_is_private(self, kit: Kit, tmp_path: Path) -> None:
        assert printed(kit, f"ls -A /tmp; test ! -e {tmp_path} && echo hidden") == "hidden\n"

    def test_chunk_sources_have_one_time_and_are_not_changed(self, kit: Kit) -> None:
        source = kit.tree(one="1", two="2")
        before = scan(kit.sources.trees[source.tree])
        text = printed(
            kit, "stat -c %Y . one two; echo more >> one; rm two; cat one", source=source
        )
        assert text == "1000000000\n" * 3 + "1more\n"
        assert scan(kit.sources.trees[source.tree]) == before
        assert (kit.sources.trees[source.tree] / "one").read_text() == "1"

    def test_chunk_sources_hold_their_submodules(self, kit: Kit) -> None:
        inner, middle, outer = (kit.tree(name=name) for name in ("inner", "middle", "outer"))
        (kit.sources.trees[outer.tree] / "lib").mkdir()
        middle = Source("b", "r", "1" * 40, middle.tree, (("deep/er", inner),))
        source = Source("a", "r", "2" * 40, outer.tree, (("lib", middle),))
        text = printed(kit, "cat name lib/name lib/deep/er/name; echo x > lib/name", source=source)
        assert text == "outermiddleinner"

    def test_chunk_sees_later_layers_above_earlier_ones(self, kit: Kit) -> None:
        staged = [kit.base]
        for name in ("first", "second"):
            job = kit.chunk(name, install=[f"echo {name} | tee $DESTDIR/{name} > $DESTDIR/both"])
            kit.build(job)
            staged.append(Staged(job.key, "low"))
        assert printed(kit, "cat /first /second /both", staged=tuple(staged)).split() == [
            "first",
            "second",
            "second",
        ]

    def test_chunk_layers_are_unpacked_again_from_the_store(self, kit: Kit) -> None:
        job = kit.chunk("lib", install=["mkdir $DESTDIR/it; echo text > $DESTDIR/it/file"])
        kit.build(job)
        layer = kit.workspace.root / "layers" / job.key
        before = {path: entry._replace(source=b"") for path, entry in scan(layer).items()}
        assert kit.workspace.clean()
        assert not layer.exists()
        staged = (kit.base, Staged(job.key, "low"))
        assert printed(kit, "cat /it/file; stat -c %Y /it /it/file", staged=staged).split() == [
            "text",
            *2 * [str(archive.MTIME)],
        ]
        after = {path: entry._replace(source=b"") for path, entry in scan(layer).items()}
        assert after == before

    def test_chunk_with_a_missing_layer_is_a_machine_fault(self, kit: Kit) -> None:
        staged = (kit.base, Staged(key_of("nothing"), "low"))
        with pytest.raises(MachineFault, match="no chunk"):
            kit.build(kit.chunk(install=[":"], staged=staged))


class TestBootstrap:
    def test_bootstrap_uses_the_host_without_its_homes(self, kit: Kit, tmp_path: Path) -> None:
        lib = kit.chunk("lib", install=["mkdir -p $DESTDIR/tools/bin; touch $DESTDIR/tools/bin/x"])
        kit.build(lib)
        environment = {"PATH": "/tools/bin:/sbin:/usr/sbin:/bin:/usr/bin", "HOME": "/tmp"}
        text = printed(
            kit,
            f"pwd; echo $DESTDIR; echo $PATH; ls -A $(pwd)/..; id -un; make --version >/dev/null;"
            f" test ! -e {tmp_path} && test ! -e /root && test ! -e /home && echo hidden;"
            " touch /usr/x /staging/x 2>/dev/null || echo read-only",
            mode="bootstrap",
            environment=environment,
            staged=(Staged(lib.key, "low"),),
        )
        assert text.split() == [
            "/staging/thing.build",
            "/staging/thing.inst",
            "/staging/tools/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            *("thing.build", "thing.inst", "tools"),
            "root",
            "hidden",
            "read-only",
        ]

    def test_bootstrap_without_staged_chunks(self, kit: Kit) -> None:
        text = printed(kit, "ls -A ..", mode="test", staged=())
        assert text.split() == ["thing.build", "thing.inst"]


class TestArtifacts:
    def test_chunk_is_split_into_artifacts_by_rules(self, kit: Kit) -> None:
        job = kit.chunk(
            install=[
                INSTALL + "cd $DESTDIR; cp /bin/true usr/bin/it; chmod 4755 usr/bin/it",
                "cd $DESTDIR; ln -s it usr/bin/soft; ln usr/bin/it usr/bin/hard",
                "cd $DESTDIR; mkdir -m 1777 var; mkfifo var/f",
            ]
        )
        manifest = kit.build(job)
        assert [each.name for each in manifest.artifacts] == [
            "thing-bins",
            "thing-devel",
            "thing-misc",
        ]
        bins = kit.entries(manifest, "thing-bins")
        assert list(bins) == ["usr", "usr/bin", "usr/bin/hard", "usr/bin/it", "usr/bin/soft"]
        assert (bins["usr/bin/hard"].mode, bins["usr/bin/hard"].type) == (0o4755, archive.FILE)
        assert (bins["usr/bin/it"].type, bins["usr/bin/it"].link) == (
            archive.HARD_LINK,
            b"usr/bin/hard",
        )
        assert bins["usr/bin/soft"].link == b"it"
        assert manifest.artifact("thing-devel").blob is None
        misc = kit.entries(manifest, "thing-misc")
        # the pattern of -bins has a slash after bin, and a directory's path has none
        assert list(misc) == ["usr", "usr/bin", "var", "var/f"]
        assert (misc["var"].mode, misc["var/f"].type) == (0o1777, archive.FIFO)

    def test_chunk_that_installs_nothing_has_empty_artifacts(self, kit: Kit) -> None:
        manifest = kit.build(kit.chunk(build=[":"]))
        assert {each.blob for each in manifest.artifacts} == {None}
        assert manifest.log is not None

    def test_chunk_with_a_file_that_matches_no_rule_fails(self, kit: Kit) -> None:
        rules = (Rule("thing-bins", ("usr/bin/.*",)),)
        job = kit.chunk(install=[INSTALL + "touch $DESTDIR/usr/bin/a $DESTDIR/b"], rules=rules)
        with pytest.raises(BuildFailed, match=r"No split rule(.|\n)*  /b$"):
            kit.build(job)

    def test_chunk_integration_scripts_are_inside_their_artifact(self, kit: Kit) -> None:
        integration = (
            ("thing-bins", "50-x", ("first", "second\nline")),
            ("thing-none", "10-y", ("lost",)),
        )
        manifest = kit.build(kit.chunk(build=[":"], integration=integration))
        bins = kit.entries(manifest, "thing-bins")
        script = bins["baserock/system-integration/50-x-thing-bins-0001"]
        assert (script.mode, script.data) == (0o755, b"#!/bin/sh\nset -xeu\nsecond\nline")
        assert "warning: system-integration 10-y is for thing-none" in kit.log_text

    def test_chunk_integration_scripts_follow_no_links_out(self, kit: Kit, tmp_path: Path) -> None:
        (tmp_path / "victim").mkdir()
        job = kit.chunk(
            install=[f"ln -s {tmp_path}/victim $DESTDIR/baserock"],
            integration=(("thing-bins", "50-x", (":",)),),
        )
        with pytest.raises(BuildFailed, match="/baserock must be a directory"):
            kit.build(job)
        assert not list((tmp_path / "victim").iterdir())

    def test_chunk_devices_are_in_the_archive_only(self, kit: Kit) -> None:
        device = Device("/dev/console", "c", 0o600, 5, 1, 0, 5)
        manifest = kit.build(kit.chunk(build=[":"], devices=(device,)))
        entry = kit.entries(manifest, "thing-misc")["dev/console"]
        assert entry[:3] == (b"dev/console", archive.CHARACTER, 0o600)
        assert (entry.major, entry.minor, entry.uid, entry.gid) == (5, 1, 0, 5)

    def test_chunk_may_install_unreadable_files_and_odd_names(self, kit: Kit) -> None:
        script = (
            "cd $DESTDIR; echo secret > shut; chmod 0 shut; mkdir dark; echo in > dark/in;"
            " chmod 4111 dark/in; chmod 0 dark; touch \"$(printf 'bad\\377name\\nnew')\";"
            " mkdir -p $(printf '%0100d/%0100d' 1 2); touch $(printf '%0100d/%0100d/end' 1 2);"
            " ln -s $(printf '%0150d' 3) long"
        )
        found = kit.entries(kit.build(kit.chunk(install=[script])), "thing-misc")
        assert (found["shut"].mode, found["shut"].data) == (0, b"secret\n")
        assert (found["dark"].mode, found["dark/in"].mode) == (0, 0o4111)
        assert found["dark/in"].data == b"in\n"
        assert "bad\udcffname\nnew" in found
        assert f"{1:0100}/{2:0100}/end" in found
        assert found["long"].link == f"{3:0150}".encode()

    def test_chunk_artifacts_are_reproducible(self, kit: Kit, tmp_path: Path) -> None:
        other = Kit(tmp_path / "other", kit.base_archive)
        commands = [
            INSTALL + "cd $DESTDIR/usr/bin; for i in $(seq 20); do echo $i > f$i; done; ln f1 g",
            "dd if=/dev/zero of=$DESTDIR/big bs=1024 count=3000 2>/dev/null; mkdir $DESTDIR/d",
        ]
        with other.workspace:
            manifests = [each.build(each.chunk(install=commands)) for each in (kit, other)]
        assert manifests[0].artifacts == manifests[1].artifacts

    def test_chunk_manifest_and_log_are_stored(self, kit: Kit) -> None:
        job = kit.chunk(build=["echo hello"], metadata={"repo": "upstream:it"})
        manifest = kit.build(job, builder="worker-1")
        assert kit.store.manifest(job.key) == manifest
        assert (manifest.builder, manifest.metadata) == ("worker-1", {"repo": "upstream:it"})
        assert manifest.log is not None
        assert kit.store.read(manifest.log) == kit.log_bytes
        assert manifest.log.sha256 == hashlib.sha256(kit.log_bytes).hexdigest()
        assert "### BUILD-COMMANDS ###\n+ echo hello\nhello\n" in kit.log_text

    def test_chunk_leaves_nothing_in_scratch(self, kit: Kit) -> None:
        kit.build(kit.chunk(build=["touch /tmp/x; touch y"], source=kit.tree(a="1")))
        kit.workspace.close(patience=100)
        assert not list((kit.workspace.root / "tmp").iterdir())

    def test_chunk_in_the_store_is_not_built_again(self, kit: Kit) -> None:
        job = kit.chunk(build=["echo building"])
        first = kit.build(job, builder="one")
        log = kit.log_text
        assert kit.build(job, builder="two") == first
        assert first.builder == "one"
        assert kit.log_text == log, "whoever was faster wrote it"


@pytest.mark.parametrize("lines", [1, 1000])
def test_chunk_log_in_the_store_is_sealed(kit: Kit, lines: int) -> None:
    job = kit.chunk(build=[f"seq {lines}"])
    with Log(kit.root / "log") as log:
        manifest = build(job, kit.workspace, log, kit.cancel, jobs=1)
        with pytest.raises(OSError, match="sealed"):
            log.write("more")
        assert manifest.log == log.blob()
    assert kit.store.read(manifest.log).endswith(f"\n{lines}\n".encode())


def test_chunk_phases_are_in_order(kit: Kit) -> None:
    lists = ("pre-configure", "configure", "build", "post-install", "strip")
    commands = tuple((f"{name}-commands", (":", ":")) for name in lists)
    kit.build(kit.chunk(commands=commands))
    assert kit.phases == ["fetch", "configure", "build", "install", "strip", "store"]


class TestOverlaidSources:
    """Sources of few files are copied, as in the tests above; larger ones are overlaid."""

    @pytest.fixture
    def source(self, kit: Kit) -> Source:
        source = kit.tree(**{f"file{number}": str(number) for number in range(100)})
        (kit.sources.trees[source.tree] / "file7").chmod(0o755)
        return source

    def test_overlaid_sources_are_not_changed(self, kit: Kit, source: Source) -> None:
        before = scan(kit.sources.trees[source.tree])
        command = (
            "stat -c '%Y %a' . file7 file8; echo more >> file1; rm file2; mkdir new; touch new/x;"
            " chmod 700 .; cat file1; ls | wc -l"
        )
        times = "1000000000 "
        assert printed(kit, command, source=source) == (
            f"{times}755\n{times}755\n{times}644\n1more\n100\n"
        )
        assert scan(kit.sources.trees[source.tree]) == before

    def test_overlaid_sources_are_separate_for_each_build(self, kit: Kit, source: Source) -> None:
        for name in ("one", "two"):
            test = "test ! -e made; test -e file2; touch made; rm file2"
            kit.build(kit.chunk(name, source=source, build=[test]))

    def test_overlaid_sources_can_be_opened_after_a_failure(
        self, kit: Kit, source: Source, capfd: pytest.CaptureFixture[str]
    ) -> None:
        job = kit.chunk(source=source, build=["echo was here > made; rm file3; exit 9"])
        with pytest.raises(BuildFailed):
            kit.build(job)
        for _ in range(2):  # the tree can be mounted again and again
            argv = ["sh", "-c", "cat made file4; ls | wc -l"]
            assert shell(job, kit.workspace, jobs=1, argv=argv) == 0
            assert capfd.readouterr().out == "was here\n4100\n"

    def test_overlaid_sources_hold_their_submodules(self, kit: Kit, source: Source) -> None:
        inner = kit.tree(name="inner")
        (kit.sources.trees[source.tree] / "lib").mkdir()
        whole = Source("a", "r", "2" * 40, source.tree, (("lib", inner),))
        text = printed(kit, "cat lib/name file5; ls | wc -l; rm -r lib; echo x > lib", source=whole)
        assert text == "inner5101\n"
        assert (kit.sources.trees[inner.tree] / "name").read_text() == "inner"

    def test_overlaid_sources_in_odd_path(self, kit: Kit, source: Source, tmp_path: Path) -> None:
        other = Kit(tmp_path / "a,b:c d\\e", kit.base_archive)
        other.sources = kit.sources
        other.workspace.sources = kit.sources
        with other.workspace:
            other.build(other.chunk(source=source, build=["test -e file9"]))


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("make all", "make all"),
        ("# First the library,\n\n  # then the rest\nmake lib\nmake all", "make lib"),
        ("\n  ./configure \\\n  --prefix=/usr\n", "./configure \\"),
        ("# nothing else", "# nothing else"),
    ],
)
def test_command_title_is_its_first_real_line(command: str, shown: str) -> None:
    assert title(command) == shown
