"""Rebuild the record of a run from its annotations in Prometheus (pure).

By remote write a window is one sample in a series per run: the sample's time is the window's end to the millisecond;
start and duration are values, so the exact end is start + duration. A Pushgateway accepts no times: each window has its
own series, identified by the label ``window``, and its end is a value.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, Final, NamedTuple, Self, cast, get_args

import numpy as np

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.errors import QueryError
from joulewatch_harness.plan.network_names import name_networks
from joulewatch_harness.plan.scenario import OFFLINE, scenario_in_name
from joulewatch_harness.plan.target import MAX_UNCERTAINTY
from joulewatch_harness.records import (
    METER,
    Configuration,
    Edge,
    EdgeClock,
    EdgeCounter,
    ExporterRecord,
    Latency,
    PhaseTime,
    ProcessorTime,
    RunEnd,
    RunHeader,
    RunRecord,
    RunStatus,
    Window,
    WindowKind,
    condition_key,
)

RUN_NAMES: Final = (catalog.RUN_INFO.name, catalog.RUN_STATUS.name)
WINDOW_NAMES: Final = tuple(
    metric.name
    for metric in catalog.METRICS
    if metric.name.startswith("joulewatch_window_") and metric is not catalog.WINDOW_ACTIVE
)
_WINDOW_LABEL: Final = "window"
_KINDS: Final = get_args(WindowKind)
_STATUSES: Final = get_args(RunStatus)

_PROVENANCE: Final = {
    "hardware": ("hardware",),
    "nodename": ("host",),
    "kernel": ("kernel",),
    "governor": ("cpu", "governor"),
    "version": ("versions", "joulewatch"),
}
"""Label of the run's info -> path in the provenance of a journal; the hardware stays one text."""

_PLAN: Final = {"max_relative_uncertainty": MAX_UNCERTAINTY, "settle_seconds": "settle_s"}
"""Label of the run's info -> key of the plan in a journal."""

_Key = tuple[str, str, str, str]
"""configuration, kind, phase, window."""


def run_start_s(run: str) -> float | None:
    """Return the start of a run in Unix seconds, from its id; None for an id with another format."""
    match = re.match(r"(\d{8}T\d{6})Z", run)
    if match is None:
        return None
    try:
        return datetime.datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        return None


@dataclass(slots=True)
class _Samples:
    """Values of one metric: key -> other labels -> these labels, and milliseconds -> value."""

    by_key: dict[_Key, dict[tuple[tuple[str, str], ...], tuple[Mapping[str, str], dict[int, float]]]] = field(
        default_factory=dict
    )

    def add(self, key: _Key, rest: tuple[tuple[str, str], ...], series: RawSeries) -> None:
        _, into = self.by_key.setdefault(key, {}).setdefault(rest, (dict(rest), {}))
        into.update(zip(_milliseconds(series), series.values.tolist(), strict=True))

    def at(self, key: _Key, at_ms: int | None) -> list[tuple[Mapping[str, str], float]]:
        """Return the value of every series for one window; ``at_ms`` None: the last one of the window's own series."""
        value_at = _value_at(at_ms)
        return [
            (labels, value)
            for labels, values in self.by_key.get(key, {}).values()
            if (value := value_at(values)) is not None
        ]

    def first(self, key: _Key, at_ms: int | None) -> float | None:
        """Return the value of the first series for one window."""
        pairs = self.at(key, at_ms)
        return pairs[0][1] if pairs else None


def _milliseconds(series: RawSeries) -> list[int]:
    milliseconds: list[int] = np.rint(series.times_s * 1000).astype(np.int64).tolist()
    return milliseconds


def _value_at(at_ms: int | None) -> Callable[[Mapping[int, float]], float | None]:
    """Return what reads the value of one window from a series; ``at_ms`` is that of `_Samples.at`."""
    return _last if at_ms is None else methodcaller("get", at_ms)


def _last(values: Mapping[int, float]) -> float | None:
    return values[max(values)] if values else None


_OTHER_LABELS: Final = {
    metric.name: tuple(name for name in metric.labels if name not in (*catalog.WINDOW_LABELS, _WINDOW_LABEL))
    for metric in catalog.METRICS
    if metric.name in WINDOW_NAMES
}
"""Metric -> its labels that do not identify a window."""
_DEVICE: Final = ("exporter", "collector", "device")


