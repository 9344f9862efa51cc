"""The energy of every sensor in every window of a run, by edges or by history, whichever is less uncertain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from joulewatch_harness.analysis.energy.window_energy import (
    ClockOffset,
    EdgeReading,
    Span,
    WindowEnergy,
    energy_from_counter,
    energy_from_edges,
    with_unseen,
)
from joulewatch_harness.analysis.sources.history import Health, History, traits_of, unknown_sensor
from joulewatch_harness.analysis.sources.series import (
    Floats,
    SensorId,
    Series,
    Traits,
    default_max_gap_s,
    is_loopback,
)
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.records import Edge, RunRecord, SensorRecord, Window

LARGEST_UNMEASURED: Final = 0.01
"""Largest share of a window that a counter may miss; above it there is no number."""
_CLEAN: Final = Health()
Readings = Mapping[SensorId, tuple[float, float]]
"""Sensor -> time on the exporter's clock, and joules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One sensor in one window: a number, or why there is none."""

    energy: WindowEnergy | None
    reason: str = ""
    text: str = ""
    edges: WindowEnergy | None = None
    """Energy by edges, for the audit; None: no edges."""
    history: WindowEnergy | None = None
    """Energy by the counter's history, for the audit; None: no history."""
    health: Health = _CLEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredWindow:
    """A window with the energy of every sensor of the run."""

    window: Window
    span: Span
    sensors: Mapping[SensorId, Measured]
    offsets: Mapping[str, ClockOffset] = field(default_factory=dict)
    """Exporter -> its clock minus the harness's, bounded by the round trips at the edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """All windows of a run, and the sensors that measured them."""

    record: RunRecord
    sensors: Mapping[SensorId, SensorRecord]
    windows: tuple[MeasuredWindow, ...]
    history: History


def span_of(window: Window) -> Span:
    """Return the window on the harness's clock; its length is from the monotonic clock."""
    return Span(window.start_s, window.start_s + window.duration_s, window.clock_error_s)


def known_sensors(record: RunRecord, history: History) -> dict[SensorId, SensorRecord]:
    """Return every energy sensor of the run: from its header, the history and its edges, best description first."""
    sensors = {SensorId.of(metadata): metadata for metadata in record.header.sensors}
    for sensor, stored in history.sensors.items():
        known = sensors.get(sensor)
        if known is None or (known.refresh_s is None and stored.refresh_s is not None):
            sensors[sensor] = stored
        elif known.window_s is None and stored.window_s is not None:
            sensors[sensor] = replace(known, window_s=stored.window_s)
    for window in record.windows:
        for edge in (window.start_edge, window.end_edge):
            for counter in edge.counters if edge is not None else ():
                sensor = SensorId.of(counter)
                sensors.setdefault(sensor, unknown_sensor(sensor))
    return dict(sorted(sensors.items()))


def same_clock(exporter: str, record: RunRecord) -> bool:
    """Return whether the exporter and the harness ran on one machine, and so share a clock."""
    host = record.header.provenance.get("host")
    for described in record.header.exporters:
        if described.name == exporter and described.nodename and host:
            return bool(described.nodename == host)
    return is_loopback(exporter)


