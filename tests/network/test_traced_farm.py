"""A farm keeps what a build did, over a restart of its broker, for traces and for viewers."""

from __future__ import annotations

from network_kit import Farm
from trace_kit import Trace

from fabric.client.controller import Controller
from fabric.config import Settings
from fabric.wire.connection import Connection, dial


def test_farm_trace_survives_a_restart_of_the_broker(farm: Farm) -> None:
    broker = farm.broker()
    farm.worker("w1")
    alice = farm.workstation("alice")
    alice.definitions.write(one="sleep 0.3", two=("one", "sleep 0.3"), bad="false")
    request = alice.detach("--keep-going")
    assert alice.run("attach", request).returncode != 0

    def traced() -> Trace:
        done = alice.run("trace", request[:12])
        assert done.returncode == 0, done.stderr
        return Trace(done.stdout)

    before = traced()
    assert before.facts["state"] == "failed"
    assert before.facts["requester"] == "alice"
    results = {one["name"]: one["args"]["result"] for one in before.steps()["w1"]}
    assert results == {"one": "done", "two": "done", "bad": "failed"}
    assert ("one", "two") in before.arrows
    phases = {one["name"]: before.phases(one) for one in before.steps()["w1"]}
    assert phases["one"][-1] == "store"
    broker.kill()
    farm.broker()
    after = traced()
    assert {one["name"]: after.phases(one) for one in after.steps()["w1"]} == phases
    assert after.facts["state"] == "failed"
    assert after.arrows == [], "what steps need is not known any more"
    lengths = [
        {one["name"]: one["dur"] for one in trace.steps()["w1"]} for trace in (before, after)
    ]
    assert all(abs(lengths[0][name] - lengths[1][name]) < 50_000 for name in results)
    wrong = alice.run("trace")
    assert wrong.returncode == 1
    assert wrong.stderr == "fabric-initiator: no build is named: give its ID, as `list` shows it\n"


def test_farm_shows_a_viewer_what_an_initiator_sees(farm: Farm) -> None:
    farm.broker()
    farm.worker("w1")
    alice = farm.workstation("alice")
    alice.definitions.write(one="true")
    assert alice.build().returncode == 0
    keys = farm.make_keys("viewer", "web")
    addresses, curve, name = dial(Settings(controller=farm.address, keys=str(keys)), "viewer")
    connection = Connection(addresses, "follow", curve=curve, name=name)
    assert name == "web"
    try:
        controller = Controller(connection)
        [info] = controller.query("requests").requests
        update = controller.query("update", info.request).update
        assert update is not None
        assert update.state == "done"
        attempts = controller.query("attempts", info.request).attempts
        assert {each.result for each in attempts} == {"done"}
        assert {each.name for each in attempts} == {each.name for each in update.steps}
        key, fence = next((each.key, each.fence) for each in attempts if each.name == "one")
        piece = controller.read_log(key, fence, 0)
        assert piece is not None
        assert b"+ true" in piece.data
    finally:
        connection.close()
