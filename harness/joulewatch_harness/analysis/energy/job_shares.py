"""What a Slurm job used of its nodes, where exporters share their energy between workloads."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from joulewatch_harness.analysis.energy.jobs import host_of
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.energy.workloads import WorkloadEnergy, total_energy, workload_energies
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
from joulewatch_harness.analysis.sources.workloads import WorkloadMatcher, WorkloadUse, lost_notice, workload_uses

MARGIN_S: Final = 60.0
"""Samples this long before and after the job are read: its counters begin at 0 in the first scrape after its start, and
in the last one before its end they are not complete."""
_UNCOVERED_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShares:
    """The active energy of a job, without other jobs, the system and idle energy."""

    nodes: Mapping[str, WorkloadEnergy]
    """As the scheduler names them; those without a number for the job are missing."""
    total: WorkloadEnergy | None
    """None: a node has no number."""
    missing: tuple[str, ...]
    notices: tuple[Notice, ...]


def job_shares(
    source: PrometheusSource, jobs: Collection[str], spans: Mapping[str, Sequence[tuple[float, float]]], now_s: float
) -> JobShares:
    """Return what the workloads of a job used on its nodes.

    Args:
        source: The samples.
        jobs: Numbers of the job, of its tasks and of its components, as in the names of cgroups.
        spans: Node -> the spans of Unix seconds in which the job had it.
        now_s: Unix time.

    Raises:
        QueryError: The source cannot be queried.
    """
    start_s = min(one[0] for times in spans.values() for one in times)
    end_s = max(one[1] for times in spans.values() for one in times)
    whole = Span(start_s - MARGIN_S, min(end_s + MARGIN_S, now_s))
    matches = WorkloadMatcher(tuple((("kind", "slurm_job"), ("job", job)) for job in jobs))
    uses, _ = workload_uses(source, (whole.start_s, whole.end_s), matches)
    by_host = {use.host: use for use in uses}
    nodes: dict[str, WorkloadEnergy] = {}
    notices: list[Notice] = []
    for node, times in spans.items():
        use = by_host.get(host_of(node, set(by_host)))
        total = workload_energies(use, whole, matches)[1] if use is not None else None
        if use is None or total is None or not total.parts:
            continue
        limits = times[0][0], times[-1][1]
        uncovered_s = max(float(use.times_s[0]) - limits[0], 0.0) + max(limits[1] - float(use.times_s[-1]), 0.0)
        seconds = math.fsum(last_s - first_s for first_s, last_s in times)
        nodes[node] = replace(total, duration_s=seconds, measured_s=max(seconds - uncovered_s, 0.0))
        notices += [one for one in (lost_notice(use, *limits), _uncovered(use, uncovered_s)) if one is not None]
    missing = tuple(node for node in spans if node not in nodes)
    every = list(nodes.values())
    return JobShares(
        nodes=nodes,
        total=None if missing else total_energy(every, every),
        missing=missing,
        notices=tuple(notices),
    )


def _uncovered(use: WorkloadUse, seconds: float) -> Notice | None:
    if seconds < _UNCOVERED_S:
        return None
    return Notice(
        severity="warning",
        reason="unbracketed",
        text=f"{use.host}: no samples in {seconds:.0f} s of the job; its own energy of that time is missing",
        exporter=use.exporter,
    )