def _edge_offsets(window: Window) -> dict[str, ClockOffset]:
    """Return the clock offset of each exporter, from the round trips at both edges of a window."""
    bounds: dict[str, list[tuple[float, float]]] = {}
    for edge in (window.start_edge, window.end_edge):
        for clock in edge.clocks if edge is not None else ():
            bounds.setdefault(clock.exporter, []).append((clock.lower_s, clock.upper_s))
    offsets = {}
    for exporter, pairs in bounds.items():
        lower, upper = max(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
        if lower > upper:
            # The clock changed inside the window: the bounds cover both edges.
            lower, upper = min(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
        offsets[exporter] = ClockOffset(lower, upper)
    return offsets


def _typical_offsets(
    record: RunRecord, exporters: Iterable[str], offsets: Sequence[Mapping[str, ClockOffset]]
) -> dict[str, ClockOffset]:
    """Return the median offset of each exporter on another machine, for windows without a measured offset."""
    typical = {}
    for exporter in exporters:
        own = [bounds[exporter] for bounds in offsets if exporter in bounds]
        if own and not same_clock(exporter, record):
            lower_s = float(np.median([offset.lower_s for offset in own]))
            typical[exporter] = ClockOffset(lower_s, float(np.median([offset.upper_s for offset in own])))
    return typical


def _readings_at(edge: Edge | None) -> Readings:
    if edge is None:
        return {}
    return {SensorId.of(counter): (counter.read_at_s, counter.energy_joules) for counter in edge.counters}


def _power_ranges(
    readings: Sequence[tuple[Readings, Readings]], history: History, run_end_s: float
) -> dict[SensorId, tuple[float, float]]:
    """Return the smallest and largest mean power in watts of each sensor between two readings, up to the run's end.

    Readings after the end are ignored, so that a run has the same energies whenever it is analyzed.
    """
    powers: dict[SensorId, list[float]] = {}
    # On the clock of each exporter.
    last_read_s: dict[SensorId, float] = {}
    for start, end in readings:
        for sensor, (read_at_s, joules) in end.items():
            last_read_s[sensor] = max(read_at_s, last_read_s.get(sensor, read_at_s))
            if sensor in start and read_at_s > start[sensor][0]:
                powers.setdefault(sensor, []).append((joules - start[sensor][1]) / (read_at_s - start[sensor][0]))
    for sensor, counter in history.counters.items():
        count = int(counter.times_s.searchsorted(last_read_s.get(sensor, run_end_s)))
        if count > 1:
            slopes = np.diff(counter.values[:count]) / np.diff(counter.times_s[:count])
            powers.setdefault(sensor, []).extend((float(slopes.min()), float(slopes.max())))
    # Below zero the counter restarted, and the power is not known.
    return {sensor: (max(min(watts), 0.0), max(*watts, 0.0)) for sensor, watts in powers.items()}


def measure_run(record: RunRecord, history: History) -> MeasuredRun:
    """Measure every sensor of a run in every window.

    If a window has both edges and history, the one with the smaller uncertainty is used: the edges, unless the
    sensor is read so rarely that its readings are far from the window.
    """
    sensors = known_sensors(record, history)
    readings = [(_readings_at(window.start_edge), _readings_at(window.end_edge)) for window in record.windows]
    run_end_s = max((window.start_s + window.duration_s for window in record.windows), default=-math.inf)
    ranges = _power_ranges(readings, history, run_end_s)
    offsets = [_edge_offsets(window) for window in record.windows]
    typical = _typical_offsets(record, {sensor.exporter for sensor in sensors}, offsets)
    data = [
        _SensorData(
            sensor=sensor,
            traits=traits_of(metadata),
            counter=history.counters.get(sensor),
            max_gap_s=default_max_gap_s(history.counters[sensor].spacing_s) if sensor in history.counters else None,
            restarts_s=history.starts.get(sensor.exporter),
            range_watts=ranges.get(sensor, (0.0, 0.0)),
            one_clock=same_clock(sensor.exporter, record),
            readings=history.readings.get(sensor),
        )
        for sensor, metadata in sensors.items()
    ]
    windows = []
    for window, (start, end), bounds in zip(record.windows, readings, offsets, strict=True):
        if window.duration_s <= 0:
            continue
        span = span_of(window)
        results = {}
        for sensor_data in data:
            sensor = sensor_data.sensor
            offset = (
                ClockOffset() if sensor_data.one_clock else bounds.get(sensor.exporter, typical.get(sensor.exporter))
            )
            results[sensor] = _measure(
                sensor_data,
                span,
                (start.get(sensor), end.get(sensor)),
                _missing(window, sensor.exporter),
                history.health(sensor, span.start_s, span.end_s),
                offset or ClockOffset(),
            )
        windows.append(MeasuredWindow(window=window, span=span, sensors=results, offsets=bounds))
    return MeasuredRun(record=record, sensors=sensors, windows=tuple(windows), history=history)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SensorData:
    """Data of a sensor over the whole run."""

    sensor: SensorId
    traits: Traits
    counter: Series | None
    max_gap_s: float | None
    restarts_s: Floats | None
    range_watts: tuple[float, float]
    """Smallest and largest mean power between two readings."""
    one_clock: bool
    readings: Series | None
    """Power values of a sensor that observes only part of the time."""


def _missing(window: Window, exporter: str) -> str:
    """Return why an exporter was not read at an edge; empty if it was read."""
    for edge in (window.start_edge, window.end_edge):
        if edge is not None and exporter in edge.missing:
            return edge.missing[exporter]
    return ""


def _measure(
    data: _SensorData,
    span: Span,
    readings: tuple[tuple[float, float] | None, tuple[float, float] | None],
    missing: str,
    health: Health,
    offset: ClockOffset,
) -> Measured:
    sensor, counter = data.sensor, data.counter
    problems: list[CoverageError] = []
    by_edges = by_history = None
    start, end = readings
    if start is not None and end is not None:
        try:
            by_edges = energy_from_edges(
                EdgeReading(*start, offset),
                EdgeReading(*end, offset),
                span,
                data.traits,
                restarts_s=data.restarts_s,
                power_floor_watts=data.range_watts[0],
                power_cap_watts=data.range_watts[1],
            )
        except CoverageError as error:
            problems.append(error)
    if counter is not None:
        try:
            by_history = energy_from_counter(
                counter,
                span,
                data.traits,
                offset=offset,
                max_gap_s=data.max_gap_s,
                restarts_s=data.restarts_s,
                power_floor_watts=data.range_watts[0],
                power_cap_watts=data.range_watts[1],
            )
        except CoverageError as error:
            problems.append(error)
    if by_edges is None and by_history is None:
        reason, text = _why_not(sensor, problems, missing, health, readings, counter)
        return Measured(energy=None, reason=reason, text=text, health=health)
    if health.unmeasured_s > LARGEST_UNMEASURED * span.duration_s:
        text = f"{sensor}: the counter did not cover {health.unmeasured_s:.3g} s of {span.duration_s:.3g} s"
        return Measured(
            energy=None, reason="unmeasured_time", text=text, edges=by_edges, history=by_history, health=health
        )
    restart = next((problem for problem in problems if problem.reason == "exporter_restart"), None)
    if restart is not None:
        # If either method saw a restart, reject the window.
        return Measured(
            energy=None,
            reason=restart.reason,
            text=f"{sensor}: {restart}",
            edges=by_edges,
            history=by_history,
            health=health,
        )
    best = by_edges or by_history
    if by_edges is not None and by_history is not None and by_history.sampling_joules < by_edges.sampling_joules:
        best = by_history
    assert best is not None
    best = with_unseen(
        best,
        span,
        data.traits,
        data.readings,
        offset=offset,
        power_floor_watts=data.range_watts[0],
        power_cap_watts=data.range_watts[1],
    )
    return Measured(energy=best, reason="", text="", edges=by_edges, history=by_history, health=health)


def _why_not(
    sensor: SensorId,
    problems: Sequence[CoverageError],
    missing: str,
    health: Health,
    readings: tuple[object, object],
    counter: Series | None,
) -> tuple[str, str]:
    """Return the most helpful reason and its text: reports of the exporter before effects of missing data."""
    if health.down:
        return "sensor_down", f"{sensor}: the exporter could not read the device"
    restart = next((error for error in problems if error.reason == "exporter_restart"), None)
    error = restart or (problems[0] if problems else None)
    if error is not None:
        return error.reason, f"{sensor}: {error}"
    if missing:
        return "edge_missing", f"{sensor}: the exporter could not be read at an edge: {missing}"
    if readings != (None, None):
        return "edge_missing", f"{sensor}: read at only one edge"
    if counter is None:
        return "no_samples", f"{sensor}: no edge and no sample"
    return "unbracketed", f"{sensor}: the samples do not enclose the window"
