"""Compare a sensor with a reference in the windows of a run: one point per window, with uncertainties in both.

The sensor's powers are those that it reads, also if it is calibrated already. The reference is integrated over the same
windows as any other sensor; nothing compares the clock of a log with the harness's, so that counts as unknown.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from joulewatch_harness.analysis.energy.budget import budget_item
from joulewatch_harness.analysis.energy.from_history import energy_from_counter
from joulewatch_harness.analysis.energy.from_power import energy_from_power
from joulewatch_harness.analysis.energy.frozen import withhold_frozen
from joulewatch_harness.analysis.energy.sensor_energies import matches
from joulewatch_harness.analysis.energy.settling import with_settling
from joulewatch_harness.analysis.energy.window_energy import UNKNOWN_CLOCK, UNKNOWN_OFFSET_S, Span, WindowEnergy
from joulewatch_harness.analysis.energy.windows import MeasuredRun, MeasuredWindow, measure_run
from joulewatch_harness.analysis.results.uncertainty import combine
from joulewatch_harness.analysis.sources.history import History
from joulewatch_harness.analysis.sources.power_log import PowerLog
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.errors import ConfigError, CoverageError
from joulewatch_harness.records import RunRecord, SensorRecord

KINDS: Final = ("idle", "measure")
"""Windows of constant load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The mean powers of one window."""

    window: int
    kind: str
    sensor_watts: float
    sensor_standard_watts: float
    reference_watts: float
    reference_standard_watts: float
    """Without the accuracy of the reference."""
    each_watts: tuple[float, ...]
    """Of each sensor of the sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All windows that sensor and reference both measured."""

    sensors: tuple[SensorRecord, ...]
    """More than one: their sum is compared."""
    points: tuple[Point, ...]
    excluded: tuple[str, ...]
    """Why other windows are not used."""


def compare_run(record: RunRecord, history: History, patterns: Sequence[str], log: PowerLog) -> Comparison:
    """Return the mean powers of the chosen sensors and of a reference in all idle and measured windows of a run.

    Args:
        record: The run.
        history: The samples of its sensors; may be empty if the run has edges.
        patterns: Wildcards for the sensors, as of ``joulewatch energy``; none: the primary node sensor.
        log: The reference.

    Raises:
        ConfigError: No sensor matches, the sum would count energy twice, or log and run have no time in common.
    """
    windows = tuple(window for window in record.windows if window.kind in KINDS and "interrupted" not in window.flags)
    if not windows:
        raise ConfigError(f"run {record.header.run}: has no idle or measured window")
    _check_overlap(log, min(window.start_s for window in windows), max(window.end_s for window in windows))
    # Without ``with_calibrations``: as the sensors read.
    run = with_settling(withhold_frozen(measure_run(replace(record, windows=windows), history)))
    sensors = _chosen(run, patterns)
    points, excluded = [], []
    for measured in run.windows:
        try:
            points.append(_point(measured, sensors, log))
        except CoverageError as error:
            excluded.append(f"window {measured.window.index}: {error} [{error.reason}]")
    described = tuple(_with_host(run, sensor) for sensor in sensors)
    return Comparison(sensors=described, points=tuple(points), excluded=tuple(excluded))


def _check_overlap(log: PowerLog, start_s: float, end_s: float) -> None:
    first_s, last_s = log.span
    if first_s > end_s or last_s < start_s:
        raise ConfigError(
            f"{log.path}: covers {_utc(first_s)} to {_utc(last_s)} UTC, but the run {_utc(start_s)} to {_utc(end_s)}; "
            "is the time zone of the log right (--timezone)?"
        )


def _utc(at_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d %H:%M:%S}"


def _chosen(run: MeasuredRun, patterns: Sequence[str]) -> list[SensorId]:
    """Return the sensors whose sum is compared."""
    if patterns:
        chosen = [sensor for sensor in run.sensors if matches(sensor, patterns)]
    else:
        chosen = [sensor for sensor, one in run.sensors.items() if sensor.scope == "node" and one.primary]
    known = ", ".join(sorted(str(sensor) for sensor in run.sensors)) or "none"
    if not chosen:
        problem = f"no sensor matches {' '.join(patterns)}" if patterns else "the run has no primary node sensor"
        raise ConfigError(f"--sensor: {problem}; the sensors are {known}")
    scopes = sorted({sensor.scope for sensor in chosen})
    if len(scopes) > 1 or (scopes == ["node"] and len({run.sensors[sensor].host for sensor in chosen}) < len(chosen)):
        names = ", ".join(map(str, chosen))
        raise ConfigError(f"--sensor: the sum of {names} would count energy twice; choose one of them")
    return chosen


def _with_host(run: MeasuredRun, sensor: SensorId) -> SensorRecord:
    record = run.sensors[sensor]
    return replace(record, host=run.record.header.machine_of(record) or run.history.nodenames.get(sensor.exporter, ""))


def _point(measured: MeasuredWindow, sensors: Sequence[SensorId], log: PowerLog) -> Point:
    energies = []
    for sensor in sensors:
        result = measured.sensors[sensor]
        if result.energy is None:
            raise CoverageError(result.reason, result.text)
        energies.append(result.energy)
    try:
        reference = reference_energy(log, measured.span)
    except CoverageError as error:
        raise CoverageError(error.reason, f"the reference: {error}") from error
    whole, duration_s = combine(energies), measured.span.duration_s
    of_the_sum = [
        u for name, u in (*whole.random.items(), *whole.systematic.items()) if not name.startswith("accuracy")
    ]
    return Point(
        window=measured.window.index,
        kind=measured.window.kind,
        sensor_watts=whole.joules / duration_s,
        sensor_standard_watts=math.hypot(*of_the_sum) / duration_s,
        reference_watts=reference.mean_power_watts,
        reference_standard_watts=reference.standard_joules / duration_s,
        each_watts=tuple(energy.mean_power_watts for energy in energies),
    )


def reference_energy(log: PowerLog, span: Span) -> WindowEnergy:
    """Return the energy of a reference in a window.

    Raises:
        CoverageError: The log does not cover the window.
    """
    if not log.is_energy:
        return energy_from_power(log.series, span, log.traits, offset=UNKNOWN_CLOCK)
    energy = energy_from_counter(log.series, span, log.traits)
    # As for power: an error of the clock gains at one edge what it loses at the other.
    part = log.series.between(span.start_s - UNKNOWN_OFFSET_S, span.end_s + UNKNOWN_OFFSET_S)
    watts = np.diff(part.values) / np.diff(part.times_s)
    half = UNKNOWN_OFFSET_S * float(np.ptp(watts))
    item = budget_item("clock", half, "uniform", "the clock of the log is not compared with the harness's")
    return replace(energy, budget=(*energy.budget, item))
