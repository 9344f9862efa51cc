"""Find the exporter of each series. Addresses and labels may be misleading, so its identity decides. Pure.

An exporter is identified by its nodename and start time. Both are stored with the *target labels* of every series of a
scrape target: ``instance``, ``job``, and labels that Prometheus, Mimir or Thanos is configured to add. Where a target
label has the name of a label of the exporter (``device``), Prometheus renames the exporter's to ``exported_device``.

- Targets with the same nodename and start time are one exporter: replicas of Prometheus, two jobs, two addresses.
- A later start time at the same target is a restart.
- Targets without an identity are one exporter if they differ in ``job`` and replica labels only.
- Different exporters are never merged. If they have the same name and a series in common, that is an error.
"""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from joulewatch_exporter import catalog
from joulewatch_harness.errors import IdentityError
from joulewatch_harness.records import ExporterRecord

if TYPE_CHECKING:
    from joulewatch_harness.analysis.sources.history import RawSeries

_EXPORTED: Final = "exported_"
REPLICA_LABELS: Final = ("replica", "prometheus_replica", "__replica__")
"""Labels that distinguish the Prometheus servers of a highly available pair, as Thanos and Mimir recommend."""
_NO_IDENTITY: Final = frozenset(f"{prefix}{name}" for prefix in ("", _EXPORTED) for name in ("job", *REPLICA_LABELS))
"""Target labels that do not distinguish exporters."""
_OWN_LABELS: Final = {metric.name: frozenset(metric.labels) for metric in catalog.METRICS}
_SAMPLES: Final = tuple(
    metric.name for by_scope in (catalog.ENERGY_BY_SCOPE, catalog.POWER_BY_SCOPE) for metric in by_scope.values()
)
_INFOS: Final = (catalog.EXPORTER_INFO.name, catalog.SENSOR_INFO.name)
_PLACES: Final = {name: place for place, name in enumerate((catalog.EXPORTER_START.name, *_SAMPLES))}
"""Metrics in the order in which their labels show the target labels: the start time has no other labels, and a newer
exporter may add labels to any info metric."""

_MOST_SHOWN: Final = 3

Labels = Mapping[str, str]
_Key = frozenset[tuple[str, str]]


def address(labels: Labels) -> str:
    """Return the exporter's address; a federating Prometheus that does not honor labels renames it."""
    return labels.get(f"{_EXPORTED}instance") or labels.get("instance", "")


