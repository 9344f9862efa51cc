"""From a run and the log of a meter to a calibration, and back: does the truth lie inside the stated ±?"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from joulewatch_exporter.config.calibration import load_calibrations
from joulewatch_harness.analysis.calibration.calibration_file import calibration_text
from joulewatch_harness.analysis.calibration.comparison import Comparison, Point, compare_run
from joulewatch_harness.analysis.calibration.fit import LEAST_WINDOWS, Fit, fit_calibration
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.sources.history import History, build_history
from joulewatch_harness.analysis.sources.power_log import LogFormat, read_power_log
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.records import CalibrationRecord
from support.synthetic import ListSource, World, make_world, sensor
from support.wall_meter import GAIN, NODE, OFFSET_WATTS, node_world, wall_log

POWER = LogFormat(power="watts")
DATE = "2026-11-28T10:00:00+00:00"


def fitted(comparison: Comparison, accuracy: float | None = 0.001) -> Fit:
    return fit_calibration("run", comparison, reference="WT310", accuracy=accuracy, date=DATE)


def compared(world: World, path: Path, form: LogFormat = POWER, *patterns: str, history: bool = False) -> Comparison:
    assert world.record is not None
    samples = build_history("memory", world.scrapes()) if history else History(source="")
    return compare_run(world.record, samples, patterns, read_power_log(path, form))


def calibrated(tmp_path: Path, **log: float) -> Fit:
    world = node_world()
    return fitted(compared(world, wall_log(tmp_path / "wall.csv", world, **log)))


@pytest.mark.parametrize(
    ("form", "doubt"), [(POWER, 0.005), (LogFormat(energy="joules"), 0.04)], ids=["power", "energy"]
)
@pytest.mark.parametrize("history", [False, True], ids=["edges", "history"])
def test_gain_and_offset_are_found(form: LogFormat, doubt: float, history: bool, tmp_path: Path) -> None:
    """Within the stated uncertainty, which is small; each value of the energy may be a row old."""
    world = node_world()
    fit = fitted(compared(world, wall_log(tmp_path / "wall.csv", world, noise_watts=0.5), form, history=history))
    line = fit.line
    assert len(fit.comparison.points) == 16 and not fit.comparison.excluded
    assert abs(line.slope - GAIN) <= NORMAL_95 * line.slope_standard <= doubt
    assert abs(line.intercept - OFFSET_WATTS) <= NORMAL_95 * line.intercept_standard <= 200 * doubt
    before, after = fit.errors(calibrated=False)[1], fit.errors(calibrated=True)[1]
    assert before > 0.07 and after < 0.003


def test_a_sensor_that_is_not_linear_has_a_wider_uncertainty(tmp_path: Path) -> None:
    straight, bent = calibrated(tmp_path), calibrated(tmp_path, bend=150.0)
    assert straight.linearity_watts == 0.0
    residuals = [bent.calibrated_watts(point) - point.reference_watts for point in bent.comparison.points]
    assert math.sqrt(np.mean(np.square(residuals))) <= bent.linearity_watts
    assert bent.linearity_watts < 15
    # The residuals are what is expected.
    assert bent.line.chi_squared == pytest.approx(len(residuals) - 2, rel=1e-3)
    assert bent.line.slope_standard > straight.line.slope_standard


def test_the_file_is_that_of_the_exporter(tmp_path: Path) -> None:
    """All values of the fit arrive at the sensor's series; the file is for people as well."""
    fit = calibrated(tmp_path)
    path = tmp_path / "calibration.yaml"
    path.write_text(calibration_text(fit), encoding="utf-8")
    assert path.read_text().startswith("# Calibration of ipmi bmc total against WT310, by joulewatch calibrate.\n")
    (entry,) = load_calibrations([path], "node1").entries
    ((name, record),) = [(one.sensor, one.calibration) for one in fit.entries]
    values = dict(entry.parameters)
    info = {"reference": entry.reference.name, "reference_accuracy": repr(entry.reference.accuracy), "date": entry.date}
    assert CalibrationRecord.of_metrics(values, info) == record
    assert entry.sensor.host == name.host == "node1"
    document = yaml.safe_load(path.read_text())["calibrations"][0]
    assert (document["windows"], document["run"], document["sum_of"]) == (16, "run", 1)
    assert document["sensor"]["model"] == "PowerEdge"
    lowest, highest = document["lowest_watts"], document["highest_watts"]
    assert (lowest, highest) == (pytest.approx(120.0, rel=1e-3), pytest.approx(600.0, rel=1e-3))


