"""Results to Prometheus by remote write, so that a dashboard can draw the figure.

A result of a run that ended less than an hour ago is written with the time of now: it shows at once, and
analysing again may change it. An older run's result is written with the time of the run's end, where it
belongs; a Prometheus takes that only with ``storage.tsdb.out_of_order_time_window`` set, and once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Final

from joulewatch_exporter import catalog
from joulewatch_exporter.catalog import Metric
from joulewatch_harness.analysis.results.model import EnergyResult, RunResult
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.annotations import Sample, run_labels, sample
from joulewatch_harness.delivery.remote_write import send_samples
from joulewatch_harness.errors import DeliveryError

RECENT_S: Final = 3600.0


def published_at_s(result: RunResult, now_s: float) -> float:
    """Time of the results' samples, Unix seconds: now, or the end of a run that ended over an hour ago."""
    record = result.record
    ends = [window.end_s for window in record.windows]
    ended_s = record.end.ended_at_s if record.end is not None else max(ends, default=record.header.started_at_s)
    return now_s if now_s - ended_s < RECENT_S else ended_s


def result_samples(result: RunResult, at_s: float) -> list[Sample]:
    """The results as samples, all at one time."""
    at_ms = to_ms(at_s)
    samples: list[Sample] = []

    def add(metric: Metric, labels: Mapping[str, str], value: float) -> None:
        samples.append(sample(metric, labels, at_ms, value))

    for group in result.groups:
        labels = {**run_labels(result.record.header, group.configuration), "batch_size": str(group.batch_size)}
        if group.throughput is not None:
            add(catalog.RESULT_THROUGHPUT, labels, group.throughput.value)
            add(catalog.RESULT_THROUGHPUT_UNCERTAINTY, labels, group.throughput.expanded)
        for item in (*group.components, group.total, *_node(group.nodes)):
            for basis, estimate in (("gross", item.gross), ("net", item.net)):
                if estimate is None:
                    continue
                own = {**labels, "component": item.name, "basis": basis, "method": "+".join(item.methods)}
                add(catalog.RESULT_ENERGY, own, estimate.value)
                add(catalog.RESULT_UNCERTAINTY, own, estimate.expanded)
    return samples


def _node(nodes: tuple[EnergyResult, ...]) -> list[EnergyResult]:
    """The one node sensor as component ``node``; of several, which may overlap, none can stand for all."""
    return [dataclasses.replace(nodes[0], name="node")] if len(nodes) == 1 else []


def publish(
    result: RunResult,
    client: PrometheusClient,
    *,
    now: Callable[[], float] = time.time,
) -> int:
    """Write the results and read them back, for a 204 proves nothing.

    Returns:
        How many samples were written.

    Raises:
        DeliveryError: The server cannot take them, or does not have them afterwards.
    """
    at_s = published_at_s(result, now())
    samples = result_samples(result, at_s)
    if not samples:
        raise DeliveryError(f"run {result.record.header.run}: there is no result to publish")
    send_samples(client, samples)
    run = result.record.header.run
    names = "|".join(sorted({item.name for item in samples}))
    answer = client.query(f'count({{__name__=~"{names}", run="{run}"}})', to_ms(at_s) / 1000)
    count = int(float(answer[0]["value"][1])) if answer else 0
    if count < len(samples):
        raise DeliveryError(
            f"{client.url}: took {len(samples)} results of run {run} but shows {count} of them at {at_s:.3f}: "
            "try again later, or see the server's log"
        )
    return len(samples)
