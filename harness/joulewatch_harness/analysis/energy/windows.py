"""The energy of every sensor in every window of a run, by edges or by history, whichever is less uncertain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np

from joulewatch_harness.analysis.energy.clock_offsets import Offsets, RunClocks, run_clocks
from joulewatch_harness.analysis.energy.from_edges import EdgeReadings, EdgeWindows, energies_from_edges
from joulewatch_harness.analysis.energy.from_history import Bounds, CounterEnergies, PlacedWindows
from joulewatch_harness.analysis.energy.from_power import energy_from_power
from joulewatch_harness.analysis.energy.unseen import with_unseen
from joulewatch_harness.analysis.energy.window_energy import Span, WindowEnergy, check_restart
from joulewatch_harness.analysis.sources.history import Health, History, traits_of
from joulewatch_harness.analysis.sources.known import known_sensors
from joulewatch_harness.analysis.sources.series import Floats, SensorId, Series, Traits, labels_of
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.plan.plan import REFRESHES_PER_WINDOW
from joulewatch_harness.records import EdgeCounter, RunRecord, SensorRecord, Window, WindowKind

LARGEST_UNMEASURED: Final = 0.01
"""Largest share of a window that a counter may miss; above it there is no number."""
_CLEAN: Final = Health()
Readings = list[tuple[EdgeCounter | None, EdgeCounter | None]]
"""A sensor's counters at the start and the end of each window; None: it was not read there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One sensor in one window: a number, or why there is none."""

    energy: WindowEnergy | None
    reason: str = ""
    text: str = ""
    edges: WindowEnergy | None = None
    """Energy by edges, for the audit; None: no edges."""
    history: Bounds | None = None
    """Energy by the counter's history, for the audit; None: no history."""
    health: Health = _CLEAN
    pause_s: float = 0.0
    """For how long the counter was frozen; `frozen.withhold_frozen` finds it."""
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


def _readings(record: RunRecord) -> dict[SensorId, Readings]:
    """Return the readings of each sensor that was read at an edge."""
    nothing: list[EdgeCounter | None] = [None] * len(record.windows)
    starts: dict[tuple[str, ...], list[EdgeCounter | None]] = {}
    ends: dict[tuple[str, ...], list[EdgeCounter | None]] = {}
    for position, window in enumerate(record.windows):
        for edge, readings in ((window.start_edge, starts), (window.end_edge, ends)):
            for counter in edge.counters if edge is not None else ():
                key = labels_of(counter)
                if key not in readings:
                    readings[key] = nothing.copy()
                readings[key][position] = counter
    return {
        SensorId(*key): list(zip(starts.get(key, nothing), ends.get(key, nothing), strict=True))
        for key in starts | ends
    }


