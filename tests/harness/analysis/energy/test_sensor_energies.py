"""Every sensor of a history in one window, and their sum over devices."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.energy.sensor_energies import measure, total_of
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.reports.energy_report import render_csv, render_json, render_table
from joulewatch_harness.analysis.sources.history import History, RawSeries, build_history
from joulewatch_harness.gum import NORMAL_95, student_factor

TIMES_S = np.arange(0.0, 12.5, 0.5)
WINDOW = Span(1.0, 11.0)
LABELS = {metric.name: metric.labels for metric in catalog.METRICS}


def quantity(name: str, values: np.ndarray, domain: str = "package") -> RawSeries:
    sensor = {"collector": "rapl", "component": "cpu", "device": "socket0", "domain": domain}
    own = {label: sensor[label] for label in LABELS[name] if label in sensor}
    return RawSeries(name=name, labels={"instance": "a:1", **own}, times_s=TIMES_S, values=values)


def history_of(*raws: RawSeries) -> History:
    return build_history("memory", raws)


COUNTER = quantity(catalog.DEVICE_ENERGY.name, 50.0 * TIMES_S)


@pytest.mark.parametrize(("missed_s", "reason"), [(0.0, ""), (0.09, ""), (0.1, ""), (0.11, "unmeasured_time")])
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
    # Nothing but the steps of a gauge of whole watts is not known.
    assert actual.expanded_joules == pytest.approx(NORMAL_95 * 10 / math.sqrt(12))
    (short,) = measure(history_of(gauge), Span(3.2, 3.9), [], "all")
    assert (short.joules, short.reason) == (None, "too_few_samples")


def info(scope: str, domain: str, **labels: str) -> RawSeries:
    """The metadata of a sensor."""
    raw = quantity(catalog.SENSOR_INFO.name, np.ones(TIMES_S.shape), domain)
    return dataclasses.replace(raw, labels={**raw.labels, "scope": scope, "reads": "energy", **labels})


def test_sensors_come_by_scope_and_every_reason_is_reported() -> None:
    """Devices, then nodes, then parts; a sensor without a number does not end the list."""
    node = quantity(catalog.NODE_ENERGY.name, 200.0 * TIMES_S, "total")
    core = quantity(catalog.PART_ENERGY.name, 30.0 * TIMES_S, "core")
    short = dataclasses.replace(COUNTER, labels={**COUNTER.labels, "domain": "dram"}, times_s=TIMES_S + 5.0)
    history = history_of(core, info("device", "bare"), node, COUNTER, short)
    rows = measure(history, WINDOW, [], "all")
    assert [(row.sensor.scope, row.sensor.domain, row.reason) for row in rows] == [
        ("device", "bare", "no_samples"),
        ("device", "dram", "unbracketed"),
        ("device", "package", ""),
        ("node", "total", ""),
        ("part", "core", ""),
    ]
    assert [row.record.domain for row in rows] == ["bare", "dram", "package", "total", "core"]
    assert [row.joules is None for row in rows] == [True, True, False, False, False]
    assert [row.energy.joules for row in rows if row.energy is not None] == pytest.approx([500.0, 2000.0, 300.0])
    assert rows[1].text == "no sample before the window's start" and rows[2].text == ""
    assert total_of(rows) is None
    elsewhere = dataclasses.replace(COUNTER, labels={**COUNTER.labels, "instance": "b:1"})
    of_two = measure(history_of(core, elsewhere), WINDOW, [], "all")
    assert [(row.sensor.scope, row.sensor.exporter) for row in of_two] == [("device", "b:1"), ("part", "a:1")]
    assert [row.sensor.domain for row in measure(history, WINDOW, [], "node")] == ["total"]
    assert [row.sensor.domain for row in measure(history, WINDOW, ["a:1/rapl/socket0/*a*"], "device")] == [
        "bare", "dram", "package",
    ]  # fmt: skip
    assert [row.sensor.domain for row in measure(history, WINDOW, ["none", "*/total"], "all")] == ["total"]


def test_a_restart_of_the_exporter_and_a_device_that_was_down_are_the_reasons() -> None:
    start = quantity(catalog.EXPORTER_START.name, np.where(TIMES_S < 5.5, -100.0, 5.25))
    (restarted,) = measure(history_of(COUNTER, start), WINDOW, [], "all")
    assert (restarted.energy, restarted.reason) == (None, "exporter_restart")
    away = (TIMES_S < 10.5) | (TIMES_S > 20)
    gone = dataclasses.replace(COUNTER, times_s=TIMES_S[away], values=COUNTER.values[away])
    (cut,) = measure(history_of(gone), WINDOW, [], "all")
    assert (cut.energy, cut.reason) == (None, "unbracketed")
    up = quantity(catalog.SENSOR_UP.name, np.where(TIMES_S > 10, 0.0, 1.0))
    (down,) = measure(history_of(gone, up), WINDOW, [], "all")
    assert (down.energy, down.reason, down.text) == (None, "sensor_down", "no sample after the window's end")
    asleep = dataclasses.replace(up, name=catalog.SENSOR_STATE.name, labels={**up.labels, "state": "asleep"})
    asleep = dataclasses.replace(asleep, times_s=TIMES_S[TIMES_S > 10], values=np.ones((TIMES_S > 10).sum()))
    (sleeping,) = measure(history_of(gone, up, asleep), WINDOW, [], "all")
    assert (sleeping.energy, sleeping.reason) == (None, "sensor_asleep")
    (later,) = measure(history_of(gone, up), Span(1.0, 9.0), [], "all")
    assert later.energy is not None, "the device was up in the window"


def test_limits_of_the_sensor_and_its_unseen_share_are_in_the_energy() -> None:
    more = (
        info("device", "package", accuracy="0.05", resolution="2 J"),
        quantity(catalog.SENSOR_REFRESH.name, np.full(TIMES_S.shape, 0.1)),
        quantity(catalog.SENSOR_WINDOW.name, np.full(TIMES_S.shape, 0.025)),
        quantity(catalog.DEVICE_POWER.name, np.where(np.arange(TIMES_S.size) % 2, 40.0, 60.0)),
    )
    (actual,) = measure(history_of(COUNTER, *more), WINDOW, [], "all")
    assert actual.energy is not None and actual.joules is not None
    half_widths = {item.name: item.half_width_joules for item in actual.energy.budget}
    assert half_widths["accuracy"] == pytest.approx(25.0)
    assert half_widths["resolution"] == 2.0
    # 50 W, of a power between 0 and 100 W.
    assert half_widths["refresh"] == pytest.approx(0.1 * math.sqrt(50**2 + 4 * 50 * 50))
    # 21 readings in the window, 20 W apart; 75 % of each of 100 periods is not observed.
    few = student_factor(2 * 20 / 3)
    assert half_widths["unseen"] == pytest.approx(few * 10 * math.sqrt(200) * math.sqrt(0.75 / 100))
    (by_power,) = measure(history_of(*more), WINDOW, [], "all")
    assert by_power.energy is not None and by_power.energy.method == "power"
    assert {item.name for item in by_power.energy.budget} == {
        "sampling", "steps", "lag", "accuracy", "unseen",
    }  # fmt: skip


def test_the_bounds_of_the_total_are_the_sums_of_those_of_its_devices() -> None:
    dram = quantity(catalog.DEVICE_ENERGY.name, 10.0 * TIMES_S, "dram")
    node = quantity(catalog.NODE_ENERGY.name, 500.0 * TIMES_S, "total")
    rows = measure(history_of(COUNTER, dram, node), Span(1.25, 11.25), [], "all")
    total = total_of(rows)
    assert total is not None
    assert total.joules == pytest.approx(600.0)
    devices = [row.energy for row in rows[:2] if row.energy is not None]
    assert total.lower_joules == pytest.approx(sum(one.lower_joules for one in devices))
    assert total.upper_joules == pytest.approx(sum(one.upper_joules for one in devices))
    assert total.lower_joules < 600.0 < total.upper_joules


def test_an_uncertainty_without_the_accuracy_of_a_sensor_is_marked() -> None:
    dram = quantity(catalog.DEVICE_ENERGY.name, 10.0 * TIMES_S, "dram")
    history = history_of(COUNTER, dram)
    known = {sensor: record for sensor, record in history.sensors.items() if sensor.domain == "dram"}
    history = dataclasses.replace(
        history,
        sensors={**history.sensors, **{key: dataclasses.replace(item, accuracy=0.01) for key, item in known.items()}},
    )
    rows = measure(history, WINDOW, [], "all")
    covers = [row.joules.covers for row in rows if row.joules is not None]
    assert covers == [("sampling", "accuracy"), ("sampling",)]
    total = total_of(rows)
    assert total is not None and total.covers == ("sampling",)
    text = render_table(rows, WINDOW, "memory", width=80)
    marked = [line.split()[0] for line in text.splitlines() if "†" in line and not line.startswith("†")]
    assert marked == ["a:1/rapl/socket0/package", "total"]
    assert "†: sampling only: the sensor's accuracy is unknown." in text
    document = json.loads(render_json(rows, WINDOW, "memory"))
    assert [row["energy"]["covers"] for row in document["sensors"]] == [["sampling", "accuracy"], ["sampling"]]
    assert document["total_over_devices"]["covers"] == ["sampling"]
    lines = list(csv.DictReader(io.StringIO(render_csv(rows, WINDOW))))
    assert [line["uncertainty_covers"] for line in lines] == ["sampling+accuracy", "sampling"]
