"""Find frozen sensors: their value does not change, although the machine keeps running.

A frozen counter gives 0 J with next to no uncertainty, a frozen gauge gives a perfectly steady power. Both look more
certain than any real result, so a value that did not change for 20 refresh periods has no energy. The exporter's check
``stuck`` uses the same limits, from the catalog. They differ for counters that are read on request and whose refresh
period is not known: the exporter assumes 5 s, because it can wait for 100 s. A window may be shorter than a second, so
the analysis assumes 0.1 s (see ``plan.refresh``). RAPL's refresh period is known.

**Counters** need no other evidence: energy is used while time passes. Two things must be excluded first:

* A counter with coarse steps rests between them: the time must be enough for a step at ``FROZEN_LEAST_WATTS``.
* Cores in a sleep state and graphics that are switched off draw nothing, and their counters rest. Parts of devices
  are therefore judged over whole windows only, and their finding is a warning, because no result includes them.

**Gauges** may be constant. A constant value with few digits does not prove that a gauge is frozen:

* A power supply that reports whole watts shows the same number for minutes on an idle server.
* A GPU at its power limit, and one that is idle while the processors work, may show one number in whole watts.

So a gauge with *coarse* steps (its published resolution is 0.5 W or more, or all its values are whole watts) is frozen
only if power that it includes has changed, by ``FROZEN_LOAD_WATTS`` and ``FROZEN_LOAD_SHARE``: a node includes the
devices of its machine, and the processors, whose use during a run is known. A coarse gauge of a single device is never
called frozen, because nothing else measures that device. A gauge with *fine* steps shows noise in its last digits
whatever the load: for it, any change of load on the machine counts, also that of another sensor, or idle and measured
windows in one run. Without any change of load, a fine gauge that did not move gets a warning and keeps its number: it
may be the output of a model, or a device that sleeps.

A sensor of another machine (read over a network) is not compared with the load of this one.

An exporter that integrates a gauge publishes a counter that rises evenly. Such a counter is judged as the gauge that it
is made of, by its slope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.energy.window_energy import Span, WindowEnergy
from joulewatch_harness.analysis.energy.windows import LARGEST_UNMEASURED, Measured, MeasuredRun
from joulewatch_harness.analysis.sources.history import History, is_gauge, traits_of
from joulewatch_harness.analysis.sources.series import Floats, SensorId, Series
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.records import SensorRecord

COARSE_WATTS: Final = 0.5
_EVEN: Final = 1e-5
"""Relative scatter of the slope of a counter that integrates a constant power: clocks are adjusted by some ppm."""
_TIMESTAMP_S: Final = 2e-6
"""Error of the difference of two read timestamps."""
_STEPS_OF_LOAD: Final = 10
"""The load of a span is compared between this many parts of it."""


def longest_pause_s(counter: Series, start_s: float, end_s: float) -> float:
    """Return the longest time within a span in which a counter did not change, in at least three samples."""
    # One sample more on either side, as in ``Series.between``, which would copy and check them.
    begin = max(int(counter.times_s.searchsorted(start_s, side="right")) - 1, 0)
    end = int(counter.times_s.searchsorted(end_s, side="left")) + 1
    values = counter.values[begin:end]
    changed = values[1:] != values[:-1]
    if changed.all():
        return 0.0  # nearly always
    changes = np.flatnonzero(changed)
    first = np.concatenate(([0], changes + 1))
    last = np.concatenate((changes, [values.size - 1]))
    enough = last - first + 1 >= catalog.FROZEN_READS
    times_s = np.clip(counter.times_s[begin:end], start_s, end_s)
    return float((times_s[last] - times_s[first])[enough].max(initial=0.0))


def counter_pause_s(record: SensorRecord, counter: Series | None, energy_joules: float, span: Span) -> float:
    """Return for how long a counter was frozen in a window; 0: it was not.

    Args:
        record: The sensor.
        counter: Its samples, on the clock of the span; None: only ``energy_joules`` is known.
        energy_joules: Its increase over the span, from any method.
        span: The window.
    """
    if is_gauge(record):
        return 0.0
    pause_s = span.duration_s if energy_joules == 0.0 else 0.0
    if pause_s == 0.0 and counter is not None and record.scope != "part":
        pause_s = longest_pause_s(counter, span.start_s, span.end_s)
    if pause_s == 0.0:
        return 0.0
    traits = traits_of(record, counter)
    return pause_s if pause_s >= catalog.frozen_after_s(traits.refresh_s, traits.resolution_joules) else 0.0


def withhold_frozen(run: MeasuredRun) -> MeasuredRun:
    """Return the run without the energies of frozen sensors: their reason is ``frozen``."""
    changed: dict[int, dict[SensorId, Measured]] = {}
    for sensor in run.sensors:
        for at, pause_s in _pauses_s(run, sensor).items():
            measured = run.windows[at]
            result = replace(measured.sensors[sensor], pause_s=pause_s)
            if pause_s > LARGEST_UNMEASURED * measured.span.duration_s:
                result = _withheld(result, pause_text(sensor, pause_s))
            changed.setdefault(at, {})[sensor] = result
    run = _with_results(run, changed)
    changed = {}
    for sensor in run.sensors:
        if text := _frozen_gauge(run, sensor):
            for at, measured in enumerate(run.windows):
                if measured.sensors[sensor].energy is not None:
                    changed.setdefault(at, {})[sensor] = _withheld(measured.sensors[sensor], text)
    return _with_results(run, changed)


def _with_results(run: MeasuredRun, changed: Mapping[int, Mapping[SensorId, Measured]]) -> MeasuredRun:
    """Return the run with other results in some windows."""
    if not changed:
        return run
    windows = list(run.windows)
    for at, results in changed.items():
        windows[at] = replace(windows[at], sensors={**windows[at].sensors, **results})
    return replace(run, windows=tuple(windows))


def _pauses_s(run: MeasuredRun, sensor: SensorId) -> dict[int, float]:
    """Return for how long a sensor's counter was frozen in the windows in which it was and that have an energy."""
    record, exporter, clocks = run.sensors[sensor], sensor.exporter, run.clocks
    counter = None if clocks.was_set(exporter) else run.history.counters.get(sensor)
    rests = counter is not None and longest_pause_s(counter, -math.inf, math.inf) > 0.0
    pauses_s = {}
    for at, measured in enumerate(run.windows):
        energy = measured.sensors[sensor].energy
        if energy is None or (not rests and energy.joules != 0.0):
            continue
        known = measured.offsets.get(exporter)
        shift_s = 0.0 if exporter in clocks.shared or known is None else known.window.nominal_s
        span = Span(measured.span.start_s + shift_s, measured.span.end_s + shift_s)
        if pause_s := counter_pause_s(record, counter, energy.joules, span):
            pauses_s[at] = pause_s
    return pauses_s