def _power_ranges(
    readings: Mapping[SensorId, Readings], counters: Mapping[SensorId, Series], run_end_s: float
) -> dict[SensorId, tuple[float, float]]:
    """Return the smallest and largest mean power in watts of each sensor between two readings, up to the run's end.

    Readings after the end are ignored, so that a run has the same energies whenever it is analyzed.
    """
    powers: dict[SensorId, list[float]] = {}
    # On the clock of each exporter.
    last_read_s: dict[SensorId, float] = {}
    for sensor, pairs in readings.items():
        if ends_s := [end.read_at_s for _, end in pairs if end is not None]:
            last_read_s[sensor] = max(ends_s)
        for start, end in pairs:
            if start is not None and end is not None and end.read_at_s > start.read_at_s:
                watts = (end.energy_joules - start.energy_joules) / (end.read_at_s - start.read_at_s)
                powers.setdefault(sensor, []).append(watts)
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
    readings = _readings(record)
    sensors = known_sensors(record, history)
    clocks = run_clocks(record, {sensor.exporter for sensor in sensors})
    counters = {sensor: counter for sensor, counter in history.counters.items() if not clocks.was_set(sensor.exporter)}
    powers = {sensor: power for sensor, power in history.powers.items() if not clocks.was_set(sensor.exporter)}
    nowhere: Readings = [(None, None)] * len(record.windows)
    for sensor, pairs in readings.items():
        if clocks.was_set(sensor.exporter):
            readings[sensor] = [
                (None, None) if clocks.step(position, sensor.exporter) else pair for position, pair in enumerate(pairs)
            ]
    run_end_s = max((window.start_s + window.duration_s for window in record.windows), default=-math.inf)
    ranges = _power_ranges(readings, counters, run_end_s)
    if record.header.is_metered and all(window.kind != "idle" for window in record.windows):
        # What the machine did next to a window is not known, so its power may have been anything.
        ranges = {sensor: (0.0, highest) for sensor, (_, highest) in ranges.items()}
    positions = [position for position, window in enumerate(record.windows) if window.duration_s > 0]
    spans = [span_of(record.windows[position]) for position in positions]
    batches_s = [
        window.duration_s / window.batches if window.batches and not record.header.is_metered else math.inf
        for window in map(record.windows.__getitem__, positions)
    ]
    places = {
        exporter: _Places.of(record, clocks, exporter, positions, spans, batches_s)
        for exporter in {sensor.exporter for sensor in sensors}
    }
    results: list[dict[SensorId, Measured]] = [{} for _ in positions]
    for sensor, metadata in sensors.items():
        data = _SensorData(
            sensor=sensor,
            traits=traits_of(metadata, counters.get(sensor, powers.get(sensor))),
            counter=counters.get(sensor),
            power=powers.get(sensor),
            restarts_s=history.starts.get(sensor.exporter),
            range_watts=ranges.get(sensor, (0.0, 0.0)),
            settled=not record.header.is_metered,
            readings=None if clocks.was_set(sensor.exporter) else history.readings.get(sensor),
        )
        own_readings = readings.get(sensor, nowhere)
        measured = _measure_sensor(data, places[sensor.exporter], [own_readings[at] for at in positions], history)
        for at, result in enumerate(measured):
            results[at][sensor] = result
    windows = tuple(
        MeasuredWindow(
            window=record.windows[position],
            span=span,
            sensors=result,
            offsets=clocks.bounded[position],
            clock_steps=clocks.steps[position],
        )
        for position, span, result in zip(positions, spans, results, strict=True)
    )
    return MeasuredRun(record=record, sensors=sensors, windows=windows, history=history, clocks=clocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """All windows of a run on the clock of one exporter."""

    windows: PlacedWindows
    edges: EdgeWindows
    offsets: Sequence[Offsets]
    steps: Sequence[str]
    """How the clock was set in or next to the window; empty: it was not."""
    missing: Sequence[str]
    """Why the exporter was not read at an edge; empty: it was."""

    @classmethod
    def of(
        cls,
        record: RunRecord,
        clocks: RunClocks,
        exporter: str,
        positions: Sequence[int],
        spans: Sequence[Span],
        batches_s: Sequence[float],
    ) -> Self:
        """Place the windows at some positions of the record; ``spans`` and ``batches_s`` are those of these windows."""
        offsets = [clocks.offsets(position, exporter) for position in positions]
        return cls(
            windows=PlacedWindows.of(spans, [offset.window for offset in offsets], batches_s),
            edges=EdgeWindows.of(spans, [(offset.start, offset.end) for offset in offsets], batches_s),
            offsets=offsets,
            steps=[clocks.step(position, exporter) for position in positions],
            missing=[_missing(record.windows[position], exporter) for position in positions],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SensorData:
    """Data of a sensor over the whole run."""

    sensor: SensorId
    traits: Traits
    counter: Series | None
    power: Series | None
    """Of a sensor without a counter."""
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


def _measure_sensor(data: _SensorData, places: _Places, readings: Readings, history: History) -> list[Measured]:
    """Measure one sensor in all windows."""
    counter = data.counter
    of_edges = energies_from_edges(
        _at_one_edge([start for start, _ in readings]),
        _at_one_edge([end for _, end in readings]),
        places.edges,
        data.traits,
        restarts_s=data.restarts_s,
        power_floor_watts=data.range_watts[0],
        power_cap_watts=data.range_watts[1],
        settled=data.settled,
    )
    of_counter = None
    if counter is not None:
        of_counter = CounterEnergies(
            counter,
            places.windows,
            data.traits,
            restarts_s=data.restarts_s,
            power_floor_watts=data.range_watts[0],
            power_cap_watts=data.range_watts[1],
        )
    results = []
    for at, span in enumerate(places.windows.spans):
        health = history.health(data.sensor, span.start_s, span.end_s)
        if step := places.steps[at]:
            results.append(Measured(energy=None, reason="clock_stepped", text=step, health=health))
        else:
            results.append(_measure(data, places, at, readings[at], of_edges[at], of_counter, health))
    return results


def _at_one_edge(counters: Sequence[EdgeCounter | None]) -> EdgeReadings:
    return EdgeReadings(
        np.array([math.nan if counter is None else counter.read_at_s for counter in counters]),
        np.array([math.nan if counter is None else counter.energy_joules for counter in counters]),
        [None if counter is None else counter.step for counter in counters],
    )


def _measure(
    data: _SensorData,
    places: _Places,
    at: int,
    readings: tuple[EdgeCounter | None, EdgeCounter | None],
    of_edges: WindowEnergy | CoverageError | None,
    of_counter: CounterEnergies | None,
    health: Health,
) -> Measured:
    """Measure one sensor in one window: its number ``at``."""
    sensor, span, offsets = data.sensor, places.windows.spans[at], places.offsets[at]
    problems: list[CoverageError] = []
    by_edges = by_power = by_history = None
    if isinstance(of_edges, CoverageError):
        problems.append(of_edges)
    else:
        by_edges = of_edges
    if of_counter is not None:
        if problem := of_counter.problem(at):
            problems.append(problem)
        else:
            by_history = of_counter.bounds(at)
    elif data.power is not None:
        try:
            by_power = energy_from_power(data.power, span, data.traits, offset=offsets.window)
            by_history = Bounds(by_power.joules, by_power.lower_joules, by_power.upper_joules)
        except CoverageError as error:
            problems.append(error)
    if (
        data.power is None
        and sensor.scope != "part"
        and span.duration_s < REFRESHES_PER_WINDOW * data.traits.refresh_s
        and any(energy is not None and energy.joules == 0.0 for energy in (by_edges, by_history))
    ):
        # Every device draws power: the counter has not been updated. In longer windows it is frozen.
        text = f"the counter was not updated in the window of {span.duration_s:.3g} s; use a longer window"
        problems.append(CoverageError("below_refresh", text))
        by_edges = by_history = None
    if by_edges is None and by_history is None:
        try:
            # Without both readings or samples around the window, neither method compares it with the restarts.
            check_restart(data.restarts_s, float(places.windows.start_s[at]), float(places.windows.end_s[at]))
        except CoverageError as error:
            problems.append(error)
        reason, text = _why_not(sensor, problems, places.missing[at], health, readings, data.counter)
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
    best = by_edges or by_power
    if of_counter is not None and by_history is not None:
        # Cheap to know, and nearly always enough.
        if by_edges is None or of_counter.interpolation_joules(at) < by_edges.sampling_joules:
            by_counter = of_counter.energy(at)
            best = by_counter if by_edges is None else min(by_edges, by_counter, key=_sampling_joules)
    elif by_edges is not None and by_power is not None:
        best = min(by_edges, by_power, key=_sampling_joules)
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


def _sampling_joules(energy: WindowEnergy) -> float:
    return energy.sampling_joules


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
