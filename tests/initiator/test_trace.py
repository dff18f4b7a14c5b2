"""``trace`` of builds on this machine, while they run and when they have ended."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from initiator_kit import Project
from otlp_kit import collector, facts
from trace_kit import Trace
from waiting import until

NONE = (
    "fabric-initiator: no build on this machine has ended yet; `fabric-initiator list` lists those"
    " that run, and --controller HOST asks a farm\n"
)


def built(project: Project) -> None:
    project.write(one="sleep 0.2", two=("one", "sleep 0.2"))
    done = project.build("--workers", "1")
    assert done.returncode == 0, done.stderr


def test_trace_of_the_last_build_here(project: Project) -> None:
    project.write(one="true")
    none = project.run("trace")
    assert (none.returncode, none.stdout, none.stderr) == (1, "", NONE)
    built(project)
    found = Trace(project.run("trace").stdout)
    assert found.facts["state"] == "done"
    [steps] = found.steps().values()
    assert [one["name"] for one in steps[:2]] == ["one", "two"]
    assert sorted(one["name"] for one in steps[2:]) == ["small", "things"]
    assert {one["args"]["result"] for one in steps} == {"done"}
    phases = found.phases(steps[0])
    assert phases[-1] == "store"
    assert "install" in " ".join(phases)
    assert all(one["dur"] >= 200_000 for one in steps[:2])
    to = project.run("trace", found.facts["request"][:8], "--to", "trace.json")
    assert to.returncode == 0
    assert to.stderr == "trace.json: open it at ui.perfetto.dev, or in chrome://tracing\n"
    assert Trace((project.logs / "trace.json").read_text()).facts == found.facts
    wrong = project.run("trace", "0123")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("fabric-initiator: 0123: no such build; ")
    nowhere = project.run("trace", "--to", "no/trace.json")
    assert nowhere.stderr.endswith(
        "no/trace.json: the trace cannot be written: No such file or directory\n"
    )


def test_trace_of_a_build_that_failed(project: Project) -> None:
    project.write(one="echo so it is; false")
    assert project.build().returncode != 0
    found = Trace(project.run("trace").stdout)
    assert found.facts["state"] == "failed"
    [[one]] = found.steps().values()
    assert (one["args"]["result"], one["cname"]) == ("failed", "terrible")


def test_trace_of_a_build_that_runs(project: Project) -> None:
    project.write(one="true", two=("one", "while sleep 0.1; do :; done"))
    build = project.start("--workers", "1")

    def runs() -> Trace | None:
        listed = json.loads(project.run("list", "--json").stdout)
        if not listed:
            return None
        done = project.run("trace", listed[0]["request"][:12])
        if done.returncode:
            return None
        found = Trace(done.stdout)
        return found if len([one for each in found.steps().values() for one in each]) == 2 else None

    found = until(runs)
    assert found is not None
    assert found.facts["state"] == "building"
    [[first, second]] = found.steps().values()
    assert (first["name"], first["args"]["result"]) == ("one", "done")
    assert (second["name"], second["args"]["result"]) == ("two", "running")
    assert found.arrows == [("one", "two")]
    early = project.run("trace", found.facts["request"], "--otlp", "http://127.0.0.1:9")
    assert early.stderr.endswith(" goes on: its spans are exported when it is over\n")
    build.terminate()
    build.communicate(timeout=60)
    cancelled = Trace(project.run("trace").stdout)
    assert cancelled.facts["state"] == "cancelled"


def test_trace_is_exported_as_spans(project: Project) -> None:
    built(project)
    with collector() as receiver:
        done = project.run("trace", "--otlp", receiver.url)
        assert done.returncode == 0, done.stderr
        sent = len(receiver.spans)
        again = project.run(
            "trace", "--otlp", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        )
        assert again.returncode == 0, again.stderr
    assert done.stdout.startswith(f"{sent} spans of small")
    assert done.stdout == again.stdout
    assert len(receiver.spans) == 2 * sent
    kinds = {(facts(span).get("distbuild.kind"), span.name) for span in receiver.spans}
    assert kinds >= {("chunk", "one"), ("chunk", "two"), ("system", "small")}
    silent = project.run("trace", "--otlp", "http://127.0.0.1:9", timeout=60)
    assert silent.returncode == 4
    assert silent.stderr.startswith(
        "fabric-initiator: http://127.0.0.1:9/v1/traces does not accept spans: "
    )
    assert "Traceback" not in silent.stderr


@pytest.mark.parametrize("command", ["trace", "list"])
def test_opentelemetry_is_loaded_for_an_export_only(project: Project, command: str) -> None:
    program = (
        "import sys; from fabric.initiator import main\n"
        f"sys.argv = ['fabric-initiator', {command!r}]\n"
        "main()\n"
        "print([name for name in sys.modules if 'opentelemetry' in name or 'starlette' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project.logs, env=project.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
