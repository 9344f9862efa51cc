"""The energy per unit of counters as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.energy.costs import Cost
from joulewatch_harness.analysis.energy.per_counter import Increase, Quotient
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.reports import energy_report
from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraph, paragraphs
from joulewatch_harness.analysis.results.numbers import UNKNOWN_ACCURACY, decimals_for, plain
from joulewatch_harness.analysis.results.per_counter import CounterRow, PerCounter
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.analysis.sources.llm_servers import llm_servers

SCHEMA_VERSION: Final = 1
CONVENTION: Final = (
    "joules by {label}: the energy is shared in proportion to the counter. This is a convention, not a measurement: "
    "units of different kinds may cost different energies"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One line of the CSV."""

    basis: str
    row: CounterRow
    cost: Cost | None = None
    watts: Cost | None = None


def render_table(
    result: PerCounter, span: Span, where: str, notices: Sequence[Notice] = (), *, width: int = DEFAULT_WIDTH
) -> str:
    """Return the text: the energy, the energy per unit of each counter, the costs by least squares, and notices."""
    lines = energy_report.heading_lines(
        span, where, {row.record.method for row in result.sensors if row.energy is not None}, width
    )
    lines += ["", *paragraph(_energy_text(result), width), ""]
    lines += Table(_columns(result), result.rows).lines(width)
    if result.costs_of:
        lines += ["", *_costs_lines(result, span, width)]
    notes = [f"missing: {row.sensor}: {row.text} [{row.reason}]" for row in result.sensors if row.energy is None]
    # The same gap of one target may be the reason of several rows.
    notes += dict.fromkeys(f"missing: {_reason(row)} [{row.reason}]" for row in result.rows if row.reason)
    notes += energy_report.notice_lines((*notices, *result.notices))
    if result.label:
        notes.append(f"{CONVENTION.format(label=result.label)}.")
    notes.append("bounds: from the samples around the edges alone. ±: 95 % coverage, of energy and counter together.")
    if result.energy is not None and not result.energy.accuracy_known:
        notes.append(f"{UNKNOWN_ACCURACY}: sampling only: the accuracy of a sensor is unknown.")
    return "\n".join([*lines, "", *paragraphs(notes, width)]) + "\n"


def _energy_text(result: PerCounter) -> str:
    scope = "server" if any(row.sensor.scope == "node" for row in result.sensors) else "device"
    machines = result.machines
    where = ", ".join(machines[:4]) + (f" and {len(machines) - 4} more" if len(machines) > 4 else "")
    text = f"Energy of {count_of(len(result.sensors), scope)} of {where}"
    if result.energy is None:
        return f"{text}: missing"
    energy = result.energy
    mark = "" if energy.accuracy_known else UNKNOWN_ACCURACY
    uncertain = _uncertainty(energy.joules, energy.expanded_joules)
    return f"{text}: {_number(energy.joules, energy.expanded_joules)} J ± {uncertain}{mark}"


def _title(row: CounterRow) -> str:
    return row.counter if row.group is None else f"{row.counter}, {row.group or '(empty)'}"


def _reason(row: CounterRow) -> str:
    return row.text if row.text.startswith(row.counter) else f"{_title(row)}: {row.text}"


