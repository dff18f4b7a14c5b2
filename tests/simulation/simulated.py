"""What a seed makes of a fabric."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fabric.scheduling.model import Limits


@dataclass(frozen=True)
class Scenario:
    """What a seed makes of a fabric.  Probabilities for each message, rates per second."""

    seed: int
    steps: int
    workers: int
    slots: int
    initiators: int
    drop: float
    repeat: float
    delay: float  # longest
    crashes: float  # of workers
    restarts: float  # of the broker
    cuts: float
    departures: float  # of initiators
    outages: float  # of the store
    bad_steps: float  # share of steps whose build fails
    poison: float  # share of steps that take their worker down
    sick: int  # workers that are unable to do anything
    lease: float
    keep_going: bool
    trouble: float  # seconds until peace

    @classmethod
    def of(cls, seed: int) -> Scenario:
        rng = random.Random(f"scenario {seed}")
        wild = rng.random() < 0.7

        def some(most: float) -> float:
            return rng.choice((0.0, most / 4, most)) if wild else 0.0

        return cls(
            seed=seed,
            steps=rng.randint(1, 24),
            workers=rng.randint(1, 4),
            slots=rng.randint(1, 3),
            initiators=rng.randint(1, 3),
            drop=rng.choice((0.0, 0.05, 0.3)),
            repeat=rng.choice((0.0, 0.2)),
            delay=rng.choice((0.001, 0.1, 2.0)),
            crashes=some(0.1),
            restarts=some(0.1),
            cuts=some(0.15),
            departures=rng.choice((0.0, 0.05, 0.4)),
            outages=some(0.1),
            bad_steps=rng.choice((0.0, 0.0, 0.1)),
            poison=rng.choice((0.0, 0.0, 0.0, 0.1)),
            sick=rng.choice((0, 0, 0, 1)),
            lease=rng.choice((4.0, 10.0)),
            keep_going=rng.random() < 0.4,
            trouble=rng.choice((5.0, 20.0, 40.0)),
        )

    @property
    def limits(self) -> Limits:
        lease = self.lease
        return Limits(lease=lease, stale=lease / 3, patience=1.5 * lease, grace=2 * lease)

    @property
    def gentle(self) -> bool:
        """Nothing happens by which a worker or a broker could be thought lost."""
        patient = self.lease > 5.0 or (self.drop < 0.1 and self.delay < 1.0)
        return patient and not (self.crashes or self.restarts or self.cuts or self.poison)
