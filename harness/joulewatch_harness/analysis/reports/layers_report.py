"""The layer view as table, CSV and JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraphs
from joulewatch_harness.analysis.results.layers import LayerView, Row
from joulewatch_harness.analysis.results.numbers import decimals_for, plain, prefix_for, quantity, warning_line

SCHEMA_VERSION: Final = 1
METHOD: Final = "time share x mean power of the measured windows"
ESTIMATE_LINE: Final = f"!!! Energy per operator is an ESTIMATE: {METHOD}; no sensor resolves single operators !!!"
SMALLEST_SHARE: Final = 0.01
MOST_ROWS: Final = 24
OTHER: Final = "other"


def group_small(view: LayerView, smallest: float = SMALLEST_SHARE, most: int = MOST_ROWS) -> tuple[Row, ...]:
    """Return the rows to show; those below ``smallest`` of the time and after the ``most`` longest are combined."""
    largest = sorted(view.rows, key=lambda row: -row.share)[:most]
    kept = {id(row) for row in largest if row.share >= smallest}
    small = [row for row in view.rows if id(row) not in kept]
    shown = [row for row in view.rows if id(row) in kept]
    if len(small) == 1:
        return view.rows
    if not small:
        return tuple(shown)
    all_known = all(row.macs is not None for row in small)
    shares = [row.macs_share for row in small if row.macs_share is not None]
    joules = [row.joules for row in small if row.joules is not None]
    return (
        *shown,
        Row(
            name=f"{OTHER} ({count_of(len(small), 'operator')})",
            op="",
            seconds=sum(row.seconds for row in small),
            share=sum(row.share for row in small),
            macs=sum(row.macs or 0 for row in small) if all_known else None,
            macs_share=sum(shares) if shares and all_known else None,
            joules=sum(joules) if len(joules) == len(small) else None,
            operators=len(small),
        ),
    )


def warning_lines(view: LayerView) -> list[str]:
    """Return the warnings above the energies: that they are estimates, and whether the measured windows are as well."""
    if view.basis is None:
        return []
    warning = warning_line(view.methods)
    return [ESTIMATE_LINE, *([warning] if warning else [])]


def title(view: LayerView) -> str:
    """Return ``radioml-vgg10, onnxruntime 1.23.0, int8, batch size 64``."""
    about = view.about
    runtime = " ".join(filter(None, (about.get("runtime"), about.get("runtime_version"))))
    parts = (about.get("network"), runtime, about.get("precision"), f"batch size {view.batch_size}")
    return ", ".join(part for part in parts if part)


def basis_lines(view: LayerView) -> list[str]:
    """Return the origin of times and energies."""
    trace, basis = view.trace, view.basis
    time = f"time: {trace.source}, {count_of(trace.batches, 'batch', 'batches')} traced in a separate pass"
    if trace.plain_time_ns:
        time += f" ({trace.time_ns / trace.plain_time_ns - 1:+.1%} compared with untraced ones)"
    if basis is None:
        return [time, "energy: none"]
    exponent, letter = prefix_for([basis.joules_per_inference])
    joules, error = basis.joules_per_inference / 10**exponent, (basis.expanded_joules or 0.0) / 10**exponent
    energy = f"{joules:.{decimals_for(joules, error)}f}"
    if error > 0:
        energy = f"({energy} ± {error:.{decimals_for(joules, error)}f})"
    windows = count_of(len(basis.windows), "window")
    return [
        time,
        f"energy: run {basis.run}, {windows}, {energy} {letter}J per inference "
        f"at {quantity(basis.mean_power_watts, 'W')}",
    ]


def render_table(view: LayerView, smallest: float = SMALLEST_SHARE, *, width: int = DEFAULT_WIDTH) -> str:
    """Return the text: one row per operator, in the order of execution; small ones are combined."""
    total = Row(
        name="total",
        op="",
        seconds=view.seconds,
        share=1.0,
        macs=view.macs,
        macs_share=1.0 if view.macs else None,
        joules=None if view.basis is None else view.basis.joules_per_inference,
        operators=0,
    )
    rows = [*group_small(view, smallest), view.between, total]
    lines = paragraphs([title(view), *basis_lines(view), *warning_lines(view)], width)
    lines += ["", *Table(_text_columns(view, rows[:-1]), rows).lines(width)]
    lines += paragraphs(
        ["Times, MACs and energies are per inference.", *(f"note: {note}" for note in view.notes)], width
    )
    return "\n".join(lines) + "\n"


def _text_columns(view: LayerView, rows: list[Row]) -> list[Column[Row]]:
    time_exponent, time_letter = prefix_for(row.seconds for row in rows)
    energy_exponent, energy_letter = prefix_for(row.joules or 0.0 for row in rows)
    columns: list[Column[Row]] = [
        Column("operator", lambda row: row.name, text=True),
        Column("kind", lambda row: row.op, text=True),
        Column(f"time {time_letter}s", lambda row: plain(row.seconds / 10**time_exponent)),
        Column("time %", lambda row: f"{row.share:.1%}"),
        Column("MACs", lambda row: "?" if row.macs is None else f"{row.macs:,}" if row.macs else None, priority=1),
        Column("MACs %", lambda row: f"{row.macs_share:.1%}" if row.macs_share else None, priority=2),
        Column("GMAC/s", _speed, priority=3),
    ]
    if view.basis is not None:
        heading = f"est. energy {energy_letter}J"
        columns.append(
            Column(heading, lambda row: None if row.joules is None else plain(row.joules / 10**energy_exponent))
        )
    return columns


def _speed(row: Row) -> str | None:
    return plain(row.macs / row.seconds * 1e-9) if row.macs and row.seconds else None


def render_csv(view: LayerView) -> str:
    """Return the CSV: one line per operator, in base units."""
    about = view.about
    columns: list[Column[Row]] = [
        Column("network", lambda _: about.get("network", "")),
        Column("runtime", lambda _: about.get("runtime", "")),
        Column("precision", lambda _: about.get("precision", "")),
        Column("batch_size", lambda _: view.batch_size),
        Column("operator", lambda row: row.name),
        Column("kind", lambda row: row.op),
        Column("seconds_per_inference", lambda row: f"{row.seconds:.6g}"),
        Column("time_share", lambda row: f"{row.share:.6g}"),
        Column("macs_per_inference", lambda row: row.macs),
        Column("macs_share", lambda row: None if row.macs_share is None else f"{row.macs_share:.6g}"),
        Column("estimated_joules_per_inference", lambda row: None if row.joules is None else f"{row.joules:.6g}"),
    ]
    return Table(columns, (*view.rows, view.between)).csv()


def document(view: LayerView) -> dict[str, Any]:
    """Return everything as plain data, in base units."""
    basis, trace = view.basis, view.trace
    return {
        "schema_version": SCHEMA_VERSION,
        **view.about,
        "batch_size": view.batch_size,
        "energy_is_estimated": True,
        "energy_method": METHOD,
        "trace": {
            "source": trace.source,
            "batches": trace.batches,
            "seconds_per_inference": _digits(trace.time_ns * 1e-9 / (trace.batches * trace.batch_size)),
            "untraced_seconds_per_inference": None
            if trace.plain_time_ns is None
            else _digits(trace.plain_time_ns * 1e-9 / (trace.batches * trace.batch_size)),
            "overlapping": trace.overlapping,
        },
        "basis": None
        if basis is None
        else {
            **{key: value for key, value in dataclasses.asdict(basis).items() if key not in ("windows", "methods")},
            "windows": list(basis.windows),
            "methods": list(basis.methods),
            "mean_power_watts": _digits(basis.mean_power_watts),
        },
        "macs_per_inference": view.macs,
        "operators": Table(_JSON_COLUMNS, view.rows).records(),
        "between_operators": Table(_JSON_COLUMNS, [view.between]).records()[0],
        "notes": list(view.notes),
    }


def render_json(view: LayerView) -> str:
    """Return ``document`` as JSON."""
    return json_text(document(view))


def _digits(value: float) -> float:
    """Round to nine digits: more than any clock resolves, without floating-point noise."""
    return float(f"{value:.9g}") if math.isfinite(value) else 0.0


_JSON_COLUMNS: Final[tuple[Column[Row], ...]] = (
    Column("name", lambda row: row.name),
    Column("op", lambda row: row.op),
    Column("seconds_per_inference", lambda row: _digits(row.seconds)),
    Column("time_share", lambda row: _digits(row.share)),
    Column("macs_per_inference", lambda row: row.macs),
    Column("macs_share", lambda row: None if row.macs_share is None else _digits(row.macs_share)),
    Column("estimated_joules_per_inference", lambda row: None if row.joules is None else _digits(row.joules)),
)
