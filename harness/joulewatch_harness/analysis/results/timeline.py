"""Power over the time of a run, from the samples of its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from joulewatch_harness.analysis.sources.history import History, SampleSource
from joulewatch_harness.analysis.sources.series import Floats, SensorId, Series, default_max_gap_s
from joulewatch_harness.errors import RecordError
from joulewatch_harness.records import CalibrationRecord, RunRecord

WHOLE_SERVER: Final = "whole server"
_MARGIN_S: Final = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class PowerLine:
    """Power of one component: constant between two times, nan where samples are missing."""

    name: str
    """A component, the sum of its device sensors; or ``WHOLE_SERVER`` with its exporter, if there are several."""
    times_s: Floats
    """Limits of the steps, shape (n + 1,)."""
    watts: Floats
    """Shape (n,)."""


def power_lines(record: RunRecord, source: SampleSource | None) -> tuple[PowerLine, ...]:
    """Return the power of each component during a run; empty without a source.

    Raises:
        QueryError: The source cannot be queried.
    """
    if source is None or not record.windows:
        return ()
    start_s = min(window.start_s for window in record.windows) - _MARGIN_S
    end_s = max(window.end_s for window in record.windows) + _MARGIN_S
    try:
        history = source.history([(start_s, end_s)], record.header.exporters or None, power=True)
    except RecordError:
        return ()  # the audit reports it
    lines = []
    for name, sensors in _groups(history).items():
        parts = [
            (history.counters.get(sensor), history.powers.get(sensor), history.sensors[sensor].calibration)
            for sensor in sensors
        ]
        line = _line(name, parts, start_s, end_s)
        if line is not None:
            lines.append(line)
    return tuple(lines)


def _groups(history: History) -> dict[str, list[SensorId]]:
    """Return the sensors of each line: those of a component, or the one of a whole server."""
    with_samples = [sensor for sensor in history.sensors if sensor in history.counters or sensor in history.powers]
    groups: dict[str, list[SensorId]] = {}
    for sensor in sorted(with_samples):
        if sensor.scope == "device":
            groups.setdefault(sensor.component, []).append(sensor)
    nodes = [sensor for sensor in with_samples if sensor.scope == "node"]
    primary = [sensor for sensor in nodes if history.sensors[sensor].primary]
    for sensor in primary or nodes[:1]:
        host = history.sensors[sensor].host or sensor.exporter
        groups[f"{WHOLE_SERVER} {host}" if len(primary) > 1 else WHOLE_SERVER] = [sensor]
    return groups


def _line(
    name: str,
    parts: Sequence[tuple[Series | None, Series | None, CalibrationRecord | None]],
    start_s: float,
    end_s: float,
) -> PowerLine | None:
    """Return the sum of some sensors, each a counter or a gauge of power; None if there are too few samples."""
    series = [counter if counter is not None else power for counter, power, _ in parts]
    times_s = np.unique(np.concatenate([one.times_s for one in series if one is not None]))
    times_s = times_s[(times_s >= start_s) & (times_s <= end_s)]
    if times_s.size < 2:
        return None
    middles_s = (times_s[1:] + times_s[:-1]) / 2
    watts = np.zeros(middles_s.shape)
    for counter, power, calibration in parts:
        if counter is not None:
            read = _at(counter, np.diff(counter.values) / np.diff(counter.times_s), middles_s)
        elif power is not None:
            read = _at(power, (power.values[1:] + power.values[:-1]) / 2, middles_s)
        else:
            continue
        watts += read if calibration is None else calibration.gain * read + calibration.offset_watts
    return PowerLine(name, times_s, watts)


def _at(series: Series, watts: Floats, at_s: Floats) -> Floats:
    """Return the power between the samples around some times; nan in gaps, and where a counter restarted."""
    known = np.where((np.diff(series.times_s) <= default_max_gap_s(series.spacing_s)) & (watts >= 0), watts, np.nan)
    index = series.times_s.searchsorted(at_s, side="right") - 1
    inside = (index >= 0) & (index < known.size)
    values = np.full(at_s.shape, np.nan)
    values[inside] = known[index[inside]]
    return values
