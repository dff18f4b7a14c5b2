"""A farm as its users meet it: real programs, real keys, real TCP."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from jobs_kit import at_once, morph
from network_kit import Farm, Workstation
from small_definitions import SYSTEM, git
from waiting import until

from fabric.trove.sources.snapshot import user

pytestmark = pytest.mark.long

ADD = "mkdir -p $DESTDIR/usr/share/{0}; cp hello.txt $DESTDIR/usr/share/{0}/"


@pytest.fixture
def alice(farm: Farm) -> Workstation:
    return farm.workstation("alice")


def test_farm_build_from_order_to_checkout(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.worker("w1")
    farm.worker("w2")
    alice.definitions.write(
        one=ADD.format("one"), two=("one", f"echo two says hello; {ADD.format('two')}")
    )
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "small is built: 4 built in" in done.stdout
    assert "two says hello" in alice.log("two")
    assert not (alice.home / "cache/work").exists(), "nothing is built here"
    again = alice.build()
    assert "small is built: 0 built, 2 cached" in again.stdout
    out = alice.run("checkout", f"../definitions/{SYSTEM}", "--to", "tree")
    assert out.returncode == 0, out.stderr
    assert (alice.here / "tree/usr/share/two/hello.txt").read_text() == "hello\n"


def test_farm_builds_the_work_tree_unnoticed_by_git(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.worker("w1")
    root = alice.definitions.root
    alice.definitions.write(one="echo committed", gone="true")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    alice.definitions.write(one="echo changed", new="echo untracked")
    (root / "strata/gone.morph").unlink()
    before = {f: f.read_bytes() for f in (root / ".git").rglob("*") if f.is_file()}
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed" in alice.log("one")
    assert "untracked" in alice.log("new")
    assert {f: f.read_bytes() for f in (root / ".git").rglob("*") if f.is_file()} == before
    refs = git(farm.trove, "for-each-ref", "--format=%(refname)").split()
    assert len(refs) == 1
    assert re.fullmatch(r"refs/builds/[\w-]+/[0-9a-f]{32}", refs[0])


def test_farm_builds_an_edited_chunk(farm: Farm, alice: Workstation) -> None:
    """Its work tree travels with the definitions; others get the artifact of the same files."""
    farm.broker()
    farm.worker("w1")
    alice.definitions.write(one=ADD.format("one"), two=("one", ADD.format("two")))
    alice.definitions.by_lorry()
    begun = alice.run("edit", "one", "--system", f"../definitions/{SYSTEM}", "--to", "work")
    assert begun.returncode == 0, begun.stderr
    (alice.here / "work/hello.txt").write_text("edited\n")
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "edited: one in work" in done.stderr

    def built(out: str) -> str:
        made = alice.run("checkout", f"../definitions/{SYSTEM}", "--to", out)
        assert made.returncode == 0, made.stderr
        share = alice.here / out / "usr/share"
        return (share / "one/hello.txt").read_text() + (share / "two/hello.txt").read_text()

    assert built("first") == "edited\nhello\n"
    assert "small is built: 0 built" in alice.build().stdout
    (alice.here / "work/hello.txt").write_text("edited again\n")
    assert alice.build().returncode == 0
    assert built("second") == "edited again\nhello\n"
    bob = farm.workstation("bob")
    bob.definitions.write(one=ADD.format("one"))
    (bob.definitions.source / "hello.txt").write_text("edited again\n")
    git(bob.definitions.source, "commit", "-qam", "the same files")
    assert "one is built: 0 built" in bob.build("one").stdout


def test_farm_two_requests_share_an_artifact(farm: Farm, alice: Workstation) -> None:
    """It is built once, and both get its whole log; one of them leaves."""
    farm.broker()
    farm.worker("w1", slots=2)
    bob = farm.workstation("bob")
    for workstation in (alice, bob):
        workstation.definitions.write(shared=farm.held("shared"))
    first = alice.start_build()
    first.says("shared: building on w1")
    second = bob.start_build()
    second.says("shared: building on w1")
    until(lambda: "shared begins" in bob.log("shared"))
    first.signal(signal.SIGINT)
    code, said = first.ends()
    assert code == 130
    assert "interrupted, so the build is cancelled" in said
    assert farm.holding("shared"), "bob still wants it"
    farm.release("shared")
    code, said = second.ends()
    assert code == 0, said
    log = bob.log("shared")
    assert log.count("shared begins") == log.count("+ echo shared begins") + 1
    assert log.startswith(alice.log("shared"))


def test_farm_slots_of_a_worker_share_its_cores(farm: Farm, alice: Workstation) -> None:
    jobs = (os.cpu_count() or 1) + 2
    farm.broker()
    farm.worker("w1", slots=2, jobs=jobs)
    alice.definitions.write(one="true", two="true")
    for name in ("one", "two"):
        text = morph(name, 8 * jobs, 0.2)
        (alice.definitions.root / f"strata/{name}.morph").write_text(text)
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    counts = at_once(alice.log("one"), alice.log("two"))
    assert jobs <= max(counts) <= jobs + 1
    assert counts.count(jobs) > len(counts) / 4


def test_farm_cancel_ends_only_unshared_steps(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.worker("w1")
    alice.definitions.write(slow=farm.held("slow"))
    build = alice.start_build()
    until(lambda: farm.holding("slow"))
    build.signal(signal.SIGINT)
    assert build.ends()[0] == 130
    until(lambda: not farm.holding("slow"))
    assert alice.ask("workers")[0]["state"] == "idle"


def test_farm_detach_and_attach_from_another_machine(
    farm: Farm, alice: Workstation, tmp_path: Path
) -> None:
    farm.broker()
    farm.worker("w1")
    alice.definitions.write(slow=farm.held("slow"), after=("slow", "echo after it"))
    request = alice.detach()
    until(lambda: farm.holding("slow"))
    assert not list(alice.here.iterdir()), "no log is begun that nobody completes"
    [info] = alice.ask("list")
    assert (info["request"], info["detached"], info["requester"]) == (request, True, "alice")
    assert (info["title"], info["state"], info["running"]) == (f"small for {user()}", "building", 1)
    bob = farm.workstation("bob")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    left = bob.start("attach", request[:12], cwd=elsewhere)
    left.says("slow: building on w1")
    left.signal(signal.SIGINT)
    code, said = left.ends()
    assert code == 130
    assert f"the build goes on; `fabric-initiator attach {request[:12]}` follows it again" in said
    assert farm.holding("slow")
    back = bob.start("attach", request, cwd=elsewhere)
    back.says("slow: building on w1")
    farm.release("slow")
    code, said = back.ends()
    assert code == 0, said
    assert "slow begins" in bob.log("slow", elsewhere)
    assert "after it" in bob.log("after", elsewhere)
    assert "small is built: 4 built" in said
    assert bob.run("attach", "fff").returncode == 1


def test_farm_status_list_and_logs_from_any_machine(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.worker("w1")
    alice.definitions.write(slow=farm.held("slow"))
    request = alice.detach()
    until(lambda: farm.holding("slow"))
    bob = farm.workstation("bob")
    status = bob.run("status", request[:12])
    assert f"small for {user()} (detached)" in status.stdout
    assert re.search(r"slow +install, .* on w1", status.stdout)
    assert "w1" in bob.run("status").stdout
    follow = bob.start("logs", "slow", "--follow", cwd=bob.home)
    follow.says("slow begins")
    assert follow.process.poll() is None
    farm.release("slow")
    code, said = follow.ends()
    assert code == 0
    assert "### " in said
    until(lambda: bob.ask("list")[0]["state"] == "done")
    past = bob.run("logs", "slow", cwd=bob.home)
    assert past.returncode == 0, past.stderr
    assert past.stdout == said
    assert bob.run("logs", "slow", "--request", request, cwd=bob.home).stdout == said


def test_farm_broker_knows_ends_of_former_runs(farm: Farm, alice: Workstation) -> None:
    broker = farm.broker()
    farm.worker("w1")
    alice.definitions.write(one="echo fine")
    request = alice.detach()
    until(lambda: alice.ask("list")[0]["state"] == "done")
    status = alice.run("status", request).stdout
    broker.kill()
    farm.broker()
    back = alice.run("attach", request)
    assert back.returncode == 0, back.stdout + back.stderr
    assert "small is built: 3 built" in back.stdout
    steps = [line for line in status.splitlines() if "built in" in line]
    assert len(steps) == 3
    assert set(steps) <= set(alice.run("status", request).stdout.splitlines())
    assert "one is done on w1" in alice.run("why", "one").stdout
    assert "fine" in alice.run("logs", "one", cwd=alice.home).stdout


def test_farm_cancel_by_another_user(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.worker("w1")
    alice.definitions.write(slow=farm.held("slow"))
    build = alice.start_build()
    until(lambda: farm.holding("slow"))
    bob = farm.workstation("bob")
    [info] = bob.ask("list")
    assert bob.run("cancel", info["request"][:12]).returncode == 0
    code, said = build.ends()
    assert code == 130
    assert "small is not built: cancelled" in said
    until(lambda: not farm.holding("slow"))


def test_farm_mistake_in_definitions_has_file_and_line(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    alice.definitions.write(one="true")
    morph = alice.definitions.root / "strata/one.morph"
    morph.write_text(morph.read_text() + "bananas: 3\n")
    done = alice.build()
    assert done.returncode == 1
    assert done.stderr.startswith("strata/one.morph:6: ")


def test_farm_failure_shows_log_and_command(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.worker("w1")
    alice.definitions.write(bad="echo about to fail\nfalse")
    done = alice.build()
    assert done.returncode == 3, done.stdout + done.stderr
    assert "  | about to fail" in done.stdout
    assert "  install-commands:\n    echo about to fail\n    false\n" in done.stdout
    assert f"log:   {alice.here}/build-step-bad-misc.log" in done.stdout


def test_farm_fault_of_machines_is_not_a_failed_build(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.store_url = str(farm.trove / "HEAD" / "is a file")  # so the worker cannot store results
    farm.worker("w1")
    alice.definitions.write(one="echo fine")
    done = alice.build()
    assert done.returncode == 4, done.stdout + done.stderr
    assert "one failed: no machine could do it: w1: " in done.stdout
    assert "small is not built: one failed" in done.stderr


def test_farm_why_drain_and_resume(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    alice.definitions.write(one="true")
    request = alice.detach()
    assert "there is no worker" in alice.run("why", "one").stdout
    farm.worker("w1")
    until(lambda: alice.ask("list")[0]["state"] == "done")
    assert alice.run("workers", "drain", "w1").returncode == 0
    until(lambda: alice.ask("workers")[0]["state"] == "drained")
    alice.definitions.write(one="echo again")
    request = alice.detach()
    waiting = until(lambda: "drain" in alice.run("why", request[:12]).stdout)
    assert waiting
    assert "w1: drain" in alice.run("why", "one").stdout
    assert alice.run("workers", "resume", "w1").returncode == 0
    until(lambda: {one["state"] for one in alice.ask("list")} == {"done"})
    assert alice.run("workers", "drain", "w9").returncode == 1
    assert alice.run("workers", "drain").returncode == 1
    assert alice.run("why", "no-such-thing").returncode in (0, 1)


def test_farm_worker_killed_in_a_build(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    doomed = farm.worker("w1")
    alice.definitions.write(slow=farm.held("slow"))
    build = alice.start_build()
    build.says("slow: building on w1")
    until(lambda: farm.holding("slow"))
    farm.worker("w2")
    doomed.kill()
    build.says("slow: building on w2")
    until(lambda: farm.holding("slow"))
    farm.release("slow")
    code, said = build.ends()
    assert code == 0, said
    assert alice.log("slow").count("+ echo slow begins") == 1, "the log of one attempt"


def test_farm_log_of_a_killed_initiator_is_completed(farm: Farm, alice: Workstation) -> None:
    """The step went on for others, so the next build finds it cached."""
    farm.broker()
    farm.worker("w1")
    bob = farm.workstation("bob")
    for workstation in (alice, bob):
        workstation.definitions.write(slow=farm.held("slow"), after=("slow", "true"))
    killed = alice.start_build()
    other = bob.start_build()
    killed.says("slow: building on w1")
    other.says("slow: building on w1")
    until(lambda: "slow begins" in alice.log("slow"))
    killed.kill()
    farm.release("slow")
    assert other.ends()[0] == 0
    assert alice.log("slow") != bob.log("slow")
    done = alice.build()
    assert "0 built, 2 cached" in done.stdout, "nothing was said of slow"
    assert alice.log("slow") == bob.log("slow")
    assert not list(alice.here.glob(".build-step-*"))


def test_farm_broker_killed_in_a_build(farm: Farm, alice: Workstation) -> None:
    broker = farm.broker()
    farm.worker("w1")
    alice.definitions.write(slow=farm.held("slow"), after=("slow", "true"))
    build = alice.start_build()
    until(lambda: farm.holding("slow"))
    running = farm.holding("slow")
    broker.kill()
    build.says("retrying")
    farm.broker()
    build.says("the controller is back")
    until(lambda: alice.ask("list")[0]["running"] == 1)
    # its children come and go
    assert not set(running).isdisjoint(farm.holding("slow")), "what runs goes on"
    farm.release("slow")
    code, said = build.ends()
    assert code == 0, said
    assert said.count("slow: built") == 1
    assert "slow begins" in alice.log("slow")


def test_farm_revoked_initiator_is_disconnected(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.worker("w1")
    mallory = farm.workstation("mallory")
    assert mallory.ask("workers")[0]["name"] == "w1"
    alice.definitions.write(slow=farm.held("slow"))
    build = alice.start_build()
    until(lambda: farm.holding("slow"))
    farm.revoke("mallory")
    until(
        lambda: mallory.run("workers").returncode
    )  # the broker reads the keys several times a second
    done = mallory.run("workers")
    assert done.returncode == 4
    assert "does not admit the key of mallory" in done.stderr
    farm.release("slow")
    code, said = build.ends()
    assert code == 0, said


def test_farm_sources_travel_through_the_trove(farm: Farm, alice: Workstation) -> None:
    """Workers get sources from the trove that only the initiator can reach."""
    farm.broker()
    farm.worker("w1")
    alice.definitions.write(one="cat hello.txt")
    alice.definitions.by_lorry()
    done = alice.build("--detach")
    assert done.returncode == 0, done.stdout + done.stderr
    alice.definitions.source.rename(farm.root / "gone")
    until(lambda: alice.ask("list")[0]["state"] in ("done", "failed"))
    assert alice.ask("list")[0]["state"] == "done", alice.run("list").stdout
    assert "hello" in alice.run("logs", "one").stdout


def test_farm_errors_of_settings_are_clear(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    alice.definitions.write(one="true")
    alice.configure(trove="")
    done = alice.build()
    assert done.returncode == 1
    assert "set `trove`" in done.stderr
    alice.configure(trove=str(farm.root / "nowhere.git"))
    done = alice.build()
    assert done.returncode == 1
    assert "is no git repository: is the setting `trove` right?" in done.stderr
    alice.configure(keys=str(farm.root / "no-keys"))
    done = alice.run("list")
    assert done.returncode == 1
    assert "fabric-keys make initiator" in done.stderr
    alice.configure(controller="")
    for command in (("attach", "x"), ("workers",)):
        done = alice.run(*command)
        assert done.returncode == 1
        assert "no controller is set: give --controller HOST" in done.stderr
    assert "no build of yours runs on this machine" in alice.run("status").stdout


def test_farm_controller_that_does_not_exist(alice: Workstation) -> None:
    alice.definitions.write(one="true")
    done = alice.run("list")
    assert done.returncode == 4
    assert "cannot be reached" in done.stderr or "does not answer" in done.stderr
    done = alice.run("--controller", "no.invalid", "list")
    assert done.returncode == 4
    assert "tcp://no.invalid:7411 cannot be reached: its name is not known here" in done.stderr
    done = alice.run("gc")
    assert done.returncode == 4
    assert "nothing is removed" in done.stderr


def test_farm_gc_keeps_what_live_builds_need(farm: Farm, alice: Workstation) -> None:
    farm.broker()
    farm.worker("w1")
    alice.definitions.write(one="true", slow=("one", farm.held("slow")))
    alice.detach()
    until(lambda: farm.holding("slow"))
    done = alice.run("gc", "--keep-days", "0")
    assert done.returncode == 0, done.stderr
    assert list((farm.root / "artifacts/manifests").rglob("*")), "one is pinned"
    assert "\n0 steps and 0 blobs removed, " in done.stdout
    farm.release("slow")
    until(lambda: alice.ask("list")[0]["state"] == "done")
