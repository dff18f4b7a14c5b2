"""The live view of a build on a farm."""

from __future__ import annotations

from collections.abc import Callable

from network_kit import Farm
from small_definitions import SYSTEM
from terminals import Terminal


def test_live_farm_rows_stay_at_the_bottom(farm: Farm) -> None:
    farm.broker()
    farm.worker("oak")
    workstation = farm.workstation("alice")
    workstation.definitions.write(one=farm.held("one"), two=("one", "true"))
    workstation.definitions.by_lorry()
    command = workstation.command("build", f"../definitions/{SYSTEM}")
    seen = Terminal(command, workstation.here, workstation.environ)
    try:
        seen.sees(lambda _: seen.row("  one ").endswith(" oak"), "the step run")
        lines = seen.lines()
        while not lines[0].startswith("[0/4] "):  # rows of a warning
            lines.pop(0)
        assert lines[0] == "[0/4] one: building on oak", lines
        assert len(lines) == 4, lines
        assert lines[2] == "  next: two, small"
        assert "0 of 4 built" in lines[3]
        assert b"pushing" in seen.raw, "it said so while it did it"
        seen.resize(40)
        seen.sees(lambda lines: fits(40)(lines[2:]), "rows that fit, below the warning")
        assert seen.row("  one ").endswith(" oak")
        farm.release("one")
        assert seen.ends() == 0, seen.lines()
        assert not any("of 4 built" in line for line in seen.lines())
        assert seen.row("small is built: 4 built in")
    finally:
        seen.close()


def test_live_farm_asks_how_to_go_on_after_a_failure(farm: Farm) -> None:
    farm.broker()
    farm.worker("oak")
    farm.worker("elm")
    workstation = farm.workstation("alice")
    workstation.definitions.write(bad="false", low=farm.held("low"), high=("low", "true"))
    workstation.definitions.by_lorry()
    command = workstation.command("build", f"../definitions/{SYSTEM}")
    environ = {**workstation.environ, "CI": ""}
    seen = Terminal(command, workstation.here, environ, columns=120, rows=60)

    try:
        seen.sees(lambda lines: any("bad: failed" in line for line in lines), "a failure")
        assert seen.row("  low "), "it goes on"
        farm.release("low")
        seen.sees(lambda lines: lines[-1:] == ["retry, continue or quit?"], "the question")
        assert "  continue  build the step that does not need bad" in seen.lines()
        seen.types("continue\n")
        assert seen.ends() == 3
        assert seen.row("[1/1] high: built in")
        assert seen.lines()[-1] == "fabric-initiator: small is not built: bad failed"
    finally:
        seen.close()
    seen = Terminal(command, workstation.here, environ, columns=120, rows=60)
    try:
        seen.sees(lambda lines: lines[-1:] == ["retry or quit?"], "the question")
        morph = workstation.definitions.root / "strata/bad.morph"
        morph.write_text(morph.read_text().replace("false", "true"))
        seen.types("retry\n")
        assert seen.ends() == 0
        assert seen.row("small is built: 3 built, 2 cached")
    finally:
        seen.close()


def fits(columns: int) -> Callable[[list[str]], bool]:
    return lambda lines: bool(lines) and max(map(len, lines)) < columns


def test_live_farm_watched_status_stays_in_its_rows(farm: Farm) -> None:
    farm.broker()
    farm.worker("oak")
    workstation = farm.workstation("alice")
    workstation.definitions.write(one=farm.held("one"))
    workstation.detach()
    seen = Terminal(
        workstation.command("status", "--watch"), workstation.here, workstation.environ, columns=100
    )
    try:
        seen.sees(lambda _: "one " in seen.row("on oak"), "the step")
        for columns, rows in ((50, 24), (30, 6), (100, 24)):
            seen.resize(columns, rows)
            seen.sees(fits(columns), "rows that fit")
            assert seen.row("BUILD"), "once"
        seen.sees(lambda _: "one " in seen.row("on oak"), "the step, once")
        seen.press_ctrl_c()
        assert seen.ends() == 0
        assert seen.row("on oak")
        assert seen.raw.rfind(b"\x1b[?25h") > seen.raw.rfind(b"\x1b[?25l"), "the cursor is back"
    finally:
        seen.close()
