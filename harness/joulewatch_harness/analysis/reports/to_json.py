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
    RunResult,
    SetupEnergy,
    SetupResult,
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
            "provenance": encode(header.provenance),
            "notes": [encode(note) for note in result.record.notes],
        },
        "source": result.source,
        "estimated": "estimated" in result.methods,
        "emulated": "emulated" in result.methods,
        "sensors": [encode(item) for item in result.sensors],
        "idle": {name: _idle_document(item) for name, item in result.idle.items()},
        "results": [_group_document(group) for group in result.groups],
        "setup": {
            name: [_setup_document(item) for item in result.setups if item.configuration == name]
            for name in dict.fromkeys(item.configuration for item in result.setups)
        },
        "findings": [
            {
                "severity": item.severity,
                "reason": item.reason,
                "text": item.text,
                "window": item.window,
                "evidence": dict(item.evidence),
            }
            for item in result.findings
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
        "coverage": 0.95,
        "coverage_factor": estimate.factor,
        "degrees_of_freedom": _finite(estimate.dof),
        "budget": [
            {
                "name": item.name,
                "type": item.kind,
                "standard_uncertainty": item.standard,
                "degrees_of_freedom": _finite(item.dof),
                "systematic": item.systematic,
                "text": item.text,
            }
            for item in estimate.budget
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


def _setup_document(item: SetupResult) -> dict[str, Any]:
    return {
        "phase": item.phase,
        "batch_size": item.batch_size,
        "duration_s": item.duration_s,
        "window": item.window,
        "details": dict(item.details),
        "energy": None
        if item.total is None
        else {
            "components": [_setup_energy_document(one) for one in item.components],
            "total": _setup_energy_document(item.total),
            "nodes": [_setup_energy_document(one) for one in item.nodes],
        },
    }


def _setup_energy_document(item: SetupEnergy) -> dict[str, Any]:
    return {
        "name": item.name,
        "gross": estimate_document(item.gross, "J"),
        "missing": item.missing,
        "methods": list(item.methods),
        "sources": list(item.sources),
    }


def _energy_document(item: EnergyResult) -> dict[str, Any]:
    return {
        "name": item.name,
        "gross": estimate_document(item.gross, "J"),
        "net": estimate_document(item.net, "J"),
        "inferences_per_joule": estimate_document(item.inferences_per_joule, "1/J"),
        "idle": _idle_document(item.idle),
        "missing": item.missing,
        "methods": list(item.methods),
        "sources": list(item.sources),
        "windows": list(item.windows),
        "sensors": [str(sensor) for sensor in item.sensors],
    }


def _group_document(group: GroupResult) -> dict[str, Any]:
    latency = group.latency
    return {
        "configuration": encode(group.configuration),
        "batch_size": group.batch_size,
        "rounds": group.rounds,
        "windows": list(group.windows),
        "left_out": [{"window": item.window, "reason": item.reason, "text": item.text} for item in group.excluded],
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
            "components": [_energy_document(item) for item in group.components],
            "total": _energy_document(group.total),
            "nodes": [_energy_document(item) for item in group.nodes],
            "parts": [_energy_document(item) for item in group.parts],
        },
        "counts": {
            item.name: {
                "count": item.count,
                "per_inference": item.per_inference,
                "rate": estimate_document(item.rate, "1/s"),
                "gross": estimate_document(item.gross, "J"),
                "net": estimate_document(item.net, "J"),
            }
            for item in group.counts
        },
        "phases": [
            {"name": item.name, "share": estimate_document(item.share, "1"), "per_batch_s": item.per_batch_s}
            for item in group.phases
        ],
    }
