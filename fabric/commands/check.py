"""``check``: reports mistakes and warnings in definitions and lorries, and unused dependencies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
import yaml

from fabric.client.project import Project
from fabric.commands.shared.arguments import add_json, add_limits
from fabric.commands.shared.checked import Checked, check_morphs
from fabric.commands.shared.output import print_json
from fabric.commands.shared.plans import open_plan, open_project
from fabric.config import Settings
from fabric.definitions.load import load
from fabric.errors import DefinitionsError, FabricError, Problem, SourceError, command, in_line
from fabric.host.terminal import progress, settled
from fabric.trove.sources.lorries import Lorries, Lorry


def arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_limits(parser)
    parser.add_argument(
        "systems",
        nargs="*",
        default=[],
        metavar="SYSTEM",
        help="check what this system needs (default: all definitions and lorries of the project)",
    )
    parser.add_argument(
        "--unused",
        nargs="*",
        metavar="CHUNK",
        help="build these chunks of one system (default: all) under strace, store nothing, and"
        " print the staged chunks that they do not use",
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    if options.unused is not None:
        return _unused(options, settings)
    project = open_project(settings, options.systems[0] if options.systems else None)
    checked = Checked()
    try:
        if options.systems:
            _check_systems(project, options.systems, checked)
        else:
            _check_all(project, checked)
    except DefinitionsError as error:  # in VERSION
        checked.add(error.problems, error.warnings)
    mistakes, warnings = sorted(checked.mistakes), sorted(checked.warnings)
    if options.json:
        found = {**checked.files, "mistakes": mistakes, "warnings": warnings}
        print_json(msgspec.to_builtins(found))
    else:
        shown = [Problem(one.file, one.line, f"warning: {one.message}") for one in warnings]
        for problem in sorted([*mistakes, *shown]):
            print(problem)
        print(f"{checked.counts() or in_line(project.root)}: {_summary(mistakes, warnings)}")
    return DefinitionsError.exit_code if mistakes else 0


def _check_systems(project: Project, named: list[str], checked: Checked) -> None:
    systems = [project.locate(system, Path.cwd()) for system in named]
    checked.files["systems"] = systems
    for system in systems:
        try:
            checked.add((), load(project.read, system, project.morphs).warnings)
        except DefinitionsError as error:
            checked.add(error.problems, error.warnings)


def _check_all(project: Project, checked: Checked) -> None:
    """Check every morph and lorry, also those that no system needs."""
    check_morphs(project.read, project.morphs(), checked)
    checked.files["lorries"] = []
    try:
        for lorry in Lorries(project.root / "sources"):
            checked.files["lorries"].append(lorry.name)
            _check_lorry(lorry, checked)
    except DefinitionsError as error:
        checked.add(error.problems, error.warnings)
    except SourceError as error:  # the folder is a link out of the definitions
        checked.add([Problem("sources", 1, str(error))])


def _check_lorry(lorry: Lorry, checked: Checked) -> None:
    """Read its lock file, and warn if it cannot be imported yet."""
    file, _, line = lorry.where.rpartition(":")
    try:
        missing = ["packages"] if lorry.is_set and not lorry.lock.packages else lorry.missing
    except SourceError as error:
        checked.add([Problem(file, int(line), f"{lorry.name}: {error}")])
        return
    if missing:
        lacks = f"{lorry.name}: no {' and no '.join(missing)} pinned yet"
        fill = f"`{command('lorry', 'update', lorry.name)}` fills in what is offered"
        checked.add((), [Problem(file, int(line), f"{lacks}; {fill}")])


def _summary(mistakes: list[Problem], warnings: list[Problem]) -> str:
    return f"{_counted(mistakes, 'mistake')}, {_counted(warnings, 'warning')}"


def _counted(problems: list[Problem], word: str) -> str:
    return f"{len(problems) or 'no'} {word}{'s' * (len(problems) != 1)}"


def _unused(options: argparse.Namespace, settings: Settings) -> int:
    from fabric.building.observe import observe, require_strace
    from fabric.building.sandbox import Limits
    from fabric.building.workspace import Workspace
    from fabric.commands.shared.signals import interrupt_on_signals
    from fabric.definitions.least_depends import least_depends
    from fabric.host.cancel import CancelToken

    if len(options.systems) != 1:
        usage = command("check", "SYSTEM", "--unused")
        raise FabricError(f"--unused takes the chunks of one system: {usage} [CHUNK...]")
    require_strace()
    interrupt_on_signals()
    project, plan = open_plan(settings, options.systems[0], options.unused)
    goals = set(plan.goals) if options.unused else plan.wanted
    steps = [step for step in plan.steps if step.id in goals and step.kind == "chunk"]
    if not steps:
        named = ", ".join(options.unused)
        raise FabricError(f"--unused: {named}: no chunk; only chunks are built in a sandbox")
    staged = {key for step in steps for key in plan.depends(step)}
    if missing := staged - project.store.has(staged):
        names = [step.name for step in steps] if options.unused else []
        raise FabricError(
            f"chunks that are to be staged are not built yet ({len(missing)} of {len(staged)});"
            f" run: {command('build', plan.graph.path, *names)}"
        )
    found: list[dict[str, Any]] = []
    limits = Limits(settings.build_timeout or None, settings.log_limit)
    with (
        project.store.reserve(staged),
        Workspace(settings.work_dir, project.store, project.sources) as workspace,
    ):
        for number, step in enumerate(steps, 1):

            def phase(name: str, what: str = f"[{number}/{len(steps)}] {step.name}") -> None:
                progress(f"{what}: {name}")

            used: dict[str, str] = {}
            if step.staged:
                job = plan.job(step)
                used = observe(
                    job, workspace, CancelToken(), jobs=settings.jobs, limits=limits, phase=phase
                )
            files = {one: used[plan.keys[one]] for one in step.staged if plan.keys[one] in used}
            least = least_depends(plan.graph, step, files)
            facts = {
                "chunk": step.name,
                "where": step.where,
                "unused": least.unused,
                "build_depends": least.build_depends,
                "used": {plan.graph[one].name: files[one] for one in least.listed if one in files},
            }
            found.append(facts)
            settled()
            if not options.json:
                print(_advice(facts), flush=True)
    if options.json:
        print_json(found)
    return 0


def _advice(facts: dict[str, Any]) -> str:
    what = f"{facts['where']}: chunk {facts['chunk']}"
    if not facts["unused"]:
        return f"{what}: it uses everything in its staging area"
    value = {"build-depends": facts["build_depends"]}
    field = yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=90)
    lines = field.splitlines() + [f"# {name}: {file}" for name, file in facts["used"].items()]
    listed = "".join(f"\n    {in_line(line)}" for line in lines)
    return f"{what}: it does not use {', '.join(facts['unused'])}; this is enough:{listed}"
