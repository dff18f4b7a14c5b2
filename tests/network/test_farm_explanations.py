"""A farm explains why it builds a step again, also one that another user built before."""

from __future__ import annotations

import json

from network_kit import Farm
from small_definitions import SYSTEM

ADD = "mkdir -p $DESTDIR/usr/share/{0}; cp hello.txt $DESTDIR/usr/share/{0}/"


def test_farm_explains_steps_that_another_user_built(farm: Farm) -> None:
    farm.broker()
    farm.worker("w1")
    alice, bob = farm.workstation("alice"), farm.workstation("bob")
    for workstation in (alice, bob):
        workstation.definitions.write(one=ADD.format("one"), two=("one", ADD.format("two")))
    first = alice.build("--explain")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "one: never built before\ntwo: never built before\n" in first.stdout
    bob.definitions.write(one=f"{ADD.format('one')}; true", two=("one", ADD.format("two")))
    because = "because of one: install-commands changed"
    shown = bob.run("show", f"../definitions/{SYSTEM}").stdout
    assert f"two     {because} (strata/one.morph:3)\n" in shown
    second = bob.build("--explain")
    assert second.returncode == 0, second.stdout + second.stderr
    expected = [
        "one: install-commands changed (strata/one.morph:3)",
        *(f"{name}: {because}" for name in ("two", "small")),
    ]
    assert "\n".join(expected) + "\n" in second.stdout
    assert "small is built: " in second.stdout
    again = bob.build("--explain")
    assert "because" not in again.stdout
    alice.definitions.write(one=f"{ADD.format('one')}; true", two="true")
    detached = alice.build("--explain", "--detach", "--json")
    events = [json.loads(line) for line in detached.stdout.splitlines()]
    found = {event["name"]: event["changes"] for event in events if event["event"] == "explained"}
    assert found.keys() == {"two", "small"}
    assert [change["text"] for change in found["two"]] == [
        "install-commands changed", "no longer built with one",
    ]  # fmt: skip
    assert found["two"][1]["where"] == "strata/things.morph:15"
