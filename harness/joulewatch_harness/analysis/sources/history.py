"""Samples of a span of time, whatever supplies them: the interface, and series per sensor."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.sources.series import Floats, SensorId, Series, Traits
from joulewatch_harness.records import ExporterRecord, RunRecord, SensorRecord

if TYPE_CHECKING:
    pass


logger = logging.getLogger(__name__)


SCOPES: Final = ("device", "node", "part")


_ENERGY_SCOPE: Final = {metric.name: scope for scope, metric in catalog.ENERGY_BY_SCOPE.items()}


_POWER_SCOPE: Final = {metric.name: scope for scope, metric in catalog.POWER_BY_SCOPE.items()}


COUNTER_NAMES: Final = (*_ENERGY_SCOPE, catalog.READ_TIMESTAMP.name, catalog.EXPORTER_START.name)


POWER_NAMES: Final = tuple(_POWER_SCOPE)


HEALTH_NAMES: Final = {
    catalog.SENSOR_WRAPS.name: "wraps",
    catalog.SENSOR_RESETS.name: "resets",
    catalog.SENSOR_REJECTED.name: "rejected",
    catalog.SENSOR_UNMEASURED.name: "unmeasured_s",
}


ASSUMED_REFRESH_S: Final = {"rapl": 0.001}
"""Refresh of a family whose sensor has not measured its own yet: RAPL's is 1 ms (Intel SDM vol. 3B, 15.10)."""


_ASSUMED_REFRESH_OTHERS_S: Final = 0.1


_METHOD_DOUBT: Final = ("counter", "integrated", "emulated", "estimated")


_JOULE_UNITS: Final = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "nJ": 1e-9}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RawSeries:
    """Samples as they were stored: sample times, not read timestamps."""

    name: str
    labels: Mapping[str, str]
    """With ``instance``; in a recording that is the exporter's name."""
    times_s: Floats
    values: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a sensor went through during a span: rises of its diagnostic counters."""

    wraps: float = 0.0
    resets: float = 0.0
    rejected: float = 0.0
    unmeasured_s: float = 0.0
    down: bool = False

    @property
    def clean(self) -> bool:
        return not (self.wraps or self.resets or self.rejected or self.unmeasured_s or self.down)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as a list shows it."""

    run: str
    started_at_s: float
    status: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class History:
    """All that a source holds of some spans of time, in memory."""

    source: str
    sensors: Mapping[SensorId, SensorRecord] = field(default_factory=dict)
    counters: Mapping[SensorId, Series] = field(default_factory=dict)
    powers: Mapping[SensorId, Series] = field(default_factory=dict)
    """Only of sensors that have no counter."""
    readings: Mapping[SensorId, Series] = field(default_factory=dict)
    """Own values, in watts, of sensors that see only a part of each refresh period: how far these scatter."""
    starts: Mapping[str, Floats] = field(default_factory=dict)
    """Exporter -> times at which it started, as far as seen."""
    diagnostics: Mapping[tuple[str, ...], Mapping[str, Series]] = field(default_factory=dict)
    """(exporter, collector, component, device, domain) -> kind -> counter."""
    ups: Mapping[tuple[str, ...], Series] = field(default_factory=dict)
    """(exporter, collector, device) -> 0 or 1; only devices that were down some time."""

    def health(self, sensor: SensorId, start_s: float, end_s: float) -> Health:
        """Rises of a sensor's diagnostic counters from the last sample before a span to the first after it."""
        key = (sensor.exporter, sensor.collector, sensor.component, sensor.device, sensor.domain)
        kinds = self.diagnostics.get(key, {})
        up = self.ups.get((sensor.exporter, sensor.collector, sensor.device))
        if not kinds and up is None:
            return Health()
        rises = {}
        for kind, series in kinds.items():
            steps = np.diff(series.between(start_s, end_s).values)
            rises[kind] = float(steps[steps > 0].sum())
        down = up is not None and bool((up.between(start_s, end_s).values < 1).any())
        return Health(**rises, down=down)


