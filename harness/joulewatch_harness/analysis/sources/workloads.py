"""Energy counters of workloads on a Prometheus, on one grid of times per exporter.

Series of workloads come, go and begin again: a workload ends, another one has its name, the exporter restarts. What is
in a scrape of the exporter shows which of them it was: a series that a scrape lacks did not exist then, and begins at 0
when it appears. So the increases between scrapes are complete, except before a restart of the exporter.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from joulewatch_exporter import catalog
from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.sources.history import RawSeries, traits_of
from joulewatch_harness.analysis.sources.identity import Notice, Placed, identify
from joulewatch_harness.analysis.sources.series import Floats, Series, Traits
from joulewatch_harness.errors import ConfigError, QueryError
from joulewatch_harness.records import SensorRecord

if TYPE_CHECKING:
    from joulewatch_harness.analysis.sources.prometheus import PrometheusSource

IDLE: Final = "idle"
ACTIVE_REASONS: Final = ("rest", "system")
"""Energy of these is active, but of no workload that is shown; idle is not active, and of a gap it is not known."""
NAMES: Final = catalog.WORKLOAD_INFO.labels
"""What a pattern may name: ``kind``, ``workload``, ``namespace``, ``pod``, ..."""


class Device(NamedTuple):
    """What is shared: a component, or one device of it (GPUs)."""

    component: str
    device: str


class WorkloadId(NamedTuple):
    """A workload of one exporter."""

    kind: str
    workload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadUse:
    """The energy counters of one exporter: joules since the first sample, at the times of its scrapes."""

    exporter: str
    host: str
    names: Mapping[WorkloadId, Mapping[str, str]]
    """All labels of ``joulewatch_workload_info``."""
    times_s: Floats
    spacing_s: float
    """Typical time between two scrapes."""
    workloads: Mapping[tuple[WorkloadId, Device], Floats]
    present: Mapping[tuple[WorkloadId, Device], Floats]
    """1 at the scrapes that have the series, else 0."""
    unattributed: Mapping[tuple[str, Device], Floats]
    """Reason and device -> joules."""
    reserved: Mapping[WorkloadId, Floats] = field(default_factory=dict)
    """Share of the processors that the workload has by weight; 0 at the scrapes that lack it."""
    methods: Mapping[str, str]
    """Component -> method of its sensors."""
    traits: Mapping[Device, Traits]
    """Component (of GPUs: and device) -> the worst limits of its sensors."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Component -> how much two workloads differ per second of use, where that was measured."""
    lost_s: tuple[tuple[float, float], ...] = ()
    """From the last scrape before each restart of the exporter to the restart: their energy is missing."""

    @property
    def devices(self) -> list[Device]:
        return sorted({device for _, device in (*self.workloads, *self.unattributed)})

    def of(self, device: Device, chosen: Iterable[WorkloadId]) -> Floats:
        """Return the energy of some workloads on one device."""
        return sum((self.workloads[one, device] for one in chosen if (one, device) in self.workloads), self.zero)

    def active(self, device: Device) -> Floats:
        """Return all active energy of a device: that of which the workloads have shares."""
        rest = (self.unattributed.get((reason, device), self.zero) for reason in ACTIVE_REASONS)
        return sum(rest, self.of(device, {one for one, _ in self.workloads}))

    def idle(self, device: Device) -> Floats:
        return self.unattributed.get((IDLE, device), self.zero)

    def series(self, joules: Floats) -> Series:
        return Series(self.times_s, joules)

    @property
    def zero(self) -> Floats:
        return np.zeros_like(self.times_s)


def matcher(patterns: Sequence[str]) -> WorkloadMatcher:
    """Return what ``--workload`` selects.

    Raises:
        ConfigError: A pattern names a label that workloads do not have.
    """
    return WorkloadMatcher(tuple(_conditions(pattern) for pattern in patterns))


def _conditions(pattern: str) -> tuple[tuple[str, str], ...]:
    """Return (label, wildcard) for each part of ``namespace=prod,pod=web-*``; one without a label has the label ""."""
    conditions = []
    for part in pattern.split(","):
        label, equals, wildcard = part.partition("=")
        if not equals or not label.isidentifier():
            # A name may contain commas and equal signs.
            return (("", pattern),)
        if label not in NAMES:
            raise ConfigError(f"--workload {pattern}: no label {label}; the labels are {', '.join(NAMES)}")
        conditions.append((label, wildcard))
    return tuple(conditions)


@dataclass(frozen=True, slots=True)
class WorkloadMatcher:
    """Patterns of ``--workload``: a workload matches any of them, and each condition of that one."""

    patterns: tuple[tuple[tuple[str, str], ...], ...]

    def __call__(self, names: Mapping[str, str]) -> bool:
        return any(all(self._holds(names, *condition) for condition in pattern) for pattern in self.patterns)

    @staticmethod
    def _holds(names: Mapping[str, str], label: str, wildcard: str) -> bool:
        if label:
            return fnmatch.fnmatchcase(names.get(label, ""), wildcard)
        texts = (names["workload"], f"{names['kind']}/{names['workload']}")
        return any(fnmatch.fnmatchcase(text, wildcard) for text in texts)


