"""Shows a build in the browser: runs ``fabric-web`` beside it (`build --web`)."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from fabric.client.render import Screen
from fabric.config import Settings, WebSettings, variable
from fabric.errors import FabricError
from fabric.host.terminal import is_terminal

#: Seconds that fabric-web has to start, once its build has ended, and to end.
_START, _GRACE = 30.0, 5.0
#: The file of fabric-web's standard error.
_ERRORS = "web.err"
#: A page of a private folder that leads to another: the address has a token, and others can read
#: the command line of a browser.
_REDIRECT = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={}">'


class WebPage:
    """The page of one build after another, while the build runs."""

    def __init__(self, child: subprocess.Popen[bytes], folder: Path) -> None:
        assert child.stdout is not None
        self._child = child
        self._folder = folder
        self._output = child.stdout.fileno()
        os.set_blocking(self._output, False)
        self._printed = b""
        self._request = ""  # the last build
        self._opened = ""  # the build whose page was reported
        self._failed = False

    def checking(self, check: Callable[[], str], request: str, screen: Screen) -> Callable[[], str]:
        """A ``check`` of `Session` that shows the page, besides."""

        def both() -> str:
            self.show(request, screen)
            return check()

        return both

    def show(self, request: str, screen: Screen) -> None:
        """Report the address of a build once it is known, and open it.  Never waits."""
        self._request = request
        if self._child.poll() is not None:
            if not self._failed:
                self._failed = True
                said = (self._folder / _ERRORS).read_text(errors="replace").strip()
                screen.say(f"the web page has ended: {said}", "yellow")
            return
        if self._opened == request or not (address := self._address(request)):
            return
        first, self._opened = not self._opened, request
        screen.event("web", request=request, address=address)
        screen.say(f"web page: {address}", "bold")
        if first:
            self._open(address)

    def stay(self) -> None:
        """Wait until the user at the terminal presses Enter or Ctrl-C, if there is one."""
        if self._failed or not is_terminal(sys.stdout) or not sys.stdin.isatty():
            return
        with contextlib.suppress(KeyboardInterrupt):
            if self._request and not self._opened:
                self._await_start()
            if self._opened:
                print("The web page stays until you press Enter.", flush=True)
                sys.stdin.readline()

    def _await_start(self) -> None:
        """Report the page of a build that ended before fabric-web had started."""
        select.select([self._output], [], [], _START)
        if address := self._address(self._request):
            self._opened = self._request
            print(f"web page: {address}", flush=True)
            self._open(address)

    def _address(self, request: str) -> str:
        """The address of the page of a build; "" if fabric-web has not started yet."""
        with contextlib.suppress(BlockingIOError):
            self._printed += os.read(self._output, 4096)
        base, end, _ = self._printed.decode().partition("\n")
        return base.replace("/?", f"/builds/{request}?", 1) if end else ""

    def _open(self, address: str) -> None:
        """Open the address in a graphical browser, if there is one."""
        if not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))):
            return
        page = self._folder / "build.html"
        page.write_text(_REDIRECT.format(address))
        with contextlib.suppress(webbrowser.Error, OSError):
            webbrowser.open(page.as_uri())


@contextlib.contextmanager
def web_page(settings: Settings) -> Iterator[WebPage]:
    """The page of the builds of this command.  It ends with it, after `WebPage.stay`.

    FabricError if the extra `web` is not installed.
    """
    from fabric.web.program import check_installed

    check_installed("--web")
    with TemporaryDirectory(prefix="fabric-web-") as folder:
        options = ("--config", os.devnull, "--parent", str(os.getpid()))
        with Path(folder, _ERRORS).open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "fabric.web.program", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **_environment(settings)},
                start_new_session=True,  # Ctrl-C is for the build
            )
        try:
            page = WebPage(child, Path(folder))
            try:
                yield page
            except FabricError:
                page.stay()
                raise
            page.stay()
        finally:
            child.terminate()
            try:
                child.communicate(timeout=_GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()


def _environment(settings: Settings) -> dict[str, str]:
    """The settings of this command as variables of fabric-web."""
    own = {"listen": "127.0.0.1", "port": 0, "certificate": "", "certificate_key": "", "token": ""}
    values = {}
    for field in msgspec.structs.fields(WebSettings):
        if name := variable(field):
            value = own[field.name] if field.name in own else getattr(settings, field.name)
            values[name] = str(value)
    return values
