"""How fast is the web page?  Real programs and a real browser, each beside a yardstick.

    python bench/web.py [delay] [paint] [farm] [viewers]

``delay``: a real build on this machine prints the time a thousand times a second; measured is how
long each line takes from the sandbox into the browser, and, beside it, into the user's file.
``paint``: how long a log of 100,000 lines that grows takes from the address to the screen, beside
the same bytes as plain text in the same browser.  ``farm``: the page of a farm with 100,000 jobs
and 2,000 workers, beside the answers of the broker that it is made of.  ``viewers``: what 200 open
pages cost the broker, by its CPU for a job of bench/dispatch.py, with and without them in turns.

The peak memory of fabric-web is that of the whole run.  Look at ratios: delays of a machine that
does other work say little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests" / folder) for folder in ("kit", "web")]

import dispatch  # noqa: E402
import scale  # noqa: E402
from logs import CLOCK, Growing  # noqa: E402
from playwright.sync_api import Page  # noqa: E402
from waiting import until  # noqa: E402
from web_kit import SIGNED, Site, Web, launched  # noqa: E402
from wire_kit import key_of, resident  # noqa: E402

from fabric.config import WebSettings  # noqa: E402
from fabric.web.farm import REUSE_MOST, Farm  # noqa: E402
from fabric.wire import keys  # noqa: E402
from fabric.wire.messages import PROTOCOL, BuildGraph  # noqa: E402

MB = 1_000_000
#: Notes when rows of a log were first in a frame: [when, their texts].
NOTE_ROWS = """
window.seen = [];
addEventListener("DOMContentLoaded", () => new MutationObserver((records) => {
  const fresh = records.flatMap((record) => [...record.addedNodes])
    .filter((node) => node.className === "row").map((row) => row.lastChild.textContent);
  if (fresh.length) requestAnimationFrame(() => seen.push([Date.now(), fresh]));
}).observe(document, { subtree: true, childList: true }));
"""


# -- a line ---------------------------------------------------------------------------------


def measure_delay(seconds: int) -> tuple[list[float], list[float], int]:
    """Seconds that each line took into the browser and into the user's file; bytes of memory."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        root = Path(name)
        waiting = f"sleep 25; {CLOCK.format(lines=1000 * seconds)}"
        growing = Growing(root, waiting)
        web = Web(root, {"cache": str(root / "cache"), "listen": "127.0.0.1"})
        stack.callback(web.kill)
        browser = stack.enter_context(launched())
        page = browser.new_page()
        page.add_init_script(NOTE_ROWS)
        page.goto(web.printed)
        key = until(lambda: key_of_step(page, "talker"), 90.0)
        page.goto(f"{web.url.partition('?')[0].rstrip('/')}/steps/{key}/log")
        sizes = growing.sizes(0.001)
        page.wait_for_timeout(1500)
        came: dict[str, float] = {}
        for when, texts in page.evaluate("seen"):
            for row in texts:
                came.setdefault(row, when / 1000)
        text = (root / "build-step-talker.log").read_bytes()
        memory = resident(web.child.pid)
    shown, filed, end, lines = [], [], 0, 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        said, _, rest = line.partition(b" ")
        if rest.startswith(b"line "):
            lines += 1
            filed.append(next(when for when, size in sizes if size >= end) - float(said))
            if (when_shown := came.get(line.decode().rstrip("\n"))) is not None:
                shown.append(when_shown - float(said))
    assert lines == 1000 * seconds
    assert len(shown) > 0.99 * lines, f"{len(shown)} of {lines} lines were seen"
    return sorted(shown), sorted(filed), memory


def key_of_step(page: Page, name: str) -> str:
    """The key of a running step of a build on this machine; "" if there is none yet."""
    found: str = page.evaluate(
        """async name => {
          const get = async path => (await fetch(path, { headers: { accept: "application/json" } }))
            .json();
          for (const build of (await get("/builds")).builds) {
            for (const step of (await get("/builds/" + build.id)).steps) {
              if (step.name === name && step.state === "running") return step.key;
            }
          }
          return "";
        }""",
        name,
    )
    return found


