"""Shares add up to the energy of the devices while workloads and devices come and go."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulewatch_exporter.attribution.ledger import MOST_CARRIED_S, DeviceEnergy, DeviceKey, Interval, Ledger, Owner
from joulewatch_exporter.attribution.model import ROOT, Reason, UsageScan, Workload
from joulewatch_exporter.attribution.places import Place, Places
from joulewatch_exporter.model import Component, Quantity
from joulewatch_exporter.sampling.counter import EnergyCounter
from support.clock import NS_PER_S
from support.usage import Cgroups

SOURCE = "scripted"


def device(name: str = "socket0", component: Component = "cpu") -> DeviceKey:
    return "rapl", Quantity(scope="device", component=component, device=name, domain="total")


CPU = device()


class Bench:
    """A ledger with one source, on a clock that a test sets."""

    def __init__(self, *, max_workloads: int = 100, components: tuple[Component, ...] = ("cpu", "memory")) -> None:
        self.now_ns = 1_000 * NS_PER_S
        self.tree = Cgroups(lambda: self.now_ns)
        self.places = Places(max_workloads=max_workloads)
        self.ledger = Ledger(self.places, [(SOURCE, components)])
        self.idle_watts: dict[DeviceKey, float] = {}
        self.joules: dict[DeviceKey, float] = {}
        self.holders: dict[str, list[str]] = {}
        self.gpus: dict[str, Cgroups] = {}

    def show(self, *keys: str) -> None:
        for key in keys:
            self.tree.make(key)
            assert self.places.give(self.now_ns, key, Workload(kind="unit", workload=key))

    def use(self, **seconds: float) -> None:
        for key, value in seconds.items():
            self.tree.use(key.replace("__", "/").replace("root", ""), value)

    def scan(self) -> UsageScan:
        keys = self.places.by_key
        usages = {"": self.tree.usages(keys), **{gpu: tree.usages(keys) for gpu, tree in self.gpus.items()}}
        return UsageScan(usages=usages, weights={"": "cpu_time"}, holders=self.holders)

    def look(
        self, seconds: float = 1.0, *, fails: bool = False, behind_s: float = 0.0, **joules: float
    ) -> dict[str, float]:
        """Let time pass and devices count, then look; return the shares of the processors by name or reason."""
        self.now_ns += round(seconds * NS_PER_S)
        read_at_ns = self.now_ns - round(behind_s * NS_PER_S)
        for name, value in joules.items():
            key = CPU if name == "cpu" else device(name, "gpu" if name.startswith("gpu") else "memory")
            self.joules[key] = self.joules.get(key, 0.0) + value
        self.ledger.take_usage({SOURCE: None if fails else self.scan()}, self.now_ns)
        energies = [DeviceEnergy(key, value, read_at_ns) for key, value in self.joules.items()]
        intervals = self.ledger.take_energy(energies, self.idle_watts)
        return shares(intervals)


def name(owner: Owner) -> str:
    return owner.workload.workload if isinstance(owner, Place) else owner


def shares(intervals: Iterable[Interval]) -> dict[str, float]:
    return {name(owner): joules for one in intervals for owner, joules in one.shares.items() if joules > 1e-9}


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.tree.make("a", "b", "system/x")
    bench.look(cpu=0.0)
    return bench


# -- who gets it --------------------------------------------------------------------------------


def test_energy_goes_to_those_that_used_the_processors(bench: Bench) -> None:
    bench.show("a", "b")
    bench.look(cpu=5.0)
    bench.use(a=0.6, b=0.2, root=0.2)
    assert bench.look(cpu=10.0) == pytest.approx({"a": 6.0, "b": 2.0, "system": 2.0})


def test_what_dead_children_used_goes_to_the_nearest_node_above_with_series(bench: Bench) -> None:
    bench.show("system")
    bench.look()
    bench.tree.make("system/short")
    bench.use(system__short=0.5, b=0.5)
    bench.tree.remove("system/short")
    assert bench.look(cpu=10.0) == pytest.approx({"system": 5.0, "rest": 5.0})


def test_a_parent_gets_what_its_shown_children_did_not_use(bench: Bench) -> None:
    bench.show("system", "system/x")
    bench.look()
    bench.use(system__x=0.3, system=0.1)
    assert bench.look(cpu=4.0) == pytest.approx({"system": 1.0, "system/x": 3.0})


def test_the_last_second_of_a_workload_that_ends_is_shared_up_to_its_last_read(bench: Bench) -> None:
    """Its counter was last read after the device, so a part of what it used falls into the next interval."""
    bench.show("a")
    bench.look(cpu=1.0)
    bench.use(a=0.5)
    bench.look(cpu=5.0, behind_s=0.4)  # 0.2 s of the usage came later
    bench.tree.remove("a")
    bench.use(b=0.2)
    bench.look(cpu=10.0)
    place = bench.ledger.groups["cpu", ""].workloads
    assert {name(owner): joules for owner, joules in place.items()} == pytest.approx({"a": 10.0})


def test_usage_is_taken_at_the_time_of_the_devices_read(bench: Bench) -> None:
    bench.show("a", "b")
    bench.look(cpu=1.0)
    bench.use(a=1.0)
    bench.look(cpu=10.0, behind_s=0.5)  # half of it lies before the read of the device
    bench.use(b=0.5)
    # 0.5 s of a before, then half of the 0.5 s of b
    assert bench.look(cpu=9.0, behind_s=0.5) == pytest.approx({"a": 6.0, "b": 3.0})


def test_a_device_that_is_read_rarely_is_shared_by_all_that_was_used_since(bench: Bench) -> None:
    bench.show("a", "b")
    bench.look(cpu=1.0)
    for _ in range(8):
        bench.use(a=0.1)
        bench.look()
    bench.tree.remove("a")
    bench.use(b=0.8)
    assert bench.look(cpu=10.0) == pytest.approx({"a": 5.0, "b": 5.0})


def test_children_read_before_their_parents_are_never_lost(bench: Bench) -> None:
    """The parent's counter moved between the two reads: that part is carried over."""
    bench.show("system", "system/x")
    bench.look(cpu=1.0)
    bench.use(system__x=1.0)
    late = bench.tree.used["system"] - 0.25
    bench.tree.used["system"] = bench.tree.used[ROOT] = late  # the parent was read before the child
    assert bench.look(cpu=10.0) == pytest.approx({"system/x": 10.0})
    bench.tree.used["system"] = bench.tree.used[ROOT] = late + 0.25
    bench.use(system=0.5)
    assert bench.look(cpu=10.0) == pytest.approx({"system": 10.0})
    totals = bench.ledger.meters[SOURCE, ""].totals
    assert {name(place): seconds for place, seconds in totals.items()} == pytest.approx(
        {"system/x": 1.0, "system": 0.5}
    )


