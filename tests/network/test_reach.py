"""Controllers and stores that are out of reach, or of another version."""

from __future__ import annotations

import os
import signal
import socket
import sys

import pytest
from network_kit import Farm, Workstation
from small_definitions import SYSTEM
from waiting import until

from fabric.wire.messages import PROTOCOL


@pytest.fixture
def alice(farm: Farm) -> Workstation:
    return farm.workstation("alice")


def test_reach_build_waits_for_a_controller(farm: Farm, alice: Workstation) -> None:
    alice.definitions.write(one="true")
    stopped, waits = alice.start_build(), alice.start_build()
    stopped.says("cannot be reached; retrying for 5 min")
    stopped.signal(signal.SIGINT)
    assert stopped.ends()[0] == 130
    alice.configure(patience="1")
    done = alice.build()
    assert done.returncode == 4
    assert "is fabric-broker running there, and the setting `controller` correct?" in done.stderr
    farm.broker()
    farm.worker("w1")
    code, said = waits.ends()
    assert code == 0, said


def test_reach_push_is_repeated_after_the_trove_died(farm: Farm, alice: Workstation) -> None:
    """Locks that it left do not block the next push."""
    hook = farm.trove / "hooks" / "pre-receive"
    hook.write_text(
        "#!/bin/sh\nread old new ref\n"
        "case $ref in refs/builds/*) ;; *) exit 0 ;; esac\n"
        "[ -e died ] || { touch died; mkdir -p $(dirname $ref); touch $ref.lock; kill -9 $PPID; }\n"
    )
    hook.chmod(0o755)
    farm.broker()
    farm.worker("w1")
    alice.definitions.write(one="true")
    done = alice.build()
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" in done.stdout
    assert len(list(farm.trove.glob("refs/builds/*/*.lock"))) == 1


def test_reach_ctrl_c_while_the_store_is_silent(alice: Workstation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/artifacts"
        alice.configure(controller="", trove="", artifacts=url)
        alice.definitions.write(one="true")
        build = alice.start_build()
        asked, _ = silent.accept()
        with asked:
            build.signal(signal.SIGINT)
            code, said = build.ends(20)  # the store has a minute to answer
    assert code == 130
    assert said.endswith("fabric-initiator: interrupted\n")


def test_reach_other_protocol_says_which_side_to_upgrade(farm: Farm, alice: Workstation) -> None:
    """A newer initiator and an older worker at one broker."""
    broker = farm.broker()
    until(lambda: alice.run("list").returncode == 0)
    alice.definitions.write(one="true")

    def speaks(protocol: int, command: list[str]) -> list[str]:
        python, _, module, *args = command
        patched = f"import runpy, fabric.wire.messages as m; m.PROTOCOL = {protocol}; "
        run = f"runpy.run_module({module!r}, run_name='__main__')"
        return [python, "-c", patched + run, *args]

    for command in (["list"], ["build", f"../definitions/{SYSTEM}"]):
        newer = speaks(PROTOCOL + 1, alice.command(*command))
        code, said = farm.start(newer, alice.here, alice.environ, "newer").ends()
        assert code == 1
        assert "upgrade the broker" in said
    farm.worker("w1").kill()
    worker = [sys.executable, "-m", "fabric.worker", "--config", str(farm.root / "w1/worker.toml")]
    older = farm.start(speaks(PROTOCOL - 1, worker), farm.root, dict(os.environ), "older")
    older.says("the broker rejects this worker: ")
    older.says("upgrade this peer")
    broker.says("a message of worker w1 was dropped: ")
