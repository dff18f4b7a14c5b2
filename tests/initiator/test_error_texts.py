"""The whole text of the errors that users meet most.

`errors.snapshot` holds them for review.  To write it anew after a change:

    UPDATE=1 .venv/bin/pytest tests/initiator/test_error_texts.py
"""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import shlex
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from initiator_kit import INITIATOR, Project
from network_kit import Farm, Workstation
from small_disk import SmallDisk

SNAPSHOT = Path(__file__).with_name("errors.snapshot")
SYSTEM = "../systems/small.morph"
ONE = ("--workers", "1")
SHARE = "mkdir -p $DESTDIR/usr/bin; cp hello.txt $DESTDIR/usr/bin/{0}"

#: Text that differs between runs or machines, and its replacement in the snapshot.
VARYING = (
    (r"\b[0-9a-f]{32,64}\b", "DIGEST"),
    (r"\b[0-9a-f]{12,16}\b", "ID"),
    (r"(work/tmp)/[\w-]+/\d+", r"\1/SCRATCH"),
    (r"kept on \S+, in", "kept on MACHINE, in"),
    (r"(  \| \n){2,}", "  | ...\n"),
    (r"\(choose from .*\)", "(choose from COMMANDS)"),  # Python 3.12 quotes no more
    (r"(?m)^\[\d/\d\] \S+: building on .*\n", ""),  # a short step may end before it is shown
    (r"\S+: (fetching|counting objects|receiving objects|resolving deltas)\n", ""),
    (r"Failed to connect to [^;]+|Could not resolve hostname [^;]+", "REASON"),
)


