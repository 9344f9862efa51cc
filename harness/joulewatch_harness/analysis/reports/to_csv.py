"""Results as CSV: one line per configuration and batch size, in base units; the header names the units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from joulewatch_harness.analysis.reports.table import Column, Table
from joulewatch_harness.analysis.results.model import (
    TOTAL,
    CountResult,
    EnergyResult,
    Estimate,
    GroupResult,
    LatencySummary,
    RunResult,
)

GroupColumn = Column[GroupResult]
BASES = ("gross", "net", "attributed")


def render_csv(result: RunResult) -> str:
    """Return the CSV of a run."""
    groups = result.groups
    columns = [
        *_identity_columns(result.record.header.run),
        *_estimate_columns(
            "throughput_inferences_per_second",
            "throughput_uncertainty_inferences_per_second",
            lambda group: group.throughput,
        ),
        *map(_latency_column, ("p50", "p90", "p99")),
    ]
    for name in (*_names(component.name for group in groups for component in group.components), TOTAL):
        columns += _component_columns(name)
    columns += _estimate_columns(
        "inferences_per_joule", "inferences_per_joule_uncertainty", lambda group: group.total.inferences_per_joule
    )
    for name in _names(node.name for group in groups for node in group.nodes):
        columns += _node_columns(name)
    for name in _names(count.name for group in groups for count in group.counts):
        columns += _count_columns(name)
    columns += map(_phase_column, _names(phase.name for group in groups for phase in group.phases))
    return Table(columns, groups).csv()


def _names(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _number(value: float) -> str:
    return f"{value:.9g}"


def _identity_columns(run: str) -> list[GroupColumn]:
    return [
        Column("run", lambda _: run),
        Column("configuration", lambda group: group.configuration.name),
        Column("network", lambda group: group.configuration.network),
        Column("runtime", lambda group: group.configuration.runtime),
        Column("precision", lambda group: group.configuration.precision),
        Column("batch_size", lambda group: group.batch_size),
        Column("rounds", lambda group: group.rounds),
        Column("windows", lambda group: len(group.windows)),
        Column("inferences", lambda group: group.inferences),
        Column("duration_seconds", lambda group: _number(group.duration_s)),
    ]


def _estimate_columns(
    value_name: str, uncertainty_name: str, estimate_of: Callable[[GroupResult], Estimate | None]
) -> Iterator[GroupColumn]:
    """Yield the columns of a value and its expanded uncertainty; what is not known is an empty cell."""

    def value(group: GroupResult) -> str:
        estimate = estimate_of(group)
        return "" if estimate is None else _number(estimate.value)

    def uncertainty(group: GroupResult) -> str:
        estimate = estimate_of(group)
        return "" if estimate is None or estimate.expanded is None else f"{estimate.expanded:.3g}"

    yield Column(value_name, value)
    yield Column(uncertainty_name, uncertainty)


def _latency_column(name: str) -> GroupColumn:
    def value(group: GroupResult) -> float | None:
        latency: LatencySummary | None = group.latency
        seconds: float | None = None if latency is None else getattr(latency, f"{name}_s")
        return seconds

    return Column(f"latency_{name}_seconds", value)


def _component_columns(name: str) -> Iterator[GroupColumn]:
    def energy(group: GroupResult) -> EnergyResult | None:
        return next((result for result in (*group.components, group.total) if result.name == name), None)

    def estimate(basis: str) -> Callable[[GroupResult], Estimate | None]:
        return lambda group: getattr(energy(group), basis, None)

    def methods(group: GroupResult) -> str:
        result = energy(group)
        return "" if result is None else "+".join(result.methods)

    for basis in BASES:
        yield from _estimate_columns(
            f"{name}_{basis}_joules_per_inference", f"{name}_{basis}_uncertainty_joules_per_inference", estimate(basis)
        )

    def covers(group: GroupResult) -> str:
        gross = estimate("gross")(group)
        return "" if gross is None else "+".join(gross.covers)

    yield Column(f"{name}_method", methods)
    yield Column(f"{name}_uncertainty_covers", covers)


def _node_columns(name: str) -> Iterator[GroupColumn]:
    return _estimate_columns(
        f"node {name} gross_joules_per_inference",
        f"node {name} gross_uncertainty_joules_per_inference",
        lambda group: next((node.gross for node in group.nodes if node.name == name), None),
    )


def _count_columns(name: str) -> Iterator[GroupColumn]:
    def count(group: GroupResult) -> CountResult | None:
        return next((result for result in group.counts if result.name == name), None)

    def number(group: GroupResult) -> str:
        result = count(group)
        return "" if result is None else _number(result.count)

    def estimate(basis: str) -> Callable[[GroupResult], Estimate | None]:
        return lambda group: getattr(count(group), basis, None)

    yield Column(name, number)
    yield from _estimate_columns(f"{name}_per_second", f"{name}_per_second_uncertainty", estimate("rate"))
    for basis in BASES:
        yield from _estimate_columns(
            f"{name}_{basis}_joules_each", f"{name}_{basis}_uncertainty_joules_each", estimate(basis)
        )


def _phase_column(name: str) -> GroupColumn:
    def share(group: GroupResult) -> str:
        return next((_number(phase.share.value) for phase in group.phases if phase.name == name), "")

    return Column(f"phase_{name}_share_of_time", share)
