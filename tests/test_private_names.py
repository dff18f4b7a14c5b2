"""No file of fabric/ imports a private name of another; ruff's SLF001 checks attributes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def private_imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fabric"):
            for name in (*str(node.module).split("."), *(each.name for each in node.names)):
                if name.startswith("_") and not name.startswith("__"):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}: {name}"


def test_private_names_are_not_imported() -> None:
    files = (ROOT / "fabric").rglob("*.py")
    assert [found for file in files for found in private_imports(file)] == []
