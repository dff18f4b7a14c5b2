"""Why steps are built again, as `show` and `build --explain` say it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from initiator_kit import Project
from msgspec.structs import replace
from small_definitions import git

from fabric.trove.artifacts.store import Store

SYSTEM = "../systems/small.morph"
INSTALL = "mkdir -p $DESTDIR/usr/bin; cp hello.txt $DESTDIR/usr/bin/{0}"
STRATUM = "strata/things.morph"


def chunks(project: Project, **changed: str | tuple[str, str]) -> None:
    """Write ``one``, ``two`` built with it, and ``three`` built with that."""
    plain: dict[str, str | tuple[str, str]] = {
        "one": INSTALL.format("one"),
        "two": ("one", INSTALL.format("two")),
        "three": ("two", INSTALL.format("three")),
    }
    project.write(**{**plain, **changed})


def built(project: Project) -> None:
    chunks(project)
    done = project.build()
    assert done.returncode == 0, done.stderr


def explained(project: Project, *args: str) -> list[str]:
    """The reasons that a build prints before its first step."""
    done = project.build("--explain", *args)
    assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    end = next(
        number
        for number, line in enumerate(lines)
        if re.match(r"\[\d/|small is|one is|two is|three is", line)
    )
    return lines[:end]


def change(project: Project, path: str, old: str, new: str) -> None:
    file = project.root / path
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))


def edit_command(project: Project) -> list[str]:
    change(project, "strata/one.morph", "cp hello.txt", "cp -p hello.txt")
    return ["install-commands changed (strata/one.morph:3)"]


def add_command(project: Project) -> list[str]:
    with (project.root / "strata/one.morph").open("a") as file:
        file.write("build-commands:\n- 'true'\n")
    return ["build-commands added (strata/one.morph:6)"]


def limit_jobs(project: Project) -> list[str]:
    with (project.root / "strata/one.morph").open("a") as file:
        file.write("max-jobs: 1\n")
    return ["max-jobs unset -> 1 (strata/one.morph:6)"]


def pin_source(project: Project) -> list[str]:
    (project.source / "more.txt").write_text("more\n")
    git(project.source, "add", ".")
    git(project.source, "commit", "-qm", "second")
    commit = git(project.source, "rev-parse", "HEAD").strip()
    change(project, STRATUM, "ref: main", f"ref: {commit}")
    return [f"source main -> {commit[:12]} ({STRATUM}:7)"]


def change_prefix(project: Project) -> list[str]:
    change(project, STRATUM, "build-mode: test", "build-mode: test\n  prefix: /opt")
    return [f"prefix /usr -> /opt ({STRATUM}:9)"]


def change_mode(project: Project) -> list[str]:
    change(project, STRATUM, "build-mode: test", "build-mode: bootstrap")
    return [f"build-mode test -> bootstrap ({STRATUM}:8)"]


def change_split_rule(project: Project) -> list[str]:
    with (project.root / "strata/one.morph").open("a") as file:
        file.write("products:\n- artifact: one-doc\n  include: [usr/share/doc]\n")
    return ["products changed (strata/one.morph:6 or DEFAULTS:2)"]


def rename_artifacts(project: Project) -> list[str]:
    change(project, "strata/one.morph", "name: one", "name: uno")
    return ["name one -> uno (strata/one.morph:1)"]


@pytest.mark.parametrize(
    "edit",
    [
        *(edit_command, add_command, limit_jobs, pin_source, change_prefix, change_mode),
        *(change_split_rule, rename_artifacts),
    ],
)
def test_explain_names_the_changed_input(
    project: Project, edit: Callable[[Project], list[str]]
) -> None:
    built(project)
    expected = edit(project)
    [line] = [line for line in explained(project, "one") if line.startswith("one: ")]
    assert line == f"one: {'; '.join(expected)}"


def test_explain_leads_to_the_causes_which_come_first(project: Project) -> None:
    built(project)
    edit_command(project)
    change(project, "strata/three.morph", "cp hello.txt", "cp -p hello.txt")
    because = "because of one: install-commands changed"
    expected = [
        "one: install-commands changed (strata/one.morph:3)",
        f"three: install-commands changed (strata/three.morph:3); {because}",
        f"two: {because}",
        f"small: {because}; because of three: install-commands changed",
    ]
    assert project.run("show", SYSTEM, "things").stdout.splitlines()[3] == "state  to build"
    rows = {line.split()[2]: line for line in project.run("show", SYSTEM).stdout.splitlines()}
    assert rows["two"].endswith(f"  {because} (strata/one.morph:3)")
    assert rows["small"].endswith(f"  {because} (strata/one.morph:3); and of 1 more")
    assert rows["things"].endswith("  to build")
    shown = project.run("show", SYSTEM, "three").stdout.split("\n\n")
    assert re.search(r"\nstate +to build$", shown[0])
    assert shown[1].splitlines() == [
        "to build:", *(f"  {expected[index]}" for index in (0, 1, 2)),
    ]  # fmt: skip
    assert explained(project) == expected
    assert explained(project) == [], "all is built"


def test_explain_gives_the_place_of_a_cause_that_is_built_already(project: Project) -> None:
    built(project)
    edit_command(project)
    assert project.build("one").returncode == 0
    because = "because of one: install-commands changed (strata/one.morph:3)"
    assert explained(project) == [f"{name}: {because}" for name in ("two", "three", "small")]


def test_explain_dependencies_that_come_and_go(project: Project) -> None:
    built(project)
    chunks(project, two=INSTALL.format("two"))
    gone = "no longer built with one"
    assert explained(project) == [
        f"two: {gone} ({STRATUM}:15)",
        *(f"{name}: because of two: {gone}" for name in ("three", "small")),
    ]
    chunks(project, four=INSTALL.format("four"), two=("four", INSTALL.format("two")))
    assert explained(project, "two") == [
        "four: never built before",
        f"two: now built with four ({STRATUM}:15)",
    ]
    assert explained(project, "three") == [
        f"three: because of two: now built with four ({STRATUM}:15)"
    ]


def test_explain_a_prefix_which_is_in_the_environment_of_others(project: Project) -> None:
    built(project)
    change_prefix(project)
    because = "because of one: prefix /usr -> /opt"
    assert explained(project, "three") == [
        f"one: prefix /usr -> /opt ({STRATUM}:9)",
        f"two: {because}",
        f"three: {because}",
    ]


def test_explain_contents_of_a_system(project: Project) -> None:
    built(project)
    chunks(project, four="touch $DESTDIR/four")
    lines = dict(line.split(": ", 1) for line in explained(project))
    assert "things" not in lines, "a stratum is a list"
    assert lines["small"] == "now has four-bins, four-misc (systems/small.morph:4)"
    other = project.root / "strata/more.morph"
    other.write_text((project.root / STRATUM).read_text().replace("name: things", "name: more"))
    with (project.root / "systems/small.morph").open("a") as file:
        file.write("- name: more\n  morph: strata/more.morph\n")
    assert dict(line.split(": ", 1) for line in explained(project)) == {
        "small": "stratum more added (systems/small.morph:7)",
    }


def test_explain_as_data(project: Project) -> None:
    built(project)
    edit_command(project)
    shown = json.loads(project.run("show", SYSTEM, "--json").stdout)
    one, two = (next(step for step in shown if step["name"] == name) for name in ("one", "two"))
    [changed] = one["changes"]
    assert changed == {
        "step": "one",
        "key": one["key"],
        "input": "install-commands",
        "text": "install-commands changed",
        "old": changed["old"],
        "new": changed["new"],
        "where": "strata/one.morph:3",
    }
    assert changed["old"] != changed["new"]
    assert two["changes"] == [changed]
    assert two["why"] == "because of one: install-commands changed (strata/one.morph:3)"
    done = project.build("--explain", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[:4] == ["explained"] * 4
    assert [event["name"] for event in events[:2]] == ["one", "two"]
    assert events[1]["changes"] == [changed]
    [cached] = json.loads(project.run("show", SYSTEM, "one", "--json").stdout)
    assert (cached["why"], cached["changes"]) == ("cached", [])


def test_explain_a_step_that_failed(project: Project) -> None:
    built(project)
    change(project, "strata/one.morph", "cp hello.txt", "cp nothing")
    assert project.build().returncode == 3
    shown = project.run("show", SYSTEM, "one").stdout
    assert re.search(r"\nstate +failed \d{4}-\d\d-\d\d \d\d:\d\d: install-commands failed", shown)
    assert f"{project.logs}/build-step-one-misc.log" in shown
    assert "\n  one: install-commands changed (strata/one.morph:3)\n" in shown


def test_explain_without_records_says_so(project: Project) -> None:
    built(project)
    keys = {
        step["name"]: step["key"]
        for step in json.loads(project.run("show", SYSTEM, "--json").stdout)
    }
    store = Store(str(project.cache / "artifacts"), project.cache / "scratch")
    old = store.manifest(keys["one"])
    assert old is not None
    store.remove([keys["one"]])
    assert explained(project) == [], "nothing needs it"
    store.put(replace(old, inputs={}), {})
    edit_command(project)
    text = "its last build was by an older version, which recorded no inputs"
    assert explained(project, "two") == [f"one: {text}", f"two: because of one: {text}"]


def test_explain_leaves_out_steps_that_nothing_to_build_needs(project: Project) -> None:
    project.write(one="true", two=("one", "true"), four="true")
    change_mode(project)
    assert project.build().returncode == 0
    store = Store(str(project.cache / "artifacts"), project.cache / "scratch")
    [one] = json.loads(project.run("show", SYSTEM, "one", "--json").stdout)
    store.remove([one["key"]])
    change(project, "strata/four.morph", "true", "'true'")
    because = "because of four: install-commands changed"
    assert explained(project) == [
        "four: install-commands changed (strata/four.morph:3)",
        f"small: {because}",
    ]


def test_build_without_explain_loads_nothing_of_it(project: Project) -> None:
    built(project)
    edit_command(project)
    done = project.run("build", SYSTEM, environ={"PYTHONPROFILEIMPORTTIME": "1"})
    assert "install-commands" not in done.stdout
    assert "fabric.client.changes" not in done.stderr
    assert "fabric.commands.shared.report" in done.stderr
