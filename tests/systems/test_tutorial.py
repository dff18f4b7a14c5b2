"""The commands of the tutorial work in an empty folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from network_kit import Farm, free_ports
from qemu import Machine
from small_definitions import git
from systems_kit import MINIMAL, ROOT, Built
from transcripts import assert_shows, blocks, environment, typed

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def blocks_of(page: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each block of a tutorial, but that which activates the environment."""
    found = list(blocks(ROOT / f"docs/tutorial/{page}.md"))
    assert found[0][1].endswith(".venv/bin/activate\n")
    yield from found[1:]


def commands() -> list[str]:
    """The blocks of commands, but for those that start QEMU."""
    shown = blocks_of("your-own-system")
    return [re.sub(r"(?m)^qemu.*\n", "", block) for language, block in shown if not language]


def shared_cache(cache: Path, minimal: Built) -> None:
    """A cache with the artifacts of the minimal system, which a test may extend.

    They are copied: what one run builds, the next one must build again.
    """
    sources = cache / "trove/git/upstream"
    sources.mkdir(parents=True)
    with minimal.alone():
        shutil.copytree(minimal.cache / "artifacts", cache / "artifacts")
    for repository in (minimal.cache / "trove/git/upstream").iterdir():
        if repository.name != "hello.git":
            (sources / repository.name).symlink_to(repository)


def user(tmp_path: Path, **more: str) -> dict[str, str]:
    """The environment of a user with a cache of their own."""
    return environment(FABRIC_CACHE=str(tmp_path / "cache"), FABRIC_CONFIG="/dev/null", **more)


def test_tutorial_builds_boots_and_breaks_a_system(minimal: Built, tmp_path: Path) -> None:
    shared_cache(tmp_path / "cache", minimal)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/distbuild").symlink_to(ROOT)
    *built, broken = commands()
    script = "\n".join([*built, "cp greeter.img ..", f"{{ {broken}\n}} || echo exit $?"])
    said = typed(script, tmp_path / "here", user(tmp_path))
    assert "greeter-x86_64 is built: " in said
    assert "hello failed: build-commands failed with exit status 2: make" in said
    assert said.endswith("exit 3\n"), said
    with Machine(tmp_path / "here/greeter.img") as machine:
        machine.wait_for(r"login: ", 600)
        machine.send("root")
        machine.wait_for(r"# ", 120)
        assert machine.run("hello", 60) == (0, "Hello from a system of my own")


def settings_of(farm: Farm, cache: Path) -> Path:
    """Start a farm with one worker, whose store is that of ``cache``; returns a user's settings."""
    farm.store_url = str(cache / "artifacts")
    farm.broker()
    farm.worker("worker0")
    user = farm.workstation("ann")
    user.configure(cache=str(cache))
    return user.config


def test_tutorial_of_a_day_prints_what_it_shows(minimal: Built, tmp_path: Path) -> None:
    """Each line of its texts is printed, in that order, by the commands before it.

    The last ones are typed with the settings of a farm.
    """
    shared_cache(tmp_path / "cache", minimal)
    copied = tmp_path / "cache/trove/git/upstream/busybox.git"  # it gets a patched import
    copied.unlink()
    shutil.copytree(minimal.cache / "trove/git/upstream/busybox.git", copied)
    here = tmp_path / "distbuild"
    git(tmp_path, "clone", "-q", str(ROOT), str(here))
    port = str(free_ports())
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F ~/.ssh/config "$@"\n')
    (tools / "ssh").chmod(0o755)
    mine = user(tmp_path, HOME=str(tmp_path))
    mine["PATH"] = f"{tools}:{mine['PATH']}"
    typed(f"fabric-initiator build {MINIMAL}", here, mine)  # of the tutorial before
    parts: list[tuple[str, list[str]]] = []  # commands, and what the page shows of their output
    for language, block in blocks_of("a-day-with-a-chunk"):
        if language == "text":
            parts[-1][1].extend(block.splitlines())
        else:
            parts.append((block.replace("2222", port), []))
    with ExitStack() as stack:
        for number, (script, shown) in enumerate(parts, 1):
            if number == len(parts):
                farm = stack.enter_context(closing(Farm(tmp_path / "farm")))
                mine["FABRIC_CONFIG"] = str(settings_of(farm, tmp_path / "cache"))
            before, qemu, after = script.partition("qemu-system-x86_64")
            said = typed(before, here, mine)
            if qemu:
                network = re.search(r"-nic (\S+)", after)
                assert network
                machine = Machine(here / "build/day.img", network=network[1])
                stack.enter_context(machine).wait_for(r"login: ", 600)
            assert_shows(said, shown)
