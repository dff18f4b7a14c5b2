"""Signed manifests: whoever may write to a store cannot put anything under a key."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]
from store_kit import key, step

from fabric import bounds
from fabric.errors import DamagedError
from fabric.trove.artifacts.health import Health
from fabric.trove.artifacts.manifests import decode_hint
from fabric.trove.artifacts.store import TOLD, Store
from fabric.trove.artifacts.transfer import copy_steps
from fabric.trust import envelopes
from fabric.trust.seal import MANIFEST, Seal, UnsignedError
from fabric.trust.signing import AGAIN, PublicKey, SigningProblem, TrustedKeys


class Machine:
    """A machine with a key of its own, and a shared store."""

    def __init__(self, top: Path, name: str) -> None:
        self.keys = TrustedKeys(top / name)
        self.said: list[str] = []
        self.store = Store(
            str(top / "store"), top / f"scratch-{name}", seal=Seal(self.keys), said=self.said.append
        )
        self.keys.signer()

    def trust(self, other: Machine, name: str) -> None:
        self.keys.trust(other.keys.directory / "own.pub", name)


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "here")


@pytest.fixture
def there(tmp_path: Path) -> Machine:
    return Machine(tmp_path, "there")


def file_of(tmp_path: Path, number: int = 1) -> Path:
    return tmp_path / "store" / "manifests" / key(number)


def test_only_right_signatures_are_remembered_and_not_for_ever(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Seal(here.keys).close(MANIFEST, b"content")
    seal, wrong = Seal(here.keys), made.replace(b'"sig":"', b'"sig":"AAAA')
    for data in (wrong, made, wrong, made):
        counts = data is made
        if counts:
            assert seal.open(MANIFEST, data) == b"content"
        else:
            with pytest.raises(UnsignedError, match="is wrong"):
                seal.open(MANIFEST, data)
    checked: list[bytes] = []
    is_right = PublicKey.signed

    def signed(key: PublicKey, content: bytes, signature: bytes) -> bool:
        checked.append(content)
        return is_right(key, content, signature)

    monkeypatch.setattr(PublicKey, "signed", signed)
    monkeypatch.setattr("fabric.trust.seal.REMEMBERED", 3)
    assert seal.open(MANIFEST, made) == b"content"
    assert not checked
    for number in range(4):
        seal.close(MANIFEST, b"%d" % number)
    assert seal.open(MANIFEST, made) == b"content"
    assert len(checked) == 1
    here.keys.revoke("own")
    with pytest.raises(UnsignedError, match="revoked"):
        seal.open(MANIFEST, made)


def test_manifest_is_signed_and_checked(tmp_path: Path, here: Machine, there: Machine) -> None:
    manifest, files = step(1, b"content")
    here.store.put(manifest, files)
    assert here.store.manifest(key(1)) == manifest
    assert here.store.has([key(1), key(2)]) == {key(1)}
    plain = Store(str(tmp_path / "store"), tmp_path / "scratch")
    assert plain.manifest(key(1)) == manifest, "who checks no signatures reads it, too"
    assert plain.has([key(1)]) == {key(1)}
    assert there.store.manifest(key(1)) is None
    assert there.store.has([key(1)]) == set()
    assert there.store.has([key(1)]) == set()
    assert len(there.said) == 1, "once"
    assert "counts as absent: it is signed with the unknown key" in there.said[0]
    there.trust(here, "here")
    assert there.store.has([key(1)]) == {key(1)}, "from now on"
    assert there.store.manifest(key(1)) == manifest


def test_reader_without_the_library_reads_what_is_signed(tmp_path: Path, here: Machine) -> None:
    """As a user of a farm who has not installed the extra, and has no `trusted-keys`."""
    here.store.put(*step(1, b"content"))
    script = (
        "import sys; sys.modules['nacl'] = None; from pathlib import Path;"
        "from fabric.trove.artifacts.store import Store;"
        f"store = Store({str(tmp_path / 'store')!r}, Path({str(tmp_path / 'scratch')!r}));"
        f"print(store.manifest({key(1)!r}).key)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{key(1)}\n", done.stderr


def test_another_implementation_reads_the_envelope(tmp_path: Path, here: Machine) -> None:
    here.store.put(*step(1))
    [own] = here.keys.all()
    raw = own.key.encode().hex()
    theirs = SSlibKey(own.id, "ed25519", "ed25519", {"public": raw})

    def verify() -> None:
        content = msgspec.json.decode(file_of(tmp_path).read_bytes())
        OtherEnvelope.from_dict(content).verify([theirs], 1)

    verify()
    _changed(tmp_path, lambda content: content.update(payload=base64.b64encode(b"x").decode()))
    with pytest.raises(VerificationError):
        verify()


def unsigned(tmp_path: Path, here: Machine, there: Machine) -> None:  # noqa: ARG001
    Store(str(tmp_path / "store"), tmp_path / "scratch").put(*step(1))


def of_a_stranger(tmp_path: Path, here: Machine, there: Machine) -> None:  # noqa: ARG001
    there.store.put(*step(1))


def _changed(tmp_path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the JSON of the envelope of step 1."""
    content = msgspec.json.decode(file_of(tmp_path).read_bytes())
    change(content)
    file_of(tmp_path).write_bytes(msgspec.json.encode(content))