def nodename(info: RawSeries) -> str:
    """Return the nodename of a ``joulewatch_exporter_info``."""
    return info.labels.get(f"{_EXPORTED}nodename") or info.labels.get("nodename", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A message about the samples of a history, for the findings of a result."""

    severity: Literal["info", "warning", "error"]
    reason: str
    text: str
    exporter: str


@dataclass(slots=True, kw_only=True, eq=False)
class Target:
    """The series with the same target labels."""

    labels: Labels
    nodes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Nodename -> first and last sample of ``joulewatch_exporter_info`` in Unix seconds."""
    starts_s: list[float] = field(default_factory=list)
    """Start times of the exporter, one per change, in the order in which they were stored."""
    first_s: float = np.inf
    last_s: float = -np.inf
    renamed: set[str] = field(default_factory=set)
    """Labels of the exporter that have the prefix ``exported_``."""
    sensors: set[tuple[str, ...]] = field(default_factory=set)
    """Name and labels of its energies and powers."""

    @property
    def address(self) -> str:
        return address(self.labels)

    @property
    def identity(self) -> frozenset[tuple[str, int]]:
        """Nodename and start time, in milliseconds; empty if one of them is not stored."""
        return frozenset((node, round(start_s * 1000)) for node in self.nodes for start_s in self.starts_s)

    def add(self, raw: RawSeries) -> None:
        """Take what one of its series shows about the exporter."""
        if raw.name in _SAMPLES:
            self.sensors.add((raw.name, *(text for pair in sorted(self.own_labels(raw).items()) for text in pair)))
        elif raw.name == catalog.EXPORTER_INFO.name and raw.times_s.size and (node := nodename(raw)):
            first_s, last_s = self.nodes.get(node, (np.inf, -np.inf))
            self.nodes[node] = min(first_s, float(raw.times_s[0])), max(last_s, float(raw.times_s[-1]))
        elif raw.name == catalog.EXPORTER_START.name and raw.times_s.size:
            changed = np.flatnonzero(np.diff(raw.values)) + 1
            for value in (raw.values[0], *raw.values[changed]):
                if not self.starts_s or self.starts_s[-1] != value:
                    self.starts_s.append(float(value))
            self.first_s = min(self.first_s, float(raw.times_s[0]))
            self.last_s = max(self.last_s, float(raw.times_s[-1]))

    def own_labels(self, raw: RawSeries) -> dict[str, str]:
        """Return the labels that the exporter gave a series, under the names that it gave them."""
        labels, own = raw.labels, {}
        for name in _OWN_LABELS.get(raw.name, ()):
            value = labels.get(_EXPORTED + name)
            if value is None:
                value = labels.get(name, "")
                # An empty label is not stored, so that the target label of this name shows through.
                if value and self.labels.get(name) == value:
                    value = "" if name in self.renamed or name not in catalog.SENSOR_LABELS else value
            own[name] = value
        return own


@dataclass(slots=True, kw_only=True, eq=False)
class Exporter:
    """One exporter: targets with the same identity."""

    targets: list[Target]
    name: str = ""
    node: str = ""
    """The nodename that its samples must have; empty: any."""

    @property
    def nodes(self) -> set[str]:
        return {node for target in self.targets for node in target.nodes}

    @property
    def nodename(self) -> str:
        """Name of its machine; empty if it is not stored, or if it changed."""
        nodes = {self.node} if self.node else self.nodes
        return next(iter(nodes)) if len(nodes) == 1 else ""

    @property
    def starts_s(self) -> set[float]:
        return {start_s for target in self.targets for start_s in target.starts_s}

    @property
    def identity(self) -> set[tuple[str, int]]:
        return {pair for target in self.targets for pair in target.identity}

    @property
    def sensors(self) -> set[tuple[str, ...]]:
        return {sensor for target in self.targets for sensor in target.sensors}

    def values(self, label: str) -> set[str]:
        """Return the values of a target label; "" where it is not set."""
        return {target.labels.get(label, "") for target in self.targets}

    def describe(self) -> str:
        """Return nodename and start time, for messages."""
        parts = [f"nodename {' or '.join(sorted(self.nodes))}"] if self.nodes else []
        if self.starts_s:
            start = datetime.datetime.fromtimestamp(max(self.starts_s), datetime.UTC)
            parts.append(f"started {start:%Y-%m-%d %H:%M:%S} UTC")
        return ", ".join(parts) or "identity not stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A series with its exporter."""

    exporter: Exporter
    target: Target
    labels: Labels
    """The exporter's own labels."""
    raw: RawSeries


def identify(
    samples: Iterable[RawSeries], wanted: Sequence[ExporterRecord] | None = None
) -> tuple[list[Placed], list[Notice]]:
    """Return the series of the exporters with the exporter of each, and messages for the result.

    Args:
        samples: Series of the exporters' metrics, among them their start times and ``joulewatch_exporter_info``.
        wanted: The exporters of a run, whose names the result has; None: all exporters.

    Raises:
        IdentityError: Series of different exporters would be merged; the text has the label that distinguishes them.
    """
    # First the series whose labels show best what the target labels are.
    series = sorted(
        (raw for raw in samples if raw.name in _OWN_LABELS), key=lambda raw: _PLACES.get(raw.name, len(_PLACES))
    )
    targets = _Targets()
    located = [(targets.of(raw), raw) for raw in series]
    for target, raw in located:
        target.add(raw)
    exporters = _grouped(targets.all)
    chosen, notices = (_named(exporters), []) if wanted is None else _of_run(exporters, wanted)
    for exporter in chosen:
        if exporter.sensors:
            notices += _notices(exporter)
    owners = {id(target): exporter for exporter in chosen for target in exporter.targets}
    placed = []
    for target, raw in located:
        owner = owners.get(id(target))
        if owner is not None:
            raw = _of_node(raw, target, owner.node)
            placed.append(Placed(exporter=owner, target=target, labels=target.own_labels(raw), raw=raw))
    return placed, notices


class _Targets:
    """The targets of some series."""

    def __init__(self) -> None:
        self._by_labels: dict[_Key, Target] = {}
        self._by_instance: dict[str, list[Target]] = {}

    @property
    def all(self) -> list[Target]:
        return list(self._by_labels.values())

    def of(self, raw: RawSeries) -> Target:
        """Return the target of a series.

        Usually its labels are those of the target and of the metric. There are fewer if a job has ``honor_labels``, or
        if the metric's label is empty; an info metric has more if a newer exporter added some.
        """
        labels = raw.labels
        own = _OWN_LABELS.get(raw.name, frozenset())
        renamed = {name for name in own if _EXPORTED + name in labels}
        hidden = {_EXPORTED + name for name in renamed} | (own - renamed)
        rest = {name: value for name, value in labels.items() if name not in hidden}
        target = self._by_labels.get(frozenset(rest.items()))
        if target is None:
            candidates = [
                candidate
                for candidate in self._by_instance.get(labels.get("instance", ""), ())
                if all(rest.get(name) == value or name in own - renamed for name, value in candidate.labels.items())
                and (raw.name in _INFOS or rest.keys() <= candidate.labels.keys())
            ]
            target = max(candidates, key=lambda candidate: len(candidate.labels), default=None)
        if target is None:
            target = self._by_labels[frozenset(rest.items())] = Target(labels=rest)
            self._by_instance.setdefault(rest.get("instance", ""), []).append(target)
        target.renamed |= renamed
        return target


def _grouped(targets: Sequence[Target]) -> list[Exporter]:
    """Return the exporters of some targets."""
    groups: dict[int, Exporter] = {}
    known: dict[tuple[str, int] | str, list[Target]] = {}
    order = sorted(targets, key=lambda target: (not target.identity, target.first_s, sorted(target.labels.items())))
    for target in order:
        keys: list[tuple[str, int] | str] = [*target.identity, target.address]
        near = {id(other): other for key in keys for other in known.get(key, ())}
        same = {id(groups[key]): groups[key] for key, other in near.items() if _same(target, other)}
        if len(same) > 1 and not target.identity:
            same = {}
        exporter = Exporter(targets=[*(other for group in same.values() for other in group.targets), target])
        groups |= {id(other): exporter for other in exporter.targets}
        for key in keys:
            known.setdefault(key, []).append(target)
    return list({id(exporter): exporter for exporter in groups.values()}.values())


def _same(target: Target, other: Target) -> bool:
    """Return whether two targets are one exporter; ``other`` is not the later one."""
    mine, theirs = target.identity, other.identity
    if not (mine and theirs):
        return _distinct(target.labels) == _distinct(other.labels)
    if mine & theirs:
        return True
    # A restart that changed a target label, such as the name of a pod.
    return (
        target.address == other.address
        and bool(target.nodes.keys() & other.nodes.keys())
        and min(target.starts_s) > max(other.starts_s)
        and target.first_s >= other.last_s
    )


def _distinct(labels: Labels) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name not in _NO_IDENTITY}


