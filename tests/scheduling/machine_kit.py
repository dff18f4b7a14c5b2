"""Steps written as lines of text, and workers that do as they are told."""

from __future__ import annotations

import hashlib

import msgspec

from fabric.wire.messages import PROTOCOL, Desired, Outcome, Report, Running, StepSpec


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def specs_of(
    text: str, *, arch: str = "x86_64", needs: dict[str, tuple[str, ...]] | None = None
) -> tuple[StepSpec, ...]:
    """The steps that a text describes."""
    specs = []
    for line in text.split("\n"):
        name, _, depends = line.strip().partition(":")
        if name:
            specs.append(
                StepSpec(
                    key=key_of(name),
                    name=name,
                    kind="chunk",
                    arch=arch,
                    job=msgspec.Raw(msgspec.msgpack.encode(name)),
                    log=f"build-step-{name}-misc.log",
                    depends=tuple(map(key_of, depends.split())),
                    needs=(needs or {}).get(name, ()),
                )
            )
    return tuple(specs)


class Machine:
    """What a worker reports next."""

    def __init__(self, name: str, slots: int, arch: str, features: tuple[str, ...]) -> None:
        self.name = name
        self.slots = slots
        self.arch = arch
        self.features = features
        self.instance = f"{name}, first run"
        self.sequence = 0
        self.running: dict[tuple[str, int], str] = {}  # -> phase
        self.tokens: dict[tuple[str, int], int] = {}
        self.finished: dict[tuple[str, int], Outcome] = {}
        self.draining = False
        self.refusing = ""
        self.epoch = 0
        self.answered = 0

    def obey(self, desired: Desired) -> None:
        """Do what the broker wants, at once."""
        self.epoch, self.answered = desired.epoch, desired.sequence
        wanted = {(each.key, each.fence) for each in desired.keep}
        wanted |= {(each.key, each.fence) for each in desired.start}
        for attempt in desired.acked:
            self.finished.pop((attempt.key, attempt.fence), None)
        self.running = {id: phase for id, phase in self.running.items() if id in wanted}
        for assignment in desired.start:
            id = (assignment.key, assignment.fence)
            self.tokens[id] = assignment.token
            if id not in self.finished:
                self.running.setdefault(id, "")

    def report(self) -> Report:
        self.sequence += 1
        return Report(
            PROTOCOL,
            self.name,
            self.arch,
            self.slots,
            self.sequence,
            features=self.features,
            running=tuple(
                Running(*id, phase, token=self.tokens.get(id, 0))
                for id, phase in self.running.items()
            ),
            finished=tuple(
                msgspec.structs.replace(outcome, token=self.tokens.get(id, 0))
                for id, outcome in self.finished.items()
            ),
            draining=self.draining,
            refusing=self.refusing,
            instance=self.instance,
            epoch=self.epoch,
            answered=self.answered,
        )
