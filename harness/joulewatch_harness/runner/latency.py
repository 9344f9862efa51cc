"""Latencies and phase times of the batches of one window."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from joulewatch_harness.network import Phases
from joulewatch_harness.records import Latency, PhaseTime
from joulewatch_harness.runner.calls import Call


def latency(calls: Iterable[Call], batch_ends_ns: array[int], latencies_ns: array[int] | None = None) -> Latency | None:
    """Return the latency per batch.

    Args:
        calls: The calls of the window.
        batch_ends_ns: All batch marks of the window. A call with another number of marks than batches counts as
            batches of equal length.
        latencies_ns: Latency of each query where the scenario measured them; replaces the marks.

    Returns:
        Percentiles by nearest rank (each is a latency that occurred), in seconds; None without a batch.
    """
    ends = np.frombuffer(batch_ends_ns, dtype=np.int64) if batch_ends_ns else np.empty(0, dtype=np.int64)
    parts = []
    first = 0
    for call in calls:
        if call.marks - first == call.batches:
            parts.append(np.diff(ends[first : call.marks], prepend=call.start_ns))
        else:
            parts.append(np.full(call.batches, (call.end_ns - call.start_ns) / call.batches))
        first = call.marks
    if not parts:
        return None
    if latencies_ns:
        parts = [np.frombuffer(latencies_ns, dtype=np.int64)]
    spans_s = np.concatenate(parts) * 1e-9
    p50, p90, p99 = np.percentile(spans_s, (50, 90, 99), method="inverted_cdf")
    return Latency(
        count=len(spans_s),
        mean_s=float(np.mean(spans_s)),
        min_s=float(np.min(spans_s)),
        max_s=float(np.max(spans_s)),
        p50_s=float(p50),
        p90_s=float(p90),
        p99_s=float(p99),
    )


def phase_times(phases: Phases, duration_ns: int, batches: int) -> dict[str, PhaseTime]:
    """Return the time per phase; the time that no phase covers is added to ``other``.

    Returns:
        Nothing if no phase was recorded.
    """
    if not phases.spans:
        return {}
    times = {name: PhaseTime(count, total_ns * 1e-9) for name, (count, total_ns) in phases.spans.items()}
    covered_ns = sum(total_ns for _, total_ns in phases.spans.values())
    uncovered_s = max(0.0, (duration_ns - covered_ns) * 1e-9)
    other = times.get("other", PhaseTime(0, 0.0))
    times["other"] = PhaseTime(other.count or batches, other.total_s + uncovered_s)
    return times
