"""A broker states of a step that it is the result of an attempt; readers check that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from store_kit import key, step

from fabric.jobs import Manifest
from fabric.trove.artifacts.countersigned import countersign, countersign_equal, countersigned
from fabric.trove.artifacts.manifests import digest_of
from fabric.trove.artifacts.store import Store
from fabric.trove.artifacts.transfer import copy_steps
from fabric.trust.countersignature import Countersignature
from fabric.trust.seal import Seal
from fabric.trust.signing import TrustedKeys


class Site:
    """A worker, a controller and a reader, who trust one another, on one store."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.url = str(top / "store")
        names = ("worker", "controller", "reader")
        self.keys = {name: TrustedKeys(top / name) for name in names}
        for mine in names:
            self.keys[mine].signer()
        for mine in names:
            for other in set(names) - {mine}:
                self.keys[mine].trust(top / other / "own.pub", other)
        self.worker, self.controller, self.reader = map(self.store, names)

    def store(self, name: str, url: str = "") -> Store:
        return Store(url or self.url, self.top / "scratch", seal=Seal(self.keys[name]))

    def built(self, number: int, *contents: bytes, by: str = "worker") -> Manifest:
        manifest, files = step(number, *contents)
        assert self.store(by).put(manifest, files)
        return manifest

    def countersign(self, manifest: Manifest) -> bool:
        made = Countersignature(manifest.key, digest_of(manifest), "w1", 7)
        return countersign(self.controller, made)

    def by(self, manifest: Manifest, reader: Store | None = None) -> list[str]:
        """Names of the keys that have countersigned a step."""
        found = countersigned(reader or self.reader, manifest)
        return [one.name for one in found.by] if found is not None else []


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_countersignature_says_which_attempt_it_was(site: Site) -> None:
    manifest = site.built(1, b"content")
    assert site.by(manifest) == []
    assert site.countersign(manifest)
    found = countersigned(site.reader, manifest)
    assert found is not None
    assert found.what == Countersignature(key(1), digest_of(manifest), "w1", 7)
    assert site.by(manifest) == ["controller"]


def test_another_manifest_is_not_countersigned(site: Site) -> None:
    manifest = site.built(1, b"content")
    assert not site.countersign(replace(manifest, builder="another"))
    assert not site.countersign(replace(manifest, key=key(2)))
    assert site.by(manifest) == []


def test_own_manifest_is_not_countersigned(site: Site) -> None:
    """On one machine, broker and worker have one key."""
    manifest = site.built(1, b"content", by="controller")
    assert not site.countersign(manifest)
    plain = Store(site.url, site.top / "scratch")
    assert not countersign(plain, Countersignature(manifest.key, digest_of(manifest)))
    assert countersigned(plain, manifest) is None


def test_step_that_takes_the_place_of_another_is_not_countersigned(site: Site) -> None:
    """Who has the key of a worker puts something else into the store."""
    manifest = site.built(1, b"content")
    assert site.countersign(manifest)
    path = site.top / "store/countersigned" / key(1)
    before = path.read_bytes()
    site.worker.remove([key(1)])
    assert not path.exists()
    forged, files = step(1, b"evil")
    site.worker.put(forged, files)
    path.write_bytes(before)
    assert site.reader.manifest(key(1)) == forged, "its signature counts"
    assert site.by(forged) == []


def other_step(site: Site) -> None:
    other = site.built(2, b"other")
    assert site.countersign(other)
    folder = site.top / "store/countersigned"
    (folder / key(1)).write_bytes((folder / key(2)).read_bytes())


def manifest_instead(site: Site) -> None:
    """What the worker signed is of another type."""
    content = (site.top / "store/manifests" / key(1)).read_bytes()
    (site.top / "store/countersigned" / key(1)).write_bytes(content)


def no_json(site: Site) -> None:
    (site.top / "store/countersigned" / key(1)).write_bytes(b"{")


def endless(site: Site) -> None:
    (site.top / "store/countersigned" / key(1)).write_bytes(b" " * 100_000)


def revoked(site: Site) -> None:
    site.keys["reader"].revoke("controller")


@pytest.mark.parametrize("spoil", [other_step, manifest_instead, no_json, endless, revoked])
def test_countersignature_that_does_not_count_is_none(
    site: Site, spoil: Callable[[Site], None]
) -> None:
    manifest = site.built(1, b"content")
    assert site.countersign(manifest)
    spoil(site)
    assert site.by(manifest) == []
    assert site.reader.manifest(key(1)) == manifest, "the step counts as before"


def equal_to(site: Site, manifest: Manifest, number: int, origin: int) -> Manifest:
    equal = replace(manifest, key=key(number), origin=key(origin))
    assert site.controller.put_equal(equal)
    return equal


def test_equal_step_is_countersigned_if_its_origin_is(site: Site) -> None:
    manifest = site.built(1, b"content")
    equal = equal_to(site, manifest, 2, 1)
    assert not countersign_equal(site.controller, key(2)), "a worker alone vouches for it"
    assert site.countersign(manifest)
    assert countersign_equal(site.controller, key(2))
    assert site.by(equal) == ["controller"]
    assert not countersign_equal(site.controller, key(1)), "it was built"
    other = equal_to(site, site.built(4, b"other"), 3, 1)
    assert not countersign_equal(site.controller, key(3)), "it has not the output of its origin"
    assert site.by(other) == []


def test_countersignature_goes_where_its_step_goes(site: Site) -> None:
    manifest = site.built(1, b"content")
    assert site.countersign(manifest)
    site.built(2, b"other")
    there = site.store("reader", str(site.top / "there"))
    copy_steps([key(1), key(2)], site.reader, there, print)
    assert site.by(manifest, there) == ["controller"]
    assert [one.name for one in (site.top / "there/countersigned").iterdir()] == [key(1)]


def test_countersignature_is_removed_with_its_step(site: Site) -> None:
    folder = site.top / "store/countersigned"
    for number in range(4):
        assert site.countersign(site.built(number, b"content of %d" % number))
    (folder / key(9)).write_bytes(b"its step is gone")
    (folder / "note").write_bytes(b"of somebody")
    site.controller.delete([key(0)])
    site.controller.remove([key(1)])
    later = lambda: site.controller._backend.now() + 100  # noqa: E731
    dry = site.controller.gc({key(2)}, now=later, dry_run=True)
    assert len(list(folder.iterdir())) == 4
    gone = site.controller.gc({key(2)}, now=later)
    assert sorted(one.name for one in folder.iterdir()) == sorted([key(2), "note"])
    assert gone.hint_bytes == dry.hint_bytes > len(b"its step is gone")
