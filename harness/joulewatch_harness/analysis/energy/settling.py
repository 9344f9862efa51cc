"""The systematic error of windows whose load is younger than the value that was read at their start.

A sensor's value is up to one refresh period *r* old, uniformly. If the load began only *s* < r before the window, an
old value at the start shows the power of the time before: on average, the window contains (r - s)²/(2r) seconds of that
power instead of its own. Every round has the same error, so it does not show in the scatter. The value at the end is
not affected: it is as old, but from inside the window. With r = 1 s, s = 0.2 s and 110 W between load and idle
this is 35 J, 1.2 % of 20 s at 150 W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from joulewatch_harness.analysis.energy.budget import budget_item
from joulewatch_harness.analysis.energy.windows import Measured, MeasuredRun
from joulewatch_harness.analysis.sources.history import refresh_s_of
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.records import RunRecord, WindowKind

SETTLE: Final = "settle"
"""Name of the budget component."""
_KINDS: Final[tuple[WindowKind, ...]] = ("idle", "measure")
"""The windows before which the runner waits for the settle time."""


def settle_s_of(record: RunRecord) -> float | None:
    """Return the settle time of a run's windows; None: its plan is not known."""
    value = record.header.plan.get("settle_s")
    return float(value) if isinstance(value, (int, float)) else None


def unsettled_s(refresh_s: float, settle_s: float) -> float:
    """Return for how long, on average, the start of a window shows the power of the time before."""
    return max(refresh_s - settle_s, 0.0) ** 2 / (2 * refresh_s) if refresh_s > 0 else 0.0


def with_settling(run: MeasuredRun) -> MeasuredRun:
    """Return the run with the uncertainty of windows that began before the sensors had settled."""
    settle_s = settle_s_of(run.record)
    if settle_s is None:
        return run
    times_s = {
        sensor: unsettled_s(refresh_s_of(record, run.history.counters.get(sensor)), settle_s)
        for sensor, record in run.sensors.items()
    }
    slow = {
        sensor: (
            time_s,
            min((energy.mean_power_watts for energy in run.energies(sensor, "idle")), default=0.0),
            max((energy.mean_power_watts for energy in run.energies(sensor, "measure")), default=0.0),
        )
        for sensor, time_s in times_s.items()
        if time_s > 0
    }
    return replace(
        run,
        windows=tuple(
            replace(measured, sensors=_settled(measured.sensors, slow, measured.window.kind))
            if measured.window.kind in _KINDS
            else measured
            for measured in run.windows
        ),
    )


def _settled(
    sensors: Mapping[SensorId, Measured], slow: Mapping[SensorId, tuple[float, float, float]], kind: WindowKind
) -> dict[SensorId, Measured]:
    results = dict(sensors)
    for sensor, (time_s, lowest_watts, highest_watts) in slow.items():
        energy = sensors[sensor].energy
        if energy is None:
            continue
        before_watts = highest_watts if kind == "idle" else lowest_watts
        half = time_s * abs(energy.mean_power_watts - before_watts)
        text = f"the value at the start shows {1e3 * time_s:.3g} ms of the time before, on average"
        item = budget_item(SETTLE, half, "uniform", text, systematic=True)
        results[sensor] = replace(sensors[sensor], energy=replace(energy, budget=(*energy.budget, item)))
    return results
