"""The energy of every sensor in every window of a run, by edges or by history, whichever is less uncertain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from joulewatch_harness.analysis.energy.clock_offsets import HARNESS, Offsets, RunClocks, run_clocks
from joulewatch_harness.analysis.energy.from_edges import energy_from_edges
from joulewatch_harness.analysis.energy.from_history import energy_from_counter
from joulewatch_harness.analysis.energy.from_power import energy_from_power
from joulewatch_harness.analysis.energy.unseen import with_unseen
from joulewatch_harness.analysis.energy.window_energy import EdgeReading, Span, WindowEnergy
from joulewatch_harness.analysis.sources.history import Health, History, traits_of
from joulewatch_harness.analysis.sources.known import known_sensors
from joulewatch_harness.analysis.sources.series import Floats, SensorId, Series, Traits, default_max_gap_s
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.plan.plan import REFRESHES_PER_WINDOW
from joulewatch_harness.records import Edge, EdgeCounter, RunRecord, SensorRecord, Window, WindowKind

LARGEST_UNMEASURED: Final = 0.01
"""Largest share of a window that a counter may miss; above it there is no number."""
_CLEAN: Final = Health()
Readings = Mapping[SensorId, EdgeCounter]
"""Sensor -> its counter at an edge."""


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
    clock_doubt_s: float = 0.0
    """Assumed largest offset, if the window was placed on a clock that nothing compared with the harness's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredWindow:
    """A window with the energy of every sensor of the run."""

    window: Window
    span: Span
    sensors: Mapping[SensorId, Measured]
    offsets: Mapping[str, Offsets] = field(default_factory=dict)
    """Exporter -> its clock minus the harness's, bounded by the round trips at the edges."""
    clock_steps: Mapping[str, str] = field(default_factory=dict)
    """Exporter (or ``HARNESS``) -> how its clock was set in or next to the window: its sensors have no number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """All windows of a run, and the sensors that measured them."""

    record: RunRecord
    sensors: Mapping[SensorId, SensorRecord]
    windows: tuple[MeasuredWindow, ...]
    history: History
    clocks: RunClocks

    def energies(self, sensor: SensorId, kind: WindowKind) -> list[WindowEnergy]:
        """Return the energies of a sensor in the windows of one kind; windows without an energy are skipped."""
        found = (measured.sensors[sensor].energy for measured in self.windows if measured.window.kind == kind)
        return [energy for energy in found if energy is not None]


def span_of(window: Window) -> Span:
    """Return the window on the harness's clock; its length is from the monotonic clock."""
    return Span(window.start_s, window.start_s + window.duration_s, window.clock_error_s)


def _readings_at(edge: Edge | None, steps: Mapping[str, str]) -> Readings:
    """Return the readings of an edge, without those of a clock that was set."""
    if edge is None or HARNESS in steps:
        return {}
    return {SensorId.of(counter): counter for counter in edge.counters if counter.exporter not in steps}


def _power_ranges(
    readings: Sequence[tuple[Readings, Readings]], counters: Mapping[SensorId, Series], run_end_s: float
) -> dict[SensorId, tuple[float, float]]:
    """Return the smallest and largest mean power in watts of each sensor between two readings, up to the run's end.

    Readings after the end are ignored, so that a run has the same energies whenever it is analyzed.
    """
    powers: dict[SensorId, list[float]] = {}
    # On the clock of each exporter.
    last_read_s: dict[SensorId, float] = {}
    for start, end in readings:
        for sensor, counter in end.items():
            last_read_s[sensor] = max(counter.read_at_s, last_read_s.get(sensor, counter.read_at_s))
            if sensor not in start:
                continue
            between_s = counter.read_at_s - start[sensor].read_at_s
            if between_s > 0:
                powers.setdefault(sensor, []).append((counter.energy_joules - start[sensor].energy_joules) / between_s)
    for sensor, samples in counters.items():
        count = int(samples.times_s.searchsorted(last_read_s.get(sensor, run_end_s)))
        if count > 1:
            slopes = np.diff(samples.values[:count]) / np.diff(samples.times_s[:count])
            powers.setdefault(sensor, []).extend((float(slopes.min()), float(slopes.max())))
    # Below zero the counter restarted, and the power is not known.
    return {sensor: (max(min(watts), 0.0), max(*watts, 0.0)) for sensor, watts in powers.items()}


