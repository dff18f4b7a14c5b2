"""The least that a worker in Python has to do for the steps of `null_steps`, for comparison.

    python bench/null_least.py ROOT

runs the steps that are in ``ROOT/steps.json``, (name, names of what it needs, command), each as
soon as all it needs is stored.  Two sandboxes at a time; while one runs, what came of the one
before is archived and stored with its log, as durable as ours.  There is nobody to tell anything
to: no definitions, keys, broker, messages, or logs that are followed, no split rules, no limits or
cancelling, no source, no layers to look through, and one process.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path
from queue import SimpleQueue

from fabric.building.archive import pack
from fabric.building.log import Log
from fabric.building.tree import scan
from fabric.jobs import Artifact, Manifest
from fabric.trove.artifacts.store import Store

SLOTS = 2


def main(root: Path) -> None:
    steps = json.loads((root / "steps.json").read_text())
    store = Store(str(root / "artifacts"), root / "scratch")
    (root / "logs").mkdir()
    commands = {name: command for name, _, command in steps}
    missing = Counter({name: len(needs) for name, needs, _ in steps})
    waiters = defaultdict(list)
    for name, needs, _ in steps:
        for need in needs:
            waiters[need].append(name)
    ready: SimpleQueue[str] = SimpleQueue()
    stored: SimpleQueue[str] = SimpleQueue()
    slots = threading.Semaphore(SLOTS)

    def work() -> None:
        while True:
            with slots:
                name = ready.get()
                log = Log(root / "logs" / name)
                run(commands[name], log)
            keep(store, root, name, log)
            stored.put(name)

    for _ in range(2 * SLOTS):
        threading.Thread(target=work, daemon=True).start()
    for name, needs, _ in steps:
        if not needs:
            ready.put(name)
    for _ in steps:
        for waiter in waiters[stored.get()]:
            missing[waiter] -= 1
            if not missing[waiter]:
                ready.put(waiter)


def run(command: list[str], log: Log) -> None:
    output, printed = os.pipe2(os.O_CLOEXEC)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed)
    os.close(printed)
    while log.take(output, 1 << 20):  # to its end
        pass
    os.close(output)
    assert process.wait() == 0, log.read(0, 1000)


def keep(store: Store, root: Path, name: str, log: Log) -> None:
    inst = root / f"{name}.inst"
    packed = pack(scan(inst).values(), root / "unused")
    log.seal()
    manifest = Manifest(
        key=hashlib.sha256(name.encode()).hexdigest(),
        kind="chunk",
        name=name,
        arch="any",
        artifacts=(Artifact(f"{name}-misc", packed.blob),),
        log=log.blob(),
    )
    store.put(manifest, {packed.blob.sha256: packed.content})
    log.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
