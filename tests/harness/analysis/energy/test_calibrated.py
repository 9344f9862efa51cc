"""A calibration is applied exactly once on every route, and its uncertainty is that of a straight line."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.energy.calibrated import (
    CALIBRATION,
    EXTRAPOLATION,
    GAIN,
    LEVEL,
    outside_text,
    with_calibration,
)
from joulewatch_harness.analysis.energy.intervals import calendar_spans, interval_energies
from joulewatch_harness.analysis.energy.sensor_energies import measure
from joulewatch_harness.analysis.energy.window_energy import ACCURACY, BudgetItem, Span, WindowEnergy
from joulewatch_harness.analysis.reports.to_json import render_json
from joulewatch_harness.analysis.results.compare import compare_measures
from joulewatch_harness.analysis.results.model import IDLE_BASELINE, BudgetLine, Estimate, RunResult
from joulewatch_harness.analysis.results.stored_results import Measure, Side, measures, read_document
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.results.timeline import power_lines
from joulewatch_harness.analysis.sources.history import RawSeries, build_history
from joulewatch_harness.cli import main
from joulewatch_harness.metering.energies import energies_of
from joulewatch_harness.records import CalibrationRecord, RunHeader, SensorRecord, decode_line, encode_line
from support.paths import ROOT
from support.synthetic import EXPORTER, ListSource, World, make_world, sensor, without_edges, write_recording

LINE = CalibrationRecord(
    gain=1.05,
    offset_watts=2.0,
    gain_standard_uncertainty=0.01,
    offset_standard_uncertainty_watts=1.5,
    gain_offset_covariance_watts=-0.012,
    linearity_watts=0.0,
    lowest_watts=30.0,
    highest_watts=400.0,
    reference="WT310",
    reference_accuracy=None,
    date="2026-11-28T10:00:00+00:00",
)
CPU = sensor("socket0", "package", accuracy=0.05, accuracy_source="data sheet")
REFRESH = BudgetItem(
    name="refresh", standard_joules=2.0, half_width_joules=5.0, distribution="triangular", text="refresh"
)


def energy_of(watts: float, duration_s: float = 10.0) -> WindowEnergy:
    joules = watts * duration_s
    return WindowEnergy(
        joules=joules,
        lower_joules=joules - 20,
        upper_joules=joules + 20,
        budget=(REFRESH,),
        method="edges",
        duration_s=duration_s,
        samples=2,
    )


def item(energy: WindowEnergy, name: str) -> BudgetItem:
    return next(one for one in energy.budget if one.name == name)


def test_energy_bounds_and_budget_by_hand() -> None:
    """100 W for 10 s: 1.05 * 1000 J + 2 W * 10 s."""
    energy = with_calibration(energy_of(100.0), dataclasses.replace(LINE, linearity_watts=0.4, reference_accuracy=0.01))
    assert (energy.joules, energy.lower_joules, energy.upper_joules) == pytest.approx((1070.0, 1049.0, 1091.0))
    assert item(energy, "refresh").standard_joules == pytest.approx(1.05 * 2.0)
    # The centre is at 0.012 / 0.01² = 120 W; there the value is known to sqrt(1.5² - 1.2²) = 0.9 W.
    gain, level = item(energy, GAIN), item(energy, LEVEL)
    assert (gain.sign, gain.standard_joules) == (-1, pytest.approx(0.01 * 20 * 10))
    assert level.standard_joules == pytest.approx(0.9 * 10)
    assert item(energy, "linearity").standard_joules == pytest.approx(0.4 * 10)
    accuracy = item(energy, ACCURACY)
    assert (accuracy.half_width_joules, accuracy.family) == (pytest.approx(10.7), "WT310")
    assert energy.as_read(energy.joules) == pytest.approx(1000.0)


def test_a_calibrated_energy_is_not_calibrated_again() -> None:
    with pytest.raises(ValueError, match=r"calibrated already \(2026-11-28T10:00:00"):
        with_calibration(with_calibration(energy_of(100.0), LINE), LINE)
    assert with_calibration(energy_of(100.0), None) == energy_of(100.0)


@given(
    watts=st.floats(30, 400),
    gain=st.floats(1e-4, 0.1),
    offset=st.floats(1e-3, 20),
    correlation=st.floats(-0.999, 0.999),
)
def test_the_uncertainty_is_that_of_the_line(watts: float, gain: float, offset: float, correlation: float) -> None:
    """``u^2 = u_gain^2 P^2 + u_offset^2 + 2 P cov``: without the covariance it would be too large or too small."""
    covariance = correlation * gain * offset
    line = dataclasses.replace(
        LINE,
        gain_standard_uncertainty=gain,
        offset_standard_uncertainty_watts=offset,
        gain_offset_covariance_watts=covariance,
    )
    energy = with_calibration(energy_of(watts), line)
    parts = [one.standard_joules for one in energy.budget if one.name in CALIBRATION]
    expected = gain**2 * watts**2 + offset**2 + 2 * watts * covariance
    assert math.hypot(*parts) / 10 == pytest.approx(math.sqrt(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("watts", "outside_watts", "warned"),
    [(20.0, 10.0, False), (30.0, 0.0, False), (400.0, 0.0, False), (418.0, 18.0, False), (500.0, 100.0, True)],
)
def test_outside_of_the_calibrated_range_the_budget_grows(watts: float, outside_watts: float, warned: bool) -> None:
    """By the correction that the line adds beyond the range; a warning from 5 % of the range on."""
    energy = with_calibration(energy_of(watts), LINE)
    halves = [one.half_width_joules for one in energy.budget if one.name == EXTRAPOLATION]
    assert halves == ([pytest.approx(0.05 * outside_watts * 10)] if outside_watts else [])
    assert bool(outside_text(energy)) == warned
    assert outside_text(energy_of(watts)) == ""


# Every route


def world_of(*sensors: SensorRecord, **settings: float) -> World:
    return make_world(sensors or (dataclasses.replace(CPU, calibration=LINE),), **settings)  # type: ignore[arg-type]


def raw_world(world: World) -> World:
    """Return the same world, without calibrations."""
    assert world.record is not None
    header = world.record.header
    plain = tuple(dataclasses.replace(one, calibration=None) for one in header.sensors)
    sensors = {dataclasses.replace(one, calibration=None): signal for one, signal in world.sensors.items()}
    record = dataclasses.replace(world.record, header=dataclasses.replace(header, sensors=plain))
    return dataclasses.replace(world, sensors=sensors, record=record)


def analysed(world: World, route: str) -> RunResult:
    """Analyse by edges, by history, by both, or with the metadata of the history only."""
    record = world.record
    assert record is not None
    source = None if route == "edges" else ListSource(world.scrapes())
    if route in ("history", "rebuilt"):
        record = without_edges(record)
    if route == "older journal":
        plain = tuple(dataclasses.replace(one, calibration=None) for one in record.header.sensors)
        record = dataclasses.replace(record, header=dataclasses.replace(record.header, sensors=plain))
    if route == "rebuilt":
        record = dataclasses.replace(record, header=dataclasses.replace(record.header, sensors=()))
    return analyze_run(record, source)


def total(result: RunResult) -> list[tuple[Estimate, Estimate, float]]:
    """Return gross, net and seconds per inference of each group."""
    return [
        (group.total.gross, group.total.net, group.duration_s / group.inferences)
        for group in result.groups
        if group.total.gross is not None and group.total.net is not None
    ]


@pytest.mark.parametrize("route", ["edges", "history", "both", "rebuilt", "older journal"])
def test_results_are_calibrated_once(route: str) -> None:
    """Journal and history hold the calibration, or one of them; the offset cancels in the net energy."""
    world = world_of()
    result, plain = analysed(world, route), analysed(raw_world(world), route)
    assert len(total(result)) == 6
    for (gross, net, seconds), (raw_gross, raw_net, _) in zip(total(result), total(plain), strict=True):
        assert gross.value == pytest.approx(1.05 * raw_gross.value + 2.0 * seconds)
        assert net.value == pytest.approx(1.05 * raw_net.value)
        assert gross.rounds[1] == pytest.approx(1.05 * raw_gross.rounds[1] + 2.0 * seconds)
    found = {finding.reason for finding in result.findings}
    assert "calibrated" in found and "outside_calibration" not in found
    assert "calibrated" not in {finding.reason for finding in plain.findings}


def test_no_route_takes_what_the_sensors_read() -> None:
    """``measure_run`` is for the energies themselves and for the comparison with a reference; all others calibrate."""
    package = ROOT / "harness"
    users = {
        str(path.relative_to(package / "joulewatch_harness"))
        for path in package.rglob("*.py")
        if re.search(r"\bmeasure_run\b", path.read_text(encoding="utf-8"))
    }
    energy, calibration = "analysis/energy", "analysis/calibration"
    assert users == {f"{energy}/windows.py", f"{energy}/whole_run.py", f"{calibration}/comparison.py"}


def test_a_window_of_the_library_is_calibrated_once() -> None:
    world = world_of()
    assert world.record is not None
    header, windows = world.record.header, world.record.windows
    (plain_header,) = (one.record.header for one in [raw_world(world)] if one.record is not None)
    read, calibrated = energies_of(plain_header, windows[-2:]).total, energies_of(header, windows[-2:]).total
    assert read.estimate is not None and calibrated.estimate is not None
    assert calibrated.estimate.value == pytest.approx(1.05 * read.estimate.value + 2.0 * windows[-1].duration_s)


def test_the_published_accuracy_is_replaced() -> None:
    """By the accuracy of the reference; if that is unknown, ± does not cover any."""
    for accuracy, covered in ((0.002, True), (None, False)):
        result = analysed(world_of(dataclasses.replace(CPU, calibration=with_accuracy(accuracy))), "edges")
        gross, _, _ = total(result)[0]
        named = {line.name: line for line in gross.budget}
        assert "accuracy (rapl)" not in named
        assert ("accuracy" in gross.covers) == ("accuracy (WT310)" in named) == covered
        assert ("accuracy_unknown" in {finding.reason for finding in result.findings}) != covered
        if covered:
            assert named["accuracy (WT310)"].standard == pytest.approx(0.002 * gross.value / math.sqrt(3))


def with_accuracy(accuracy: float | None) -> CalibrationRecord:
    return dataclasses.replace(LINE, reference_accuracy=accuracy)


def test_net_energies_have_the_error_of_the_gain_only() -> None:
    """Idle and load have the same error of the offset; what remains is u_gain times the difference of their powers."""
    world = world_of()
    gross, net, seconds = total(analysed(world, "edges"))[0]
    _, raw_net, _ = total(analysed(raw_world(world), "edges"))[0]
    lines = {line.name: line.standard for line in net.budget}
    raw_idle = next(line.standard for line in raw_net.budget if line.name == IDLE_BASELINE)
    # 0.5 % of the idle power, which is 40 W as read and 1.05 * 40 W + 2 W calibrated; no error of the calibration.
    assert lines[IDLE_BASELINE] == pytest.approx(44 / 40 * raw_idle, rel=1e-3)
    of_gain, of_level = (f"{name} ({LINE.date})" for name in (GAIN, LEVEL))
    # 150 W under load, 40 W idle.
    assert lines[of_gain] == pytest.approx(0.01 * (150 - 40) * seconds, rel=1e-3)
    assert lines[of_level] == pytest.approx(0.0, abs=1e-12)
    in_gross = {line.name: line.standard for line in gross.budget}
    assert in_gross[of_gain] == pytest.approx(0.01 * (150 - 120) * seconds, rel=1e-3)
    assert in_gross[of_level] == pytest.approx(0.9 * seconds)


def test_sensors_calibrated_as_a_sum_share_their_errors_and_others_do_not() -> None:
    """Two sockets with half of the offset each: the errors of the sum are those of the line, not smaller."""
    half = dataclasses.replace(
        LINE, offset_watts=1.0, offset_standard_uncertainty_watts=0.75, gain_offset_covariance_watts=-0.006
    )
    other = dataclasses.replace(half, date="2026-11-29T10:00:00+00:00")
    shares = []
    for second in (half, other):
        sockets = (
            dataclasses.replace(CPU, calibration=half),
            dataclasses.replace(sensor("socket1", "package"), calibration=second),
        )
        gross, _, seconds = total(analysed(world_of(*sockets), "edges"))[0]
        lines = [line.standard / seconds for line in gross.budget if line.name.startswith(LEVEL)]
        shares.append(math.hypot(*lines))
    assert shares == [pytest.approx(0.9), pytest.approx(0.9 / math.sqrt(2))]


def test_a_difference_of_configurations_has_what_does_not_cancel() -> None:
    """On both sides of the centre the errors of the gain have opposite signs, so they add."""
    world = make_world(
        [dataclasses.replace(CPU, calibration=LINE)],
        power=lambda _, name, size: 40.0 if name == "idle" else 90.0 if name.endswith("fp32") else 150.0,
        batch_sizes=(1,),
    )
    run = read_document(json.loads(render_json(analysed(world, "edges"))), "result.json")
    sides = [measures(Side(run, name), 1)["energy", "total", "gross"] for name in run.groups]
    lines = [line_of(side, GAIN) for side in sides]
    assert [line.sign for line in lines] == [-1, 1]
    row = compare_measures(1, sides[0], sides[1])
    assert row.difference is not None
    rest = next(line.standard for line in row.difference.budget if line.name.startswith(GAIN))
    assert rest == pytest.approx(lines[0].standard + lines[1].standard)
    assert f"{LEVEL} ({LINE.date})" in row.cancelled


def line_of(side: Measure, name: str) -> BudgetLine:
    assert side.estimate is not None
    return next(line for line in side.estimate.budget if line.name.startswith(name))


def test_any_window_of_history_is_calibrated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ``energy``, per window and per hour, from a recording."""
    world = world_of()
    assert world.record is not None
    path = tmp_path / "recording.sqlite"
    write_recording(world, path)
    start_s, end_s = world.start_s + 5, world.end_s - 5
    raw = raw_world(world)
    (plain,) = measure(build_history("memory", raw.scrapes()), Span(start_s, end_s), [], "all")
    assert plain.energy is not None
    expected = 1.05 * plain.energy.joules + 2.0 * (end_s - start_s)
    words = ["energy", f"--start={start_s}", f"--end={end_s}", f"--recording={path}"]
    assert main([*words, "--format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (row,) = document["sensors"]
    assert row["energy"]["joules"] == pytest.approx(expected)
    assert row["calibration"]["date"] == LINE.date
    assert document["findings"][0]["reason"] == "calibrated"
    assert main(words) == 0
    assert (
        "info [calibrated]: 127.0.0.1:10717/rapl/socket0/package: calibrated 2026-11-28T10:00:00+00:00 with WT310"
        in (" ".join(capsys.readouterr().out.split()))
    )
    assert main([*words, "--format=csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(f",{LINE.date}")
    rows, notices = interval_energies(ListSource(world.scrapes()), calendar_spans(start_s, end_s, "1h"), [], "device")
    assert math.fsum(one.joules or 0.0 for one in rows) == pytest.approx(expected, rel=1e-6)
    assert [notice.reason for notice in notices] == ["calibrated"]


def test_power_without_a_counter_is_calibrated_too() -> None:
    times_s = np.arange(0.0, 20.0, 0.5)
    labels = {"instance": EXPORTER, "collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package"}
    watts = RawSeries(name=catalog.DEVICE_POWER.name, labels=labels, times_s=times_s, values=100 + times_s % 3)
    world = world_of()
    calibration = [raw for raw in world.scrapes() if raw.name.startswith(catalog.SENSOR_CALIBRATION.name)]
    rows = [
        measure(build_history("memory", [watts, *more]), Span(2.0, 18.0), [], "all")[0] for more in ([], calibration)
    ]
    plain, calibrated = (row.energy for row in rows)
    assert plain is not None and calibrated is not None and calibrated.method == "power"
    assert calibrated.joules == pytest.approx(1.05 * plain.joules + 2.0 * 16)


def test_the_power_over_time_is_calibrated() -> None:
    world = world_of()
    assert world.record is not None
    calibrated, plain = (
        power_lines(one.record, ListSource(one.scrapes()))[0].watts  # type: ignore[arg-type]
        for one in (world, raw_world(world))
    )
    assert calibrated == pytest.approx(1.05 * plain + 2.0)


def test_a_frozen_counter_stays_frozen() -> None:
    """The offset would turn 0 J into an energy."""
    world = world_of()
    for raw in (scrapes := world.scrapes()):
        if raw.name == catalog.DEVICE_ENERGY.name:
            raw.values[:] = 1000.0
    assert world.record is not None
    result = analyze_run(without_edges(world.record), ListSource(scrapes))
    assert all(group.total.gross is None and "[frozen]" in group.total.missing for group in result.groups)


def test_a_calibrated_package_is_not_exceeded_by_its_cores() -> None:
    """The core has the error of its package, and no calibration."""
    core = sensor("socket0", "core", "cpu", "part")
    low = dataclasses.replace(CPU, calibration=dataclasses.replace(LINE, gain=0.5, lowest_watts=10.0))
    reasons = {finding.reason for finding in analysed(world_of(low, core), "edges").findings}
    assert "calibrated" in reasons and "core_exceeds_package" not in reasons


def test_a_journal_holds_the_calibration_and_older_ones_have_none() -> None:
    world = world_of()
    assert world.record is not None
    line = encode_line(world.record.header)
    read = decode_line(line)
    assert isinstance(read, RunHeader) and read.sensors[0].calibration == LINE
    for one in line["sensors"]:
        del one["calibration"]
    older = decode_line(line)
    assert isinstance(older, RunHeader) and older.sensors[0].calibration is None


@pytest.mark.parametrize("missing", catalog.CALIBRATION_PARAMETERS)
def test_an_incomplete_calibration_is_not_used(missing: str) -> None:
    values = {name: float(getattr(LINE, name)) for name in catalog.CALIBRATION_PARAMETERS if name != missing}
    assert CalibrationRecord.of_metrics(values, {}) is None
    assert CalibrationRecord.of_metrics({**values, missing: math.nan}, {}) is None


def test_of_two_calibrations_the_newer_one_is_described() -> None:
    """A span may hold the labels of an older one."""
    samples = world_of().scrapes()
    older = next(raw for raw in samples if raw.name == catalog.SENSOR_CALIBRATION_INFO.name)
    labels = {**older.labels, "date": "2026-01-01T00:00:00+00:00", "reference": "old"}
    for more in (
        [*samples, dataclasses.replace(older, labels=labels)],
        [dataclasses.replace(older, labels=labels), *samples],
    ):
        (record,) = build_history("memory", more).sensors.values()
        assert record.calibration is not None and record.calibration.reference == "WT310"
