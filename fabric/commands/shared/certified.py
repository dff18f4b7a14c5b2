"""Makes a certificate of builds and rebuilds that are over, and reports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from fabric.building.certificate import Build, Certificate, CertifiedStep, compared
from fabric.building.conditions import NAMES
from fabric.client.project import Project
from fabric.client.render import Screen, table
from fabric.client.request import RequestMirror
from fabric.commands.shared.byte_differences import byte_differences
from fabric.commands.shared.rebuilt import SHOWN, differing, file_lines
from fabric.definitions.graph import Step
from fabric.errors import BuildFailed, StoreError, command, first_of
from fabric.plan import Plan, rebuild_key
from fabric.trove.artifacts.store import Store

#: Steps whose differences are shown, files of each that are looked into, and names in a message.
_STEPS = 10
_FILES = 5
_NAMES = 10


def certificate_of(
    store: Store, plan: Plan, ids: Sequence[str], request: RequestMirror
) -> Certificate:
    """The certificate of the steps ``ids``, which a request has built once more."""
    all_built = {one.id for one in plan.steps if one.kind != "stratum"}
    steps = {plan.keys[id]: plan.graph[id] for id in ids}  # equal steps are built once
    root = plan.graph.root
    return Certificate(
        system=plan.graph.system,
        arch=plan.graph.arch,
        morph=plan.graph.path,
        key=plan.keys[root.id] if root.id in ids else "",
        whole=root.id in ids and all_built <= set(ids),
        steps=tuple(_certify(store, step, key, request) for key, step in steps.items()),
    )


def report_certificate(
    screen: Screen, project: Project, certificate: Certificate, *, contents: bool
) -> None:
    """Report a certificate, with ``contents`` also what differs in files.

    BuildFailed if a step differs without a reason, or is not compared.
    """
    screen.event("certified", certificate=msgspec.json.decode(certificate.json()))
    heads = [("STEP", "KIND", "RESULT", "")]
    rows = [(one.name, one.kind, _RESULTS[one.verdict], _note(one)) for one in certificate.steps]
    screen.say("\n".join(table([*heads, *rows])))
    differ = [one for one in certificate.steps if one.differing]
    for one in differ[:_STEPS] if contents else ():
        for line in _difference(project, one):
            screen.say(line)
    for line in _conditions(certificate):
        screen.say(line)
    if project.settings.controller:  # else all workers have this machine's kernel and processor
        built = [one for one in certificate.steps if one.first.builder and one.again.builder]
        if others := sum(one.first.builder != one.again.builder for one in built):
            screen.say(f"another worker: {others} of {len(built)} steps")
    counts = Counter(_RESULTS[one.verdict] for one in certificate.steps)
    shown = ", ".join(f"{counts[name]} {name}" for name in _RESULTS.values() if counts[name])
    count = len(certificate.steps)
    what = certificate.system
    if not certificate.whole:
        what = f"{count} step{'s' * (count != 1)} of {what}"
    if certificate.failed:
        names = first_of([one.name for one in certificate.failed], _NAMES)
        hint = ""
        if counts["differs"]:
            hint = (
                "\n  if a chunk cannot be reproducible, say why in its morph:"
                " `not-reproducible: REASON`"
            )
        raise BuildFailed(f"{what}: not certified, because of {names}: {shown}{hint}")
    screen.say(f"{what}: certified: {shown}", "bold green")


_RESULTS = {
    "identical": "identical",
    "known": "known to differ",
    "differs": "differs",
    "not-compared": "not compared",
}


def _certify(store: Store, step: Step, key: str, request: RequestMirror) -> CertifiedStep:
    again = rebuild_key(key, request.request)

    def uncompared(why: str) -> CertifiedStep:
        return CertifiedStep(
            step.kind, step.name, "not-compared", Build(key), Build(again), reason=why
        )

    for one, what in ((key, "it is"), (again, "its rebuild is")):
        state = request.steps.get(one)
        if state is not None and state.state not in ("done", "cached"):
            return uncompared(f"{what} not built: {state.message or 'another step failed'}")
    try:
        with store.reserve([key, again]):
            first, second = store.manifests([key, again])
            if first is None or second is None:
                return uncompared(
                    f"{store.shown} lacks its {'rebuild' if first else 'build'}; of a farm, set"
                    " `artifacts` to the farm's store"
                )
            files = differing(store, first, second)
            return compared(first, second, files, step.not_reproducible)
    except StoreError as error:
        return uncompared(str(error))


def _note(step: CertifiedStep) -> str:
    files = f"{step.differing} file{'s' * (step.differing != 1)}"
    if step.verdict == "differs":
        return files
    if step.verdict == "known":
        return f"{files}: {step.reason}"
    if step.expected:
        return f"the morph's `not-reproducible` may go: {step.expected}"
    return step.reason.partition("\n")[0]


def _difference(project: Project, step: CertifiedStep) -> Iterator[str]:
    """Lines about a step that differs."""
    yield f"{step.name}:"
    for line in file_lines(step.files, step.differing):
        yield f"  {line}"
    store, folder = project.store, project.settings.cache_dir / "tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with store.reserve([step.first.key, step.again.key]):
            first, again = store.manifests([step.first.key, step.again.key])
            if first is not None and again is not None:
                for line in byte_differences(store, first, again, step.files[:_FILES], folder):
                    yield f"  {line}"
    except (StoreError, OSError) as error:
        yield f"  the contents cannot be shown: {error}"
    yield f"  compare  {command('diff', step.first.key[:SHOWN], step.again.key[:SHOWN])}"


def _conditions(certificate: Certificate) -> Iterator[str]:
    """Lines about the conditions that were others than those of the first build."""
    ran = [step.perturbed for step in certificate.steps if step.perturbed]
    if not ran:
        yield "conditions: no command ran under others than usual"
        return
    counts = Counter(name for names in ran for name in names)
    by_count: dict[int, list[str]] = {}
    for name in NAMES:
        by_count.setdefault(counts[name], []).append(name)
    for count in sorted(by_count, reverse=True):
        names = ", ".join(by_count[count])
        if count == 0:
            yield f"usual conditions: {names}"
        else:
            where = "" if count == len(ran) else f" in {count} of {len(ran)} steps"
            yield f"other conditions{where}: {names}"
