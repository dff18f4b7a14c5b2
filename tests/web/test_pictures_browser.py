"""The graph and the timeline in a browser, of real builds: 452 chunks, and some that go on."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from pictures_kit import gnome
from pictures_site import Local
from playwright.sync_api import Locator, Page, expect
from waiting import until
from web_kit import Pages
from wire_kit import FakeWorker

from fabric.wire.messages import GraphStep

#: Windows: a phone, a desk, a wall.
WINDOWS = [(360, 740, "dark"), (1440, 900, "light"), (3840, 2160, "dark")]


@pytest.fixture
def local(directory: Path) -> Iterator[Local]:
    with ExitStack() as stack:
        yield Local(directory, stack)


def small() -> tuple[GraphStep, ...]:
    """Two chunks, one that needs both, and their stratum."""
    return (
        GraphStep("a" * 64, "zlib", "chunk"),
        GraphStep("b" * 64, "bzip2", "chunk"),
        GraphStep("c" * 64, "python", "chunk", (0, 1)),
        GraphStep("d" * 64, "core", "stratum", (0, 1, 2)),
    )


def serious(page: Page) -> list[str]:
    """The serious violations that axe finds on a page."""
    page.wait_for_load_state()  # without its style, it has others
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]


def fits(page: Page) -> bool:
    """Whether the page is no wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def looks(classes: str) -> re.Pattern[str]:
    """Matches an element of these classes."""
    return re.compile("".join(rf"(?=.*\b{one}\b)" for one in classes.split()))


def node(page: Page, name: str) -> Locator:
    return page.locator(f'#graph .node:not(.title)[data-name="{name}"]')


