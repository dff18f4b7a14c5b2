"""Each build system of DEFAULTS builds a real program, hardened unless its chunk says otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from systems_kit import MINIMAL, ROOT, Built, user_cache

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

SAMPLES = "systems/samples-x86_64.morph"
#: Program -> its arguments, and a part of what it prints.
PROGRAMS = {
    "xxhsum": (["--version"], "xxhsum 0.8.3"),
    "md2html": (["--version"], "0.5.2"),
    "cvt": (["1024", "768"], 'Modeline "1024x768_60.00"'),
    "go-md2man": ([], ".TH A program(1)"),
    "difference": (["-s", "word", "a b", "a c"], "a \x1b[91mb\x1b[0m \x1b[92mc\x1b[0m"),
}
LINKED = {"PIE", "RELRO", "BIND_NOW"}


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Built:
    built = Built(user_cache(), tmp_path_factory.mktemp("samples"))
    built.build(SAMPLES)
    built.run("checkout", str(ROOT / SAMPLES), "--to", "tree")
    return built


def hardening(file: Path) -> set[str]:
    """The protections in a program, by readelf."""
    command = ["readelf", "--wide", "--program-headers", "--dynamic", "--dyn-syms", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    marks = {
        "PIE": "Elf file type is DYN",
        "RELRO": " GNU_RELRO ",
        "BIND_NOW": " BIND_NOW",
        "stack protector": " __stack_chk_fail@",
        "fortified": "printf_chk@",
    }
    return {name for name, mark in marks.items() if mark in shown}


def run(tree: Path, *command: str) -> str:
    """The output of a program of a system, which gets a page in Markdown."""
    sandbox = ["bwrap", "--unshare-all", "--ro-bind", str(tree / "usr"), "/usr"]
    sandbox += ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
    page = "% A program(1)\n\n# NAME\n"
    done = subprocess.run(
        [*sandbox, *command], input=page, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_build_system_builds_a_program(samples: Built, program: str) -> None:
    arguments, printed = PROGRAMS[program]
    assert printed in run(samples.logs / "tree", program, *arguments)
    assert hardening(samples.logs / "tree/usr/bin" / program) >= LINKED


def test_python_pep517_builds_a_package(samples: Built) -> None:
    tree = samples.logs / "tree/usr"
    assert (tree / "bin/sqlformat").read_text().startswith("#!/usr/bin/python3\n")
    modules = str(tree / "lib/python3/dist-packages")
    done = subprocess.run(
        [sys.executable, "-m", "sqlparse", "--keywords", "upper", "-"],
        input="select 1",
        env={**os.environ, "PYTHONPATH": modules},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "SELECT 1"


def test_samples_are_for_the_build_systems_that_nothing_else_needs() -> None:
    """`autotools` builds most of the minimal system; `manual` is no more than commands."""
    systems = yaml.safe_load((ROOT / "DEFAULTS").read_text())["build-systems"]
    text = (ROOT / "strata/samples.morph").read_text()
    text += (ROOT / "strata/samples/difference.morph").read_text()
    proved = {name for name in systems if f"build-system: {name}\n" in text}
    assert systems.keys() - proved == {
        *("manual", "autotools", "python3-distutils", "cpan", "module-build"),
    }


def test_flags_are_those_of_the_compilers(samples: Built) -> None:
    found = hardening(samples.logs / "tree/usr/bin/md2html")
    assert found == LINKED | {"stack protector", "fortified"}


def test_all_programs_of_the_minimal_system_are_hardened(minimal: Built) -> None:
    minimal.run("checkout", str(ROOT / MINIMAL), "--to", "tree", "--force")
    programs = [
        file
        for file in (minimal.logs / "tree/usr/bin").iterdir()
        if not file.is_symlink() and file.read_bytes()[:4] == b"\x7fELF"
    ]
    assert len(programs) > 20
    weak = {file.name: LINKED - hardening(file) for file in programs}
    assert not {name: missing for name, missing in weak.items() if missing}


def test_chunk_switches_its_hardening_off(samples: Built, tmp_path: Path) -> None:
    for part in ("VERSION", "DEFAULTS", SAMPLES):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    for part in ("sources", "strata"):
        shutil.copytree(ROOT / part, tmp_path / part)
    stratum = tmp_path / "strata/samples.morph"
    changed = "- name: xxhash\n  morph: strata/samples/xxhash.morph\n"
    text = stratum.read_text()
    assert "- name: xxhash\n  build-system: make\n" in text
    stratum.write_text(text.replace("- name: xxhash\n  build-system: make\n", changed))
    morph = "name: xxhash\nkind: chunk\nbuild-system: make\nhardening: false\n"
    (tmp_path / "strata/samples/xxhash.morph").write_text(morph)
    samples.run("build", str(tmp_path / SAMPLES), "xxhash")
    samples.run("checkout", str(tmp_path / SAMPLES), "xxhash", "--to", "without", "--force")
    soft = hardening(samples.logs / "without/usr/bin/xxhsum")
    hard = hardening(samples.logs / "tree/usr/bin/xxhsum")
    assert hard - soft == {"BIND_NOW", "stack protector", "fortified"}
