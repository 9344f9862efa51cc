"""The power between two readings of the counters, during a warm-up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from joulewatch_harness.records import Edge, EdgeCounter, SensorRecord
from joulewatch_harness.runner.power import PowerMeter


def sensor(device: str, refresh_s: float | None, scope: str = "device", method: str = "counter") -> SensorRecord:
    return SensorRecord(
        exporter="a:1",
        scope=scope,
        collector="rapl" if refresh_s is not None else "x",
        component="cpu",
        device=device,
        domain="package",
        method=method,
        refresh_s=refresh_s,
    )


@dataclass
class Readings:
    """Device -> joules, for each reading; the readings are a second apart and take ``seconds``."""

    joules: list[dict[str, float]]
    seconds: float = 0.001
    fetched: int = 0

    def fetch(self) -> Readings:
        self.fetched += 1
        return self

    def parse(self) -> Edge:
        at_s = float(self.fetched)
        counters = tuple(
            EdgeCounter(
                exporter="a:1",
                scope="device",
                collector="rapl",
                component="cpu",
                device=device,
                domain="package",
                energy_joules=joules,
                read_at_s=at_s,
            )
            for device, joules in self.joules[self.fetched - 1].items()
        )
        return Edge(requested_at_s=at_s - self.seconds, answered_at_s=at_s, counters=counters)


def meter(readings: Readings, *sensors: SensorRecord) -> PowerMeter:
    return PowerMeter(readings, sensors, span_s=1.0, largest_refresh_s=0.01)


TWO = (sensor("s0", 0.001), sensor("s1", 0.01))


def test_the_power_is_the_sum_over_the_fast_devices() -> None:
    readings = Readings([{"s0": 0.0, "s1": 5.0, "slow": 0.0}, {"s0": 10.0, "s1": 25.0, "slow": 99.0}])
    power = meter(readings, *TWO, sensor("slow", 0.011))
    assert power.read() is None
    assert power.read() == pytest.approx(30.0)


@pytest.mark.parametrize(
    "unused",
    [
        sensor("s0", 0.02),
        sensor("s0", None),
        sensor("s0", 0.001, "node"),
        *(sensor("s0", 0.001, method=method) for method in ("integrated", "estimated", "emulated")),
    ],
)
def test_without_a_fast_device_nothing_is_read(unused: SensorRecord) -> None:
    readings = Readings([])
    assert meter(readings, unused).read() is None
    assert readings.fetched == 0


@pytest.mark.parametrize(
    "lost",
    [{"s0": 10.0}, {}, {"s0": 10.0, "s1": 4.0}],
    ids=["one is missing", "all are missing", "one was reset"],
)
def test_after_a_lost_counter_nothing_more_is_read(lost: dict[str, float]) -> None:
    readings = Readings([{"s0": 0.0, "s1": 5.0}, lost])
    power = meter(readings, *TWO)
    assert [power.read() for _ in range(4)] == [None] * 4
    assert readings.fetched == 2


def test_a_reading_that_takes_long_is_the_last() -> None:
    """It would interrupt the load for a tenth of the time."""
    both = {"s0": 0.0, "s1": 5.0}
    assert [meter(Readings([both] * 2, seconds=0.11), *TWO).read()] == [None]
    slow = Readings([both] * 3, seconds=0.11)
    power = meter(slow, *TWO)
    assert [power.read() for _ in range(3)] == [None] * 3 and slow.fetched == 1
    quick = Readings([both] * 3, seconds=0.09)
    power = meter(quick, *TWO)
    assert [power.read() for _ in range(3)] == [None, 0.0, 0.0]
