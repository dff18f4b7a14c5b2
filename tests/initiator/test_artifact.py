"""``artifact``: what the store has, one built step, and its end; keys in place of names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from initiator_kit import Project
from msgspec.structs import replace
from store_kit import key, step
from waiting import until

from fabric.client.catalogue import Catalogue
from fabric.trove.artifacts.manifests import apart, encode
from fabric.trove.artifacts.store import Store

SYSTEM = "../systems/small.morph"
#: No archive of this is so small that its manifest contains it.
MUCH = "mkdir -p $DESTDIR/usr/bin; seq 1 4000 | sha256sum >>hello.txt; seq {1} 40000 | "
MUCH += "cksum >>hello.txt; for i in $(seq 300); do echo {0}$i | sha256sum; done >>hello.txt; "
MUCH += "cp hello.txt $DESTDIR/usr/bin/{0}; ln -s {0} $DESTDIR/usr/bin/{0}-link"


def built(project: Project) -> Project:
    project.write(one=MUCH.format("one", 1), two=("one", MUCH.format("two", 1)))
    done = project.build()
    assert done.returncode == 0, done.stderr + done.stdout
    return project


def ask(project: Project, *args: str) -> Any:
    done = project.run("artifact", *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def keys(project: Project) -> dict[str, str]:
    return {one["name"]: one["key"] for one in ask(project, "list")["artifacts"]}


def blobs(project: Project) -> set[str]:
    return {file.name for file in (project.cache / "artifacts/blobs").glob("*/*")}


def blobs_of(project: Project, key: str) -> set[str]:
    """The blobs of a step that are files of their own."""
    manifest = Store(str(project.cache / "artifacts"), project.cache / "tmp").manifest(key)
    return {blob.sha256 for blob in apart(manifest)}


def settle(project: Project) -> None:
    """Let a second pass, for which the store keeps blobs that may have a manifest soon."""
    newest = max(file.stat().st_mtime for file in project.cache.glob("artifacts/blobs/*/*"))
    until(lambda: time.time() > newest + 1.1, what="for old blobs")


def test_list_has_names_sizes_times_and_systems(project: Project) -> None:
    built(project)
    found = ask(project, "list")
    by_name = {one["name"]: one for one in found["artifacts"]}
    assert list(by_name) == ["one", "small", "things", "two"]
    assert by_name["one"]["systems"] == by_name["things"]["systems"] == ["small"]
    assert by_name["small"]["systems"] == []
    assert by_name["one"]["kind"] == "chunk"
    for one in by_name.values():
        assert time.time() - 120 < one["built"] <= one["used"] + 1 <= time.time() + 1
    total = sum(file.stat().st_size for file in project.cache.glob("artifacts/blobs/*/*"))
    assert total <= found["bytes"] < total + 20_000, "logs are in the manifests"
    lines = project.run("artifact", "list", "t*").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "things", "two", "2"]
    one = by_name["one"]["key"]
    assert re.fullmatch(rf"one +chunk +{one[:12]} .* s ago +small", find(project, one[:8])[1])
    assert find(project, one[:7]) == [f"0 artifacts, 0 B in {project.cache}/artifacts"]


def find(project: Project, *patterns: str) -> list[str]:
    return project.run("artifact", "list", *patterns).stdout.splitlines()


def test_list_of_an_empty_store(project: Project) -> None:
    assert find(project) == [f"0 artifacts, 0 B in {project.cache}/artifacts"]
    assert ask(project, "list")["artifacts"] == []


def test_list_reports_damaged_manifests(project: Project) -> None:
    built(project)
    file = project.cache / "artifacts/manifests" / keys(project)["one"]
    file.chmod(0o600)
    file.write_text("spoilt")
    done = project.run("artifact", "list")
    assert "one " not in done.stdout
    assert "1 more cannot be read: `fabric-initiator cache check` looks" in done.stderr


def test_list_of_thousands_takes_a_second(tmp_path: Path) -> None:
    """Yardstick: reading all manifests one by one."""
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    manifests = tmp_path / "store/manifests"
    manifests.mkdir(parents=True)
    for number in range(3000):
        manifest, _ = step(number, b"data of %d" % number)
        manifest = replace(manifest, staged=tuple(map(key, range(max(0, number - 100), number))))
        (manifests / manifest.key).write_bytes(encode(manifest))
    began = time.monotonic()
    assert all(store.manifest(key(number)) for number in range(3000))
    reading = time.monotonic() - began
    began = time.monotonic()
    catalogue = Catalogue(store)
    assert len(catalogue.select(["*"])) == 3000
    assert all(catalogue.systems(one) == [] for one in catalogue.steps)
    assert time.monotonic() - began < 3 * reading + 0.5


def test_show_has_facts_inputs_and_files(project: Project) -> None:
    built(project)
    shown = project.run("artifact", "show", "two").stdout
    all_keys = keys(project)
    assert re.search(rf"(?m)^key +{all_keys['two']}$", shown)
    assert re.search(r"(?m)^needed by +stratum things, system small$", shown)
    assert re.search(r"(?m)^  build-mode +test$", shown)
    assert f"\nbuilt with:\n  {all_keys['one'][:12]}  one\n" in shown
    assert re.search(r"(?m)^  -rw-r--r--  2\d kB  /usr/bin/two +two-bins$", shown), shown
    assert re.search(r"(?m)^  lrwxrwxrwx +/usr/bin/two-link -> two  two-bins$", shown)
    assert re.search(r"(?m)^  drwxr-xr-x +/usr$", shown)
    assert (
        "/usr" not in project.run("artifact", "show", "two", "--no-files").stdout.split("\n\n")[-1]
    )
    facts = ask(project, "show", all_keys["two"][:8])
    assert facts["built_with"] == [all_keys["one"]]
    assert facts["log"]["name"] == "build-step-two-misc.log"
    [file] = [one for one in facts["files"] if one["path"] == "/usr/bin/two"]
    assert (file["type"], file["mode"], file["artifact"]) == ("file", "644", "two-bins")
    stratum = ask(project, "show", "things")
    assert stratum["files"] is None
    contents = [one["artifact"] for each in stratum["artifacts"] for one in each["contents"]]
    assert contents == ["one-bins", "one-misc", "two-bins", "two-misc"]


def test_show_by_name_means_the_definitions(project: Project) -> None:
    built(project)
    old = keys(project)["two"]
    project.write(one=MUCH.format("one", 1), two=("one", MUCH.format("two", 2)))
    done = project.run("artifact", "show", "two")
    assert done.returncode == 1
    build = "fabric-initiator build systems/small.morph two"
    assert f"two: not built yet with these inputs; run: {build}\n" in done.stderr
    assert f"the store has other builds of it, to be named by key: {old[:12]} (" in done.stderr
    assert project.build().returncode == 0
    assert ask(project, "show", "two")["key"] != old
    assert ask(project, "show", old[:16])["key"] == old


def test_show_without_definitions(project: Project, tmp_path: Path) -> None:
    built(project)
    cache = ["--cache", str(project.cache)]
    command = ["show", "two", "--no-files", *cache]
    done = project.run("artifact", *command, within=["env", "-C", str(tmp_path)])
    assert re.match(r"name +two\n", done.stdout), done.stderr
    wrong = project.run("artifact", "show", "tow", *cache, within=["env", "-C", str(tmp_path)])
    assert wrong.returncode == 1
    assert "no definitions here" in wrong.stderr


def test_keys_that_are_unknown_or_ambiguous(project: Project) -> None:
    built(project)
    folder = project.cache / "artifacts/manifests"
    for name in ("0123456789" + "a" * 54, "0123456789" + "b" * 54):
        (folder / name).write_text("{}")
    for command in (["artifact", "show"], ["artifact", "delete"], ["logs"], ["shell"]):
        done = project.run(*command, "01234567")
        assert done.returncode == 1
        both = "0123456789aaaaaa, 0123456789bbbbbb"
        assert f"01234567: several keys begin so: {both}; give more digits\n" in done.stderr
        done = project.run(*command, "76543210")
        store = f"{project.cache}/artifacts"
        assert f"76543210: the store {store} has no key that begins so\n" in done.stderr
    done = project.run("checkout", "76543210", "--to", "there")
    assert "76543210: the store" in done.stderr
    gone = "7" * 64
    assert f"{gone}: the store" in project.run("logs", gone).stderr


def test_checkout_and_logs_by_key(project: Project) -> None:
    built(project)
    found = keys(project)
    assert project.run("logs", found["two"][:8]).stdout == project.run("logs", "two").stdout
    assert json.loads(project.run("logs", found["two"], "--json").stdout)["key"] == found["two"]
    for name, there in (("two", ["two"]), ("things", ["one", "two"]), ("small", ["one", "two"])):
        done = project.run("checkout", found[name][:10], "--to", name)
        assert done.returncode == 0, done.stderr
        binaries = project.logs / name / "usr/bin"
        assert sorted(p.name for p in binaries.iterdir() if not p.is_symlink()) == there
    assert project.run("checkout", found["two"], "two-bins", "--to", "two.tar").returncode == 0
    wrong = project.run("checkout", found["two"], "one-bins", "--to", "three")
    key = found["two"][:12]
    assert f"one-bins: two {key} has no such artifact, but two-bins, two-misc\n" in wrong.stderr
    assert project.run("artifact", "delete", "one").returncode == 0
    wrong = project.run("checkout", found["things"], "--to", "four")
    assert "no longer has it; build stratum things again" in wrong.stderr


def test_checkout_by_key_removes_a_damaged_artifact(project: Project) -> None:
    built(project)
    key = keys(project)["two"]
    for blob in (project.cache / "artifacts/blobs").glob("*/*"):
        blob.chmod(0o600)
        blob.write_bytes(b"x" * blob.stat().st_size)
    done = project.run("checkout", key, "--to", "two")
    assert done.returncode == 1
    assert "it is removed, and built again when needed" in done.stderr
    assert key not in keys(project).values()


def test_delete_frees_bytes_and_names_users(project: Project) -> None:
    built(project)
    settle(project)
    key = keys(project)["one"]
    layer = project.cache / "work/layers" / key
    mine = blobs_of(project, key)
    assert layer.is_dir()
    before = blobs(project)
    dry = project.run("artifact", "delete", "one", "--dry-run").stdout
    assert f"one {key[:12]}: would be deleted\n" in dry
    assert blobs(project) == before
    assert layer.is_dir()
    done = project.run("artifact", "delete", "one")
    assert done.returncode == 0, done.stderr
    assert done.stdout == dry.replace("would be ", "")
    assert "  made from it, and kept: chunk two, stratum things, system small\n" in done.stdout
    assert before - blobs(project) == mine
    assert not layer.exists()
    assert sorted(keys(project)) == ["small", "things", "two"]
    facts = ask(project, "delete", "small", "two")
    assert len(facts["deleted"]) == 2
    assert sorted(map(len, facts["needed_by"].values())) == [0, 1], "the stratum stays"
    assert project.build("one").returncode == 0, "it is built again"
    assert "one" in keys(project)


def test_delete_keeps_blobs_of_equal_steps(project: Project) -> None:
    """Early cutoff: another manifest names the same blobs."""
    built(project)
    settle(project)
    first = keys(project)["two"]
    changed = MUCH.format("one", 1) + "; true"
    project.write(one=changed, two=("one", MUCH.format("two", 1)))
    assert project.build().returncode == 0
    second = ask(project, "show", "two")
    assert second["origin"] == first
    assert ask(project, "show", first)["equal"] == [second["key"]]
    settle(project)
    before = blobs(project)
    done = project.run("artifact", "delete", first)
    assert "  files stay that others share with it: chunk two\n" in done.stdout
    assert blobs(project) == before
    assert project.run("checkout", SYSTEM, "two", "--to", "there").returncode == 0
    settle(project)
    mine = blobs_of(project, second["key"])
    assert project.run("artifact", "delete", "two").returncode == 0
    assert mine
    assert before - blobs(project) == mine


def test_delete_refuses_what_a_running_build_reserves(project: Project) -> None:
    built(project)
    quick = MUCH.format("one", 1), ("one", MUCH.format("two", 1))
    project.write(one=quick[0], two=quick[1], slow=("two", "sleep 100"))
    child = project.start()
    try:
        until(
            lambda: list((project.cache / "artifacts/reserved").glob("*")),
            what="for the reservation",
        )
        key = keys(project)["one"]
        done = project.run("artifact", "delete", "one", "two")
        assert done.returncode == 1
        assert f"one ({key[:12]}), two (" in done.stderr
        assert "a build that runs needs them; nothing is deleted" in done.stderr
        assert key in keys(project).values()
    finally:
        child.terminate()
        child.wait(60)
    assert project.run("artifact", "delete", "one").returncode == 0


def test_delete_without_name_or_with_unknown_one(project: Project) -> None:
    built(project)
    for action in ("show", "delete"):
        done = project.run("artifact", action)
        assert done.returncode == 1
        assert "`fabric-initiator artifact list` lists all" in done.stderr
    assert project.run("artifact", "show", "one", "two").returncode == 1
    done = project.run("artifact", "delete", "one", "7" * 64)
    assert done.returncode == 1
    assert "does not have it" in done.stderr
    assert "one" in keys(project), "nothing is deleted"


@pytest.mark.parametrize("name", ["artifact", "checkout", "logs", "shell"])
def test_command_is_imported_without_sockets_and_clouds(name: str) -> None:
    script = f"import sys, fabric.commands.{name}; print({{'zmq', 'obstore'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"set()\n"
