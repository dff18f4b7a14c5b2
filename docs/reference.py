"""Writes the tables in docs that are made from the code and from lock files.

    .venv/bin/python docs/reference.py

tests/test_reference.py fails if a page differs from the code.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

import fabric
from fabric import bounds, broker, config, initiator, worker
from fabric.controller import keytool, metrics
from fabric.definitions import chunk_morph, morphs, stratum_morph, system_morph
from fabric.deployment import cluster, guests
from fabric.errors import FabricError
from fabric.scheduling import states
from fabric.trove.sources import lorry_fields, lorry_vex
from fabric.web import program

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/reference"
#: What stands above this line in a page is written by hand.
MARK = "<!-- The rest is made from the code: .venv/bin/python docs/reference.py -->"
Fields = Mapping[str, tuple[str, str]]


# -- Markdown ------------------------------------------------------------------------------


def rows(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A table; only cells may hold what would end one."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in body)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def sentence(text: str) -> str:
    """Text of a table or help as a sentence."""
    text = text.strip()
    if text and text[0].islower() and not text.startswith(("make's", "git ")):
        text = text[0].upper() + text[1:]
    return text if not text or text.endswith((".", "?")) else text + "."


# -- commands ------------------------------------------------------------------------------


def commands() -> str:
    top = initiator.parser()
    shared = {option for action in top._actions for option in action.option_strings}
    page = "## fabric-initiator\n\n"
    page += (
        sentence(top.description or "")
        + " These options may stand before or after the command.\n\n"
    )
    page += _arguments(top, set())
    for name, command in _commands(top):
        page += _command(f"fabric-initiator {name}", command, shared)
    daemons = [
        ("fabric-broker", broker.parser()),
        ("fabric-worker", worker.parser()),
        ("fabric-web", program.parser()),
    ]
    for name, parser in daemons:
        page += _command(name, parser, {"-h", "--help"}, level="##")
    keys = keytool.parser()
    page += f"## fabric-keys\n\n{sentence(keys.description or '')}\n\n"
    for name, command in _commands(keys):
        page += _command(f"fabric-keys {name}", command, {"-h", "--help"})
    return page


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The sub-commands; one without a description gets its line of help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {one.dest: one.help for one in action._choices_actions}
            for name, command in action.choices.items():
                command.description = command.description or helps.get(name)
                yield name, command


def _command(
    name: str, parser: argparse.ArgumentParser, shared: set[str], level: str = "###"
) -> str:
    own = [one for one in parser._actions if not shared.intersection(one.option_strings)]
    usage = " ".join([name, *(filter(None, map(_usage, sorted(own, key=_is_option))))])
    text = sentence((parser.description or "").splitlines()[0])
    return f"{level} {name}\n\n```\n{usage}\n```\n\n{text}\n\n" + _arguments(parser, shared)


def _is_option(action: argparse.Action) -> bool:
    return bool(action.option_strings)


def _value(action: argparse.Action) -> str:
    """What stands after an option, or for an argument."""
    if action.nargs == 0:
        return ""
    if action.option_strings and action.nargs == "*":
        return f"[{action.metavar}...]"
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.choices:
        return "|".join(map(str, action.choices))
    return action.metavar or (action.dest.upper() if action.option_strings else action.dest)


def _usage(action: argparse.Action) -> str:
    value = _value(action)
    if action.option_strings:
        text = " ".join(filter(None, [action.option_strings[-1], value]))
        return text if action.required else f"[{text}]"
    return {"?": f"[{value}]", "*": f"[{value}...]"}.get(str(action.nargs), value)


def _arguments(parser: argparse.ArgumentParser, shared: set[str]) -> str:
    body = []
    for action in parser._actions:
        if shared.intersection(action.option_strings):
            continue
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        name = " ".join(filter(None, [", ".join(action.option_strings), _value(action)]))
        text = "" if action.help == argparse.SUPPRESS else sentence(action.help or "")
        known = (None, False, "", argparse.SUPPRESS)
        if action.default not in known and action.default != [] and "default" not in text.lower():
            text += f" Default: `{action.default}`."
        if isinstance(action, argparse._AppendAction):
            text += " May be given several times."
        if isinstance(action, argparse._VersionAction):
            text = "Print the version."
        body.append((code(name), text.strip()))
    return rows(["argument", "meaning"], body) if body else ""


# -- settings ------------------------------------------------------------------------------


def settings() -> str:
    parts: dict[str, type] = {
        "All four programs": config.Shared,
        "fabric-initiator and fabric-worker": config.Building,
        "fabric-initiator, in `~/.config/distbuild/distbuild.toml`": config.Settings,
        f"fabric-broker, in `{config.BROKER_FILE}`": config.BrokerSettings,
        f"fabric-worker, in `{config.WORKER_FILE}`": config.WorkerSettings,
        f"fabric-web, in `{config.WEB_FILE}`": config.WebSettings,
    }
    head = ["setting", "value", "default", "meaning"]
    return "".join(f"## {title}\n\n{rows(head, _settings(kind))}" for title, kind in parts.items())


def _settings(kind: type) -> Iterator[tuple[str, ...]]:
    """The fields that a class declares itself."""
    texts = _comments(kind)
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, msgspec.inspect.StructType)
    for field in described.fields:
        if field.name in kind.__annotations__:
            default = _default(field)
            yield code(field.encode_name), _values(field.type), default, texts[field.name]


def _comments(kind: type) -> dict[str, str]:
    """The comments `#:` above the fields of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[: kind.__mro__.index(msgspec.Struct)]):
        above: list[str] = []
        for line in map(str.strip, inspect.getsource(each).splitlines()):
            if line.startswith("#: "):
                above.append(line[3:])
            elif above and (name := re.match(r"(\w+): ", line)):
                found[name[1]], above = " ".join(above), []
    return found


