"""Build systems on a farm with faults, and check that the faults have no effect.

Runs in namespaces of its own: ``make chaos FAULTS=N SEED=S`` makes them.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import verdict
from farm import Farm, program
from faults import Faults
from hosts import DISK
from people import Regular, Roamer, User, logs

from fabric.jobs import Manifest


def undisturbed(farm: Farm, where: Path) -> dict[str, Manifest]:
    """The artifacts that a single machine builds from the same definitions."""
    user = farm.users[0]
    config = user.write(
        "etc/alone.toml",
        f'cache = "{DISK}/alone"\n[aliases]\nupstream = "file://{DISK}/sources/%s"\n',
    )
    environment = user.environment({"FABRIC_CONFIG": str(config)})
    for system in ("small", "wide"):
        command = [*program("initiator"), "build", f"{DISK}/definitions/systems/{system}.morph"]
        with (where / "alone.log").open("ab") as log:
            subprocess.run(
                user.inside(command, DISK / "alone-logs"),
                check=True, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
    return verdict.manifests(user.disk / "alone/artifacts")


def disturb(
    faults: Faults,
    users: Sequence[User],
    regular: Regular,
    again: Callable[[], Sequence[User]],
    *,
    count: int,
    pace: float,
    patience: float,
) -> float:
    """Cause ``count`` faults, one in ``pace`` seconds on average, while the users build and the
    regular user submits. Returns the seconds that it took. If everything is built before the last
    fault, the users that ``again`` returns build once more.

    SystemExit as soon as a command fails by itself, or if the builds do not end.
    """
    began = time.monotonic()
    everybody = (*users, regular)
    waiting = list(users)
    due = began + 1
    while waiting or faults.undone or not regular.over():
        now = time.monotonic()
        if any(user.wrong for user in everybody) or now - began > patience:
            seconds = now - began
            for user in everybody:
                print(f"after {seconds:.0f} s: {user.name} is at {user.typed}", *user.wrong)
            sys.exit(1)
        if waiting and faults.count.total() < count and now > due:
            faults.one()
            due = now + faults.random.uniform(0.1, 1.9) * pace
        faults.mend(now)
        waiting = [user for user in waiting if not user.over()]
        if not waiting and faults.count.total() < count:
            waiting = list(again())
        regular.content = not waiting and not faults.undone
        regular.over()
        time.sleep(0.05)
    return time.monotonic() - began


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--faults", type=int, default=60)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--workers", type=int, default=3)
    options.add_argument("--pace", type=float, default=0.5, help="seconds between two faults")
    options.add_argument("--example", type=Path, help="a folder of `example.prepare`")
    options.add_argument("--system", help="the example system")
    options.add_argument("--part", action="append", default=[], help="of it, to be built")
    options.add_argument("--patience", type=float, default=300, help="seconds for all of it")
    options.add_argument("logs", type=Path)
    given = options.parse_args()
    farm = Farm(given.logs, given.workers, given.example)
    synthetic = undisturbed(farm, given.logs)
    alone = dict(synthetic)
    alice, bob, *others = farm.users
    users = [User(farm, alice, "wide"), Roamer(farm, bob, "small", elsewhere=alice)]
    for carol in others:
        users.append(User(farm, carol, given.system, given.part))
        alone |= verdict.manifests(given.example / "undisturbed")
    regular = Regular(farm, bob, "small")

    def again() -> Sequence[User]:
        """Alice and Bob build again, since the store lost theirs; Carol's build takes too long."""
        for key in synthetic:
            (farm.artifacts / "manifests" / key).unlink(missing_ok=True)
        for user in users[:2]:
            user.again()
        return users[:2]

    faults = Faults(farm, [*users, regular], random.Random(given.seed))
    took = disturb(
        faults, users, regular, again, count=given.faults, pace=given.pace, patience=given.patience
    )
    for user in users:
        user.look_back()
    forgotten = [f"of what was accepted {what}" for what in regular.forgotten()]
    deaf = [f"{name} did not end when told to" for name in farm.supervisor.stop()]
    broken = [
        *(text for user in (*users, regular) for text in user.wrong),
        *forgotten,
        *verdict.wrong_artifacts(farm.artifacts, alone),
        # synthetic logs are those of an undisturbed build; the order of real output varies
        *verdict.wrong_logs(users[:2], alone),
        *verdict.wrong_logs(users[2:], verdict.manifests(farm.artifacts)),
        *deaf,
        *(f"{kind}: it never happened" for kind in faults.missing()),
        *(f"{one.name} did not end {one.deaf} times" for one in farm.supervisor.services.values()
          if one.deaf),
        *(f"{one.name} ended with {one.ends}" for one in farm.supervisor.services.values()
          if one.ends),
        *(f"left: {what}" for what in verdict.left_processes(farm)),
        *(f"left: {what}" for what in verdict.left_mounts(farm)),
        *(f"left: {what}" for what in verdict.left_files(farm)),
    ]  # fmt: skip
    for text in broken:
        print("WRONG:", text)
    counted = ", ".join(f"{number} {kind}" for kind, number in sorted(faults.count.items()))
    print(f"seed {given.seed}: {faults.count.total()} faults in {took:.0f} s: {counted}")
    commands = ", ".join(f"{user.name} {user.commands}" for user in (*users, regular))
    restarts = sum(one.starts - 1 for one in farm.supervisor.services.values())
    print(
        f"{restarts} programs started again; commands typed: {commands};"
        f" {len(regular.accepted)} detached orders kept"
    )
    print(
        f"{len(alone)} steps and {sum(len(logs(user)) for user in users)} logs compared with an"
        f" undisturbed run; {len(broken)} things wrong"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
