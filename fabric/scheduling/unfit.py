"""Why workers are not able to do a task: in whole sentences, for people."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from fabric.scheduling.model import Task, Worker
from fabric.wire.messages import ARCHITECTURE

#: At most this many dependencies, or workers, are told of one by one.
MANY = 8


def unfit(task: Task, workers: Collection[Worker]) -> list[str]:
    """Why each of some workers can never do a task."""
    told = [f"{worker.name}: {_unfit(worker, task)}" for worker in islice(workers, MANY)]
    if len(workers) > MANY:
        told.append(f"and {len(workers) - MANY} more workers")
    return told


def _unfit(worker: Worker, task: Task) -> str:
    others = sorted(one for one in worker.features if one.startswith(ARCHITECTURE))
    built = [worker.arch, *(one.removeprefix(ARCHITECTURE) for one in others)]
    if task.offer.arch not in built:
        return f"it builds {', '.join(built)}, not {task.offer.arch}"
    lacks = [need for need in task.offer.needs if need not in worker.features]
    return f"it lacks {', '.join(lacks)}"
