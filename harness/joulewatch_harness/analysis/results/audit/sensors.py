"""Audit of one sensor, window by window: in each window, most checks have nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.energy.calibrated import outside_text
from joulewatch_harness.analysis.energy.frozen import pause_text
from joulewatch_harness.analysis.energy.windows import LARGEST_UNMEASURED, Measured, MeasuredRun, MeasuredWindow
from joulewatch_harness.analysis.results.audit.findings import Finding, Severity
from joulewatch_harness.analysis.sources.history import refresh_s_of
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.plan.plan import REFRESHES_PER_WINDOW
from joulewatch_harness.plan.refresh import has_refresh

STEADY_TOLERANCE: Final = 0.10
"""Largest relative difference of the mean powers in the two halves of a window."""


Results = Iterable[tuple[MeasuredWindow, Measured]]
"""The windows of a run, each with the result of one sensor in it."""


def _missing(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    # The result does not include nodes and parts, so it is complete without them.
    severity: Severity = "error" if sensor.scope == "device" else "warning"
    for measured, result in results:
        # A clock that was set has one finding for all its sensors (``_clocks``).
        if result.energy is None and result.reason != "clock_stepped":
            yield Finding(
                severity=severity,
                reason=result.reason,
                text=result.text,
                evidence={"sensor": str(sensor)},
                window=measured.window.index,
            )


def _edges_and_history(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    for measured, result in results:
        by_edges, by_history = result.edges, result.history
        if by_edges is None or by_history is None:
            continue
        apart = max(by_edges.lower_joules - by_history.upper_joules, by_history.lower_joules - by_edges.upper_joules)
        # A double holds a counter of 1e9 J to 1e-7 J.
        if apart > 1e-6:
            yield Finding(
                severity="error",
                reason="edge_history_disagreement",
                text=f"{sensor}: {by_edges.joules:.6g} J by edges, outside the bounds of the history "
                f"({by_history.lower_joules:.6g} to {by_history.upper_joules:.6g} J); check that both are of the same "
                "exporter",
                evidence={
                    "sensor": str(sensor),
                    "edges_joules": by_edges.joules,
                    "history_lower_joules": by_history.lower_joules,
                    "history_upper_joules": by_history.upper_joules,
                },
                window=measured.window.index,
            )


def _below_refresh(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    metadata = run.sensors[sensor]
    if not has_refresh(metadata):
        return
    refresh_s = refresh_s_of(metadata, run.history.counters.get(sensor))
    known = "" if metadata.refresh_s is not None else " (not published; from the samples, or assumed)"
    for measured, result in results:
        duration_s = measured.span.duration_s
        if result.energy is not None and duration_s < REFRESHES_PER_WINDOW * refresh_s:
            yield Finding(
                severity="warning",
                reason="below_refresh",
                text=f"{sensor}: the window of {duration_s:.3g} s contains fewer than {REFRESHES_PER_WINDOW} refresh "
                f"periods of {refresh_s:.3g} s{known}; use longer windows",
                evidence={"sensor": str(sensor), "duration_s": duration_s, "refresh_s": refresh_s},
                window=measured.window.index,
            )


def _wraps(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    for measured, result in results:
        if wraps := result.health.wraps:
            yield Finding(
                severity="info",
                reason="wraps_seen",
                text=f"{sensor}: the counter wrapped "
                f"{count_of(round(wraps), 'time; the wrap was', 'times; the wraps were')} corrected",
                evidence={"sensor": str(sensor), "wraps": wraps},
                window=measured.window.index,
            )


def _rejected(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    reading, readings = "reading outside physical bounds was", "readings outside physical bounds were"
    for measured, result in results:
        if rejected := result.health.rejected:
            yield Finding(
                severity="warning",
                reason="rejected_readings",
                text=f"{sensor}: {count_of(round(rejected), reading, readings)} rejected",
                evidence={"sensor": str(sensor), "readings": rejected},
                window=measured.window.index,
            )


def _unmeasured(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    for measured, result in results:
        unmeasured_s, duration_s = result.health.unmeasured_s, measured.span.duration_s
        if 0 < unmeasured_s <= LARGEST_UNMEASURED * duration_s:
            yield Finding(
                severity="warning",
                reason="unmeasured_time",
                text=f"{sensor}: the counter did not cover {unmeasured_s:.3g} s of {duration_s:.3g} s",
                evidence={"sensor": str(sensor), "unmeasured_s": unmeasured_s},
                window=measured.window.index,
            )


def _short_pause(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    """Report counters that were frozen for so short a part of the window that its energy is kept."""
    for measured, result in results:
        if result.pause_s > 0 and result.energy is not None:
            yield Finding(
                severity="warning",
                reason="frozen",
                text=pause_text(sensor, result.pause_s),
                evidence={"sensor": str(sensor), "pause_s": result.pause_s},
                window=measured.window.index,
            )


def _outside_calibration(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    for measured, result in results:
        if result.energy is not None and (text := outside_text(result.energy)):
            yield Finding(
                severity="warning",
                reason="outside_calibration",
                text=f"{sensor}: {text}",
                evidence={"sensor": str(sensor)},
                window=measured.window.index,
            )


def _steady(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    """Compare the mean powers of a measure window's halves, if it contains at least four samples."""
    counter = run.history.counters.get(sensor)
    measures = [(measured, result) for measured, result in results if measured.window.kind == "measure"]
    if counter is None or not measures:
        return
    times_s = counter.times_s
    limits_s = np.array([(measured.span.start_s, measured.span.end_s) for measured, _ in measures])
    for (measured, result), (first, last) in zip(measures, times_s.searchsorted(limits_s).tolist(), strict=True):
        if last - first < 4 or result.energy is None:
            continue
        inside, values = times_s[first:last], counter.values[first:last]
        middle = int(np.searchsorted(inside, (inside[0] + inside[-1]) / 2))
        if not 0 < middle < inside.size - 1:
            continue
        watts = [
            float((values[j] - values[i]) / (inside[j] - inside[i]))
            for i, j in ((0, middle), (middle, inside.size - 1))
        ]
        mean = (watts[0] + watts[1]) / 2
        if mean > 0 and abs(watts[1] - watts[0]) > STEADY_TOLERANCE * mean:
            yield Finding(
                severity="warning",
                reason="power_not_steady",
                text=f"{sensor}: {watts[0]:.4g} W in the first half of the window, {watts[1]:.4g} W in the second; use "
                "a longer warm-up",
                evidence={"sensor": str(sensor), "first_watts": watts[0], "second_watts": watts[1]},
                window=measured.window.index,
            )


def _too_uncertain(run: MeasuredRun, sensor: SensorId, results: Results) -> Iterator[Finding]:
    for measured, result in results:
        energy = result.energy
        if energy is None or measured.window.kind != "measure":
            continue
        expanded = NORMAL_95 * energy.standard_joules
        if expanded > energy.joules > 0:
            largest = max(energy.budget, key=lambda item: item.standard_joules)
            yield Finding(
                severity="warning",
                reason="too_uncertain",
                text=f"{sensor}: {energy.joules:.3g} J ± {expanded:.3g} J: {largest.name}, {largest.text}; use longer "
                "windows, or stop other load on the machine",
                evidence={"sensor": str(sensor), "joules": energy.joules, "uncertainty_joules": expanded},
                window=measured.window.index,
            )


SensorCheck = Callable[[MeasuredRun, SensorId, Results], Iterator[Finding]]
SENSOR_CHECKS: Final[tuple[SensorCheck, ...]] = (
    _missing,
    _edges_and_history,
    _below_refresh,
    _too_uncertain,
    _wraps,
    _rejected,
    _unmeasured,
    _short_pause,
    _outside_calibration,
    _steady,
)
