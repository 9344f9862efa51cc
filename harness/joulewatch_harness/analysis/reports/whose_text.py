"""Whose energy it was, and what networks cost each other, as plain text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from joulewatch_harness.analysis.reports.table import Column, Table, paragraph
from joulewatch_harness.analysis.results.model import Consumer, Estimate, GroupResult, Interference, RunResult
from joulewatch_harness.analysis.results.numbers import energy_text, plain, with_uncertainty
from joulewatch_harness.analysis.results.whose import joined


def estimate_cell(estimate: Estimate | None, scale: float) -> str | None:
    return None if estimate is None else energy_text(estimate, scale)


def rate_cell(estimate: Estimate | None) -> str | None:
    return None if estimate is None else four_digits(estimate.value)


def four_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def has_attributed(result: RunResult) -> bool:
    """Return whether a result has an attributed energy."""
    return any(group.total.attributed is not None for group in result.groups)


def attributed_lines(result: RunResult) -> list[str]:
    """Return what attributed energy is, or why there is none."""
    lines = []
    if has_attributed(result):
        ratios = sorted({one.ratio for group in result.groups for one in group.total.shares} - {1.0})
        bound = ""
        if ratios:
            factors = " or ".join(f"{ratio:g}" for ratio in ratios)
            bound = f"; ± contains the error if programs differ by a factor of {factors} in watts per processor"
        lines.append(
            "attributed: the part of net that the network's processes used, shared by processor time (a GPU or FPGA: "
            f"all of it){bound}."
        )
    reasons = sorted({group.total.attributed_missing for group in result.groups if group.total.attributed_missing})
    return [*lines, *(f"attributed: no number, because {reason}." for reason in reasons)]


_CONSUMERS: Final[tuple[tuple[Consumer, str], ...]] = (
    ("own", "own"),
    ("concurrent", "concurrent"),
    ("others", "others"),
    ("measuring", "measuring"),
    ("system", "system"),
)


def shares_columns(groups: Sequence[GroupResult], scale: float) -> list[Column[GroupResult]]:
    """Return the columns of whose energy it was, per inference; they add up to the last one."""
    sums = {id(group): joined(group.total.shares) for group in groups}

    def consumer(name: Consumer) -> Column[GroupResult]:
        def cell(group: GroupResult) -> str:
            part = sums[id(group)].parts[name]
            each = scale / group.inferences
            text = four_digits(part.joules * each)
            if name in ("measuring", "system"):
                return text
            return f"{text} ({four_digits(part.low_joules * each)} to {four_digits(part.high_joules * each)})"

        return Column(dict(_CONSUMERS)[name], cell, priority=int(name in ("measuring", "system")))

    def whole(name: str) -> Column[GroupResult]:
        key = "joules" if name == "devices" else "idle_joules"
        return Column(name, lambda group: four_digits(getattr(sums[id(group)], key) * scale / group.inferences))

    has_concurrent = any(one.parts["concurrent"].joules for one in sums.values())
    names = [name for name, _ in _CONSUMERS if has_concurrent or name != "concurrent"]
    return [Column("batch", lambda group: group.batch_size), *map(consumer, names), whole("idle"), whole("devices")]


def shares_lines(result: RunResult, scale: float, unit: str, width: int) -> list[str]:
    """Return whose energy it was, for the groups with an attributed energy."""
    groups = [group for group in result.groups if group.total.shares]
    if not groups:
        return []
    heading = f"Whose energy, {unit} per inference (measuring: harness, exporters, Prometheus; system: the kernel)"
    return [
        "",
        *paragraph(heading, width),
        *Table(shares_columns(groups, scale), groups, lambda group: group.configuration.name).lines(width),
    ]


def interference_columns(scale: float) -> list[Column[Interference]]:
    """Return the columns of what networks cost each other."""

    def percent(estimate: Estimate | None) -> str | None:
        if estimate is None:
            return None
        text = plain(estimate.value) if estimate.expanded is None else with_uncertainty(estimate)
        return f"+{text}" if estimate.value > 0 else text

    return [
        Column("batch", lambda row: row.batch_size),
        Column("alone", lambda row: estimate_cell(row.energy_alone, scale)),
        Column("together", lambda row: estimate_cell(row.energy_together, scale)),
        Column("%", lambda row: percent(row.energy_percent)),
        Column("inf/s alone", lambda row: rate_cell(row.rate_alone)),
        Column("together ", lambda row: rate_cell(row.rate_together)),
        Column("% ", lambda row: percent(row.rate_percent)),
    ]


def interference_lines(result: RunResult, scale: float, unit: str, width: int) -> list[str]:
    """Return what the networks that ran at the same time cost each other."""
    if not result.interference:
        return []
    heading = f"Interference: each network alone, and together with the others (attributed {unit} per inference)"
    table = Table(interference_columns(scale), result.interference, lambda row: row.configuration)
    return ["", *paragraph(heading, width), *table.lines(width)]
