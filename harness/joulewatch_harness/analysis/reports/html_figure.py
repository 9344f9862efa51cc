"""The figure of the report, and its numbers side by side for several runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from joulewatch_harness.analysis.reports import html_charts as charts
from joulewatch_harness.analysis.reports.html_markup import Markup, join, tag, with_code
from joulewatch_harness.analysis.reports.html_parts import (
    ReportedRun,
    Unit,
    configurations_of,
    make_table,
)
from joulewatch_harness.analysis.reports.table import Column
from joulewatch_harness.analysis.results.lines import Line, LinePoint, Value
from joulewatch_harness.analysis.results.model import EnergyResult, GroupResult
from joulewatch_harness.analysis.results.numbers import (
    UNKNOWN_ACCURACY,
    UNKNOWN_ACCURACY_TEXT,
    plain,
    with_uncertainty,
)


def labels_of(runs: Sequence[ReportedRun]) -> Iterator[tuple[str, list[GroupResult]]]:
    """Yield the lines of the figure: a name that is unique on the page, and the results."""
    lines = [
        (name, run, [group for group in run.result.groups if group.configuration.name == name])
        for run in runs
        for name in configurations_of(run)
    ]
    machines = {run.result.hardware for run in runs}
    names = [f"{name} on {run.result.hardware}" if len(machines) > 1 else name for name, run, _ in lines]
    for (_, run, groups), name in zip(lines, names, strict=True):
        doubt = sorted({kind for group in groups for kind in group.total.methods} & {"estimated", "emulated"})
        text = f"{name}, run {run.id}" if names.count(name) > 1 else name
        yield f"{text} ({', '.join(doubt)})" if doubt else text, groups


def figure_section(runs: Sequence[ReportedRun], predictions: Sequence[Line], unit: Unit) -> Markup:
    """Return the charts of energy and throughput, with one line per configuration and per prediction."""
    labels = list(labels_of(runs))

    def points(groups: Sequence[GroupResult], *, energy: bool) -> Iterator[charts.Point]:
        for group in groups:
            estimate = group.total.gross if energy else group.throughput
            if estimate is not None:
                scale, name = (unit.scale, f"{unit.name} per inference") if energy else (1.0, "inferences/s")
                text = (
                    f"{group.configuration.name}, batch {group.batch_size}: {with_uncertainty(estimate, scale)} {name}"
                )
                value, half = estimate.value * scale, (estimate.expanded or 0.0) * scale
                yield charts.Point(group.batch_size, value, value - half, value + half, text)

    def predicted_points(line: Line, *, energy: bool) -> Iterator[charts.Point]:
        for point in line.points:
            value = point.energy if energy else point.throughput
            if value is not None:
                scale, name = (unit.scale, f"{unit.name} per inference") if energy else (1.0, "inferences/s")
                low, high = (value.value if end is None else end for end in (value.low, value.high))
                text = f"{line.label}, batch {point.batch_size}: {_interval(value, scale)} {name}"
                yield charts.Point(point.batch_size, value.value * scale, low * scale, high * scale, text)

    pictures = []
    names = [*(label for label, _ in labels), *(line.label for line in predictions)]
    for ident, name, energy in (
        ("energy", f"Energy per inference [{unit.name}]", True),
        ("throughput", "Throughput [inferences/s]", False),
    ):
        lines = [charts.Line(label, tuple(points(groups, energy=energy))) for label, groups in labels]
        lines += [
            charts.Line(line.label, tuple(predicted_points(line, energy=energy)), predicted=True)
            for line in predictions
        ]
        description = f"{name} over batch size, one line per configuration: {'; '.join(names)}."
        pictures.append(charts.log_chart(f"chart-{ident}", name, description, lines))
    legend = [
        tag("li", charts.marker(number, predicted=number >= len(labels)), name) for number, name in enumerate(names)
    ]
    text = (
        "Sum over device sensors, with memory and the host of an accelerator. Bands and error bars: expanded "
        "uncertainty, 95 % coverage."
    )
    if predictions:
        text += " Dashed lines are predicted by a model, not measured; their bands are 90 % intervals."
    return join(
        tag("div", *pictures, class_="charts"),
        tag("ul", *legend, class_="legend"),
        tag("p", text, class_="notes"),
    )


def _interval(value: Value, scale: float) -> str:
    if value.low is None or value.high is None:
        return f"{plain(value.value * scale)}, interval unknown"
    return f"{plain(value.value * scale)} ({plain(value.low * scale)} to {plain(value.high * scale)})"


def predictions_section(predictions: Sequence[Line], unit: Unit) -> Markup:
    """Return the predicted energies and throughputs, in a table apart from everything that was measured."""
    rows = [(line, point) for line in predictions for point in line.points]

    def cell(value: Value | None, scale: float) -> str | None:
        return None if value is None else _interval(value, scale)

    columns: list[Column[tuple[Line, LinePoint]]] = [
        Column("batch", lambda row: row[1].batch_size),
        Column(f"{unit.name} per inference", lambda row: cell(row[1].energy, unit.scale)),
        Column("inf/s", lambda row: cell(row[1].throughput, 1.0)),
    ]
    caption = "Predicted by a model, not measured: median, and 90 % interval in parentheses"
    return make_table(caption, columns, rows, lambda row: row[0].label)


def energy_cell(unit: Unit, result: EnergyResult | None) -> str | None:
    if result is None:
        return None
    return unit.text(result.gross) or ("missing" if result.missing else None)


def side_by_side(runs: Sequence[ReportedRun], unit: Unit) -> Markup:
    """Return energy and throughput of each line of the figure, with one column per batch size."""
    rows = [(label, {group.batch_size: group for group in groups}) for label, groups in labels_of(runs)]
    sizes = sorted({size for _, groups in rows for size in groups})

    def column(size: int, *, energy: bool) -> Column[tuple[str, Mapping[int, GroupResult]]]:
        def cell(row: tuple[str, Mapping[int, GroupResult]]) -> str | None:
            group = row[1].get(size)
            if group is None:
                return None
            if energy:
                return energy_cell(unit, group.total)
            return None if group.throughput is None else with_uncertainty(group.throughput)

        return Column(f"batch {size}", cell)

    parts = []
    for caption, energy in (
        (f"Energy per inference over all device sensors, {unit.name}; ±: 95 % coverage", True),
        ("Throughput, inferences per second", False),
    ):
        name: Column[tuple[str, Mapping[int, GroupResult]]] = Column("configuration", lambda row: row[0], text=True)
        parts.append(make_table(caption, [name, *(column(size, energy=energy) for size in sizes)], rows))
    if UNKNOWN_ACCURACY in parts[0]:
        parts.append(tag("p", f"{UNKNOWN_ACCURACY}: {UNKNOWN_ACCURACY_TEXT}.", class_="notes"))
    text = "`joulewatch compare` reports which differences are significant, and which errors cancel in them."
    return join(*parts, tag("p", with_code(text), class_="notes"))
