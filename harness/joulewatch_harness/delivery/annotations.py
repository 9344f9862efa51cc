"""The records of a run as Prometheus samples, for remote write, the Pushgateway and the OpenMetrics export.

The samples of a window have the time of its end, rounded to milliseconds, the resolution of Prometheus. Start and
duration are values and therefore exact: the exact end is start + duration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter import catalog
from joulewatch_exporter.catalog import Metric
from joulewatch_harness import __version__
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.plan.scenario import OFFLINE
from joulewatch_harness.plan.target import MAX_UNCERTAINTY
from joulewatch_harness.records import (
    DEVICE_SEPARATOR,
    Configuration,
    Edge,
    RunEnd,
    RunHeader,
    RunRecord,
    Window,
    WindowKind,
)

Labels = tuple[tuple[str, str], ...]

LIVE_PERIOD_MS: Final = 15_000
"""Interval at which an unchanged live series is repeated; Prometheus looks back 5 minutes."""

QUANTILES: Final = (("0", "min_s"), ("0.5", "p50_s"), ("0.9", "p90_s"), ("0.99", "p99_s"), ("1", "max_s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One value of one series."""

    name: str
    labels: Labels
    """Sorted by name; without ``__name__``, and without empty values, which Prometheus does not store."""
    at_ms: int
    """Unix milliseconds."""
    value: float


def sample(metric: Metric, labels: Mapping[str, str], at_ms: int, value: float) -> Sample:
    """Return a sample of a metric of the catalog."""
    return Sample(
        name=metric.name, labels=tuple(sorted((k, v) for k, v in labels.items() if v)), at_ms=at_ms, value=float(value)
    )


def window_samples(window: Window) -> list[Sample]:
    """Return all samples of a window, at the time of its end."""
    at_ms = to_ms(window.end_s)
    labels = {"run": window.run, "configuration": window.configuration, "kind": window.kind, "phase": window.phase}
    samples = [
        sample(catalog.WINDOW_START, labels, at_ms, window.start_s),
        sample(catalog.WINDOW_DURATION, labels, at_ms, window.duration_s),
        sample(catalog.WINDOW_CLOCK_ERROR, labels, at_ms, window.clock_error_s),
        sample(catalog.WINDOW_CLOCK_STEP, labels, at_ms, window.clock_step_s),
        sample(catalog.WINDOW_INFERENCES, labels, at_ms, window.inferences),
        sample(catalog.WINDOW_BATCHES, labels, at_ms, window.batches),
        sample(catalog.WINDOW_BATCH_SIZE, labels, at_ms, window.batch_size),
        sample(catalog.WINDOW_REPEAT, labels, at_ms, window.repeat),
    ]
    if window.processor_time is not None:
        used = window.processor_time
        usages = {"busy": used.busy_s, "own": used.own_s, "services": used.services_s, "system": used.system_s}
        if window.configuration in used.networks_s:
            usages["network"] = used.networks_s[window.configuration]
        if len(used.networks_s) > 1:
            usages["concurrent"] = sum(used.networks_s.values()) - usages["network"]
        for usage, seconds in usages.items():
            samples.append(sample(catalog.WINDOW_PROCESSOR_SECONDS, {**labels, "usage": usage}, at_ms, seconds))
        samples.append(sample(catalog.WINDOW_PROCESSORS, labels, at_ms, used.processors))
    if window.latency is not None:
        samples += [
            sample(catalog.WINDOW_LATENCY, {**labels, "quantile": quantile}, at_ms, getattr(window.latency, name))
            for quantile, name in QUANTILES
        ]
    for phase, spent in window.phases.items():
        in_phase = {**labels, "phase": phase}
        samples.append(sample(catalog.WINDOW_PHASE_SECONDS, in_phase, at_ms, spent.total_s))
        samples.append(sample(catalog.WINDOW_PHASE_SPANS, in_phase, at_ms, spent.count))
    samples += [
        sample(catalog.WINDOW_UNITS, {**labels, "unit": unit}, at_ms, count) for unit, count in window.counts.items()
    ]
    samples += [sample(catalog.WINDOW_FLAG, {**labels, "flag": flag}, at_ms, 1) for flag in dict.fromkeys(window.flags)]
    for key, value in window.conditions.items():
        condition, _, device = key.partition(DEVICE_SEPARATOR)
        at_device = {**labels, "condition": condition, "device": device}
        samples.append(sample(catalog.WINDOW_CONDITIONS, at_device, at_ms, value))
    for name, edge in (("start", window.start_edge), ("end", window.end_edge)):
        if edge is not None:
            samples += _edge_samples(edge, {**labels, "edge": name}, at_ms)
    return samples


def _edge_samples(edge: Edge, labels: Mapping[str, str], at_ms: int) -> list[Sample]:
    samples = []
    read_at: dict[tuple[str, str, str], float] = {}
    for counter in edge.counters:
        sensor = {
            "exporter": counter.exporter,
            "scope": counter.scope,
            "collector": counter.collector,
            "component": counter.component,
            "device": counter.device,
            "domain": counter.domain,
        }
        samples.append(sample(catalog.WINDOW_EDGE_JOULES, {**labels, **sensor}, at_ms, counter.energy_joules))
        read_at[counter.exporter, counter.collector, counter.device] = counter.read_at_s
    for (exporter, collector, device), at_s in read_at.items():
        device_labels = {**labels, "exporter": exporter, "collector": collector, "device": device}
        samples.append(sample(catalog.WINDOW_EDGE_TIMESTAMP, device_labels, at_ms, at_s))
    for clock in edge.clocks:
        for bound, value in (("lower", clock.lower_s), ("upper", clock.upper_s)):
            bound_labels = {**labels, "exporter": clock.exporter, "bound": bound}
            samples.append(sample(catalog.WINDOW_EDGE_CLOCK, bound_labels, at_ms, value))
    return samples


