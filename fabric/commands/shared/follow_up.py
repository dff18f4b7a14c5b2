"""Asks how to go on after a failed build, if somebody is at the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Literal

from fabric import bounds
from fabric.client.render import Screen
from fabric.client.session import Session
from fabric.definitions.graph import Graph
from fabric.definitions.select import needing, uppermost
from fabric.errors import FabricError, first_of
from fabric.wire.messages import StepState

Choice = Literal["shell", "retry", "continue", "quit"]

#: Names of failed steps that a line lists.
_NAMES = 3


class FollowUp:
    """The failures of a build, and the answers of its user."""

    def __init__(
        self,
        screen: Screen,
        *,
        ask: bool,
        again: Callable[[tuple[str, ...]], None],
        shell: Callable[[str], object] | None = None,
    ) -> None:
        """``ask``: the user may be asked, if there is one at the terminal.

        ``again`` prepares another request for these steps, by default for all; ``shell`` opens the
        tree of a failed chunk.  Their FabricErrors are shown, and the user is asked again.
        """
        self.failed: list[StepState] = []  # steps that failed and are not tried again
        self._screen = screen
        self._ask = ask
        self._again = again
        self._shell = shell

    def wanted(self, session: Session, graph: Graph) -> bool:
        """Whether another request goes on, now that one is over; it is prepared."""
        failed = [step for step, _ in session.failed()]
        if session.mirror.state != "failed" or not failed or not (self._ask and _is_attended()):
            return False
        failed = [*self.failed, *failed]
        rest, count = independent(graph, failed, session.mirror.steps.values())
        choices = self._choices(failed, count)
        choice: Choice | None = None
        while choice is None:
            with self._screen.away():
                choice = self._answer(choices, failed)
            if choice == "quit":
                return False
            try:
                self._again(rest if choice == "continue" else ())
            except FabricError as error:
                self._screen.say(str(error), "bold red")
                choice = None
        self.failed = failed if choice == "continue" else []
        return True

    def _choices(self, failed: list[StepState], rest: int) -> dict[Choice, str]:
        names = first_of([step.name for step in failed], _NAMES)
        chunks = [step.name for step in failed if step.kind == "chunk" and not step.fault]
        choices: dict[Choice, str] = {}
        if chunks and self._shell is not None:
            which = f"{chunks[0]}; `shell NAME` for another" if chunks[1:] else chunks[0]
            choices["shell"] = f"open the tree of {which}"
        choices["retry"] = f"build {names} again and go on"
        if rest:
            steps = "the step that does" if rest == 1 else f"the {rest} steps that do"
            choices["continue"] = f"build {steps} not need {names}"
        choices["quit"] = "end"
        return choices

    def _answer(self, choices: dict[Choice, str], failed: list[StepState]) -> Choice:
        """Ask until the user chooses something else than a shell."""
        print("\n" + "\n".join(f"  {choice:<8}  {text}" for choice, text in choices.items()))
        while True:
            print(f"{', '.join(list(choices)[:-1])} or quit? ", end="", flush=True)
            line = sys.stdin.readline()
            if not line:
                print()
                return "quit"
            word, _, name = line.strip().partition(" ")
            choice = next((one for one in choices if word and one.startswith(word.lower())), None)
            if choice != "shell":
                if choice is not None:
                    return choice
                continue
            try:
                if self._shell is not None:
                    self._shell(_named(name.strip(), failed))
            except FabricError as error:
                print(error)


def _named(name: str, failed: list[StepState]) -> str:
    """The failed chunk called ``name``; by default the first."""
    names = [step.name for step in failed if step.kind == "chunk"]
    if name and name not in names:
        raise FabricError(f"{name} did not fail; these did: {', '.join(names)}")
    return name or names[0]


def _is_attended() -> bool:
    """Whether somebody can answer: not in a pipe, in CI, or in the background."""
    streams = (sys.stdin, sys.stdout)  # None if the user's are closed
    if os.environ.get("CI") or not all(each is not None and each.isatty() for each in streams):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # it is not our controlling terminal
        return False


def independent(
    graph: Graph, failed: Iterable[StepState], steps: Iterable[StepState]
) -> tuple[tuple[str, ...], int]:
    """The steps that were not built and need no failed step: ids of the uppermost, and how many.

    None if the uppermost are more than a build order may name.
    """
    without = {(step.kind, step.name) for step in failed}
    unbuilt = {(step.kind, step.name) for step in steps if step.state == "cancelled"}
    names = {step.id: (step.kind, step.name) for step in graph.steps}
    lost = needing(graph, (id for id, name in names.items() if name in without))
    rest = [id for id, name in names.items() if name in unbuilt and id not in lost]
    goals = uppermost(graph, rest)
    return (goals, len(rest)) if len(goals) <= bounds.COMPONENTS else ((), 0)
