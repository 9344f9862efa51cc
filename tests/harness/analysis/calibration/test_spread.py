"""The ratio of the watts per core of loads, from windows whose powers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from joulewatch_exporter.config.calibration import load_calibrations
from joulewatch_harness.analysis.calibration import spread
from joulewatch_harness.analysis.calibration.spread import IDLE, LoadWindow, spreads
from joulewatch_harness.gum import student_factor


def windows(watts_per_core: dict[str, tuple[float, ...]], drift_watts: float = 0.0) -> list[LoadWindow]:
    """Return three rounds on two cores: 50 W when idle, and the values of each load."""
    found = []
    for number in range(3):
        idle = 50 + drift_watts * number
        found.append(LoadWindow(load=IDLE, round=number, watts={"cpu": idle}, cores=0.0))
        for load, values in watts_per_core.items():
            found.append(LoadWindow(load=load, round=number, watts={"cpu": idle + 2 * values[number]}, cores=2.0))
    return found


def test_the_ratio_with_its_uncertainty() -> None:
    (cpu,) = spreads(windows({"integer": (10.0, 10.1, 9.9), "vector": (16.0, 16.0, 16.0)}))
    assert (cpu.component, cpu.most.load, cpu.least.load, cpu.is_resolved) == ("cpu", "vector", "integer", True)
    expanded = student_factor(2) * 0.1 / 3**0.5
    assert [load.watts for load in cpu.loads] == pytest.approx([10, 16])
    assert cpu.loads[0].expanded_watts == pytest.approx(expanded)
    assert (cpu.ratio, cpu.lower, cpu.upper) == pytest.approx((1.6, 16 / (10 + expanded), 16 / (10 - expanded)))


def test_a_drift_of_idle_power_cancels() -> None:
    (cpu,) = spreads(windows({"integer": (10, 10, 10), "vector": (15, 15, 15)}, drift_watts=8))
    assert (cpu.ratio, cpu.upper) == pytest.approx((1.5, 1.5))


def test_the_upper_limit_is_that_of_the_load_with_the_widest_uncertainty() -> None:
    """A load in the middle that is hardly known may be the most frugal one."""
    (cpu,) = spreads(windows({"integer": (10, 10, 10), "light": (11, 14, 8), "vector": (12, 12, 12)}))
    light = cpu.loads[1]
    assert cpu.upper == pytest.approx(light.highest / light.lowest)


def test_a_power_that_does_not_differ_from_idle_gives_no_limit() -> None:
    (cpu,) = spreads(windows({"integer": (0.1, -0.1, 0.05), "vector": (16, 16, 16)}))
    assert (cpu.is_resolved, cpu.unresolved, cpu.upper) == (False, ["integer"], spread.LARGEST_RATIO)
    assert "the power of integer does not differ from idle power, so 100 is used" in " ".join(
        spread.render_table([cpu], ["counter"]).split()
    )


def test_the_file_has_the_upper_limit_rounded_up(tmp_path: Path) -> None:
    """The exporter reads it."""
    found = spreads(windows({"integer": (10, 10.1, 9.9), "vector": (16, 16, 16)}))
    named = {"host": "node1", "run": "20261129T000000Z-abcdef", "date": "2026-11-29T00:00:00+00:00"}
    path = tmp_path / "workloads.yaml"
    path.write_text(spread.spread_text(found, ["counter"], **named), encoding="utf-8")
    (entry,) = load_calibrations([path], "node1").ratios
    assert 0 <= entry.ratio - found[0].upper < 0.01
    assert (entry.component, entry.run, entry.date) == ("cpu", named["run"], named["date"])
    assert load_calibrations([path], "node2").ratios == ()
    assert path.read_text().startswith("# The largest ratio of the watts per core of two workloads on node1")
    assert "EMULATED" not in path.read_text()
    assert "# EMULATED: " in spread.spread_text(found, ["emulated"], **named)


def test_text_csv_and_json() -> None:
    found = spreads(windows({"integer": (10, 10.1, 9.9), "vector": (16, 16, 16)}))
    table = spread.render_table(found, ["emulated"])
    assert "cpu: vector draws 1.6 times as much per core as integer (1.56 to 1.64)" in table
    assert "EMULATED" in table
    assert spread.render_csv(found).splitlines()[1].startswith("cpu,integer,2,10,")
    document = json.loads(spread.render_json(found, ["counter"], "run"))
    (component,) = document["components"]
    assert (document["emulated"], component["resolved"]) == (False, True)
    assert component["upper_ratio"] == pytest.approx(found[0].upper)