def test_a_calibration_is_not_calibrated_again(tmp_path: Path) -> None:
    """The run of a calibrated sensor gives the same calibration: the comparison uses what the sensor reads."""
    world = node_world()
    path = wall_log(tmp_path / "wall.csv", world)
    first = fitted(compared(world, path))
    known = first.entries[0].calibration
    again = World(
        {dataclasses.replace(one, calibration=known): signal for one, signal in world.sensors.items()},
        record=with_calibration(world, known).record,
        start_s=world.start_s,
        end_s=world.end_s,
    )
    for history in (False, True):
        assert fitted(compared(again, path, history=history)).line.slope == pytest.approx(first.line.slope, rel=1e-4)


def test_a_sum_of_sensors(tmp_path: Path) -> None:
    """Two feeds of one server: each has the gain and half the offset, so that their sum is the line."""
    feeds = [sensor(f"psu{number}", "input", "node", "part", collector="redfish") for number in range(2)]
    world = make_world(feeds, power=lambda one, _, size: (60.0 + 40.0 * size**0.5) * (2 if one.device == "psu0" else 1))
    signal = next(iter(world.sensors.values()))
    whole = World({NODE: dataclasses.replace(signal, watts=tuple(1.5 * watts for watts in signal.watts))})
    whole.start_s, whole.end_s = world.start_s, world.end_s
    path = wall_log(tmp_path / "wall.csv", whole)
    fit = fitted(compared(world, path, POWER, "*/redfish/psu*"))
    first, second = (entry.calibration for entry in fit.entries)
    assert first.gain == second.gain == pytest.approx(GAIN, rel=1e-3)
    assert first.offset_watts == second.offset_watts == pytest.approx(OFFSET_WATTS / 2, abs=0.3)
    assert first.highest_watts == pytest.approx(2 * second.highest_watts, rel=1e-3)
    assert yaml.safe_load(calibration_text(fit))["calibrations"][1]["sum_of"] == 2


def with_calibration(world: World, calibration: CalibrationRecord | None) -> World:
    """Return the world with a calibrated sensor in the header of its run."""
    assert world.record is not None
    header = world.record.header
    sensors = tuple(dataclasses.replace(one, calibration=calibration) for one in header.sensors)
    record = dataclasses.replace(world.record, header=dataclasses.replace(header, sensors=sensors))
    return dataclasses.replace(world, record=record)


def worlds_and_truths(world: World) -> dict[tuple[str, int], float]:
    """Return the true joules per inference of every configuration and batch size."""
    assert world.record is not None
    (signal,) = world.sensors.values()
    truths: dict[tuple[str, int], list[float]] = {}
    for window in world.record.windows:
        if window.kind == "measure":
            read = float(signal.energy_joules(window.end_s) - signal.energy_joules(window.start_s))
            joules = GAIN * read + OFFSET_WATTS * window.duration_s
            truths.setdefault((window.configuration, window.batch_size), []).append(joules / window.inferences)
    return {cell: float(np.mean(values)) for cell, values in truths.items()}