def _values(type: msgspec.inspect.Type) -> str:
    match type:
        case msgspec.inspect.IntType(ge=least, le=most):
            return f"{least} to {most:,}" if most else f"number from {least}"
        case msgspec.inspect.FloatType():
            return "number"
        case msgspec.inspect.BoolType():
            return "`true` or `false`"
        case msgspec.inspect.DictType():
            return "table"
        case msgspec.inspect.VarTupleType():
            return "list of names"
        case msgspec.inspect.StrType(pattern=None):
            return "text"
        case msgspec.inspect.StrType(pattern=config.TIME):
            return "time"
        case msgspec.inspect.StrType(pattern=config.NAME):
            return "name"
    raise AssertionError(type)


def _default(field: msgspec.inspect.Field) -> str:
    match field.default:
        case bool(value):
            return code(str(value).lower())
        case int(value) if value and value % bounds.GIB == 0:
            return f"{value // bounds.GIB} GiB"
        case int(value) | float(value):
            return code(f"{value:g}")
        case str(value):
            return code(value or '""')
    return code("~/.cache/distbuild") if field.name == "cache" else "none"


# -- definitions ---------------------------------------------------------------------------


def _fields(fields: Fields, suffix: str = "") -> str:
    body = [(code(name + suffix), value, sentence(text)) for name, (value, text) in fields.items()]
    return rows(["field", "value", "meaning"], body)


def morph_fields() -> str:
    parts = {
        "A chunk": chunk_morph.CHUNK,
        "An entry of `devices`": chunk_morph.DEVICE,
        "A split rule: an entry of `products`": morphs.PRODUCT,
        "A stratum": stratum_morph.STRATUM,
        "An entry of a stratum's `build-depends`": stratum_morph.DEPENDENCY,
        "An entry of a stratum's `chunks`": stratum_morph.SPEC,
        "A mapping in a chunk's `build-depends`": stratum_morph.ELSEWHERE,
        "The fields for an architecture in a chunk's `arch`": stratum_morph.FOR_ARCH,
        "A system": system_morph.SYSTEM,
        "An entry of a system's `strata`": system_morph.ENTRY,
        "A cluster": cluster.CLUSTER,
        "An entry of `systems` and `subsystems`": cluster.CLUSTER_SYSTEM,
        "A deployment": cluster.DEPLOYMENT,
    }
    return "".join(f"## {title}\n\n{_fields(fields)}" for title, fields in parts.items())


def deployment_settings() -> str:
    page = f"## Settings\n\n{_fields(guests.SETTINGS)}"
    return page + f"## Settings with any ending\n\n{_fields(guests.PREFIXES, '...')}"


