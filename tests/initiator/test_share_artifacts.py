"""`artifact push` and `pull`, and builds with substituters; the how-to prints what it shows."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from initiator_kit import INITIATOR, Project
from servers_kit import Cable, free_port
from small_definitions import remember_host_tools
from store_kit import nginx
from transcripts import assert_shows, environment, sessions, typed
from waiting import until

from fabric.trove.artifacts.store import Store

PAGE = Path(__file__).parents[2] / "docs/how-to/share-artifacts.md"
SYSTEM = "../systems/small.morph"
#: Files that are large, and compress badly.
MUCH = "mkdir -p $DESTDIR/usr/bin; head -c {0} /dev/urandom > $DESTDIR/usr/bin/{1}"


def test_the_how_to_prints_what_it_shows(tmp_path: Path) -> None:
    for who in ("ann", "bob"):
        remember_host_tools(tmp_path / who)
    here, shown, said = tmp_path, 0, []
    for script, lines in sessions(PAGE):
        said.append(typed(script, here, environment()))
        assert_shows(said[-1], lines)
        here, shown = tmp_path / "shop", shown + len(lines)
    assert shown == 2
    assert "3 steps, " in said[1]
    assert " copied to ../mirror; 0 steps, 0 B were there already" in said[1]
    logs = [file.read_text() for file in here.glob("build-step-*.log")]
    assert len(logs) == 3
    assert all(log.startswith(f"### copied from {tmp_path}/mirror\n") for log in logs)


class Machines:
    """Ann's and Bob's: each has a cache and keys, and both have the same definitions."""

    def __init__(self, project: Project, top: Path) -> None:
        self.project = project
        self.top = top
        project.write(
            compiler="true", one=("compiler", MUCH.format(50_000, "one")), two="touch $DESTDIR/two"
        )

    def run(
        self, who: str, *args: str, trusts: bool = True, **settings: object
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine."""
        file = self.top / f"{who}.toml"
        mine = {"trusted-keys": str(self.top / f"{who}-keys")} if trusts else {}
        lines = [f"{name} = {json.dumps(value)}" for name, value in {**mine, **settings}.items()]
        file.write_text("\n".join(lines))
        if not (self.top / who).exists():
            remember_host_tools(self.top / who)
        environ = {"FABRIC_CONFIG": str(file), "FABRIC_CACHE": str(self.top / who)}
        return self.project.run(*args, environ=environ)

    def ask(self, who: str, *args: str, **settings: Any) -> Any:
        done = self.run(who, *args, "--json", **settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def trust(self, who: str, whom: str) -> None:
        own, to = self.top / f"{whom}-keys/own.pub", self.top / f"{who}-keys/{whom}.pub"
        to.parent.mkdir(exist_ok=True)
        shutil.copy(own, to)

    def names(self, store: Path) -> list[str]:
        """Names of the steps in a store, all whole."""
        opened = Store(str(store), self.top / "look")
        assert all(map(opened.inspect, opened.keys()))
        manifests = map(opened.manifest, opened.keys())
        return sorted(one.name for one in manifests if one)


@pytest.fixture
def machines(project: Project, tmp_path: Path) -> Machines:
    return Machines(project, tmp_path)


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_build_finds_all_that_was_pushed_and_pulled(machines: Machines, tmp_path: Path) -> None:
    run, mirror = machines.run, tmp_path / "mirror"
    good(run("ann", "build", SYSTEM))
    pushed = machines.ask("ann", "artifact", "push", SYSTEM, "--to", str(mirror))
    assert (len(pushed["copied"]), pushed["missing"], pushed["refused"]) == (5, [], [])
    assert machines.names(mirror) == ["compiler", "one", "small", "things", "two"]
    again = good(run("ann", "artifact", "push", SYSTEM, "--to", str(mirror)))
    assert f"0 steps, 0 B copied to {mirror}; 5 steps, " in again
    machines.trust("bob", "ann")
    pulled = good(run("bob", "artifact", "pull", SYSTEM, "--from", str(mirror)))
    assert "5 steps, " in pulled
    assert f"copied to {tmp_path}/bob/artifacts; 0 steps, 0 B were there already" in pulled
    assert "warning" not in pulled.replace("warning: not pinned", "")
    assert "all 5 steps cached" in good(run("bob", "build", SYSTEM))
    assert "signed by  ann" in good(run("bob", "artifact", "show", "one"))


def test_parts_of_a_system_are_pushed(machines: Machines, tmp_path: Path) -> None:
    good(machines.run("ann", "build", SYSTEM))
    for args, expected in (
        ((SYSTEM, "one"), ["compiler", "one"]),
        ((SYSTEM, "one", "--runtime"), ["one"]),
        ((SYSTEM, "things", "--runtime"), ["compiler", "one", "things", "two"]),
        ((SYSTEM, "--runtime"), ["compiler", "one", "small", "things", "two"]),
    ):
        to = tmp_path / "-".join(args).replace("/", "_")
        machines.ask("ann", "artifact", "push", *args, "--to", str(to))
        assert machines.names(to) == expected, args
    listed = machines.ask("ann", "artifact", "list")["artifacts"]
    key = {one["name"]: one["key"] for one in listed}["one"]
    for more, expected in ((), ["compiler", "one"]), (("--runtime",), ["one"]):
        to = tmp_path / f"keys{len(more)}"
        machines.ask("ann", "artifact", "push", key[:12], *more, "--to", str(to))
        assert machines.names(to) == expected
    good(machines.run("bob", "artifact", "pull", key, "--from", str(to), trusts=False))


def test_what_does_not_count_is_named_and_not_taken(machines: Machines, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    good(machines.run("ann", "build", SYSTEM))
    good(machines.run("ann", "artifact", "push", SYSTEM, "one", "--to", str(mirror)))
    done = machines.run("bob", "artifact", "pull", SYSTEM, "--from", str(mirror))
    assert done.returncode == 1
    assert "warning: refused: chunk one (" in done.stderr
    assert "): it is signed with the unknown key" in done.stderr
    assert f"warning: {mirror} does not have chunk two, stratum things, system small" in done.stderr
    assert "0 steps, 0 B copied" in done.stdout
    pull = ("artifact", "pull", SYSTEM, "one", "--from", str(mirror))
    anybody = good(machines.run("eve", *pull, trusts=False))
    assert "warning: digests are checked, but signatures are not: no keys are trusted" in anybody
    assert "2 steps, " in anybody


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("push", SYSTEM), "push: give the other store, a directory or a URL, as --to"),
        (("pull", SYSTEM), "pull: give the other store, a directory or a URL, as --from"),
        (("pull", SYSTEM, "--to", "x"), "pull: give the other store, a directory or a URL, as --f"),
        (("push", "--to", "x"), "push: name a system, and some of its chunks or strata if not all"),
        (("push", SYSTEM, "none", "--to", "x"), "small has no chunk, stratum or artifact 'none'"),
        (("push", SYSTEM, "--to", "odd://x"), "reapi: or reapis: as `--to`"),
        (("pull", "ab" * 32, "--from", "http://127.0.0.1:9/x"), "the server is up and `--from` ri"),
        (
            ("push", SYSTEM, "--to", "x", "--password", "none"),
            "none: cannot be read: No such file ",
        ),
    ],
)
def test_mistakes_are_explained(machines: Machines, args: tuple[str, ...], said: str) -> None:
    done = machines.run("ann", "artifact", *args)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_push_goes_on(machines: Machines, tmp_path: Path) -> None:
    machines.project.write(
        one=MUCH.format(1_500_000, "one"), two=("one", MUCH.format(6_000_000, "two"))
    )
    good(machines.run("ann", "build", SYSTEM))
    folder = tmp_path / "server"
    folder.mkdir()
    with nginx(folder, free_port()) as server, Cable(server.port) as cable:
        cable.rate = 3_000_000
        to = ("--to", f"http://127.0.0.1:{cable.port}/a")
        environ = {**machines.project.environ, "FABRIC_CONFIG": str(tmp_path / "ann.toml"),
                   "FABRIC_CACHE": str(tmp_path / "ann")}  # fmt: skip
        push = subprocess.Popen(
            [*INITIATOR, "artifact", "push", SYSTEM, *to],
            cwd=machines.project.logs, env=environ, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: list((server.data / "a/blobs").glob("*/*")))
        push.kill()
        push.wait()
        kept = {file: file.stat().st_ino for file in (server.data / "a/blobs").glob("*/*")}
        assert len(machines.names(server.data / "a")) < 4
        cable.rate = 0
        done = machines.ask("ann", "artifact", "push", SYSTEM, *to)
        assert machines.names(server.data / "a") == ["one", "small", "things", "two"]
        assert done["there"]["bytes"] >= 1_500_000
        assert {file: file.stat().st_ino for file in kept} == kept


