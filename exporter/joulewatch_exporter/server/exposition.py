"""Renders scans and self-metrics as Prometheus text or OpenMetrics.

Why not prometheus_client for everything: it sorts, escapes and formats the labels of every sample in every scrape
(63 ms per 10,000 series), while on a node only three values per sensor change between scrapes. So the whole text is
kept as a template with slots for those values (`template`), and only the lines of a family in which anything else has
changed are built again. prometheus_client only chooses the format. A test renders the same scans with prometheus_client
and compares the results.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, get_args

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
from joulewatch_exporter.server import process_metrics
from joulewatch_exporter.server.process_metrics import ProcessValues
from joulewatch_exporter.server.template import Piece, Section, Template, samples
from joulewatch_exporter.text import MAX_LABEL, MAX_SOURCE, label_text

logger = logging.getLogger(__name__)

Format = Literal["text", "openmetrics"]
CONTENT_TYPES: Final[dict[Format, str]] = {"text": CONTENT_TYPE_PLAIN_0_0_4, "openmetrics": CONTENT_TYPE_OPENMETRICS}

_EOF: Final = "# EOF\n"


@lru_cache(16)
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


def _head(metric: Metric, format_: Format) -> str:
    text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    name = metric.name
    if format_ == "openmetrics":
        text = text.replace('"', r"\"")
        name = name.removesuffix("_total") if metric.kind == "counter" else name
    return f"# HELP {name} {text}\n# TYPE {name} {metric.kind}\n"


_SPECIAL: Final = (catalog.WORKLOAD_RATIO, catalog.EXPORTER_INFO, catalog.EXPORTER_START, catalog.EXPORTER_REFUSED)
_METRICS: Final = (
    *(metric for metric in catalog.METRICS if metric.publisher == "exporter" and metric not in _SPECIAL),
    *_SPECIAL,
    *process_metrics.METRICS,
    process_metrics.PYTHON_INFO,
)
"""All metrics, in the order of the text."""
_HEADS: Final[dict[Format, dict[str, str]]] = {
    format_: {metric.name: _head(metric, format_) for metric in _METRICS} for format_ in get_args(Format)
}

_Values = Sequence[float | None]
_QuantityLabels = tuple[str, str, str, str]


def _quantity_labels(collector: str, info: SensorInfo) -> _QuantityLabels:
    quantity = info.quantity
    return (collector, quantity.component, quantity.device, quantity.domain)


def _line(metric: Metric, labels: Iterable[str], value: float) -> str:
    return f"{series(metric, labels)}{float(value)!r}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prefixes:
    """The text before the values of one family's layout."""

    layout: Layout
    energy: Mapping[str, Mapping[int, str]]
    """Name of the metric of each scope that the family has -> index in ``layout.infos`` -> prefix."""
    power: Mapping[str, Mapping[int, str]]
    read_at: tuple[str, ...]
    duration: str
    up: tuple[str, ...]
    state: tuple[str, ...]
    """Up to the value of the label ``state``."""
    known: list[tuple[object, Mapping[str, str]] | None]
    """For each of ``layout.infos``: the lines about the quantity that were shown last, by metric, and what they depend
    on."""