def with_another_content(tmp_path: Path, here: Machine, there: Machine) -> None:
    here.store.put(*step(1))
    ours = file_of(tmp_path).read_bytes()
    file_of(tmp_path).unlink()
    there.store.put(msgspec.structs.replace(step(1)[0], seconds=2.0), step(1)[1])
    theirs = msgspec.json.decode(file_of(tmp_path).read_bytes())
    file_of(tmp_path).write_bytes(ours)
    _changed(tmp_path, lambda content: content.update(payload=theirs["payload"]))


def with_a_stranger_signature(tmp_path: Path, here: Machine, there: Machine) -> None:
    there.store.put(*step(1))
    [own] = here.keys.all()
    _changed(tmp_path, lambda content: content["signatures"][0].update(keyid=own.id))  # type: ignore[index]


def without_signatures(tmp_path: Path, here: Machine, there: Machine) -> None:  # noqa: ARG001
    here.store.put(*step(1))
    _changed(tmp_path, lambda content: content.update(signatures=[]))


def of_a_revoked_key(tmp_path: Path, here: Machine, there: Machine) -> None:  # noqa: ARG001
    there.store.put(*step(1))
    here.trust(there, "there")
    assert here.store.has([key(1)]) == {key(1)}
    here.keys.revoke("there")


def of_a_revoked_key_besides(tmp_path: Path, here: Machine, there: Machine) -> None:
    of_a_revoked_key(tmp_path, here, there)
    envelope = envelopes.decode(file_of(tmp_path).read_bytes())
    signer = here.keys.signer()
    signed = envelopes.signed_bytes(envelope.kind, envelope.content)
    more = envelopes.Signature(envelopes.text(signer.sign(signed)), signer.id)
    signatures = (more, *envelope.signatures)
    file_of(tmp_path).write_bytes(
        envelopes.encode(msgspec.structs.replace(envelope, signatures=signatures))
    )


#: (how a manifest comes into the store, what is said)
UNTRUSTED: list[tuple[Callable[[Path, Machine, Machine], None], str]] = [
    (unsigned, "it is not signed"),
    (of_a_stranger, "it is signed with the unknown key"),
    (with_another_content, "its signature of own is wrong"),
    (with_a_stranger_signature, "its signature of own is wrong"),
    (without_signatures, "it is not signed"),
    (of_a_revoked_key, "it is signed with the key there-[0-9a-f]{12}, which is revoked"),
    (of_a_revoked_key_besides, "it is signed with the key there-[0-9a-f]{12}, which is revoked"),
]