def rebuild_run(run: str, samples: Iterable[RawSeries], where: str) -> RunRecord:
    """Build the record of ``run`` from its annotations.

    Args:
        run: The id of the run.
        samples: All its series, of ``RUN_NAMES`` and ``WINDOW_NAMES``.
        where: The source, for messages.

    Raises:
        QueryError: The samples contain no window.
    """
    metrics: dict[str, _Samples] = {}
    infos: list[RawSeries] = []
    statuses: list[tuple[float, str, float]] = []
    for raw in samples:
        if raw.name == catalog.RUN_INFO.name:
            infos.append(raw)
        elif raw.name == catalog.RUN_STATUS.name:
            status = raw.labels.get("status", "")
            statuses += [(float(t), status, float(v)) for t, v in zip(raw.times_s, raw.values, strict=True)]
        else:
            labels = raw.labels
            key = tuple(labels.get(name, "") for name in ("configuration", "kind", "phase", _WINDOW_LABEL))
            # Without target labels: the copies that several Prometheus servers stored are one series.
            rest = tuple((name, labels[name]) for name in _OTHER_LABELS.get(raw.name, ()) if name in labels)
            metrics.setdefault(raw.name, _Samples()).add(cast(_Key, key), rest, raw)
    windows = _windows(run, metrics)
    if not windows and not infos:
        raise QueryError(f"{where}: no window of run {run} is stored")
    return RunRecord(
        header=_header(run, infos, statuses, windows),
        configurations=_configurations(infos),
        windows=tuple(windows),
        end=_end(statuses),
    )


class _Stored(NamedTuple):
    """Where the values of one window are stored."""

    start_s: float
    end_s: float
    key: _Key
    at_ms: int | None
    """Time of its samples; None: the window has its own series."""
    number: int = -1
    """Number of the window in the run; -1: not stored."""


def _windows(run: str, metrics: Mapping[str, _Samples]) -> list[Window]:
    stored = sorted(_stored_windows(metrics), key=lambda window: (window.end_s, -window.start_s))
    # A window that arrived through a Pushgateway and again by remote write is one window.
    unique = list({(window.key[:3], round(window.start_s * 1000)): window for window in stored}.values())
    numbered = all(window.number >= 0 for window in unique)
    edges = {
        key: {name: _EdgeSeries.of(name, key, metrics) for name in ("start", "end")}
        for key in {window.key for window in unique}
    }
    return [
        _window(run, window.number if numbered else place, window, metrics, edges[window.key])
        for place, window in enumerate(unique)
    ]


def _stored_windows(metrics: Mapping[str, _Samples]) -> Iterator[_Stored]:
    nothing = _Samples()
    starts = metrics.get(catalog.WINDOW_START.name, nothing)
    ends = metrics.get(catalog.WINDOW_END.name, nothing)
    durations = metrics.get(catalog.WINDOW_DURATION.name, nothing)
    for key, series in starts.by_key.items():
        if key[3]:
            start_s, end_s = starts.first(key, None), ends.first(key, None)
            if start_s is not None and end_s is not None:
                yield _Stored(start_s, end_s, key, None, int(key[3]) if key[3].isdigit() else -1)
            continue
        for _, values in series.values():
            for at_ms, start_s in values.items():
                duration_s = durations.first(key, at_ms)
                # The sample's time is the end to the millisecond; start and duration are exact.
                yield _Stored(start_s, at_ms / 1000 if duration_s is None else start_s + duration_s, key, at_ms)