def test_a_root_that_counts_less_than_its_children_does_not_hide_its_own_use_for_long(bench: Bench) -> None:
    bench.show("a")
    bench.look(cpu=1.0)
    for _ in range(30):
        bench.use(a=1.0)
        bench.tree.used[ROOT] -= 0.5
        assert bench.look(cpu=10.0) == pytest.approx({"a": 10.0})
    bench.use(a=1.0, root=MOST_CARRIED_S + 1.0)
    assert bench.look(cpu=10.0) == pytest.approx({"a": 5.0, "system": 5.0})


def test_a_workload_that_restarts_under_its_name_counts_on(bench: Bench) -> None:
    bench.show("a")
    bench.look(cpu=1.0)
    bench.use(a=5.0)
    bench.look(cpu=5.0)
    bench.tree.remove("a")
    bench.tree.make("a")
    bench.use(a=0.25, b=0.75)
    assert bench.look(cpu=8.0) == pytest.approx({"a": 2.0, "rest": 6.0})


# -- what has no owner ----------------------------------------------------------------------------


def test_idle_power_is_a_line_of_its_own(bench: Bench) -> None:
    bench.idle_watts[CPU] = 4.0
    bench.show("a")
    bench.look(cpu=1.0)
    bench.use(a=1.0)
    assert bench.look(cpu=10.0) == pytest.approx({"idle": 7.0, "a": 3.0})  # 3 J of idle energy were not counted before