@pytest.mark.parametrize(("how", "said"), UNTRUSTED, ids=[one[0].__name__ for one in UNTRUSTED])
def test_untrusted_manifest_is_absent_and_replaced(
    tmp_path: Path,
    here: Machine,
    there: Machine,
    how: Callable[[Path, Machine, Machine], None],
    said: str,
) -> None:
    how(tmp_path, here, there)
    assert here.store.manifest(key(1)) is None
    assert here.store.has([key(1)]) == set()
    [told] = here.said
    assert re.search(f"manifest {key(1)} counts as absent: {said}", told)
    assert Health(here.store).mend([key(1)]) == {}
    assert list(Health(here.store).examine(lambda _: None)) == []
    assert file_of(tmp_path).exists(), "others may trust it"
    manifest, files = step(1)
    manifest = msgspec.structs.replace(manifest, builder="here")
    here.store.put(manifest, files)
    assert here.store.manifest(key(1)) == manifest
    assert here.store.has([key(1)]) == {key(1)}


def test_unusable_key_costs_only_what_it_signed(
    tmp_path: Path, here: Machine, there: Machine
) -> None:
    here.trust(there, "there")
    here.store.put(*step(1))
    there.store.put(*step(2))
    assert here.store.has([key(1), key(2)]) == {key(1), key(2)}
    public = here.keys.directory / "there.pub"
    content = public.read_bytes()
    public.write_bytes(b"no key")
    time.sleep(AGAIN)
    assert here.store.has([key(1), key(2)]) == {key(1)}
    assert here.store.manifest(key(2)) is None
    [told] = here.said
    assert "it is signed with the unknown key" in told
    here.store.put(*step(3))
    assert here.store.has([key(3)]) == {key(3)}

    public.write_bytes(content)
    time.sleep(AGAIN)
    assert here.store.has([key(2)]) == {key(2)}
    here.keys.revoke("there")
    [revoked] = (tmp_path / "here/revoked").iterdir()
    revoked.write_bytes(b"no key")
    time.sleep(AGAIN)
    with pytest.raises(SigningProblem, match="is not a public key of Ed25519 in PEM"):
        here.store.has([key(1)])


def test_trusted_manifest_is_not_replaced(here: Machine) -> None:
    first, files = step(1)
    here.store.put(first, files)
    here.store.put(msgspec.structs.replace(first, builder="second"), files)
    assert here.store.manifest(key(1)) == first


def test_old_manifest_does_not_count_under_another_key(tmp_path: Path, here: Machine) -> None:
    here.store.put(*step(1))
    file_of(tmp_path, 2).write_bytes(file_of(tmp_path).read_bytes())
    with pytest.raises(DamagedError, match=f"it is that of {key(1)}"):
        here.store.manifest(key(2))
    manifest = msgspec.structs.replace(step(1)[0], key=key(2))
    assert here.store.signers(manifest) == [], "nobody signed this"
    _changed(tmp_path, lambda content: content.update(signatures=content["signatures"] * 3))  # type: ignore[operator]
    assert [one.name for one in here.store.signers(step(1)[0])] == ["own"], "once"
    other = msgspec.structs.replace(step(1)[0], builder="other")
    assert here.store.signers(other) == [], "the store has another"


@pytest.mark.parametrize("named", [{}, {"keyid": ""}], ids=["unset", "empty"])
def test_signature_without_the_id_of_a_key_counts_if_a_trusted_key_made_it(
    tmp_path: Path, here: Machine, there: Machine, named: dict[str, str]
) -> None:
    there.store.put(*step(1))

    def forget(content: dict[str, Any]) -> None:
        content["signatures"] = [{"sig": one["sig"], **named} for one in content["signatures"]]

    _changed(tmp_path, forget)
    assert here.store.manifest(key(1)) is None
    [told] = here.said
    assert f"absent: it is signed without the id of a key, and by none in {here.keys}" in told
    here.trust(there, "there")
    assert here.store.manifest(key(1)) == step(1)[0]
    assert [one.name for one in here.store.signers(step(1)[0])] == ["there"]
    here.keys.revoke("there")
    assert here.store.manifest(key(1)) is None
    assert "which is revoked" in here.said[-1]


