"""Workers with an engine: whole builds, mixed with other workers, and settings that are wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from engine_kit import Casd, is_running, running
from initiator_kit import Project
from network_kit import Farm
from small_definitions import git
from waiting import until

from fabric.config import ConfigError, WorkerSettings
from fabric.execution import access

CHUNKS = ("one", "two", "three")
#: In the last chunk, a file says what the others installed.
INSTALL = """\
mkdir -p $DESTDIR/usr/share
cat /usr/share/* > $DESTDIR/usr/share/{0} || echo first > $DESTDIR/usr/share/{0}
chmod 2755 $DESTDIR/usr/share
"""


@pytest.fixture
def staging(project: Project, packer: Path) -> Project:
    """A project whose chunks, each on the one before it, are built with a base of their own."""
    chunks = {}
    before: tuple[str, ...] = ()
    for name in CHUNKS:
        chunks[name] = (before, INSTALL.format(name))
        before = (*before, name)
    write_staging(project.root, project.source, packer, chunks)
    return project


def write_staging(
    root: Path, source: Path, tools: Path, chunks: Mapping[str, tuple[tuple[str, ...], str]]
) -> None:
    """A stratum whose chunks are built with ``tools``: for each, its dependencies and command."""
    base = root.parent / "base"
    shutil.copytree(tools, base, symlinks=True)
    git(base, "init", "-q", "-b", "main")
    git(base, "add", ".")
    git(base, "commit", "-qm", "tools")
    specs = [
        f"- name: base\n  repo: file://{base}\n  ref: main\n  build-mode: import\n"
        "  build-only: true\n"
    ]
    for name, (depends, command) in chunks.items():
        lines = "".join(f"  {line}\n" for line in command.splitlines())
        (root / f"strata/{name}.morph").write_text(
            f"name: {name}\nkind: chunk\nbuild-commands:\n- pwd; env | sort\n"
            f"install-commands:\n- |\n{lines}"
        )
        specs.append(
            f"- name: {name}\n  morph: strata/{name}.morph\n  repo: file://{source}\n"
            f"  ref: main\n  build-depends: [{', '.join(('base', *depends))}]\n"
        )
    (root / "strata/things.morph").write_text(
        "name: things\nkind: stratum\nchunks:\n" + "".join(specs)
    )


def executed(project: Project) -> list[str]:
    """The chunks whose logs say that an engine built them."""
    return [
        name
        for name in CHUNKS
        if "### executed at " in (project.logs / f"build-step-{name}-misc.log").read_text()
    ]


def test_system_of_an_engine_equals_that_of_this_machine(staging: Project, casd: Casd) -> None:
    done = staging.build("--write-digests")
    assert done.returncode == 0, done.stderr
    assert executed(staging) == []
    other = str(staging.cache.with_name("other"))
    shutil.copytree(staging.cache / "trove", Path(other) / "trove", symlinks=True)
    shutil.copy(staging.cache / "host-tools.json", other)
    done = staging.run(
        "build", "../systems/small.morph", "--check-digests", "--cache", other,
        environ={"FABRIC_EXECUTE": f"grpc://{casd.host}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert executed(staging) == list(CHUNKS)


def test_one_server_runs_the_steps_and_keeps_what_they_give(
    staging: Project, tmp_path: Path
) -> None:
    system = ("build", "../systems/small.morph")
    with running(tmp_path / "engine") as engine:
        environ = {
            "FABRIC_EXECUTE": f"grpc://{engine.host}",
            "FABRIC_ARTIFACTS": f"reapi://{engine.host}",
        }
        done = staging.run(*system, environ=environ)
        assert done.returncode == 0, done.stderr + done.stdout
        assert executed(staging) == list(CHUNKS)
        other = staging.cache.with_name("other")
        other.mkdir()
        (other / "trove").symlink_to(staging.cache / "trove")
        shutil.copy(staging.cache / "host-tools.json", other)
        done = staging.run(*system, "--cache", str(other), environ=environ)
        assert "steps cached" in done.stdout, done.stderr + done.stdout
        to = staging.logs / "tree"
        done = staging.run("checkout", system[1], "--to", str(to), environ=environ)
        assert (to / "usr/share/three").read_text() == "first\nfirst\n", done.stderr
        done = staging.run("artifact", "list", environ=environ)
        assert done.returncode == 1
        assert "does not tell what it has" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    made = Farm(tmp_path / "farm")
    yield made
    made.close()


def test_workers_with_and_without_an_engine_build_together(
    farm: Farm, packer: Path, tmp_path: Path
) -> None:
    """The engine is killed in the middle: its step is built elsewhere, and the reason is shown."""
    alice = farm.workstation("alice")
    install = "mkdir -p $DESTDIR/usr; sleep 3; echo {0} > $DESTDIR/usr/{0}"
    chunks = {name: ((), install.format(name)) for name in CHUNKS}
    write_staging(alice.definitions.root, alice.definitions.source, packer, chunks)
    farm.broker()
    with running(tmp_path / "engine") as engine:
        farm.worker("remote", execute=f"grpc://{engine.host}")
        build = alice.start_build()
        until(lambda: is_running("sleep 3"), 120)
        engine.kill()
        reason = f"The engine {engine.host}: UNAVAILABLE: "
        seen: set[str] = set()

        def told() -> bool:  # by turns: the worker rests, and then tries again
            for what in ("workers", "why one"):
                if reason in alice.run(*what.split()).stdout:
                    seen.add(what)
            return len(seen) == 2

        until(told, 120)
        farm.worker("local")
        until(lambda: list(alice.here.glob("*.log")))
        engine.start()
        code, said = build.ends(120)
    assert code == 0, said


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"execute": "engine:80"}, "execute: 'engine:80' is not grpc[s]://HOST[:PORT]"),
        ({"execute": "http://engine"}, "execute: 'http://engine' is not grpc[s]://HOST[:PORT]"),
        ({"execute": "grpcs://engine/a"}, "execute: 'grpcs://engine/a' is not grpc[s]://HOST"),
        ({"execute": "grpcs://:1"}, "execute: ':1' is not HOST or HOST:PORT"),
        ({"execute": "grpc://engine"}, "execute: engine is not a loopback address"),
        (
            {"execute": "grpcs://engine", "execute_certificate": "it"},
            "execute-certificate and execute-certificate-key go together",
        ),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as told:
        access.of(WorkerSettings(**settings))  # type: ignore[arg-type]
    assert text in str(told.value)


def test_settings_are_those_of_the_engine() -> None:
    found = access.of(
        WorkerSettings(
            execute="grpcs://engine.example",
            execute_instance="/main/",
            execute_properties={"OSFamily": "linux"},
            execute_token="/run/token",
        )
    )
    assert (found.host, found.encrypted) == ("engine.example:443", True)
    assert (found.instance, found.properties) == ("main", {"OSFamily": "linux"})
    assert (found.ca, found.token) == (None, Path("/run/token"))
    assert access.of(WorkerSettings(execute="grpc://[::1]")).host == "[::1]:8980"


def program(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )


def test_libraries_of_the_engine_are_loaded_for_it_only() -> None:
    done = program(
        "import json, sys, fabric.worker, fabric.initiator\n"
        "fabric.worker.parser()\n"
        "rooms = ('grpc', 'google.', 'fabric.execution', 'fabric.reapi')\n"
        "print(json.dumps([name for name in sys.modules if name.startswith(rooms)]))"
    )
    assert json.loads(done.stdout) == [], done.stderr


def test_library_that_is_missing_is_named(tmp_path: Path) -> None:
    done = program(
        "import sys; sys.modules['grpc'] = None\n"
        "from fabric.worker import main\n"
        "import os; os.environ['FABRIC_CONFIG'] = '/dev/null'\n"
        f"os.environ['FABRIC_CACHE'] = {str(tmp_path / 'cache')!r}\n"
        f"sys.exit(main(['--directory', {str(tmp_path)!r}, '--name', 'w', '--host-tools', 'x',\n"
        "               '--execute', 'grpc://localhost']))"
    )
    assert done.stderr == (
        "fabric-worker: execute needs grpc, which is not installed: pip install"
        " 'distbuild[reapi]'; or leave the setting empty\n"
    )
    assert done.returncode == 1