@pytest.fixture(scope="module")
def large() -> Iterator[Local]:
    """A build of 452 chunks in which cairo runs, and what needs it waits."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        local = Local(Path(directory), stack)
        local.worker("amber", 4, hold=["cairo"])
        local.worker("basalt", 4, hold=["cairo"])
        local.build(gnome())

        def alone() -> bool:
            time.sleep(0.5)
            states = local.states()
            return states["cairo"] == "running" and Counter(states.values())["running"] == 1

        until(alone, 240, "until only cairo runs")
        yield local


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("width", "height", "scheme"), WINDOWS)
def test_graph_and_timeline_of_452_chunks(
    large: Local, pages: Pages, width: int, height: int, scheme: str
) -> None:
    page = large.open(pages, "graph", width, height, color_scheme=scheme)
    expect(page.locator("#graph .node:not(.title)")).to_have_count(452)
    expect(node(page, "cairo")).to_have_class(looks("s-r"))
    assert serious(page) == []
    assert fits(page)
    page.get_by_role("link", name="Timeline").click()
    page.wait_for_selector("#axis text")
    expect(page.locator(".bars .r-running")).to_have_count(1)
    assert page.locator(".bars .bar").count() > 200
    assert serious(page) == []
    assert fits(page)


def test_graph_is_usable_by_keyboard(large: Local, pages: Pages) -> None:
    page = large.open(pages, "graph", 1440, 900)
    view = page.locator("#graph-view")
    # What is found is marked, and brought into view.
    page.locator("body").press("/")
    page.keyboard.type("gtk3")
    expect(page.locator("#graph-found")).to_have_text("2 found")
    page.keyboard.press("Enter")
    expect(page.locator("#graph-found")).to_have_text("1 of 2")
    page.keyboard.press("Escape")
    # A step that runs leads into the picture.
    page.get_by_role("list", name="Steps that failed or run").get_by_role("link").press("Enter")
    expect(node(page, "cairo")).to_be_focused()
    expect(node(page, "cairo")).to_be_in_viewport()
    expect(page.locator("#graph-about")).to_contain_text("cairo: running")
    on = page.locator("#graph .node.on").count()
    assert 50 < on < 500
    page.keyboard.press("ArrowRight")
    after = page.evaluate("document.activeElement.dataset.needs.split(' ').map(Number)")
    cairo = next(
        place for place, step in enumerate(gnome()) if (step.name, step.kind) == ("cairo", "chunk")
    )
    assert cairo in after
    # Zoom keeps what is in the middle, and from afar names of strata can be read.
    wide = page.locator("#graph").get_attribute("width")
    page.keyboard.press("+")
    assert float(page.locator("#graph").get_attribute("width") or 0) > float(wide or 0)
    page.keyboard.press("0")
    expect(page.locator("#graph")).to_have_class(looks("tracing far"))
    assert view.evaluate("it => it.scrollWidth <= it.clientWidth")
    page.keyboard.press("Escape")
    expect(page.locator("#graph .node.on")).to_have_count(0)
    page.keyboard.press("Enter")
    page.wait_for_url("**/steps/*?build=*")


def test_graph_follows_the_build_without_a_jump(local: Local, pages: Pages) -> None:
    worker = local.worker("amber", 2, hold=["zlib", "bzip2", "python", "core"])
    local.build(small(), "core")
    page = local.open(pages, "graph")
    expect(node(page, "zlib")).to_have_class(looks("s-r"))
    expect(node(page, "python")).to_have_attribute(
        "aria-label", "python: waiting, on the critical path"
    )
    place = node(page, "python").locator("text").bounding_box()
    node(page, "python").focus()
    worker.release("zlib", "bzip2")
    expect(node(page, "zlib")).to_have_attribute("aria-label", "zlib: done")
    expect(node(page, "python")).to_have_class(looks("s-r critical on self"))
    expect(page.locator(".count")).to_have_text("2/3")
    assert node(page, "python").locator("text").bounding_box() == place
    expect(node(page, "python")).to_be_focused()
    worker.release("python")
    worker.release("core")
    expect(page.locator("#head .state")).to_have_text("done")
    expect(page.locator("#graph .node.s-d")).to_have_count(4)


def test_cached_chunks_are_counted_until_asked_for(local: Local, pages: Pages) -> None:
    local.worker("amber", 2)
    local.build(small(), "python")
    until(lambda: local.states()["python"] == "done", what="for python")
    page = local.open(pages, "graph")
    expect(page.locator("#graph .node")).to_have_count(4)
    expect(page.get_by_text("unneeded")).to_be_visible()


def test_timeline_grows_in_place(local: Local, pages: Pages) -> None:
    worker = local.worker("amber", 2, hold=["zlib", "bzip2", "python", "core"])
    local.build(small(), "core")
    page = local.open(pages, "timeline")
    bars = page.locator(".bars .bar")
    expect(bars).to_have_count(2)
    zlib = page.locator('.bars .bar[aria-label^="zlib"]')
    # a bar that has just begun has no width, and is not drawn
    before = until(zlib.locator(".edge").bounding_box)
    assert before is not None
    page.wait_for_function(
        """width => document.querySelector('.bar[aria-label^=zlib] .edge')
        .getBoundingClientRect().width > width""",
        arg=before["width"] + 2,
    )
    left, right, now = page.evaluate(
        """() => {
            const place = (css) => document.querySelector(css).getBoundingClientRect();
            const edge = place(".bar[aria-label^=zlib] .edge");
            return [edge.left, edge.right, place("#now-line").left];
        }"""
    )
    assert left == pytest.approx(before["x"], abs=1)
    assert right == pytest.approx(now, abs=3)
    zlib.focus()
    worker.release("zlib")
    expect(zlib).to_have_attribute("aria-label", re.compile("^zlib: done in .*\non amber"))
    expect(zlib).to_be_focused()
    expect(bars).to_have_count(2)
    worker.release("bzip2")
    expect(page.locator('.bars .bar[aria-label^="python: running"]')).to_have_count(1)
    # python waited for bzip2, which ended last
    expect(page.locator("#critical ol a")).to_have_text(["bzip2", "python"])
    expect(page.locator(".bars .bar.critical")).to_have_count(2)
    worker.release("python")
    worker.release("core")
    expect(page.locator("#head .state")).to_have_text("done")
    expect(page.locator("#now-line")).to_have_count(0)
    expect(page.locator("#critical ol a")).to_have_text(["bzip2", "python", "core"])


def test_lanes_are_added_and_what_is_seen_stays(local: Local, pages: Pages) -> None:
    names = ["zlib", "bzip2", "python", "core"]
    local.worker("amber", 1, hold=names)
    local.build(small(), "core")
    page = local.open(pages, "timeline")
    expect(page.locator(".lane")).to_have_count(1)
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Zoom in").click()
    page.locator(".bars .bar").first.focus()
    scale = "() => document.getElementById('rows').offsetWidth / Number(figure.dataset.end)"
    before = page.evaluate(scale)
    local.worker("basalt", 1, hold=names)
    expect(page.locator(".lane")).to_have_count(2)
    expect(page.locator(".lane").nth(1)).to_contain_text("basalt")
    expect(page.locator(".bars .bar").first).to_be_focused()
    assert page.evaluate(scale) == pytest.approx(before, rel=0.2)


def test_timeline_is_usable_by_keyboard_and_zooms_about_a_point(large: Local, pages: Pages) -> None:
    page = large.open(pages, "timeline", 1440, 900, timezone_id="Asia/Kolkata")
    page.wait_for_selector("#axis text")
    page.locator("#chart").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    while not page.evaluate("document.activeElement.matches('.bar')"):
        page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.dataset.id")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.id") != first
    tip = page.locator(".tip")
    expect(tip).to_contain_text("on amber")
    expect(tip).to_contain_text("began at")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('svg.bars').id") == "lane-1"
    page.keyboard.press("-")  # a young build fits at the largest scale
    width = page.evaluate("document.getElementById('rows').offsetWidth")
    page.keyboard.press("+")
    assert page.evaluate("document.getElementById('rows').offsetWidth") > width
    # Times are those of the viewer's zone, 5:30 before UTC.
    began = page.evaluate("document.getElementById('figure').dataset.began")
    hour = (datetime.fromisoformat(began) + timedelta(hours=5.5)).strftime("%I:")
    assert any(text.startswith(hour) for text in page.locator("#axis text").all_text_contents())
    page.keyboard.press("Enter")
    page.wait_for_url("**/steps/*?build=*")


@pytest.mark.parametrize(
    ("picture", "view", "drawn"),
    [("graph", "#graph-view", "#graph"), ("timeline", "#chart", "#rows")],
)
def test_a_mouse_zooms_and_drags(
    large: Local, pages: Pages, picture: str, view: str, drawn: str
) -> None:
    page = large.open(pages, picture, 800, 600)
    width = f"document.querySelector('{drawn}').getBoundingClientRect().width"
    place = f"document.querySelector('{view}').scrollLeft"
    box = page.locator(view).bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, min(box["y"] + box["height"] / 2, 500)
    page.mouse.move(x, y)
    for wheel, least, most in ((-150, 1.2, 9.0), (-150, 1.2, 9.0), (150, 0.0, 0.8)):
        before = page.evaluate(width)
        page.keyboard.down("Control")
        page.mouse.wheel(0, wheel)
        page.keyboard.up("Control")
        until(lambda: least < page.evaluate(width) / before < most)  # noqa: B023 - called at once
    address = page.url
    page.evaluate(f"{place} = 0")  # where the present, which a timeline follows, is not seen
    page.mouse.down()
    page.mouse.move(x - 100, y, steps=4)
    page.mouse.up()
    assert abs(page.evaluate(place) - 100) < 5
    assert page.url == address, "what is dragged is not clicked"


def test_pictures_are_complete_without_scripts(large: Local, pages: Pages) -> None:
    page = large.open(pages, "graph", java_script_enabled=False)
    expect(page.locator("#graph .node:not(.title)")).to_have_count(452)
    expect(node(page, "cairo")).to_have_class(looks("s-r"))
    expect(page.locator("#graph-tools")).to_be_hidden()
    page.get_by_role("link", name="Timeline").click()
    expect(page.locator(".bars .r-running")).to_have_count(1)
    assert page.locator(".bars .bar").count() > 200
    running = page.locator(".bars .r-running .edge").bounding_box()
    assert running is not None
    assert running["width"] > 1


def test_a_failed_step_stands_out(local: Local, pages: Pages) -> None:
    def build(name: str) -> bytes:
        if name == "python":
            raise FakeWorker.Fails("make: *** [all] Error 2")
        return b""

    local.worker("amber", 2, build=build)
    local.build(small(), "core")
    page = local.open(pages, "graph")
    expect(node(page, "python")).to_have_class(looks("s-f critical"))
    expect(page.get_by_role("list", name="Steps that failed or run")).to_contain_text("python")
    page.get_by_role("link", name="Timeline").click()
    expect(page.locator('.bars .bar.r-failed[aria-label^="python: failed after"]')).to_have_count(1)
    expect(page.get_by_role("row", name="python failed")).to_contain_text("make: *** [all] Error 2")
