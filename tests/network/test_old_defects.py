"""The old tool's 32 known defects, one by one, and the tests that would show them here.

`DEFECTS` says what was wrong, and where it is tested that it is not so any more; what needs a
whole farm and is tested nowhere else stands below it.
"""

from __future__ import annotations

import ast
import signal
from pathlib import Path

import pytest
from network_kit import Farm, Workstation
from waiting import until

TESTS = Path(__file__).parent.parent
HERE = "network/test_old_defects.py"
FARM = "network/test_farm.py"

#: number -> (what was wrong, where it is tested)
DEFECTS: dict[int, tuple[str, list[str]]] = {
    1: (
        "a worker that disconnects, even an idle one, ends the controller and all builds",
        [f"{HERE}::test_workers_come_and_go"],
    ),
    2: (
        "the job of a lost worker is never built again",
        [
            f"{FARM}::test_a_worker_killed_in_mid_build",
            "simulation/test_scenarios.py::test_simulation_of_fresh_seeds",
        ],
    ),
    3: (
        "an initiator that leaves cancels nothing",
        [
            f"{HERE}::test_an_initiator_that_is_killed_cancels_its_build",
            "scheduling/test_lifecycle.py::test_patience_ends_the_request_of_a_silent_initiator",
        ],
    ),
    4: (
        "the controller's end is the initiator's, with exit code 0, and nothing is found again",
        [f"{FARM}::test_a_broker_killed_in_mid_build"],
    ),
    5: (
        "cancelling frees the worker at once, and its late result ends the next build",
        [
            f"{HERE}::test_what_is_cancelled_does_not_spoil_what_comes_next",
            "scheduling/test_attempts.py::test_cancelled_attempt_blocks_the_next_until_it_is_gone",
        ],
    ),
    6: (
        "cancelled jobs stay in the queue",
        [
            f"{FARM}::test_cancelling_ends_what_nobody_else_wants",
            "scheduling/test_requests.py::test_cancel_ends_one_request_and_disturbs_no_other",
        ],
    ),
    7: (
        "two requests for one artifact that is queued build it twice",
        [
            f"{FARM}::test_two_want_one_artifact",
            "scheduling/test_lifecycle.py::test_task_of_two_requests_is_built_once",
        ],
    ),
    8: (
        "a worker that reconnects runs again all that it ever ran",
        [
            "building/test_agent.py::test_what_has_ended_does_not_start_again",
            "building/test_agent.py::test_outcomes_are_reported_until_settled",
        ],
    ),
    9: (
        "what is queued again has a new number, and its answer is lost",
        [
            "scheduling/test_attempts.py::test_outcome_is_acknowledged_until_the_worker_forgets_it",
            "scheduling/test_retries.py::test_loss_of_a_worker_moves_its_task",
        ],
    ),
    10: (
        "what waits cannot be cancelled, and numbers of two controllers are confused",
        [
            "building/test_agent.py::test_what_waits_and_is_left_out_is_forgotten",
            "scheduling/test_requests.py::test_cancel_while_resolving",
            "building/test_agent.py::test_a_broker_that_lost_its_journal_and_the_time_is_obeyed_once_the_former_is_silent",
        ],
    ),
    11: (
        "without its controller a worker builds on for nobody, busy for the next one",
        [
            f"{FARM}::test_a_broker_killed_in_mid_build",
            "scheduling/test_restart.py::test_restart_kills_orphans_after_grace",
        ],
    ),
    12: (
        "a request without components ends the controller",
        [f"{FARM}::test_a_build_from_order_to_checkout"],
    ),
    13: (
        "an unknown component fails, and then everything is built, and it is listed for ever",
        [f"{HERE}::test_components", "network/test_resolver.py::test_components"],
    ),
    14: (
        "a component named by its artifact is said to be missing, and built",
        [f"{HERE}::test_components"],
    ),
    15: (
        "a warning fails the build",
        [f"{HERE}::test_a_warning_fails_nothing"],
    ),
    16: (
        "an unknown artifact ends the controller",
        [
            "wire/test_rubbish.py::test_rubbish_costs_its_sender_the_message_and_nobody_else_anything"
        ],
    ),
    17: (
        "a message that is odd ends the controller, the worker or the helper",
        [
            "wire/test_tcp.py::test_rubbish_on_the_ports_themselves",
            "wire/test_rubbish.py::test_rubbish_costs_its_sender_the_message_and_nobody_else_anything",
            "wire/test_messages.py::test_whatever_comes_is_a_message_or_garbage",
        ],
    ),
    18: (
        "a command that cannot be started ends one worker after the other",
        [
            f"{HERE}::test_a_command_that_cannot_be_started",
            "scheduling/test_retries.py::test_loss_of_several_workers_fails_the_task_and_names_them",
        ],
    ),
    19: (
        "one helper publishes for all, waits for ever, and blocks all else",
        [
            "controller/test_store_client.py::test_closing_does_not_wait_for_a_store_that_hangs",
            "controller/test_resolved_orders.py"
            "::test_the_broker_answers_while_a_resolver_works_and_can_be_told_to_give_up",
        ],
    ),
    20: (
        "with two helpers everything runs twice, with none requests are lost",
        ["controller/test_resolver_pool.py::test_an_order_is_resolved"],
    ),
    21: (
        "an initiator that vanishes with output pending leaves a busy loop",
        ["test_broker.py::test_a_flood_of_logs_costs_the_broker_no_memory"],
    ),
    22: (
        "a worker that vanishes without a word hangs its build",
        [f"{HERE}::test_a_worker_that_says_nothing_any_more"],
    ),
    23: (
        "one exception ends the daemon, and its state is lost",
        [
            f"{FARM}::test_a_broker_killed_in_mid_build",
            "controller/test_resolved_orders.py"
            "::test_after_a_restart_a_detached_request_goes_on_and_old_ones_are_known",
        ],
    ),
    24: (
        "a worker's name that does not resolve ends the controller",
        ["wire/test_tcp.py::test_a_controller_that_comes_late_and_again"],
    ),
    25: (
        "the whole graph is walked for each line of output, and buffers grow without a bound",
        ["test_broker.py::test_a_flood_of_logs_costs_the_broker_no_memory"],
    ),
    26: (
        "objects are made of what comes over the network",
        ["wire/test_messages.py::test_traps"],
    ),
    27: (
        "anybody may run commands as root on a worker",
        [
            "wire/test_tcp.py::test_a_stranger_gets_no_answer_and_is_told_why",
            "wire/test_tcp.py::test_roles_are_those_of_the_keys",
            f"{FARM}::test_a_revoked_initiator_is_cut_off",
        ],
    ),
    28: (
        "artifacts can be deleted by anybody, lead out of their folder, and arrive torn",
        [
            "trove/artifacts/test_directory.py::test_a_key_cannot_lead_elsewhere",
            "trove/artifacts/test_directory.py::test_a_damaged_blob_is_noticed_and_forgotten_with_its_step",
            "trove/artifacts/test_directory.py::test_many_writers_at_once",
        ],
    ),
    29: (
        "one failure to publish fails the build",
        [
            "scheduling/test_retries.py::test_fault_is_retried_on_another_worker",
            "scheduling/test_retries.py::test_store_that_does_not_answer_is_queried_again",
        ],
    ),
    30: (
        "a controller that restarts knows nothing, and uses its numbers again",
        [
            "controller/test_journal.py::test_epochs_grow_over_runs_and_over_a_lost_file",
            "controller/test_resolved_orders.py"
            "::test_after_a_restart_a_detached_request_goes_on_and_old_ones_are_known",
        ],
    ),
    31: (
        "a step that starts twice ends the initiator; names of logs are taken as they come",
        [
            f"{FARM}::test_a_worker_killed_in_mid_build",
            f"{HERE}::test_names_of_logs_are_names_of_files",
        ],
    ),
    32: (
        "a worker computes everything anew, and has no job if it sees other definitions",
        [
            "network/test_resolver.py::test_the_tools_of_the_workers_count",
            "wire/test_messages.py::test_a_job_travels_unread",
        ],
    ),
}


