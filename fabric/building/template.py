"""Renders templates of INSTALL_FILES in a child process with bounded time and memory.

Templates are untrusted: Jinja's sandbox prevents them from running code, and the kernel limits
their time and memory.
"""

from __future__ import annotations

import importlib.util
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

import msgspec

from fabric.bounds import MIB, TEMPLATE_CPU, TEMPLATE_MEMORY, TEMPLATE_OUTPUT

_TOO_MUCH = f"templates may use {TEMPLATE_MEMORY // MIB} MiB of memory, and this one needs more"
_TOO_LONG = f"templates may make {TEMPLATE_OUTPUT // MIB} MiB of text, and this one makes more"
_TOO_SLOW = f"templates may take {TEMPLATE_CPU} s together, and these take longer"


class TemplateProblem(Exception):
    """A template cannot be rendered; ``index`` is its number, None if not known."""

    def __init__(self, message: str, index: int | None) -> None:
        super().__init__(message)
        self.index = index


class _Question(msgspec.Struct):
    templates: Sequence[str]
    variables: Mapping[str, str]


class _Answer(msgspec.Struct):
    texts: list[str]
    error: str = ""  # of the template after those


def fill(templates: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """The text that each template renders to with ``variables``.

    TemplateProblem if one is wrong or exceeds a bound, or jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise TemplateProblem("jinja2, which fills templates, is not installed", 0)
    with tempfile.TemporaryFile() as output:
        # -I: import nothing from the current folder, which may be that of the definitions
        child = subprocess.run(
            [sys.executable, "-I", "-m", __name__],
            input=msgspec.json.encode(_Question(templates, variables)),
            stdout=output,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        output.seek(0)
        said = output.read()
    if child.returncode == -signal.SIGXCPU:
        raise TemplateProblem(_TOO_SLOW, None)
    if child.returncode:
        raise TemplateProblem(f"the process that fills them ended ({child.returncode})", None)
    answer = msgspec.json.decode(said, type=_Answer)
    if answer.error:
        raise TemplateProblem(answer.error, len(answer.texts))
    return answer.texts


def _main() -> None:
    """The child: a `_Question` on standard input, the `_Answer` on standard output."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=_Question)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (TEMPLATE_CPU, TEMPLATE_CPU + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * TEMPLATE_OUTPUT, 8 * TEMPLATE_OUTPUT))
    resource.setrlimit(resource.RLIMIT_AS, (TEMPLATE_MEMORY, TEMPLATE_MEMORY))
    sys.stdout.buffer.write(msgspec.json.encode(_answer(question)))


def _answer(question: _Question) -> _Answer:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    answer = _Answer([])
    left = TEMPLATE_OUTPUT
    for template in question.templates:
        pieces = []
        try:
            for piece in environment.from_string(template).generate(question.variables):
                left -= len(piece.encode())
                if left < 0:
                    return msgspec.structs.replace(answer, error=_TOO_LONG)
                pieces.append(piece)
        except MemoryError:
            return msgspec.structs.replace(answer, error=_TOO_MUCH)
        except jinja2.TemplateError as error:
            return msgspec.structs.replace(answer, error=str(error)[:1000])
        except Exception as error:  # noqa: BLE001  any expression may raise anything
            text = f"{type(error).__name__}: {error}"[:1000]
            return msgspec.structs.replace(answer, error=text)
        answer.texts.append("".join(pieces))
    return answer


if __name__ == "__main__":
    _main()