def _window(
    run: str, index: int, stored: _Stored, metrics: Mapping[str, _Samples], edges: Mapping[str, _EdgeSeries]
) -> Window:
    key, at_ms = stored.key, stored.at_ms
    configuration, kind, phase, number = key
    nothing = _Samples()

    def value(name: str, default: float = 0.0) -> float:
        result = metrics.get(name, nothing).first(key, at_ms)
        return default if result is None else result

    duration_s = value(catalog.WINDOW_DURATION.name, stored.end_s - stored.start_s)
    batches = round(value(catalog.WINDOW_BATCHES.name))
    quantiles = {
        labels.get("quantile", ""): seconds
        for labels, seconds in metrics.get(catalog.WINDOW_LATENCY.name, nothing).at(key, at_ms)
    }
    latency = None
    if quantiles:
        middle = quantiles.get("0.5", 0.0)
        latency = Latency(
            count=batches,
            mean_s=duration_s / batches if batches else middle,
            min_s=quantiles.get("0", middle),
            max_s=quantiles.get("1", quantiles.get("0.99", middle)),
            p50_s=middle,
            p90_s=quantiles.get("0.9", middle),
            p99_s=quantiles.get("0.99", middle),
        )
    phases = {}
    seconds = metrics.get(catalog.WINDOW_PHASE_SECONDS.name, nothing)
    spans = metrics.get(catalog.WINDOW_PHASE_SPANS.name, nothing)
    for other in seconds.by_key:
        if (other[0], other[1], other[3]) == (configuration, kind, number) and other[2]:
            total_s = seconds.first(other, at_ms)
            if total_s is not None:
                phases[other[2]] = PhaseTime(round(spans.first(other, at_ms) or 0.0), total_s)
    flags = metrics.get(catalog.WINDOW_FLAG.name, nothing).at(key, at_ms)
    units = metrics.get(catalog.WINDOW_UNITS.name, nothing).at(key, at_ms)
    conditions = metrics.get(catalog.WINDOW_CONDITIONS.name, nothing).at(key, at_ms)
    return Window(
        run=run,
        index=index,
        kind=cast(WindowKind, kind if kind in _KINDS else "phase"),
        start_s=stored.start_s,
        end_s=stored.end_s,
        duration_s=duration_s,
        clock_error_s=value(catalog.WINDOW_CLOCK_ERROR.name),
        clock_step_s=value(catalog.WINDOW_CLOCK_STEP.name),
        processor_time=_processor_time(key, at_ms, metrics),
        configuration=configuration,
        phase=phase,
        batch_size=round(value(catalog.WINDOW_BATCH_SIZE.name)),
        repeat=round(value(catalog.WINDOW_REPEAT.name)),
        batches=batches,
        inferences=round(value(catalog.WINDOW_INFERENCES.name)),
        latency=latency,
        phases=phases,
        start_edge=edges["start"].at(at_ms),
        end_edge=edges["end"].at(at_ms),
        flags=tuple(sorted(labels.get("flag", "") for labels, _ in flags)),
        conditions={_condition(labels): amount for labels, amount in conditions if math.isfinite(amount)},
        counts={labels.get("unit", ""): count for labels, count in units},
    )


def _condition(labels: Mapping[str, str]) -> str:
    name, device = labels.get("condition", ""), labels.get("device", "")
    return condition_key(name, device) if device else name


def _processor_time(key: _Key, at_ms: int | None, metrics: Mapping[str, _Samples]) -> ProcessorTime | None:
    nothing = _Samples()
    used = {
        labels.get("usage", ""): seconds
        for labels, seconds in metrics.get(catalog.WINDOW_PROCESSOR_SECONDS.name, nothing).at(key, at_ms)
    }
    processors = metrics.get(catalog.WINDOW_PROCESSORS.name, nothing).first(key, at_ms)
    if processors is None or not used.keys() >= {"busy", "own"}:
        return None
    configuration, *_ = key
    names = {configuration: "network", "the concurrent networks": "concurrent"}
    return ProcessorTime(
        busy_s=used["busy"],
        own_s=used["own"],
        processors=round(processors),
        networks_s={name: used[usage] for name, usage in names.items() if usage in used},
        services_s=used.get("services", 0.0),
        system_s=used.get("system", 0.0),
    )


@dataclass(slots=True)
class _EdgeSeries:
    """The series of one edge of all windows with one key: milliseconds -> value, as in `_Samples`."""

    counters: list[tuple[SensorId, Mapping[int, float], Mapping[int, float]]]
    """Sensor, its joules and read timestamps. In the order of the counters of an edge."""
    clocks: list[tuple[str, Mapping[int, float], Mapping[int, float]]]
    """Exporter, and the bounds of its clock."""

    @classmethod
    def of(cls, name: str, key: _Key, metrics: Mapping[str, _Samples]) -> Self:
        """Sort the series of the edge ``name``."""

        def of_edge(metric: catalog.Metric) -> Iterator[tuple[Mapping[str, str], Mapping[int, float]]]:
            for labels, values in metrics.get(metric.name, _Samples()).by_key.get(key, {}).values():
                if labels.get("edge") == name:
                    yield labels, values

        reads = {
            tuple(labels.get(label, "") for label in _DEVICE): values
            for labels, values in of_edge(catalog.WINDOW_EDGE_TIMESTAMP)
        }
        counters = {}
        for labels, joules in of_edge(catalog.WINDOW_EDGE_JOULES):
            sensor = SensorId(**{label: labels.get(label, "") for label in SensorId._fields})
            read_at = reads.get((sensor.exporter, sensor.collector, sensor.device))
            if read_at is not None:
                order = (sensor.exporter, sensor.scope, sensor.collector, sensor.device, sensor.domain)
                counters[order, sensor.component] = (sensor, joules, read_at)
        clocks: dict[str, dict[str, Mapping[int, float]]] = {}
        for labels, values in of_edge(catalog.WINDOW_EDGE_CLOCK):
            clocks.setdefault(labels.get("exporter", ""), {})[labels.get("bound", "")] = values
        return cls(
            counters=[counter for _, counter in sorted(counters.items(), key=lambda item: item[0])],
            clocks=[
                (exporter, bounds["lower"], bounds["upper"])
                for exporter, bounds in sorted(clocks.items())
                if bounds.keys() >= {"lower", "upper"}
            ],
        )

    def at(self, at_ms: int | None) -> Edge | None:
        """Return the edge of one window; None: no counter was read at it."""
        value_at = _value_at(at_ms)
        counters, reads_s = [], []
        for (exporter, scope, collector, component, device, domain), of_joules, of_reads in self.counters:
            joules, read_at_s = value_at(of_joules), value_at(of_reads)
            if joules is not None and read_at_s is not None:
                counter = EdgeCounter(
                    exporter=exporter,
                    scope=scope,
                    collector=collector,
                    component=component,
                    device=device,
                    domain=domain,
                    energy_joules=joules,
                    read_at_s=read_at_s,
                )
                counters.append(counter)
                reads_s.append(read_at_s)
        if not counters:
            return None
        clocks = []
        for exporter, of_lower, of_upper in self.clocks:
            lower_s, upper_s = value_at(of_lower), value_at(of_upper)
            if lower_s is not None and upper_s is not None:
                clocks.append(EdgeClock(exporter, lower_s, upper_s))
        return Edge(
            requested_at_s=min(reads_s), answered_at_s=max(reads_s), counters=tuple(counters), clocks=tuple(clocks)
        )


