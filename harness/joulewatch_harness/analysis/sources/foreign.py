"""Samples of other exporters in a Prometheus, by mappings, joined with those of joulewatch's own.

Samples are placed at their sample times: other exporters have no read timestamps. Counters that wrap are unwrapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import numpy as np

from joulewatch_harness.analysis.sources.history import (
    History,
    RawSeries,
    RunSummary,
    is_gauge,
    merge_spans,
)
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.analysis.sources.mapping import MappedSensor, SourceMapping
from joulewatch_harness.analysis.sources.prometheus import PrometheusSource, selector
from joulewatch_harness.analysis.sources.series import Floats, SensorId, Series, is_loopback
from joulewatch_harness.errors import IdentityError
from joulewatch_harness.records import ExporterRecord, RunRecord, SensorRecord

_MARGIN_INTERVALS: Final = 5.0
"""Samples are read so many scrape intervals around a window."""
_LARGEST_POWER_RATIO: Final = 2.0
"""A wrap is believed if the power across it is at most this many times the largest power of the series."""


class MappedSource:
    """A ``SampleSource`` over several exporters in one Prometheus.

    Args:
        prometheus: The server; closed with the source.
        mappings: Of the other exporters.
        own: Whether joulewatch's own exporters are read as well.
        machines: The exporters of a run: only the series of their machines are read; None: all.
        sensors: Of the run, which may have edges in its journal and no samples: they are read twice as well.
    """

    def __init__(
        self,
        prometheus: PrometheusSource,
        mappings: Sequence[SourceMapping],
        *,
        own: bool,
        machines: Sequence[ExporterRecord] | None = None,
        sensors: Mapping[SensorId, SensorRecord] = MappingProxyType({}),
    ) -> None:
        self._prometheus = prometheus
        self._mappings = mappings
        self._own = own
        self._machines = machines
        self._sensors = sensors

    def describe(self) -> str:
        names = [*(["joulewatch"] if self._own else []), *(mapping.name for mapping in self._mappings)]
        return f"{self._prometheus.describe()} ({', '.join(names)})"

    def close(self) -> None:
        self._prometheus.close()

    def runs(self, start_s: float, end_s: float) -> tuple[RunSummary, ...]:
        """Return the runs that started in a span of Unix seconds, oldest first."""
        return self._prometheus.runs(start_s, end_s)

    def run(self, run: str) -> RunRecord:
        """Return a run; raise the errors of ``PrometheusSource.run``."""
        return self._prometheus.run(run)

    def history(
        self,
        spans: Sequence[tuple[float, float]],
        exporters: Sequence[ExporterRecord] | None = None,
        *,
        power: bool = False,
    ) -> History:
        """Return the series of all exporters; see ``SampleSource``. ``power`` concerns joulewatch's own exporters.

        With ``exporters``, only the series of their machines.

        Raises:
            IdentityError: A mapping gives one identity to several series at once.
        """
        if not spans:
            return History(source=self.describe())
        histories = []
        if self._own:
            history = self._prometheus.history(spans, exporters, power=power)
            # The edges in the journal may be all there is of the run's own sensors.
            nodenames = {exporter.name: exporter.nodename for exporter in self._machines or () if exporter.nodename}
            histories.append(
                replace(
                    history,
                    sensors={**self._sensors, **history.sensors},
                    nodenames={**nodenames, **history.nodenames},
                )
            )
        machines = self._machines if exporters is None else exporters
        hosts = _hosts(machines) if machines else None
        # All of it: power is integrated, and between two distant samples a counter may have wrapped.
        whole = [(min(start_s for start_s, _ in spans), max(end_s for _, end_s in spans))]
        for mapping in self._mappings:
            merged = merge_spans(whole, _MARGIN_INTERVALS * mapping.scrape_interval_s)
            part = _Part(mapping=mapping)
            for sensor in mapping.sensors:
                for raw in self._raw(sensor, merged):
                    part.add(sensor, raw, hosts)
            histories.append(part.history())
        return replace(joined(histories), source=self.describe())

    def _raw(self, sensor: MappedSensor, spans: Sequence[tuple[float, float]]) -> Iterator[RawSeries]:
        matchers = [f"{label}=~{_quoted(pattern)}" for label, pattern in sensor.match.items()]
        wanted = f"{sensor.metric}{selector(*matchers, self._prometheus.match)}"
        pieces: dict[tuple[tuple[str, str], ...], list[RawSeries]] = {}
        for start_s, end_s in spans:
            for raw in self._prometheus.raw(wanted, start_s, end_s):
                pieces.setdefault(tuple(sorted(raw.labels.items())), []).append(raw)
        for parts in pieces.values():
            yield replace(
                parts[0],
                times_s=np.concatenate([part.times_s for part in parts]),
                values=np.concatenate([part.values for part in parts]),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The sensors of one mapping."""

    mapping: SourceMapping
    series: dict[SensorId, list[tuple[MappedSensor, RawSeries]]] = field(default_factory=dict)
    records: dict[SensorId, SensorRecord] = field(default_factory=dict)
    nodenames: dict[str, str] = field(default_factory=dict)

    def add(self, sensor: MappedSensor, raw: RawSeries, hosts: frozenset[str] | None) -> None:
        """Take a series, unless it is of another machine."""
        exporter = raw.labels.get("instance", self.mapping.name)
        host = sensor.text(sensor.host, raw.labels) or _host(exporter)
        if hosts is not None and not {host, _host(exporter)} & hosts:
            return
        device = sensor.text(sensor.device, raw.labels)
        if not device:
            return
        record = SensorRecord(
            exporter=exporter,
            scope=sensor.scope,
            collector=self.mapping.name,
            component=sensor.component,
            device=device,
            domain=sensor.text(sensor.domain, raw.labels),
            method="counter" if sensor.type == "counter" else "integrated",
            reads="energy" if sensor.type == "counter" else "power",
            source=sensor.metric,
            accuracy=sensor.accuracy,
            accuracy_source="the mapping" if sensor.accuracy is not None else "",
            refresh_s=sensor.refresh_s,
            host=host,
        )
        key = SensorId.of(record)
        self.series.setdefault(key, []).append((sensor, raw))
        if key not in self.records or is_gauge(self.records[key]):
            self.records[key] = record
        self.nodenames[exporter] = host

    def history(self) -> History:
        """Return the history; of a sensor with a counter, its power is not used."""
        counters, powers = {}, {}
        for key, parts in self.series.items():
            of_counter = [(sensor, raw) for sensor, raw in parts if sensor.type == "counter"]
            series = _one_series(key, of_counter or parts)
            if of_counter:
                counters[key] = replace(series, values=unwrapped(series, of_counter[0][0].wrap))
            else:
                powers[key] = series
        return History(
            source="", sensors=self.records, counters=counters, powers=powers, nodenames=dict(self.nodenames)
        )