def test_each_defect_is_looked_for() -> None:
    assert sorted(DEFECTS) == list(range(1, 33))


@pytest.mark.parametrize(
    "where", sorted({place for _, places in DEFECTS.values() for place in places})
)
def test_the_tests_are_where_they_are_said_to_be(where: str) -> None:
    file, _, name = where.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    names = {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}
    assert name in names


# -- what needs a farm ---------------------------------------------------------------------


@pytest.fixture
def alice(farm: Farm) -> Workstation:
    farm.broker()
    return farm.workstation("alice")


def test_workers_come_and_go(farm: Farm, alice: Workstation) -> None:
    idle, busy = farm.worker("idle"), farm.worker("busy")
    until(lambda: len(alice.ask("workers")) == 2)
    alice.run("workers", "drain", "idle")
    alice.definitions.write(slow=farm.held("slow"))
    build = alice.start_build()
    until(lambda: farm.holding("slow"))
    idle.kill()
    until(lambda: len(alice.ask("workers")) == 1)
    farm.release("slow")
    assert build.ends()[0] == 0
    busy.signal(signal.SIGTERM)
    assert busy.ends()[0] == 0
    assert alice.run("list").returncode == 0


def test_an_initiator_that_is_killed_cancels_its_build(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    alice.definitions.write(slow=farm.held("slow"))
    build = alice.start_build()
    until(lambda: farm.holding("slow"))
    build.kill()
    until(lambda: not farm.holding("slow"), 40)
    assert not [one for one in alice.ask("list") if one["state"] == "building"]


def test_what_is_cancelled_does_not_spoil_what_comes_next(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    bob = farm.workstation("bob")
    alice.definitions.write(first=farm.held("first"))
    bob.definitions.write(second=farm.held("second"), third=("second", "true"))
    one = alice.start_build()
    until(lambda: farm.holding("first"))
    two = bob.start_build()
    until(lambda: len(bob.ask("list")) == 2)
    one.signal(signal.SIGINT)
    assert one.ends()[0] == 130
    until(lambda: farm.holding("second"))
    assert not farm.holding("first")
    farm.release("second")
    code, said = two.ends()
    assert code == 0, said


def test_components(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    alice.definitions.write(one="true", two=("one", "true"), three="true")
    wrong = alice.build("tow")
    assert wrong.returncode == 1
    assert "'tow'" in wrong.stderr
    assert alice.ask("list") == []
    right = alice.build("two-misc")
    assert right.returncode == 0, right.stdout + right.stderr
    assert "two is built: 2 built" in right.stdout
    assert "three" not in right.stdout


def test_a_warning_fails_nothing(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    alice.definitions.write(one="true")
    morph = alice.definitions.root / "strata/one.morph"
    morph.write_text(morph.read_text() + "prefix: /opt\n")
    done = alice.build()
    assert "warning" in done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_command_that_cannot_be_started(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    alice.definitions.write(bad="/no/such/program", good="true")
    done = alice.build("--keep-going")
    assert done.returncode == 3
    assert "/no/such/program" in done.stdout
    assert "good: built" in done.stdout
    assert [one["state"] for one in alice.ask("workers")] == ["idle"]


def test_a_worker_that_says_nothing_any_more(farm: Farm, alice: Workstation) -> None:
    """It neither ends nor answers, as if its network had gone."""
    mute = farm.worker("mute")
    alice.definitions.write(slow=farm.held("slow"))
    build = alice.start_build()
    build.says("slow: building on mute")
    until(lambda: farm.holding("slow"))
    mute.signal(signal.SIGSTOP)
    try:
        farm.worker("other")
        build.says("slow: building on other", 40)
        until(lambda: len(set(farm.holding("slow"))) > 1)
    finally:
        mute.kill()
    farm.release("slow")
    code, said = build.ends()
    assert code == 0, said


def test_names_of_logs_are_names_of_files(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    alice.definitions.write(**{"g++": "echo here"})
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "here" in alice.log("g++")
