"""A calibration as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

from typing import Any

from joulewatch_harness.analysis.calibration.comparison import Point
from joulewatch_harness.analysis.calibration.fit import Fit
from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraphs
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.records import encode


def render_table(fit: Fit, width: int = DEFAULT_WIDTH) -> str:
    """Return the windows with their residuals, and the calibration."""
    line, (first, *_) = fit.line, fit.entries
    before, after = fit.errors(calibrated=False), fit.errors(calibrated=True)
    record = first.calibration
    names = ", ".join(f"{one.sensor.collector}/{one.sensor.device}/{one.sensor.domain}" for one in fit.entries)
    whole = "sum of " if len(fit.entries) > 1 else ""
    accuracy = (
        "its accuracy is unknown: give it with --accuracy"
        if record.reference_accuracy is None
        else f"accuracy ±{100 * record.reference_accuracy:g} %"
    )
    texts = [
        f"gain: {line.slope:.5g} ± {NORMAL_95 * line.slope_standard:.2g}",
        f"offset: {line.intercept:.4g} ± {NORMAL_95 * line.intercept_standard:.2g} W",
        f"linearity: {NORMAL_95 * fit.linearity_watts:.2g} W (95 % of the deviations from the line)",
        f"error before: {_percent(before)}; after: {_percent(after)} (mean; rms over the windows)",
        *(f"not used: {text}" for text in fit.comparison.excluded),
        *([f"warning: {fit.warning}"] if fit.warning else []),
    ]
    columns: list[Column[Point]] = [
        Column("window", lambda point: point.window),
        Column("kind", lambda point: point.kind, text=True),
        Column("sensor W", lambda point: f"{point.sensor_watts:.5g}"),
        Column("±", lambda point: f"{NORMAL_95 * point.sensor_standard_watts:.2g}", priority=1),
        Column("reference W", lambda point: f"{point.reference_watts:.5g}"),
        Column("± ", lambda point: f"{NORMAL_95 * point.reference_standard_watts:.2g}", priority=1),
        Column("error before W", lambda point: f"{point.sensor_watts - point.reference_watts:+.3g}"),
        Column("after W", lambda point: f"{fit.calibrated_watts(point) - point.reference_watts:+.2g}"),
    ]
    heading = f"{whole}{names} against {record.reference} ({accuracy}), run {fit.run}"
    lines = [*paragraphs([heading], width), "", *Table(columns, fit.comparison.points).lines(width), ""]
    return "\n".join([*lines, *paragraphs(texts, width)]) + "\n"


def _percent(error: tuple[float, float]) -> str:
    return f"{100 * error[0]:+.2g} % and {100 * error[1]:.2g} %"


def render_csv(fit: Fit) -> str:
    """Return one line per window."""
    columns: list[Column[Point]] = [
        Column("window", lambda point: point.window),
        Column("kind", lambda point: point.kind),
        Column("sensor_watts", lambda point: f"{point.sensor_watts:.9g}"),
        Column("sensor_standard_uncertainty_watts", lambda point: f"{point.sensor_standard_watts:.4g}"),
        Column("reference_watts", lambda point: f"{point.reference_watts:.9g}"),
        Column("reference_standard_uncertainty_watts", lambda point: f"{point.reference_standard_watts:.4g}"),
        Column("calibrated_watts", lambda point: f"{fit.calibrated_watts(point):.9g}"),
    ]
    return Table(columns, fit.comparison.points).csv()


def render_json(fit: Fit) -> str:
    """Return the calibration with its windows."""
    document: dict[str, Any] = {
        "schema_version": 1,
        "run": fit.run,
        "calibrations": [
            {"sensor": encode(entry.sensor), "calibration": encode(entry.calibration)} for entry in fit.entries
        ],
        "chi_squared": fit.line.chi_squared,
        "windows": [
            {**encode(point), "calibrated_watts": fit.calibrated_watts(point)} for point in fit.comparison.points
        ],
        "excluded": list(fit.comparison.excluded),
        "warning": fit.warning,
    }
    return json_text(document)
