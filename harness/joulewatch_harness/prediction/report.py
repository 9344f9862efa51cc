"""Fits and predictions as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraphs
from joulewatch_harness.analysis.results.numbers import plain, prefix_for, warning_line
from joulewatch_harness.prediction.evaluate import baseline_wins
from joulewatch_harness.prediction.fit import Case, Fit
from joulewatch_harness.prediction.predict import Interval, Prediction
from joulewatch_harness.prediction.roofline import COVERAGE

PREDICTED: Final = "!!! PREDICTED, not measured !!!"
SCHEMA_VERSION: Final = 1
"""Version of the JSON of predictions."""


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def _errors_table(cases: Sequence[Case]) -> Table[Case]:
    return Table(
        (
            Column("held out", lambda case: case.name, text=True),
            Column("n", lambda case: case.n),
            Column("devices", lambda case: case.devices, priority=1),
            Column("model", lambda case: _percent(case.median)),
            Column("p90", lambda case: _percent(case.p90)),
            Column("a + b × MACs", lambda case: _percent(case.macs)),
            Column("P × latency", lambda case: _percent(case.power)),
            Column("coverage", lambda case: _percent(case.coverage)),
            Column("worst device", lambda case: _percent(case.worst_coverage)),
            Column("hi/lo", lambda case: None if case.ratio is None else f"{case.ratio:.2f}"),
            Column("note", lambda case: case.note, text=True, priority=1),
        ),
        cases,
    )


def fit_lines(fit: Fit, width: int = DEFAULT_WIDTH) -> list[str]:
    """Return what was fitted, the errors next to the baselines, and where a baseline wins."""
    methods = {method for model in fit.models for part in model.methods for method in part.split("+")}
    warning = paragraphs([text for text in (warning_line(methods),) if text], width)
    rows = sum(len(model.rows) for model in fit.models)
    devices = len({model.device for model in fit.models})
    models = count_of(len(fit.models), "model")
    lines = [*warning, f"{models} of {count_of(devices, 'device')}, {count_of(rows, 'row')}", ""]
    lines += _errors_table(fit.evaluation).lines(width)
    notes = dict.fromkeys(case.note for case in fit.evaluation if case.note)
    lines += ["", *paragraphs((_LEGEND, *(f"Note: {note}" for note in notes)), width)]
    wins = [
        f"{case.name}: {case.winner} is better ({_percent(min(v for v in (case.macs, case.power) if v is not None))}, "
        f"model {_percent(case.median)})"
        for case in fit.evaluation
        if case.winner
    ]
    wins += baseline_wins(fit)
    lines += ["", *paragraphs(["A baseline wins:", *(f"  {text}" for text in wins)], width)] if wins else []
    return lines


_LEGEND: Final = (
    "model, p90, baselines: median (90th percentile) of |predicted / measured - 1|; for an order: the share that is "
    "right. P × latency: constant power times the measured latency, which the model only knows where stated. coverage: "
    "share of the 90 % intervals that contain the measured value, over all devices and on the worst one; hi/lo: their "
    "median width."
)


def fit_csv(fit: Fit) -> str:
    """Return the table of errors as CSV, as fractions."""
    return _numbers_table(fit.evaluation).csv()


def fit_json(fit: Fit) -> str:
    """Return the table of errors as JSON, as fractions."""
    return json_text({"errors": _numbers_table(fit.evaluation).records(), "baseline_wins": baseline_wins(fit)})


def _numbers_table(cases: Sequence[Case]) -> Table[Case]:
    return Table(
        (
            Column("held_out", lambda case: case.name),
            Column("n", lambda case: case.n),
            Column("devices", lambda case: case.devices),
            Column("median", lambda case: case.median),
            Column("p90", lambda case: case.p90),
            Column("macs_median", lambda case: case.macs),
            Column("power_latency_median", lambda case: case.power),
            Column("coverage", lambda case: case.coverage),
            Column("worst_device_coverage", lambda case: case.worst_coverage),
            Column("interval_ratio", lambda case: case.ratio),
            Column("better_baseline", lambda case: case.winner),
            Column("note", lambda case: case.note),
        ),
        cases,
    )


# Predictions


def predict_lines(predictions: Sequence[Prediction], width: int = DEFAULT_WIDTH) -> list[str]:
    """Return the predictions as text, one table per network."""
    warning = paragraphs([PREDICTED], width)
    exponent, letter = prefix_for([row.joules.median for row in predictions])

    def energy(row: Prediction) -> str:
        return _range(row.joules, 10.0**-exponent, row.digits)

    table = Table(
        (
            Column("batch", lambda row: row.batch_size),
            Column(f"{letter}J per inference", lambda row: _shown(row.joules.median * 10.0**-exponent, row.digits)),
            Column("90 %", energy),
            Column(
                "inf/s",
                lambda row: None if row.throughput is None else plain(row.throughput.median),
            ),
            Column("90 %", lambda row: None if row.throughput is None else _range(row.throughput, 1.0)),
            Column(
                "regime",
                lambda row: f"{row.regime} {row.shares.get(row.regime, 0.0):.0%}",
                text=True,
                priority=1,
            ),
        ),
        predictions,
        title=lambda row: f"{row.network}/{row.runtime}/{row.precision} on {row.device}, {row.scope}",
    )
    lines = [*warning, "", *table.lines(width), ""]
    batches: dict[str, list[int]] = {}
    for row in predictions:
        batches.setdefault(_interval_text(row), []).append(row.batch_size)
    for text, sizes in batches.items():
        of = f" (batch {', '.join(map(str, dict.fromkeys(sizes)))})" if len(batches) > 1 else ""
        lines += paragraphs([f"Interval of the energy{of}: {text}"], width)
    lines += paragraphs(dict.fromkeys(f"Note: {note}" for row in predictions for note in row.notes), width)
    sources = warning_line({method for row in predictions for part in row.methods for method in part.split("+")})
    lines += paragraphs([f"Fitted to: {sources}"] if sources else [], width)
    return [*lines, *([""] if lines[-1] else []), *warning]


def _range(interval: Interval, scale: float, digits: int = 4) -> str:
    if interval.low is None or interval.high is None:
        return "no validated interval"
    return f"{_shown(interval.low * scale, digits)} to {_shown(interval.high * scale, digits)}"


def _shown(value: float, digits: int) -> str:
    return plain(value, 10.0 ** (math.floor(math.log10(value)) - digits + 2) if digits < 4 else 0.0)


def _interval_text(row: Prediction) -> str:
    parts = [
        f"×/÷ {math.exp(width):.2f} {text}" if math.isfinite(width) else f"unknown: {text}" for text, width in row.parts
    ]
    return "; ".join(parts)


def _interval(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    return {"median": interval.median, "low": interval.low, "high": interval.high}


def schema() -> dict[str, Any]:
    """Return the JSON schema of the predictions, which is part of the package."""
    folder = resources.files("joulewatch_harness.prediction")
    loaded: dict[str, Any] = json.loads(folder.joinpath("predictions.schema.json").read_text(encoding="utf-8"))
    return loaded


def predict_json(predictions: Sequence[Prediction]) -> str:
    """Return the predictions as JSON, in base units, described by ``predictions.schema.json``."""
    return json_text(
        {"schema_version": SCHEMA_VERSION, "coverage": COVERAGE, "predictions": list(map(_document, predictions))}
    )


def _document(row: Prediction) -> dict[str, Any]:
    return {
        "method": row.method,
        "network": row.network,
        "device": row.device,
        "runtime": row.runtime,
        "precision": row.precision,
        "scope": row.scope,
        "batch_size": row.batch_size,
        "joules_per_inference": _interval(row.joules),
        "inferences_per_second": _interval(row.throughput),
        "regime": row.regime,
        "regime_shares": dict(row.shares),
        "interval_parts": [
            {"text": text, "half_width_log": width if math.isfinite(width) else None} for text, width in row.parts
        ],
        "notes": list(row.notes),
        "fitted_to_methods": list(row.methods),
    }


def predict_csv(predictions: Sequence[Prediction]) -> str:
    """Return the predictions as CSV, in base units."""

    def throughput(row: Prediction, end: str) -> float | None:
        return None if row.throughput is None else getattr(row.throughput, end)

    return Table(
        (
            Column("method", lambda row: row.method),
            Column("network", lambda row: row.network),
            Column("device", lambda row: row.device),
            Column("runtime", lambda row: row.runtime),
            Column("precision", lambda row: row.precision),
            Column("scope", lambda row: row.scope),
            Column("batch_size", lambda row: row.batch_size),
            Column("joules_per_inference", lambda row: row.joules.median),
            Column("joules_low", lambda row: row.joules.low),
            Column("joules_high", lambda row: row.joules.high),
            Column("inferences_per_second", lambda row: throughput(row, "median")),
            Column("inferences_per_second_low", lambda row: throughput(row, "low")),
            Column("inferences_per_second_high", lambda row: throughput(row, "high")),
            Column("regime", lambda row: row.regime),
            Column("interval", _interval_text),
            Column("notes", lambda row: "; ".join(row.notes)),
        ),
        predictions,
    ).csv()
