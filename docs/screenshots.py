"""Takes the pictures of the web page in docs/how-to/images: of a real farm on this machine.

    .venv/bin/python docs/screenshots.py [--serve]

A broker, three workers and the builds of two users run in a temporary folder.  Their chunks print
lines and sleep.  With ``--serve`` it takes no pictures: the farm runs, and you look at it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / kit) for kit in ("kit", "network", "web")]

from network_kit import Farm, Program, Workstation  # noqa: E402
from waiting import until  # noqa: E402
from web_kit import SIGNED, Web, launched  # noqa: E402

PICTURES = ROOT / "docs/how-to/images"
WORKERS = {"amber": 2, "birch": 2, "cedar": 1}
#: Chunks, and the chunks that each needs.
CHUNKS = {
    "linux-headers": "", "glibc": "linux-headers", "binutils": "glibc", "gcc": "binutils",
    "zlib": "glibc", "ncurses": "glibc", "bash": "ncurses", "coreutils": "glibc", "perl": "zlib",
    "openssl": "perl, zlib", "python": "openssl, ncurses", "util-linux": "ncurses", "dbus": "glibc",
    "systemd": "util-linux, dbus", "curl": "openssl", "openssh": "openssl", "iproute2": "glibc",
    "nano": "ncurses", "git": "curl, perl", "cmake": "curl, gcc",
}  # fmt: skip
FAILS = "openssh"
WIDTH = 1280


MORPH = """\
name: {name}
kind: chunk
configure-commands:
- |
  for i in $(seq 1 {few}); do echo "checking for feature $i... yes"; sleep {pace}; done
build-commands:
- |
  for i in $(seq 1 {many}); do echo "  CC  {name}/part$i.o"; sleep {pace}; done
{fails}install-commands:
- mkdir -p $DESTDIR/usr/bin; echo {name} > $DESTDIR/usr/bin/{name}; sleep 1
"""


def write(user: Workstation, names: list[str], pace: float) -> None:
    """Chunks that take some seconds each."""
    chance = random.Random(4)
    user.definitions.write(**{name: (CHUNKS[name], "true") for name in names})
    for name in names:
        text = MORPH.format(
            name=name,
            few=chance.randint(5, 15),
            many=chance.randint(10, 50),
            pace=pace,
            fails="- gcc -c sshkey.c\n" if name == FAILS else "",
        )
        (user.definitions.root / f"strata/{name}.morph").write_text(text)


def build(user: Workstation, system: str) -> Program:
    morph = user.definitions.root / "systems/small.morph"
    (user.definitions.root / f"systems/{system}.morph").write_text(
        morph.read_text().replace("name: small", f"name: {system}")
    )
    command = user.command("build", f"../definitions/systems/{system}.morph", "--keep-going")
    environ = {**user.environ, "LOGNAME": user.name}
    return user.farm.start(command, user.here, environ, f"{user.name}-{system}")


def served(farm: Farm) -> Web:
    """The web page of the farm."""
    keys = farm.make_keys("viewer", "web")
    controller = farm.address.replace("127.0.0.1", "localhost")
    settings = {"controller": controller, "keys": str(keys), "artifacts": farm.store_url}
    return Web(farm.root, {**settings, "listen": "127.0.0.1"})


def take(page: Page, name: str, *, height: int = 800) -> None:
    """Both schemes of a page."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": WIDTH, "height": height})
        page.wait_for_timeout(200)
        page.screenshot(path=PICTURES / f"{name}-{scheme}.png")


def take_all(web: Web) -> None:
    def builds() -> dict[str, str]:
        found = web.json("/builds")["builds"]
        return {one["system"]: one["id"] for one in found if one["done"] >= 6}

    until(lambda: "desktop" in builds(), 240, "for the build")
    id = builds()["desktop"]
    PICTURES.mkdir(exist_ok=True)
    with launched() as browser:
        page = browser.new_page(device_scale_factor=1.5, extra_http_headers=SIGNED)

        def look(name: str, address: str) -> None:
            page.goto(web.url + address)
            page.wait_for_timeout(1500)
            take(page, name)

        look("farm", "/")
        look("build", f"/builds/{id}")
        until(lambda: FAILS in failed(web, id), 300, f"for {FAILS}")
        look("step", f"/steps/{failed(web, id)[FAILS]}?build={id}")
        look("log", f"/steps/{failed(web, id)[FAILS]}/log")
        look("graph", f"/builds/{id}/graph")
        until(lambda: web.json(f"/builds/{id}")["build"]["state"] == "failed", 300, "for the end")
        look("timeline", f"/builds/{id}/timeline")


def failed(web: Web, id: str) -> dict[str, str]:
    """Steps of a build that failed: name -> key."""
    steps = web.json(f"/builds/{id}?state=failed")["steps"]
    return {step["name"]: step["key"] for step in steps}


def main() -> None:
    serve = "--serve" in sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="fabric-") as folder:
        farm = Farm(Path(folder) / "farm")
        web = None
        try:
            farm.broker()
            for name, slots in WORKERS.items():
                farm.worker(name, slots)
            alice, bob = farm.workstation("alice"), farm.workstation("bob")
            write(alice, list(CHUNKS), 0.2)
            write(bob, [name for name in CHUNKS if name != FAILS][:12], 0.3)
            web = served(farm)
            print(web.url, os.getpid(), flush=True)
            build(bob, "base")
            build(alice, "desktop")
            if serve:
                while True:
                    time.sleep(60)
            take_all(web)
        except KeyboardInterrupt:
            pass
        finally:
            if web is not None:
                web.kill()
            farm.close()


if __name__ == "__main__":
    main()
