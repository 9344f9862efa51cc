"""The stated bound of a share contains the true energy: random mixes through the ledger on a simulated clock.

The watts per core of the workloads of a mix differ by a factor of up to two. Their true energy is known; the ledger has
counters of the kernel's kind, read as the exporter reads them: each a little later than the one before it, and all
after the device, whose counter moves once per millisecond.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from joulewatch_exporter.attribution.ledger import DeviceEnergy, DeviceKey, Ledger
from joulewatch_exporter.attribution.model import ROOT, Usage, UsageScan, Workload
from joulewatch_exporter.attribution.places import Places
from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.model import Quantity
from joulewatch_harness.analysis.energy.shares import share_bounds

MIXES = 1000
SPAN_S = 20
SLOT_S = 0.25
"""Each workload uses a constant part of the processors for this long; also the life of a container."""
READ_S = 0.0001
RAPL_JOULES = 2.0**-16
CPU: DeviceKey = ("rapl", Quantity(scope="device", component="cpu", device="socket0", domain="package"))


@dataclass
class Line:
    """A counter of processor time: constant use within each slot."""

    cores: Sequence[float]
    _sums: Sequence[float] = field(init=False)

    def __post_init__(self) -> None:
        self._sums = [0.0, *accumulate(cores * SLOT_S for cores in self.cores)]

    def seconds(self, at_s: float) -> float:
        slot = min(int(at_s / SLOT_S), len(self.cores) - 1)
        return self._sums[slot] + self.cores[slot] * (at_s - slot * SLOT_S)


@dataclass
class Mix:
    """Workloads on a machine, and processes in none of them."""

    uses: Mapping[str, Line]
    watts_per_core: Mapping[str, float]
    idle_watts: float
    containers: frozenset[str]
    """Slices in which a new container does everything in each slot."""

    @classmethod
    def draw(cls, random_: random.Random) -> Mix:
        slots = round((SPAN_S + 4) / SLOT_S)
        least = random_.uniform(2.0, 20.0)
        ratio = random_.uniform(1.0, 2.0)
        keys = [f"w{number}.slice" for number in range(random_.randint(2, 8))]
        uses = {}
        for key in (*keys, ROOT):
            level = random_.uniform(0.05, 4.0) if key else random_.uniform(0.0, 0.3)
            busy = random_.uniform(0.1, 1.0)
            steady = random_.random() < 0.5
            uses[key] = Line([level * (busy if steady else random_.random() < busy) for _ in range(slots)])
        return cls(
            uses,
            {key: random_.choice((least, ratio * least, random_.uniform(1.0, ratio) * least)) for key in uses},
            random_.uniform(0.0, 100.0),
            frozenset(key for key in keys if random_.random() < 0.4),
        )

    def joules(self, key: str, at_s: float) -> float:
        return self.watts_per_core[key] * self.uses[key].seconds(at_s)

    def device(self, at_s: float) -> DeviceEnergy:
        at_s = int(at_s * 1000) / 1000
        joules = self.idle_watts * at_s + sum(self.joules(key, at_s) for key in self.uses)
        return DeviceEnergy(CPU, int(joules / RAPL_JOULES) * RAPL_JOULES, round(at_s * NS_PER_S))

    def usages(self, at_s: float) -> list[Usage]:
        """Return what the kernel shows, children before their parents."""
        found = []
        for key in self.containers:
            slot = int(at_s / SLOT_S)
            child = self.uses[key].seconds(at_s) - self.uses[key].seconds(slot * SLOT_S)
            found.append(Usage(f"{key}/docker-{slot}.scope", child, round(at_s * NS_PER_S)))
            at_s += READ_S
        for key in (key for key in self.uses if key):
            found.append(Usage(key, self.uses[key].seconds(at_s), round(at_s * NS_PER_S)))
            at_s += READ_S
        total = sum(use.seconds(at_s) for use in self.uses.values())
        return [*found, Usage(ROOT, total, round(at_s * NS_PER_S))]


@dataclass
class Measured:
    """True and stated joules of the workloads of a mix, and all active energy."""

    true: Mapping[str, float]
    stated: Mapping[str, float]
    active_joules: float

    def is_inside(self, ratio: float) -> bool:
        """Return whether the truth of all workloads is inside the bound."""
        for key, joules in self.stated.items():
            low, high = share_bounds(joules / self.active_joules, ratio)
            if not low <= self.true[key] / self.active_joules <= high:
                return False
        return True


def measure(mix: Mix, random_: random.Random) -> Measured:
    """Run the ledger as the exporter does: a look each second, a survey every other one."""
    places = Places()
    ledger = Ledger(places, [("cgroups", ("cpu",))])
    first: tuple[float, dict[str, float], float] | None = None
    at_s = 0.0
    for tick in range(SPAN_S):
        now_s = tick + random_.uniform(0.0, 0.05)
        if tick % 2 == 0:
            for key in places.survey(round(now_s * NS_PER_S), {("cgroups", ""): mix.usages(now_s)}):
                places.give(round(now_s * NS_PER_S), key, Workload(kind="other", workload=key))
        energy = mix.device(now_s)
        usages = mix.usages(now_s + random_.uniform(0.0, 0.01))
        ledger.take_usage(
            {"cgroups": UsageScan(usages={"": usages}, weights={"": "cpu_time"})}, round((now_s + 0.02) * NS_PER_S)
        )
        ledger.take_energy([energy], {CPU: mix.idle_watts})
        at_s = energy.read_at_ns / NS_PER_S
        if tick == 4:
            first = at_s, _by_slice(ledger), _active(ledger)
    assert first is not None
    start_s, stated, active_joules = first
    last = _by_slice(ledger)
    keys = [key for key in mix.uses if key]
    return Measured(
        {key: mix.joules(key, at_s) - mix.joules(key, start_s) for key in keys if key in stated},
        {key: last[key] - stated[key] for key in keys if key in stated},
        _active(ledger) - active_joules,
    )


def _by_slice(ledger: Ledger) -> dict[str, float]:
    """Return the joules of each slice and the containers in it."""
    joules: dict[str, float] = {}
    for place, value in ledger.groups["cpu", ""].workloads.items():
        key = place.workload.workload.partition("/")[0]
        joules[key] = joules.get(key, 0.0) + value
    return joules


def _active(ledger: Ledger) -> float:
    group = ledger.groups["cpu", ""]
    return group.joules - group.unattributed["idle"]


def test_the_truth_is_inside_the_stated_bound() -> None:
    random_ = random.Random(16)
    measured = [measure(Mix.draw(random_), random_) for _ in range(MIXES)]
    assert sum(len(one.stated) for one in measured) > 3 * MIXES
    assert sum(one.is_inside(2.0) for one in measured) >= 0.99 * MIXES
    # A bound for workloads that differ less does not contain these.
    assert sum(one.is_inside(1.2) for one in measured) < 0.5 * MIXES
