"""The row Whose joules of *Node* and *Fleet*: power and energy of workloads, and of what belongs to none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kit import (
    OTHER_COLOUR,
    RANGE,
    RATE,
    SENSORS,
    Override,
    Panel,
    data_table,
    override,
    panel,
    query,
    series_colour,
    single_stat,
    time_series,
)

from joulewatch_exporter import catalog

TITLE: Final = "Whose joules"
MOST: Final = 20
"""Workloads of the stacked panel; the others are one series."""
MOST_ROWS: Final = 50
NO_WORKLOADS: Final = "No data: the exporters publish no workloads"
WORKLOADS: Final = f"{catalog.WORKLOAD_ENERGY.name}{{{SENSORS}}}"
RATIO: Final = f"{catalog.WORKLOAD_RATIO.name}{{{SENSORS}}}"
UNATTRIBUTED: Final = f"{catalog.UNATTRIBUTED_ENERGY.name}{{{SENSORS}}}"
_DEVICE: Final = "instance, component, device"
_NAME: Final = "kind, workload"
REASONS: Final = (
    "smaller: workloads that are not among the largest. rest: workloads without a series. system: the kernel. idle: "
    "what the devices draw without work. gap: use that could not be read."
)
BOUNDS: Final = (
    "At least, at most: the limits of its share, if of two workloads one draws at most r times as much as the other "
    "per second of use. r is 2, or what `joulewatch calibrate --workloads` measured."
)


def node_row() -> list[Panel]:
    """Return the row for one server: from the counters."""
    watts = f"sum by ({_NAME}) (rate({WORKLOADS}{RATE}))"
    largest = f"topk({MOST}, sum by ({_NAME}) (increase({WORKLOADS}{RANGE} @ end())))"
    shown = f"{watts} and on ({_NAME}) {largest}"
    energy = f"sum by ({_DEVICE}, {_NAME}) (increase({WORKLOADS}{RANGE}))"
    unshared = UNATTRIBUTED.replace("}", ', reason=~"rest|system"}')
    active = f"sum by ({_DEVICE}) (increase({WORKLOADS}{RANGE}) or increase({unshared}{RANGE}))"
    share = f"{energy} / on ({_DEVICE}) group_left () ({active} > 0)"
    ratio = f"(max by (instance, component) ({RATIO}) or 2 * group by (instance, component) ({energy}))"
    per_component = "on (instance, component) group_left ()"
    lower = f"{energy} / ({share} * {per_component} (1 - {ratio}) + {per_component} {ratio})"
    upper = f"{energy} * {per_component} {ratio} / ({share} * {per_component} ({ratio} - 1) + 1)"
    return [
        _attributed(
            f"sum(increase({WORKLOADS}{RANGE})) / (sum(increase({WORKLOADS}{RANGE})) + "
            f"sum(increase({UNATTRIBUTED}{RANGE})))",
            "the devices in the time range",
        ),
        _not_attributed(f"sum by (reason) (increase({UNATTRIBUTED}{RANGE}))", "in the time range"),
        panel(
            "Power by workload",
            f"Active power of the {MOST} workloads with the most energy in the time range, and of what belongs to "
            f"none, stacked: the top is the power of all devices. {REASONS}",
            "watt",
            [
                query(shown, "{{kind}} {{workload}}"),
                query(
                    f"clamp_min(sum(rate({WORKLOADS}{RATE})) - sum({shown}), 0)",
                    "smaller workloads",
                    ref="B",
                ),
                query(f"sum by (reason) (rate({UNATTRIBUTED}{RATE}))", "{{reason}}", ref="C"),
            ],
            size=(24, 12),
            no_value=NO_WORKLOADS,
            kind=time_series(stacked=True, calcs=()),
            overrides=reason_colours(),
        ),
        _table(
            "Energy by workload",
            "Active energy in the time range",
            [
                f"sum by ({_NAME}) ({energy})",
                f"sum by ({_NAME}) ({lower} or {energy})",
                f"sum by ({_NAME}) ({upper} or {energy})",
                f"sum by ({_NAME}) ({energy}) / on () group_left () "
                f"(sum(increase({WORKLOADS}{RANGE})) + sum(increase({UNATTRIBUTED}{RANGE})))",
            ],
            {"kind": "Kind", "workload": "Workload"},
        ),
    ]


def fleet_row(matchers: str) -> list[Panel]:
    """Return the row for all servers: from recording rules.

    Args:
        matchers: Label matchers of the recorded series.
    """

    def recorded(level: str, operation: str, metric: str = "workload") -> str:
        return f"{level}:joulewatch_{metric}_energy_joules:{operation}{{{matchers}}}"

    by_workload = recorded("cluster_kind_workload", "rate5m")
    by_name = f"sum by ({_NAME}) ({by_workload})"
    hours = recorded("cluster_kind_workload", "increase1h")
    shown = (
        f"{by_name} and on ({_NAME}) topk({MOST}, sum by ({_NAME}) (avg_over_time({by_workload}[$__range] @ end())))"
    )
    all_watts = f"sum({recorded('cluster', 'rate5m')})"
    by_reason = f"sum by (reason) ({recorded('cluster_reason', 'rate5m', 'unattributed')})"
    of_hour = f"topk({MOST_ROWS}, sum by (cluster, {_NAME}) ({hours}))"
    lower, upper = (recorded("cluster_kind_workload", f"{bound}_increase1h") for bound in ("lower", "upper"))
    return [
        _attributed(f"{all_watts} / ({all_watts} + sum({by_reason}))", "all devices, mean of the last 5 minutes"),
        _not_attributed(by_reason, "now", unit="watt"),
        panel(
            "Power by workload",
            f"Active power of the {MOST} workloads with the highest mean power in the time range, over all servers, "
            f"and of what belongs to none, stacked. {REASONS}",
            "watt",
            [
                query(shown, "{{kind}} {{workload}}"),
                query(f"clamp_min({all_watts} - sum({shown}), 0)", "smaller workloads", ref="B"),
                query(by_reason, "{{reason}}", ref="C"),
            ],
            size=(24, 12),
            no_value=NO_WORKLOADS,
            kind=time_series(stacked=True, calcs=()),
            overrides=reason_colours(),
        ),
        _table(
            "Energy by workload, last hour",
            f"Active energy of the {MOST_ROWS} workloads with the most energy in the last hour, over all servers",
            [
                of_hour,
                f"sum by (cluster, {_NAME}) ({lower}) and on (cluster, {_NAME}) {of_hour}",
                f"sum by (cluster, {_NAME}) ({upper}) and on (cluster, {_NAME}) {of_hour}",
            ],
            {"kind": "Kind", "workload": "Workload", "cluster": "Cluster"},
        ),
    ]


def reason_colours() -> list[Override]:
    """Return the colours of what belongs to no workload."""
    return [
        series_colour("smaller workloads", "#8A93A0"),
        series_colour("rest", OTHER_COLOUR),
        series_colour("system", "#B8BEC8"),
        series_colour("idle", "#5B626C"),
        series_colour("gap", "red"),
    ]


def _attributed(expr: str, of: str) -> Panel:
    return panel(
        "Attributed",
        f"Share of the energy of {of}, idle energy included, that belongs to a workload with a name.",
        "percentunit",
        [query(expr, "attributed", shape="instant")],
        size=(6, 5),
        no_value=NO_WORKLOADS,
        kind=single_stat(),
    )


def _not_attributed(expr: str, when: str, unit: str = "joule") -> Panel:
    return panel(
        "Nobody's",
        f"What belongs to no workload {when}. {REASONS.partition('. ')[2]}",
        unit,
        [query(expr, "{{reason}}", shape="instant")],
        size=(18, 5),
        no_value=NO_WORKLOADS,
        kind=single_stat(named=True),
        overrides=reason_colours(),
    )


def _table(title: str, what: str, exprs: Sequence[str], labels: dict[str, str]) -> Panel:
    headings = ("Energy", "At least", "At most", "Share")
    refs = "ABCD"
    columns = labels | {f"Value #{ref}": heading for ref, heading, _ in zip(refs, headings, exprs, strict=False)}
    return panel(
        title,
        f"{what}, largest first. {BOUNDS} Idle energy is not included. PromQL extrapolates: for a report, use "
        "`joulewatch energy --workload`.",
        "joule",
        [query(expr, ref=ref, shape="table") for expr, ref in zip(exprs, refs, strict=False)],
        size=(24, 10),
        no_value=NO_WORKLOADS,
        kind=data_table(columns, sort=("Energy", True)),
        overrides=[
            override("byName", "Share", unit="percentunit", custom__width=90),
            override("byRegexp", "/^(Energy|At least|At most)$/", custom__width=110),
            override("byName", "Kind", custom__width=110),
            # The name of a job is a number to Grafana.
            override("byName", "Workload", unit="string"),
        ],
    )
