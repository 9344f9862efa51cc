"""The energy of every sensor in every window of a run, by the best way that the data allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
from joulewatch_harness.analysis.sources.series import Floats, SensorId, Series, Traits, default_max_gap_s
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.records import Edge, RunRecord, SensorRecord, Window

LARGEST_UNMEASURED: float = 0.01
"""Share of a window that a counter may have missed; above it there is no number."""
_LOOPBACK = ("127.", "localhost", "[::1]")
_CLEAN = Health()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One sensor in one window: a number, or why there is none."""

    energy: WindowEnergy | None
    reason: str = ""
    text: str = ""
    edges: WindowEnergy | None = None
    """By edges, where there are any: for the audit."""
    history: WindowEnergy | None = None
    """By the counter's history, where there is one: for the audit."""
    health: Health = _CLEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredWindow:
    """A window with the energy of every sensor of the run."""

    window: Window
    span: Span
    sensors: Mapping[SensorId, Measured]
    offsets: Mapping[str, ClockOffset] = field(default_factory=dict)
    """Exporter -> its clock minus the harness's, as the edges' round trips bound it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """All windows of a run, and what measured them."""

    record: RunRecord
    sensors: Mapping[SensorId, SensorRecord]
    windows: tuple[MeasuredWindow, ...]
    history: History


def span_of(window: Window) -> Span:
    """The window on the harness's clock; its length is the monotonic clock's."""
    return Span(window.start_s, window.start_s + window.duration_s, window.clock_error_s)


def known_sensors(record: RunRecord, history: History) -> dict[SensorId, SensorRecord]:
    """Every energy sensor of the run: from its header, its edges and the history, best description first."""
    found = {SensorId.of(item): item for item in record.header.sensors}
    for sensor, item in history.sensors.items():
        known = found.get(sensor)
        if known is None or (known.refresh_s is None and item.refresh_s is not None):
            found[sensor] = item
        elif known.window_s is None and item.window_s is not None:
            found[sensor] = replace(known, window_s=item.window_s)
    for window in record.windows:
        for edge in (window.start_edge, window.end_edge):
            for counter in edge.counters if edge is not None else ():
                sensor = SensorId.of(counter)
                if sensor not in found:
                    found[sensor] = unknown_sensor(sensor)
    return dict(sorted(found.items()))


def same_clock(exporter: str, record: RunRecord) -> bool:
    """Whether the exporter and the harness ran on one machine, and so on one clock."""
    host = record.header.provenance.get("host")
    for item in record.header.exporters:
        if item.name == exporter and item.nodename and host:
            return bool(item.nodename == host)
    return exporter.startswith(_LOOPBACK)


def _edge_offsets(window: Window) -> dict[str, ClockOffset]:
    """Clock offset of each exporter from the round trips at both edges of a window."""
    bounds: dict[str, list[tuple[float, float]]] = {}
    for edge in (window.start_edge, window.end_edge):
        for clock in edge.clocks if edge is not None else ():
            bounds.setdefault(clock.exporter, []).append((clock.lower_s, clock.upper_s))
    offsets = {}
    for exporter, pairs in bounds.items():
        lower, upper = max(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
        if lower > upper:
            # The clock moved inside the window: all that both edges allow.
            lower, upper = min(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
        offsets[exporter] = ClockOffset(lower, upper)
    return offsets


def _typical(offsets: Sequence[ClockOffset]) -> ClockOffset:
    return ClockOffset(
        float(np.median([item.lower_s for item in offsets])), float(np.median([item.upper_s for item in offsets]))
    )


def _counters(edge: Edge | None) -> dict[SensorId, tuple[float, float]]:
    if edge is None:
        return {}
    return {SensorId.of(item): (item.read_at_s, item.energy_joules) for item in edge.counters}


def _power_ranges(
    readings: Sequence[tuple[Mapping[SensorId, tuple[float, float]], Mapping[SensorId, tuple[float, float]]]],
    history: History,
    run_end_s: float,
) -> dict[SensorId, tuple[float, float]]:
    """Smallest and largest mean power of each sensor between any two readings up to the end of the run, watts.

    What came after it does not count: a run tells the same energy whenever it is analyzed.
    """
    seen: dict[SensorId, list[float]] = {}
    # On each exporter's own clock, where it was read.
    last_read_s: dict[SensorId, float] = {}
    for start, end in readings:
        for sensor, (read_at_s, joules) in end.items():
            last_read_s[sensor] = max(read_at_s, last_read_s.get(sensor, read_at_s))
            if sensor in start and read_at_s > start[sensor][0]:
                seen.setdefault(sensor, []).append((joules - start[sensor][1]) / (read_at_s - start[sensor][0]))
    for sensor, counter in history.counters.items():
        count = int(counter.times_s.searchsorted(last_read_s.get(sensor, run_end_s)))
        if count > 1:
            slopes = np.diff(counter.values[:count]) / np.diff(counter.times_s[:count])
            seen.setdefault(sensor, []).extend((float(slopes.min()), float(slopes.max())))
    # Below zero a counter began again, and what it drew then is not known.
    return {sensor: (max(min(powers), 0.0), max(*powers, 0.0)) for sensor, powers in seen.items()}


def measure_run(record: RunRecord, history: History) -> MeasuredRun:
    """Measure every sensor of a run in every window.

    With both ways at hand, the one with the smaller uncertainty counts: edges, unless a sensor is read so
    seldom that its readings lie far from the window.
    """
    sensors = known_sensors(record, history)
    readings = [(_counters(window.start_edge), _counters(window.end_edge)) for window in record.windows]
    run_end_s = max((span_of(window).end_s for window in record.windows), default=-math.inf)
    ranges = _power_ranges(readings, history, run_end_s)
    offsets = [_edge_offsets(window) for window in record.windows]
    exporters = {sensor.exporter for sensor in sensors}
    one_clock = {exporter for exporter in exporters if same_clock(exporter, record)}
    typical = {}
    for exporter in exporters - one_clock:
        seen = [item[exporter] for item in offsets if exporter in item]
        if seen:
            typical[exporter] = _typical(seen)
    known = [
        _Known(
            sensor=sensor,
            traits=traits_of(item),
            counter=history.counters.get(sensor),
            max_gap_s=default_max_gap_s(history.counters[sensor].spacing_s) if sensor in history.counters else None,
            restarts_s=history.starts.get(sensor.exporter),
            range_watts=ranges.get(sensor, (0.0, 0.0)),
            one_clock=sensor.exporter in one_clock,
            readings=history.readings.get(sensor),
        )
        for sensor, item in sensors.items()
    ]
    measured = []
    for window, (start, end), bounds in zip(record.windows, readings, offsets, strict=True):
        if window.duration_s <= 0:
            continue
        span = span_of(window)
        found = {}
        for item in known:
            exporter = item.sensor.exporter
            offset = ClockOffset() if item.one_clock else bounds.get(exporter, typical.get(exporter))
            found[item.sensor] = _measure(
                item,
                span,
                (start.get(item.sensor), end.get(item.sensor)),
                _missing(window, exporter),
                history.health(item.sensor, span.start_s, span.end_s),
                offset or ClockOffset(),
            )
        measured.append(MeasuredWindow(window=window, span=span, sensors=found, offsets=bounds))
    return MeasuredRun(record=record, sensors=sensors, windows=tuple(measured), history=history)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of a sensor over the whole run."""

    sensor: SensorId
    traits: Traits
    counter: Series | None
    max_gap_s: float | None
    restarts_s: Floats | None
    range_watts: tuple[float, float]
    """Smallest and largest mean power between any two readings."""
    one_clock: bool
    readings: Series | None
    """Of a sensor that does not look all the time."""


