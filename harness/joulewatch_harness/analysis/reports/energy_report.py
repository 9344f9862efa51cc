"""The energy of one window as table, CSV and JSON. Pure: text out."""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from joulewatch_harness.analysis.energy.sensor_energies import SensorEnergy, total_of
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.results.numbers import align, decimals_for, quantity, warning_line

SCHEMA_VERSION: Final = 1


def _methods(rows: Sequence[SensorEnergy]) -> set[str]:
    return {row.record.method for row in rows if row.energy is not None}


def render_table(rows: Sequence[SensorEnergy], span: Span, where: str) -> str:
    """For people: a line for each sensor, the total over devices, what is missing and why."""

    def joules(value: float, uncertainty: float) -> str:
        return f"{value:.{min(decimals_for(value, uncertainty), 6)}f}"

    start, end = (datetime.datetime.fromtimestamp(at_s, datetime.UTC) for at_s in (span.start_s, span.end_s))
    lines = [f"{start:%Y-%m-%d %H:%M:%S.%f} to {end:%Y-%m-%d %H:%M:%S.%f} UTC, {span.duration_s:.3f} s, from {where}"]
    loud = warning_line(_methods(rows))
    if loud:
        lines += ["", loud]
    table = [["sensor", "scope", "method", "energy J", "± 95 %", "bounds J", "power"]]
    for row in rows:
        energy = row.energy
        if energy is None:
            table.append([str(row.sensor), row.sensor.scope, row.record.method, "missing", "", f"[{row.reason}]", ""])
            continue
        u = row.expanded_joules
        table.append(
            [
                *(str(row.sensor), row.sensor.scope, row.record.method),
                *(joules(energy.joules, u), joules(u, u)),
                f"{joules(energy.lower_joules, u)} to {joules(energy.upper_joules, u)}",
                quantity(energy.mean_power_watts, "W"),
            ]
        )
    total = total_of(rows)
    if total is not None:
        u = total.expanded_joules
        methods = "+".join(sorted({row.record.method for row in rows if row.sensor.scope == "device"}))
        table.append(
            [
                *("total over devices", "device", methods),
                *(joules(total.joules, u), joules(u, u)),
                f"{joules(total.lower_joules, u)} to {joules(total.upper_joules, u)}",
                quantity(total.joules / span.duration_s, "W"),
            ]
        )
    lines += ["", *align(table, left=3)]
    if total is None and any(row.sensor.scope == "device" for row in rows):
        lines.append("No total: a device is missing.")
    lines += [f"missing: {row.sensor}: {row.text} [{row.reason}]" for row in rows if row.energy is None]
    lines.append(
        "bounds: from the counters' samples alone; ±: with the sensor's refresh, resolution and published accuracy."
    )
    return "\n".join(lines) + "\n"


def render_csv(rows: Sequence[SensorEnergy], span: Span) -> str:
    """One line for each sensor, in base units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("start_seconds", "end_seconds", "exporter", "scope", "collector", "component", "device", "domain"),
            *("method", "energy_joules", "uncertainty_joules", "lower_joules", "upper_joules", "mean_power_watts"),
            *("source", "missing"),
        ]
    )
    for row in rows:
        sensor, energy = row.sensor, row.energy
        numbers: list[str] = [""] * 5
        if energy is not None:
            values = (energy.joules, row.expanded_joules, energy.lower_joules, energy.upper_joules)
            numbers = [f"{value:.9g}" for value in (*values, energy.mean_power_watts)]
        writer.writerow(
            [
                *(f"{span.start_s:.6f}", f"{span.end_s:.6f}", sensor.exporter, sensor.scope, sensor.collector),
                *(sensor.component, sensor.device, sensor.domain, row.record.method, *numbers),
                *("" if energy is None else energy.method, row.reason),
            ]
        )
    return out.getvalue()


def render_json(rows: Sequence[SensorEnergy], span: Span, where: str) -> str:
    """Everything, budgets too, in base units."""
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
        "total_over_devices": None
        if total is None
        else {
            "joules": total.joules,
            "expanded_uncertainty": total.expanded_joules,
            "lower_joules": total.lower_joules,
            "upper_joules": total.upper_joules,
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
        "missing": row.reason,
        "missing_text": row.text,
        "energy": None,
    }
    if energy is not None:
        document["energy"] = {
            "joules": energy.joules,
            "expanded_uncertainty": row.expanded_joules,
            "lower_joules": energy.lower_joules,
            "upper_joules": energy.upper_joules,
            "mean_power_watts": energy.mean_power_watts,
            "source": energy.method,
            "samples": energy.samples,
            "budget": [
                {
                    "name": item.name,
                    "standard_uncertainty": item.standard_joules,
                    "half_width": item.half_width_joules,
                    "distribution": item.distribution,
                    "text": item.text,
                }
                for item in energy.budget
            ],
        }
    return document
