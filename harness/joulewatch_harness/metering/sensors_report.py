"""The result of ``joulewatch sensors``: as a table, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from joulewatch_harness.analysis.reports.table import Column, Table, paragraphs
from joulewatch_harness.metering.sensors import Cost, SensorRow
from joulewatch_harness.records import ExporterRecord

_NOTE: Final = (
    "1 % from: shortest window of 'joulewatch measure' whose ± is at most 1 % at the power now, without the accuracy "
    "of the sensor. A window shorter than the refresh period has no number."
)


def lines(
    exporters: Sequence[ExporterRecord], rows: Sequence[SensorRow], costs: Sequence[Cost], width: int
) -> list[str]:
    """Return the sensors for people."""
    names = [f"{exporter.url} on {exporter.nodename or 'an unknown machine'}" for exporter in exporters]
    texts = [_NOTE, *map(_cost, costs)]
    return [*names, "", *table(rows, tested=bool(costs)).lines(width), "", *paragraphs(texts, width)]


def document(
    exporters: Sequence[ExporterRecord], rows: Sequence[SensorRow], costs: Sequence[Cost]
) -> Mapping[str, Any]:
    """Return the sensors as JSON values."""
    return {
        "exporters": [dataclasses.asdict(exporter) for exporter in exporters],
        "sensors": [{**dataclasses.asdict(row.record), **_measured(row)} for row in rows],
        "costs": [dataclasses.asdict(cost) for cost in costs],
    }


def _measured(row: SensorRow) -> dict[str, Any]:
    names = ("watts", "shortest_window_s", "measured_refresh_s", "changed_each_time")
    return {name: getattr(row, name) for name in names}


def table(rows: Sequence[SensorRow], *, tested: bool) -> Table[SensorRow]:
    """Return the table; several exporters have a column of their own, and so has the test."""
    columns = [
        Column[SensorRow]("sensor", lambda row: row.name, text=True),
        Column[SensorRow]("scope", lambda row: row.record.scope),
        Column[SensorRow]("method", lambda row: row.record.method),
        Column[SensorRow]("read", lambda row: row.record.read_mode.replace("_", " "), priority=2),
        Column[SensorRow]("refresh", lambda row: _seconds(row.record.refresh_s)),
        Column[SensorRow]("resolution", lambda row: row.record.resolution, priority=1),
        Column[SensorRow]("accuracy", _accuracy),
        Column[SensorRow]("W now", lambda row: "?" if row.watts is None else f"{row.watts:.4g}"),
        Column[SensorRow]("1 % from", lambda row: _seconds(row.shortest_window_s)),
    ]
    if tested:
        columns.insert(5, Column[SensorRow]("tested", _tested))
    if len({row.record.exporter for row in rows}) > 1:
        columns.insert(0, Column[SensorRow]("exporter", lambda row: row.record.exporter, text=True))
    return Table(columns, rows)


def _tested(row: SensorRow) -> str:
    return ("<= " if row.changed_each_time else "") + _seconds(row.measured_refresh_s)


def _seconds(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{_digits(value, 3)} s" if value >= 0.9995 else f"{_digits(value * 1e3, 3)} ms"


def _digits(value: float, digits: int) -> str:
    """Return a number with some digits, and all those before the point."""
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _accuracy(row: SensorRow) -> str:
    if row.record.calibration is not None:
        return "calibrated"
    value = row.record.accuracy
    return "?" if value is None else f"±{100 * value:g} %"


def _cost(cost: Cost) -> str:
    text = (
        f"Cost of reading {cost.exporter}: an answer takes {_digits(cost.median_s * 1e3, 2)} ms (median of "
        f"{cost.requests}), {_digits(cost.p99_s * 1e3, 2)} ms (99 %)"
    )
    if cost.processor_s is None or cost.quiet_share is None:
        return f"{text}."
    return (
        f"{text}, and {_digits(cost.processor_s * 1e3, 2)} ms of the exporter's processor time. When nothing reads it, "
        f"it uses {_digits(100 * cost.quiet_share, 2)} % of a processor."
    )