class World:
    """A user's machine and the files of the test."""

    def __init__(self, project: Project, top: Path) -> None:
        self.project = project
        self.top = top
        self.root = project.root
        self.stack = ExitStack()
        self.names = {str(project.cache): "CACHE", str(project.root): "DEFINITIONS"}

    def write(self, path: str, text: str) -> None:
        """A file of the definitions."""
        file = self.root / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    def edit(self, path: str, old: str, new: str) -> None:
        file = self.root / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def built(self) -> None:
        self.project.write(one=SHARE.format("one"))
        done = self.project.build()
        assert done.returncode == 0, done.stderr

    def run(
        self,
        *args: str,
        environ: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        cwd: Path | None = None,
        shown: Mapping[str, str] | None = None,
    ) -> str:
        """The command line, all it prints, and its exit code; ``shown``: variables to show."""
        done = subprocess.run(
            [*within, *INITIATOR, *args],
            cwd=cwd or self.project.logs,
            env={**self.project.environ, "LC_ALL": "C.UTF-8", **(shown or {}), **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        variables = [f"{name}={shlex.quote(value)}" for name, value in (shown or {}).items()]
        typed = " ".join([*variables, shlex.join(["fabric-initiator", *args])])
        return self.normal(f"$ {typed}\n{done.stdout}{done.stderr}exit {done.returncode}\n")

    def normal(self, text: str) -> str:
        for path, name in sorted({**self.names, str(self.top): "TOP"}.items(), key=longest):
            text = text.replace(path, name)
        for pattern, name in VARYING:
            text = re.sub(pattern, name, text)
        return text


def longest(item: tuple[str, str]) -> int:
    return -len(item[0])


Situation = Callable[[World], str]
SITUATIONS: dict[str, Situation] = {}


def situation(title: str) -> Callable[[Situation], Situation]:
    def add(act: Situation) -> Situation:
        SITUATIONS[title] = act
        return act

    return add


# -- the command line and settings ---------------------------------------------------------


@situation("A command without its argument")
def _(world: World) -> str:
    return world.run("build", environ={"COLUMNS": "80"})


@situation("A command that does not exist")
def _(world: World) -> str:
    return world.run("buld", SYSTEM, environ={"COLUMNS": "80"})


@situation("A settings file that does not exist")
def _(world: World) -> str:
    return world.run("show", SYSTEM, shown={"FABRIC_CONFIG": "/nowhere/distbuild.toml"})


def with_settings(world: World, text: str, command: str = "show") -> str:
    file = world.top / "distbuild.toml"
    file.write_text(text)
    return world.run(command, SYSTEM, environ={"FABRIC_CONFIG": str(file)})


@situation("A settings file that is not TOML")
def _(world: World) -> str:
    return with_settings(world, "workers = \n")


@situation("An unknown setting")
def _(world: World) -> str:
    return with_settings(world, "worker = 3\n")


@situation("A setting of the wrong type")
def _(world: World) -> str:
    return with_settings(world, 'workers = "many"\n')


@situation("A variable of the wrong type")
def _(world: World) -> str:
    return world.run("show", SYSTEM, shown={"FABRIC_MAX_JOBS": "all"})


@situation("A variable that is not a setting")
def _(world: World) -> str:
    world.built()
    return world.run("cancel", "1", shown={"FABRIC_CONTROLER": "farm"})


@situation("A cache folder that cannot be made")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("--cache", "/dev/null/cache", "build", SYSTEM)


# -- definitions ---------------------------------------------------------------------------


@situation("A system that does not exist")
def _(world: World) -> str:
    return world.run("build", "../systems/smal.morph")


@situation("A folder without definitions")
def _(world: World) -> str:
    return world.run("build", "small.morph", cwd=world.top)


@situation("A cluster in place of a system")
def _(world: World) -> str:
    world.write("clusters/farm.morph", "name: farm\nkind: cluster\nsystems: []\n")
    return world.run("build", "../clusters/farm.morph")


@situation("A file that is not YAML")
def _(world: World) -> str:
    world.project.write(one="true")
    world.edit("strata/one.morph", "kind: chunk", "kind: [chunk")
    return world.run("build", SYSTEM)


@situation("An unknown field")
def _(world: World) -> str:
    world.project.write(one="true")
    world.edit("strata/one.morph", "install-commands", "instal-commands")
    return world.run("build", SYSTEM)


@situation("Several mistakes")
def _(world: World) -> str:
    world.project.write(one="true", two=("three", "true"))
    world.edit("strata/things.morph", "strata/one.morph", "strata/won.morph")
    return world.run("build", SYSTEM)


@situation("Chunks that need each other")
def _(world: World) -> str:
    world.project.write(one="true", two=("one", "true"))
    world.edit("strata/things.morph", "build-depends: []", "build-depends: [two]")
    return world.run("build", SYSTEM)


def with_list(world: World, *entries: str, back: str = "") -> str:
    """``check`` of a stratum whose chunk lists these needs; ``back``: a need of the other."""
    world.project.write(one="true")
    world.edit("strata/things.morph", "build-depends: []", f"build-depends: [{back}]")
    world.write(
        "strata/others.morph",
        "name: others\nkind: stratum\nchunks:\n- name: two\n  build-system: manual\n"
        "  repo: upstream:two\n  ref: main\n  build-depends:\n"
        + "".join(f"  - {entry}\n" for entry in entries),
    )
    entry = "- {name: others, morph: strata/others.morph}"
    world.edit("systems/small.morph", "strata:\n", f"strata:\n{entry}\n")
    return world.run("check")


@situation("A list of needs with unknown strata and chunks")
def _(world: World) -> str:
    return with_list(
        world,
        "{stratum: strata/thing.morph}",
        "{stratum: strata/things.morph, chunks: [ones, two]}",
    )


@situation("A list of needs with mistakes")
def _(world: World) -> str:
    return with_list(
        world,
        "{stratum: strata/things.morph, chunks: [one, one]}",
        "{stratum: strata/things.morph, chunks: []}",
        "{stratum: strata/others.morph, chunks: [two]}",
        "{morph: strata/things.morph}",
        "one",
    )


@situation("Lists of needs that form a cycle")
def _(world: World) -> str:
    there, back = (f"{{stratum: strata/{name}.morph}}" for name in ("things", "others"))
    return with_list(world, there, back=back)


@situation("check --unused of no system")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("check", "--unused")


@situation("check --unused of a stratum")
def _(world: World) -> str:
    world.built()
    return world.run("check", SYSTEM, "--unused", "things")


@situation("check --unused before the first build")
def _(world: World) -> str:
    world.project.write(one="true", two=("one", "true"))
    return world.run("check", SYSTEM, "--unused", "two")


@situation("A chunk that does not exist: build")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("build", SYSTEM, "on")


@situation("A chunk that does not exist: logs")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("logs", "on")


@situation("A chunk that does not exist: shell, with a system")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("shell", "nothing", "--system", SYSTEM)


# -- sources -------------------------------------------------------------------------------


def with_source(world: World, repo: str, ref: str = "main") -> str:
    world.project.write(one="true")
    world.edit("strata/things.morph", f"file://{world.project.source}", repo)
    world.edit("strata/things.morph", "ref: main", f"ref: {ref}")
    return world.run("build", SYSTEM)


@situation("A ref that does not exist")
def _(world: World) -> str:
    return with_source(world, f"file://{world.project.source}", "v1.0")


@situation("A commit that does not exist")
def _(world: World) -> str:
    return with_source(world, f"file://{world.project.source}", "0123456789" * 4)


@situation("A repository that does not exist")
def _(world: World) -> str:
    return with_source(world, "file:///nowhere/one.git")


@situation("A repository out of reach")
def _(world: World) -> str:
    return with_source(world, "http://127.0.0.1:1/one.git")


@situation("A source without a lorry")
def _(world: World) -> str:
    return with_source(world, "upstream:one")


@situation("An unknown alias of repositories")
def _(world: World) -> str:
    return with_source(world, "upstraem:one")


def tarball(world: World, **entry: str) -> None:
    archive = world.top / "one-1.0.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(world.project.source / "hello.txt", "one-1.0/hello.txt")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    fields = {"type": "tarball", "version": "'1.0'", "url": archive.as_uri(), "sha256": sha256}
    lines = [f"  {name}: {value}\n" for name, value in {**fields, **entry}.items()]
    world.write("sources/one.lorry", "one:\n" + "".join(lines))


@situation("A download with another digest")
def _(world: World) -> str:
    tarball(world, sha256="ab" * 32)
    return world.run("lorry", "import", "one")


@situation("A download that does not exist")
def _(world: World) -> str:
    tarball(world, url="file:///nowhere/one-1.0.tar")
    return world.run("lorry", "import", "one")


@situation("A patch that does not apply")
def _(world: World) -> str:
    patch = "--- a/hello.txt\n+++ b/hello.txt\n@@ -1,2 +1,3 @@\n good day\n+or night\n all\n"
    world.write("sources/one.patch", patch)
    tarball(world, patches="[one.patch]")
    return world.run("lorry", "import", "one")


@situation("A patched source with another tree than is recorded")
def _(world: World) -> str:
    world.write("sources/one.patch", "--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+new\n")
    tarball(world, patches="[one.patch]", tree="ab" * 20)
    return world.run("lorry", "import", "one")


@situation("A component from a lorry that does not exist")
def _(world: World) -> str:
    tarball(world, components="{sub: {lorry: too}}")
    return world.run("lorry", "import", "one")


@situation("A lorry of an unknown type")
def _(world: World) -> str:
    tarball(world, type="tarbal")
    return world.run("lorry", "list")


@situation("A lorry that does not exist")
def _(world: World) -> str:
    tarball(world)
    return world.run("lorry", "update", "won")


@situation("--locked, and a source that is not pinned")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("build", SYSTEM, "--locked")


# -- building ------------------------------------------------------------------------------


@situation("A chunk that fails to build")
def _(world: World) -> str:
    world.project.write(one="echo compiling\nfalse")
    return world.run("build", SYSTEM, *ONE)


@situation("A step that takes too long")
def _(world: World) -> str:
    world.project.write(one="sleep 1000")
    return world.run("build", SYSTEM, *ONE, "--build-timeout", "1")


@situation("A step that prints too much")
def _(world: World) -> str:
    world.project.write(one="yes ''")
    return world.run("build", SYSTEM, *ONE, shown={"FABRIC_LOG_LIMIT": "100000"})


@situation("No bubblewrap")
def _(world: World) -> str:
    world.project.write(one="true")
    programs = world.top / "programs"
    programs.mkdir()
    for folder in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        for program in Path(folder).iterdir():
            link = programs / program.name
            if program.name != "bwrap" and not link.is_symlink():
                link.symlink_to(program)
    return world.run("build", SYSTEM, *ONE, environ={"PATH": str(programs)})


@situation("User namespaces that are forbidden")
def _(world: World) -> str:
    world.project.write(one="true")
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    within = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh"]
    return world.run("build", SYSTEM, *ONE, within=within)


@situation("A full disk")
def _(world: World) -> str:
    world.project.write(one="head -c 100000000 /dev/zero > $DESTDIR/large")
    disk = SmallDisk(world.project.cache, 32 << 20)
    world.stack.callback(disk.close)
    enter = disk.inside(["sh", "-c", f'cd {shlex.quote(str(world.project.logs))}; exec "$@"', "sh"])
    return world.run("build", SYSTEM, *ONE, within=enter)


@situation("A current folder that cannot be written")
def _(world: World) -> str:
    world.project.write(one="sleep 10")  # it goes on when its log cannot be opened
    there = shlex.quote(str(world.project.logs))
    script = f"mount --bind {there} {there}; mount -o remount,ro,bind {there}; cd {there}"
    within = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{script}; exec "$@"', "sh"]
    return world.run("build", SYSTEM, *ONE, within=within)


@situation("An architecture that is not built here")
def _(world: World) -> str:
    world.project.write(one="true")
    world.edit("systems/small.morph", "x86_64", "armv7l")
    return with_settings(world, 'architectures = ["x86_64"]\n', "build")


@situation("A build that is interrupted")
def _(world: World) -> str:
    world.project.write(one="sleep 1000")
    log = shlex.quote(str(world.project.logs / "build-step-one-misc.log"))
    script = f'"$@" & until [ -s {log} ]; do sleep 0.05; done; kill -TERM $!; wait $!'
    return world.run("build", SYSTEM, *ONE, within=["sh", "-c", script, "sh"])


# -- built artifacts -----------------------------------------------------------------------


@situation("logs of a chunk that is not built")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("logs", "one")


@situation("shell of a chunk whose dependencies are not built")
def _(world: World) -> str:
    world.project.write(one="true", two=("one", "true"))
    return world.run("shell", "two")


@situation("shell of a stratum")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("shell", "things")


@situation("checkout of a system that is not built")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("checkout", SYSTEM, "--to", "tree")


@situation("checkout to a folder that exists")
def _(world: World) -> str:
    world.built()
    (world.project.logs / "tree").mkdir()
    return world.run("checkout", SYSTEM, "--to", "tree")


@situation("checkout of an artifact that is damaged")
def _(world: World) -> str:
    world.project.write(one=f"{SHARE.format('one')}; head -c 300000 /dev/urandom > $DESTDIR/large")
    assert world.project.build().returncode == 0
    for blob in (world.project.cache / "artifacts/blobs").rglob("*"):
        if blob.is_file():
            blob.chmod(0o644)
            with blob.open("r+b") as file:
                file.write(b"damaged")
    return world.run("checkout", SYSTEM, "--to", "tree")


@situation("image of a system that is not built")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("image", SYSTEM, "--to", "disk.img")


@situation("image of a system without a kernel")
def _(world: World) -> str:
    world.built()
    return world.run("image", SYSTEM, "--to", "disk.img")


# -- the artifact store --------------------------------------------------------------------


@contextmanager
def store_that_answers(status: int) -> Iterator[str]:
    """The URL of a server that gives every request the same status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        do_HEAD = do_PUT = do_PROPFIND = do_MKCOL = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def with_store(world: World, url: str) -> str:
    world.project.write(one="true")
    world.names[url] = "http://store/"
    return world.run("build", SYSTEM, environ={"FABRIC_ARTIFACTS": url})


@situation("An artifact store that refuses the user")
def _(world: World) -> str:
    return with_store(world, world.stack.enter_context(store_that_answers(403)))


@situation("An artifact store that fails")
def _(world: World) -> str:
    return with_store(world, world.stack.enter_context(store_that_answers(500)))


@situation("An artifact store out of reach")
def _(world: World) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return with_store(world, f"http://127.0.0.1:{free.getsockname()[1]}/")


# -- a farm --------------------------------------------------------------------------------


@situation("A command for a controller, and none is set")
def _(world: World) -> str:
    return world.run("list")


@situation("--detach without a controller")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("build", SYSTEM, "--detach")


@situation("logs --follow without a controller")
def _(world: World) -> str:
    world.project.write(one="true")
    return world.run("logs", "one", "--follow")


@situation("A controller, and no key for it")
def _(world: World) -> str:
    keys = {"FABRIC_KEYS": str(world.top / "keys")}
    return world.run("list", "--controller", "farm.example", environ=keys)


@situation("A controller whose name is no address")
def _(world: World) -> str:
    return world.run("list", "--controller", "farm:seven")


def on_farm(
    world: World,
    *args: str,
    broker: bool = True,
    revoked: bool = False,
    before: Callable[[Workstation], Sequence[str]] = lambda workstation: (),  # noqa: ARG005
    **settings: str,
) -> str:
    """A command on the machine of a user with a key.  ``before`` may add words to it."""
    farm = Farm(world.top)
    world.stack.callback(farm.close)
    workstation = farm.workstation("alice")
    workstation.configure(**settings)
    world.names |= {str(workstation.definitions.root): "DEFINITIONS", farm.address: "farm:7411"}
    workstation.definitions.write(one="true")
    if revoked:
        farm.revoke("alice")
    if broker:
        farm.broker()
    environ = {"FABRIC_CONFIG": str(workstation.config), "HOME": str(workstation.home)}
    environ["FABRIC_CACHE"] = str(workstation.home / "cache")
    return world.run(*args, *before(workstation), environ=environ, cwd=workstation.here)


@situation("A controller out of reach")
def _(world: World) -> str:
    return on_farm(world, "list", broker=False)


@situation("A key that the controller does not know")
def _(world: World) -> str:
    return on_farm(world, "list", revoked=True)


@situation("A build that does not exist")
def _(world: World) -> str:
    return on_farm(world, "cancel", "12345")


@situation("A build that was cancelled")
def _(world: World) -> str:
    def cancelled(workstation: Workstation) -> Sequence[str]:
        id = workstation.detach()
        assert workstation.run("cancel", id).returncode == 0
        return [id]

    return on_farm(world, "attach", before=cancelled)


@situation("gc, and the controller out of reach")
def _(world: World) -> str:
    return on_farm(world, "gc", broker=False)


@situation("why of something that nothing waits for")
def _(world: World) -> str:
    return on_farm(world, "why", "nothing")


@situation("drain of a worker that does not exist")
def _(world: World) -> str:
    return on_farm(world, "workers", "drain", "w9")


@situation("drain without a name")
def _(world: World) -> str:
    return world.run("workers", "drain")


@situation("A controller, and no trove")
def _(world: World) -> str:
    return on_farm(world, "build", "../definitions/systems/small.morph", trove="")


@situation("A trove that does not exist")
def _(world: World) -> str:
    system = "../definitions/systems/small.morph"
    return on_farm(world, "build", system, trove="/nowhere/trove.git", patience="0")


# ------------------------------------------------------------------------------------------


def snapshots() -> dict[str, str]:
    """Title -> text."""
    if not SNAPSHOT.exists():
        return {}
    blocks = re.split(r"^== (.*)\n", SNAPSHOT.read_text(), flags=re.MULTILINE)[1:]
    return {
        title: text.rstrip("\n") + "\n"
        for title, text in zip(blocks[::2], blocks[1::2], strict=True)
    }


#: These wait before they give up.
SLOW = {
    title for title in SITUATIONS if re.search("out of reach|store that fails|A key that", title)
}


@pytest.mark.parametrize(
    "title",
    [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in SITUATIONS],
)
def test_error_text(title: str, project: Project, tmp_path: Path) -> None:
    world = World(project, tmp_path)
    with world.stack:
        text = SITUATIONS[title](world)
    known = snapshots()
    if os.environ.get("UPDATE"):
        known[title] = text
        SNAPSHOT.write_text(
            "\n".join(f"== {one}\n{known[one]}" for one in SITUATIONS if one in known)
        )
    assert text == known.get(title)


def test_error_snapshots_all_have_a_situation() -> None:
    assert list(snapshots()) == list(SITUATIONS)
