"""Samples of some spans of time, from any source: the interface of a source, and series per sensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Final, Protocol

import numpy as np

from joulewatch_exporter import catalog
from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.sources.identity import Exporter, Notice, Placed, Target, contradiction, identify
from joulewatch_harness.analysis.sources.series import Floats, SensorId, Series, Traits, default_max_gap_s
from joulewatch_harness.clocktime import CLOCK_STEP_S
from joulewatch_harness.plan.refresh import assumed_refresh_s
from joulewatch_harness.records import CalibrationRecord, ExporterRecord, RunRecord, SensorRecord

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
"""Diagnostic counter -> field of ``Health``."""
_MOST_SAMPLES: Final = 0.95
"""A value that changes at more samples than these may change more often: their spacing is only a bound."""
_METHOD_DOUBT: Final = ("counter", "integrated", "emulated", "estimated")
"""Methods from the most to the least reliable; an unknown method is less reliable than all of them."""
_LARGEST_AGE_RISE_S: Final = 60.0
"""A reading gets newer from one scrape to the next by at most its age, which is below this."""
_NEAR: Final = 0.13
"""A sample nearer than this share of the longest accepted spacing to another one is not needed next to it: with 0.4
spacings, samples of a second server fill a missing scrape and never halve the median spacing."""
QuantityKey = tuple[str, ...]
"""(exporter, collector, component, device, domain): the labels of a sensor's metrics that have no scope."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawSeries:
    """Samples as stored: at their sample times, not at their read timestamps."""

    name: str
    labels: Mapping[str, str]
    """Includes ``instance``, which in a recording is the exporter's name."""
    times_s: Floats
    values: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Events of a sensor during a span: increases of its diagnostic counters."""

    wraps: float = 0.0
    resets: float = 0.0
    rejected: float = 0.0
    unmeasured_s: float = 0.0
    down: bool = False
    asleep: bool = False
    """Whether it was down because the device was in runtime suspend."""

    @property
    def clean(self) -> bool:
        return not (self.wraps or self.resets or self.rejected or self.unmeasured_s or self.down)


_CLEAN: Final = Health()


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as a list shows it."""

    run: str
    started_at_s: float
    status: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """All data that a source holds about some spans of time, in memory."""

    source: str
    sensors: Mapping[SensorId, SensorRecord] = field(default_factory=dict)
    counters: Mapping[SensorId, Series] = field(default_factory=dict)
    powers: Mapping[SensorId, Series] = field(default_factory=dict)
    """Power of the sensors without a counter."""
    readings: Mapping[SensorId, Series] = field(default_factory=dict)
    """Power values, in watts, of sensors that observe only part of each refresh period: their scatter is needed."""
    starts: Mapping[str, Floats] = field(default_factory=dict)
    """Exporter -> the start times that its samples show."""
    diagnostics: Mapping[QuantityKey, Mapping[str, Series]] = field(default_factory=dict)
    """Sensor -> field of ``Health`` -> counter; only counters that changed."""
    ups: Mapping[tuple[str, ...], Series] = field(default_factory=dict)
    """(exporter, collector, device) -> 0 or 1; only devices that were down at some time."""
    asleep: Mapping[tuple[str, ...], Series] = field(default_factory=dict)
    """(exporter, collector, device) -> the samples in which the device was asleep."""
    nodenames: Mapping[str, str] = field(default_factory=dict)
    """Exporter -> name of its machine, if it is stored and did not change."""
    notices: tuple[Notice, ...] = ()
    """Messages about the identity of the exporters, for the findings."""

    def health(self, sensor: SensorId, start_s: float, end_s: float) -> Health:
        """Return the increases of a sensor's diagnostic counters, between the samples around a span."""
        kinds = self.diagnostics.get(_quantity_key(sensor), {})
        device = (sensor.exporter, sensor.collector, sensor.device)
        if not kinds and device not in self.ups:
            return _CLEAN  # nearly always
        increases = {}
        for kind, series in kinds.items():
            steps = np.diff(series.between(start_s, end_s).values)
            increases[kind] = float(steps[steps > 0].sum())
        down_at_s = np.array([])
        if device in self.ups:
            up = self.ups[device].between(start_s, end_s)
            down_at_s = up.times_s[up.values < 1]
        asleep = device in self.asleep and bool(np.isin(down_at_s, self.asleep[device].times_s).any())
        return Health(**increases, down=bool(down_at_s.size), asleep=asleep)


