"""Results as JSON, described by ``result.schema.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

from joulewatch_harness import __version__
from joulewatch_harness.analysis.reports.table import json_text
from joulewatch_harness.analysis.results.model import (
    EnergyResult,
    Estimate,
    GroupResult,
    IdlePower,
    Interference,
    RunResult,
    SetupEnergy,
    SetupResult,
    WindowShares,
)
from joulewatch_harness.records import encode

SCHEMA_VERSION: Final = 1
"""Version of the JSON, raised when a reader of the previous version would misread it."""


def schema() -> dict[str, Any]:
    """Return the JSON schema of ``render_json``'s document, which is part of the package."""
    text = (
        resources.files("joulewatch_harness.analysis.reports")
        .joinpath("result.schema.json")
        .read_text(encoding="utf-8")
    )
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def result_document(result: RunResult) -> dict[str, Any]:
    """Return the result as plain data, described by ``result.schema.json``."""
    header, end = result.record.header, result.record.end
    return {
        "schema_version": SCHEMA_VERSION,
        "generator": f"joulewatch {__version__}",
        "run": {
            "id": header.run,
            "started_at_s": header.started_at_s,
            "ended_at_s": end.ended_at_s if end is not None else None,
            "status": end.status if end is not None else "running",
            "command": list(header.command),
            "plan": encode(header.plan),
            "plan_sha256": header.plan_sha256,
            "hardware": result.hardware,
            "provenance": encode(header.provenance),
            "notes": [encode(note) for note in result.record.notes],
        },
        "source": result.source,
        "estimated": "estimated" in result.methods,
        "emulated": "emulated" in result.methods,
        "sensors": [encode(sensor) for sensor in result.sensors],
        "idle": {name: _idle_document(power) for name, power in result.idle.items()},
        "results": [_group_document(group) for group in result.groups],
        "interference": [_interference_document(one) for one in result.interference],
        "setup": {
            name: [_setup_document(setup) for setup in result.setups if setup.configuration == name]
            for name in dict.fromkeys(setup.configuration for setup in result.setups)
        },
        "findings": [
            {
                "severity": finding.severity,
                "reason": finding.reason,
                "text": finding.text,
                "window": finding.window,
                "evidence": dict(finding.evidence),
            }
            for finding in result.findings
        ],
    }


def render_json(result: RunResult) -> str:
    """Return the result as JSON, in base units."""
    return json_text(result_document(result))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def estimate_document(estimate: Estimate | None, unit: str) -> dict[str, Any] | None:
    """Return a value with its uncertainty and budget, as plain data."""
    if estimate is None:
        return None
    return {
        "value": estimate.value,
        "unit": unit,
        "standard_uncertainty": estimate.standard,
        "expanded_uncertainty": estimate.expanded,
        "covers": list(estimate.covers),
        "coverage": 0.95,
        "coverage_factor": estimate.factor,
        "degrees_of_freedom": _finite(estimate.dof),
        "budget": [
            {
                "name": line.name,
                "type": line.kind,
                "standard_uncertainty": line.standard,
                "degrees_of_freedom": _finite(line.dof),
                "systematic": line.systematic,
                "text": line.text,
                **({"sign": line.sign} if line.sign < 0 else {}),
            }
            for line in estimate.budget
        ],
        **({"rounds": _rounds(estimate.rounds)} if estimate.rounds else {}),
    }


def _rounds(values: Mapping[int, float]) -> dict[str, float]:
    return {str(number): value for number, value in values.items()}


def _idle_document(idle: IdlePower | None) -> dict[str, Any] | None:
    if idle is None:
        return None
    return {
        "power_watts": idle.watts,
        "standard_uncertainty_watts": idle.standard_watts,
        "degrees_of_freedom": _finite(idle.dof),
        "basis": idle.basis,
        "windows": list(idle.windows),
        "text": idle.text,
    }


def _setup_document(setup: SetupResult) -> dict[str, Any]:
    return {
        "phase": setup.phase,
        "batch_size": setup.batch_size,
        "duration_s": setup.duration_s,
        "window": setup.window,
        "details": dict(setup.details),
        "energy": None
        if setup.total is None
        else {
            "components": [_setup_energy_document(energy) for energy in setup.components],
            "total": _setup_energy_document(setup.total),
            "nodes": [_setup_energy_document(energy) for energy in setup.nodes],
        },
    }