def test_a_late_counter_does_not_turn_idle_into_active_energy(bench: Bench) -> None:
    bench.idle_watts[CPU] = 10.0
    bench.show("a")
    bench.look(cpu=10.0)
    bench.use(a=1.0)
    assert bench.look(cpu=4.0) == pytest.approx({"idle": 4.0})
    bench.use(a=1.0)
    assert bench.look(cpu=16.0) == pytest.approx({"idle": 16.0})


def test_energy_without_any_use_is_idle(bench: Bench) -> None:
    bench.show("a")
    bench.look(cpu=1.0)
    assert bench.look(cpu=10.0) == {"idle": 10.0}


def test_a_source_that_fails_leaves_a_gap_until_it_was_read_twice(bench: Bench) -> None:
    bench.show("a")
    bench.look(cpu=1.0)
    bench.use(a=1.0)
    assert bench.look(cpu=10.0, fails=True) == {"gap": 10.0}
    bench.use(a=1.0)
    assert bench.look(cpu=10.0) == {"gap": 10.0}
    bench.use(a=1.0)
    assert bench.look(cpu=10.0) == {"a": 10.0}
    assert list(bench.ledger.meters[SOURCE, ""].totals.values()) == [3.0]


def test_a_total_that_restarts_leaves_a_gap(bench: Bench) -> None:
    bench.show("a")
    bench.use(a=5.0)
    bench.look(cpu=1.0)
    bench.tree.used = {ROOT: 1.0, "a": 1.0}
    assert bench.look(cpu=10.0) == {"gap": 10.0}
    bench.use(a=1.0)
    assert bench.look(cpu=10.0) == {"a": 10.0}


def test_what_a_device_counted_before_the_first_look_is_a_gap() -> None:
    bench = Bench()
    assert bench.look(cpu=3.0) == {"gap": 3.0}


def test_a_component_without_a_source_has_no_owner(bench: Bench) -> None:
    bench.look(gpu0=0.0)
    assert bench.look(gpu0=5.0) == {"gap": 5.0}
    assert set(bench.ledger.groups) == {("cpu", ""), ("gpu", "gpu0")}


# -- devices that are not shared by processor time ------------------------------------------------


def test_a_gpu_is_shared_by_its_own_usage() -> None:
    bench = Bench(components=("cpu", "memory", "gpu"))
    bench.gpus = {"gpu0": Cgroups(lambda: bench.now_ns), "gpu1": Cgroups(lambda: bench.now_ns)}
    bench.show("a", "b")
    bench.gpus["gpu0"].make("a", "b")
    bench.look(gpu0=0.0, gpu1=0.0)
    bench.gpus["gpu0"].use("a", 0.2)
    bench.gpus["gpu0"].use("b", 0.6)
    bench.use(a=1.0)
    assert bench.look(gpu0=8.0) == pytest.approx({"a": 2.0, "b": 6.0})
    assert bench.look(gpu1=3.0) == {"idle": 3.0}


@pytest.mark.parametrize(
    ("holders", "expected"), [([], "idle"), (["a/child"], "a"), (["a", "b"], "gap"), (["other"], "rest")]
)
def test_a_device_of_which_only_the_holders_are_known(holders: list[str], expected: str) -> None:
    bench = Bench(components=("cpu", "memory", "gpu"))
    bench.show("a", "b")
    bench.holders = {"gpu0": holders}
    bench.look(gpu0=0.0)
    assert bench.look(gpu0=8.0) == {expected: 8.0}


# -- whatever happens -----------------------------------------------------------------------------

STEPS = 520
EXAMPLES = 200


