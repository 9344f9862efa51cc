"""Refresh periods of sensors: published or assumed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from joulewatch_harness.analysis.sources.history import refresh_s_of
from joulewatch_harness.plan.refresh import has_refresh, slowest_refresh_s
from joulewatch_harness.records import SensorRecord


def sensor(scope: str, refresh_s: float | None, collector: str = "c", method: str = "counter") -> SensorRecord:
    return SensorRecord(
        exporter="a:1",
        scope=scope,
        collector=collector,
        component="cpu",
        device="d",
        domain="x",
        method=method,
        refresh_s=refresh_s,
    )


def test_the_slowest_device_sets_the_window_and_a_node_only_where_there_is_no_device() -> None:
    assert slowest_refresh_s([sensor("device", 0.001), sensor("device", 0.1), sensor("node", 1.0)]) == 0.1
    assert slowest_refresh_s([sensor("node", 1.0), sensor("part", 5.0)]) == 1.0
    assert slowest_refresh_s([sensor("part", 5.0)]) is None


@pytest.mark.parametrize(
    ("unknown", "refresh_s"),
    [
        (sensor("device", None), 0.1),
        (sensor("device", None, "rapl"), 0.001),
        (sensor("device", None, "hwmon", "integrated"), 5.0),
        (sensor("node", None, "redfish", "integrated"), 5.0),
        (sensor("device", None, method="emulated"), 0.1),
        (replace(sensor("device", None), reads="energy", read_mode="on_request"), 0.1),
        (replace(sensor("device", None), reads="power"), 5.0),
        (replace(sensor("device", None), read_mode="polled"), 5.0),
        (replace(sensor("device", None), read_mode="remote"), 5.0),
        (sensor("device", None, method="unknown"), 5.0),
    ],
)
def test_an_unknown_refresh_is_the_one_that_the_analysis_assumes(unknown: SensorRecord, refresh_s: float) -> None:
    assert slowest_refresh_s([unknown]) == refresh_s_of(unknown) == refresh_s


def test_an_unknown_refresh_counts_next_to_known_ones() -> None:
    assert slowest_refresh_s([sensor("device", 0.001), sensor("device", None, "hwmon", "integrated")]) == 5.0


def test_a_power_model_has_no_refresh_period() -> None:
    model = sensor("device", None, "estimate", "estimated")
    assert not has_refresh(model) and has_refresh(sensor("device", 0.5, "other", "estimated"))
    assert slowest_refresh_s([model]) is None
    assert refresh_s_of(model) == 0.1, "the kernel counts processor time in steps"
    assert slowest_refresh_s([model, sensor("device", 0.1)]) == 0.1