class SampleSource(Protocol):
    """Any supplier of samples; integration, uncertainty, audit and reports use nothing else."""

    def describe(self) -> str:
        """Return the source for people: a URL or a file."""
        ...

    def runs(self, start_s: float, end_s: float) -> tuple[RunSummary, ...]:
        """Return the runs that started in a span of Unix seconds, oldest first."""
        ...

    def run(self, run: str) -> RunRecord:
        """Return one run, as far as it is stored.

        Raises:
            QueryError: The run is unknown; the text lists the most recent ones.
        """
        ...

    def history(
        self,
        spans: Sequence[tuple[float, float]],
        exporters: Sequence[ExporterRecord] | None = None,
        *,
        power: bool = False,
    ) -> History:
        """Return counters and sensors over spans of Unix seconds, with enough margin to bracket their ends.

        Args:
            spans: (start, end) in Unix seconds; overlapping ones are merged.
            exporters: The exporters to include; None for all.
            power: Include the power gauges of sensors that have no counter.

        Raises:
            IdentityError: Samples of different exporters would be merged.
        """
        ...

    def close(self) -> None: ...


def merge_spans(spans: Iterable[tuple[float, float]], margin_s: float) -> list[tuple[float, float]]:
    """Widen spans by a margin on both sides and join those that then overlap."""
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted((start - margin_s, end + margin_s) for start, end in spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged


def is_gauge(record: SensorRecord) -> bool:
    """Return whether a sensor reports power, so that its counter is an integral."""
    return record.method == "integrated" or record.reads == "power"


def refresh_s_of(record: SensorRecord, observed: Series | None = None) -> float:
    """Return the refresh of a sensor: published, else the smallest spacing between changes of its value, else assumed.

    Args:
        record: Its metadata.
        observed: Its samples. A counter that integrates a gauge changes with every reading, and shows nothing.
    """
    if record.refresh_s is not None:
        return record.refresh_s
    assumed_s = assumed_refresh_s(record)
    integral = is_gauge(record) and observed is not None and _name(observed) in _ENERGY_SCOPE
    if observed is None or record.method == "estimated" or integral:
        return assumed_s
    changed_s = observed.times_s[1:][np.diff(observed.values) != 0]
    if changed_s.size < 2:
        return assumed_s
    spacing_s = float(np.diff(changed_s).min())
    return min(spacing_s, assumed_s) if changed_s.size > _MOST_SAMPLES * (len(observed) - 1) else spacing_s


def _name(series: Series) -> str:
    return series.metric.get("__name__", "")


def traits_of(record: SensorRecord, observed: Series | None = None) -> Traits:
    """Return the limits of a sensor, from its metadata and, if it has published no refresh, its samples."""
    refresh_s = refresh_s_of(record, observed)
    return Traits(
        refresh_s=refresh_s,
        resolution_joules=catalog.resolution_joules(record.resolution),
        resolution_watts=catalog.resolution_watts(record.resolution),
        # Of a calibrated sensor, the calibration has the uncertainty (``energy.calibrated``).
        accuracy=None if record.calibration is not None else record.accuracy,
        family=record.collector,
        window_s=record.window_s or 0.0,
    )


def unknown_sensor(sensor: SensorId) -> SensorRecord:
    """Return metadata for a sensor without any: its method is ``unknown``."""
    return SensorRecord(
        exporter=sensor.exporter,
        scope=sensor.scope,
        collector=sensor.collector,
        component=sensor.component,
        device=sensor.device,
        domain=sensor.domain,
        method="estimated" if sensor.collector == "estimate" else "unknown",
    )


def build_history(
    source: str,
    samples: Iterable[RawSeries],
    exporters: Sequence[ExporterRecord] | None = None,
    *,
    power: bool = True,
) -> History:
    """Turn raw samples into a history.

    Args:
        source: Where they come from, for people.
        samples: Counters, read timestamps, identities, sensor metadata and diagnostics of exporters, in any order.
        exporters: The exporters to include, which have their names in the history; None: all.
        power: Include the sensors that have power but no counter.

    Raises:
        IdentityError: Samples of different exporters would be merged.
    """
    placed, notices = identify(samples, exporters)
    builder = _Builder()
    for one in placed:
        builder.add(one)
    nodenames = {one.exporter.name: node for one in placed if (node := one.exporter.nodename)}
    history = dataclasses.replace(builder.history(source, tuple(notices), power=power), nodenames=nodenames)
    return dataclasses.replace(history, notices=(*history.notices, *_read_twice(history)))


def _read_twice(history: History) -> Iterator[Notice]:
    """Yield the machines whose devices several exporters read: each exporter counts their energy once more.

    Two machines may have one nodename (containers, ``localhost``), so this is not an error.
    """
    readers: dict[tuple[str, ...], list[SensorId]] = {}
    for sensor in (*history.counters, *history.powers):
        node = history.nodenames.get(sensor.exporter, "")
        if node and sensor.scope == "device" and history.sensors[sensor].method != "emulated":
            readers.setdefault((node, *_quantity_key(sensor)[1:]), []).append(sensor)
    doubled: dict[tuple[str, tuple[str, ...]], list[SensorId]] = {}
    for (node, *_), sensors in readers.items():
        if len(sensors) > 1:
            doubled.setdefault((node, tuple(sorted(sensor.exporter for sensor in sensors))), []).extend(sensors[:1])
    for (node, exporters), sensors in doubled.items():
        device = f"{sensors[0].device}/{sensors[0].domain}"
        more = f" and {len(sensors) - 1} more" if len(sensors) > 1 else ""
        yield Notice(
            severity="warning",
            reason="identity_conflict",
            text=f"{' and '.join(exporters)}: two exporters with the nodename {node} both read {device}{more}; if they "
            "run on one machine, a sum counts its energy twice. Run one exporter per machine",
            exporter=exporters[0],
        )


class _Builder:
    """Sorts series into the parts of a history: one method per kind of metric."""

    def __init__(self) -> None:
        self._counters: dict[SensorId, list[Placed]] = {}
        self._powers: dict[SensorId, list[Placed]] = {}
        self._reads: dict[tuple[Target, str, str], Placed] = {}
        self._starts: dict[str, set[float]] = {}
        self._sensors: dict[SensorId, SensorRecord] = {}
        self._refreshes: dict[QuantityKey, float] = {}
        self._windows: dict[QuantityKey, float] = {}
        self._calibrations: dict[QuantityKey, dict[str, float]] = {}
        self._calibration_infos: dict[QuantityKey, Mapping[str, str]] = {}
        self._diagnostics: dict[QuantityKey, dict[str, list[Series]]] = {}
        self._ups: dict[tuple[str, ...], list[Series]] = {}
        self._asleep: dict[tuple[str, ...], list[Series]] = {}
        self._adders: Final[Mapping[str, Callable[[Placed], None]]] = {
            **{name: partial(self._add_quantity, self._counters, scope) for name, scope in _ENERGY_SCOPE.items()},
            **{name: partial(self._add_quantity, self._powers, scope) for name, scope in _POWER_SCOPE.items()},
            **{name: partial(self._add_diagnostic, kind) for name, kind in HEALTH_NAMES.items()},
            catalog.READ_TIMESTAMP.name: self._add_read_timestamps,
            catalog.EXPORTER_START.name: self._add_starts,
            catalog.SENSOR_INFO.name: self._add_sensor,
            catalog.SENSOR_REFRESH.name: partial(self._add_largest, self._refreshes),
            catalog.SENSOR_WINDOW.name: partial(self._add_largest, self._windows),
            catalog.SENSOR_CALIBRATION.name: self._add_calibration,
            catalog.SENSOR_CALIBRATION_INFO.name: self._add_calibration_info,
            catalog.SENSOR_UP.name: self._add_up,
            catalog.SENSOR_STATE.name: self._add_state,
        }

    def add(self, placed: Placed) -> None:
        """Take one series; metrics that the analysis does not use are ignored."""
        adder = self._adders.get(placed.raw.name)
        if adder is not None:
            adder(placed)

    def _add_quantity(self, known: dict[SensorId, list[Placed]], scope: str, placed: Placed) -> None:
        known.setdefault(_sensor_id(placed, scope), []).append(placed)

    def _add_read_timestamps(self, placed: Placed) -> None:
        # Joined to counters by sample time, so both must come from the same target.
        self._reads[_device(placed)] = placed

    def _add_starts(self, placed: Placed) -> None:
        starts = self._starts.setdefault(placed.exporter.name, set())
        starts.update(float(value) for value in np.unique(placed.raw.values))

    def _add_sensor(self, placed: Placed) -> None:
        sensor = _sensor_id(placed, placed.labels.get("scope", ""))
        record = SensorRecord.of_labels(sensor.exporter, placed.labels)
        if not record.method:
            record = dataclasses.replace(record, method="unknown")
        if sensor not in self._sensors or _doubt(record) > _doubt(self._sensors[sensor]):
            self._sensors[sensor] = record

    def _add_largest(self, known: dict[QuantityKey, float], placed: Placed) -> None:
        if placed.raw.values.size:
            key = _labels_key(placed, catalog.SENSOR_LABELS)
            known[key] = max(known.get(key, 0.0), float(placed.raw.values[-1]))

    def _add_calibration(self, placed: Placed) -> None:
        if placed.raw.values.size:
            key = _labels_key(placed, catalog.SENSOR_LABELS)
            parameter = placed.labels.get("parameter", "")
            self._calibrations.setdefault(key, {})[parameter] = float(placed.raw.values[-1])

    def _add_calibration_info(self, placed: Placed) -> None:
        key = _labels_key(placed, catalog.SENSOR_LABELS)
        known = self._calibration_infos.get(key)
        # Of two, the newer one is in force.
        if known is None or placed.labels.get("date", "") > known.get("date", ""):
            self._calibration_infos[key] = placed.labels

    def _add_diagnostic(self, kind: str, placed: Placed) -> None:
        key = _labels_key(placed, catalog.SENSOR_LABELS)
        self._diagnostics.setdefault(key, {}).setdefault(kind, []).append(_at_sample_times(placed.raw))

    def _add_up(self, placed: Placed) -> None:
        self._ups.setdefault(_labels_key(placed, catalog.DEVICE_LABELS), []).append(_at_sample_times(placed.raw))

    def _add_state(self, placed: Placed) -> None:
        if placed.labels.get("state") == "asleep":
            device = _labels_key(placed, catalog.DEVICE_LABELS)
            self._asleep.setdefault(device, []).append(_at_sample_times(placed.raw))

    def history(self, source: str, notices: tuple[Notice, ...], *, power: bool) -> History:
        """Return the history; ``power``: as for ``build_history``."""
        asleep = {key: _merged(parts) for key, parts in self._asleep.items()}
        notices = (*notices, *self._keep_one_clock(), *map(_sleep_notice, asleep))
        partly_observed = {sensor for sensor in self._powers if _quantity_key(sensor) in self._windows}
        used = {sensor: parts for sensor, parts in self._powers.items() if power or sensor in partly_observed}
        watts = self._placed(used)
        ups = {key: _merged(parts) for key, parts in self._ups.items()}
        diagnostics = {
            key: {kind: _merged(parts) for kind, parts in kinds.items()} for key, kinds in self._diagnostics.items()
        }
        return History(
            source=source,
            sensors=self._described((*self._counters, *used)),
            counters=self._placed(self._counters, counts=True),
            powers={sensor: series for sensor, series in watts.items() if sensor not in self._counters},
            readings={sensor: series for sensor, series in watts.items() if sensor in partly_observed},
            starts={name: np.array(sorted(times), dtype=np.float64) for name, times in self._starts.items()},
            diagnostics={
                key: changed
                for key, kinds in diagnostics.items()
                if (changed := {kind: series for kind, series in kinds.items() if _changes(series)})
            },
            ups={key: series for key, series in ups.items() if len(series) and float(series.values.min()) < 1},
            asleep=asleep,
            notices=notices,
        )

    def _keep_one_clock(self) -> list[Notice]:
        """Keep the read timestamps of each device up to or from a step of its clock, whichever is longer.

        Samples on both sides of a step are on two clocks: they cannot be in one series.
        """
        worst: dict[str, tuple[int, int, float]] = {}
        for device, placed in self._reads.items():
            raw = placed.raw
            kept, set_at_s = _on_one_clock(raw.times_s, raw.values)
            excluded = raw.times_s.size - (kept.stop - kept.start)
            if excluded:
                name = placed.exporter.name
                worst[name] = max(worst.get(name, (0, 0, 0.0)), (excluded, raw.times_s.size, set_at_s))
                stays = dataclasses.replace(raw, times_s=raw.times_s[kept], values=raw.values[kept])
                self._reads[device] = dataclasses.replace(placed, raw=stays)
        return [
            Notice(
                severity="warning",
                reason="clock_stepped",
                text=f"{name}: its clock was set at {set_at_s:.0f} (Unix seconds); {excluded} of "
                f"{count_of(samples, 'sample')} {'is' if excluded == 1 else 'are'} on the other side of that and "
                "excluded. Let the time service (NTP) slew clocks, not set them",
                exporter=name,
            )
            for name, (excluded, samples, set_at_s) in sorted(worst.items())
        ]

    def _placed(self, quantities: Mapping[SensorId, list[Placed]], *, counts: bool = False) -> dict[SensorId, Series]:
        """Return every series at its read timestamps, in order of the sensors; ``counts``: they are counters."""
        series = {}
        for sensor, parts in sorted(quantities.items()):
            with_reads = [
                _at_read_times(placed.raw, reads.raw)
                for placed in parts
                if (reads := self._reads.get(_device(placed))) is not None
            ]
            if counts:
                _check_agreement(with_reads, parts[0].exporter)
            series[sensor] = _merged(with_reads or [_at_sample_times(placed.raw) for placed in parts])
        return series

    def _described(self, with_samples: Iterable[SensorId]) -> dict[SensorId, SensorRecord]:
        """Return the metadata of every sensor, with its measured refresh period and window."""
        sensors = dict(self._sensors)
        for sensor in with_samples:
            sensors.setdefault(sensor, unknown_sensor(sensor))
        return {
            sensor: dataclasses.replace(
                record,
                refresh_s=self._refreshes.get(_quantity_key(sensor), record.refresh_s),
                window_s=self._windows.get(_quantity_key(sensor), record.window_s),
                calibration=self._calibration(_quantity_key(sensor)),
            )
            for sensor, record in sensors.items()
        }

    def _calibration(self, key: QuantityKey) -> CalibrationRecord | None:
        return CalibrationRecord.of_metrics(self._calibrations.get(key, {}), self._calibration_infos.get(key, {}))


def _sleep_notice(device: tuple[str, ...]) -> Notice:
    return Notice(
        severity="info",
        reason="sensor_asleep",
        text=f"{'/'.join(device)} was asleep (runtime suspend) for a time: its energy of that time is not measured and "
        "is not in any sum. If the device takes part in the work, keep it awake",
        exporter=device[0],
    )


def _sensor_id(placed: Placed, scope: str) -> SensorId:
    labels = {name: placed.labels.get(name, "") for name in catalog.SENSOR_LABELS}
    return SensorId(exporter=placed.exporter.name, scope=scope, **labels)


def _quantity_key(sensor: SensorId) -> QuantityKey:
    return sensor.exporter, sensor.collector, sensor.component, sensor.device, sensor.domain


def _labels_key(placed: Placed, names: Iterable[str]) -> tuple[str, ...]:
    return placed.exporter.name, *(placed.labels.get(name, "") for name in names)


def _device(placed: Placed) -> tuple[Target, str, str]:
    """Return the identity of a device in the scrapes of one target."""
    return placed.target, placed.labels.get("collector", ""), placed.labels.get("device", "")


def _changes(series: Series) -> bool:
    return len(series) > 0 and float(np.ptp(series.values)) > 0


def _merged(parts: Sequence[Series]) -> Series:
    """Return one series from those of several targets: the longest, and the others where it has gaps.

    All samples of two servers together would have spacings that look like gaps, and servers stamp one scrape with
    different times.
    """
    first, *others = sorted(parts, key=len, reverse=True)
    for series in others:
        near_s = _NEAR * default_max_gap_s(first.spacing_s)
        at = first.times_s.searchsorted(series.times_s)
        limits_s = np.concatenate(([-np.inf], first.times_s, [np.inf]))
        far = (series.times_s - limits_s[at] > near_s) & (limits_s[at + 1] - series.times_s > near_s)
        times_s = np.concatenate((first.times_s, series.times_s[far]))
        order = np.argsort(times_s)
        first = Series(times_s[order], np.concatenate((first.values, series.values[far]))[order], first.metric)
    return first


def _check_agreement(parts: Sequence[Series], exporter: Exporter) -> None:
    """Check that counters of several targets are one: in order of their read timestamps it falls at restarts only.

    Raises:
        IdentityError: They contradict each other, so the targets are different exporters.
    """
    if len(parts) < 2:
        return
    order = np.argsort(np.concatenate([series.times_s for series in parts]), kind="stable")
    values = np.concatenate([series.values for series in parts])[order]
    restarts = sum(_falls(series.values) for series in parts) + max(len(exporter.starts_s) - 1, 0)
    if _falls(values) > restarts:
        raise contradiction(exporter)


def _falls(values: Floats) -> int:
    return int(np.count_nonzero(np.diff(values) < 0))


def _at_sample_times(raw: RawSeries) -> Series:
    return Series.from_samples(raw.times_s, raw.values, {"__name__": raw.name, **raw.labels})


def _on_one_clock(sampled_at_s: Floats, read_at_s: Floats) -> tuple[slice, float]:
    """Return the longest part of a device's samples without a step of its clock, and the time of a step next to it.

    A device's read timestamp never falls, unless the clock was set back. It never gains on the sample times by more
    than the age of a reading, unless the clock was set forward.
    """
    back = np.diff(read_at_s) < -CLOCK_STEP_S
    forward = np.diff(read_at_s - sampled_at_s) > _LARGEST_AGE_RISE_S
    limits = [0, *(int(at) + 1 for at in np.flatnonzero(back | forward)), sampled_at_s.size]
    _, start, stop = max((stop - start, start, stop) for start, stop in pairwise(limits))
    step = start if start else stop
    return slice(start, stop), float(sampled_at_s[step]) if step < sampled_at_s.size else 0.0


def _at_read_times(counter: RawSeries, reads: RawSeries) -> Series:
    """Place a counter's samples at their read timestamps; samples without one are excluded."""
    metric = {"__name__": counter.name, **counter.labels}
    if counter.times_s.shape == reads.times_s.shape and np.array_equal(counter.times_s, reads.times_s):
        return Series.from_samples(reads.values, counter.values, metric)
    _, mine, theirs = np.intersect1d(counter.times_s, reads.times_s, assume_unique=True, return_indices=True)
    return Series.from_samples(reads.values[theirs], counter.values[mine], metric)


def _doubt(record: SensorRecord) -> int:
    return _METHOD_DOUBT.index(record.method) if record.method in _METHOD_DOUBT else len(_METHOD_DOUBT)
