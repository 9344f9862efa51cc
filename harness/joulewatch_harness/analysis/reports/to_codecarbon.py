"""Results as ``emissions.csv`` of codecarbon: one line per configuration and batch size.

The columns of codecarbon come first, in its order; what joulewatch does not know stays empty. More columns follow,
because codecarbon has no place for them: batch size, methods of the sensors, uncertainty, and findings of the audit.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any, Final

from joulewatch_harness.analysis.reports.table import Column, Table
from joulewatch_harness.analysis.results.model import GroupResult, RunResult
from joulewatch_harness.analysis.results.totals import Totals, totals_of

COLUMNS: Final = (
    "timestamp", "project_name", "run_id", "experiment_id", "duration", "emissions", "emissions_rate", "cpu_power",
    "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "water_consumed",
    "country_name", "country_iso_code", "region", "cloud_provider", "cloud_region", "os", "python_version",
    "codecarbon_version", "cpu_count", "cpu_model", "gpu_count", "gpu_model", "longitude", "latitude", "ram_total_size",
    "tracking_mode", "cpu_utilization_percent", "gpu_utilization_percent", "ram_utilization_percent", "ram_used_gb",
    "on_cloud", "pue", "wue",
)  # fmt: skip
"""Of codecarbon 3.3. Energies are in kWh, powers in W, emissions in kg of CO2, memory in GiB."""
OWN_COLUMNS: Final = (
    "joulewatch_batch_size", "joulewatch_method", "joulewatch_energy_uncertainty", "joulewatch_findings"
)  # fmt: skip
_COMPONENTS: Final = {"cpu": "cpu", "gpu": "gpu", "ram": "memory"}
"""Prefix of columns -> component."""
_JOULES_PER_KWH: Final = 3.6e6
Row = Mapping[str, Any]


def render_codecarbon(result: RunResult, grams_per_kwh: float | None = None) -> str:
    """Return the CSV.

    Args:
        result: The run.
        grams_per_kwh: Carbon intensity of the electricity; None: the columns of emissions stay empty.
    """
    machine = _machine(result)
    rows = [{**machine, **_group(result, group, grams_per_kwh)} for group in result.groups]
    return Table([Column(name, _value(name)) for name in (*COLUMNS, *OWN_COLUMNS)], rows).csv()


def _value(name: str) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        cell = row.get(name)
        return f"{cell:.9g}" if isinstance(cell, float) else cell

    return value


def _group(result: RunResult, group: GroupResult, grams_per_kwh: float | None) -> Row:
    row: dict[str, Any] = {
        "project_name": group.configuration.name,
        "joulewatch_batch_size": group.batch_size,
        "joulewatch_method": "+".join(group.total.methods),
    }
    for prefix, name in _COMPONENTS.items():
        energy = next((energy for energy in group.components if energy.name == name), None)
        totals = totals_of(result.record, energy)
        if totals is not None:
            row |= {f"{prefix}_power": totals.mean_watts, f"{prefix}_energy": totals.joules / _JOULES_PER_KWH}
    totals = totals_of(result.record, group.total)
    if totals is not None:
        row |= _total(totals, grams_per_kwh)
    return row


def _total(totals: Totals, grams_per_kwh: float | None) -> Row:
    kwh = totals.joules / _JOULES_PER_KWH
    kilograms = None if grams_per_kwh is None else kwh * grams_per_kwh / 1e3
    expanded = totals.expanded_joules
    ended = datetime.datetime.fromtimestamp(totals.ended_at_s, datetime.UTC)
    return {
        "timestamp": ended.strftime("%Y-%m-%dT%H:%M:%S"),
        "duration": totals.duration_s,
        "energy_consumed": kwh,
        "emissions": kilograms,
        "emissions_rate": None if kilograms is None else kilograms / totals.duration_s,
        "joulewatch_energy_uncertainty": None if expanded is None else expanded / _JOULES_PER_KWH,
    }


def _machine(result: RunResult) -> Row:
    header = result.record.header
    gpus = {(sensor.exporter, sensor.device): sensor.model for sensor in result.sensors if sensor.component == "gpu"}
    models = list(dict.fromkeys(filter(None, gpus.values())))
    cpu, memory_bytes = header.provenance.get("cpu"), header.provenance.get("memory_bytes")
    return {
        "run_id": header.run,
        "os": header.provenance_text("os"),
        "python_version": header.provenance_text("python"),
        "cpu_count": cpu.get("threads") if isinstance(cpu, Mapping) else None,
        "cpu_model": header.provenance_text("cpu", "model"),
        "gpu_count": len(gpus) or None,
        "gpu_model": ", ".join(models),
        "ram_total_size": memory_bytes / 2**30 if isinstance(memory_bytes, int) else None,
        "tracking_mode": "machine",
        "joulewatch_findings": "+".join(sorted({finding.reason for finding in result.findings})),
    }
