"""Refresh periods of sensors: published or assumed."""

from __future__ import annotations

from joulewatch_harness.plan.refresh import slowest_refresh_s
from joulewatch_harness.records import SensorRecord


def test_the_slowest_device_sets_the_window_and_a_node_only_where_there_is_no_device() -> None:
    def sensor(scope: str, refresh_s: float | None) -> SensorRecord:
        return SensorRecord(
            exporter="a:1",
            scope=scope,
            collector="c",
            component="cpu",
            device="d",
            domain="x",
            method="counter",
            refresh_s=refresh_s,
        )

    assert slowest_refresh_s([sensor("device", 0.001), sensor("device", 0.1), sensor("node", 1.0)]) == 0.1
    assert slowest_refresh_s([sensor("node", 1.0), sensor("part", 5.0)]) == 1.0
    assert slowest_refresh_s([sensor("device", None)]) is None