def status_sample(header: RunHeader, end: RunEnd | None) -> Sample:
    """Return the status of the run: ``running`` at its start, or the final status at its end."""
    status, at_s = ("running", header.started_at_s) if end is None else (end.status, end.ended_at_s)
    return sample(catalog.RUN_STATUS, {"run": header.run, "status": status}, to_ms(at_s), header.started_at_s)


def run_labels(header: RunHeader, configuration: Configuration) -> dict[str, str]:
    """Return the labels of all series of a configuration."""
    return {
        "run": header.run,
        "configuration": configuration.name,
        "network": configuration.network,
        "runtime": configuration.runtime,
        "precision": configuration.precision,
    }


def info_sample(header: RunHeader, configuration: Configuration, at_ms: int) -> Sample:
    """Return the info sample of a configuration as loaded, and of the machine."""
    labels = {
        **run_labels(header, configuration),
        "actual_precision": configuration.actual_precision,
        "provider": configuration.provider,
        "runtime_version": configuration.runtime_version,
        "scenario": configuration.scenario or OFFLINE,
        "server_rate_per_second": f"{configuration.server_rate_per_s:g}" if configuration.server_rate_per_s else "",
        "hardware": header.hardware,
        "nodename": header.provenance_text("host"),
        "kernel": header.provenance_text("kernel"),
        "governor": header.provenance_text("cpu", "governor"),
        "model_sha256": configuration.model_sha256,
        "plan_sha256": header.plan_sha256,
        "max_relative_uncertainty": _plan_number(header, MAX_UNCERTAINTY),
        "settle_seconds": _plan_number(header, "settle_s"),
        "exporters": ",".join(exporter.name for exporter in header.exporters),
        "exporter_nodenames": _nodename_pattern(header),
        "schema": str(header.schema),
        "version": header.provenance_text("versions", "joulewatch") or __version__,
    }
    return sample(catalog.RUN_INFO, labels, at_ms, 1)


def _nodename_pattern(header: RunHeader) -> str:
    """Return a regular expression for the machines of the run's exporters, without backslashes.

    Dashboards use it in a matcher of PromQL, whose strings would need two backslashes for one.
    """
    nodenames = sorted({exporter.nodename for exporter in header.exporters} - {""})
    return "|".join(re.sub(r"([^\w-])", r"[\1]", nodename) for nodename in nodenames)


def _plan_number(header: RunHeader, key: str) -> str:
    number = header.plan.get(key)
    return "" if number is None else f"{number:g}"


def active_sample(
    run: str, configuration: str, kind: WindowKind, batch_size: int, at_ms: int, value: float = 1.0
) -> Sample:
    """Return the sample of an open window."""
    labels = {"run": run, "configuration": configuration, "kind": kind, "batch_size": str(batch_size)}
    return sample(catalog.WINDOW_ACTIVE, labels, at_ms, value)


def live_samples(record: RunRecord) -> list[Sample]:
    """Return the live view of a finished run: open windows as 1 and then 0, batch sizes, inferences so far.

    OpenMetrics text cannot contain the stale markers with which ``delivery`` ends a series; dashboards do not shade
    a region at 0 either.
    """
    configurations = {configuration.name: configuration for configuration in record.configurations}
    inferences = dict.fromkeys(configurations, 0)
    samples = []
    for window in record.windows:
        if window.kind == "phase":
            continue
        start_ms, end_ms = to_ms(window.start_s), to_ms(window.end_s)
        times = [*range(start_ms, end_ms, LIVE_PERIOD_MS), end_ms]
        active = (window.run, window.configuration, window.kind, window.batch_size)
        samples += [active_sample(*active, at_ms) for at_ms in times]
        samples.append(active_sample(*active, end_ms + 1, 0.0))
        configuration = configurations.get(window.configuration)
        if configuration is not None and window.kind != "setup":
            if window.kind == "measure":
                inferences[configuration.name] += window.inferences
            labels = run_labels(record.header, configuration)
            samples += [sample(catalog.RUN_BATCH_SIZE, labels, at_ms, window.batch_size) for at_ms in times]
            samples.append(sample(catalog.RUN_INFERENCES, labels, end_ms, inferences[configuration.name]))
    return samples


def by_series(samples: Iterable[Sample]) -> dict[tuple[str, Labels], list[Sample]]:
    """Group samples by series, ascending in time, one per millisecond (the last one wins).

    For two samples of a series in descending order a receiver answers 204 and silently drops one.
    """
    grouped: dict[tuple[str, Labels], dict[int, Sample]] = {}
    for sample in samples:
        grouped.setdefault((sample.name, sample.labels), {})[sample.at_ms] = sample
    return {key: [by_ms[at_ms] for at_ms in sorted(by_ms)] for key, by_ms in sorted(grouped.items())}