def workload_uses(
    source: PrometheusSource, span: tuple[float, float], matches: WorkloadMatcher
) -> tuple[list[WorkloadUse], list[str]]:
    """Return the exporters that have workloads that match, and the names of all workloads if none has.

    Raises:
        QueryError: The source cannot be queried.
        IdentityError: Series of different exporters would be merged.
    """
    infos = source.workload_infos(span)
    placed, _ = identify(infos)
    known = [one.labels for one in placed if one.raw.name == catalog.WORKLOAD_INFO.name]
    instances = sorted(
        {
            one.raw.labels.get("instance", "")
            for one in placed
            if one.raw.name == catalog.WORKLOAD_INFO.name and matches(one.labels)
        }
    )
    if not instances:
        return [], sorted({f"{names['kind']}/{names['workload']}" for names in known})
    samples, edges_s = source.workload_samples(span, instances)
    kept = [raw for raw in infos if raw.labels.get("instance", "") in instances]
    placed, _ = identify([*kept, *samples])
    return sorted(_uses(placed, edges_s), key=lambda use: (use.host, use.exporter)), []


def _uses(placed: Sequence[Placed], edges_s: Sequence[tuple[float, float]]) -> Iterator[WorkloadUse]:
    by_target: dict[int, list[Placed]] = {}
    for one in placed:
        by_target.setdefault(id(one.target), []).append(one)
    chosen: dict[str, list[Placed]] = {}
    for parts in by_target.values():
        # Of replicas and of two jobs for one exporter, the one with the most samples counts.
        name = parts[0].exporter.name
        if _samples(parts) > _samples(chosen.get(name, ())):
            chosen[name] = parts
    for parts in chosen.values():
        if (use := _use(parts, edges_s)) is not None:
            yield use


def _samples(parts: Sequence[Placed]) -> int:
    return sum(one.raw.times_s.size for one in parts if one.raw.name == catalog.WORKLOAD_ENERGY.name)


def _use(parts: Sequence[Placed], edges_s: Sequence[tuple[float, float]]) -> WorkloadUse | None:
    # The names came with the last start time alone.
    starts = (one.raw for one in parts if one.raw.name == catalog.EXPORTER_START.name)
    start = max(starts, key=lambda raw: raw.times_s.size, default=None)
    if start is None or start.times_s.size < 2 or not _samples(parts):
        return None
    grid = _Grid(start, edges_s[0][0])
    workloads: dict[tuple[WorkloadId, Device], Floats] = {}
    present: dict[tuple[WorkloadId, Device], Floats] = {}
    unattributed: dict[tuple[str, Device], Floats] = {}
    reserved: dict[WorkloadId, Floats] = {}
    for one in parts:
        if one.raw.name == catalog.WORKLOAD_ENERGY.name:
            key = WorkloadId(one.labels["kind"], one.labels["workload"]), _device(one)
            workloads[key], present[key] = grid.joules(one.raw), grid.present(one.raw)
        elif one.raw.name == catalog.UNATTRIBUTED_ENERGY.name:
            unattributed[one.labels["reason"], _device(one)] = grid.joules(one.raw)
        elif one.raw.name == catalog.WORKLOAD_RESERVED.name:
            reserved[WorkloadId(one.labels["kind"], one.labels["workload"])] = grid.values(one.raw)
    infos = [one.labels for one in parts if one.raw.name == catalog.WORKLOAD_INFO.name]
    # Names that were found later replace none.
    infos.sort(key=lambda labels: sum(map(bool, labels.values())))
    names = {WorkloadId(*one): {"kind": one.kind, "workload": one.workload} for one, _ in workloads}
    names |= {WorkloadId(labels["kind"], labels["workload"]): dict(labels) for labels in infos}
    exporter = parts[0].exporter
    return WorkloadUse(
        exporter=exporter.name,
        host=exporter.nodename or exporter.name,
        names=names,
        times_s=grid.times_s,
        spacing_s=grid.spacing_s(edges_s),
        workloads=workloads,
        present=present,
        unattributed=unattributed,
        reserved=reserved,
        methods={
            one.labels["component"]: one.labels["method"]
            for one in parts
            if one.raw.name == catalog.ATTRIBUTION_INFO.name
        },
        traits=_traits(parts),
        ratios={
            one.labels["component"]: _ratio(exporter.name, one)
            for one in parts
            if one.raw.name == catalog.WORKLOAD_RATIO.name
        },
        lost_s=grid.lost_s,
    )


