"""What signatures cost: 200 null steps with them, beside the same without.

On one machine: the user's command with its own broker and two workers, which sign, and compare the
signatures of what they read.

On a farm: two farms of real programs, over loopback TCP with CURVE: a broker, two workers and a
user each.  In one of them, the workers sign their manifests, the broker countersigns them, and all
three compare the signatures of what they read.

In each round both build the same chunks, one after the other, in turns of who is first.  Printed
are medians: the time of the user's command, and the CPU of all programs, on a farm until the last
countersignature is written; and of both the median of the rounds' ratios.

    python bench/signing.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

for folder in ("network", "kit"):
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / folder))

from network_kit import Definitions, Farm, Program, Workstation  # noqa: E402
from null_steps import Cost, cost, names  # noqa: E402
from small_definitions import SYSTEM  # noqa: E402
from waiting import until  # noqa: E402

from fabric.trust.seal import is_envelope  # noqa: E402

MACHINES = ("controller", "w1", "w2", "user")
TICK = os.sysconf("SC_CLK_TCK")


def null_steps(number: int) -> dict[str, tuple[str, str]]:
    """The chunks of a round: name -> (dependencies, command)."""
    return {
        name: (", ".join(depends), f"echo {number} {name} > $DESTDIR/{name}")
        for name, depends in names()
    }


def check_signed(store: Path, signs: bool) -> None:
    manifests = list((store / "manifests").iterdir())
    if {is_envelope(one.read_bytes()) for one in manifests} != {signs}:
        sys.exit("manifests are signed that should not be, or the other way round")


class Machine:
    """A machine of a user without a controller."""

    def __init__(self, root: Path, signs: bool) -> None:
        root.mkdir()
        self._root = root
        self._definitions = Definitions(root / "definitions")
        keys = str(root / "trusted") if signs else ""
        self._environ = {
            **os.environ,
            "FABRIC_CACHE": str(root / "cache"),
            "FABRIC_CONFIG": os.devnull,
            "FABRIC_TRUSTED_KEYS": keys,
        }
        self._signs = signs

    def build(self, number: int) -> Cost:
        """Build the null steps of a round."""
        self._definitions.write(**null_steps(number))
        initiator = str(Path(sys.executable).with_name("fabric-initiator"))
        command = [initiator, "build", f"definitions/{SYSTEM}", "--workers", "2"]
        return cost(command, self._root, self._environ)

    def check(self) -> None:
        """Exit if it does not sign what it should, or signs though it should not."""
        check_signed(self._root / "cache/artifacts", self._signs)

    def close(self) -> None:
        pass


class Network:
    """A farm, and what it has built."""

    def __init__(self, root: Path, signs: bool) -> None:
        self.farm = Farm(root)
        if signs:
            self.farm.sign(*MACHINES)
        self._daemons: list[Program] = [self.farm.broker()]
        self._daemons += [self.farm.worker(name) for name in ("w1", "w2")]
        self._user: Workstation = self.farm.workstation("user")
        self._built = 0

    def build(self, number: int) -> Cost:
        """Build the null steps of a round."""
        commands = null_steps(number)
        self._user.definitions.write(**commands)
        used = self._cpu()
        began = time.perf_counter()
        done = self._user.build()
        wall = time.perf_counter() - began
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        if self.farm.signs:
            self._built += len(commands) + 2  # its stratum, and the system
            until(lambda: self._countersigned() == self._built, what="for countersignatures")
        return Cost(wall, self._cpu() - used)

    def check(self) -> None:
        """Exit if the farm does not sign and countersign all steps, or signs and should not."""
        check_signed(Path(self.farm.store_url), self.farm.signs)
        if self.farm.signs:
            demand = ("--countersigned-by", "controller")
            done = self._user.run("verify", f"../definitions/{SYSTEM}", *demand)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)

    def close(self) -> None:
        self.farm.close()

    def _countersigned(self) -> int:
        folder = Path(self.farm.store_url, "countersigned")
        return len(list(folder.iterdir())) if folder.exists() else 0

    def _cpu(self) -> float:
        """CPU seconds of the daemons, of their children, and of the user's commands."""
        total = 0
        for daemon in self._daemons:
            stat = Path(f"/proc/{daemon.process.pid}/stat").read_text()
            total += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
        ours = resource.getrusage(resource.RUSAGE_CHILDREN)
        return total / TICK + ours.ru_utime + ours.ru_stime


def compare(kind: type[Machine | Network], scratch: Path, rounds: int) -> None:
    """Build with and without signatures by turns, and print both."""
    sides: dict[bool, Machine | Network] = {}
    costs: dict[bool, list[Cost]] = {False: [], True: []}
    try:
        for signs in costs:
            sides[signs] = kind(scratch / str(signs), signs)
        for number in range(rounds + 1):
            for signs in (False, True) if number % 2 else (True, False):
                spent = sides[signs].build(number)
                if number:  # the first one imports the source
                    costs[signs].append(spent)
        for side in sides.values():
            side.check()
    finally:
        for side in sides.values():
            side.close()
    for field, what in enumerate(("wall", "CPU")):
        pairs = [(signed[field], bare[field]) for bare, signed in zip(*costs.values(), strict=True)]
        signed, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"  {what:4}  signed {signed:.2f} s, unsigned {bare:.2f} s: ratio {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    for what, kind in (("one machine", Machine), ("a farm", Network)):
        print(f"{len(names())} null steps on {what}, two workers, {rounds} rounds (aim 1.03)")
        with tempfile.TemporaryDirectory(prefix="signing-", dir="/var/tmp") as scratch:
            compare(kind, Path(scratch), rounds)


if __name__ == "__main__":
    main()
