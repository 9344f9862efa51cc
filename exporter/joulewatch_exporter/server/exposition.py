"""Renders scans and self-metrics as Prometheus text or OpenMetrics.

Why not prometheus_client for everything: it sorts, escapes and formats the labels of every sample in every scrape
(63 ms per 10,000 series), while on a node only three values per sensor change between scrapes. So the samples of
sensors are rendered here: the text before a value is escaped once and cached until sensors come or go, and blocks in
which nothing has changed are cached as they are. prometheus_client only chooses the format. A test renders the same
scans with prometheus_client and compares the results.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, get_args

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS

from joulewatch_exporter import __version__, catalog
from joulewatch_exporter.attribution.model import Workload
from joulewatch_exporter.attribution.shares import Shares, SharesLayout
from joulewatch_exporter.catalog import Metric
from joulewatch_exporter.config.calibration import NO_CALIBRATIONS, Calibrations
from joulewatch_exporter.model import SensorInfo
from joulewatch_exporter.sampling.plausibility import Verdict
from joulewatch_exporter.sampling.primary import Key
from joulewatch_exporter.sampling.scan import OK, FamilyScan, Health, Layout, Reads
from joulewatch_exporter.server.process_metrics import Format, ProcessMetrics
from joulewatch_exporter.text import MAX_LABEL, MAX_SOURCE, label_text

logger = logging.getLogger(__name__)

CONTENT_TYPES: Final[dict[Format, str]] = {"text": CONTENT_TYPE_PLAIN_0_0_4, "openmetrics": CONTENT_TYPE_OPENMETRICS}

_EOF: Final = b"# EOF\n"


def choose_format(accept: str | None) -> Format:
    """Return the format that an ``Accept`` header requests; text by default."""
    try:
        _, content_type = choose_encoder(accept or "")
    except (TypeError, ValueError):  # prometheus_client cannot parse some versions, such as version=x
        return "text"
    return "openmetrics" if content_type.startswith("application/openmetrics-text") else "text"


def escape_label(value: str) -> str:
    """Return the value of a label as it is written between quotes, in both formats."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def series(metric: Metric, values: Iterable[str]) -> str:
    """Return a sample's line up to its value: ``name{label="…"} ``, with labels in the order of the catalog."""
    labels = ",".join(
        [
            f'{name}="{escape_label(label_text(value, MAX_SOURCE if name == "source" else MAX_LABEL))}"'
            for name, value in zip(metric.labels, values, strict=True)
        ]
    )
    return f"{metric.name}{{{labels}}} " if labels else f"{metric.name} "


def _head(metric: Metric, format_: Format) -> bytes:
    text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    name = metric.name
    if format_ == "openmetrics":
        text = text.replace('"', r"\"")
        name = name.removesuffix("_total") if metric.kind == "counter" else name
    return f"# HELP {name} {text}\n# TYPE {name} {metric.kind}\n".encode()


_HEADS: Final[dict[Format, dict[str, bytes]]] = {
    format_: {metric.name: _head(metric, format_) for metric in catalog.METRICS} for format_ in get_args(Format)
}

_QuantityLabels = tuple[str, str, str, str]
_Row = tuple[SensorInfo, Health, Reads, _QuantityLabels]


def _quantity_labels(collector: str, info: SensorInfo) -> _QuantityLabels:
    quantity = info.quantity
    return (collector, quantity.component, quantity.device, quantity.domain)


@dataclass(frozen=True, slots=True)
class _Lines:
    """The lines of one metric up to their values, and the indices of their values in a scan."""

    prefixes: tuple[str, ...]
    indices: tuple[int, ...] | None
    """None: one line for each value, in order."""

    @classmethod
    def of(cls, prefixes: Iterable[str], indices: Sequence[int] = (), values: int = 0) -> _Lines:
        """Return lines for the values at ``indices``, out of ``values`` in all; by default for all values."""
        return cls(tuple(prefixes), tuple(indices) if len(indices) != values else None)

    def render(self, values: tuple[float | None, ...]) -> bytes:
        """Return the lines, without those whose value is missing."""
        if self.indices is not None:
            values = tuple([values[index] for index in self.indices])
        lines = zip(self.prefixes, values, strict=True)
        return "".join([f"{prefix}{value!r}\n" for prefix, value in lines if value is not None]).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prefixes:
    """The text before the values of one family's layout."""

    layout: Layout
    energy: tuple[tuple[Metric, _Lines], ...]
    """One for each scope that the family has."""
    power: tuple[tuple[Metric, _Lines], ...]
    read_at: _Lines
    duration: str
    up: tuple[str, ...]
    state: tuple[str, ...]
    """Up to the value of the label ``state``."""


