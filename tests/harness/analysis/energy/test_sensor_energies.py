"""Every sensor of a history in one window, and their sum over devices."""

from __future__ import annotations

import numpy as np
import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.energy.sensor_energies import measure, total_of
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.sources.history import History, RawSeries, build_history

TIMES_S = np.arange(0.0, 12.5, 0.5)
WINDOW = Span(1.0, 11.0)


def quantity(name: str, values: np.ndarray, domain: str = "package") -> RawSeries:
    labels = {"instance": "a:1", "collector": "rapl", "component": "cpu", "device": "socket0", "domain": domain}
    return RawSeries(name=name, labels=labels, times_s=TIMES_S, values=values)


def history_of(*raws: RawSeries) -> History:
    return build_history("memory", raws)


COUNTER = quantity(catalog.DEVICE_ENERGY.name, 50.0 * TIMES_S)


@pytest.mark.parametrize(("missed_s", "reason"), [(0.0, ""), (0.09, ""), (0.11, "unmeasured_time")])
def test_a_counter_may_miss_one_percent_of_the_window(missed_s: float, reason: str) -> None:
    missed = quantity(catalog.SENSOR_UNMEASURED.name, np.where(TIMES_S > 5, missed_s, 0.0))
    (actual,) = measure(history_of(COUNTER, missed), WINDOW, [], "all")
    assert actual.reason == reason
    assert (actual.energy is None) == bool(reason)


def test_the_total_needs_every_device_and_adds_uncertainties_linearly() -> None:
    dram = quantity(catalog.DEVICE_ENERGY.name, 10.0 * TIMES_S, "dram")
    core = quantity(catalog.PART_ENERGY.name, 30.0 * TIMES_S, "core")
    rows = measure(history_of(COUNTER, dram, core), WINDOW, [], "all")
    assert [row.sensor.domain for row in rows] == ["dram", "package", "core"]
    total = total_of(rows)
    assert total is not None
    assert total.joules == pytest.approx(600.0)
    assert total.expanded_joules > 0
    assert total.expanded_joules == pytest.approx(sum(row.expanded_joules for row in rows[:2]))
    assert total.lower_joules <= 600.0 <= total.upper_joules
    missed = quantity(catalog.SENSOR_UNMEASURED.name, np.where(TIMES_S > 5, 1.0, 0.0))
    assert total_of(measure(history_of(COUNTER, dram, missed), WINDOW, [], "all")) is None
    assert total_of(measure(history_of(core), WINDOW, [], "all")) is None


def test_patterns_and_scope_select_sensors() -> None:
    core = quantity(catalog.PART_ENERGY.name, 30.0 * TIMES_S, "core")
    history = history_of(COUNTER, core)
    assert [row.sensor.domain for row in measure(history, WINDOW, ["*/core"], "all")] == ["core"]
    assert [row.sensor.domain for row in measure(history, WINDOW, [], "device")] == ["package"]
    assert measure(history, WINDOW, ["gpu*"], "all") == []


def test_a_sensor_with_power_only_is_integrated() -> None:
    gauge = quantity(catalog.DEVICE_POWER.name, np.full(TIMES_S.shape, 25.0))
    (actual,) = measure(history_of(gauge), WINDOW, [], "all")
    assert actual.joules is not None
    assert actual.joules.joules == pytest.approx(250.0)
