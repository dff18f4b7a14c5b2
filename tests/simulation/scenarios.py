"""What a seed makes of a farm."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fabric.bounds import MIB
from fabric.scheduling.model import Limits


@dataclass(frozen=True)
class Scenario:
    """What a seed makes of a farm.  Probabilities for each message, rates per second of trouble."""

    seed: int
    steps: int
    workers: int
    slots: int
    requests: int
    drop: float
    repeat: float
    delay: float  # longest
    crashes: float  # of workers
    parting: float  # share of builds after which the worker crashes
    stops: float  # of workers, politely: they drain first
    restarts: float  # of the broker
    full_disks: float  # of the broker
    cuts: float  # of one node, in one direction or both
    departures: float  # of initiators: for good, or to come back
    outages: float  # of the store
    slowness: float  # of the store
    damages: float  # of artifacts in the store
    cancels: float
    drains: float  # by an operator
    bad_steps: float  # share of steps whose build fails
    foreign: float  # share of steps that no worker is able to do
    special: float  # share of steps that only some workers are able to do
    poison: float  # share of steps that take their worker down
    bad_orders: float  # share of orders that cannot be resolved
    orders: float  # share of requests that are orders
    detached: float  # share of requests that go on when nobody watches
    sick: int  # workers that are unable to do anything
    liars: int  # workers that find whole artifacts damaged, and say done what is not
    shy: int  # workers that refuse much
    pauses: float  # of processes: stopped for a while, and continued
    lease: float
    long: bool  # faults may outlast leases, graces and what a lost worker is remembered for
    log_memory: int  # bytes of short logs that a broker keeps in memory
    log_disk: int  # bytes of logs that it keeps on its disk
    series: float  # probability that a broker that came back crashes again soon
    keep_going: bool
    trouble: float  # seconds until peace
    edits: float  # share of steps that a second version of the definitions changes
    fail_fast: bool
    watched: bool  # viewers ask the broker whatever they like, between any two events

    @classmethod
    def of(cls, seed: int) -> Scenario:
        rng = random.Random(f"scenario {seed}")
        wild = rng.random() < 0.8

        def some(most: float) -> float:
            return rng.choice((0.0, most / 4, most)) if wild else 0.0

        return cls(
            seed=seed,
            steps=rng.randint(1, 40),
            workers=rng.randint(1, 5),
            slots=rng.randint(1, 3),
            requests=rng.randint(1, 6),
            drop=rng.choice((0.0, 0.05, 0.3)),
            repeat=rng.choice((0.0, 0.2)),
            delay=rng.choice((0.001, 0.1, 2.0, 8.0)),
            crashes=some(0.1),
            stops=some(0.05),
            restarts=some(0.1),
            cuts=some(0.15),
            departures=rng.choice((0.0, 0.05, 0.3)),
            outages=some(0.1),
            slowness=some(0.2),
            damages=some(0.3),
            cancels=rng.choice((0.0, 0.0, 0.1)),
            drains=some(0.1),
            bad_steps=rng.choice((0.0, 0.0, 0.1, 0.3)),
            poison=rng.choice((0.0, 0.0, 0.0, 0.1)),
            foreign=rng.choice((0.0, 0.0, 0.0, 0.05)),
            special=rng.choice((0.0, 0.3)),
            parting=some(0.5),
            bad_orders=rng.choice((0.0, 0.2)),
            orders=rng.choice((0.0, 0.5, 1.0)),
            detached=rng.choice((0.0, 0.4)),
            sick=rng.choice((0, 0, 0, 1)),
            liars=rng.choice((0, 0, 1, 2)),
            shy=rng.choice((0, 0, 1)),
            lease=rng.choice((4.0, 10.0)),
            keep_going=rng.random() < 0.4,
            trouble=rng.choice((5.0, 20.0, 40.0)),
            full_disks=some(0.1),
            pauses=some(0.1),
            long=rng.random() < 0.5,
            series=rng.choice((0.0, 0.5)),
            log_memory=rng.choice((MIB, MIB, 500)),
            log_disk=rng.choice((MIB, MIB, 5000)),
            edits=rng.choice((0.0, 0.05, 0.3)),
            fail_fast=rng.random() < 0.3,
            watched=rng.random() < 0.1,
        )

    @property
    def limits(self) -> Limits:
        lease = self.lease
        return Limits(
            lease=lease,
            stale=lease / 3,
            patience=1.5 * lease,
            grace=2 * lease,
            cooldown=lease,
            absence=3 * lease if self.long else 600.0,
            kill=2 * lease,
            unserved=12 * lease,
        )

    @property
    def tardy(self) -> bool:
        """What one process sent may come long after it has ended, and another has its name."""
        return self.delay > self.limits.stale or self.pauses > 0

    @property
    def patient(self) -> bool:
        """Lost and late messages alone make nobody seem lost."""
        return self.lease > 5.0 or (self.drop < 0.1 and self.delay < 1.0)

    @property
    def gentle(self) -> bool:
        """Nothing happens by which a worker or a broker could be thought lost."""
        rough = (
            self.crashes, self.parting, self.stops, self.restarts, self.cuts, self.poison,
            self.pauses,
        )  # fmt: skip
        return self.patient and not any(rough)