def _columns(result: PerCounter) -> list[Column[CounterRow]]:
    mark = "" if result.energy is None or result.energy.accuracy_known else UNKNOWN_ACCURACY

    def units(text: Callable[[Increase], str]) -> Callable[[CounterRow], str | None]:
        return lambda row: None if row.units is None else text(row.units)

    def quotient(text: Callable[[Quotient], str]) -> Callable[[CounterRow], str | None]:
        return lambda row: None if row.per_unit is None else text(row.per_unit)

    def bounds(one: Quotient) -> str:
        upper = _number(one.upper, one.expanded) if math.isfinite(one.upper) else "inf"
        return f"{_number(one.lower, one.expanded)} to {upper}"

    columns = [
        Column[CounterRow]("counter", lambda row: row.counter, text=True, least=24),
        Column[CounterRow]("increase", units(lambda one: _number(one.value, one.expanded))),
        Column[CounterRow]("±", units(lambda one: _uncertainty(one.value, one.expanded))),
        Column[CounterRow](
            "J/unit",
            lambda row: (
                f"[{row.reason}]" if row.per_unit is None else _number(row.per_unit.value, row.per_unit.expanded)
            ),
        ),
        Column[CounterRow]("± 95 %", quotient(lambda one: f"{_uncertainty(one.value, one.expanded)}{mark}")),
        Column[CounterRow]("bounds J", quotient(bounds), priority=2),
        Column[CounterRow]("unit/J", quotient(lambda one: plain(1 / one.value) if one.value > 0 else "-"), priority=1),
    ]
    if result.label:
        columns.insert(
            1, Column[CounterRow](result.label, lambda row: "(all)" if row.group is None else row.group, text=True)
        )
        columns.insert(
            4,
            Column[CounterRow](
                "J by share",
                lambda row: None if row.energy is None else _number(row.energy.joules, row.energy.expanded_joules),
            ),
        )
    return columns


def _costs_lines(result: PerCounter, span: Span, width: int) -> list[str]:
    title = "By least squares over sub-windows, joules = cost x increase of each counter + power x time"
    if result.costs is None:
        return paragraph(f"{title}: no result: {result.costs_text} [{result.costs_reason}]", width)
    costs = result.costs
    lines = paragraph(
        f"{title} ({count_of(costs.windows, 'sub-window')} of {span.duration_s / costs.windows:.3g} s, condition "
        f"number {costs.condition:.2g}):",
        width,
    )
    named = [(_meaning(name), cost, "J per unit") for name, cost in zip(result.costs_of, costs.units, strict=True)]
    table = Table(
        [
            Column[tuple[str, Cost, str]]("part", lambda line: line[0], text=True),
            Column[tuple[str, Cost, str]]("cost", lambda line: _number(line[1].value, line[1].expanded)),
            Column[tuple[str, Cost, str]]("± 95 %", lambda line: _uncertainty(line[1].value, line[1].expanded)),
            Column[tuple[str, Cost, str]]("unit", lambda line: line[2], text=True),
        ],
        [*named, ("power without units", costs.watts, "W")],
    )
    return [*lines, *table.lines(width)]


def _meaning(counter: str) -> str:
    """Return a counter with the phase that it stands for, if it is one of an LLM server."""
    for kind, phase in (("input", "prefill"), ("output", "decode")):
        if any(name in counter for server in llm_servers().values() for name in getattr(server, kind)):
            return f"{phase}: {counter}"
    return counter


def _number(value: float, uncertainty: float) -> str:
    return f"{value:.{decimals_for(value, uncertainty)}f}"


def _uncertainty(value: float, uncertainty: float) -> str:
    return f"{uncertainty:.{decimals_for(value, uncertainty)}f}"


def _lines(result: PerCounter) -> list[_Line]:
    lines = [_Line(basis="window" if row.group is None else "share", row=row) for row in result.rows]
    if result.costs_of:
        costs = result.costs
        for at, name in enumerate(result.costs_of):
            row = CounterRow(counter=name, reason=result.costs_reason, text=result.costs_text)
            lines.append(_Line(basis="least squares", row=row, cost=None if costs is None else costs.units[at]))
        if costs is not None:
            lines.append(_Line(basis="least squares", row=CounterRow(counter=""), watts=costs.watts))
    return lines