def lorry_types() -> str:
    page = ""
    filled = lorry_fields.FILLED_IN
    for kind, (required, optional) in lorry_fields.TYPES.items():
        fields = {
            **dict.fromkeys(required, "yes"),
            **{name: "filled in" if name in filled else "" for name in optional},
        }
        body = [(code(n), needed, sentence(_meaning(kind, n))) for n, needed in fields.items()]
        page += f"## {kind}\n\n" + rows(["field", "required", "meaning"], body)
    body = [
        (code(name), "filled in" * (name == "sha256"), sentence(_meaning("component", name)))
        for name in lorry_fields.COMPONENT
    ]
    page += "## A component\n\nIt has either `url` or `lorry`.\n\n"
    page += rows(["field", "required", "meaning"], body)
    body = [
        (code(name), "yes" * (name in lorry_vex.REQUIRED), sentence(text))
        for name, text in lorry_vex.MEANINGS.items()
    ]
    page += "## A statement of `vex`\n\n"
    return page + rows(["field", "required", "meaning"], body)


def _meaning(kind: str, field: str) -> str:
    meanings = lorry_fields.MEANINGS
    return meanings.get(f"{kind}.{field}") or meanings[field]


# -- what programs report ------------------------------------------------------------------


def metric_table() -> str:
    body = [
        (
            code(one.name + "_total" * (one.type == "counter")),
            one.type,
            code(one.label),
            sentence(one.meaning),
        )
        for one in metrics.FAMILIES
    ]
    return rows(["metric", "type", "label", "meaning"], body)


def errors() -> str:
    codes = re.findall(r"(\d+)  (\S.*?)(?=   |\n|$)", initiator.parser().epilog or "")
    codes.sort(key=lambda one: int(one[0]))
    page = rows(["code", "meaning"], [(code(number), sentence(text)) for number, text in codes])
    page += "## Errors\n\nThe class of an error determines the exit code.\n\n"
    body = [
        (code(kind.__name__), code(str(kind.exit_code)), sentence(_summary(kind)))
        for kind in sorted(_errors(), key=lambda kind: (kind.exit_code, kind.__name__))
    ]
    return page + rows(["class", "code", "meaning"], body)


def _errors() -> set[type[FabricError]]:
    """Every public class of errors that users can meet."""
    for module in pkgutil.walk_packages(fabric.__path__, "fabric."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, more = set[type[FabricError]](), [FabricError]
    while more:
        more += (kind := more.pop()).__subclasses__()
        found.add(kind)
    return {
        kind for kind in found if kind.__module__.startswith("fabric.") and kind.__name__[0] != "_"
    }


def _summary(kind: type) -> str:
    return " ".join((kind.__doc__ or "").strip().partition("\n\n")[0].replace("``", "`").split())


# -- pages ---------------------------------------------------------------------------------


def seed() -> str:
    """The packages of the seed, by the lock file of their lorry."""
    lines = (ROOT / "sources/debian-seed.lock").read_text().splitlines()
    packages = [line.split() for line in lines if not line.startswith(("#", "tree "))]
    total = sum(int(size) for *_, size in packages)
    return f"{len(packages)} packages, {total:,} bytes:\n\n" + rows(
        ("package", "version", "bytes", "SHA-256"),
        (
            (name, version, f"{int(size):,}", code(digest))
            for name, version, _, digest, size in packages
        ),
    )


PAGES: dict[str, Callable[[], str]] = {
    "../explanation/bootstrap.md": seed,
    "bounds.md": bounds.table,
    "commands.md": commands,
    "deployments.md": deployment_settings,
    "errors.md": errors,
    "lorries.md": lorry_types,
    "metrics.md": metric_table,
    "morphs.md": morph_fields,
    "settings.md": settings,
    "task-states.md": lambda: "\n".join(states.table()),
}


def page(name: str) -> str:
    """A page as it should be."""
    head, mark, _ = (FOLDER / name).read_text().partition(MARK)
    return f"{head}{mark}\n\n{PAGES[name]().rstrip()}\n"


if __name__ == "__main__":
    for name in PAGES:
        (FOLDER / name).write_text(page(name))
