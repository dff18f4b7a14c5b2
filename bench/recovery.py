"""A worker is killed: how long until its job runs elsewhere?

A broker, two workers and a user's initiator as real programs, over loopback TCP with CURVE.  From
SIGKILL to the first command of the same job in the other worker's sandbox, beside the time after
which a silent worker is lost (`lease`), which is the least that it can take but for the last
second's heartbeat.

    python bench/recovery.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "network"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kit"))

from network_kit import Farm, Program, Workstation
from waiting import until

#: Seconds, as `Farm.broker` sets it.
LEASE = 4.0


def measure(farm: Farm, user: Workstation, workers: dict[str, Program], number: int) -> float:
    """Seconds of one round."""
    user.definitions.write(slow=f"echo round {number}\n{farm.held('slow')}")
    until(lambda: {one["state"] for one in user.ask("workers")} == {"idle"})
    request = user.detach()
    until(lambda: farm.holding("slow"))
    [name] = [one["name"] for one in user.ask("workers") if one["running"]]
    former = set(farm.holding("slow"))
    time.sleep(number * 0.37 % 1.0)  # anywhere between two heartbeats
    workers[name].signal(signal.SIGKILL)
    began = time.monotonic()
    while not set(farm.holding("slow")) - former:
        time.sleep(0.002)
    took = time.monotonic() - began
    user.run("cancel", request)
    workers[name].process.wait()
    workers[name] = farm.worker(name)
    return took


def main() -> None:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    top.add_argument("--rounds", type=int, default=5)
    rounds = top.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        farm = Farm(Path(name))
        try:
            farm.broker()
            workers = {name: farm.worker(name) for name in ("w1", "w2")}
            user = farm.workstation("user")
            times = sorted(measure(farm, user, workers, n) for n in range(rounds))
        finally:
            farm.close()
    print(f"{rounds} workers killed, lost when silent for {LEASE:.0f} s")
    for word, seconds in (("fastest", times[0]), ("slowest", times[-1])):
        print(f"  {word} {seconds:6.2f} s, {seconds / LEASE:.2f} of that")
    print(f"  beyond the limit: {times[-1] - LEASE:+.2f} s")


if __name__ == "__main__":
    main()