def render_csv(result: PerCounter, span: Span) -> str:
    """Return the CSV: one line per counter and group, and those of the least squares."""

    def of(part: Callable[[_Line], Any], number: Callable[[Any], float]) -> Callable[[_Line], str]:
        def cell(line: _Line) -> str:
            one = part(line)
            return "" if one is None or not math.isfinite(number(one)) else f"{number(one):.9g}"

        return cell

    def quotient(line: _Line) -> Quotient | Cost | None:
        return line.cost if line.cost is not None else line.row.per_unit

    columns: list[Column[_Line]] = [
        Column("start_seconds", lambda _: f"{span.start_s:.6f}"),
        Column("end_seconds", lambda _: f"{span.end_s:.6f}"),
        Column("basis", lambda line: line.basis),
        Column("counter", lambda line: line.row.counter),
        Column("label", lambda line: result.label if line.row.group is not None else ""),
        Column("value", lambda line: line.row.group),
        Column("increase", of(lambda line: line.row.units, lambda one: one.value)),
        Column("increase_uncertainty", of(lambda line: line.row.units, lambda one: one.expanded)),
        Column("energy_joules", of(lambda line: line.row.energy, lambda one: one.joules)),
        Column("energy_uncertainty_joules", of(lambda line: line.row.energy, lambda one: one.expanded_joules)),
        Column("joules_per_unit", of(quotient, lambda one: one.value)),
        Column("uncertainty_joules_per_unit", of(quotient, lambda one: one.expanded)),
        Column("lower_joules_per_unit", of(lambda line: line.row.per_unit, lambda one: one.lower)),
        Column("upper_joules_per_unit", of(lambda line: line.row.per_unit, lambda one: one.upper)),
        Column("watts", of(lambda line: line.watts, lambda one: one.value)),
        Column("uncertainty_watts", of(lambda line: line.watts, lambda one: one.expanded)),
        Column("missing", lambda line: line.row.reason),
    ]
    return Table(columns, _lines(result)).csv()


def render_json(result: PerCounter, span: Span, where: str, notices: Sequence[Notice] = ()) -> str:
    """Return the JSON, in base units."""
    methods = {row.record.method for row in result.sensors if row.energy is not None}
    return json_text(
        {
            "schema_version": SCHEMA_VERSION,
            "source": where,
            "start_s": span.start_s,
            "end_s": span.end_s,
            "coverage": 0.95,
            "estimated": "estimated" in methods,
            "emulated": "emulated" in methods,
            "energy": energy_report.joules_document(result.energy),
            "machines": list(result.machines),
            "sensors": [str(row.sensor) for row in result.sensors],
            "counters": [_row_document(row, result.label) for row in result.rows],
            "least_squares": _costs_document(result),
            "findings": [
                {"severity": notice.severity, "reason": notice.reason, "text": notice.text}
                for notice in (*notices, *result.notices)
            ],
        }
    )


def _row_document(row: CounterRow, label: str) -> dict[str, Any]:
    units, quotient = row.units, row.per_unit
    return {
        "counter": row.counter,
        "label": label if row.group is not None else None,
        "value": row.group,
        "targets": row.targets,
        "increase": None
        if units is None
        else {
            "value": units.value,
            "expanded_uncertainty": units.expanded,
            "lower": units.lower,
            "upper": units.upper,
        },
        "energy": energy_report.joules_document(row.energy),
        "energy_is": "whole" if row.group is None else "share in proportion to the counter, a convention",
        "joules_per_unit": None
        if quotient is None
        else {
            "value": quotient.value,
            "expanded_uncertainty": quotient.expanded,
            "lower": quotient.lower,
            "upper": quotient.upper if math.isfinite(quotient.upper) else None,
        },
        "missing": row.reason,
        "missing_text": row.text,
    }


def _costs_document(result: PerCounter) -> dict[str, Any] | None:
    if not result.costs_of:
        return None
    costs = result.costs
    return {
        "counters": list(result.costs_of),
        "joules_per_unit": None
        if costs is None
        else [{"value": cost.value, "expanded_uncertainty": cost.expanded} for cost in costs.units],
        "watts": None if costs is None else {"value": costs.watts.value, "expanded_uncertainty": costs.watts.expanded},
        "sub_windows": None if costs is None else costs.windows,
        "condition_number": None if costs is None else costs.condition,
        "residual_joules": None if costs is None else costs.residual_joules,
        "missing": result.costs_reason,
        "missing_text": result.costs_text,
    }
