"""Exports a build as OpenTelemetry spans, with the official exporter.

The span of a build is the parent of one span for each attempt, which is the parent of one for each
phase.  Ids follow from the request, key and fence, so a repeated export gives the same spans.
Attributes are those of the semantic conventions for CI/CD, and ``distbuild.*``.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from fabric.client.build_trace import Attempt, TracedBuild
from fabric.errors import FabricError, MachineFault

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

#: Variables of OpenTelemetry that name an endpoint.
VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Path of traces below an endpoint, as the specification has it.
_PATH = "/v1/traces"
#: Spans in one message.
_AT_ONCE = 512
#: Results of pipelines and their tasks, by the state of a build or the result of an attempt.
_RESULTS = {
    "done": "success",
    "failed": "failure",
    "fault": "error",
    "lost": "error",
    "refused": "skip",
    "cancelled": "cancellation",
}
_LOGGER = "opentelemetry.exporter.otlp.proto.http"


def endpoint(url: str) -> str:
    """The URL of traces at an OTLP endpoint, or at that of the environment if ``url`` is "".

    FabricError if there is none, or it is not a URL.
    """
    if url and not url.startswith(("http://", "https://")):
        raise FabricError(f"--otlp {url}: give the URL of a collector, as http://127.0.0.1:4318")
    if url:
        return url if url.rstrip("/").endswith(_PATH) else url.rstrip("/") + _PATH
    whole, base = (os.environ.get(name, "") for name in VARIABLES)
    if whole or base:
        return whole or base.rstrip("/") + _PATH
    raise FabricError(
        "no OpenTelemetry endpoint is set: give --otlp URL, as http://127.0.0.1:4318, or set"
        f" {VARIABLES[1]}"
    )


def export(build: TracedBuild, url: str) -> int:
    """Export a build to the endpoint of traces ``url``; returns the number of spans.

    FabricError if OpenTelemetry is not installed, MachineFault if the endpoint does not accept
    them.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import SpanExportResult
    except ImportError as error:
        raise FabricError(
            f"OpenTelemetry is not installed ({error}): `pip install 'distbuild[telemetry]'`"
            " installs it"
        ) from None
    spans = list(spans_of(build))
    said: list[str] = []
    handler = _Handler(said)
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    exporter = OTLPSpanExporter(endpoint=url)
    try:
        for first in range(0, len(spans), _AT_ONCE):
            if exporter.export(spans[first : first + _AT_ONCE]) is not SpanExportResult.SUCCESS:
                why = said[-1] if said else "the exporter gives no reason"
                raise MachineFault(f"{url} does not accept spans: {why}")
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]
        logger.removeHandler(handler)
        logger.propagate = propagates
    return len(spans)


class _Handler(logging.Handler):
    """Gathers the exporter's reasons."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


def spans_of(build: TracedBuild) -> Iterator[ReadableSpan]:
    """The spans of a build, parents first."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "distbuild")})
    scope = InstrumentationScope("distbuild")
    trace_id = _number(build.request, 16)

    def context(*parts: object) -> SpanContext:
        flags = TraceFlags(TraceFlags.SAMPLED)
        return SpanContext(
            trace_id, _number(repr((build.request, *parts)), 8), is_remote=False, trace_flags=flags
        )

    def span(
        name: str,
        own: SpanContext,
        parent: SpanContext | None,
        times: tuple[float, float],
        attributes: Mapping[str, str | int],
        *,
        failure: str | None = None,
        links: Sequence[Link] = (),
    ) -> ReadableSpan:
        """``failure``: why it failed; None if it did not."""
        status = Status(StatusCode.UNSET if failure is None else StatusCode.ERROR, failure)
        return ReadableSpan(
            name=name,
            context=own,
            parent=parent,
            resource=resource,
            attributes=dict(attributes),
            links=links,
            kind=SpanKind.INTERNAL,
            status=status,
            start_time=_nanos(times[0]),
            end_time=_nanos(max(times)),
            instrumentation_scope=scope,
        )

    def of_attempt(one: Attempt) -> SpanContext:
        return context(one.info.key, one.info.fence)

    root = context()
    yield span(
        build.title,
        root,
        None,
        (build.began, build.ended),
        {
            "cicd.pipeline.name": build.title,
            "cicd.pipeline.run.id": build.request,
            "cicd.pipeline.result": _RESULTS.get(build.state, ""),
            "distbuild.requester": build.requester,
            "distbuild.state": build.state,
        },
        failure="" if build.state == "failed" else None,
    )
    needs: dict[int, list[Link]] = {}
    for below, above in build.needs():
        needs.setdefault(of_attempt(above).span_id, []).append(Link(of_attempt(below)))
    for one in sorted(build.attempts, key=lambda one: one.began):
        info, own = one.info, of_attempt(one)
        failed = one.result in ("failed", "fault", "lost")
        yield span(
            info.name,
            own,
            root,
            (one.began, one.ended),
            {
                "cicd.pipeline.task.name": info.name,
                "cicd.pipeline.task.run.id": f"{info.key}.{info.fence}",
                "cicd.pipeline.task.run.result": _RESULTS.get(one.result, ""),
                "cicd.pipeline.task.type": "build",
                "cicd.worker.name": info.worker,
                "distbuild.key": info.key,
                "distbuild.fence": info.fence,
                "distbuild.kind": info.kind,
                "distbuild.result": one.result,
                "distbuild.message": info.message,
            },
            failure=(info.message or one.result) if failed else None,
            links=needs.get(own.span_id, ()),
        )
        for number, (phase, first, last) in enumerate(one.phases()):
            facts = {"distbuild.phase": phase, "cicd.worker.name": info.worker}
            its = context(info.key, info.fence, number)
            yield span(phase, its, own, (first, last), facts)


def _number(text: str, size: int) -> int:
    """A number of ``size`` bytes that follows from a text, and is not 0: the id of a request has 16
    bytes, and is the trace's.
    """
    if size == 16 and len(text) == 32 and set(text) <= set("0123456789abcdef"):
        return int(text, 16) or 1
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "big") or 1


def _nanos(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