def _one_series(key: SensorId, parts: Sequence[tuple[MappedSensor, RawSeries]]) -> Series:
    """Join series of one sensor, whose labels changed: a pod of Kubernetes that used it, a restarted target.

    Raises:
        IdentityError: They are at the same time.
    """
    ordered = sorted(parts, key=lambda part: float(part[1].times_s[0]))
    for (_, one), (_, other) in pairwise(ordered):
        if other.times_s[0] <= one.times_s[-1]:
            differing = sorted(
                name
                for name in one.labels.keys() | other.labels.keys()
                if one.labels.get(name) != other.labels.get(name)
            )
            raise IdentityError(
                f"{key}: several series of {one.name} are this sensor; they differ in the labels "
                f"{', '.join(differing)}: select some with --match, or use such a label in the mapping"
            )
    return Series.from_samples(
        np.concatenate([raw.times_s for _, raw in ordered]),
        np.concatenate([raw.values * sensor.scale for sensor, raw in ordered]),
        {"__name__": ordered[0][1].name, **ordered[0][1].labels},
    )


def unwrapped(counter: Series, ranges: Sequence[float]) -> Floats:
    """Return the values of a counter without its wraps.

    Where it falls, the range is added that gives the most usual power. A fall that no range explains with a power that
    the series has elsewhere stays: it is a restart, and a window over it has no energy. Neither has one over a gap in
    which the counter may have wrapped more than once.

    Args:
        counter: Joules, as published.
        ranges: Values in joules at which the counter may wrap.
    """
    values = counter.values
    steps, spans_s = np.diff(values), np.diff(counter.times_s)
    rises = steps[steps >= 0] / spans_s[steps >= 0]
    if not ranges or not rises.size:
        return values
    largest, usual = float(rises.max()), float(np.median(rises))
    too_long = spans_s * largest > min(ranges)
    added = np.zeros_like(values)
    for at in np.flatnonzero((steps < 0) | too_long):
        if too_long[at]:
            # A counter that falls has no energy across.
            added[at + 1 :] -= max(float(steps[at]), 0.0) + 1.0
            continue
        powers = [
            (abs(power - usual), wrap)
            for wrap in ranges
            if wrap >= values[at] and (power := float(wrap + steps[at]) / spans_s[at]) <= _LARGEST_POWER_RATIO * largest
        ]
        if powers:
            added[at + 1 :] += min(powers)[1]
    return values + added