def part(delays: list[float], share: int) -> float:
    """A percentile, in milliseconds."""
    return 1000 * delays[min(len(delays) - 1, len(delays) * share // 100)]


# -- a long log -----------------------------------------------------------------------------


def measure_paint(lines: int) -> tuple[list[float], list[float], int]:
    """Seconds until a log that grows is painted, and the same bytes as text; bytes of memory."""
    log = b"".join(b"%06d a line of a log with some words in it, as compilers print them\n" % n
                   for n in range(lines))  # fmt: skip
    ours, plain = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        site = Site(Path(name), stack)
        worker = site.worker("amber")
        site.build("talker")
        worker.prints("talker", log)
        address = f"{site.url}/steps/{key_of('talker')}/log"
        browser = stack.enter_context(launched())
        # the broker has all of it; fabric-web has not copied any of it
        until(lambda: held(site) >= len(log), 60.0)
        for _ in range(5):
            site.web.kill()
            site.web.start()
            address = f"{site.url}/steps/{key_of('talker')}/log"
            ours.append(
                painted(
                    browser.new_page(extra_http_headers=SIGNED), address, f"{lines - 1:06d} a line"
                )
            )
            plain.append(painted(browser.new_page(extra_http_headers=SIGNED), address + "/raw", ""))
        memory = resident(site.web.child.pid)
        worker.release("talker")
    return sorted(ours), sorted(plain), memory


def held(site: Site) -> int:
    """Bytes of all logs at the broker."""
    return sum(file.stat().st_size for file in (site.farm.directory / "state/logs").iterdir())


def painted(page: Page, address: str, text: str) -> float:
    """Seconds from the request for a page until a frame has the text, or all of the page."""
    page.set_default_timeout(60_000)
    page.goto(address, wait_until="load" if not text else "commit")
    took = page.evaluate(
        """text => new Promise(done => {
          const framed = () => requestAnimationFrame(
            () => setTimeout(() => done(performance.now())));
          const look = () => {
            const last = document.querySelector("#log .row:last-child .text");
            if (!text || last?.textContent.startsWith(text)) framed();
            else requestAnimationFrame(look);
          };
          look();
        })""",
        text,
    )
    page.close()
    return float(took) / 1000


# -- a large farm ---------------------------------------------------------------------------


def serve_large(directory: Path, jobs: int, requests: int) -> None:
    """A broker whose core has many jobs and workers."""
    from fabric.broker import assemble, serve

    farm = scale.Farm(requests)
    farm.clock.now = time.monotonic()
    for n in range(requests):
        steps = scale.specs(jobs // requests, n)
        farm.apply(BuildGraph(PROTOCOL, f"r{n}", f"build {n}", steps, (steps[0].key,), detach=True))
    broker = assemble(
        dispatch.AT,
        directory / "state",
        dispatch.Stub,  # type: ignore[arg-type]
        keys_dir=directory,
    )
    broker._scheduler = farm.core  # noqa: SLF001
    serve(broker)


@contextlib.contextmanager
def large_farm(directory: Path, jobs: int) -> Iterator[None]:
    dispatch.make_keys(directory, 0)
    with (directory / "broker.out").open("w") as out:
        child = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(directory), str(jobs)], stdout=out, stderr=out
        )
    try:
        yield
    finally:
        child.kill()
        child.wait()


def web_beside(directory: Path, stack: ExitStack) -> Web:
    """fabric-web for the broker whose keys are in a directory."""
    own = directory / "web"
    admitted = keys.AuthorizedKeys(directory)
    admitted.admit(keys.make("viewer", "web", own))
    (own / "broker.key").write_bytes((directory / "broker.key").read_bytes())
    time.sleep(0.5)  # until the broker has read it
    web = Web(own, settings(directory) | {"listen": "127.0.0.1"})
    stack.callback(web.kill)
    return web


def settings(directory: Path) -> dict[str, object]:
    return {
        "controller": dispatch.AT.jobs.removeprefix("tcp://"),
        "keys": str(directory / "web"),
        "artifacts": str(directory / "store"),
        "cache": str(directory / "cache"),
    }


def measure_farm(jobs: int) -> tuple[float, float, float, float, int]:
    """Seconds: HTML, the broker's answers, painted first and again; bytes of memory."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        directory = Path(name)
        stack.enter_context(large_farm(directory, jobs))
        web = web_beside(directory, stack)
        until(lambda: web.get("/").status == 200, 900.0, "for the broker")
        answers = asyncio.run(ask(WebSettings(**settings(directory))))  # type: ignore[arg-type]
        time.sleep(REUSE_MOST)  # then fabric-web asks the broker anew
        began = time.monotonic()
        assert web.get("/").status == 200
        html = time.monotonic() - began
        browser = stack.enter_context(launched())
        first = painted(browser.new_page(extra_http_headers=SIGNED), web.url + "/", "")
        again = painted(browser.new_page(extra_http_headers=SIGNED), web.url + "/", "")
        memory = resident(web.child.pid)
    return html, answers, first, again, memory


async def ask(settings: WebSettings) -> float:
    """Seconds that the broker needs for the answers that the page is made of."""
    async with Farm(settings) as farm:
        await farm.query("update")
        began = time.monotonic()
        await asyncio.gather(farm.query("requests"), farm.query("workers"), farm.query("attempts"))
        return time.monotonic() - began


# -- viewers --------------------------------------------------------------------------------


@contextlib.contextmanager
def viewers(directory: Path, number: int, memory: list[int]) -> Iterator[None]:
    """Pages that are open: the farm, the list of builds, and the build."""
    with ExitStack() as stack:
        web = web_beside(directory, stack)
        host, port = web.url.removeprefix("http://").split(":")
        command = [sys.executable, __file__, "--view", host, port, str(number)]
        child = subprocess.Popen(command)
        stack.callback(child.wait)
        stack.callback(child.kill)
        until(lambda: web.get("/health").json["viewers"] >= number, 60.0, "for viewers")
        yield
        memory.append(resident(web.child.pid))


def view(host: str, port: int, number: int) -> None:
    """Open live pages, and read what comes."""
    import selectors

    poll = selectors.DefaultSelector()
    paths = ("/live/", "/live/builds", f"/live/builds/{'0' * 32}")
    for n in range(number):
        one = socket.create_connection((host, port))
        fields = {"Host": host, **SIGNED}.items()
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        one.sendall(f"GET {paths[n % len(paths)]} HTTP/1.1\r\n{head}\r\n".encode())
        poll.register(one, selectors.EVENT_READ)
    while True:
        for key, _ in poll.select():
            if not key.fileobj.recv(1 << 20):  # type: ignore[union-attr]
                poll.unregister(key.fileobj)


# -- the table ------------------------------------------------------------------------------


def main() -> None:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ("delay", "paint", "farm", "viewers")
    top.add_argument("what", nargs="*", choices=[*names, []], default=[])
    top.add_argument("--seconds", type=int, default=5)
    top.add_argument("--lines", type=int, default=100_000)
    top.add_argument("--jobs", type=int, default=100_000)
    top.add_argument("--dispatched", type=int, default=20_000)
    top.add_argument("--viewers", type=int, default=200)
    top.add_argument("--rounds", type=int, default=5)
    top.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    top.add_argument("--view", nargs=3, help=argparse.SUPPRESS)
    options = top.parse_args()
    if options.serve:
        serve_large(Path(options.serve[0]), int(options.serve[1]), 10)
        return
    if options.view:
        view(options.view[0], int(options.view[1]), int(options.view[2]))
        return
    chosen = options.what or names
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if "delay" in chosen:
        shown, filed, memory = measure_delay(options.seconds)
        print("a line, at 1,000 a second")
        for where, delays in (("in the browser", shown), ("in the user's file", filed)):
            print(f"  {where:32} median {part(delays, 50):5.0f} ms, p99 {part(delays, 99):5.0f} ms")
        print(f"  ratio of p99 {part(shown, 99) / part(filed, 99):.1f};"
              f" fabric-web has {memory / MB:.0f} MB")  # fmt: skip
    if "paint" in chosen:
        ours, plain, memory = measure_paint(options.lines)
        print(f"a running log of {options.lines:,} lines")
        for where, times in (("painted", ours), ("the same bytes as plain text", plain)):
            print(
                f"  {where:32} median {part(times, 50):5.0f} ms, worst {part(times, 100):5.0f} ms"
            )
        print(f"  ratio {part(ours, 50) / part(plain, 50):.2f};"
              f" fabric-web has {memory / MB:.0f} MB")  # fmt: skip
    if "farm" in chosen:
        html, answers, first, again, memory = measure_farm(options.jobs)
        print(f"the farm's page, {options.jobs:,} jobs and {scale.WORKERS:,} workers")
        print(f"  the broker's answers             {1000 * answers:5.0f} ms")
        print(f"  HTML                             {1000 * html:5.0f} ms")
        print(f"  painted                          {1000 * first:5.0f} ms, then {1000 * again:.0f}")
        print(f"  ratio of HTML {html / answers:.2f}; fabric-web has {memory / MB:.0f} MB")
    if "viewers" in chosen:
        jobs, found = options.dispatched, list[int]()
        sides: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
        for _ in range(options.rounds):
            sides["without"].append(dispatch.measure_broker(8, 8, jobs))
            sides["with"].append(
                dispatch.measure_broker(
                    8, 8, jobs, lambda folder: viewers(folder, options.viewers, found)
                )
            )
        print(f"{options.viewers} viewers beside {jobs:,} jobs; medians of {options.rounds} rounds")
        costs = {}
        for how, rounds in sides.items():
            speed, costs[how] = (median(values) for values in zip(*rounds, strict=True))
            cpu = f"{costs[how] * 1e6:4.0f} us of CPU of the broker each"
            print(f"  {how:10} {speed:6.0f} jobs a second, {cpu}")
        ratio = costs["with"] / costs["without"]
        print(f"  ratio by CPU {ratio:.3f}; fabric-web has {max(found) / MB:.0f} MB")


if __name__ == "__main__":
    main()