def _named(exporters: Sequence[Exporter]) -> list[Exporter]:
    """Name each exporter by its address, where that is unique, else also by a label that distinguishes it.

    Returns:
        The exporters, without those that have no samples and the address of another one.

    Raises:
        IdentityError: Exporters with the same address have a series in common.
    """
    by_address: dict[str, list[Exporter]] = {}
    for exporter in exporters:
        exporter.name = min(target.address for target in exporter.targets)
        by_address.setdefault(exporter.name, []).append(exporter)
    chosen = []
    for name, group in by_address.items():
        group = [exporter for exporter in group if exporter.sensors] or group
        seen: set[tuple[str, ...]] = set()
        for exporter in group:
            if seen & exporter.sensors:
                raise _conflict(name, group)
            seen |= exporter.sensors
        if len(group) > 1:
            label = _distinguishing(group)
            for exporter in group:
                text = f"{label}={min(exporter.values(label))}" if label else exporter.describe()
                exporter.name = f"{name}{{{text}}}"
        chosen += group
    return chosen


def _conflict(name: str, exporters: Sequence[Exporter]) -> IdentityError:
    label = _distinguishing(exporters)
    exporters = sorted(exporters, key=lambda exporter: (sorted(exporter.values(label)), exporter.describe()))
    parts = [
        f"{label}={min(exporter.values(label)) or '(not set)'}: {exporter.describe()}" if label else exporter.describe()
        for exporter in exporters[:_MOST_SHOWN]
    ]
    if len(exporters) > _MOST_SHOWN:
        parts.append("...")
    fix = _select(label, exporters) if label else "no label distinguishes them: add one to each target"
    return IdentityError(f"{name}: {len(exporters)} different exporters have this address ({'; '.join(parts)}); {fix}")


def _select(label: str, exporters: Sequence[Exporter]) -> str:
    value = next((value for exporter in exporters for value in sorted(exporter.values(label)) if value), "")
    return f"select one with --match {shlex.quote(f'{label}={value}')}"


def _distinguishing(exporters: Sequence[Exporter]) -> str:
    """Return the target label that best distinguishes some exporters; "" without one."""
    names = {name for exporter in exporters for target in exporter.targets for name in target.labels}
    best: tuple[int, bool, str] | None = None
    for name in names:
        values = [exporter.values(name) for exporter in exporters]
        if all(not values[0] & others for others in values[1:]):
            distinct = len({frozenset(one) for one in values})
            candidate = (-distinct, name in _NO_IDENTITY, name)
            best = candidate if best is None else min(best, candidate)
    return best[2] if best is not None else ""


