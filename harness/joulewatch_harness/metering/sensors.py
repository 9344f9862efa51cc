"""What the sensors of an exporter can measure: the shortest window for 1 %, and a test of their refresh periods."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.energy.from_edges import energy_from_edges
from joulewatch_harness.analysis.energy.sensor_energies import SensorEnergy
from joulewatch_harness.analysis.energy.unseen import with_unseen
from joulewatch_harness.analysis.energy.window_energy import EdgeReading, Span
from joulewatch_harness.analysis.sources.history import traits_of
from joulewatch_harness.analysis.sources.series import SensorId, Traits
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.errors import CoverageError, ExporterUnreachableError
from joulewatch_harness.records import Edge, SensorRecord
from joulewatch_harness.runner.edges import EdgeReader

TARGET: Final = 0.01
POWER_S: Final = 0.5
"""Time between the two readings that show the power."""
LONGEST_WINDOW_S: Final = 86400.0
_READ_ON_REQUEST: Final = "on_request"
_LEAST_CHANGES: Final = 5
_PROCESSOR_SECONDS: Final = "process_cpu_seconds_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorRow:
    """One sensor, for ``joulewatch sensors``."""

    record: SensorRecord
    watts: float | None
    """Mean power over ``POWER_S``; None: the counter was not updated in this time."""
    shortest_window_s: float | None
    """Shortest window whose ± without the sensor's accuracy is at most 1 %; None: no window, or the power is 0."""
    measured_refresh_s: float | None = None
    """From the test; None: not tested, or it changed too rarely."""
    changed_each_time: bool = False
    """The value changed from each reading to the next, so the refresh period is at most ``measured_refresh_s``."""
    round_trip_s: float = 0.0
    """Time from a request for its counter to the answer."""

    @property
    def name(self) -> str:
        return f"{self.record.component}/{self.record.device}/{self.record.domain}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What reading an exporter costs."""

    exporter: str
    requests: int
    median_s: float
    """Time from a request to its answer."""
    p99_s: float
    processor_s: float | None
    """Processor time of the exporter for one answer; None: it does not publish its processor time."""
    quiet_share: float | None
    """Share of a processor that it uses when nothing reads it."""


def describe(urls: Sequence[str], sensors: Sequence[SensorRecord]) -> list[SensorRow]:
    """Return the sensors with their power and the shortest window for 1 % at this power."""
    with EdgeReader([ExporterClient(url) for url in urls]) as reader:
        start = reader.fetch().parse()
        time.sleep(POWER_S)
        end = reader.fetch().parse()
    for exporter, problem in end.missing.items():
        raise ExporterUnreachableError(f"exporter {exporter}: {problem}")
    round_trip_s = end.answered_at_s - end.requested_at_s
    watts = _watts(start, end)
    return [
        SensorRow(
            record=record,
            watts=watts.get(SensorId.of(record)),
            shortest_window_s=shortest_window_s(record, watts.get(SensorId.of(record)) or 0.0, round_trip_s),
            round_trip_s=round_trip_s,
        )
        for record in sensors
    ]


def shortest_window_s(record: SensorRecord, watts: float, round_trip_s: float, target: float = TARGET) -> float | None:
    """Return the shortest window whose relative ± is at most ``target``, without the accuracy of the sensor.

    The power before and after the window may be anything up to twice the power inside, as for ``joulewatch.measure``.

    Args:
        record: The sensor.
        watts: Power during the window.
        round_trip_s: Time from a request for its counter to the answer; a sensor that is not read on request is up
            to a refresh period old instead.
        target: Relative expanded uncertainty.

    Returns:
        None: no window up to a day is long enough, or there is no power.
    """
    traits = replace(traits_of(record, None), accuracy=None)
    slack_s = round_trip_s / 2 if record.read_mode == _READ_ON_REQUEST else max(traits.refresh_s, round_trip_s) / 2
    if watts <= 0.0 or _share(record, traits, watts, slack_s, LONGEST_WINDOW_S) > target:
        return None
    low_s, high_s = 1e-4, LONGEST_WINDOW_S
    while high_s > 1.01 * low_s:
        middle_s = math.sqrt(low_s * high_s)
        if _share(record, traits, watts, slack_s, middle_s) > target:
            low_s = middle_s
        else:
            high_s = middle_s
    return high_s


def _share(record: SensorRecord, traits: Traits, watts: float, slack_s: float, window_s: float) -> float:
    """Return the relative expanded uncertainty of a window; infinite if it has no number."""
    span = Span(0.0, window_s)
    start = EdgeReading(-slack_s, 0.0)
    end = EdgeReading(window_s + slack_s, watts * (window_s + 2 * slack_s))
    try:
        energy = with_unseen(energy_from_edges(start, end, span, traits), span, traits, None)
    except CoverageError:
        return math.inf
    return SensorEnergy(sensor=SensorId.of(record), record=record, energy=energy).expanded_joules / energy.joules