def test_envelope_of_another_type_does_not_count(tmp_path: Path, here: Machine) -> None:
    """A signature of something else is not one of a manifest."""
    here.store.put(*step(1))
    _changed(tmp_path, lambda content: content.update(payloadType="application/x"))
    with pytest.raises(
        DamagedError,
        match="it is of the type 'application/x', not",
    ):
        here.store.manifest(key(1))


def test_hint_is_signed_with_what_it_is_a_hint_to(
    tmp_path: Path, here: Machine, there: Machine
) -> None:
    """Who writes hints could give a step the output of another one, which is signed, too."""
    digest, other = key(8), key(9)
    file = tmp_path / "store" / "hints" / digest
    here.store.put_hints({digest: key(1), other: key(2)})
    assert here.store.hint(digest) == key(1)
    assert Store(str(tmp_path / "store"), tmp_path / "scratch").hint(digest) == key(1)
    assert there.store.hint(digest) is None
    here.trust(there, "there")
    there.store.put_hints({digest: key(3)})
    assert here.store.hint(digest) == key(3)
    file.write_bytes(file.with_name(other).read_bytes())
    assert here.store.hint(digest) is None
    file.write_bytes(key(2).encode())
    assert here.store.hint(digest) is None


@pytest.mark.bound("SIGNATURES")
def test_envelope_with_too_many_signatures_is_damaged(tmp_path: Path, here: Machine) -> None:
    here.store.put(*step(1))
    more = bounds.SIGNATURES + 1
    _changed(tmp_path, lambda content: content.update(signatures=content["signatures"] * more))  # type: ignore[operator]
    with pytest.raises(DamagedError, match="more than 16 signatures"):
        here.store.manifest(key(1))


@pytest.mark.bound("NAMELESS_SIGNATURES")
def test_envelope_with_too_many_nameless_signatures_is_damaged(
    tmp_path: Path, here: Machine
) -> None:
    here.store.put(*step(1))
    nameless = [{"sig": "AAAA"}] * bounds.NAMELESS_SIGNATURES
    _changed(tmp_path, lambda content: content["signatures"].extend(nameless))  # type: ignore[attr-defined]
    assert here.store.has([key(1)]) == {key(1)}
    _changed(tmp_path, lambda content: content["signatures"].append(nameless[0]))  # type: ignore[attr-defined]
    with pytest.raises(DamagedError, match="more than 4 signatures without a key's id"):
        here.store.manifest(key(1))


@pytest.mark.bound("SIGNATURE")
@pytest.mark.parametrize("field", ["sig", "keyid"])
def test_signature_that_is_too_long_is_damaged(tmp_path: Path, here: Machine, field: str) -> None:
    here.store.put(*step(1))
    long = "A" * (bounds.SIGNATURE + 1)
    _changed(tmp_path, lambda content: content["signatures"].append({"sig": "", field: long}))  # type: ignore[attr-defined]
    with pytest.raises(DamagedError, match="length <= 4096"):
        here.store.manifest(key(1))


def test_copy_has_no_more_than_what_is_signed(tmp_path: Path, here: Machine) -> None:
    """A mirror could add so much to each manifest that the store which copies it is full."""
    here.store.put(*step(1))
    before = file_of(tmp_path).read_bytes()
    content = file_of(tmp_path).read_text().replace('{"payload"', '{"payload":"","payload"')
    file_of(tmp_path).unlink()
    file_of(tmp_path).write_text(content[:-1] + f', "more": "{"x" * 1000}"' + "}" + " " * 1000)
    to = Store(str(tmp_path / "to"), tmp_path / "scratch-to", seal=Seal(here.keys))
    assert copy_steps([key(1)], here.store, to, lambda *_: None).copied == [key(1)]
    assert (tmp_path / "to/manifests" / key(1)).read_bytes() == before


