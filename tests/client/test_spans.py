"""Builds as OpenTelemetry spans, sent to a real receiver."""

from __future__ import annotations

import builtins
import sys

import pytest
from otlp_kit import collector, facts
from test_build_trace import BEGAN, attempt, build

from fabric.client import spans
from fabric.errors import FabricError, MachineFault
from fabric.wire.messages import GraphStep


def test_spans_are_exported_with_parents_links_and_results() -> None:
    a = attempt("a", 0.0, 2.0, phases=(("fetch", 0.0), ("build", 0.5)))
    b = attempt("b", 2.0, 3.5, "w2", result="failed", message="Error 1", fence=9)
    graph = (GraphStep(a.info.key, "a", "chunk"), GraphStep(b.info.key, "b", "chunk", (0,)))
    with collector() as receiver:
        assert spans.export(build(a, b, graph=graph), spans.endpoint(receiver.url)) == 5
        assert spans.export(build(a, b, graph=graph), spans.endpoint(receiver.url)) == 5
    first, again = receiver.spans[:5], receiver.spans[5:]
    assert first == again, "a repeated export gives the same spans"
    root, one, fetch, compile, two = first
    assert [span.name for span in first] == ["small", "a", "fetch", "build", "b"]
    assert {span.trace_id.hex() for span in first} == {"ab" * 16}, "the id of the build"
    assert root.parent_span_id == b""
    assert one.parent_span_id == two.parent_span_id == root.span_id
    assert fetch.parent_span_id == compile.parent_span_id == one.span_id
    assert len({span.span_id for span in first}) == 5
    assert [link.span_id for link in two.links] == [one.span_id]
    begin = int(BEGAN) * 10**9
    times = [(s.start_time_unix_nano - begin, s.end_time_unix_nano - begin) for s in first]
    assert times == [
        (0, 4_500_000_000),
        (0, 2_000_000_000),
        (0, 500_000_000),
        (500_000_000, 2_000_000_000),
        (2_000_000_000, 3_500_000_000),
    ]
    assert (one.status.code, two.status.code, two.status.message) == (0, 2, "Error 1")
    known = facts(two)
    assert known["cicd.pipeline.task.name"] == "b"
    assert known["cicd.pipeline.task.run.result"] == "failure"
    assert (known["cicd.worker.name"], known["distbuild.fence"]) == ("w2", 9)
    assert facts(root)["cicd.pipeline.result"] == "success"
    [resource, *_] = [one.resource for one in receiver.requests[0].resource_spans]
    service = {one.key: one.value.string_value for one in resource.attributes}
    assert service["service.name"] == "distbuild"


def test_spans_of_a_large_build_are_sent_in_parts() -> None:
    many = [attempt(f"step {n}", n, n + 1.0, fence=n) for n in range(1200)]
    with collector() as receiver:
        assert spans.export(build(*many), spans.endpoint(receiver.url)) == 1201
    assert len(receiver.spans) == 1201
    assert len(receiver.requests) == 3


def test_spans_that_are_not_accepted_are_an_error() -> None:
    with collector(status=400) as receiver:
        url = spans.endpoint(receiver.url)
        with pytest.raises(MachineFault, match=f"{url} does not accept spans: .*400"):
            spans.export(build(), url)


def test_endpoint_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in spans.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FabricError) as told:
        spans.endpoint("")
    assert str(told.value) == (
        "no OpenTelemetry endpoint is set: give --otlp URL, as http://127.0.0.1:4318, or set"
        " OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    with pytest.raises(FabricError, match="--otlp abc: give the URL of a collector"):
        spans.endpoint("abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://one:4318/")
    assert spans.endpoint("") == "http://one:4318/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://two/own")
    assert spans.endpoint("") == "http://two/own"
    assert spans.endpoint("http://three") == "http://three/v1/traces"
    assert spans.endpoint("http://three/v1/traces") == "http://three/v1/traces"


def test_spans_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name.startswith("opentelemetry"):
            raise ImportError("No module named 'opentelemetry'")
        return original(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(FabricError, match=r"`pip install 'distbuild\[telemetry\]'` installs it"):
        spans.export(build(), "http://127.0.0.1:1/v1/traces")