class Exposition:
    """Renders scrapes; called by many threads at once, so what it keeps is replaced as a whole."""

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
        self._sections: dict[str, Section] = {}
        self._templates: dict[Format, tuple[list[Section], Template]] = {}
        """The last template of each format, and the sections that it was made of."""
        self._emulated = emulated
        self._nodename = os.uname().nodename if nodename is None else nodename
        labels = (__version__, platform.python_version(), self._nodename, "1" if emulated else "0")
        ratios = [_line(catalog.WORKLOAD_RATIO, (one.component,), one.ratio) for one in calibrations.ratios]
        self._fixed = Section(
            None,
            {
                catalog.WORKLOAD_RATIO.name: ratios,
                catalog.EXPORTER_INFO.name: [_line(catalog.EXPORTER_INFO, labels, 1)],
                catalog.EXPORTER_START.name: [_line(catalog.EXPORTER_START, (), start_s)],
            },
        )
        self._process = ProcessValues() if self_metrics else None

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
        parts: list[tuple[Section, _Values]] = [self._of_family(scan, primary) for scan in scans]
        parts.append(self._of_verdicts(verdicts, {scan.collector for scan in scans}))
        if shares is not None:
            parts.append(self._of_shares(shares))
        parts.append(self._of_refusals())
        parts.append((self._fixed, ()))
        if self._process is not None:
            # Last, so that the process metrics include nearly all of the cost of this scrape.
            parts.append((_PROCESS, self._process.read()))
        sections = [section for section, _ in parts]
        known, template = self._templates.get(format_, (None, None))
        if template is None or known != sections:
            template = _template(parts, format_)
            self._templates[format_] = (sections, template)
        return template.fill([value for _, values in parts for value in values])

    def _section(self, name: str, key: object, lines: Callable[[], Mapping[str, Sequence[Piece]]]) -> Section:
        """Return the last section of this name, or a new one if its key has changed."""
        section = self._sections.get(name)
        if section is None or section.key != key:
            section = self._sections[name] = Section(key, lines())
        return section

    def _of_verdicts(self, verdicts: Sequence[Verdict], shown: set[str]) -> tuple[Section, _Values]:
        def lines() -> Mapping[str, Sequence[Piece]]:
            ratios, implausible = catalog.PLAUSIBILITY_RATIO, catalog.SENSOR_IMPLAUSIBLE
            of_shown = [(_verdict_labels(one), one) for one in verdicts if one.collector in shown]
            return {
                ratios.name: [_line(ratios, labels, one.ratio) for labels, one in of_shown if one.ratio is not None],
                implausible.name: [_line(implausible, labels, one.is_implausible) for labels, one in of_shown],
            }

        return self._section("verdicts", (verdicts, shown), lines), ()

    def _of_refusals(self) -> tuple[Section, _Values]:
        refused = self._refused()

        def lines() -> Mapping[str, Sequence[Piece]]:
            metric = catalog.EXPORTER_REFUSED
            return {metric.name: samples([series(metric, (limit,)) for limit in refused], range(len(refused)))}

        return self._section("refusals", tuple(refused), lines), [float(count) for count in refused.values()]

    def _of_shares(self, shares: Shares) -> tuple[Section, _Values]:
        layout = shares.layout
        return self._section("shares", layout, lambda: _share_lines(layout)), (
            *shares.energy_joules,
            *shares.unattributed_joules,
            *shares.cpu_seconds,
            *shares.gpu_seconds,
            *shares.reserved,
            float(shares.shown),
            float(shares.rest),
            float(shares.gone),
        )

    # -- the lines of one family -------------------------------------------------------------------

    def _of_family(self, scan: FamilyScan, primary: frozenset[Key]) -> tuple[Section, _Values]:
        values: list[float | None] = [*scan.energies_joules, *scan.powers_watts, *scan.read_at_s, scan.duration_s]
        values += [float(count) for _, _, count in scan.errors]
        values += [seconds for _, _, seconds in scan.throttled]
        key = (
            scan.layout,
            scan.healths,
            scan.reads,
            primary,
            scan.states,
            [value is None for value in values],
            [error[:2] for error in scan.errors],
            [throttled[:2] for throttled in scan.throttled],
        )
        return self._section(f"family {scan.collector}", key, lambda: self._family_lines(scan, primary, values)), values

    def _family_lines(
        self, scan: FamilyScan, primary: frozenset[Key], values: _Values
    ) -> Mapping[str, Sequence[Piece]]:
        """Return the lines of a family; ``values`` are energies, powers, times of the reads, and so on, as above."""
        collector = scan.collector
        prefixes = self._prefixes.get(collector)
        if prefixes is None or prefixes.layout is not scan.layout:
            prefixes = self._prefixes[collector] = _prefixes(collector, scan.layout)
        lines: dict[str, list[Piece]] = {}
        for index, (info, health, reads) in enumerate(zip(scan.layout.infos, scan.healths, scan.reads, strict=True)):
            if health is None:
                continue
            key = (health, reads, (collector, info.quantity) in primary)
            known = prefixes.known[index]
            if known is None or known[0] != key:
                known = prefixes.known[index] = (key, self._quantity_lines(collector, info, *key))
            for name, text in known[1].items():
                lines.setdefault(name, []).append(text)
        lines |= _state_lines(prefixes, scan.states)
        first = 0

        def add(name: str, by_index: Mapping[int, str]) -> None:
            shown = [index for index in by_index if values[first + index] is not None]
            lines[name] = samples([by_index[index] for index in shown], [first + index for index in shown])

        for by_scope in (prefixes.energy, prefixes.power):
            for name, by_index in by_scope.items():
                add(name, by_index)
            first += len(scan.layout.infos)
        errors = [series(catalog.READ_ERRORS, (collector, device, reason)) for device, reason, _ in scan.errors]
        throttled = [series(catalog.DEVICE_THROTTLED, (device, reason)) for device, reason, _ in scan.throttled]
        for metric, others in (
            (catalog.READ_TIMESTAMP, prefixes.read_at),
            (catalog.READ_DURATION, (prefixes.duration,)),
            (catalog.READ_ERRORS, errors),
            (catalog.DEVICE_THROTTLED, throttled),
        ):
            add(metric.name, dict(enumerate(others)))
            first += len(others)
        return lines

    def _quantity_lines(
        self, collector: str, info: SensorInfo, health: Health, reads: Reads, is_primary: bool
    ) -> Mapping[str, str]:
        """Return the lines about one quantity that rarely change, by metric name."""
        labels = _quantity_labels(collector, info)
        is_counter = reads == "energy"  # a power sensor has no counter that could wrap or restart
        values = (
            (catalog.SENSOR_WINDOW, info.window_s),
            (catalog.DEVICE_LIMIT, info.limit_watts if info.quantity.scope == "device" else None),
            (catalog.SENSOR_REFRESH, health.refresh_s),
            (catalog.SENSOR_WRAPS, health.wraps if is_counter else None),
            (catalog.SENSOR_RESETS, health.resets if is_counter else None),
            (catalog.SENSOR_REJECTED, health.rejected),
            (catalog.SENSOR_UNMEASURED, health.unmeasured_s),
        )
        return {
            catalog.SENSOR_INFO.name: _line(
                catalog.SENSOR_INFO, self._info_labels(info, reads, labels, is_primary=is_primary), 1
            ),
            **{metric.name: _line(metric, labels, value) for metric, value in values if value is not None},
            **(self._calibration_lines(info, labels) if self._calibrations.entries else {}),
        }

    def _calibration_lines(self, info: SensorInfo, labels: _QuantityLabels) -> Mapping[str, str]:
        calibration = self._calibrations.of(labels[0], info)
        if calibration is None:
            self._log_exchanged(labels[0], info)
            return {}
        accuracy = calibration.reference.accuracy
        texts = (calibration.reference.name, "" if accuracy is None else repr(accuracy), calibration.date)
        return {
            catalog.SENSOR_CALIBRATION.name: "".join(
                [_line(catalog.SENSOR_CALIBRATION, (*labels, name), value) for name, value in calibration.parameters]
            ),
            catalog.SENSOR_CALIBRATION_INFO.name: _line(catalog.SENSOR_CALIBRATION_INFO, (*labels, *texts), 1),
        }

    def _log_exchanged(self, collector: str, info: SensorInfo) -> None:
        other, key = self._calibrations.of_another_model(collector, info), (collector, info.quantity)
        if other is not None and key not in self._exchanged:
            self._exchanged.add(key)
            logger.warning("%s", other.exchanged_text(collector, info))

    def _info_labels(
        self, info: SensorInfo, reads: Reads, labels: _QuantityLabels, *, is_primary: bool
    ) -> tuple[str, ...]:
        return (
            info.quantity.scope,
            *labels,
            "emulated" if self._emulated else info.method,
            reads,
            info.read_mode or "",
            str(int(is_primary)) if info.quantity.scope == "node" else "",
            info.host(self._nodename),
            info.model,
            info.source,
            info.resolution,
            "" if info.accuracy is None else repr(info.accuracy),
            "" if info.accuracy is None else info.accuracy_source,
        )