@pytest.mark.parametrize("flip", range(1, 600, 37))
def test_envelope_with_a_flipped_bit_does_not_count(
    tmp_path: Path, here: Machine, flip: int
) -> None:
    here.store.put(*step(1))
    content = bytearray(file_of(tmp_path).read_bytes())
    content[flip] ^= 1
    file_of(tmp_path).write_bytes(content)
    assert here.store.whole_manifest(key(1)) is None


def test_garbage_is_collected_whoever_signed_it(here: Machine, there: Machine) -> None:
    here.store.put(*step(1, b"x" * 10_000))
    there.store.put(*step(2, b"y" * 10_000))
    gone = here.store.gc({key(2)}, now=lambda: time.time() + 7 * 86400)
    assert gone.manifests == 1
    assert here.store.usage().blobs == 2, "what the other one needs stays"
    there.store.verify(step(2, b"y" * 10_000)[0].blobs()[0])


def test_hints_outlive_a_collection(here: Machine, there: Machine) -> None:
    here.store.put(*step(1))
    here.store.put_hints({key(8): key(1), key(9): key(2)})
    there.store.put_hints({key(7): key(1)})
    here.store.gc({key(1)}, now=lambda: time.time() + 7 * 86400)
    assert here.store.hint(key(8)) == key(1)
    assert here.store.hint(key(9)) is None, "there is no such step"
    here.trust(there, "there")
    assert here.store.hint(key(7)) == key(1), "others may trust it"


@pytest.mark.parametrize("keys", [True, False], ids=["signed", "unsigned"])
def test_deep_envelope_is_damaged(tmp_path: Path, here: Machine, keys: bool) -> None:
    store = here.store if keys else Store(str(tmp_path / "store"), tmp_path / "scratch")
    deep = b'{"payload":"","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    store.put(*step(1))
    file_of(tmp_path).unlink()
    file_of(tmp_path).write_bytes(deep)
    with pytest.raises(DamagedError, match="it is nested too deeply"):
        store.manifest(key(1))
    with pytest.raises(ValueError, match="it is nested too deeply"):
        decode_hint(deep, key(8), Seal(here.keys) if keys else None)


@pytest.mark.parametrize("mode", [0o755, 0o777], ids=["own", "shared"])
def test_blob_cannot_change_between_check_and_use(tmp_path: Path, here: Machine, mode: int) -> None:
    """Whoever shares the directory still holds the file that they wrote."""
    manifest, files = step(1, b"content")
    here.store.put(manifest, files)
    [content, _] = manifest.blobs()
    file = here.store.place(content)
    assert file is not None
    (tmp_path / "store/blobs").chmod(mode)
    path = here.store.path(content, key(1))
    assert (path == file) == (mode == 0o755), "no copy is made without need"
    if path == file:
        return
    with here.store.open(content, key(1)) as opened:
        before = file.stat()
        file.chmod(0o644)
        file.write_bytes(b"changed")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert opened.read() == b"content"
    assert here.store.path(content, key(1)).read_bytes() == b"content"
    here.store.copies.gc(0.0)
    with pytest.raises(DamagedError):
        here.store.path(content, key(1))


def test_key_id_of_a_stranger_controls_no_terminal(
    tmp_path: Path, here: Machine, there: Machine
) -> None:
    there.store.put(*step(1))
    _changed(tmp_path, lambda content: content["signatures"][0].update(keyid="\x1b[2J\nx"))  # type: ignore[index]
    assert here.store.manifest(key(1)) is None
    [told] = here.said
    assert told.isprintable()


def test_few_of_many_that_do_not_count_are_told(here: Machine, there: Machine) -> None:
    for number in range(TOLD + 5):
        there.store.put(*step(number))
    assert here.store.has(map(key, range(TOLD + 5))) == set()
    assert len(here.said) == TOLD
    assert here.said[-1].endswith("; no more are told")