def _configurations(infos: Iterable[RawSeries]) -> tuple[Configuration, ...]:
    configurations = {}
    for raw in sorted(infos, key=lambda raw: float(raw.times_s[-1]) if raw.times_s.size else 0.0):
        labels = raw.labels
        name = labels.get("configuration", "")
        scenario, rate_per_s = _scenario(name, labels)
        configurations[name] = Configuration(
            name=name,
            network=labels.get("network", ""),
            runtime=labels.get("runtime", ""),
            precision=labels.get("precision", ""),
            actual_precision=labels.get("actual_precision", ""),
            provider=labels.get("provider", ""),
            runtime_version=labels.get("runtime_version", ""),
            model_sha256=labels.get("model_sha256", ""),
            scenario="" if scenario == OFFLINE else scenario,
            server_rate_per_s=rate_per_s,
        )
    return name_networks(tuple(configurations.values()))


def _scenario(name: str, labels: Mapping[str, str]) -> tuple[str, float]:
    """Return scenario and queries per second; if a run was delivered without them, they are in its name."""
    if "scenario" not in labels:
        return scenario_in_name(name)
    try:
        return labels["scenario"], float(labels.get("server_rate_per_second", "0"))
    except ValueError:
        return labels["scenario"], 0.0


def _header(
    run: str, infos: list[RawSeries], statuses: list[tuple[float, str, float]], windows: list[Window]
) -> RunHeader:
    labels = infos[-1].labels if infos else {}
    edges = [edge for window in windows for edge in (window.start_edge, window.end_edge) if edge is not None]
    names = {name for name in labels.get("exporters", "").split(",") if name}
    names |= {counter.exporter for edge in edges for counter in edge.counters}
    started_s = min((value for _, _, value in statuses), default=None)
    if started_s is None:
        started_s = run_start_s(run)
    if started_s is None:
        started_s = min((window.start_s for window in windows), default=0.0)
    schema = labels.get("schema", "")
    provenance: dict[str, Any] = {}
    for name, keys in _PROVENANCE.items():
        if labels.get(name):
            into = provenance
            for key in keys[:-1]:
                into = into.setdefault(key, {})
            into[keys[-1]] = labels[name]
    configurations = _configurations(infos)
    plan: dict[str, Any] = {key: float(labels[label]) for label, key in _PLAN.items() if labels.get(label)}
    if plan.get("settle_s") == 0.0 and not any(item.precision for item in configurations):
        # Windows of user code: only they have neither a precision nor a load that runs before them.
        plan[METER] = "library"
    return RunHeader(
        run=run,
        started_at_s=started_s,
        schema=int(schema) if schema.isdigit() else 1,
        command=(),
        plan=plan,
        plan_sha256=labels.get("plan_sha256", ""),
        configurations=configurations,
        exporters=tuple(ExporterRecord(name=name, url="") for name in sorted(names)),
        sensors=(),
        provenance=provenance,
    )


def _end(statuses: list[tuple[float, str, float]]) -> RunEnd | None:
    ended = [(at_s, status) for at_s, status, _ in statuses if status in _STATUSES and status != "running"]
    if not ended:
        return None
    at_s, status = max(ended)
    return RunEnd(at_s, cast(RunStatus, status))
