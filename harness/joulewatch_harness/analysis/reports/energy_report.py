"""The energy of one window as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from joulewatch_harness.analysis.energy.intervals import IntervalEnergy
from joulewatch_harness.analysis.energy.sensor_energies import Joules, SensorEnergy, total_of
from joulewatch_harness.analysis.energy.window_energy import Span, WindowEnergy
from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraphs
from joulewatch_harness.analysis.results.numbers import UNKNOWN_ACCURACY, decimals_for, quantity, warning_line
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.records import encode

SCHEMA_VERSION: Final = 1
JOULES_PER_KWH: Final = 3.6e6
_PRIMARY: Final = {True: "1", False: "0", None: ""}


def heading_lines(span: Span, where: str, methods: Iterable[str], width: int) -> list[str]:
    """Return the interval and the source of energies, and a warning if they are not measured."""
    start, end = (datetime.datetime.fromtimestamp(at_s, datetime.UTC) for at_s in (span.start_s, span.end_s))
    heading = f"{start:%Y-%m-%d %H:%M:%S.%f} to {end:%Y-%m-%d %H:%M:%S.%f} UTC, {span.duration_s:.3f} s, from {where}"
    warning = warning_line(methods)
    return paragraphs([heading, *(["", warning] if warning else [])], width)


def notice_lines(notices: Iterable[Notice]) -> list[str]:
    """Return notices as text."""
    return [f"{notice.severity} [{notice.reason}]: {notice.text}" for notice in notices]


def findings_document(notices: Iterable[Notice]) -> list[dict[str, Any]]:
    """Return notices as findings for JSON."""
    return [
        {
            "severity": notice.severity,
            "reason": notice.reason,
            "text": notice.text,
            "evidence": {"exporter": notice.exporter},
        }
        for notice in notices
    ]


def _methods(rows: Sequence[SensorEnergy]) -> set[str]:
    return {row.record.method for row in rows if row.energy is not None}


def render_table(
    rows: Sequence[SensorEnergy],
    span: Span,
    where: str,
    notices: Sequence[Notice] = (),
    *,
    width: int = DEFAULT_WIDTH,
) -> str:
    """Return the text: one row per sensor, the total over devices, the reasons for missing energies, and notices."""
    lines = heading_lines(span, where, _methods(rows), width)
    total = total_of(rows)
    devices = {row.record.method for row in rows if row.sensor.scope == "device"}
    table_lines = [
        _Line(_name(row), row.sensor.scope, row.record.method, row.joules, f"[{row.reason}]") for row in rows
    ]
    if total is not None:
        last = max(number for number, line in enumerate(table_lines) if line.scope == "device")
        total_line = _Line("total over devices", "device", "+".join(sorted(devices)), total)
        table_lines.insert(last + 1, total_line)
    table = Table(_text_columns(span.duration_s), table_lines, lambda line: f"{line.scope} sensors")
    lines += ["", *table.lines(width)]
    notes = ["No total: the energy of a device is missing."] if total is None and devices else []
    notes += [f"missing: {row.sensor}: {row.text} [{row.reason}]" for row in rows if row.energy is None]
    notes += notice_lines(notices)
    if any(row.record.primary for row in rows):
        notes.append("primary: the one node sensor of its host that counts; the others measure the same server.")
    notes.append(
        "bounds: from the counter's samples alone. ±: 95 % coverage, with the sensor's refresh, resolution and "
        "accuracy."
    )
    if any(row.joules is not None and not row.joules.accuracy_known for row in rows):
        notes.append(f"{UNKNOWN_ACCURACY}: sampling only: the sensor's accuracy is unknown.")
    return "\n".join([*lines, *paragraphs(notes, width)]) + "\n"


def _name(row: SensorEnergy) -> str:
    return f"{row.sensor} (primary)" if row.record.primary else str(row.sensor)


class _Line(NamedTuple):
    """A row of the text: a sensor or the total."""

    sensor: str
    scope: str
    method: str
    energy: Joules | None
    reason: str = ""


def _text_columns(duration_s: float) -> list[Column[_Line]]:
    def joules(number: Callable[[Joules], float]) -> Callable[[_Line], str | None]:
        def cell(line: _Line) -> str | None:
            return None if line.energy is None else _decimals(number(line.energy), line.energy.expanded_joules)

        return cell

    def uncertainty(line: _Line) -> str | None:
        number = joules(lambda energy: energy.expanded_joules)(line)
        return f"{number}{UNKNOWN_ACCURACY}" if line.energy is not None and not line.energy.accuracy_known else number

    lower, upper = joules(lambda energy: energy.lower_joules), joules(lambda energy: energy.upper_joules)
    return [
        Column("sensor", lambda line: line.sensor, text=True),
        Column("method", lambda line: line.method, text=True),
        Column("energy J", lambda line: joules(lambda energy: energy.joules)(line) or "missing"),
        Column("± 95 %", uncertainty),
        Column("bounds J", lambda line: f"{lower(line)} to {upper(line)}" if line.energy else line.reason, priority=1),
        Column("power", lambda line: quantity(line.energy.joules / duration_s, "W") if line.energy else None),
    ]


def _decimals(value: float, uncertainty: float) -> str:
    return f"{value:.{min(decimals_for(value, uncertainty), 6)}f}"


def render_csv(rows: Sequence[SensorEnergy], span: Span) -> str:
    """Return the CSV: one line per sensor, in base units."""

    def number(value: Callable[[WindowEnergy], float]) -> Callable[[SensorEnergy], str]:
        return lambda row: "" if row.energy is None else f"{value(row.energy):.9g}"

    columns: list[Column[SensorEnergy]] = [
        Column("start_seconds", lambda _: f"{span.start_s:.6f}"),
        Column("end_seconds", lambda _: f"{span.end_s:.6f}"),
        Column("exporter", lambda row: row.sensor.exporter),
        Column("scope", lambda row: row.sensor.scope),
        Column("collector", lambda row: row.sensor.collector),
        Column("component", lambda row: row.sensor.component),
        Column("device", lambda row: row.sensor.device),
        Column("domain", lambda row: row.sensor.domain),
        Column("method", lambda row: row.record.method),
        Column("energy_joules", number(lambda energy: energy.joules)),
        Column("uncertainty_joules", lambda row: "" if row.energy is None else f"{row.expanded_joules:.9g}"),
        Column("uncertainty_covers", lambda row: "" if row.joules is None else "+".join(row.joules.covers)),
        Column("lower_joules", number(lambda energy: energy.lower_joules)),
        Column("upper_joules", number(lambda energy: energy.upper_joules)),
        Column("mean_power_watts", number(lambda energy: energy.mean_power_watts)),
        Column("source", lambda row: "" if row.energy is None else row.energy.method),
        Column("missing", lambda row: row.reason),
        Column("primary", lambda row: _PRIMARY[row.record.primary]),
        Column("host", lambda row: row.record.host),
        Column("warning", lambda row: row.warning),
        Column("calibration", lambda row: "" if row.record.calibration is None else row.record.calibration.date),
    ]
    return Table(columns, rows).csv()


def energy_columns() -> list[Column[Any]]:
    """Return the columns with the energy of a row and its uncertainty, for CSV; empty if it is not known."""

    def energy(scale: float) -> Callable[[Any], str]:
        return lambda row: "" if row.joules is None else f"{row.joules * scale:.9g}"

    return [
        Column("energy_joules", energy(1.0)),
        Column("energy_kwh", energy(1 / JOULES_PER_KWH)),
        Column("uncertainty_joules", lambda row: "" if row.joules is None else f"{row.expanded_joules:.4g}"),
        Column(
            "uncertainty_covers",
            lambda row: "" if row.joules is None else "sampling+accuracy" if row.accuracy_known else "sampling",
        ),
    ]


def render_intervals(rows: Sequence[IntervalEnergy], price: float | None = None) -> str:
    """Return the CSV of intervals: one line per interval, host and component; energies that are not known are empty.

    Args:
        rows: The intervals.
        price: Of a kWh; None: without the column of costs.
    """

    def local(at_s: float) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(at_s).astimezone()

    columns: list[Column[IntervalEnergy]] = [
        Column("start", lambda row: local(row.span.start_s).isoformat(timespec="seconds")),
        Column("end", lambda row: local(row.span.end_s).isoformat(timespec="seconds")),
        Column("time_zone", lambda row: local(row.span.start_s).tzname()),
        Column("host", lambda row: row.host),
        Column("component", lambda row: row.component),
        *energy_columns(),
        Column("measured_seconds", lambda row: f"{row.measured_s:.3f}"),
        Column("unmeasured_seconds", lambda row: f"{row.unmeasured_s:.3f}"),
        Column("unmeasured_reasons", lambda row: row.reasons),
        Column("methods", lambda row: row.methods),
    ]
    if price is not None:
        scale = price / JOULES_PER_KWH
        columns.insert(7, Column("cost", lambda row: "" if row.joules is None else f"{row.joules * scale:.6f}"))
    return Table(columns, rows).csv()


def render_json(rows: Sequence[SensorEnergy], span: Span, where: str, notices: Sequence[Notice] = ()) -> str:
    """Return the JSON: all numbers with their budgets, in base units, and notices as findings."""
    total = total_of(rows)
    document: Mapping[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "source": where,
        "start_s": span.start_s,
        "end_s": span.end_s,
        "unit": "J",
        "coverage": 0.95,
        "estimated": "estimated" in _methods(rows),
        "emulated": "emulated" in _methods(rows),
        "sensors": [_row_document(row) for row in rows],
        "total_over_devices": joules_document(total),
        "findings": findings_document(notices),
    }
    return json_text(document)


def joules_document(energy: Joules | None) -> dict[str, Any] | None:
    """Return an energy for JSON; None if it is not known."""
    if energy is None:
        return None
    return {
        "joules": energy.joules,
        "expanded_uncertainty": energy.expanded_joules,
        "covers": list(energy.covers),
        "lower_joules": energy.lower_joules,
        "upper_joules": energy.upper_joules,
    }


def _row_document(row: SensorEnergy) -> dict[str, Any]:
    sensor, energy = row.sensor, row.energy
    document: dict[str, Any] = {
        "exporter": sensor.exporter,
        "scope": sensor.scope,
        "collector": sensor.collector,
        "component": sensor.component,
        "device": sensor.device,
        "domain": sensor.domain,
        "method": row.record.method,
        "primary": row.record.primary,
        "host": row.record.host,
        "calibration": encode(row.record.calibration),
        "missing": row.reason,
        "missing_text": row.text,
        "energy": None,
    }
    if energy is not None and row.joules is not None:
        document["energy"] = {
            "joules": energy.joules,
            "expanded_uncertainty": row.expanded_joules,
            "covers": list(row.joules.covers),
            "lower_joules": energy.lower_joules,
            "upper_joules": energy.upper_joules,
            "mean_power_watts": energy.mean_power_watts,
            "source": energy.method,
            "samples": energy.samples,
            "budget": [
                {
                    "name": component.name,
                    "standard_uncertainty": component.standard_joules,
                    "half_width": component.half_width_joules,
                    "distribution": component.distribution,
                    "text": component.text,
                }
                for component in energy.budget
            ],
        }
    return document