def _withheld(result: Measured, text: str) -> Measured:
    return replace(result, energy=None, reason="frozen", text=text)


def pause_text(sensor: SensorId, pause_s: float) -> str:
    """Return the text of a finding about a counter."""
    return (
        f"{sensor}: the counter did not change for {pause_s:.3g} s, so the sensor or its driver is frozen; restart "
        "the driver, or disable the sensor in the exporter"
    )


def _frozen_gauge(run: MeasuredRun, sensor: SensorId) -> str:
    """Return the text of the finding if the gauge of a sensor was frozen during the whole run; else nothing."""
    record = run.sensors[sensor]
    if not is_gauge(record) or record.read_mode == "remote":
        return ""
    idle, measured = run.energies(sensor, "idle"), run.energies(sensor, "measure")
    if not idle or not measured:
        return ""
    everything = np.array([energy.mean_power_watts for energy in (*idle, *measured)])
    seconds = sum(energy.duration_s for energy in (*idle, *measured))
    level = float(everything.mean())
    traits = traits_of(record, None)
    if float(np.ptp(everything)) > _EVEN * abs(level) or seconds < catalog.frozen_after_s(traits.refresh_s):
        return ""
    if _is_coarse(record, everything) and not (record.scope == "node" and _load_moved(run, sensor)):
        return ""
    return (
        f"{sensor}: exactly {level:.6g} W in all idle and measured windows ({seconds:.3g} s), so the sensor or its "
        "driver is frozen; restart the driver, or disable the sensor in the exporter"
    )


def _load_moved(run: MeasuredRun, node: SensorId) -> bool:
    """Return whether the load of a node sensor's machine differs between idle and measured windows.

    That is the power of its devices or, on the harness's machine, the use of its processors.
    """
    shares: dict[str, list[float]] = {"idle": [], "measure": []}
    for window in (measured.window for measured in run.windows):
        used = window.processor_time
        if used is not None and window.kind in shares:
            shares[window.kind].append(used.busy_s / (used.processors * window.duration_s))
    if node.exporter in run.clocks.shared and shares["idle"] and shares["measure"]:
        used_more = float(np.mean(shares["measure"]) - np.mean(shares["idle"]))
        if used_more >= catalog.FROZEN_LOAD_SHARE:
            return True
    highs, lows = [], []
    for sensor in run.sensors:
        if sensor.exporter == node.exporter and sensor.scope == "device":
            idle, measured = run.energies(sensor, "idle"), run.energies(sensor, "measure")
            if idle and measured:
                lows.append(float(np.mean([energy.mean_power_watts for energy in idle])))
                highs.append(float(np.mean([energy.mean_power_watts for energy in measured])))
    return _has_moved(np.array([sum(lows), sum(highs)]))


