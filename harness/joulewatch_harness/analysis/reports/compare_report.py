"""A comparison as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from joulewatch_harness import __version__
from joulewatch_harness.analysis.reports.table import (
    DEFAULT_WIDTH,
    Column,
    Table,
    json_text,
    paragraph,
    paragraphs,
)
from joulewatch_harness.analysis.reports.to_json import estimate_document
from joulewatch_harness.analysis.results.compare import SIGNIFICANT, Comparison, Pair, Row, Verdict
from joulewatch_harness.analysis.results.model import TOTAL, Estimate
from joulewatch_harness.analysis.results.numbers import (
    UNKNOWN_ACCURACY,
    UNKNOWN_ACCURACY_TEXT,
    marked,
    plain,
    prefix_for,
    warning_line,
    with_uncertainty,
)
from joulewatch_harness.analysis.results.stored_results import NODE, Side

SCHEMA_VERSION: Final = 1
"""Version of the JSON, raised when a reader of the previous version would misread it."""
STORED_VERDICTS: Final[Mapping[Verdict, str]] = {
    "significant": "differs",
    "no significant difference": "no difference shown",
    "undecided": "unknown",
    "missing": "missing",
}
"""Verdict -> its word in JSON and CSV, which programs read and which therefore stays that of schema version 1."""


def render_table(comparison: Comparison, *, width: int = DEFAULT_WIDTH) -> str:
    """Return plain text: a table over the batch sizes for every pair and quantity."""
    warning = paragraph(warning_line(comparison.methods), width)
    lines = [*warning, ""] if warning else []
    for pair in comparison.pairs:
        sides = [f"A  {_side(pair.a)}", f"B  {_side(pair.b)}", *(f"   {note}" for note in pair.notes)]
        lines += paragraphs(sides, width)
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in pair.rows:
            groups.setdefault((row.kind, row.name, row.basis), []).append(row)
        components = {row.name for row in pair.rows if row.kind == "energy"} - {TOTAL}
        components -= {name for name in components if name.startswith(NODE)}
        for (kind, name, _), rows in groups.items():
            # A single component is the total.
            if kind == "energy" and len(components) == 1 and name in components:
                continue
            lines += ["", *_quantity_lines(rows, width)]
        lines += paragraphs(_reasons(pair), width)
        lines.append("")
    unknown = any(UNKNOWN_ACCURACY in line for line in lines)
    footnote = (f"{UNKNOWN_ACCURACY}: {UNKNOWN_ACCURACY_TEXT}.",) if unknown else ()
    lines += paragraphs((_LEGEND, *footnote, *comparison.notes), width)
    if warning:
        lines += ["", *warning]
    return "\n".join(lines) + "\n"


_LEGEND: Final = (
    "±: 95 % coverage. %: B - A as a share of A. significant: the intervals of B - A and of % both exclude 0; "
    "no significant difference: one of them contains 0; undecided: the scatter between rounds is not known."
)


def _side(side: Side) -> str:
    hardware = f", {side.run.measured_hardware}" if side.run.measured_hardware else ""
    return f"{side.configuration} (run {side.run.id}{hardware})"


def _heading(row: Row, letter: str) -> str:
    if row.kind == "throughput":
        return f"throughput, {letter}inferences/s"
    if row.kind == "latency":
        return f"latency of a batch, {row.name}, {letter}s"
    return f"{row.name}, {row.basis}, {letter}J per inference"


def _quantity_lines(rows: Sequence[Row], width: int) -> list[str]:
    exponent, letter = prefix_for([side.value for row in rows for side in (row.a, row.b) if side is not None])
    if rows[0].kind == "throughput" and exponent < 0:
        exponent, letter = 0, ""
    scale = 10.0**-exponent
    columns: list[Column[Row]] = [
        Column("batch", lambda row: row.batch_size),
        Column("A", lambda row: _side_cell(row.a, scale)),
        Column("B", lambda row: _side_cell(row.b, scale)),
        Column("B - A", lambda row: _cell(row.difference, scale, sign=True)),
        Column("%", lambda row: _cell(row.percent, 1.0, sign=True)),
        Column("verdict", lambda row: row.verdict, text=True, least=len(SIGNIFICANT)),
    ]
    return [_heading(rows[0], letter), *Table(columns, rows).lines(width)]


def _cell(estimate: Estimate | None, scale: float, *, sign: bool = False) -> str | None:
    if estimate is None:
        return None
    # Rounds that agree to the last bits have no uncertainty to show.
    known = estimate.expanded is not None and estimate.expanded > 1e-9 * abs(estimate.value)
    text = with_uncertainty(estimate, scale) if known else plain(estimate.value * scale)
    return f"+{text}" if sign and estimate.value > 0 else text


def _side_cell(estimate: Estimate | None, scale: float) -> str | None:
    text = _cell(estimate, scale)
    return None if text is None or estimate is None else marked(text, estimate)


def _reasons(pair: Pair) -> list[str]:
    """Return the reasons for missing verdicts, each once."""
    sizes: dict[str, list[int]] = {}
    for row in pair.rows:
        if row.text:
            name = f"{row.name} {row.basis}".strip()
            sizes.setdefault(f"{name}: {row.verdict}: {row.text}", []).append(row.batch_size)
    lines = [f"{text} (batch {', '.join(map(str, found))})" for text, found in sizes.items()]
    return ["", *lines] if lines else []


# CSV


def render_csv(comparison: Comparison) -> str:
    """Return the CSV: one line per pair, batch size and quantity, in base units."""
    rows = [(pair, row) for pair in comparison.pairs for row in pair.rows]
    return Table(_CSV_COLUMNS, rows).csv()


def _number_columns(name: str, estimate_of: Callable[[Row], Estimate | None]) -> Iterator[Column[tuple[Pair, Row]]]:
    def value(pair_row: tuple[Pair, Row]) -> str:
        estimate = estimate_of(pair_row[1])
        return "" if estimate is None else f"{estimate.value:.9g}"

    def uncertainty(pair_row: tuple[Pair, Row]) -> str:
        estimate = estimate_of(pair_row[1])
        return "" if estimate is None or estimate.expanded is None else f"{estimate.expanded:.3g}"

    yield Column(name, value)
    yield Column(f"{name}_uncertainty", uncertainty)


_CSV_COLUMNS: Final[tuple[Column[tuple[Pair, Row]], ...]] = (
    Column("a_run", lambda pair_row: pair_row[0].a.run.id),
    Column("a_configuration", lambda pair_row: pair_row[0].a.configuration),
    Column("b_run", lambda pair_row: pair_row[0].b.run.id),
    Column("b_configuration", lambda pair_row: pair_row[0].b.configuration),
    Column("batch_size", lambda pair_row: pair_row[1].batch_size),
    Column("kind", lambda pair_row: pair_row[1].kind),
    Column("quantity", lambda pair_row: pair_row[1].name),
    Column("basis", lambda pair_row: pair_row[1].basis),
    Column("unit", lambda pair_row: pair_row[1].unit),
    *_number_columns("a", lambda row: row.a),
    *_number_columns("b", lambda row: row.b),
    *_number_columns("difference", lambda row: row.difference),
    *_number_columns("percent", lambda row: row.percent),
    Column("verdict", lambda pair_row: STORED_VERDICTS[pair_row[1].verdict]),
    Column("text", lambda pair_row: pair_row[1].text),
    Column("paired_rounds", lambda pair_row: pair_row[1].paired_rounds),
)


# JSON


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain data, every number in base units and with its budget."""
    return {
        "schema_version": SCHEMA_VERSION,
        "generator": f"joulewatch {__version__}",
        "coverage": 0.95,
        "estimated": "estimated" in comparison.methods,
        "emulated": "emulated" in comparison.methods,
        "notes": list(comparison.notes),
        "comparisons": [
            {
                "a": _side_document(pair.a),
                "b": _side_document(pair.b),
                "notes": list(pair.notes),
                "results": [_row_document(row) for row in pair.rows],
            }
            for pair in comparison.pairs
        ],
    }


def render_json(comparison: Comparison) -> str:
    """Return the comparison as JSON."""
    return json_text(comparison_document(comparison))


def _side_document(side: Side) -> dict[str, Any]:
    return {"run": side.run.id, "hardware": side.run.measured_hardware, "configuration": dict(side.settings)}


def _row_document(row: Row) -> dict[str, Any]:
    return {
        "batch_size": row.batch_size,
        "kind": row.kind,
        "quantity": row.name,
        "basis": row.basis,
        "a": estimate_document(row.a, row.unit),
        "b": estimate_document(row.b, row.unit),
        "difference": estimate_document(row.difference, row.unit),
        "percent": estimate_document(row.percent, "%"),
        "verdict": STORED_VERDICTS[row.verdict],
        "text": row.text,
        "cancelled": list(row.cancelled),
        "paired_rounds": row.paired_rounds,
    }
