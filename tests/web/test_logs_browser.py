"""Logs in a browser, of a real farm."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect
from test_logs import HOSTILE, LINES, info, put_log
from waiting import until
from web_kit import Pages, Site
from wire_kit import key_of

#: Where pictures are left to be looked at, if it is set.
PICTURES = os.environ.get("PICTURES")


def address(site: Site, name: str, more: str = "") -> str:
    return f"{site.url}/steps/{key_of(name)}/log{more}"


def rows(page: Page) -> list[str]:
    """The texts of the rows that are in the page."""
    texts: list[str] = page.locator("#log .text").all_text_contents()
    return texts


def numbers(page: Page) -> list[str]:
    texts: list[str] = page.locator("#log .number").all_text_contents()
    return texts


def last_row(page: Page, text: str) -> None:
    """Wait until the last row has this number and text."""
    expect(page.locator("#log .row").last).to_have_text(text)


def is_seen(page: Page, text: str) -> bool:
    """Whether a row with this text is in the part of the log that can be seen."""
    return bool(
        page.evaluate(
            """text => {
              const area = document.getElementById("log").getBoundingClientRect();
              return [...document.querySelectorAll("#log .row")].some(row => {
                const box = row.getBoundingClientRect();
                return row.lastChild.textContent === text
                  && box.bottom > area.top && box.top < area.bottom;
              });
            }""",
            text,
        )
    )


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"log-{name}.png")


def test_log_grows_on_its_page(site: Site, pages: Pages) -> None:
    worker = site.worker("amber", lambda _: b"one\ntwo\nthree\nfour\n")
    site.build("hello")
    worker.prints("hello", b"one\n")
    page = pages.open(address(site, "hello"))
    last_row(page, "1one")
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#live")).to_have_text("live")
    worker.prints("hello", b"two\nthr")
    last_row(page, "3thr")
    worker.prints("hello", b"ee\nfour\n")
    last_row(page, "4four")
    assert rows(page) == ["one", "two", "three", "four"]
    worker.release("hello")
    expect(page.locator("#state")).to_have_text("done")
    expect(page.locator("#follow")).to_be_hidden()
    expect(page.locator("#live")).to_have_text("")
    assert rows(page) == ["one", "two", "three", "four"]


def test_log_begins_on_the_page_of_a_step_that_waits(site: Site, pages: Pages) -> None:
    site.build("hello")
    until(lambda: site.web.get(f"/steps/{key_of('hello')}/log").status == 200)
    page = pages.open(address(site, "hello"))
    expect(page.locator("#problem")).to_contain_text("no worker")
    worker = site.worker("amber")
    worker.prints("hello", b"one\n")
    last_row(page, "1one")


def test_page_follows_the_end_until_the_viewer_scrolls_up(site: Site, pages: Pages) -> None:
    worker = site.worker("amber")
    site.build("hello")
    worker.prints("hello", LINES[:100_000])
    page = pages.open(address(site, "hello"))
    follow = page.locator("#follow")
    expect(follow).to_have_attribute("aria-pressed", "true")
    last = LINES[:100_000].decode().splitlines()[-1]
    until(lambda: is_seen(page, last))
    worker.prints("hello", LINES[100_000:120_000])
    end = LINES[:120_000].decode().splitlines()[-1]
    until(lambda: is_seen(page, end))
    page.locator("#log").hover()
    page.mouse.wheel(0, -2000)
    expect(follow).to_have_attribute("aria-pressed", "false")
    page.wait_for_timeout(300)
    where = page.evaluate("document.getElementById('log').scrollTop")
    worker.prints("hello", LINES[120_000:140_000])
    until(lambda: info(site, "hello")["size"] == 140_000)
    page.wait_for_timeout(500)
    assert abs(page.evaluate("document.getElementById('log').scrollTop") - where) < 5
    assert not is_seen(page, LINES[:140_000].decode().splitlines()[-2])
    follow.click()
    until(lambda: is_seen(page, LINES[:140_000].decode().splitlines()[-2]))


def test_hundred_thousand_lines_of_a_running_log(site: Site, pages: Pages) -> None:
    worker = site.worker("amber")
    site.build("hello")
    worker.prints("hello", LINES)
    until(lambda: info(site, "hello")["lines"] == 200_000)
    page = pages.open(address(site, "hello"))
    last_row(page, "200000line 200000 of many")
    assert page.locator("#log .row").count() < 4000
    page.locator("#log").press("Home")
    until(lambda: is_seen(page, "line 1 of many"))
    assert numbers(page)[0] == "1"
    page.locator("#log").press("End")
    until(lambda: is_seen(page, "line 200000 of many"))


def test_log_of_hundred_megabytes(site: Site, pages: Pages) -> None:
    """Lines are where they should be, wherever one scrolls; scrolling in small steps skips none."""
    total = 1_600_000
    log = b"".join(
        b"%07d %s\n" % (n, b"x" * (40 + n % 37 if n % 1000 else 600)) for n in range(1, total + 1)
    )
    assert len(log) > 100_000_000
    put_log(site, "big", log)
    began = time.monotonic()
    page = pages.open(address(site, "big"))
    until(lambda: is_seen(page, log[-100:].split(b"\n")[-2].decode()) or True)
    expect(page.locator("#log .row").last).to_contain_text(f"{total:07d} ")
    print(f"the end was seen after {time.monotonic() - began:.1f} s")
    until(lambda: numbers(page)[-1] == str(total))

    def check(page: Page) -> list[int]:
        """The lines in the page, which follow each other and have their numbers."""
        found = page.evaluate(
            """() => [...document.querySelectorAll("#log .row")].map(row =>
              [row.firstChild.textContent, row.lastChild.textContent.slice(0, 7)])"""
        )
        lines = [int(text) for _, text in found]
        assert [int(number or text) for number, text in found] == lines
        assert lines == list(range(lines[0], lines[0] + len(lines)))
        return lines

    def seen() -> int:
        """The first line that is seen."""
        return int(
            page.evaluate(
                """() => { const top = document.getElementById("log").getBoundingClientRect().top;
                  return [...document.querySelectorAll("#log .row")].find(row =>
                    row.getBoundingClientRect().bottom > top + 1)?.lastChild.textContent
                    .slice(0, 7) ?? 0 }"""
            )
        )

    check(page)
    for share in (0.5, 0.123, 0.9, 0.0, 1.0, 0.333):
        page.evaluate(
            "share => { const log = document.getElementById('log');"
            " log.scrollTop = share * (log.scrollHeight - log.clientHeight) }",
            share,
        )
        until(lambda share=share: abs(seen() - share * total) < 0.02 * total)  # type: ignore[misc]
        check(page)
    page.locator("#log").hover()
    before = seen()
    for _ in range(30):
        page.mouse.wheel(0, 700)
        page.wait_for_timeout(60)
        check(page)
    assert 500 < seen() - before < 1500, "so many rows of 18 pixels"
    for _ in range(60):
        page.mouse.wheel(0, -700)
        page.wait_for_timeout(60)
    assert 500 < before - seen() < 1500
    check(page)
    page.locator("#line").fill("1234567")
    page.locator("#line").press("Enter")
    until(lambda: is_seen(page, log[log.index(b"1234567 ") :].split(b"\n", 1)[0].decode()))
    expect(page.locator(".marked .number")).to_have_text("1234567")
    check(page)


def test_hostile_log_is_shown_as_text(site: Site, pages: Pages) -> None:
    put_log(site, "bad", b"".join(HOSTILE))
    page = pages.open(address(site, "bad"))
    expect(page.locator("#log .row").last).to_contain_text("the end")
    page.locator("#first").click()
    until(lambda: is_seen(page, "<script>alert(1)</script><img src=x onerror=alert(1)>"))
    texts = rows(page)
    assert texts[1] == r"\x00\x00\x00" + "\ufffd\ufffd\ufffd"
    assert texts[2] == r"\u202egnp.exe\u2066"
    assert texts[3] == ""
    assert page.locator("#log script, #log img").count() == 0
    assert page.title() == "Log of bad - Distbuild"
    long = page.evaluate("Math.max(...[...document.querySelectorAll('.text')].map(e => "
                         "e.textContent.length))")  # fmt: skip
    assert long <= 8192
    picture(page, "hostile")
    for _ in range(10):
        page.locator("#log").press("PageDown")
        page.wait_for_timeout(50)
    page.locator("#log").press("End")
    until(lambda: is_seen(page, "the end"))
    assert page.evaluate("document.querySelectorAll('#log *').length") < 30_000


def test_keys_go_to_the_end_and_the_beginning_while_rows_are_loaded(
    site: Site, pages: Pages
) -> None:
    """Rows that arrive are higher or lower than the space that stood for them."""
    put_log(site, "bad", b"".join(HOSTILE))
    page = pages.open(address(site, "bad"))
    expect(page.locator("#log .row").last).to_contain_text("the end")
    page.locator("#first").click()
    until(lambda: is_seen(page, "<script>alert(1)</script><img src=x onerror=alert(1)>"))

    def late(route: Route) -> None:
        time.sleep(0.5)
        route.continue_()

    page.route("**/rows?*", late)
    for key, text in (
        ("End", "the end"),
        ("Home", "<script>alert(1)</script><img src=x onerror=alert(1)>"),
    ):
        for _ in range(3):
            page.locator("#log").press("PageDown" if key == "End" else "PageUp")
            page.wait_for_timeout(50)
        page.locator("#log").press(key)
        until(lambda text=text: is_seen(page, text), 20)  # type: ignore[misc]


def test_colors_and_lines_that_overwrite_themselves(site: Site, pages: Pages) -> None:
    put_log(
        site, "gcc",
        b"\x1b[01m\x1b[Kmain.c:3:5:\x1b[m\x1b[K \x1b[01;31m\x1b[Kerror: \x1b[m\x1b[Kno\n"
        b"\x1b[38;5;208morange\x1b[0m \x1b[38;2;255;0;0mred\x1b[m "
        b"\x1b[48:2::0:0:255mblue\x1b[49m.\n"
        b"\x1b[32mgreen\nstill\x1b[0m plain \x1b[7minverse\x1b[27m \x1b[3;4;9mall\x1b[23;24;29m.\n"
        b"  0%\r 50%\r100%\r\n"
        b"100%\rab\n"
        b"working...\x1b[2K\rdone\n"
        b"abc\b\b\bxy\n"
        b"\x1b[5Gcolumn\x1b[2Dmm\n"
        b"downloading 10%\r\x1b[Kdownloaded\n"
        b"\xe2\x82\xac \x1b]8;;http://x/\x1b\\link\x1b]8;;\x1b\\ \x1b(B\x1b[?25l.\n",
    )  # fmt: skip
    page = pages.open(address(site, "gcc"))
    until(lambda: len(rows(page)) == 11)
    assert rows(page) == [
        "main.c:3:5: error: no", "orange red blue.", "green", "still plain inverse all.", "100%",
        "ab0%", "done      ", "xyc", "    columm", "downloaded", "€ link .",
    ]  # fmt: skip

    def classes(text: str) -> str | None:
        return page.locator("#log .text span", has_text=re.compile(f"^{text}$")).get_attribute(
            "class"
        )

    assert classes("error: ") == "sgr-bold ink ink-1"
    assert classes("orange") == "ink ink-208"
    assert classes("red") == "ink ink-196"
    assert classes("blue") == "ground ground-21"
    assert classes("green") == classes("still") == "ink ink-2"
    assert classes("inverse") == "sgr-inverse"
    assert classes("all") == "sgr-italic sgr-underline sgr-strike"
    picture(page, "colors")


def test_search_goes_from_match_to_match(site: Site, pages: Pages) -> None:
    put_log(site, "old", LINES + b"Error: the end\n")
    page = pages.open(address(site, "old"))
    last_row(page, "200001Error: the end")
    field, said = page.get_by_label("Search all of this log"), page.locator("#found")
    field.fill("line 77777 ")
    field.press("Enter")
    expect(said).to_have_text("line 77,777: 1 of 1 lines")
    until(lambda: is_seen(page, "line 77777 of many"))
    assert page.evaluate("CSS.highlights.get('found').size") == 1
    page.get_by_label("regular expression").check()
    field.fill("^line .*9999 |ERROR")
    field.press("Enter")
    expect(said).to_have_text("line 79,999: 8 of 21 lines")
    until(lambda: is_seen(page, "line 79999 of many"))
    field.press("Shift+Enter")
    expect(said).to_have_text("line 69,999: 7 of 21 lines")
    until(lambda: is_seen(page, "line 69999 of many"))
    picture(page, "search")
    page.get_by_label("capital letters differ").check()
    field.press("Enter")
    expect(said).to_have_text("line 69,999: 7 of 20 lines")
    field.fill("(")
    pages.expected.append("400 (Bad Request)")
    field.press("Enter")
    expect(said).to_contain_text("not a regular expression (RE2): missing ): (")
    field.fill("nowhere")
    field.press("Enter")
    expect(said).to_have_text("not found")


def test_links_to_lines(site: Site, pages: Pages) -> None:
    put_log(site, "old", LINES)
    page = pages.open(address(site, "old", "#L123456"))
    until(lambda: is_seen(page, "line 123456 of many"))
    expect(page.locator(".marked .number")).to_have_text("123456")
    page.get_by_role("link", name="123460", exact=True).click()
    assert page.url.endswith("?fence=0#L123460")
    page.get_by_role("link", name="123463", exact=True).click(modifiers=["Shift"])
    assert page.url.endswith("#L123460-L123463")
    assert page.locator(".marked .number").all_text_contents() == [
        "123460", "123461", "123462", "123463",
    ]  # fmt: skip
    other = pages.open(page.url)
    until(lambda: is_seen(other, "line 123461 of many"))
    assert other.locator(".marked").count() == 4
    page.evaluate("location.hash = '#L5'")
    until(lambda: is_seen(page, "line 5 of many"))
    pages.expected.append("404 (Not Found)")
    page.evaluate("location.hash = '#L999999999'")
    expect(page.locator("#found")).to_have_text("this log has only 200,000 lines")


def test_page_goes_on_when_broker_and_server_come_back(site: Site, pages: Pages) -> None:
    worker = site.worker("amber")
    site.build("hello")
    worker.prints("hello", b"before\n")
    page = pages.open(address(site, "hello"))
    last_row(page, "1before")
    pages.expected += ["ERR_", "503 (Service Unavailable)"]
    site.farm.kill()
    expect(page.locator("#away")).to_contain_text("cannot be reached")
    picture(page, "away")
    site.farm.start()

    def after(text: str) -> bool:
        worker.prints("hello", text.encode() + b"\n")
        page.wait_for_timeout(300)
        return rows(page)[-1] == text

    until(lambda: after("broker"))
    expect(page.locator("#away")).to_be_hidden()
    site.web.kill()
    expect(page.locator("#away")).to_contain_text("The server of this page cannot be reached")
    port = site.url.rpartition(":")[2]
    site.web.config.write_text(re.sub(r"port = \d+", f"port = {port}", site.web.config.read_text()))
    site.web.start()
    until(lambda: after("server"))
    expect(page.locator("#away")).to_be_hidden()
    assert numbers(page) == [str(n) for n in range(1, len(rows(page)) + 1)]


def test_newer_attempt_is_announced_on_the_page(site: Site, pages: Pages) -> None:
    worker = site.worker("amber")
    site.build("hello")
    worker.prints("hello", b"the first\n")
    page = pages.open(address(site, "hello"))
    last_row(page, "1the first")
    worker.stop()
    site.worker("basil").prints("hello", b"the second\n")
    expect(page.locator("#newer")).to_be_visible(timeout=30_000)
    picture(page, "newer")
    page.get_by_role("link", name="Show its log").click()
    last_row(page, "1the second")
    expect(page.get_by_role("link", name="attempt 1")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280, 3840])
def test_log_is_readable_everywhere(site: Site, pages: Pages, scheme: str, width: int) -> None:
    lines = [b"\x1b[%dm%d\x1b[0m \x1b[%dmbright\x1b[0m a line of text\n" % (30 + n, n, 90 + n)
             for n in range(8)]  # fmt: skip
    long = b"gcc -DHAVE_CONFIG_H -I. -I.. -O2 -g -Wall -c -o module.o module.c " * 5 + b"\n"
    put_log(site, "old", b"".join(lines) + long + b"an end\n")
    page = pages.open(
        address(site, "old"), width, 2160 if width > 2000 else 800, color_scheme=scheme
    )
    expect(page.locator("#log .row").last).to_contain_text("an end")
    picture(page, f"{scheme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wrapped = page.locator("#wrap").get_attribute("aria-pressed")
    assert wrapped == str(width == 360).lower()
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert serious == [], [(one["id"], [n["html"] for n in one["nodes"]]) for one in serious]
    page.locator("#wrap").click()
    page.reload()
    expect(page.locator("#wrap")).to_have_attribute("aria-pressed", str(width != 360).lower())


def test_page_without_scripts_has_the_last_lines(site: Site, pages: Pages) -> None:
    put_log(site, "old", LINES)
    until(lambda: info(site, "old")["whole"])
    page = pages.open(address(site, "old"), java_script_enabled=False)
    expect(page.locator("pre")).to_contain_text("line 200000 of many")
    expect(page.get_by_role("link", name="Raw")).to_be_visible()
    expect(page.locator(".tools")).to_be_hidden()


def test_colors_of_each_character_do_not_stop_the_browser(site: Site, pages: Pages) -> None:
    line = b"".join(b"\x1b[3%dm%d" % (number % 8, number % 10) for number in range(500)) + b"\n"
    put_log(site, "rainbow", line * 700)
    page = pages.open(address(site, "rainbow"))
    expect(page.locator("#log .row").first).to_contain_text("0123456789" * 50)
    assert page.locator("#log .row").first.locator("span.ink").count() == 99
    assert page.locator("#log span").count() < 70_000


def test_expression_that_takes_a_browser_years_is_found(site: Site, pages: Pages) -> None:
    put_log(site, "x", (b"x" * 40 + b"!\n") * 300)
    page = pages.open(address(site, "x"))
    page.get_by_label("regular expression").check()
    page.get_by_label("Search").fill("(x+x+)+[yz]|x!")
    page.get_by_label("Search").press("Enter")
    expect(page.locator("#found")).to_contain_text("of 300 lines")
    assert page.evaluate("[...CSS.highlights.get('found')][0].toString()") == "x!"
