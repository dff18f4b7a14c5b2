"""The program ``fabric-web``: shows a farm, or the builds on this machine, in a browser."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from fabric import config
from fabric.config import ConfigError, WebSettings, is_loopback
from fabric.errors import FabricError
from fabric.host import daemon
from fabric.host.event_log import EventLog
from fabric.host.process import die_with_parent, more_descriptors
from fabric.host.sd_notify import Supervisor

#: Connections that may wait to be accepted.
BACKLOG = 2048
#: Modules of the extra `web`.
_NEEDED = ("starlette", "uvicorn", "jinja2")
#: Seconds that open connections have to end.
GRACE = 1
#: A token, which goes into headers and cookies.
TOKEN = r"[A-Za-z0-9._~+/=-]{16,200}"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="fabric-web", description=(__doc__ or "").strip())
    top.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"settings file (default {config.WEB_FILE}, which may be missing)",
    )
    top.add_argument(
        "--check-config", action="store_true", help="print the settings as understood, and exit"
    )
    top.add_argument(
        "--parent", type=int, metavar="PID", help="of `build --web`: exit when this process does"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    options = parser().parse_args(argv)
    if options.parent:
        die_with_parent(options.parent)
    log = EventLog("fabric-web", chatty=True)
    try:
        settings = _settings(options)
        if options.check_config:
            print(config.shown(settings))
            return 0
        check_installed("fabric-web")
        more_descriptors()
        token = read_token(settings)
        listener = listen(settings)
    except (FabricError, OSError) as error:
        log(str(error))
        return error.exit_code if isinstance(error, FabricError) else 4
    print(address(settings, listener, "" if settings.token else token), flush=True)
    try:
        serve(settings, listener, token, log)
    except FabricError as error:
        log(str(error))
        return error.exit_code
    return 0


def check_installed(what: str) -> None:
    """FabricError unless the extra `web` is installed, which ``what`` needs."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise FabricError(f"{what} needs {', '.join(missing)}: pip install 'distbuild[web]'")


def serve(settings: WebSettings, listener: socket.socket, token: str, log: EventLog) -> None:
    """Serve at the socket until SIGTERM or SIGINT.  FabricError if that is impossible."""
    import uvicorn

    from fabric.trove.configured import open_store
    from fabric.web.app import create
    from fabric.web.attempts import Attempts
    from fabric.web.connections import BoundedProtocol
    from fabric.web.farm import Farm
    from fabric.web.graphs import Graphs
    from fabric.web.log_copies import LogCopies
    from fabric.web.mirrors import Mirrors
    from fabric.web.page import Web
    from fabric.web.store import StoreReader

    supervisor = Supervisor()

    class Server(uvicorn.Server):
        """One that notifies systemd, and whose signal handlers do not end the process."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            supervisor.ready()

        async def on_tick(self, counter: int) -> bool:
            supervisor.alive(time.monotonic())
            return await super().on_tick(counter)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
            yield

        def stop(self) -> None:
            supervisor.stopping()
            self.should_exit = True

    async def run() -> None:
        store = StoreReader(lambda: open_store(settings, settings.state_dir / "scratch", log))
        async with (
            Farm(settings) as farm,
            LogCopies(farm, store, settings.cache_dir / "web") as logs,
        ):
            web = Web(
                farm, Mirrors(farm), Graphs(farm), Attempts(farm), store, logs, settings.controller
            )
            loopback = is_loopback(settings.listen)
            app = create(web, loopback=loopback, token=token, log=log)
            await Server(
                uvicorn.Config(
                    app,
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    ws="none",
                    http=BoundedProtocol,
                    timeout_graceful_shutdown=GRACE,
                    ssl_certfile=settings.certificate or None,
                    ssl_keyfile=settings.certificate_key or None,
                )
            ).serve([listener])

    asyncio.run(run())


def listen(settings: WebSettings) -> socket.socket:
    """A socket that listens at the address in the settings.  ConfigError if that is not safe."""
    if bool(settings.certificate) != bool(settings.certificate_key):
        raise ConfigError("certificate and certificate-key belong together: set both, or none")
    if not settings.certificate and not is_loopback(settings.listen):
        raise ConfigError(
            f"listen: {settings.listen} is not a loopback address, and pages do not go unencrypted"
            " over a network; set certificate and certificate-key, or listen at 127.0.0.1 behind"
            " a proxy with TLS"
        )
    try:
        family, _, _, _, place = socket.getaddrinfo(
            settings.listen, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(BACKLOG)  # who opens the address at once waits until it is served
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {settings.listen} port {settings.port}: {error.strerror}; set"
            " `listen` and `port` to a free address of this machine"
        ) from None
    return listener


def read_token(settings: WebSettings) -> str:
    """The token that requests must have, since any user of a machine can connect to loopback.

    ConfigError if its file cannot be read, or has a short one.
    """
    if not settings.token:
        return secrets.token_urlsafe(24)
    try:
        token = Path(settings.token).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"token: {settings.token}: cannot be read: {why}") from None
    if not re.fullmatch(TOKEN, token):
        raise ConfigError(
            f"token: {settings.token}: this is no token; write one with `openssl rand -hex 32`"
        )
    return token


def address(settings: WebSettings, listener: socket.socket, token: str) -> str:
    """The address to open in a browser; ``token``: one to print."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.certificate else "http"
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}/" + (f"?token={token}" if token else "")


def _settings(options: argparse.Namespace) -> WebSettings:
    for warning in config.unknown_variables():
        print(f"fabric-web: warning: {warning}", file=sys.stderr)
    file = options.config or config.WEB_FILE
    return config.load(WebSettings, file, os.environ, must_exist=options.config is not None)


def program() -> NoReturn:
    """Run `main` as the program."""
    daemon.run(main)


if __name__ == "__main__":
    program()