@dataclass(frozen=True, slots=True)
class _SlowBlocks:
    """Rendered lines of one family, valid while the scans hold the same health objects and the choice is the same."""

    healths: tuple[Health | None, ...]
    layout: Layout
    primary: frozenset[Key]
    blocks: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _StateBlocks:
    """Rendered states of one family's devices, valid while they are the same."""

    states: tuple[str, ...]
    layout: Layout
    blocks: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _VerdictBlocks:
    verdicts: Sequence[Verdict]
    shown: frozenset[str]
    blocks: dict[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class _SharesPrefixes:
    """The text before the values of the shares, and the lines that change with the layout only."""

    layout: SharesLayout
    energy: _Lines
    unattributed: _Lines
    cpu: _Lines
    gpu: _Lines
    reserved: _Lines
    fixed: dict[str, bytes]


def _of_verdict(metric: Metric, verdict: Verdict) -> str:
    return series(metric, (verdict.check, verdict.collector, verdict.device, verdict.domain))


@lru_cache
def _of_limit(limit: str) -> str:
    return series(catalog.EXPORTER_REFUSED, (limit,))


class Exposition:
    """Renders scrapes; called by many threads at once, so its cached values are immutable."""

    def __init__(
        self,
        *,
        emulated: bool,
        start_s: float,
        nodename: str | None = None,
        self_metrics: bool = True,
        calibrations: Calibrations = NO_CALIBRATIONS,
        refused: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Render what never changes.

        Args:
            emulated: Whether the sensors are emulated.
            start_s: Unix time at which the energy counters started.
            nodename: Name of this machine; None: as the kernel reports it.
            self_metrics: Whether ``process_*`` and ``python_info`` are shown.
            calibrations: Published next to the values of their sensors and workloads, which they do not change.
            refused: Returns the number of refusals by the name of the limit.
        """
        self._calibrations = calibrations
        self._refused = refused
        self._exchanged: set[Key] = set()
        """Sensors for which a calibration of another model was logged."""
        self._prefixes: dict[str, _Prefixes] = {}
        self._slow: dict[str, _SlowBlocks] = {}
        self._states: dict[str, _StateBlocks] = {}
        self._verdicts = _VerdictBlocks((), frozenset(), {})
        self._shares: _SharesPrefixes | None = None
        self._emulated = emulated
        self._nodename = os.uname().nodename if nodename is None else nodename
        labels = (__version__, platform.python_version(), self._nodename, "1" if emulated else "0")
        ratios = "".join(
            [f"{series(catalog.WORKLOAD_RATIO, (one.component,))}{one.ratio!r}\n" for one in calibrations.ratios]
        )
        self._fixed = (
            *(((catalog.WORKLOAD_RATIO, ratios.encode()),) if ratios else ()),
            (catalog.EXPORTER_INFO, f"{series(catalog.EXPORTER_INFO, labels)}1.0\n".encode()),
            (catalog.EXPORTER_START, f"{series(catalog.EXPORTER_START, ())}{start_s!r}\n".encode()),
        )
        self._process = ProcessMetrics() if self_metrics else None

    def render(
        self,
        scans: Sequence[FamilyScan],
        format_: Format,
        verdicts: Sequence[Verdict] = (),
        primary: frozenset[Key] = frozenset(),
        shares: Shares | None = None,
    ) -> bytes:
        """Return the body of one scrape.

        Args:
            scans: One for each family, in the order of the families.
            format_: The format of the text.
            verdicts: Results of the plausibility checks; those of families that are not in ``scans`` are excluded.
            primary: The primary node sensors.
            shares: Whose energy it is; None: not shown.
        """
        families = [self._family_blocks(scan, primary) for scan in scans]
        families.append(self._verdict_blocks(verdicts, {scan.collector for scan in scans}))
        if shares is not None:
            families.append(self._share_blocks(shares))
        heads = _HEADS[format_]
        by_metric: dict[str, list[bytes]] = {}
        for blocks in families:
            for name, block in blocks.items():
                if block:
                    by_metric.setdefault(name, [heads[name]]).append(block)
        parts = [part for name in _SENSOR_METRICS if name in by_metric for part in by_metric[name]]
        for metric, line in self._fixed:
            parts += (heads[metric.name], line)
        if refused := self._refused():
            parts.append(heads[catalog.EXPORTER_REFUSED.name])
            parts += [f"{_of_limit(limit)}{float(count)!r}\n".encode() for limit, count in refused.items()]
        if self._process is not None:
            # Last, so that the process metrics include the cost of this scrape.
            parts.append(self._process.render(format_))
        if format_ == "openmetrics":
            parts.append(_EOF)
        return b"".join(parts)

    def _verdict_blocks(self, verdicts: Sequence[Verdict], shown: Collection[str]) -> dict[str, bytes]:
        kept = self._verdicts
        if kept.verdicts is not verdicts or kept.shown != shown:
            kept = self._verdicts = _VerdictBlocks(
                verdicts,
                frozenset(shown),
                {
                    catalog.PLAUSIBILITY_RATIO.name: "".join(
                        [
                            f"{_of_verdict(catalog.PLAUSIBILITY_RATIO, verdict)}{verdict.ratio!r}\n"
                            for verdict in verdicts
                            if verdict.ratio is not None and verdict.collector in shown
                        ]
                    ).encode(),
                    catalog.SENSOR_IMPLAUSIBLE.name: "".join(
                        [
                            f"{_of_verdict(catalog.SENSOR_IMPLAUSIBLE, verdict)}{float(verdict.is_implausible)!r}\n"
                            for verdict in verdicts
                            if verdict.collector in shown
                        ]
                    ).encode(),
                },
            )
        return kept.blocks

    def _share_blocks(self, shares: Shares) -> dict[str, bytes]:
        prefixes = self._shares
        if prefixes is None or prefixes.layout is not shares.layout:
            prefixes = self._shares = _shares_prefixes(shares.layout)
        counts = zip(_WORKLOAD_STATES, (shares.shown, shares.rest, shares.gone), strict=True)
        return {
            **prefixes.fixed,
            catalog.WORKLOAD_ENERGY.name: prefixes.energy.render(shares.energy_joules),
            catalog.UNATTRIBUTED_ENERGY.name: prefixes.unattributed.render(shares.unattributed_joules),
            catalog.WORKLOAD_CPU.name: prefixes.cpu.render(shares.cpu_seconds),
            catalog.WORKLOAD_GPU.name: prefixes.gpu.render(shares.gpu_seconds),
            catalog.WORKLOAD_RESERVED.name: prefixes.reserved.render(shares.reserved),
            catalog.WORKLOADS.name: "".join([f"{prefix}{float(count)!r}\n" for prefix, count in counts]).encode(),
        }

    # -- the blocks of one family ------------------------------------------------------------------

    def _family_blocks(self, scan: FamilyScan, primary: frozenset[Key]) -> dict[str, bytes]:
        """Return the lines of the family by metric name."""
        prefixes = self._prefixes.get(scan.collector)
        if prefixes is None or prefixes.layout is not scan.layout:
            prefixes = self._prefixes[scan.collector] = _prefixes(scan.collector, scan.layout)
        slow = self._slow.get(scan.collector)
        if (
            slow is None
            or slow.healths is not scan.healths
            or slow.layout is not scan.layout
            or slow.primary is not primary
        ):
            slow = _SlowBlocks(scan.healths, scan.layout, primary, self._slow_blocks(scan, primary))
            self._slow[scan.collector] = slow
        shown = self._states.get(scan.collector)
        if shown is None or shown.states != scan.states or shown.layout is not scan.layout:
            shown = self._states[scan.collector] = _StateBlocks(
                scan.states, scan.layout, _state_blocks(prefixes, scan.states)
            )
        blocks = {**slow.blocks, **shown.blocks}
        blocks[catalog.READ_TIMESTAMP.name] = prefixes.read_at.render(scan.read_at_s)
        for metric, lines_of_scope in prefixes.energy:
            blocks[metric.name] = lines_of_scope.render(scan.energies_joules)
        for metric, lines_of_scope in prefixes.power:
            blocks[metric.name] = lines_of_scope.render(scan.powers_watts)
        if scan.errors:
            blocks[catalog.READ_ERRORS.name] = "".join(
                [
                    f"{series(catalog.READ_ERRORS, (scan.collector, device, reason))}{float(count)!r}\n"
                    for device, reason, count in scan.errors
                ]
            ).encode()
        if scan.throttled:
            blocks[catalog.DEVICE_THROTTLED.name] = "".join(
                [
                    f"{series(catalog.DEVICE_THROTTLED, (device, reason))}{seconds!r}\n"
                    for device, reason, seconds in scan.throttled
                ]
            ).encode()
        if scan.duration_s is not None:
            blocks[catalog.READ_DURATION.name] = f"{prefixes.duration}{scan.duration_s!r}\n".encode()
        return blocks

    def _slow_blocks(self, scan: FamilyScan, primary: frozenset[Key]) -> dict[str, bytes]:
        """Return the lines that depend on metadata and health only, by metric name."""
        rows = [
            (info, health, reads, _quantity_labels(scan.collector, info))
            for info, health, reads in zip(scan.layout.infos, scan.healths, scan.reads, strict=True)
            if health is not None
        ]
        lines = [
            f"{series(catalog.SENSOR_INFO, self._info_labels(info, reads, labels, primary))}1.0\n"
            for info, _, reads, labels in rows
        ]
        calibrations = self._calibration_blocks(rows) if self._calibrations.entries else {}
        return {catalog.SENSOR_INFO.name: "".join(lines).encode(), **_health_blocks(rows), **calibrations}

    def _calibration_blocks(self, rows: Sequence[_Row]) -> dict[str, bytes]:
        parameters: list[str] = []
        infos: list[str] = []
        for info, _, _, labels in rows:
            calibration = self._calibrations.of(labels[0], info)
            if calibration is None:
                self._log_exchanged(labels[0], info)
                continue
            parameters += [
                f"{series(catalog.SENSOR_CALIBRATION, (*labels, name))}{value!r}\n"
                for name, value in calibration.parameters
            ]
            accuracy = calibration.reference.accuracy
            texts = (calibration.reference.name, "" if accuracy is None else repr(accuracy), calibration.date)
            infos.append(f"{series(catalog.SENSOR_CALIBRATION_INFO, (*labels, *texts))}1.0\n")
        return {
            catalog.SENSOR_CALIBRATION.name: "".join(parameters).encode(),
            catalog.SENSOR_CALIBRATION_INFO.name: "".join(infos).encode(),
        }

    def _log_exchanged(self, collector: str, info: SensorInfo) -> None:
        other, key = self._calibrations.of_another_model(collector, info), (collector, info.quantity)
        if other is not None and key not in self._exchanged:
            self._exchanged.add(key)
            logger.warning("%s", other.exchanged_text(collector, info))

    def _info_labels(
        self, info: SensorInfo, reads: Reads, labels: _QuantityLabels, primary: frozenset[Key]
    ) -> tuple[str, ...]:
        is_primary = ""
        if info.quantity.scope == "node":
            is_primary = "1" if (labels[0], info.quantity) in primary else "0"
        return (
            info.quantity.scope,
            *labels,
            "emulated" if self._emulated else info.method,
            reads,
            info.read_mode or "",
            is_primary,
            info.host(self._nodename),
            info.model,
            info.source,
            info.resolution,
            "" if info.accuracy is None else repr(info.accuracy),
            "" if info.accuracy is None else info.accuracy_source,
        )


def _prefixes(collector: str, layout: Layout) -> _Prefixes:
    infos = layout.infos

    def by_scope(metrics: Mapping[str, Metric]) -> tuple[tuple[Metric, _Lines], ...]:
        blocks: list[tuple[Metric, _Lines]] = []
        for scope, metric in metrics.items():
            indices = [index for index, info in enumerate(infos) if info.quantity.scope == scope]
            if indices:
                names = (series(metric, _quantity_labels(collector, infos[index])) for index in indices)
                blocks.append((metric, _Lines.of(names, indices, len(infos))))
        return tuple(blocks)

    return _Prefixes(
        layout=layout,
        energy=by_scope(catalog.ENERGY_BY_SCOPE),
        power=by_scope(catalog.POWER_BY_SCOPE),
        read_at=_Lines.of(series(catalog.READ_TIMESTAMP, (collector, device)) for device in layout.devices),
        duration=series(catalog.READ_DURATION, (collector,)),
        up=tuple(series(catalog.SENSOR_UP, (collector, device)) for device in layout.devices),
        state=tuple(
            series(catalog.SENSOR_STATE, (collector, device, "")).removesuffix('"} ') for device in layout.devices
        ),
    )


_WORKLOAD_STATES: Final = tuple(series(catalog.WORKLOADS, (state,)) for state in ("shown", "rest", "gone"))


def _shares_prefixes(layout: SharesLayout) -> _SharesPrefixes:
    def names(workload: Workload) -> tuple[str, str]:
        return workload.kind, workload.workload

    infos = [
        series(catalog.WORKLOAD_INFO, [getattr(workload, label) for label in catalog.WORKLOAD_INFO.labels])
        for workload in layout.workloads
    ]
    held = [series(catalog.GPU_HELD, (device, *names(workload))) for device, workload in layout.held]
    how = [series(catalog.ATTRIBUTION_INFO, labels) for labels in layout.how]
    return _SharesPrefixes(
        layout=layout,
        energy=_Lines.of(
            series(catalog.WORKLOAD_ENERGY, (component, device, *names(workload)))
            for component, device, workload in layout.energy
        ),
        unattributed=_Lines.of(series(catalog.UNATTRIBUTED_ENERGY, labels) for labels in layout.unattributed),
        cpu=_Lines.of(series(catalog.WORKLOAD_CPU, names(workload)) for workload in layout.cpu),
        gpu=_Lines.of(series(catalog.WORKLOAD_GPU, (device, *names(workload))) for device, workload in layout.gpu),
        reserved=_Lines.of(series(catalog.WORKLOAD_RESERVED, names(workload)) for workload in layout.reserved),
        fixed={
            metric.name: "".join([f"{prefix}1.0\n" for prefix in prefixes]).encode()
            for metric, prefixes in (
                (catalog.WORKLOAD_INFO, infos),
                (catalog.GPU_HELD, held),
                (catalog.ATTRIBUTION_INFO, how),
            )
        },
    )


def _state_blocks(prefixes: _Prefixes, states: Sequence[str]) -> dict[str, bytes]:
    ups = [f"{prefix}{float(state == OK)!r}\n" for prefix, state in zip(prefixes.up, states, strict=True)]
    lines = [f'{prefix}{state}"}} 1.0\n' for prefix, state in zip(prefixes.state, states, strict=True)]
    return {catalog.SENSOR_UP.name: "".join(ups).encode(), catalog.SENSOR_STATE.name: "".join(lines).encode()}


_HEALTH_METRICS: Final[tuple[tuple[Metric, Callable[[Health], float | None]], ...]] = (
    (catalog.SENSOR_REFRESH, lambda health: health.refresh_s),
    (catalog.SENSOR_WRAPS, lambda health: health.wraps),
    (catalog.SENSOR_RESETS, lambda health: health.resets),
    (catalog.SENSOR_REJECTED, lambda health: health.rejected),
    (catalog.SENSOR_UNMEASURED, lambda health: health.unmeasured_s),
)


def _window_s(info: SensorInfo) -> float | None:
    return info.window_s


def _limit_watts(info: SensorInfo) -> float | None:
    return info.limit_watts if info.quantity.scope == "device" else None


_OF_COUNTERS: Final = (catalog.SENSOR_WRAPS, catalog.SENSOR_RESETS)
"""Shown for energy sensors only: a power sensor has no counter that could wrap or restart."""


def _health_blocks(rows: Sequence[_Row]) -> dict[str, bytes]:
    blocks: dict[str, bytes] = {}
    for metric, get in ((catalog.SENSOR_WINDOW, _window_s), (catalog.DEVICE_LIMIT, _limit_watts)):
        lines = [
            f"{series(metric, labels)}{float(value)!r}\n"
            for info, _, _, labels in rows
            if (value := get(info)) is not None
        ]
        blocks[metric.name] = "".join(lines).encode()
    for metric, value_of in _HEALTH_METRICS:
        lines = [
            f"{series(metric, labels)}{float(value)!r}\n"
            for _, health, reading, labels in rows
            if (value := value_of(health)) is not None and (reading == "energy" or metric not in _OF_COUNTERS)
        ]
        blocks[metric.name] = "".join(lines).encode()
    return blocks


_SENSOR_METRICS: Final = tuple(
    metric.name
    for metric in catalog.METRICS
    if metric.publisher == "exporter"
    and metric not in (catalog.WORKLOAD_RATIO, catalog.EXPORTER_INFO, catalog.EXPORTER_START, catalog.EXPORTER_REFUSED)
)
