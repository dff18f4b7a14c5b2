"""Each command that looks a name up suggests the nearest known one."""

from __future__ import annotations

import pytest
from initiator_kit import Project


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("buld s", "'build'"),
        ("build s --jsn", "'--json'"),
        ("workers dran x", "'drain'"),
        ("lorry imprt", "'import'"),
        ("build smal", "'systems/small.morph'"),
        ("build ../systems/smal.morph", "'systems/small.morph'"),
        ("build ../systems/small.morph zlbi", "'zlib'"),
        ("show ../systems/small.morph zlbi", "'zlib'"),
        ("logs zlbi", "'zlib'"),
        ("shell zlbi", "'zlib'"),
        ("diff smal@built small", "'systems/small.morph'"),
        ("lorry list bsybox", "'busybox'"),
        ("lorry update upstream:bsybox", "'upstream:busybox'"),
    ],
)
def test_a_similar_name_is_suggested(project: Project, typed: str, hint: str) -> None:
    project.write(zlib="true")
    (project.root / "sources").mkdir()
    (project.root / "sources/all.lorry").write_text("busybox: {type: git, url: 'file:///none'}\n")
    done = project.run(*typed.split())
    assert done.returncode in (1, 2)
    assert f"; did you mean {hint}" in done.stderr, done.stderr


def test_similar_files_and_lorries_are_suggested_in_definitions(project: Project) -> None:
    project.write(zlib="true")
    (project.root / "sources").mkdir()
    (project.root / "sources/all.lorry").write_text("zlib: {type: git, url: 'file:///none'}\n")
    stratum = project.root / "strata/things.morph"
    text = stratum.read_text()
    stratum.write_text(text.replace("repo: file://" + str(project.source), "repo: upstream:zlbi"))
    done = project.build()
    assert "upstream:zlbi: no such repository" in done.stderr
    assert "; did you mean 'upstream:zlib'?" in done.stderr
    stratum.write_text(text.replace("morph: strata/zlib.morph", "morph: strata/zlbi.morph"))
    assert project.build().stderr == (
        "strata/things.morph:5: chunk zlib names the file strata/zlbi.morph, which does not exist;"
        " did you mean 'strata/zlib.morph'?\n"
    )


def test_a_name_that_is_like_no_other_gets_the_list_of_them(project: Project) -> None:
    project.write(zlib="true")
    assert "(choose from " in project.run("zzz").stderr
    assert "; there are: none" in project.run("lorry", "list", "zzz").stderr


def test_similar_settings_are_suggested(project: Project) -> None:
    settings = project.root / "settings.toml"
    settings.write_text("max-job = 1\n")
    done = project.run("list", environ={"FABRIC_CONFIG": str(settings), "FABRIC_CAHCE": "x"})
    assert "unknown setting 'max-job'; did you mean 'max-jobs'?" in done.stderr
    done = project.run("list", environ={"FABRIC_CAHCE": "x"})
    assert "FABRIC_CAHCE is not a setting; did you mean 'FABRIC_CACHE'?" in done.stderr