def _setup_energy_document(energy: SetupEnergy) -> dict[str, Any]:
    return {
        "name": energy.name,
        "gross": estimate_document(energy.gross, "J"),
        "missing": energy.missing,
        "methods": list(energy.methods),
        "sources": list(energy.sources),
    }


def energy_document(energy: EnergyResult) -> dict[str, Any]:
    """Return the energy of one component, as plain data."""
    return {
        "name": energy.name,
        "gross": estimate_document(energy.gross, "J"),
        "net": estimate_document(energy.net, "J"),
        "attributed": estimate_document(energy.attributed, "J"),
        "inferences_per_joule": estimate_document(energy.inferences_per_joule, "1/J"),
        "idle": _idle_document(energy.idle),
        "missing": energy.missing,
        "net_missing": energy.net_missing,
        "attributed_missing": energy.attributed_missing,
        "shares": [_shares_document(shares) for shares in energy.shares],
        "methods": list(energy.methods),
        "sources": list(energy.sources),
        "windows": list(energy.windows),
        "sensors": [str(sensor) for sensor in energy.sensors],
    }


def _interference_document(one: Interference) -> dict[str, Any]:
    return {
        "configuration": one.configuration,
        "alone": one.alone,
        "batch_size": one.batch_size,
        "energy_alone": estimate_document(one.energy_alone, "J"),
        "energy_together": estimate_document(one.energy_together, "J"),
        "energy_percent": estimate_document(one.energy_percent, "%"),
        "throughput_alone": estimate_document(one.rate_alone, "1/s"),
        "throughput_together": estimate_document(one.rate_together, "1/s"),
        "throughput_percent": estimate_document(one.rate_percent, "%"),
    }


def _shares_document(shares: WindowShares) -> dict[str, Any]:
    """Return whose energy it was in one window; ``idle_joules`` and the parts add up to ``joules``."""
    return {
        "window": shares.window,
        "joules": shares.joules,
        "idle_joules": shares.idle_joules,
        "ratio": shares.ratio,
        **{name: encode(part) for name, part in shares.parts.items()},
    }


def _group_document(group: GroupResult) -> dict[str, Any]:
    latency = group.latency
    return {
        "configuration": encode(group.configuration),
        "batch_size": group.batch_size,
        "rounds": group.rounds,
        "measured_rounds": group.measured_rounds,
        "rounds_ended": group.rounds_ended,
        "windows": list(group.windows),
        "left_out": [
            {"window": window.window, "reason": window.reason, "text": window.text} for window in group.excluded
        ],
        "inferences": group.inferences,
        "duration_s": group.duration_s,
        "throughput": estimate_document(group.throughput, "1/s"),
        "latency": None
        if latency is None
        else {
            "p50_s": latency.p50_s,
            "p90_s": latency.p90_s,
            "p99_s": latency.p99_s,
            "max_s": latency.max_s,
            **{f"{name}_standard_uncertainty_s": value for name, value in latency.standard_s.items()},
            "rounds": {f"{name}_s": _rounds(values) for name, values in latency.rounds_s.items()},
        },
        "energy": {
            "components": [energy_document(energy) for energy in group.components],
            "total": energy_document(group.total),
            "nodes": [energy_document(energy) for energy in group.nodes],
            "parts": [energy_document(energy) for energy in group.parts],
        },
        "counts": {
            count.name: {
                "count": count.count,
                "per_inference": count.per_inference,
                "rate": estimate_document(count.rate, "1/s"),
                "gross": estimate_document(count.gross, "J"),
                "net": estimate_document(count.net, "J"),
                "attributed": estimate_document(count.attributed, "J"),
            }
            for count in group.counts
        },
        "phases": [
            {
                "name": phase.name,
                "share": estimate_document(phase.share, "1"),
                "per_batch_s": phase.per_batch_s,
                "energy": {name: estimate_document(energy, "J") for name, energy in phase.energies.items()},
            }
            for phase in group.phases
        ],
        "unresolved_phases": {name: estimate_document(energy, "J") for name, energy in group.unresolved_phases.items()},
    }
