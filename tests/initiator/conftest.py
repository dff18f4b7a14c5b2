"""Definitions in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from initiator_kit import INITIATOR, OpenTerminal, Project
from terminals import Terminal


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path / "definitions", tmp_path / "cache")
    yield made
    for child in made.children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def terminal(project: Project) -> Iterator[OpenTerminal]:
    """Opens terminals that run fabric-initiator."""
    opened: list[Terminal] = []

    def run(
        *args: str,
        columns: int = 80,
        rows: int = 24,
        within: Sequence[str] = (),
        **environ: str,
    ) -> Terminal:
        command = [*within, *INITIATOR, *args]
        made = Terminal(command, project.logs, {**project.environ, **environ}, columns, rows)
        opened.append(made)
        return made

    yield run
    for one in opened:
        one.close()
