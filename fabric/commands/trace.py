"""``trace``: prints what a build did and when, for Perfetto, or exports OpenTelemetry spans."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fabric.client.build_trace import trace
from fabric.client.request import OVER
from fabric.commands.shared.traced import find_build
from fabric.config import Settings
from fabric.errors import FabricError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "request",
        metavar="ID",
        nargs="?",
        default="",
        help="ID of a build, or its beginning; by default the last build that ended here",
    )
    parser.add_argument("--to", metavar="FILE", type=Path, help="write the trace to a file")
    parser.add_argument(
        "--otlp",
        metavar="URL",
        nargs="?",
        const="",
        help="export it to an OpenTelemetry collector instead; by default to the one in"
        " OTEL_EXPORTER_OTLP_ENDPOINT",
    )


def run(options: argparse.Namespace, settings: Settings) -> int:
    if settings.controller and not options.request:
        raise FabricError("no build is named: give its ID, as `list` shows it")
    url = ""
    if options.otlp is not None:
        from fabric.client import spans  # loads OpenTelemetry, which few use

        url = spans.endpoint(options.otlp)
    build = find_build(settings, options.request)
    if url and build.state not in OVER:
        raise FabricError(f"{build.title} goes on: its spans are exported when it is over")
    if url:
        number = spans.export(build, url)
        print(f"{number} spans of {build.title} exported to {url}")
        return 0
    text = json.dumps(trace(build), allow_nan=False)
    if options.to is None:
        print(text)
        return 0
    try:
        options.to.write_text(f"{text}\n")
    except OSError as error:
        raise FabricError(f"{options.to}: the trace cannot be written: {error.strerror}") from None
    print(f"{options.to}: open it at ui.perfetto.dev, or in chrome://tracing", file=sys.stderr)
    return 0
