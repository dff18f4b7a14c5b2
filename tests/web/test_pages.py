"""Pages in a browser, of a real farm."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from waiting import until
from web_kit import HeldWorker, Pages, Site
from wire_kit import FakeWorker, key_of

from fabric.jobs import Artifact, Blob, Content, Manifest
from fabric.trove.artifacts.store import Store


def outcome(name: str) -> bytes:
    """Builds a step, unless its name says that it fails."""
    if name.startswith("bad"):
        raise FakeWorker.Fails(f"{name}: no such <header>")
    if name.startswith("broken"):
        raise FakeWorker.MachineFails("the disk is full")
    return b"ok\n"


# -- what changes by itself ----------------------------------------------------------------


def test_farm_page_follows_the_farm(site: Site, pages: Pages) -> None:
    page = pages.open(site.url)
    expect(page.get_by_text("No worker is connected.")).to_be_visible()
    worker = site.worker("amber")
    expect(page.get_by_role("row", name="amber idle nothing 0/1")).to_be_visible()
    site.build("hello")
    expect(page.get_by_role("row", name="amber busy hello")).to_be_visible()
    expect(page.locator("#queue")).to_contain_text("alice")
    worker.release("hello")
    expect(page.get_by_text("Nothing waits")).to_be_visible()
    expect(page.locator("#figures")).to_contain_text("1 built")


def test_build_page_shows_steps_as_they_end(site: Site, pages: Pages) -> None:
    worker = site.worker("amber", outcome, slots=3)
    build = site.build("app: zlib bad\nzlib:\nbad:")
    page = pages.open(f"{site.url}/builds/{build}")
    expect(page.get_by_role("row", name="zlib running")).to_be_visible()
    expect(page.get_by_role("row", name="app waiting")).to_be_visible()
    worker.release("zlib")
    expect(page.get_by_role("row", name="zlib done")).to_be_visible()
    worker.release("bad")
    expect(page.get_by_role("row", name="bad failed bad: no such <header>")).to_be_visible()
    expect(page.locator("#head .state")).to_have_text("failed")
    expect(page.get_by_role("row").nth(1)).to_contain_text("bad")
    page.get_by_role("link", name="bad", exact=True).click()
    expect(page.get_by_role("heading", name="bad", exact=True)).to_be_visible()
    expect(page.locator(".failure")).to_contain_text("bad: no such <header>")
    expect(page.get_by_role("row", name="1 failed")).to_contain_text("amber")
    expect(page.get_by_label("Needed by")).to_contain_text("app")


def test_page_survives_the_broker(site: Site, pages: Pages) -> None:
    pages.expected = ["503 (Service Unavailable)"]
    site.worker("amber")
    page = pages.open(site.url)
    expect(page.get_by_role("row", name="amber idle")).to_be_visible()
    expect(page.get_by_role("status").first).to_have_text("live")
    site.farm.kill()
    expect(page.get_by_text("The controller does not answer.")).to_be_visible()
    expect(page.get_by_role("row", name="amber")).to_be_visible()
    late = pages.open(f"{site.url}/builds")
    expect(late.get_by_role("heading")).to_have_text("The controller is away")
    site.farm.start()
    expect(page.get_by_text("The controller does not answer.")).to_be_hidden()
    expect(page.get_by_role("row", name="amber idle")).to_be_visible()
    expect(late.get_by_role("heading")).to_have_text("Builds")


def test_page_survives_its_server(site: Site, pages: Pages) -> None:
    pages.expected = ["net::ERR_", "error in its"]
    page = pages.open(site.url)
    expect(page.get_by_role("status").first).to_have_text("live")
    port = site.url.rpartition(":")[2]
    site.web.kill()
    expect(page.get_by_role("status").first).to_have_text("offline")
    site.web.config.write_text(site.web.config.read_text().replace("port = 0", f"port = {port}"))
    site.web.start()
    expect(page.get_by_role("status").first).to_have_text("live")


def test_update_keeps_focus_selection_and_scroll(site: Site, pages: Pages) -> None:
    worker = site.worker("amber", slots=40)
    names = [f"step{number:02}" for number in range(40)]
    build = site.build("app: " + " ".join(names) + "\n" + "\n".join(f"{name}:" for name in names))
    page = pages.open(f"{site.url}/builds/{build}", height=400)
    expect(page.get_by_role("row", name="step39 running")).to_be_visible()
    link = page.get_by_role("link", name="step30", exact=True)
    link.focus()
    page.evaluate("getSelection().selectAllChildren(document.activeElement)")
    top = page.evaluate("document.activeElement.getBoundingClientRect().top")
    worker.release("step35")
    expect(page.locator("#steps")).to_contain_text("done")
    assert page.evaluate("document.activeElement.textContent") == "step30"
    assert page.evaluate("getSelection().toString()") == "step30"
    assert abs(page.evaluate("document.activeElement.getBoundingClientRect().top") - top) < 40


# -- finding one's way ---------------------------------------------------------------------


def test_builds_are_filtered_by_hand_and_by_keyboard(site: Site, pages: Pages) -> None:
    worker = site.worker("amber", outcome)
    site.build("one", user="alice", title="base for alice")
    worker.release("one")
    site.build("two", user="bob", title="desktop for bob")
    page = pages.open(f"{site.url}/builds")
    rows = page.locator("#builds tbody tr")
    expect(rows).to_have_count(2)
    page.get_by_label("User").fill("bob")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"user=bob"))
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("desktop for bob")
    page.get_by_role("link", name="Clear").click()
    page.get_by_role("link", name=re.compile("^done")).focus()
    page.keyboard.press("Enter")
    expect(rows).to_contain_text("base for alice")
    page.get_by_label("System").fill("nothing")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No build matches.")).to_be_visible()
    worker.release("two")


def test_first_tab_skips_to_the_content(site: Site, pages: Pages) -> None:
    page = pages.open(site.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()


def test_page_is_whole_without_scripts(site: Site, pages: Pages) -> None:
    worker = site.worker("amber")
    build = site.build("hello")
    until(lambda: site.state(build).get("hello") == "running")
    page = pages.open(f"{site.url}/builds/{build}", java_script_enabled=False)
    expect(page.get_by_role("row", name="hello running")).to_be_visible()
    worker.release("hello")


def test_command_is_copied(site: Site, pages: Pages) -> None:
    site.worker("amber")
    page = pages.open(
        f"{site.url}/workers/amber", permissions=["clipboard-read", "clipboard-write"]
    )
    page.get_by_role("button", name="Copy: fabric-initiator workers drain amber").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "fabric-initiator workers drain amber"


def test_times_are_in_the_zone_of_the_viewer(site: Site, pages: Pages) -> None:
    site.worker("amber")
    page = pages.open(f"{site.url}/workers/amber", timezone_id="Asia/Tokyo", locale="de-DE")
    shown = page.locator("time[data-time=moment]")
    stamp = shown.get_attribute("datetime")
    local = page.evaluate("stamp => new Date(stamp).toLocaleString('de-DE', "
                          "{timeZone: 'Asia/Tokyo', dateStyle: 'medium', timeStyle: 'medium'})",
                          stamp)  # fmt: skip
    expect(shown).to_have_text(local)


# -- how it looks --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy() -> Iterator[Site]:
    """A farm in which all pages have something to show."""
    directory = Path(tempfile.mkdtemp(prefix="fabric-"))
    with ExitStack() as stack:
        site = Site(directory, stack)
        amber = site.worker("amber", outcome, slots=4)
        site.worker("birch-with-a-name-that-is-rather-long-for-a-worker.example", outcome)
        long = "a-chunk-with-a-name-that-is-quite-long-" * 3
        site.build(f"system: zlib bad {long}\nzlib:\nbad:\n{long}:", title="desktop for alice")
        stay = site.build("other: zlib stays\nzlib:\nstays:", user="bob", title="base for bob")
        for name in ("zlib", "bad"):
            held(site, name).release(name)
        until(lambda: site.state(stay).get("zlib") == "done")
        store(directory)
        site.names = {"build": stay, "failed": key_of("bad"), "system": key_of("image")}
        assert amber
        yield site
    shutil.rmtree(directory)


def held(site: Site, name: str) -> HeldWorker:
    """The worker that runs a step."""
    until(lambda: any(worker.holds(name) for worker in site.workers), what=f"for {name}")
    return next(worker for worker in site.workers if worker.holds(name))


def store(directory: Path) -> None:
    store = Store(str(directory / "store"), directory / "scratch-test")
    rootfs = Artifact("image-rootfs", Blob.of(b"x"), (Content(key_of("zlib"), "zlib-bins"),))
    facts = {"morph": "systems/image.morph", "description": "A system."}
    store.put(
        Manifest(
            key=key_of("image"), kind="system", name="image", arch="x86_64", artifacts=(rootfs,),
            metadata=facts, built=1e9, inputs={"prefix": "/usr"}, builder="amber",
        ),
        {},
    )  # fmt: skip


ADDRESSES = (
    "/", "/builds", "/builds/{build}", "/builds/{build}?state=cached", "/steps/{failed}",
    "/steps/{failed}?build={build}", "/steps/{system}", "/workers/amber", "/systems",
    "/systems/image", "/nowhere",
)  # fmt: skip


def opened(busy: Site, pages: Pages, address: str, **options: Any) -> Page:
    pages.expected = ["404 (Not Found)"]
    page = pages.open(busy.url + address.format(**busy.names), **options)
    page.wait_for_load_state("load")
    return page


@pytest.mark.parametrize("address", ADDRESSES)
def test_pages_fit_from_a_phone_to_4k(busy: Site, pages: Pages, address: str) -> None:
    page = opened(busy, pages, address)
    for width in (360, 768, 1280, 3840):
        page.set_viewport_size({"width": width, "height": 900})
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{wide} px too wide at {width}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_axe_finds_nothing_serious(busy: Site, pages: Pages, address: str, scheme: str) -> None:
    page = opened(busy, pages, address, color_scheme=scheme)
    expect(page.locator("#live")).to_have_text(re.compile("live|^$"))
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        found = Axe().run(page).response["violations"]
        bad = [each for each in found if each["impact"] in ("serious", "critical")]
        assert bad == [], [(each["id"], each["nodes"][0]["html"]) for each in bad]


def test_schemes_differ(busy: Site, pages: Pages) -> None:
    color = "getComputedStyle(document.body).backgroundColor"
    light, dark = (
        opened(busy, pages, "/", color_scheme=scheme).evaluate(color)
        for scheme in ("light", "dark")
    )
    assert light != dark