def _template(parts: Iterable[tuple[Section, _Values]], format_: Format) -> Template:
    """Join the lines of all sections, metric by metric."""
    placed: list[tuple[Section, int]] = []
    first = 0
    for section, values in parts:
        placed.append((section, first))
        first += len(values)
    pieces: list[Piece] = []
    for metric in _METRICS:
        shown = [(lines, first) for section, first in placed if (lines := section.lines.get(metric.name))]
        if shown:
            pieces.append(_HEADS[format_][metric.name])
        for lines, first in shown:
            pieces += [first + piece if isinstance(piece, int) else piece for piece in lines]
    if format_ == "openmetrics":
        pieces.append(_EOF)
    return Template(pieces)


def _prefixes(collector: str, layout: Layout) -> _Prefixes:
    def by_scope(metrics: Mapping[str, Metric]) -> Mapping[str, Mapping[int, str]]:
        found: dict[str, dict[int, str]] = {}
        for index, info in enumerate(layout.infos):
            metric = metrics[info.quantity.scope]
            found.setdefault(metric.name, {})[index] = series(metric, _quantity_labels(collector, info))
        return found

    return _Prefixes(
        layout=layout,
        energy=by_scope(catalog.ENERGY_BY_SCOPE),
        power=by_scope(catalog.POWER_BY_SCOPE),
        read_at=tuple(series(catalog.READ_TIMESTAMP, (collector, device)) for device in layout.devices),
        duration=series(catalog.READ_DURATION, (collector,)),
        up=tuple(series(catalog.SENSOR_UP, (collector, device)) for device in layout.devices),
        state=tuple(
            series(catalog.SENSOR_STATE, (collector, device, "")).removesuffix('"} ') for device in layout.devices
        ),
        known=[None] * len(layout.infos),
    )