class World:
    """A machine on which everything comes and goes at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.bench = Bench(max_workloads=self.random.randint(1, 12))
        self.bench.places._keep_gone_ns = 20 * NS_PER_S
        self.bench.tree.between_reads = self.churn
        self.raw = {device(f"d{index}", component): 0.0 for index, component in enumerate(("cpu", "cpu", "memory"))}
        self.counters = {key: EnergyCounter(wrap_joules=100.0, max_power_watts=1e5) for key in self.raw}
        self.plugged = set(self.raw)
        self.read_at_ns = dict.fromkeys(self.raw, 0)
        self.booked = dict.fromkeys(self.raw, 0.0)
        self.seen = dict.fromkeys(self.raw, 0.0)
        self.idle_watts = {key: self.random.choice((0.0, 0.5, 5.0)) for key in self.raw}

    def churn(self) -> None:
        """Let some nodes use processors, also between the reads of one scan."""
        tree = self.bench.tree
        self.bench.now_ns += self.random.randrange(200_000)
        for key in self.random.sample(list(tree.used), min(2, len(tree.used))):
            tree.use(key, self.random.random() * 1e-3)

    def step(self) -> list[Interval]:
        draw, bench = self.random.random, self.bench
        tree, places = bench.tree, bench.places
        if draw() < 0.3:
            parent = self.random.choice(list(tree.used))
            name = f"n{self.random.randrange(20)}"
            if parent.count("/") < 3:
                tree.make(f"{parent}/{name}" if parent else name)
        if draw() < 0.2 and len(tree.used) > 1:
            tree.remove(self.random.choice([key for key in tree.used if key]))
        for key in self.random.sample(list(tree.used), min(3, len(tree.used))):
            tree.use(key, draw() * self.random.choice((0.0, 1e-6, 0.1, 3.0)))
        if draw() < 0.3 and len(tree.used) > 1:
            key = self.random.choice([key for key in tree.used if key])
            places.give(bench.now_ns, key, Workload(kind="unit", workload=key))
        if draw() < 0.005:
            tree.used = dict.fromkeys(tree.used, 0.0)  # the machine's counters restart
        bench.now_ns += self.random.choice((1_000_000, 50_000_000, NS_PER_S, 15 * NS_PER_S))
        for key in self.raw:
            if draw() < 0.02:
                self.plugged ^= {key}
            if draw() < 0.01:  # the family is opened anew: its counter starts at 0
                self.counters[key] = EnergyCounter(wrap_joules=100.0, max_power_watts=1e5)
        read_at_ns = bench.now_ns - self.random.choice((0, 1_000, 10_000_000, 3 * NS_PER_S))
        energies = []
        for key in self.plugged:
            self.raw[key] += draw() * self.random.choice((0.0, 1e-4, 1.0, 90.0))
            counter = self.counters[key]
            if self.read_at_ns[key] < read_at_ns:
                self.read_at_ns[key] = read_at_ns
                counter.update(read_at_ns, self.raw[key] % 100.0)
                energies.append(DeviceEnergy(key, counter.total_joules, read_at_ns))
                seen = self.seen[key]
                total = counter.total_joules
                self.booked[key] += total - seen if total >= seen else total
                self.seen[key] = total
        scan = None if draw() < 0.05 else bench.scan()
        bench.ledger.take_usage({SOURCE: scan}, bench.now_ns)
        return bench.ledger.take_energy(energies, self.idle_watts)


@settings(max_examples=EXAMPLES)
@given(seed=st.integers(min_value=0, max_value=2**32))
def test_every_joule_is_counted_once(seed: int) -> None:
    """Over 10^5 intervals with churn, skew, restarts, wraps, gaps and devices that vanish: Σ shares = energy."""
    world = World(seed)
    before: dict[tuple[Component, Owner], float] = {}
    for _ in range(STEPS):
        for _, joules, owned in world.step():
            assert min(owned.values()) >= 0.0
            assert abs(math.fsum(owned.values()) - joules) <= 4 * math.ulp(joules)
        now: dict[tuple[Component, Owner], float] = {}
        for (component, _), group in world.bench.ledger.groups.items():
            reasons: dict[Reason, float] = group.unattributed
            for owner, total in (*reasons.items(), *group.workloads.items()):
                now[component, owner] = total
                assert total >= before.get((component, owner), 0.0)
        before = now
        assert len(world.bench.places.places) <= world.bench.places._max_workloads
    for component in ("cpu", "memory"):
        booked = math.fsum(joules for key, joules in world.booked.items() if key[1].component == component)
        group = world.bench.ledger.groups.get((component, ""))
        assert (group.joules if group else 0.0) == pytest.approx(booked, rel=1e-9, abs=1e-12)
