"""Publish results to Prometheus by remote write, for the figure on a dashboard.

Results of a run that ended less than an hour ago are written with the current time: they show at once, and a later
analysis can change them. Results of an older run are written with the time of its end; Prometheus accepts them only
once, and only if ``storage.tsdb.out_of_order_time_window`` is set.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from joulewatch_exporter import catalog
from joulewatch_exporter.catalog import Metric
from joulewatch_harness.analysis.results.model import EnergyResult, RunResult
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.annotations import Sample, run_labels, sample
from joulewatch_harness.delivery.courier import FIRST_CHECK_S, LONGEST_CHECK_S
from joulewatch_harness.delivery.remote_write import send_samples
from joulewatch_harness.delivery.sinks import same, stored_samples
from joulewatch_harness.errors import DeliveryError
from joulewatch_harness.records import SensorRecord

RECENT_S: Final = 3600.0
LONGEST_READ_BACK_S: Final = 60.0
"""How long accepted samples may be missing: VictoriaMetrics shows new ones after some seconds, at most 30."""


def published_at_s(result: RunResult, now_s: float) -> float:
    """Return the Unix time of the results' samples: now, or the end of a run that ended more than an hour ago."""
    record = result.record
    ends = [window.end_s for window in record.windows]
    ended_s = record.end.ended_at_s if record.end is not None else max(ends, default=record.header.started_at_s)
    return now_s if now_s - ended_s < RECENT_S else ended_s


def result_samples(result: RunResult, at_s: float) -> list[Sample]:
    """Return the results as samples, all with the same time."""
    at_ms = to_ms(at_s)
    samples: list[Sample] = []

    def add(metric: Metric, labels: Mapping[str, str], value: float) -> None:
        samples.append(sample(metric, labels, at_ms, value))

    for group in result.groups:
        labels = {**run_labels(result.record.header, group.configuration), "batch_size": str(group.batch_size)}
        if group.throughput is not None:
            add(catalog.RESULT_THROUGHPUT, labels, group.throughput.value)
            if group.throughput.expanded is not None:
                add(catalog.RESULT_THROUGHPUT_UNCERTAINTY, labels, group.throughput.expanded)
        for energy in (*group.components, group.total, *_node(group.nodes, result)):
            for basis, estimate in (("gross", energy.gross), ("net", energy.net), ("attributed", energy.attributed)):
                if estimate is None:
                    continue
                of = {**labels, "component": energy.name, "basis": basis, "method": "+".join(energy.methods)}
                add(catalog.RESULT_ENERGY, of, estimate.value)
                if estimate.expanded is not None:
                    add(catalog.RESULT_UNCERTAINTY, {**of, "covers": "+".join(estimate.covers)}, estimate.expanded)
    run = result.record.header.run
    for (reason, severity), count in Counter((item.reason, item.severity) for item in result.findings).items():
        add(catalog.RESULT_FINDINGS, {"run": run, "reason": reason, "severity": severity}, count)
    return samples


def _node(nodes: Sequence[EnergyResult], result: RunResult) -> list[EnergyResult]:
    """Return the primary node sensor as component ``node``, or the only one; several may overlap.

    A BMC of a machine without an exporter in the run is not a candidate: it may be any machine of the datacenter.
    """
    header = result.record.header
    machines = {exporter.nodename for exporter in header.exporters} - {""}
    own = [record for record in result.sensors if not machines or header.machine_of(record) in (*machines, "")]
    candidates = _of(nodes, (record for record in own if record.primary)) or _of(nodes, own)
    return [dataclasses.replace(candidates[0], name="node")] if len(candidates) == 1 else []


def _of(energies: Sequence[EnergyResult], records: Iterable[SensorRecord]) -> list[EnergyResult]:
    sensors = {SensorId.of(record) for record in records}
    return [energy for energy in energies if sensors.intersection(energy.sensors)]


def publish(
    result: RunResult,
    client: PrometheusClient,
    *,
    now: Callable[[], float] = time.time,
) -> int:
    """Write the results and read them back, because a 204 does not prove that they are stored.

    Returns:
        The number of samples.

    Raises:
        DeliveryError: The server does not accept them, or does not have them afterwards.
    """
    at_s = published_at_s(result, now())
    samples = result_samples(result, at_s)
    run = result.record.header.run
    if not samples:
        raise DeliveryError(f"run {run}: it has no result to publish")
    return publish_samples(samples, client, f'run="{run}"', f"results of run {run}", at_s)


def publish_samples(
    samples: Sequence[Sample],
    client: PrometheusClient,
    matcher: str,
    what: str,
    at_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> int:
    """Write samples that have the same time, and read them back; return their number.

    Args:
        samples: Of series that ``matcher`` selects.
        client: The server.
        matcher: Label matcher of PromQL.
        what: What they are, in errors.
        at_s: Their time.
        sleep, monotonic: For tests.

    Raises:
        DeliveryError: The server does not accept them, or does not have them afterwards.
        QueryError: They cannot be read back.
    """
    send_samples(client, samples)
    names = {item.name for item in samples}
    at_ms = to_ms(at_s)
    deadline_s = monotonic() + LONGEST_READ_BACK_S
    wait_s = FIRST_CHECK_S
    while True:
        stored = stored_samples(client, names, matcher, start_ms=at_ms, end_ms=at_ms)
        count = sum(_is_stored(item, stored.get((item.name, item.labels), ())) for item in samples)
        if count == len(samples):
            return count
        if monotonic() + wait_s > deadline_s:
            raise DeliveryError(
                f"{client.url}: accepted {len(samples)} {what} but shows {count} of them at {at_s:.3f}, "
                f"after {LONGEST_READ_BACK_S:.0f} s: are the query API and the receiver the same server?"
            )
        sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_CHECK_S)


def _is_stored(item: Sample, stored: Iterable[tuple[int, float]]) -> bool:
    return any(at_ms == item.at_ms and same(value, item.value) for at_ms, value in stored)
