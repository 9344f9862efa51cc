"""Which workloads have series: those that matter, to their end, and never more than the limit."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence

import pytest

from joulewatch_exporter.attribution.ledger import DeviceEnergy, Ledger
from joulewatch_exporter.attribution.model import UsageScan, Workload
from joulewatch_exporter.attribution.places import Places
from joulewatch_exporter.model import Quantity
from support.clock import NS_PER_S
from support.usage import Cgroups


class Bench:
    """Places and a tree, on a clock that a test sets."""

    def __init__(self, max_workloads: int = 100) -> None:
        self.now_ns = 1_000 * NS_PER_S
        self.tree = Cgroups(lambda: self.now_ns)
        self.places = Places(max_workloads=max_workloads, keep_gone_s=300.0)
        self.names: dict[str, Workload] = {}

    def survey(self, seconds: float = 2.0, holders: Sequence[str] = (), **used: float) -> list[str]:
        """Let time pass and nodes use seconds, then survey; return the nodes that got a place."""
        self.now_ns += round(seconds * NS_PER_S)
        for key, value in used.items():
            key = key.replace("__", "/")
            self.tree.make(key)
            self.tree.use(key, value)
        self.places.begin()
        wanted = self.places.survey(self.now_ns, {("scripted", ""): self.tree.usages(None)}, holders)
        return [key for key in wanted if self.places.give(self.now_ns, key, self.workload(key))]

    def workload(self, key: str) -> Workload:
        return self.names.get(key) or Workload(kind="unit", workload=key)

    def note(self, seconds: float = 0.0) -> None:
        self.now_ns += round(seconds * NS_PER_S)
        self.places.note(self.now_ns, self.tree.used.__contains__)

    @property
    def shown(self) -> list[str]:
        return sorted(place.workload.workload for place in self.places.places)


def test_the_minimum_is_a_share_of_30_seconds() -> None:
    bench = Bench()
    bench.survey(a=1.0, b=1.0, c=0.0)
    assert bench.survey(a=100.0, b=0.6, c=0.4) == ["a", "b"]
    assert bench.survey(c=0.05) == []
    assert bench.survey(c=0.1) == ["c"]


def test_what_was_used_long_ago_does_not_count() -> None:
    bench = Bench()
    bench.survey(a=0.0)
    for _ in range(100):
        assert bench.survey(10.0, a=0.02) == []


def test_daemons_of_an_idle_machine_get_no_place() -> None:
    """Each one has a large share of next to nothing."""
    bench = Bench()
    for _ in range(50):
        assert bench.survey(**{f"d{index}": 0.005 for index in range(20)}) == []
    assert bench.places.rest == 20


def test_a_slice_of_short_lived_containers_gets_a_place() -> None:
    bench = Bench()
    bench.survey(batch__c0=0.0, web__w=0.0)
    for index in range(20):
        given = bench.survey(1.0, **{f"batch__c{index}": 0.05, "web__w": 1.0})
        bench.tree.remove(f"batch/c{index}")
        if given == ["batch"]:
            break
    assert bench.shown == ["batch", "web/w"], "its only workload has a place, so web itself needs none"


def test_a_parent_of_workloads_with_places_gets_none() -> None:
    bench = Bench()
    bench.survey(system__a=0.0, system__b=0.0)
    bench.survey(system__a=5.0, system__b=5.0)
    assert bench.survey(system__a=5.0, system__b=5.0) == []
    assert bench.shown == ["system/a", "system/b"]


def test_the_most_important_ones_get_the_last_places() -> None:
    bench = Bench(max_workloads=2)
    bench.survey(a=0.0, b=0.0, c=0.0)
    assert bench.survey(a=1.0, b=3.0, c=2.0) == ["b", "c"]
    assert bench.places.rest == 1


def test_a_workload_that_has_ended_is_kept_for_a_while() -> None:
    bench = Bench(max_workloads=1)
    bench.survey(a=0.0)
    bench.survey(a=5.0)
    bench.tree.remove("a")
    bench.note()
    assert bench.places.gone == 1
    assert bench.survey(b=5.0) == []
    bench.note(200.0)
    assert bench.shown == ["a"]
    bench.note(100.0)
    assert bench.shown == []
    assert bench.survey(b=5.0) == ["b"]


def test_a_workload_that_comes_back_in_time_continues() -> None:
    bench = Bench()
    bench.survey(a=0.0)
    bench.survey(a=5.0)
    (place,) = bench.places.places
    bench.tree.remove("a")
    bench.note()
    bench.tree.make("a")
    bench.note(100.0)
    bench.note(1000.0)
    assert bench.places.places == (place,)
    assert place.gone_ns is None


def test_a_container_that_is_replaced_under_its_name_continues() -> None:
    """Two series cannot have the same labels."""
    bench = Bench()
    web = Workload(kind="container", workload="web")
    bench.names = {"docker/1": web, "docker/2": web}
    bench.survey(docker__1=0.0)
    bench.survey(docker__1=5.0)
    (place,) = bench.places.places
    bench.tree.remove("docker/1")
    bench.note()
    bench.survey(docker__2=5.0)
    bench.note()
    assert bench.places.places == (place,)
    assert place.keys == {"docker/2"} == set(bench.places.by_key)
    assert bench.places.gone == 0


def test_a_quiet_workload_makes_room_for_one_that_matters() -> None:
    bench = Bench(max_workloads=2)
    bench.survey(quiet=0.0, busy=0.0)
    bench.survey(quiet=5.0, busy=5.0)
    for _ in range(40):
        assert bench.survey(5.0, busy=5.0, new=0.01) == []
    for _ in range(40):
        bench.survey(5.0, busy=5.0, new=5.0)
    assert bench.shown == ["busy", "new"]
    assert [place.workload.workload for place in bench.places.ended] == ["quiet"]


def test_who_holds_a_gpu_gets_a_place_without_using_it() -> None:
    bench = Bench()
    bench.survey(pods__a=0.0, b=0.0)
    assert bench.survey(holders=["pods/a/container"]) == ["pods/a"], "its workload has the place"


def test_10000_workloads_in_an_hour_are_bounded() -> None:
    """Neither the number of series nor the memory grows."""
    bench = Bench()
    ledger = Ledger(bench.places, [("scripted", ("cpu",))])
    cpu = ("rapl", Quantity(scope="device", component="cpu", device="socket0", domain="package"))
    draw = random.Random(5)
    living: list[tuple[int, str]] = []
    sizes: list[int] = []
    started = 0
    for second in range(3600):
        while started < 10_000 * second // 3600:
            started += 1
            living.append((second + draw.randint(1, 20), f"batch/job{started}"))
            bench.tree.make(living[-1][1])
        for _, key in living:
            bench.tree.use(key, draw.random())
        for _, key in [one for one in living if one[0] <= second]:
            bench.tree.remove(key)
        living = [one for one in living if one[0] > second]
        if second % 2 == 0:
            bench.survey(0.0)
        bench.now_ns += NS_PER_S
        scan = UsageScan(usages={"": bench.tree.usages(bench.places.by_key)}, weights={"": "cpu_time"})
        ledger.take_usage({"scripted": scan}, bench.now_ns)
        ledger.take_energy([DeviceEnergy(cpu, 100.0 * second, bench.now_ns)], {})
        group = ledger.groups["cpu", ""]
        assert len(group.workloads) <= len(bench.places.places) <= 100
        if second % 600 == 599:
            sizes.append(len(pickle.dumps(ledger)))
    assert group.joules == pytest.approx(100.0 * 3599, rel=1e-9)
    assert max(sizes) < 1.2 * sizes[0]
    assert group.workloads[bench.places.by_key["batch"]] > 0.5 * group.joules, "most jobs never had a place"