@pytest.mark.parametrize("history", [False, True], ids=["edges", "history"])
def test_the_truth_is_inside(history: bool, tmp_path: Path) -> None:
    """Many calibrations with a meter's noise and gain error, each applied to another run: 95 % are covered.

    Before the calibration no energy is within 5 % of the truth. The net energy has no offset in it.
    """
    covered, covered_net, widths, before = [], [], [], []
    for seed in range(12):
        world = node_world(seed=seed, noise=0.01)
        error = 0.002 * float(np.random.default_rng(seed).uniform(-1, 1))
        path = wall_log(tmp_path / f"{seed}.csv", world, noise_watts=2.0, meter_error=error, seed=seed)
        calibration = fitted(compared(world, path), 0.002).entries[0].calibration
        other = node_world(seed=100 + seed, noise=0.01, rounds=3, load=0.95)
        truths = worlds_and_truths(other)
        for known in (None, calibration):
            one = with_calibration(other, known)
            assert one.record is not None
            result = analyze_run(one.record, ListSource(other.scrapes()) if history else None)
            for group in result.groups:
                truth = truths[group.configuration.name, group.batch_size]
                (node,) = group.nodes
                assert node.gross is not None and node.net is not None
                assert node.gross.expanded is not None and node.net.expanded is not None
                if known is None:
                    before.append(abs(node.gross.value / truth - 1))
                    continue
                covered.append(abs(node.gross.value - truth) <= node.gross.expanded)
                widths.append(node.gross.expanded / truth)
                seconds = group.duration_s / group.inferences
                true_net = truth - (GAIN * 120.0 + OFFSET_WATTS) * seconds
                covered_net.append(abs(node.net.value - true_net) <= node.net.expanded)
    assert min(before) > 0.05
    assert np.mean(covered) >= 0.93 and np.mean(covered_net) >= 0.93
    assert np.median(widths) < 0.03


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ({"shift_s": 3600.0}, "is the time zone of the log right (--timezone)?"),
        ({"gain": 0.0, "offset": 300.0}, "the reference does not vary enough: 300 to 300 W"),
        ({"gain": 0.01, "offset": 300.0}, "the reference does not vary enough: 301.2 to 306 W"),
        ({"noise_watts": 4000.0}, "do not follow each other"),
        ({"shift_s": 11.0}, "do not follow each other"),
        ({"gain": -0.5, "offset": 400.0}, "do not follow each other: the gain is -0.5"),
        ({"rate_hz": 0.2}, "windows in common, and 5 are needed"),
    ],
)
def test_comparisons_that_give_no_calibration(log: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        calibrated(tmp_path, **log)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_few_windows(tmp_path: Path) -> None:
    world = make_world([NODE], configurations=["net/onnxruntime/fp32"], batch_sizes=[8], rounds=1)
    with pytest.raises(ConfigError, match=f"have 4 windows in common, and {LEAST_WINDOWS} are needed"):
        fitted(compared(world, wall_log(tmp_path / "wall.csv", world)))


def test_sensors_that_cannot_be_summed(tmp_path: Path) -> None:
    world = make_world([NODE, sensor("socket0", "package"), dataclasses.replace(NODE, device="psu", primary=False)])
    path = wall_log(tmp_path / "wall.csv", world)
    for patterns in (["*"], ["*/ipmi/*"]):
        with pytest.raises(ConfigError, match="would count energy twice; choose one of them"):
            compared(world, path, POWER, *patterns)
    with pytest.raises(ConfigError, match=r"no sensor matches \*/nvml/\*; the sensors are 127.0.0.1:10717/ipmi/bmc"):
        compared(world, path, POWER, "*/nvml/*")
    assert [one.device for one in compared(world, path).sensors] == ["bmc"], "the primary node sensor"
    without = make_world([sensor("socket0", "package")])
    with pytest.raises(ConfigError, match="the run has no primary node sensor"):
        compared(without, path)


def test_a_gain_far_from_1_is_questioned(tmp_path: Path) -> None:
    assert "do the sensor and the reference measure the same thing?" in calibrated(tmp_path, gain=2.2).warning
    assert calibrated(tmp_path).warning == ""


def test_the_uncertainty_of_a_line_from_few_windows_is_covered() -> None:
    """Five windows of a sensor that scatters about its line: Student's factor, not that of many windows."""
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        watts = np.array([120.0, 200.0, 280.0, 350.0, 420.0])
        read = (watts - 7.0 + 3.0 * random.standard_normal(5)) / 1.06
        points = tuple(
            Point(
                window=number,
                kind="measure",
                sensor_watts=float(x),
                sensor_standard_watts=0.05,
                reference_watts=float(y),
                reference_standard_watts=0.05,
                each_watts=(float(x),),
            )
            for number, (x, y) in enumerate(zip(read, watts, strict=True))
        )
        line = fitted(Comparison(sensors=(NODE,), points=points, excluded=())).line
        at = (250.0 - 7.0) / 1.06
        variance = (line.slope_standard * at) ** 2 + line.intercept_standard**2 + 2 * at * line.covariance
        inside += abs(line.intercept + line.slope * at - 250.0) <= NORMAL_95 * math.sqrt(variance)
    assert 0.93 <= inside / 400 <= 0.985