def _state_lines(prefixes: _Prefixes, states: Sequence[str]) -> dict[str, list[Piece]]:
    return {
        catalog.SENSOR_UP.name: [
            f"{prefix}{float(state == OK)!r}\n" for prefix, state in zip(prefixes.up, states, strict=True)
        ],
        catalog.SENSOR_STATE.name: [
            f'{prefix}{state}"}} 1.0\n' for prefix, state in zip(prefixes.state, states, strict=True)
        ],
    }


def _share_lines(layout: SharesLayout) -> dict[str, Sequence[Piece]]:
    """Return the lines of the shares; the slots are in the order of ``_of_shares``."""

    def names(workload: Workload) -> tuple[str, str]:
        return workload.kind, workload.workload

    labels_of_infos = [[getattr(one, name) for name in catalog.WORKLOAD_INFO.labels] for one in layout.workloads]
    fixed: tuple[tuple[Metric, Sequence[Sequence[str]]], ...] = (
        (catalog.WORKLOAD_INFO, labels_of_infos),
        (catalog.GPU_HELD, [(device, *names(one)) for device, one in layout.held]),
        (catalog.ATTRIBUTION_INFO, layout.how),
    )
    counted: tuple[tuple[Metric, Sequence[Sequence[str]]], ...] = (
        (catalog.WORKLOAD_ENERGY, [(component, device, *names(one)) for component, device, one in layout.energy]),
        (catalog.UNATTRIBUTED_ENERGY, layout.unattributed),
        (catalog.WORKLOAD_CPU, [names(one) for one in layout.cpu]),
        (catalog.WORKLOAD_GPU, [(device, *names(one)) for device, one in layout.gpu]),
        (catalog.WORKLOAD_RESERVED, [names(one) for one in layout.reserved]),
        (catalog.WORKLOADS, [("shown",), ("rest",), ("gone",)]),
    )
    lines: dict[str, Sequence[Piece]] = {
        metric.name: [_line(metric, labels, 1) for labels in rows] for metric, rows in fixed
    }
    first = 0
    for metric, rows in counted:
        lines[metric.name] = samples([series(metric, labels) for labels in rows], range(first, first + len(rows)))
        first += len(rows)
    return lines


def _verdict_labels(verdict: Verdict) -> tuple[str, ...]:
    return verdict.check, verdict.collector, verdict.device, verdict.domain


_PROCESS: Final = Section(
    None,
    {
        process_metrics.PYTHON_INFO.name: [_line(process_metrics.PYTHON_INFO, process_metrics.PYTHON_LABELS, 1)],
        **{metric.name: samples([series(metric, ())], [slot]) for slot, metric in enumerate(process_metrics.METRICS)},
    },
)
