"""A controller with a full disk, as its users see it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from network_kit import Farm
from small_disk import SmallDisk
from waiting import until

REFUSAL = (
    "the controller accepts no builds, cancels or drains, because it cannot write its journal: "
)


@pytest.fixture
def disk(farm: Farm) -> Iterator[SmallDisk]:
    """A small disk with the broker's state."""
    disk = SmallDisk(farm.controller / "state", 8 << 20)
    yield disk
    farm.close()
    disk.close()


def test_full_controller_delays_new_builds_and_continues_others(
    farm: Farm, disk: SmallDisk
) -> None:
    alice, bob = farm.workstation("alice"), farm.workstation("bob")
    farm.broker(inside=disk.inside)
    farm.worker("w1")
    until(lambda: alice.run("list").returncode == 0)
    alice.definitions.write(one=farm.held("one"))
    runs = alice.start_build()
    runs.says("one: building on w1")
    disk.fill()

    bob.definitions.write(two="true")
    bob.configure(patience="0")
    done = bob.build("--detach")
    assert done.returncode == 4
    refusal = done.stderr.splitlines()[-1]
    assert refusal.startswith(f"fabric-initiator: {REFUSAL}{farm.controller}/state/")
    assert refusal.endswith("; make room on that disk")
    assert "cancelled" not in done.stdout
    bob.configure()
    waits = bob.start_build()
    waits.says("; make room on that disk; retrying for 5 min")
    request = alice.ask("list")[0]["request"]
    for said in (f"cancel {request}", "workers drain w1"):
        done = bob.run(*said.split())
        assert done.returncode == 4
        assert REFUSAL in done.stderr
    for said in ("status", f"status {request}", "list", "workers", "why one"):
        done = bob.run(*said.split())
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(REFUSAL), said
        assert done.stdout.splitlines()[1] == "", said
    told = bob.ask("status")
    assert told["warning"].startswith(REFUSAL)
    assert [one["title"] for one in told["requests"]] == [alice.ask("list")[0]["title"]]
    assert [line[: len(REFUSAL)] == REFUSAL for line in bob.ask("why", "one")] == [True, False]
    done = bob.run("why", "two")
    assert done.returncode == 1
    assert REFUSAL in done.stderr

    farm.release("one")
    code, said = runs.ends()
    assert code == 0, said
    disk.free()
    code, said = waits.ends()
    assert code == 0, said
    assert "the controller takes orders again" in said
    assert bob.ask("status")["warning"] == ""
