"""Energy of the whole nodes of a job, while the job had them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_harness.analysis.energy.intervals import IntervalEnergy, interval_energies
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.sources.history import SampleSource
from joulewatch_harness.analysis.sources.identity import Notice

NODE: Final = "node"
"""Component of the sensor of a whole server, which contains all others."""
DEVICES: Final = "devices"
"""The sum of all other components of a node."""
_ROUNDING_S: Final = 0.78
"""The scheduler keeps whole seconds, so start and end are up to 1 s late. The error of the duration is the difference
of two such errors: a triangular distribution of half-width 1 s, of which this covers 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnergy:
    """Energy of one component of one node, as far as it is measured."""

    node: str
    """As the scheduler names it."""
    host: str
    """As the exporter names it; empty: no exporter measures this node."""
    component: str
    """A component, ``node``, or ``devices`` for the sum of the components."""
    joules: float | None
    expanded_joules: float
    """At 95 % coverage, with the rounding of the job's times to seconds; an upper limit."""
    accuracy_known: bool
    duration_s: float
    measured_s: float
    reasons: tuple[str, ...]
    methods: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.joules is not None and self.duration_s - self.measured_s < 1.0


def job_energies(
    source: SampleSource, spans: Mapping[str, Sequence[tuple[float, float]]]
) -> tuple[list[NodeEnergy], list[Notice]]:
    """Return the energies of all components of all nodes, and the warnings of the source.

    Args:
        source: The samples.
        spans: Node -> the spans of Unix seconds in which the job had it.

    Raises:
        QueryError: The source cannot be queried.
    """
    alike: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for node, times in spans.items():
        alike.setdefault(tuple(times), []).append(node)
    energies: list[NodeEnergy] = []
    notices: dict[tuple[str, str], Notice] = {}
    for times, nodes in alike.items():
        rows, found = interval_energies(source, [Span(*limits) for limits in times], (), "all")
        notices |= {(notice.reason, notice.text): notice for notice in found}
        for node in nodes:
            energies += _node_energies(node, rows, math.fsum(end_s - start_s for start_s, end_s in times))
    return sorted(energies, key=lambda one: (one.node, one.component == NODE, one.component == DEVICES)), [
        *notices.values()
    ]


def _node_energies(node: str, rows: Sequence[IntervalEnergy], duration_s: float) -> list[NodeEnergy]:
    host = host_of(node, {row.host for row in rows})
    by_component: dict[str, list[IntervalEnergy]] = {}
    for row in rows:
        if row.host == host:
            by_component.setdefault(row.component, []).append(row)
    energies = [_sum(node, host, component, parts, duration_s) for component, parts in by_component.items()]
    if not energies:
        return [_sum(node, "", DEVICES, (), duration_s)]
    devices = [one for one in energies if one.component != NODE]
    if len(devices) > 1:
        energies.append(_combined(DEVICES, devices, node=node, host=host, duration_s=duration_s))
    return energies


def _sum(node: str, host: str, component: str, parts: Sequence[IntervalEnergy], duration_s: float) -> NodeEnergy:
    """Add the spans of a node."""
    measured = [(part, part.joules) for part in parts if part.joules is not None]
    expanded = math.fsum(
        part.expanded_joules + _ROUNDING_S * joules / part.measured_s for part, joules in measured if part.measured_s
    )
    return NodeEnergy(
        node=node,
        host=host,
        component=component,
        joules=math.fsum(joules for _, joules in measured) if measured else None,
        expanded_joules=expanded,
        accuracy_known=all(part.accuracy_known for part, _ in measured),
        duration_s=duration_s,
        measured_s=math.fsum(part.measured_s for part in parts),
        reasons=tuple(sorted({reason for part in parts for reason in part.reasons})) if parts else ("no_samples",),
        methods=tuple(sorted({method for part in parts for method in part.methods})),
    )


def _combined(
    component: str, parts: Sequence[NodeEnergy], *, node: str = "", host: str = "", duration_s: float
) -> NodeEnergy:
    """Add the components of a node, or one component of all nodes; without a number if one has none."""
    joules = [part.joules for part in parts if part.joules is not None]
    return NodeEnergy(
        node=node,
        host=host,
        component=component,
        joules=math.fsum(joules) if len(joules) == len(parts) else None,
        expanded_joules=math.fsum(part.expanded_joules for part in parts),
        accuracy_known=all(part.accuracy_known for part in parts),
        duration_s=duration_s,
        measured_s=min(part.measured_s for part in parts) if node else math.fsum(part.measured_s for part in parts),
        reasons=tuple(sorted({reason for part in parts for reason in part.reasons})),
        methods=tuple(sorted({method for part in parts for method in part.methods})),
    )


def host_of(node: str, hosts: set[str]) -> str:
    """Return the host that is a node: with the same name, or with the same name up to the first dot; empty: none.

    The host of a sensor is the nodename of its machine, the name of a BMC's target, or the address of the exporter.
    """
    if node in hosts:
        return node
    short = _short(node)
    near = sorted(host for host in hosts if _short(host) == short)
    return near[0] if len(near) == 1 else ""


def _short(name: str) -> str:
    return name.partition(":")[0].partition(".")[0].lower()


def totals(energies: Sequence[NodeEnergy]) -> dict[str, NodeEnergy | None]:
    """Return the sums over all nodes, of the devices and of the whole servers, whichever are measured on any node.

    A sum is None if a node has no complete energy: a part of the nodes is not the energy of the job.
    """
    nodes = {one.node for one in energies}
    result: dict[str, NodeEnergy | None] = {}
    for name in (DEVICES, NODE):
        chosen = [one for node in nodes if (one := _chosen(name, [row for row in energies if row.node == node]))]
        if chosen:
            complete = len(chosen) == len(nodes) and all(one.complete for one in chosen)
            duration_s = math.fsum(one.duration_s for one in chosen)
            result[name] = _combined(name, chosen, duration_s=duration_s) if complete else None
    return result


def _chosen(name: str, energies: Sequence[NodeEnergy]) -> NodeEnergy | None:
    """Return a node's whole server, or its devices, which may be a single component."""
    if name == NODE:
        return next((one for one in energies if one.component == NODE and one.host), None)
    devices = [one for one in energies if one.component != NODE and one.host]
    return next((one for one in devices if one.component == DEVICES), devices[0] if len(devices) == 1 else None)