def joined(histories: Sequence[History]) -> History:
    """Return the sensors of several histories as one.

    A device that a later one reads as well becomes a part, which no sum includes, with a notice.
    """
    first, *others = histories
    for other in others:
        first = _joined(first, other)
    return first


def _joined(first: History, other: History) -> History:
    known = {place: sensor for sensor in first.sensors for place in _places(first, sensor)}
    moved: dict[SensorId, SensorId] = {}
    twice: dict[tuple[str, str, str], list[SensorId]] = {}
    for sensor in (*other.counters, *other.powers):
        same = next((known[place] for place in _places(other, sensor) if place in known), None)
        if same is not None and sensor.scope == "device":
            moved[sensor] = sensor._replace(scope="part")
        if same is not None:
            names = [f"{one.collector} on {one.exporter}" for one in (same, sensor)]
            twice.setdefault((names[0], names[1], sensor.exporter), []).append(sensor)
    notices = [
        Notice(
            severity="warning",
            reason="source_overlap",
            text=f"{one} and {two} both read {_listed(sensors)}: sums include the first only",
            exporter=exporter,
        )
        for (one, two, exporter), sensors in twice.items()
    ]

    def renamed(items: Mapping[SensorId, Series]) -> dict[SensorId, Series]:
        return {moved.get(sensor, sensor): item for sensor, item in items.items()}

    records = {
        moved.get(sensor, sensor): replace(record, scope=moved.get(sensor, sensor).scope)
        for sensor, record in other.sensors.items()
    }
    return replace(
        first,
        sensors={**first.sensors, **records},
        counters={**first.counters, **renamed(other.counters)},
        powers={**first.powers, **renamed(other.powers)},
        nodenames={**other.nodenames, **first.nodenames},
        notices=(*first.notices, *other.notices, *notices),
    )


def _places(history: History, sensor: SensorId) -> list[tuple[str, ...]]:
    """Return the machine and device that a sensor reads, for each name of the machine; a machine is one node."""
    address = "localhost" if is_loopback(sensor.exporter) else _host(sensor.exporter)
    names = {address, history.nodenames.get(sensor.exporter, ""), history.sensors[sensor].host} - {""}
    device = (
        ("node",) if sensor.scope == "node" else (sensor.scope, sensor.component, sensor.device.lower(), sensor.domain)
    )
    return [(_short(name), *device) for name in sorted(names)]


def _listed(sensors: Sequence[SensorId]) -> str:
    names = [f"{sensor.device}/{sensor.domain}" for sensor in sensors]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _hosts(exporters: Iterable[ExporterRecord]) -> frozenset[str]:
    return frozenset(name for exporter in exporters for name in (exporter.nodename, _host(exporter.name)) if name)


def _host(instance: str) -> str:
    """Return the host of ``host:port``."""
    return re.sub(r":\d+$", "", instance)


def _short(host: str) -> str:
    """Return the first label of a host's name; an address stays."""
    return host if re.fullmatch(r"[\d.:\[\]a-f]+", host) else host.partition(".")[0].lower()


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