# -- substituters ------------------------------------------------------------------------------


def test_build_copies_what_a_substituter_has_and_builds_the_rest(
    machines: Machines, tmp_path: Path
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with nginx(folder, free_port()) as server:
        mirror = f"{server.url}/a"
        good(machines.run("ann", "build", SYSTEM))
        good(machines.run("ann", "artifact", "push", SYSTEM, "one", "--to", mirror))
        machines.trust("bob", "ann")
        away = f"http://127.0.0.1:{free_port()}"
        said = good(machines.run("bob", "build", SYSTEM, substituters=[away, mirror]))
    assert "small is built: 3 built, 2 copied in" in said
    log = machines.project.log("one-misc")
    assert log.startswith(f"### copied from {mirror}\n")
    assert "### INSTALL-COMMANDS ###" in log
    logs = "".join(file.read_text() for file in machines.project.logs.glob("*.log"))
    assert f"### not copied from {away}: " in logs
    shown = machines.ask("bob", "artifact", "show", "one")
    assert shown["signed_by"] == ["ann"]
    assert machines.ask("bob", "artifact", "show", "two")["signed_by"] == ["own"]
    assert "all 5 steps cached" in good(machines.run("bob", "build", SYSTEM))
    for name in ("one", "two"):
        [theirs, ours] = (
            tmp_path / who / "artifacts/manifests" / shown["key"] for who in ("ann", "bob")
        )
        assert name == "two" or theirs.read_bytes() == ours.read_bytes()


def test_substituters_need_trusted_keys(machines: Machines, tmp_path: Path) -> None:
    done = machines.run("bob", "build", SYSTEM, trusts=False, substituters=[str(tmp_path)])
    assert done.returncode == 1
    assert done.stderr == (
        f"fabric-initiator: {tmp_path}/bob.toml: substituters: needs the setting trusted-keys:"
        " without it, whoever answers at these addresses could put anything into your artifacts\n"
    )


class Listener(http.server.ThreadingHTTPServer):
    """A server that has nothing, and keeps the heads of requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heads: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:
        self.server.heads.append(str(self.headers))
        self.send_error(404)

    do_HEAD = do_PUT = do_GET

    def log_message(self, *_: object) -> None: ...


def test_password_of_the_own_store_is_not_sent_to_others(
    machines: Machines, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("bob:secret")
    other = tmp_path / "other"
    other.write_text("bob:guest")
    settings: dict[str, Any] = {"artifacts-password": str(secret)}
    with Listener() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        key = "ab" * 32
        machines.run("bob", "artifact", "pull", key, "--from", url, **settings)
        good(machines.run("bob", "build", SYSTEM, substituters=[url], **settings))
        assert len(server.heads) > 3
        assert not [head for head in server.heads if "authorization" in head.lower()]
        server.heads.clear()
        password = ("--password", str(other))
        machines.run("bob", "artifact", "pull", key, "--from", url, *password, **settings)
        assert all("Basic Ym9iOmd1ZXN0" in head for head in server.heads)
        assert server.heads
        server.shutdown()


def test_password_in_the_url_of_a_store_is_not_printed(machines: Machines, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with nginx(folder, free_port()) as server:
        url = server.url.replace("://", "://ann:secret@") + "/a"
        own: dict[str, Any] = {"artifacts": url}
        good(machines.run("bob", "build", SYSTEM))
        good(machines.run("bob", "artifact", "push", SYSTEM, "--to", url))  # Ann trusts no such key
        for code, args in (
            (0, ("build", SYSTEM)),
            (0, ("artifact", "list")),
            (0, ("artifact", "list", "--json")),
            (0, ("artifact", "push", SYSTEM, "--to", url)),
            (0, ("artifact", "pull", SYSTEM, "--from", url, "--json")),
            (1, ("artifact", "pull", "ab" * 32, "--from", url)),
            (0, ("build", SYSTEM, "--rebuild", "two")),
            (0, ("gc",)),
        ):
            done = machines.run("ann", *args, **own)
            assert done.returncode == code, done.stderr
            assert "secret" not in done.stdout + done.stderr, args
            assert "://***@127.0.0.1" in done.stdout + done.stderr, args
