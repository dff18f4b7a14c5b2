"""Explains why steps are to be built: the inputs that changed since their last builds."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from fabric.client.changes import FEW, Change, Comparison, Records, placing
from fabric.client.project import Project
from fabric.client.render import Screen
from fabric.definitions.graph import Step
from fabric.plan import Plan


class Explanation(msgspec.Struct, frozen=True):
    """Why a step is to be built; its own changes come before those of its causes."""

    name: str
    key: str
    changes: tuple[Change, ...]

    @property
    def is_cause(self) -> bool:
        """Whether the step has changed itself."""
        return any(change.key == self.key for change in self.changes)

    def text(self, listed: Collection[str], most: int = FEW) -> str:
        """One line that names so many causes.

        Causes whose keys are ``listed`` have lines of their own, which give the places.
        """
        found: dict[str, list[str]] = {}
        for change in self.changes:
            placed = change.where and (change.key == self.key or change.key not in listed)
            text = f"{change.text} ({change.where})" if placed else change.text
            found.setdefault(change.key, []).append(text)
        names = {change.key: change.step for change in self.changes}
        own = found.pop(self.key, [])
        because = [f"because of {names[key]}: {', '.join(texts)}" for key, texts in found.items()]
        if len(because) > most:
            because[most:] = [f"and of {len(because) - most} more"]
        return "; ".join([*own, *because])


def explain(project: Project, plan: Plan, steps: Iterable[Step]) -> dict[str, Explanation]:
    """Explanations of chunks and systems of a plan that are not cached, by id.

    Strata have none: they are lists, and the store does not keep which was the last.
    """
    old, new = Records(project.store), Records(project.store, plan)
    comparison = Comparison(old, new, placing(plan, project.read))
    found = {}
    for step in steps:
        if step.kind == "stratum":
            continue
        key = plan.keys[step.id]
        last = project.store.latest(step.kind, step.name, plan.graph.arch)
        found[step.id] = Explanation(step.name, key, comparison.changes(step.name, last, key))
    return found


def to_build(plan: Plan, cached: Collection[str]) -> list[Step]:
    """The steps that a build of the goals builds."""
    wanted = {*plan.goal_keys, *plan.along}
    found = []
    for step in reversed(plan.steps):
        if plan.keys[step.id] in wanted and plan.keys[step.id] not in cached:
            found.append(step)
            wanted.update(plan.depends(step))
    return found[::-1]


def lines(explanations: Iterable[Explanation]) -> list[str]:
    """A line for each step: the causes first, then the steps that are made from them."""
    unique = {one.key: one for one in explanations}
    ordered = sorted(unique.values(), key=lambda one: not one.is_cause)
    return [f"{one.name}: {one.text(unique)}" for one in ordered]


def report_reasons(screen: Screen, project: Project, plan: Plan) -> None:
    """Report why each step is built that a build of the goals builds."""
    cached = project.store.has([plan.keys[step.id] for step in plan.steps])
    found = explain(project, plan, to_build(plan, cached)).values()
    for one in found:
        changes = msgspec.to_builtins(one.changes)
        screen.event("explained", name=one.name, key=one.key, changes=changes)
    for line in lines(found):
        screen.say(line)