def measure_run(record: RunRecord, history: History) -> MeasuredRun:
    """Measure every sensor of a run in every window.

    If a window has both edges and history, the one with the smaller uncertainty is used: the edges, unless the
    sensor is read so rarely that its readings are far from the window. If a clock was set during the run, the windows
    concerned have no number, and the history is not used (see ``clock_offsets``).
    """
    sensors = known_sensors(record, history)
    clocks = run_clocks(record, {sensor.exporter for sensor in sensors})
    counters = {sensor: counter for sensor, counter in history.counters.items() if not clocks.was_set(sensor.exporter)}
    powers = {sensor: power for sensor, power in history.powers.items() if not clocks.was_set(sensor.exporter)}
    readings = [
        (_readings_at(window.start_edge, steps), _readings_at(window.end_edge, steps))
        for window, steps in zip(record.windows, clocks.steps, strict=True)
    ]
    run_end_s = max((window.start_s + window.duration_s for window in record.windows), default=-math.inf)
    ranges = _power_ranges(readings, counters, run_end_s)
    if record.header.is_metered and all(window.kind != "idle" for window in record.windows):
        # What the machine did next to a window is not known, so its power may have been anything.
        ranges = {sensor: (0.0, highest) for sensor, (_, highest) in ranges.items()}
    data = [
        _SensorData(
            sensor=sensor,
            traits=traits_of(metadata, counters.get(sensor, powers.get(sensor))),
            counter=counters.get(sensor),
            power=powers.get(sensor),
            max_gap_s=default_max_gap_s(counters[sensor].spacing_s) if sensor in counters else None,
            restarts_s=history.starts.get(sensor.exporter),
            range_watts=ranges.get(sensor, (0.0, 0.0)),
            settled=not record.header.is_metered,
            readings=None if clocks.was_set(sensor.exporter) else history.readings.get(sensor),
        )
        for sensor, metadata in sensors.items()
    ]
    windows = []
    for position, (window, (start, end)) in enumerate(zip(record.windows, readings, strict=True)):
        if window.duration_s <= 0:
            continue
        span = span_of(window)
        results = {}
        for sensor_data in data:
            sensor = sensor_data.sensor
            health = history.health(sensor, span.start_s, span.end_s)
            if step := clocks.step(position, sensor.exporter):
                results[sensor] = Measured(energy=None, reason="clock_stepped", text=step, health=health)
                continue
            results[sensor] = _measure(
                sensor_data,
                span,
                (start.get(sensor), end.get(sensor)),
                _missing(window, sensor.exporter),
                health,
                clocks.offsets(position, sensor.exporter),
                window.duration_s / window.batches if window.batches and not record.header.is_metered else math.inf,
            )
        windows.append(
            MeasuredWindow(
                window=window,
                span=span,
                sensors=results,
                offsets=clocks.bounded[position],
                clock_steps=clocks.steps[position],
            )
        )
    return MeasuredRun(record=record, sensors=sensors, windows=tuple(windows), history=history, clocks=clocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SensorData:
    """Data of a sensor over the whole run."""

    sensor: SensorId
    traits: Traits
    counter: Series | None
    power: Series | None
    """Of a sensor without a counter."""
    max_gap_s: float | None
    restarts_s: Floats | None
    range_watts: tuple[float, float]
    """Smallest and largest mean power between two readings."""
    settled: bool
    """Whether the load of a window ran before it and continued after it."""
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
    readings: tuple[EdgeCounter | None, EdgeCounter | None],
    missing: str,
    health: Health,
    offsets: Offsets,
    batch_s: float,
) -> Measured:
    sensor, counter = data.sensor, data.counter
    problems: list[CoverageError] = []
    by_edges = by_history = None
    start, end = readings
    if start is not None and end is not None:
        try:
            by_edges = energy_from_edges(
                EdgeReading(start.read_at_s, start.energy_joules, offsets.start, start.step),
                EdgeReading(end.read_at_s, end.energy_joules, offsets.end, end.step),
                span,
                data.traits,
                restarts_s=data.restarts_s,
                power_floor_watts=data.range_watts[0],
                power_cap_watts=data.range_watts[1],
                batch_s=batch_s,
                settled=data.settled,
            )
        except CoverageError as error:
            problems.append(error)
    if counter is not None:
        try:
            by_history = energy_from_counter(
                counter,
                span,
                data.traits,
                offset=offsets.window,
                max_gap_s=data.max_gap_s,
                restarts_s=data.restarts_s,
                power_floor_watts=data.range_watts[0],
                power_cap_watts=data.range_watts[1],
                batch_s=batch_s,
            )
        except CoverageError as error:
            problems.append(error)
    elif data.power is not None:
        try:
            by_history = energy_from_power(data.power, span, data.traits, offset=offsets.window)
        except CoverageError as error:
            problems.append(error)
    still = [energy for energy in (by_edges, by_history) if energy is not None and energy.joules == 0.0]
    if (
        still
        and data.power is None
        and sensor.scope != "part"
        and span.duration_s < REFRESHES_PER_WINDOW * data.traits.refresh_s
    ):
        # Every device draws power: the counter has not been updated. In longer windows it is frozen.
        text = f"the counter was not updated in the window of {span.duration_s:.3g} s; use a longer window"
        problems.append(CoverageError("below_refresh", text))
        by_edges = by_history = None
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
        offset=offsets.window,
        power_floor_watts=data.range_watts[0],
        power_cap_watts=data.range_watts[1],
    )
    return Measured(
        energy=best,
        reason="",
        text="",
        edges=by_edges,
        history=by_history,
        health=health,
        clock_doubt_s=0.0 if best.method == "edges" or offsets.window.known else offsets.window.half_width_s,
    )


def _why_not(
    sensor: SensorId,
    problems: Sequence[CoverageError],
    missing: str,
    health: Health,
    readings: tuple[object, object],
    counter: Series | None,
) -> tuple[str, str]:
    """Return the most helpful reason and its text: reports of the exporter before effects of missing data."""
    if health.asleep:
        return "sensor_asleep", f"{sensor}: the device was asleep (runtime suspend) in part of the window"
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
