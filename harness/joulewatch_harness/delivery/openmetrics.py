"""Export a recording as OpenMetrics text, which ``promtool tsdb create-blocks-from openmetrics`` turns into blocks.

This brings measurements made offline into the Prometheus of a datacenter.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from joulewatch_exporter import catalog
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.annotations import Labels, Sample, by_series, live_samples
from joulewatch_harness.delivery.sinks import run_items
from joulewatch_harness.storage.recording import RecordedSeries, Recording

JOB: Final = "joulewatch"
INFO_PERIOD_S: Final = 60.0
"""Interval at which an info series is repeated: a recording contains it once, and Prometheus looks back 5 minutes."""

_METRICS: Final = {metric.name: metric for metric in catalog.METRICS}


def export_openmetrics(recording: Recording, write: Callable[[str], object]) -> int:
    """Write the whole recording as OpenMetrics text, one series at a time.

    Scraped samples get the labels ``instance`` (the exporter's name) and ``job="joulewatch"`` and the time at which
    their scrape started; windows are the same as with remote write.

    Returns:
        The number of samples.

    Raises:
        RecordError: the recording cannot be read.
    """
    record = recording.run()
    delivered = [sample for item in run_items(record) for sample in (*item.samples, *item.info)]
    annotations: dict[str, list[tuple[Labels, list[Sample]]]] = {}
    for (name, labels), samples in by_series((*delivered, *live_samples(record))).items():
        annotations.setdefault(name, []).append((labels, samples))
    recorded = set(recording.metrics())
    known = [name for name in _METRICS if name in recorded or name in annotations]
    count = 0
    for name in (*known, *sorted(recorded - set(known))):
        for line in _head(name):
            write(line)
        if name in recorded:
            for series in recording.iter_series(name):
                labels = tuple(sorted({**series.labels, "job": JOB}.items()))
                count += _write_series(write, name, labels, _points(recording, series))
        for labels, samples in annotations.get(name, ()):
            count += _write_series(write, name, labels, ((sample.at_ms, sample.value) for sample in samples))
    write("# EOF\n")
    return count


def _head(name: str) -> Iterator[str]:
    metric = _METRICS.get(name)
    if metric is None:
        yield f"# TYPE {name} unknown\n"
        return
    family = name.removesuffix("_total") if metric.kind == "counter" else name
    yield f"# TYPE {family} {metric.kind}\n"
    if family.endswith(f"_{metric.unit}") and metric.unit != "info":
        yield f"# UNIT {family} {metric.unit}\n"
    yield f"# HELP {family} {_escaped(metric.help)}\n"


def _points(recording: Recording, series: RecordedSeries) -> Iterator[tuple[int, float]]:
    """Yield milliseconds and values, strictly ascending; info series are repeated until the next gap."""
    pairs: Iterable[tuple[float, float]] = zip(series.scrape_times_s, series.values, strict=True)
    if series.metric.endswith("_info"):
        pairs = _repeated(recording, series.labels, list(pairs))
    last_ms = -(2**63)
    for at_s, value in pairs:
        at_ms = to_ms(at_s)
        if at_ms > last_ms:
            yield at_ms, value
            last_ms = at_ms


def _repeated(
    recording: Recording, labels: Mapping[str, str], pairs: list[tuple[float, float]]
) -> Iterator[tuple[float, float]]:
    scrapes = recording.scrapes(labels["instance"])
    starts_s = [scrape.started_at_s for scrape in scrapes]
    for position, (at_s, value) in enumerate(pairs):
        yield at_s, value
        next_s = pairs[position + 1][0] if position + 1 < len(pairs) else math.inf
        last_s = at_s
        for scrape in scrapes[bisect.bisect_right(starts_s, at_s) :]:
            if scrape.error or scrape.started_at_s >= next_s:
                break
            if scrape.started_at_s >= last_s + INFO_PERIOD_S:
                last_s = scrape.started_at_s
                yield last_s, value


def _write_series(
    write: Callable[[str], object], name: str, labels: Labels, points: Iterable[tuple[int, float]]
) -> int:
    inner = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels if value)
    head = f"{name}{{{inner}}}" if inner else name
    count = 0
    for at_ms, value in points:
        write(f"{head} {_number(value)} {_seconds(at_ms)}\n")
        count += 1
    return count


def _seconds(at_ms: int) -> str:
    """Return seconds with 0.1 ms added, because Prometheus multiplies by 1000 and truncates.

    Otherwise 1700000000.001 would become the previous millisecond.
    """
    return f"{at_ms // 1000}.{at_ms % 1000:03d}1"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
