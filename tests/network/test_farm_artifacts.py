"""Artifacts of a farm: built once more, looked into, deleted."""

from __future__ import annotations

import json

from network_kit import Farm
from waiting import until

ADD = "mkdir -p $DESTDIR/usr/share/{0}; cp hello.txt $DESTDIR/usr/share/{0}/"
TIMED = f"{ADD}; date +%s%N >$DESTDIR/usr/share/{{0}}/time"


def test_farm_builds_once_more_and_reports_differences(farm: Farm) -> None:
    farm.broker()
    farm.worker("w1")
    user = farm.workstation("alice")
    user.definitions.write(one=TIMED.format("one"), two=("one", ADD.format("two")))
    assert user.build().returncode == 0
    before = {one["key"] for one in user.ask("artifact", "list")["artifacts"]}
    done = user.build("--rebuild", "one", "--rebuild", "two", "-v")
    assert done.returncode == 0, done.stderr
    assert "one | ### INSTALL-COMMANDS ###\n" in done.stdout
    assert "one: built once more, with another result; the first one stays\n" in done.stdout
    assert "  ~ /usr/share/one/time: content, 20 B -> 20 B\n" in done.stdout
    assert "two: built once more, with the same result\n" in done.stdout
    found = user.ask("artifact", "list")["artifacts"]
    assert before < {one["key"] for one in found}
    firsts = {one["rebuild_of"] for one in found} - {None}
    assert firsts == {one["key"] for one in found if one["name"] in ("one", "two")} & before
    done = user.run("checkout", "../definitions/systems/small.morph", "one", "--to", "x", "--json")
    [first] = [one for one in found if one["name"] == "one" and one["key"] in before]
    shown = user.ask("artifact", "show", first["key"])["artifacts"]
    assert json.loads(done.stdout)["sha256"] == [one["sha256"] for one in shown if one["sha256"]]
    request = user.detach("--rebuild", "one")
    done = user.run("attach", request, "-v")
    assert "one: built once more, with another result" in done.stdout, done.stderr


def test_farm_certifies_on_another_worker_than_the_first(farm: Farm) -> None:
    """What was built before, and what the same request builds."""
    farm.broker()
    first = farm.worker("w1", slots=2)
    user = farm.workstation("alice")
    user.definitions.write(one=ADD.format("one"), two=("one", ADD.format("two")))
    assert user.build("one").returncode == 0
    farm.worker("w2", slots=2)
    until(lambda: len(user.ask("workers")) == 2)
    done = user.run("certify", "../definitions/systems/small.morph", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    [found] = [one["certificate"] for one in events if one["event"] == "certified"]
    builders = {
        one["name"]: (one["first"]["builder"], one["again"]["builder"]) for one in found["steps"]
    }
    assert builders["one"] == ("w1", "w2")
    assert all(sorted(pair) == ["w1", "w2"] for pair in builders.values()), builders
    done = user.run("certify", "../definitions/systems/small.morph")
    assert "another worker: 3 of 3 steps\n" in done.stdout
    first.kill()
    until(lambda: len(user.ask("workers")) == 1)
    done = user.run("certify", "../definitions/systems/small.morph")
    assert done.returncode == 0, "the one that is left builds all"


def test_farm_certifies_a_system(farm: Farm) -> None:
    farm.broker()
    farm.worker("w1")
    user = farm.workstation("alice")
    named = f"{ADD.format('two')}; uname -n >$DESTDIR/usr/share/two/name"
    user.definitions.write(one=ADD.format("one"), two=("one", named))
    morph = user.definitions.root / "strata/two.morph"
    system = "../definitions/systems/small.morph"
    done = user.run("certify", system)
    assert done.returncode == 3, done.stderr
    assert "small: not certified, because of two: 2 identical, 1 differs\n" in done.stderr
    assert "  ~ /usr/share/two/name: content, 10 B -> 18 B\n" in done.stdout
    assert "other conditions: host-name, " in done.stdout
    morph.write_text(morph.read_text() + "not-reproducible: It writes the host's name.\n")
    done = user.run("certify", system, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    [found] = [one["certificate"] for one in events if one["event"] == "certified"]
    assert found["whole"]
    verdicts = {one["name"]: (one["verdict"], one["again"]["builder"]) for one in found["steps"]}
    assert verdicts == {
        "one": ("identical", "w1"), "two": ("known", "w1"), "small": ("identical", "w1"),
    }  # fmt: skip
    done = user.run("certify", system, "one")
    assert done.stdout.endswith("1 step of small: certified: 1 identical\n"), done.stderr


def test_farm_artifacts_by_key(farm: Farm) -> None:
    farm.broker()
    farm.worker("w1")
    user = farm.workstation("alice")
    user.definitions.write(one=ADD.format("one"), two=("one", "echo no; false"))
    assert user.build().returncode == 3
    [one] = user.ask("artifact", "list")["artifacts"]
    assert "+ cp hello.txt" in user.run("logs", one["key"][:8]).stdout
    [failed] = (farm.root / "w1/cache/work/failed").iterdir()
    done = user.run("logs", failed.name[:8])
    assert "+ echo no\n" in done.stdout, "a failed step has a log on the controller"
    assert user.run("logs", "76543210").returncode == 1
    shown = json.loads(user.run("artifact", "show", "one", "--json").stdout)
    assert shown["key"] == one["key"]
    assert shown["builder"] == "w1"


def test_farm_keeps_artifacts_that_a_live_build_needs(farm: Farm) -> None:
    farm.broker()
    farm.worker("w1")
    user = farm.workstation("alice")
    user.definitions.write(one=ADD.format("one"))
    assert user.build().returncode == 0
    user.definitions.write(one=ADD.format("one"), two=("one", farm.held("two")))
    build = user.start_build()
    until(lambda: farm.holding("two"), what="for the build")
    done = user.run("artifact", "delete", "one")
    assert done.returncode == 1
    assert "a build that runs needs it; nothing is deleted" in done.stderr
    farm.release("two")
    assert build.ends()[0] == 0
    assert user.run("artifact", "delete", "one").returncode == 0


def test_farm_digests_are_those_of_one_machine(farm: Farm) -> None:
    farm.broker()
    farm.worker("w1")
    user = farm.workstation("alice")
    user.definitions.write(one=ADD.format("one"), two=("one", ADD.format("two")))
    done = user.build("--write-digests")
    assert "systems/small.digests is written: 5 artifacts" in done.stdout, done.stderr
    assert "5 artifacts are as in" in user.build("--check-digests").stdout
    done = user.build("--check-digests", "--detach")
    assert "for which --detach does not wait" in done.stderr
    user.definitions.write(one=TIMED.format("one"), two=("one", ADD.format("two")))
    done = user.build("--check-digests")
    assert done.returncode == 3
    assert "the system's key differs." in done.stderr
