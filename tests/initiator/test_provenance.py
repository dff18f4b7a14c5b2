"""Provenance statements as other tools read them, and the check of a whole system."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from initiator_kit import Project
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]
from small_definitions import git

from fabric.commands.provenance import definitions_of
from fabric.commands.shared.plans import open_plan, take_snapshot
from fabric.config import load_settings
from fabric.errors import FabricError
from fabric.jobs import Artifact, Blob, Manifest
from fabric.trove.artifacts.store import Store
from fabric.trust.seal import Seal
from fabric.trust.signing import TrustedKeys

TEXT = "small is what its definitions and sources give"


class Signed:
    """A built project whose artifacts are signed."""

    def __init__(self, project: Project, trusted: Path) -> None:
        self.project = project
        self.trusted = trusted
        project.write(one="echo one > $DESTDIR/one", two=("one", "echo two > $DESTDIR/two"))
        done = self.run("build")
        assert done.returncode == 0, done.stderr
        self.keys = TrustedKeys(trusted)
        self.store = Store(
            str(project.cache / "artifacts"), project.cache / "tmp", seal=Seal(self.keys)
        )
        self.manifests = {one.name: one for one in self.store.manifests(self.store.keys()) if one}

    def run(self, command: str, *args: str) -> Any:
        return self.project.run(
            command, "../systems/small.morph", *args,
            environ={"FABRIC_TRUSTED_KEYS": str(self.trusted)},
        )  # fmt: skip

    def replace(self, manifest: Manifest, files: dict[str, bytes | Path]) -> None:
        """Put another manifest in the place of one: signed, too."""
        self.store.remove([manifest.key])
        self.store.put(manifest, files)


@pytest.fixture
def signed(project: Project, tmp_path: Path) -> Signed:
    return Signed(project, tmp_path / "trusted")


def statements(signed: Signed, *args: str) -> dict[str, dict[str, Any]]:
    """Name of a step -> its statement, read and checked by the libraries of the formats."""
    done = signed.run("provenance", *args)
    assert done.returncode == 0, done.stderr
    [own] = signed.keys.all()
    theirs = SSlibKey(own.id, "ed25519", "ed25519", {"public": own.key.encode().hex()})
    found = {}
    for line in done.stdout.splitlines():
        envelope = OtherEnvelope.from_dict(json.loads(line))
        envelope.verify([theirs], 1)
        assert envelope.payload_type == "application/vnd.in-toto+json"
        read = json_format.Parse(envelope.payload, statement_pb2.Statement())
        Statement.copy_from_pb(read).validate()
        assert read.predicate_type == "https://slsa.dev/provenance/v1"
        content = json.loads(envelope.payload)
        json_format.ParseDict(content["predicate"], provenance_pb2.Provenance())  # unknown: error
        name = content["predicate"]["buildDefinition"]["externalParameters"]["step"]
        found[name] = content
    return found


def resources(statement: dict[str, Any]) -> dict[str, dict[str, str]]:
    needs = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return {one["name"]: one["digest"] for one in needs}


def test_provenance_leads_from_the_system_to_its_sources(signed: Signed) -> None:
    found = statements(signed)
    assert found.keys() == {"one", "two", "small"}
    made = {
        one["name"]: one["digest"]["sha256"]
        for statement in found.values()
        for one in statement["subject"]
    }
    system = resources(found["small"])
    assert system["one-misc"]["sha256"] == made["one-misc"]
    assert system["two-misc"]["sha256"] == made["two-misc"]
    two = resources(found["two"])
    assert two["one-misc"]["sha256"] == made["one-misc"]
    head = git(signed.project.source, "rev-parse", "HEAD", "HEAD^{tree}").split()
    assert two["source of two"] == {"gitCommit": head[0], "gitTree": head[1]}
    assert two["definitions"].keys() == {"gitTree"}, "they are in no repository"
    [own] = signed.keys.all()
    run = found["two"]["predicate"]["runDetails"]
    assert run["builder"]["id"] == f"urn:distbuild:key:{own.id}"
    assert run["metadata"]["startedOn"] <= run["metadata"]["finishedOn"]
    assert statements(signed, "one").keys() == {"one"}


def test_provenance_names_the_commit_only_of_files_that_are_committed(signed: Signed) -> None:
    root = signed.project.root
    (root / ".gitignore").write_text("here\nsource\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    head = git(root, "rev-parse", "HEAD", "HEAD^{tree}").split()
    committed = resources(statements(signed, "one")["one"])["definitions"]
    assert committed == {"gitCommit": head[0], "gitTree": head[1]}
    (root / "note").write_text("not committed\n")
    changed = resources(statements(signed, "one")["one"])["definitions"]
    assert changed.keys() == {"gitTree"}
    assert changed["gitTree"] != head[1]


def test_provenance_of_definitions_that_change_meanwhile_is_refused(signed: Signed) -> None:
    root = signed.project.root
    system = str(root / "systems/small.morph")
    cache = str(signed.project.cache)
    project, plan = open_plan(load_settings({}, {"cache": cache}), system, [])
    tree = take_snapshot(project)[0].tree
    assert definitions_of(project, plan, tree).tree == tree
    (root / "note").write_text("new\n")
    with pytest.raises(FabricError, match="have changed since this command began: run it again"):
        definitions_of(project, plan, tree)


def test_provenance_of_what_is_not_built_or_not_signed_is_refused(
    signed: Signed, tmp_path: Path
) -> None:
    plain = signed.project.run("provenance", "../systems/small.morph")
    assert plain.returncode == 1
    assert "name a directory in the setting trusted-keys" in plain.stderr
    other = Signed.__new__(Signed)
    other.project, other.trusted = signed.project, tmp_path / "others"
    done = other.run("provenance")
    assert done.returncode == 1
    assert "one, two, things, small: the store has no manifest that counts" in done.stderr


def test_edited_source_has_no_provenance(signed: Signed, tmp_path: Path) -> None:
    """Its commit is in no repository that the statement could name."""
    edited = signed.project.run("edit", "two", "--to", str(tmp_path / "two"))
    assert edited.returncode == 0, edited.stderr
    done = signed.run("provenance")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "two in " in done.stderr
    assert "a source that is edited here is in no repository" in done.stderr
    assert signed.run("provenance", "one").returncode == 0
    assert "edited: two in " in signed.run("verify").stderr


def test_right_system_is_verified(signed: Signed, tmp_path: Path) -> None:
    done = signed.run("verify")
    assert done.returncode == 0
    assert "small is what its definitions and sources give\n  checked    4 steps" in done.stdout
    assert "signed by  own (4)" in done.stdout
    assert "not pinned by content" in done.stderr
    found = json.loads(signed.run("verify", "--json").stdout)
    assert found["right"]
    assert (found["steps"], found["signed_by"], found["wrong"]) == (4, {"own": 4}, [])

    done = signed.run("verify", "one")
    assert (
        "one of small is what its definitions and sources give\n  checked    1 step" in done.stdout
    )

    [blob] = [one.blob for one in signed.manifests["two"].artifacts if one.blob]
    file = tmp_path / "file"
    file.write_bytes(signed.store.read(blob))
    assert f"{file} is two-misc of two" in signed.run("verify", "--file", str(file)).stdout
    file.write_bytes(b"other")
    done = signed.run("verify", "--file", str(file))
    assert done.returncode == 1
    assert f"{file}: it is no artifact of small\n" in done.stdout


def test_disk_image_is_verified(project: Project, tmp_path: Path) -> None:
    kernel = "mkdir -p $DESTDIR/boot $DESTDIR/etc; echo 6 > $DESTDIR/boot/vmlinuz-6"
    project.write(one=kernel)
    environ = {"FABRIC_TRUSTED_KEYS": str(tmp_path / "trusted")}

    def run(*args: str) -> Any:
        return project.run(args[0], "../systems/small.morph", *args[1:], environ=environ)

    assert run("build").returncode == 0
    image = str(tmp_path / "disk.img")
    made = run("image", "--to", image, "--size", "96M", "--hostname", "host")
    assert made.returncode == 0, made.stderr
    done = run("verify", "--image", image)
    assert done.returncode == 1
    assert f"{image}: /etc/hostname: added\n" in done.stdout
    done = run("verify", "--image", image, "--added", "/etc/hostname")
    assert done.returncode == 0, done.stderr
    assert " files and folders compared, but for etc/hostname\n" in done.stdout
    done = run("verify", "--image", image, "--added", "/etc/host")
    assert done.returncode == 1
    found = json.loads(run("verify", "--image", image, "--added", "/etc", "--json").stdout)
    assert found["image"]["added"] == ["etc/hostname"]
    Path(image).write_bytes(b"no image")
    done = run("verify", "--image", image)
    assert done.returncode == 1
    assert "is not a raw disk image" in done.stderr
    assert "No such file" in run("verify", "--image", str(tmp_path / "no")).stderr


def test_commit_of_the_same_tree_is_the_same_source(signed: Signed) -> None:
    git(signed.project.source, "commit", "-qm", "second", "--allow-empty")
    assert signed.run("verify").returncode == 0


def test_step_of_an_older_version_has_its_inputs_by_key(signed: Signed) -> None:
    two = signed.manifests["two"]
    assert len(two.input_digests) == 1
    signed.replace(msgspec.structs.replace(two, input_digests=()), {})
    done = signed.run("verify")
    assert done.returncode == 0
    assert "by key     what 1 of 4 steps were made from: an older" in done.stdout
    assert json.loads(signed.run("verify", "--json").stdout)["inputs_by_key"] == 1
    named = {name: internal(one).get("inputsNamedBy") for name, one in statements(signed).items()}
    assert named == {"one": None, "two": "cacheKey", "small": "digest"}


def internal(statement: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = statement["predicate"]["buildDefinition"]["internalParameters"]
    return found


def test_provenance_of_what_was_made_from_lost_bytes_is_refused(signed: Signed) -> None:
    other_contents_below(signed)
    done = signed.run("provenance")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "two: it was made from other contents of one than the store has" in done.stderr


def other_inputs(signed: Signed) -> None:
    two = signed.manifests["two"]
    signed.replace(msgspec.structs.replace(two, inputs={**two.inputs, "prefix": "/other"}), {})


def hostile_input(signed: Signed) -> None:
    two = signed.manifests["two"]
    name = f"a\n{TEXT}\n" + "b" * 1000
    signed.replace(msgspec.structs.replace(two, inputs={**two.inputs, name: "x"}), {})


def other_recipe(signed: Signed) -> None:
    """A name that the statement has for itself."""
    two = signed.manifests["two"]
    signed.replace(msgspec.structs.replace(two, inputs={**two.inputs, "recipe": "mine"}), {})


def other_staging_area(signed: Signed) -> None:
    signed.replace(msgspec.structs.replace(signed.manifests["two"], staged=()), {})


def other_contents(signed: Signed) -> None:
    things = signed.manifests["things"]
    lists = tuple(
        msgspec.structs.replace(one, contents=one.contents[:1]) for one in things.artifacts
    )
    signed.replace(msgspec.structs.replace(things, artifacts=lists), {})


def other_bytes(signed: Signed) -> None:
    """A large artifact, so that it is a file of its own, which changes later."""
    data = b"x" * 10_000
    two = signed.manifests["two"]
    artifacts = (Artifact(two.artifacts[0].name, Blob.of(data)), *two.artifacts[1:])
    signed.replace(msgspec.structs.replace(two, artifacts=artifacts), {Blob.of(data).sha256: data})
    [file] = (signed.project.cache / "artifacts/blobs").glob("*/*")
    file.chmod(0o644)
    file.write_bytes(b"y" * 10_000)


def no_inputs(signed: Signed) -> None:
    signed.replace(msgspec.structs.replace(signed.manifests["two"], inputs={}), {})


def no_artifacts(signed: Signed) -> None:
    signed.replace(msgspec.structs.replace(signed.manifests["two"], artifacts=()), {})


def other_step(signed: Signed) -> None:
    signed.replace(msgspec.structs.replace(signed.manifests["two"], arch="armv7l"), {})


def rebuild(signed: Signed) -> None:
    two = signed.manifests["two"]
    signed.replace(msgspec.structs.replace(two, rebuild_of=signed.manifests["one"].key), {})


def other_key(signed: Signed) -> None:
    folder = signed.project.cache / "artifacts/manifests"
    one, two = (folder / signed.manifests[name].key for name in ("one", "two"))
    two.unlink()
    two.write_bytes(one.read_bytes())


def other_contents_below(signed: Signed) -> None:
    """The step below is built once more, with another result."""
    data = b"another"
    one = signed.manifests["one"]
    artifacts = (*one.artifacts[:-1], Artifact(one.artifacts[-1].name, Blob.of(data)))
    signed.replace(msgspec.structs.replace(one, artifacts=artifacts), {})


def more_inputs(signed: Signed) -> None:
    two = signed.manifests["two"]
    digests = (*two.input_digests, "1" * 64)
    signed.replace(msgspec.structs.replace(two, input_digests=digests), {})


def no_manifest(signed: Signed) -> None:
    signed.store.remove([signed.manifests["one"].key])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_inputs, "two: its manifest has another prefix"),
        (
            hostile_input,
            f"two: its manifest has another a\\n{TEXT}\\n{'b' * (128 - 5 - len(TEXT))}\n",
        ),
        (other_staging_area, "two: its manifest has another staging area"),
        (other_contents, "things: its manifest has another list of contents"),
        (other_bytes, "is damaged: its digest is"),
        (no_inputs, "two: its manifest has another build-mode"),
        (no_artifacts, "two: its manifest has another list of artifacts"),
        (other_step, "two: its manifest has another step"),
        (rebuild, "two: its manifest has another step"),
        (other_key, "is damaged: it is that of"),
        (other_contents_below, "two: it was made from other contents of one than the store has"),
        (other_contents_below, "small: it was made from other contents of one than the store has"),
        (more_inputs, "two: its manifest has another number of inputs"),
        (no_manifest, "one: the store has no manifest"),
    ],
)
def test_break_in_the_chain_is_named(
    signed: Signed, change: Callable[[Signed], None], said: str
) -> None:
    change(signed)
    done = signed.run("verify")
    assert done.returncode == 1
    assert said in done.stdout
    assert "small is NOT what its definitions and sources give" in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_inputs, "prefix"),
        (other_recipe, "recipe"),
        (other_staging_area, "staging area"),
        (other_step, "step"),
        (no_artifacts, "list of artifacts"),
    ],
)
def test_provenance_repeats_nothing_that_is_wrong(
    signed: Signed, change: Callable[[Signed], None], said: str
) -> None:
    """A thief of a worker's key gets no false claim signed by the user."""
    change(signed)
    done = signed.run("provenance")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        f"two: its manifest has another {said} than the definitions; see:"
        " fabric-initiator verify systems/small.morph" in done.stderr
    )
