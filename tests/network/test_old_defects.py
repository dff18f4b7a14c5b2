"""The 32 known defects of Baserock's tool, and the tests that would find them here.

`DEFECTS` lists them with their tests; tests that need a farm are below it.
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

#: number -> (defect, tests)
DEFECTS: dict[int, tuple[str, list[str]]] = {
    1: (
        "a worker that disconnects, even an idle one, ends the controller and all builds",
        [f"{HERE}::test_farm_workers_come_and_go"],
    ),
    2: (
        "the job of a lost worker is never built again",
        [
            f"{FARM}::test_farm_worker_killed_in_a_build",
            "simulation/test_scenarios.py::test_simulation_of_fresh_seeds",
        ],
    ),
    3: (
        "an initiator that leaves cancels nothing",
        [
            f"{HERE}::test_farm_cancels_the_build_of_a_killed_initiator",
            "scheduling/test_lifecycle.py::test_patience_ends_the_request_of_a_silent_initiator",
        ],
    ),
    4: (
        "the controller's end is the initiator's, with exit code 0, and nothing is found again",
        [f"{FARM}::test_farm_broker_killed_in_a_build"],
    ),
    5: (
        "cancelling frees the worker at once, and its late result ends the next build",
        [
            f"{HERE}::test_farm_cancelled_build_does_not_affect_the_next",
            "scheduling/test_attempts.py::test_cancelled_attempt_blocks_the_next_until_it_is_gone",
        ],
    ),
    6: (
        "cancelled jobs stay in the queue",
        [
            f"{FARM}::test_farm_cancel_ends_only_unshared_steps",
            "scheduling/test_requests.py::test_cancel_ends_one_request_and_disturbs_no_other",
        ],
    ),
    7: (
        "two requests for one artifact that is queued build it twice",
        [
            f"{FARM}::test_farm_two_requests_share_an_artifact",
            "scheduling/test_lifecycle.py::test_task_of_two_requests_is_built_once",
        ],
    ),
    8: (
        "a worker that reconnects runs again all that it ever ran",
        [
            "building/test_agent.py::test_agent_starts_no_attempt_again_that_ended",
            "building/test_agent.py::test_outcome_is_reported_until_it_is_acknowledged",
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
            "building/test_agent.py::test_agent_forgets_a_queued_attempt_that_is_unwanted",
            "scheduling/test_requests.py::test_cancel_while_resolving",
            "building/test_agent.py::test_agent_obeys_a_lower_epoch_once_the_former_broker_is_silent",
        ],
    ),
    11: (
        "without its controller a worker builds on for nobody, busy for the next one",
        [
            f"{FARM}::test_farm_broker_killed_in_a_build",
            "scheduling/test_restart.py::test_restart_kills_orphans_after_grace",
        ],
    ),
    12: (
        "a request without components ends the controller",
        [f"{FARM}::test_farm_build_from_order_to_checkout"],
    ),
    13: (
        "an unknown component fails, and then everything is built, and it is listed for ever",
        [
            f"{HERE}::test_farm_builds_components",
            "network/test_resolver.py::test_resolver_components",
        ],
    ),
    14: (
        "a component named by its artifact is said to be missing, and built",
        [f"{HERE}::test_farm_builds_components"],
    ),
    15: (
        "a warning fails the build",
        [f"{HERE}::test_farm_warning_fails_nothing"],
    ),
    16: (
        "an unknown artifact ends the controller",
        ["wire/test_rubbish.py::test_broker_drops_invalid_messages_without_effect_on_others"],
    ),
    17: (
        "a message that is odd ends the controller, the worker or the helper",
        [
            "wire/test_tcp.py::test_server_ignores_invalid_bytes_at_its_ports",
            "wire/test_rubbish.py::test_broker_drops_invalid_messages_without_effect_on_others",
            "wire/test_messages.py::test_message_or_decode_error",
        ],
    ),
    18: (
        "a command that cannot be started ends one worker after the other",
        [
            f"{HERE}::test_farm_command_that_cannot_be_started",
            "scheduling/test_retries.py::test_loss_of_several_workers_fails_the_task_and_names_them",
        ],
    ),
    19: (
        "one helper publishes for all, waits for ever, and blocks all else",
        [
            "controller/test_store_client.py::test_store_client_closes_without_waiting_for_a_store",
            "controller/test_resolved_orders.py"
            "::test_build_order_can_be_cancelled_while_it_is_resolved",
        ],
    ),
    20: (
        "with two helpers everything runs twice, with none requests are lost",
        ["controller/test_resolver_pool.py::test_resolver_pool_resolves_an_order"],
    ),
    21: (
        "an initiator that vanishes with output pending leaves a busy loop",
        ["test_broker.py::test_broker_memory_is_bounded_in_a_flood_of_logs"],
    ),
    22: (
        "a worker that vanishes without a word hangs its build",
        [f"{HERE}::test_farm_silent_worker_is_lost"],
    ),
    23: (
        "one exception ends the daemon, and its state is lost",
        [
            f"{FARM}::test_farm_broker_killed_in_a_build",
            "controller/test_resolved_orders.py"
            "::test_restart_continues_detached_requests_and_knows_old_ones",
        ],
    ),
    24: (
        "a worker's name that does not resolve ends the controller",
        ["wire/test_tcp.py::test_connection_waits_for_a_controller"],
    ),
    25: (
        "the whole graph is walked for each line of output, and buffers grow without a bound",
        ["test_broker.py::test_broker_memory_is_bounded_in_a_flood_of_logs"],
    ),
    26: (
        "objects are made of what comes over the network",
        ["wire/test_messages.py::test_message_traps"],
    ),
    27: (
        "anybody may run commands as root on a worker",
        [
            "wire/test_tcp.py::test_connection_with_an_unknown_key_says_why",
            "wire/test_tcp.py::test_server_roles_are_those_of_the_keys",
            f"{FARM}::test_farm_revoked_initiator_is_disconnected",
        ],
    ),
    28: (
        "artifacts can be deleted by anybody, lead out of their folder, and arrive torn",
        [
            "trove/artifacts/test_directory.py::test_store_rejects_a_key_that_is_a_path",
            "trove/artifacts/test_directory.py::test_blob_that_is_damaged_is_noticed_and_forgotten_with_its_step",
            "trove/artifacts/test_directory.py::test_store_may_be_written_by_many_at_once",
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
            "controller/test_journal.py::test_journal_epochs_grow_over_runs_and_over_a_lost_file",
            "controller/test_resolved_orders.py"
            "::test_restart_continues_detached_requests_and_knows_old_ones",
        ],
    ),
    31: (
        "a step that starts twice ends the initiator; names of logs are taken as they come",
        [
            f"{FARM}::test_farm_worker_killed_in_a_build",
            f"{HERE}::test_farm_log_names_are_valid_file_names",
        ],
    ),
    32: (
        "a worker computes everything anew, and has no job if it sees other definitions",
        [
            "network/test_resolver.py::test_resolver_uses_the_tools_of_the_workers",
            "wire/test_messages.py::test_message_carries_a_job_undecoded",
        ],
    ),
}


def test_old_defects_have_tests() -> None:
    assert sorted(DEFECTS) == list(range(1, 33))


@pytest.mark.parametrize(
    "where", sorted({place for _, places in DEFECTS.values() for place in places})
)
def test_old_defects_name_existing_tests(where: str) -> None:
    file, _, name = where.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    names = {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}
    assert name in names


# -- tests that need a farm ---------------------------------------------------------------------


@pytest.fixture
def alice(farm: Farm) -> Workstation:
    farm.broker()
    return farm.workstation("alice")


def test_farm_workers_come_and_go(farm: Farm, alice: Workstation) -> None:
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


def test_farm_cancels_the_build_of_a_killed_initiator(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    alice.definitions.write(slow=farm.held("slow"))
    build = alice.start_build()
    until(lambda: farm.holding("slow"))
    build.kill()
    until(lambda: not farm.holding("slow"))
    assert not [one for one in alice.ask("list") if one["state"] == "building"]


def test_farm_cancelled_build_does_not_affect_the_next(farm: Farm, alice: Workstation) -> None:
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


def test_farm_builds_components(farm: Farm, alice: Workstation) -> None:
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


def test_farm_warning_fails_nothing(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    alice.definitions.write(one="true")
    morph = alice.definitions.root / "strata/one.morph"
    morph.write_text(morph.read_text() + "prefix: /opt\n")
    done = alice.build()
    assert "warning" in done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


def test_farm_command_that_cannot_be_started(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    alice.definitions.write(bad="/no/such/program", good="true")
    done = alice.build("--keep-going")
    assert done.returncode == 3
    assert "/no/such/program" in done.stdout
    assert "good: built" in done.stdout
    assert [one["state"] for one in alice.ask("workers")] == ["idle"]


def test_farm_silent_worker_is_lost(farm: Farm, alice: Workstation) -> None:
    """It neither ends nor answers, as without a network."""
    mute = farm.worker("mute")
    alice.definitions.write(slow=farm.held("slow"))
    build = alice.start_build()
    build.says("slow: building on mute")
    until(lambda: farm.holding("slow"))
    mute.signal(signal.SIGSTOP)
    try:
        until(lambda: not alice.ask("workers"))
    finally:
        mute.kill()
    # What `mute` has left is not what is released.
    until(lambda: not farm.holding("slow"))
    farm.worker("other")
    build.says("slow: building on other")
    farm.release("slow")
    code, said = build.ends()
    assert code == 0, said


def test_farm_log_names_are_valid_file_names(farm: Farm, alice: Workstation) -> None:
    farm.worker("w1")
    alice.definitions.write(**{"g++": "echo here"})
    done = alice.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "here" in alice.log("g++")