def _ratio(exporter: str, one: Placed) -> float:
    ratio = float(one.raw.values[-1])
    if not ratio >= 1:
        raise QueryError(
            f"{one.raw.name} of {exporter} ({one.labels['component']}) is {ratio:g}, but must be at least 1: "
            "correct the calibration file of this exporter"
        )
    return ratio


def _traits(parts: Sequence[Placed]) -> dict[Device, Traits]:
    """Return the limits of the sensors of each component, and of each of its devices."""
    refreshes = {
        tuple(one.labels[label] for label in catalog.SENSOR_LABELS): float(one.raw.values[-1])
        for one in parts
        if one.raw.name == catalog.SENSOR_REFRESH.name
    }
    found: dict[Device, list[Traits]] = {}
    for one in parts:
        if one.raw.name == catalog.SENSOR_INFO.name and one.labels["scope"] == "device":
            record = SensorRecord.of_labels(one.exporter.name, one.labels)
            refresh_s = refreshes.get(tuple(one.labels[label] for label in catalog.SENSOR_LABELS))
            traits = traits_of(replace(record, refresh_s=refresh_s))
            for device in {"", record.device}:
                found.setdefault(Device(record.component, device), []).append(traits)
    return {device: _worst(each) for device, each in found.items()}


def _worst(each: Sequence[Traits]) -> Traits:
    accuracies = [one.accuracy for one in each if one.accuracy is not None]
    return Traits(
        refresh_s=max(one.refresh_s for one in each),
        accuracy=max(accuracies) if len(accuracies) == len(each) else None,
        family=each[0].family,
    )


def _device(one: Placed) -> Device:
    return Device(one.labels["component"], one.labels["device"])


class _Grid:
    """The scrapes of one target of an exporter."""

    def __init__(self, start: RawSeries, since_s: float) -> None:
        restarts = np.flatnonzero(np.diff(start.values)) + 1
        self.lost_s = tuple((float(start.times_s[i - 1]), float(start.values[i])) for i in restarts)
        started_s = float(start.values[0])
        # An exporter that is new in the window has started with every counter at 0.
        self._new = since_s <= started_s < start.times_s[0]
        self.times_s = np.concatenate(([started_s], start.times_s)) if self._new else start.times_s
        self._restarted = np.zeros(self.times_s.size, dtype=bool)
        self._restarted[restarts + self._new] = True

    def _placed(self, raw: RawSeries) -> Floats:
        """Return the values at the scrapes; nan where there is none."""
        values = np.full(self.times_s.size, np.nan)
        at = np.searchsorted(self.times_s, raw.times_s)
        known = (at < self.times_s.size) & (self.times_s[np.minimum(at, self.times_s.size - 1)] == raw.times_s)
        values[at[known]] = raw.values[known]
        return values

    def values(self, raw: RawSeries) -> Floats:
        """Return the values at the scrapes; 0 where there is none."""
        return np.nan_to_num(self._placed(raw))

    def present(self, raw: RawSeries) -> Floats:
        return (~np.isnan(self._placed(raw))).astype(np.float64)

    def joules(self, raw: RawSeries) -> Floats:
        """Return the energy since the first scrape at every scrape."""
        values = self._placed(raw)
        if self._new:
            values[0] = 0.0
        before = values[:-1]
        after = np.nan_to_num(values[1:])
        # A series that was missing, fell, or whose exporter restarted, has begun at 0.
        begun = np.isnan(before) | (values[1:] < before) | self._restarted[1:]
        rises = np.where(np.isnan(values[1:]), 0.0, after - np.where(begun, 0.0, before))
        return np.concatenate(([0.0], np.cumsum(rises)))

    def spacing_s(self, edges_s: Sequence[tuple[float, float]]) -> float:
        """Return the median spacing near the edges; between them the samples may be sparse."""
        near = np.zeros(self.times_s.size, dtype=bool)
        for first_s, last_s in edges_s:
            near |= (self.times_s >= first_s) & (self.times_s <= last_s)
        inside = near[1:] & near[:-1]
        steps = np.diff(self.times_s)
        return float(np.median(steps[inside] if inside.any() else steps))


def lost_notice(use: WorkloadUse, start_s: float, end_s: float) -> Notice | None:
    """Return the warning about energy that restarts of an exporter lost within a span."""
    inside = [(first_s, last_s) for first_s, last_s in use.lost_s if last_s > start_s and first_s < end_s]
    if not inside:
        return None
    seconds = sum(min(last_s, end_s) - max(first_s, start_s) for first_s, last_s in inside)
    return Notice(
        severity="warning",
        reason="exporter_restart",
        text=f"{use.host}: the exporter restarted {count_of(len(inside), 'time')} in the window; the energy of "
        f"the {seconds:.3g} s before {'the restart' if len(inside) == 1 else 'the restarts'} is missing",
        exporter=use.exporter,
    )
