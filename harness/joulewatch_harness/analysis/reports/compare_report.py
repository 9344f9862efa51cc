"""A comparison for people and programs: table, CSV, JSON. Pure: text out."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any, Final

from joulewatch_harness import __version__
from joulewatch_harness.analysis.reports.to_json import estimate_document
from joulewatch_harness.analysis.results.compare import NODE, Comparison, Pair, Row, Side
from joulewatch_harness.analysis.results.model import TOTAL, Estimate
from joulewatch_harness.analysis.results.numbers import align, plain, prefix_for, warning_line, with_uncertainty

SCHEMA_VERSION: Final = 1
"""Of the JSON; raised when a reader of the old form would go wrong."""


def render_table(comparison: Comparison, *, width: int = 80) -> str:
    """Plain text: for every pair and quantity a table over the batch sizes."""
    loud = warning_line(comparison.methods)
    lines = [loud, ""] if loud else []
    for pair in comparison.pairs:
        lines += [f"A  {_side(pair.a)}", f"B  {_side(pair.b)}"]
        lines += [f"   {note}" for note in pair.notes]
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in pair.rows:
            groups.setdefault((row.kind, row.name, row.basis), []).append(row)
        components = {row.name for row in pair.rows if row.kind == "energy"} - {TOTAL}
        components -= {name for name in components if name.startswith(NODE)}
        for (kind, name, _), rows in groups.items():
            # With one component only, it is the total.
            if kind == "energy" and len(components) == 1 and name in components:
                continue
            lines += ["", *_table(rows)]
        lines += _reasons(pair)
        lines.append("")
    lines.append(
        "±: 95 % coverage. B - A and its share of A. B lower, B higher: it differs, both intervals exclude 0; "
        "not shown: one holds 0, no difference is shown."
    )
    lines += comparison.notes
    if loud:
        lines += ["", loud]
    return "\n".join(wrapped for line in lines for wrapped in _wrapped(line, width)) + "\n"


def _wrapped(line: str, width: int) -> list[str]:
    # Rows of a table hold two blanks in a row behind their first column; prose does not.
    if len(line) <= width or "  " in line.strip()[1:]:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _side(side: Side) -> str:
    hardware = f", {side.run.hardware}" if side.run.hardware else ""
    return f"{side.configuration} (run {side.run.id}{hardware})"


def _title(row: Row, letter: str) -> str:
    if row.kind == "throughput":
        return f"throughput, {letter}inferences/s"
    if row.kind == "latency":
        return f"latency of a batch, {row.name}, {letter}s"
    return f"{row.name}, {row.basis}, {letter}J per inference"


def _table(rows: Sequence[Row]) -> list[str]:
    exponent, letter = prefix_for([one.value for row in rows for one in (row.a, row.b) if one is not None])
    if rows[0].kind == "throughput" and exponent < 0:
        exponent, letter = 0, ""
    scale = 10.0**-exponent
    table = [["batch", "A", "B", "B - A", "%", "difference"]]
    table += [
        [
            str(row.batch_size),
            _cell(row.a, scale),
            _cell(row.b, scale),
            _cell(row.difference, scale, sign=True),
            _cell(row.percent, 1.0, sign=True),
            _verdict(row),
        ]
        for row in rows
    ]
    return [_title(rows[0], letter), *align(table, left=0)]


def _cell(estimate: Estimate | None, scale: float, *, sign: bool = False) -> str:
    if estimate is None:
        return "-"
    # Rounds that agree to the last bit but one have no uncertainty worth a digit.
    told = estimate.expanded > 1e-9 * abs(estimate.value)
    text = with_uncertainty(estimate, scale) if told else plain(estimate.value * scale)
    return f"+{text}" if sign and estimate.value > 0 else text


def _verdict(row: Row) -> str:
    if row.verdict == "differs" and row.difference is not None:
        return "B higher" if row.difference.value > 0 else "B lower"
    # Short: beside the widest numbers there is no more room in 80 columns.
    return "not shown" if row.verdict == "no difference shown" else row.verdict


def _reasons(pair: Pair) -> list[str]:
    """Why there is no verdict, each reason once."""
    found: dict[str, list[int]] = {}
    for row in pair.rows:
        if row.text:
            name = f"{row.name} {row.basis}".strip()
            found.setdefault(f"{name}: {row.verdict}: {row.text}", []).append(row.batch_size)
    lines = [f"{text} (batch {', '.join(map(str, sizes))})" for text, sizes in found.items()]
    return ["", *lines] if lines else []


# CSV


def render_csv(comparison: Comparison) -> str:
    """One line for each pair, batch size and quantity, in base units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        (
            *(
                "a_run",
                "a_configuration",
                "b_run",
                "b_configuration",
                "batch_size",
                "kind",
                "quantity",
                "basis",
                "unit",
            ),
            *("a", "a_uncertainty", "b", "b_uncertainty", "difference", "difference_uncertainty"),
            *("percent", "percent_uncertainty", "verdict", "text", "paired_rounds"),
        )
    )
    for pair in comparison.pairs:
        for row in pair.rows:
            writer.writerow(
                (
                    *(pair.a.run.id, pair.a.configuration, pair.b.run.id, pair.b.configuration),
                    *(row.batch_size, row.kind, row.name, row.basis, row.unit),
                    *(cell for one in (row.a, row.b, row.difference, row.percent) for cell in _numbers(one)),
                    *(row.verdict, row.text, row.paired_rounds),
                )
            )
    return out.getvalue()


def _numbers(estimate: Estimate | None) -> tuple[str, str]:
    return ("", "") if estimate is None else (f"{estimate.value:.9g}", f"{estimate.expanded:.3g}")


# JSON


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data, every number in base units and with its budget."""
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
    """The comparison as JSON."""
    return json.dumps(comparison_document(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _side_document(side: Side) -> dict[str, Any]:
    return {"run": side.run.id, "hardware": side.run.hardware, "configuration": dict(side.settings)}


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
        "verdict": row.verdict,
        "text": row.text,
        "cancelled": list(row.cancelled),
        "paired_rounds": row.paired_rounds,
    }