def _has_moved(watts: Floats) -> bool:
    return watts.size > 1 and float(np.ptp(watts)) >= max(
        catalog.FROZEN_LOAD_WATTS, catalog.FROZEN_LOAD_SHARE * float(watts.max())
    )


def _is_coarse(record: SensorRecord, watts: Floats) -> bool:
    if catalog.resolution_watts(record.resolution) >= COARSE_WATTS:
        return True
    return bool(np.all(np.abs(watts - np.round(watts)) <= _EVEN * np.maximum(np.abs(watts), 1.0)))


# Any window of history


def check_frozen(history: History, sensor: SensorId, record: SensorRecord, energy: WindowEnergy, span: Span) -> str:
    """Check that a sensor was alive in a window of history.

    Returns:
        A warning about a gauge that did not change, or nothing.

    Raises:
        CoverageError: ``frozen``.
    """
    pause_s = (
        counter_pause_s(record, history.counters.get(sensor), energy.joules, span) if energy.method != "power" else 0.0
    )
    if pause_s > LARGEST_UNMEASURED * span.duration_s:
        raise CoverageError("frozen", pause_text(sensor, pause_s))
    verdict = judge_gauge(history, sensor, record, span)
    if verdict.frozen:
        raise CoverageError("frozen", verdict.frozen)
    return verdict.warning or (pause_text(sensor, pause_s) if pause_s else "")


class GaugeVerdict(NamedTuple):
    """What is known about a gauge that did not change in a window; empty texts: nothing to report."""

    frozen: str = ""
    """Why its energy is withheld."""
    warning: str = ""


def judge_gauge(history: History, sensor: SensorId, record: SensorRecord, span: Span) -> GaugeVerdict:
    """Judge a gauge, or the counter that an exporter makes of it, in a window of history.

    See the module's text for what counts as evidence.
    """
    counter = history.counters.get(sensor)
    watts = _gauge_watts(counter, span, is_counter=True) if is_gauge(record) else None
    if counter is None:
        watts = _gauge_watts(history.powers.get(sensor), span, is_counter=False)
    traits = traits_of(record, counter if counter is not None else history.powers.get(sensor))
    if watts is None or span.duration_s < catalog.frozen_after_s(traits.refresh_s):
        return GaugeVerdict()
    level = float(watts.mean())
    coarse = _is_coarse(record, watts)
    others = [
        other
        for other, described in history.sensors.items()
        if other != sensor
        and other.exporter == sensor.exporter
        and record.read_mode != "remote"
        and described.read_mode != "remote"
        and (not coarse or (record.scope == "node" and other.scope == "device"))
    ]
    still = f"{sensor}: exactly {level:.6g} W for {span.duration_s:.3g} s"
    if any(_has_moved(_load_watts(history, other, span)) for other in others):
        text = f"{still} while the load of the machine changed: the sensor or its driver is frozen"
        return GaugeVerdict(frozen=text)
    if coarse:
        return GaugeVerdict()
    return GaugeVerdict(warning=f"{still}: the sensor is frozen, unless the load was constant")


def _gauge_watts(series: Series | None, span: Span, *, is_counter: bool) -> Floats | None:
    """Return the values of a gauge in a window if they are all the same; None: they are not, or there are too few.

    Args:
        series: Its values, or the counter that integrates them.
        span: The window.
        is_counter: Whether it is the counter.
    """
    if series is None:
        return None
    part = series.between(span.start_s, span.end_s)
    if len(part) < catalog.FROZEN_READS:
        return None
    if not is_counter:
        return part.values if float(np.ptp(part.values)) == 0.0 else None
    seconds = np.diff(part.times_s)
    watts = np.diff(part.values) / seconds
    level = float(np.median(watts))
    rounding = 4 * np.spacing(part.values[1:]) + abs(level) * _TIMESTAMP_S
    if np.all(np.abs(watts - level) <= _EVEN * abs(level) + rounding / seconds):
        return np.array([level])
    return None


def _load_watts(history: History, sensor: SensorId, span: Span) -> Floats:
    """Return the mean powers of a sensor in some parts of a window; none if it has too few samples."""
    edges = np.linspace(span.start_s, span.end_s, _STEPS_OF_LOAD + 1)
    counter = history.counters.get(sensor)
    if counter is not None:
        part = counter.between(span.start_s, span.end_s)
        if len(part) <= _STEPS_OF_LOAD:
            return np.empty(0)
        return np.diff(np.interp(edges, part.times_s, part.values)) / np.diff(edges)
    gauge = history.powers.get(sensor)
    if gauge is None:
        return np.empty(0)
    part = gauge.between(span.start_s, span.end_s)
    return part.values if len(part) > 1 else np.empty(0)