def _of_run(exporters: Sequence[Exporter], wanted: Sequence[ExporterRecord]) -> tuple[list[Exporter], list[Notice]]:
    """Return the exporters of a run, with their names in the run.

    The identity decides; in a run without it, the address, then the nodename.

    Raises:
        IdentityError: Several exporters have the address.
    """
    chosen: list[Exporter] = []
    notices = []
    for record in wanted:
        others = [exporter for exporter in exporters if exporter not in chosen and exporter.sensors]
        matches = [exporter for exporter in others if _is(record, exporter)]
        matches = matches or [exporter for exporter in others if _may_be(record, exporter)]
        if len(matches) > 1:
            raise _conflict(record.name, matches)
        problem = ""
        if not matches and record.started_at_s is None and record.nodename:
            matches = [exporter for exporter in others if record.nodename in exporter.nodes]
            if len(matches) > 1:
                addresses = ", ".join(sorted(exporter.targets[0].address for exporter in matches))
                problem = f"several exporters have its nodename {record.nodename} ({addresses}), so none is used"
                matches = []
        if not matches and not problem:
            for other in others:
                if any(target.address == record.name for target in other.targets):
                    problem = f"another exporter has this address ({other.describe()}), so it is not used"
        if problem:
            text = f"{record.name}: {problem}"
            notices.append(Notice(severity="warning", reason="identity_conflict", text=text, exporter=record.name))
        for exporter in matches:
            exporter.name, exporter.node = record.name, record.nodename
            chosen.append(exporter)
    return chosen, notices


def _is(record: ExporterRecord, exporter: Exporter) -> bool:
    """Return whether an exporter has the identity of an exporter of a run."""
    if record.started_at_s is None:
        return False
    start_ms = round(record.started_at_s * 1000)
    return any(start_ms == start and record.nodename in ("", node) for node, start in exporter.identity)


def _may_be(record: ExporterRecord, exporter: Exporter) -> bool:
    """Return whether an exporter has the address of one of a run, and an identity is not known on both sides."""
    if all(target.address != record.name for target in exporter.targets):
        return False
    if record.nodename and exporter.nodes and record.nodename not in exporter.nodes:
        return False
    return record.started_at_s is None or not exporter.starts_s


def _notices(exporter: Exporter) -> Iterator[Notice]:
    """Yield what a reader of the result must know about one exporter.

    Raises:
        IdentityError: Several exporters answer at one target.
    """
    name = exporter.name
    for target in exporter.targets:
        # Every restart has a new start time; a start time that returns belongs to another exporter.
        if len(target.starts_s) > len(set(target.starts_s)):
            raise IdentityError(
                f"{target.address}: several exporters answer at this address: the start time alternates "
                f"({exporter.describe()}); scrape each at a separate address"
            )
    with_samples = [target for target in exporter.targets if target.sensors]
    if len(with_samples) > 1:
        labels = sorted({label for target in with_samples for label in target.labels})
        differing = [label for label in labels if len({target.labels.get(label) for target in with_samples}) > 1]
        shown = [
            " ".join(f"{label}={target.labels.get(label, '')}" for label in differing)
            for target in with_samples[:_MOST_SHOWN]
        ]
        if len(with_samples) > _MOST_SHOWN:
            shown.append("...")
        text = f"{name}: one exporter, stored under {len(with_samples)} targets ({'; '.join(shown)}); counted once"
        yield Notice(severity="info", reason="targets_merged", text=text, exporter=name)
    if len(exporter.nodes) > 1:
        nodes = " and ".join(sorted(exporter.nodes))
        use = f"only samples of {exporter.node} are used" if exporter.node else "no energy spans the change"
        text = f"{name}: its nodename changed ({nodes}): another machine has the address, or a container is new; {use}"
        yield Notice(severity="warning", reason="identity_conflict", text=text, exporter=name)


def _of_node(raw: RawSeries, target: Target, node: str) -> RawSeries:
    """Return the samples that were stored while the target had a nodename."""
    if not node or len(target.nodes) < 2 or node not in target.nodes or raw.name not in _SAMPLES:
        return raw
    first_s, last_s = target.nodes[node]
    kept = (raw.times_s >= first_s) & (raw.times_s <= last_s)
    return dataclasses.replace(raw, times_s=raw.times_s[kept], values=raw.values[kept])


def contradiction(exporter: Exporter) -> IdentityError:
    """Return the error for targets of one exporter whose counters contradict each other, as of a cloned machine."""
    each = [Exporter(targets=[target]) for target in exporter.targets if target.sensors]
    label = _distinguishing(each)
    return IdentityError(
        f"{exporter.name}: {len(each)} targets seem to be one exporter ({exporter.describe()}), but their counters "
        f"contradict each other; {_select(label, each) if label else 'scrape only one'}"
    )