def _watts(start: Edge, end: Edge) -> dict[SensorId, float]:
    before = {SensorId.of(counter): counter for counter in start.counters}
    watts = {}
    for counter in end.counters:
        old = before.get(SensorId.of(counter))
        if old is not None and counter.read_at_s > old.read_at_s and counter.energy_joules > old.energy_joules:
            rise = counter.energy_joules - old.energy_joules
            watts[SensorId.of(counter)] = rise / (counter.read_at_s - old.read_at_s)
    return watts


def examine(url: str, rows: Sequence[SensorRow], seconds: float) -> tuple[list[SensorRow], Cost]:
    """Read an exporter as fast as it answers; return its sensors with their refresh periods, and what reading costs.

    Args:
        url: The exporter.
        rows: Its sensors.
        seconds: Length of the test; before it, nothing reads for half of this time.
    """
    with ExporterClient(url) as client:
        quiet_start_s = time.monotonic()
        quiet = _processor_s(client)
        time.sleep(seconds / 2)
        before = _processor_s(client)
        quiet_s = time.monotonic() - quiet_start_s
        values: dict[SensorId, list[tuple[float, float]]] = {}
        times_s: list[float] = []
        started_s = time.monotonic()
        while time.monotonic() - started_s < seconds:
            scrape = client.scrape()
            times_s.append(scrape.answered_at_s - scrape.started_at_s)
            for sensor, at_s, value in _values(client, scrape.samples, rows):
                values.setdefault(sensor, []).append((at_s, value))
        after = _processor_s(client)
        tested_s = time.monotonic() - started_s
    share = None if quiet is None or before is None else (before - quiet) / quiet_s
    processor_s = None
    if share is not None and before is not None and after is not None:
        processor_s = max(after - before - share * tested_s, 0.0) / len(times_s)
    cost = Cost(
        exporter=client.name,
        requests=len(times_s),
        median_s=statistics.median(times_s),
        p99_s=sorted(times_s)[int(0.99 * (len(times_s) - 1))],
        processor_s=processor_s,
        quiet_share=share,
    )
    return [_tested(row, values.get(SensorId.of(row.record), [])) for row in rows], cost


def _tested(row: SensorRow, values: Sequence[tuple[float, float]]) -> SensorRow:
    """Add the refresh period, the median time between two changes of the value, and the shortest window with it."""
    # Answers within one scan of the exporter repeat its reading.
    readings = [*values[:1], *(new for old, new in pairwise(values) if new[0] > old[0])]
    changes_s = [new[0] for old, new in pairwise(readings) if new[1] != old[1]]
    if len(changes_s) < _LEAST_CHANGES:
        return row
    spacing_s = statistics.median(b - a for a, b in pairwise(changes_s))
    changed_each_time = len(changes_s) > 0.9 * (len(readings) - 1)
    record = row.record
    if not changed_each_time or record.refresh_s is None or record.refresh_s > spacing_s:
        record = replace(record, refresh_s=spacing_s)
    return replace(
        row,
        measured_refresh_s=spacing_s,
        changed_each_time=changed_each_time,
        shortest_window_s=shortest_window_s(record, row.watts or 0.0, row.round_trip_s),
    )


def _values(
    client: ExporterClient, samples: Sequence[tuple[str, float]], rows: Sequence[SensorRow]
) -> Iterator[tuple[SensorId, float, float]]:
    """Yield sensor, read timestamp and value: energy, or power of a sensor that reads power."""
    read_at_s: dict[tuple[str, str], float] = {}
    found: dict[tuple[str, ...], float] = {}
    for raw, value in samples:
        name, labels = client.key(raw)
        if name == catalog.READ_TIMESTAMP.name:
            read_at_s[labels["collector"], labels["device"]] = value
        elif name in _METRICS:
            found[(*_METRICS[name], *(labels[label] for label in catalog.SENSOR_LABELS))] = value
    for row in rows:
        record = row.record
        kind = "power" if record.reads == "power" else "energy"
        key = (kind, record.scope, record.collector, record.component, record.device, record.domain)
        value = found.get(key, math.nan)
        at_s = read_at_s.get((record.collector, record.device))
        if at_s is not None and math.isfinite(value):
            yield SensorId.of(record), at_s, value


_METRICS: Final[Mapping[str, tuple[str, str]]] = {
    metric.name: (kind, scope)
    for kind, metrics in (("energy", catalog.ENERGY_BY_SCOPE), ("power", catalog.POWER_BY_SCOPE))
    for scope, metric in metrics.items()
}
"""Metric -> ``energy`` or ``power``, and its scope."""


def _processor_s(client: ExporterClient) -> float | None:
    for raw, value in client.scrape().samples:
        if raw.partition("{")[0] == _PROCESSOR_SECONDS:
            return value
    return None