class SampleSource(Protocol):
    """Whatever supplies samples; integration, uncertainty, audit and reports know only this."""

    def describe(self) -> str:
        """The source for people: a URL or a file."""
        ...

    def runs(self, start_s: float, end_s: float) -> tuple[RunSummary, ...]:
        """The runs that began in a span of Unix seconds, oldest first."""
        ...

    def run(self, run: str) -> RunRecord:
        """One run, from what is stored of it.

        Raises:
            QueryError: No such run; the text lists the last ones there are.
        """
        ...

    def history(
        self,
        spans: Sequence[tuple[float, float]],
        exporters: Sequence[ExporterRecord] | None = None,
        *,
        power: bool = False,
    ) -> History:
        """Counters and sensors over spans of Unix seconds, with enough margin to bracket their ends.

        Args:
            spans: (start, end) in Unix seconds; overlapping ones are merged.
            exporters: Whose; None for all there are.
            power: Also the power gauges of sensors that have no counter.
        """
        ...

    def close(self) -> None: ...


def merge_spans(spans: Iterable[tuple[float, float]], margin_s: float) -> list[tuple[float, float]]:
    """Widen spans by a margin on both sides and join those that then touch."""
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted((start - margin_s, end + margin_s) for start, end in spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged


def resolution_joules(text: str) -> float:
    """Joules of a resolution such as ``15.3 uJ``; 0 where it is empty or not an energy."""
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(\S*J)\s*", text)
    if match is None or match[2] not in _JOULE_UNITS:
        return 0.0
    try:
        return float(match[1]) * _JOULE_UNITS[match[2]]
    except ValueError:
        return 0.0


def traits_of(record: SensorRecord) -> Traits:
    """What limits a sensor, from its metadata."""
    refresh_s = record.refresh_s
    if refresh_s is None:
        refresh_s = ASSUMED_REFRESH_S.get(record.collector, _ASSUMED_REFRESH_OTHERS_S)
    resolution = resolution_joules(record.resolution)
    return Traits(
        refresh_s=refresh_s,
        resolution_joules=resolution,
        accuracy=record.accuracy,
        family=record.collector,
        window_s=record.window_s or 0.0,
    )


def unknown_sensor(sensor: SensorId) -> SensorRecord:
    """Metadata of a sensor nobody describes any more: its method is unknown, and said to be."""
    return SensorRecord(
        exporter=sensor.exporter,
        scope=sensor.scope,
        collector=sensor.collector,
        component=sensor.component,
        device=sensor.device,
        domain=sensor.domain,
        method="estimated" if sensor.collector == "estimate" else "unknown",
    )


def _sensor_id(exporter: str, scope: str, labels: Mapping[str, str]) -> SensorId:
    return SensorId(exporter=exporter, scope=scope, **{name: labels.get(name, "") for name in catalog.SENSOR_LABELS})


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _at_read_times(counter: RawSeries, reads: RawSeries | None) -> Series:
    """Place a counter's samples at their read timestamps; samples without one are left out."""
    metric = {"__name__": counter.name, **counter.labels}
    if reads is None:
        return Series.from_samples(counter.times_s, counter.values, metric)
    if counter.times_s.shape == reads.times_s.shape and np.array_equal(counter.times_s, reads.times_s):
        return Series.from_samples(reads.values, counter.values, metric)
    _, mine, theirs = np.intersect1d(counter.times_s, reads.times_s, assume_unique=True, return_indices=True)
    return Series.from_samples(reads.values[theirs], counter.values[mine], metric)


def build_history(
    source: str,
    samples: Iterable[RawSeries],
    names: Mapping[str, str] | None = None,
    *,
    power: bool = True,
) -> History:
    """Turn raw samples into a history.

    Args:
        source: Where they came from, for people.
        samples: Counters, read timestamps, exporter starts, sensor metadata and diagnostics, in any order. Of
            two series that differ only in labels that are not the catalog's (two scrape jobs on one
            exporter), the one with more samples counts.
        names: ``instance`` -> name of the exporter in the run; an instance not named keeps its own.
        power: Also the sensors that have power and no counter.
    """
    names = names or {}
    counters: dict[SensorId, RawSeries] = {}
    powers: dict[SensorId, RawSeries] = {}
    reads: dict[tuple[str, ...], RawSeries] = {}
    starts: dict[str, set[float]] = {}
    sensors: dict[SensorId, SensorRecord] = {}
    refreshes: dict[tuple[str, ...], float] = {}
    windows: dict[tuple[str, ...], float] = {}
    diagnostics: dict[tuple[str, ...], dict[str, Series]] = {}
    ups: dict[tuple[str, ...], Series] = {}
    for raw in samples:
        instance = raw.labels.get("instance", "")
        exporter = names.get(instance, instance)
        if raw.name in _ENERGY_SCOPE or raw.name in _POWER_SCOPE:
            into = counters if raw.name in _ENERGY_SCOPE else powers
            scope = _ENERGY_SCOPE.get(raw.name) or _POWER_SCOPE[raw.name]
            sensor = _sensor_id(exporter, scope, raw.labels)
            known = into.get(sensor)
            if known is not None:
                logger.info("%s of %s is stored twice; the series with more samples is used", raw.name, sensor)
            if known is None or raw.times_s.size > known.times_s.size:
                into[sensor] = raw
        elif raw.name == catalog.READ_TIMESTAMP.name:
            # Joined to counters by sample time, so it must come from the same scrape job.
            reads[_scrape_key(raw)] = raw
        elif raw.name == catalog.EXPORTER_START.name:
            starts.setdefault(exporter, set()).update(float(value) for value in np.unique(raw.values))
        elif raw.name == catalog.SENSOR_INFO.name:
            sensor = _sensor_id(exporter, raw.labels.get("scope", ""), raw.labels)
            record = SensorRecord(
                exporter=sensor.exporter,
                scope=sensor.scope,
                collector=sensor.collector,
                component=sensor.component,
                device=sensor.device,
                domain=sensor.domain,
                method=raw.labels.get("method", "unknown"),
                reads=raw.labels.get("reads", ""),
                model=raw.labels.get("model", ""),
                source=raw.labels.get("source", ""),
                resolution=raw.labels.get("resolution", ""),
                accuracy=_number(raw.labels.get("accuracy", "")),
            )
            if sensor not in sensors or _doubt(record) > _doubt(sensors[sensor]):
                sensors[sensor] = record
        elif raw.name in (catalog.SENSOR_REFRESH.name, catalog.SENSOR_WINDOW.name) and raw.values.size:
            key = (exporter, *(raw.labels.get(name, "") for name in catalog.SENSOR_LABELS))
            told = refreshes if raw.name == catalog.SENSOR_REFRESH.name else windows
            told[key] = max(told.get(key, 0.0), float(raw.values[-1]))
        elif raw.name in HEALTH_NAMES:
            key = (exporter, *(raw.labels.get(name, "") for name in catalog.SENSOR_LABELS))
            series = Series.from_samples(raw.times_s, raw.values, {"__name__": raw.name, **raw.labels})
            if raw.values.size and float(np.ptp(raw.values)) > 0:
                diagnostics.setdefault(key, {})[HEALTH_NAMES[raw.name]] = series
        elif raw.name == catalog.SENSOR_UP.name and raw.values.size and float(raw.values.min()) < 1:
            key = (exporter, *(raw.labels.get(name, "") for name in catalog.DEVICE_LABELS))
            ups[key] = Series.from_samples(raw.times_s, raw.values, {"__name__": raw.name, **raw.labels})
    partial = {sensor for sensor in powers if _quantity_key(sensor) in windows}
    if not power:
        powers = {sensor: raw for sensor, raw in powers.items() if sensor in partial}
    for sensor in (*counters, *powers):
        sensors.setdefault(sensor, unknown_sensor(sensor))
    described = {
        sensor: dataclasses.replace(
            record,
            refresh_s=refreshes.get(_quantity_key(sensor), record.refresh_s),
            window_s=windows.get(_quantity_key(sensor), record.window_s),
        )
        for sensor, record in sensors.items()
    }
    watts = {sensor: _at_read_times(raw, reads.get(_scrape_key(raw))) for sensor, raw in sorted(powers.items())}
    return History(
        source=source,
        sensors=described,
        counters={sensor: _at_read_times(raw, reads.get(_scrape_key(raw))) for sensor, raw in sorted(counters.items())},
        powers={sensor: series for sensor, series in watts.items() if sensor not in counters},
        readings={sensor: series for sensor, series in watts.items() if sensor in partial},
        starts={exporter: np.array(sorted(times), dtype=np.float64) for exporter, times in starts.items()},
        diagnostics=diagnostics,
        ups=ups,
    )


def _scrape_key(raw: RawSeries) -> tuple[str, ...]:
    """The device and the scrape it was read in: all labels but those that tell quantities of one device apart."""
    own = {"component", "domain"}
    return tuple(f"{name}={value}" for name, value in sorted(raw.labels.items()) if name not in own)


def _doubt(record: SensorRecord) -> int:
    return _METHOD_DOUBT.index(record.method) if record.method in _METHOD_DOUBT else len(_METHOD_DOUBT)


def _quantity_key(sensor: SensorId) -> tuple[str, ...]:
    """What a metric with the sensor's labels and no scope tells apart."""
    return sensor.exporter, sensor.collector, sensor.component, sensor.device, sensor.domain