def _missing(window: Window, exporter: str) -> str:
    """Why an exporter was not read at an edge."""
    for edge in (window.start_edge, window.end_edge):
        if edge is not None and exporter in edge.missing:
            return edge.missing[exporter]
    return ""


def _measure(
    known: _Known,
    span: Span,
    readings: tuple[tuple[float, float] | None, tuple[float, float] | None],
    missing: str,
    health: Health,
    offset: ClockOffset,
) -> Measured:
    sensor, counter = known.sensor, known.counter
    problems: list[CoverageError] = []
    by_edges = by_history = None
    start, end = readings
    if start is not None and end is not None:
        try:
            by_edges = energy_from_edges(
                EdgeReading(*start, offset),
                EdgeReading(*end, offset),
                span,
                known.traits,
                restarts_s=known.restarts_s,
                power_floor_watts=known.range_watts[0],
                power_cap_watts=known.range_watts[1],
            )
        except CoverageError as error:
            problems.append(error)
    if counter is not None:
        try:
            by_history = energy_from_counter(
                counter,
                span,
                known.traits,
                offset=offset,
                max_gap_s=known.max_gap_s,
                restarts_s=known.restarts_s,
                power_cap_watts=known.range_watts[1],
            )
        except CoverageError as error:
            problems.append(error)
    if by_edges is None and by_history is None:
        reason, text = _why_not(sensor, problems, missing, health, readings, counter)
        return Measured(energy=None, reason=reason, text=text, health=health)
    if health.unmeasured_s > LARGEST_UNMEASURED * span.duration_s:
        text = f"{sensor}: the counter missed {health.unmeasured_s:.3g} s of {span.duration_s:.3g} s"
        return Measured(
            energy=None, reason="unmeasured_time", text=text, edges=by_edges, history=by_history, health=health
        )
    restart = next((problem for problem in problems if problem.reason == "exporter_restart"), None)
    if restart is not None:
        # One way saw the counter begin again; that the other did not is no comfort.
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
        known.traits,
        known.readings,
        offset=offset,
        power_floor_watts=known.range_watts[0],
        power_cap_watts=known.range_watts[1],
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
    """The reason that helps most: what the exporter itself says goes before what its absence looks like."""
    if health.down:
        return "sensor_down", f"{sensor}: the exporter could not read the device"
    restart = next((error for error in problems if error.reason == "exporter_restart"), None)
    error = restart or (problems[0] if problems else None)
    if error is not None:
        return error.reason, f"{sensor}: {error}"
    if missing:
        return "edge_missing", f"{sensor}: exporter not read at an edge: {missing}"
    if readings != (None, None):
        return "edge_missing", f"{sensor}: read at one edge only"
    if counter is None:
        return "no_samples", f"{sensor}: no edge and no sample"
    return "unbracketed", f"{sensor}: the samples do not reach around the window"
